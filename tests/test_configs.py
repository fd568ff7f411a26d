"""Every shipped YAML is parsed; its header and the README say what can be run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from project_paths import ROOT

from introspection_lit.cli import main

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
OVERLAYS = [path for path in CONFIGS if "*overlay*" in path.read_text().splitlines()[0]]
EXPERIMENTS = [path for path in CONFIGS if path not in OVERLAYS]


@pytest.mark.parametrize("config", EXPERIMENTS, ids=lambda path: path.name)
def test_config_is_parsed_and_documented(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LightningCLI accepts it, and the header gives purpose, command, hardware, time and result."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(config), "--print_config"])
    assert stop.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert parsed["trainer"]["logger"]["init_args"]["name"] == config.stem
    header = config.read_text()
    for line in ("Purpose:", "Command:", "Hardware:", "Time:", "Result:"):
        assert f"# {line}" in header
    assert f"fit --config configs/{config.name}" in header


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.name)
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_overlay_changes_what_it_names_and_nothing_else(
    overlay: Path, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On top of any experiment; and its header gives the same five lines."""
    printed = []
    for files in ([experiment], [experiment, overlay]):
        with pytest.raises(SystemExit) as stop:
            main(["fit", *(word for file in files for word in ("--config", str(file))), "--print_config"])
        assert stop.value.code == 0
        printed.append(flat(yaml.safe_load(capsys.readouterr().out)))
    changed = flat(yaml.safe_load(overlay.read_text()))
    assert printed[1] == printed[0] | changed
    header = overlay.read_text()
    for line in ("Purpose:", "Command:", "Hardware:", "Time:", "Result:"):
        assert f"# {line}" in header
    assert f"--config configs/{overlay.name}" in header


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """A configuration as one level of dotted names."""
    if not isinstance(tree, dict) or not tree:
        return {name: tree}
    return {key: value for child, below in tree.items() for key, value in flat(below, f"{name}.{child}").items()}


def test_there_are_the_experiments() -> None:
    """The quickstart, several tasks, the full experiment, and the two target models."""
    assert {path.stem for path in CONFIGS} >= {"quickstart", "tasks", "smollm2-135m", "qwen2.5-7b", "qwen2.5-coder-32b"}


def documented_commands() -> list[str]:
    """The `python -m introspection_lit` commands of the README and of the results."""
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/results.md", "docs/weak-doses.md")).replace(
        "\\\n", " "
    )
    return list(dict.fromkeys(re.findall(r"^(?:\.venv/bin/)?python -m introspection_lit .*$", text, re.MULTILINE)))


@pytest.mark.parametrize("command", documented_commands())
def test_commands_of_the_readme_are_parsed(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each subcommand and option in the README exists (checkpoints it mentions need not; RUN is one of the quickstart)."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.replace("RUN/config.yaml", "configs/quickstart.yaml"), comments=True)[3:]
    # Some have no configuration: their options are compared with their help.
    options = {word for word in words if word.startswith("-")} if words[0] in ("report", "serve") else set()
    words = [words[0], "--help"] if options else words
    with pytest.raises(SystemExit) as stop:
        main([*words, *([] if "--help" in words else ["--print_config"])])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed
    assert all(option in printed for option in options)


def test_make_targets_of_the_readme_exist() -> None:
    """`make NAME` in the README or the contributing guide is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        used = set(re.findall(r"^make ([a-z-]+)", (ROOT / document).read_text(), re.MULTILINE))
        assert used <= targets
        assert "test" in used
