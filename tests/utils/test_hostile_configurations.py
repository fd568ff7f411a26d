"""Configurations and texts of strangers: they name no class, have no end that we wait for, and do not steer a terminal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from project_paths import ROOT
from run_scripts import script

from introspection_lit.cli import main
from introspection_lit.utils import config_files
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.errors import ConfigurationError, IntrospectionError, visible
from introspection_lit.utils.paths import inside_folder

pytestmark = pytest.mark.thorough


CONFIGS = {
    "callback": {"trainer": {"callbacks": [{"class_path": "evil.Callback"}]}},
    "text for a class": {"trainer": {"strategy": "evil_package.Strategy"}},
    "logger": {"trainer": {"logger": {"class_path": "evil_package.Logger"}}},
    "logger's logger": {"trainer": {"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": {"class_path": "x"}}}}},
    "section in a file": {"trainer": "evil.yaml"},
    "part in a file": {"model": {"base": "evil.yaml"}},
    "another file": {"config": "evil.yaml"},
    "trust": {"model": {"base": {"trust_remote_code": True}}},
    "class inside": {"data": {"reuse": {"class_path": "evil_package.Reuse"}}},
    "place": {"checkpoint": {"filename": "../../../evil"}},
    "default place": {"trainer": {"default_root_dir": "/elsewhere"}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_runs_own_configuration_names_no_class(name: str, tmp_path: Path, marker: Path) -> None:
    """controls.py reads it without being told to, so it must not be a program."""
    controls = script("controls")
    usual = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    usual |= {"test_after_fit": True}
    assert controls.untrusted_parts(usual) == []
    for section, options in CONFIGS[name].items():
        whole = isinstance(options, str)
        usual[section] = options if whole else usual.get(section, {}) | options
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(usual))
    (tmp_path / "results.json").write_text(json.dumps({"sets": {}}))
    with pytest.raises(IntrospectionError, match="could run code or write elsewhere"):
        controls.options_of_run(tmp_path)
    assert controls.untrusted_parts(usual)


def test_yaml_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few lines of aliases can be gigabytes once they are written out; here the limit is low."""
    monkeypatch.setattr(config_files, "MAX_VALUES", 50)
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 3)}]" for n in range(1, 4))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    (tmp_path / "results.json").write_text(json.dumps({"sets": {}}))
    with pytest.raises(IntrospectionError, match="Is an alias repeated"):
        script("controls").options_of_run(tmp_path)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), AttributeError("x"), RecursionError("x")])
def test_errors_of_the_yaml_library(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has some that are not its own, for wrong tags and deep nesting: in a run's folder, and given with --config."""

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(yaml.constructor.BaseConstructor, "construct_document", fails)
    (tmp_path / "config.yaml").write_text("data:\n  seed: 3\n")
    (tmp_path / "results.json").write_text(json.dumps({"sets": {}}))
    with pytest.raises(IntrospectionError, match=r"config\.yaml cannot be read"):
        script("controls").options_of_run(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", str(tmp_path / "config.yaml")])
    assert left.value.code == 2


def test_yaml_that_is_inside_itself(tmp_path: Path) -> None:
    """A list that is one of its own values."""
    (tmp_path / "config.yaml").write_text("trainer: {x: &a [*a]}")
    (tmp_path / "results.json").write_text(json.dumps({"sets": {}}))
    with pytest.raises(IntrospectionError, match=r"config\.yaml cannot be read.*inside itself"):
        script("controls").options_of_run(tmp_path)


def test_objects_with_many_fields() -> None:
    """A field is looked for among all others once, and not once for each of them, which would take hours for a million."""
    compared = 0

    class Name(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    with pytest.raises(ValueError, match="has the field 'k0' twice"):
        config_files.unique_fields([(Name(f"k{number % 999}"), 0) for number in range(1000)])
    assert compared < 5000


def test_what_belongs_to_a_folder(tmp_path: Path) -> None:
    """Against the operating system's own view of where a path leads."""
    (tmp_path / "run").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "run" / "up").symlink_to(tmp_path)
    paths = ["run/a", "run/b/../a", "run/..", "run/up/a", "a", "circle", "run/\0", "run", "/", "~", "run/" + "x" * 5000]
    kept = inside_folder([tmp_path / path for path in paths], tmp_path / "run")
    assert kept == [tmp_path / path for path in ("run/a", "run/b/../a", "run", "run/" + "x" * 5000)]
    for path in kept:
        assert os.path.realpath(path).startswith(os.path.realpath(tmp_path / "run"))


def test_terminals_are_not_steered(capsys: pytest.CaptureFixture[str]) -> None:
    """Colours, cursor movements, titles, and marks that turn the direction of writing are shown as what they are."""
    hostile = "\x1b]0;title\x07\x1b[2J\r\u202eabc\x9b31m\ud800"
    with pytest.raises(ConfigurationError) as raised:
        raise ConfigurationError([f"data.contexts: {hostile}"])
    PlainConsole().print(f"[bold]{hostile}[/nothing]")
    for shown in (str(raised.value), raised.value.problems[0], capsys.readouterr().out):
        assert all(character.isprintable() or character == "\n" for character in shown)
        assert "\\x1b[2J\\r\\u202eabc" in shown
    assert visible("Größe 模型 👩‍🚀 العربية\tא\n") == "Größe 模型 👩‍🚀 العربية\tא\n"
