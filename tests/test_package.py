"""What ``import introspection_lit`` offers: public names on first use, former class paths, a console command."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

import introspection_lit
from introspection_lit.cli import attach, main

ROOT = Path(__file__).parent.parent
FORMER = [
    (f"introspection_lit.{old}.{name}", f"introspection_lit.{new}.{name}")
    for old, classes in introspection_lit._FORMER.items()  # type: ignore[attr-defined]
    for name, new in classes.items()
]
STRATEGY = "introspection_lit.strategies.ShardedStrategy"


def test_package_alone_loads_no_torch() -> None:
    """Neither do its list of names and its version; the first use of a name loads its module."""
    program = """
import sys
import introspection_lit
assert "Detector" in dir(introspection_lit) and introspection_lit.__version__ and introspection_lit.__all__
heavy = {"torch", "transformers", "lightning", "peft", "jsonargparse"} & sys.modules.keys()
assert not heavy, heavy
assert introspection_lit.Detector.__name__ == "Detector" and "torch" in sys.modules
assert "lightning" not in sys.modules, "the detector needs no Trainer"
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_every_public_name_is_there_and_in_the_stub() -> None:
    """The stub says of each where it is defined, as the package does."""
    stub = ast.parse((ROOT / "introspection_lit" / "__init__.pyi").read_text())
    told = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in ast.walk(stub)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(told) == set(introspection_lit.__all__)
    for name, place in told.items():
        module, _, attribute = place.rpartition(".")
        assert getattr(introspection_lit, name) is getattr(import_module(module), attribute)


def test_other_names_are_refused() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="has no attribute 'Detectors'"):
        introspection_lit.Detectors  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.parametrize(("old", "new"), FORMER)
def test_former_class_paths_name_the_same_classes(old: str, new: str) -> None:
    """As jsonargparse, with which the command line reads configurations, resolves them."""
    parser = ArgumentParser()
    parser.add_argument("--class", type=type[object])
    module, _, name = new.rpartition(".")
    assert parser.parse_args([f"--class={old}"])["class"] is getattr(import_module(module), name)


def test_former_class_paths_in_a_configuration(tmp_path: Path) -> None:
    """The trainer gets callbacks and plugins of these classes."""
    needs_more = {"IntrospectionModule", "IntrospectionDataModule", "ConfigWriter", "ShardedStrategy", "ShardedPrecision"}
    # Lightning refuses two callbacks with one state: Watch is among the command line's own.
    paths = [old for old, _ in FORMER if old.rpartition(".")[2] not in {*needs_more, "CheckpointFiles", "Watch"}]
    callbacks = [{"class_path": path} for path in paths]
    callbacks[paths.index("introspection_lit.callbacks.BestCheckpoint")]["init_args"] = {"monitor": "validation/auroc"}
    trainer = {"callbacks": callbacks, "plugins": [{"class_path": "introspection_lit.checkpoint_files.CheckpointFiles"}]}
    (tmp_path / "former.yaml").write_text(yaml.safe_dump({"trainer": {"accelerator": "cpu", **trainer}}))
    cli = attach(["--config", str(tmp_path / "former.yaml"), "--trainer.default_root_dir", str(tmp_path)])
    made = [type(callback).__name__ for callback in cli.trainer.callbacks]
    twice = {name for name in made if made.count(name) == 2}  # ours, and that of the configuration
    assert twice == {path.rpartition(".")[2] for path in paths}
    assert type(cli.trainer.strategy.checkpoint_io).__name__ == "CheckpointFiles"


def test_former_path_of_the_strategy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is parsed as a strategy, with its options; a class that is none is refused."""
    (tmp_path / "former.yaml").write_text(yaml.safe_dump({"trainer": {"strategy": {"class_path": STRATEGY}}}))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(tmp_path / "former.yaml"), "--print_config"])
    assert stop.value.code == 0
    strategy = yaml.safe_load(capsys.readouterr().out)["trainer"]["strategy"]
    assert strategy["class_path"].endswith(".ShardedStrategy")
    assert strategy["init_args"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--trainer.strategy", STRATEGY.replace("strategies.ShardedStrategy", "watch.Watch")])
    assert stop.value.code == 2


def test_console_command_is_the_module_command() -> None:
    """``introspection-lit`` and ``python -m introspection_lit`` run the same function."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    command, _, place = setup["options.entry_points"]["console_scripts"].strip().partition(" = ")
    assert command == "introspection-lit"
    module, _, function = place.partition(":")
    program = f"import sys; from {module} import {function}; sys.argv = ['{command}', '--help']; sys.exit({function}())"
    done = subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "{fit,validate,test,predict,show,report,serve,push,gguf}" in done.stdout
    assert "*.pyi" in setup["options.package_data"]["introspection_lit"].split()
