"""Starting up: what --help must not import, and what it must say nevertheless."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
import yaml
from packaging.version import Version
from project_paths import ROOT
from run_scripts import SCRIPTS

from introspection_lit.cli import IntrospectionCLI, main

# Packages that take long to import and that options have nothing to do with. Lightning itself imports matplotlib, scipy,
# sympy and the root of transformers.
NOT_FOR_OPTIONS = {
    *("peft", "bitsandbytes", "accelerate", "sklearn", "pandas", "datasets", "statsmodels"),
    *("transformers.modeling_utils", "tensorboard.backend.event_processing.event_accumulator"),
}
NOT_FOR_REPORTS = NOT_FOR_OPTIONS | {"torch", "lightning", "transformers", "torchmetrics", "gradio"}
LEAN = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="older transformers import much of it by themselves"
)
# Ends as the command line ends, and says on stderr what has been imported by then.
COMMAND_LINE = """
import atexit, runpy, sys
atexit.register(lambda: print("MODULES", *sys.modules, file=sys.stderr))
runpy.run_module("introspection_lit", run_name="__main__", alter_sys=True)
"""
ALL_SCRIPTS = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        assert not stop.code
print("MODULES", *sys.modules, file=sys.stderr)
"""


def started(program: str, *words: str) -> tuple[str, set[str]]:
    """Run a program in a process of its own: what it prints, and which modules it has imported."""
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    imported = re.search("^MODULES (.*)$", done.stderr, re.MULTILINE)
    assert imported
    return done.stdout, set(imported.group(1).split())


@LEAN
def test_help_of_a_subcommand_imports_what_it_reads_options_from() -> None:
    """And no more: nothing that loads, adapts or evaluates a model. It says all the same what it always said."""
    text, modules = started(COMMAND_LINE, "fit", "--help")
    assert "lightning.pytorch.cli" in modules
    assert not modules & NOT_FOR_OPTIONS
    for option in ("--trainer.max_steps", "--model.lora.r", "--data.bands", "--checkpoint.monitor", "--evidence.enabled"):
        assert f"{option} " in text


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["report", "--help"], ["serve", "--help"]])
def test_list_of_subcommands_and_reports_need_no_model(words: list[str]) -> None:
    """They come without torch, which alone takes a second or more."""
    text, modules = started(COMMAND_LINE, *words)
    assert text.startswith("usage: python -m introspection_lit")
    assert not modules & NOT_FOR_REPORTS


@LEAN
def test_help_of_scripts_comes_without_lightning() -> None:
    """All of them in one process."""
    text, modules = started(ALL_SCRIPTS, *(f"scripts/{name}.py" for name in (*SCRIPTS, "several_seeds", "controls")))
    assert text.count("usage: ") == len(SCRIPTS) + 2
    assert not modules & {*NOT_FOR_OPTIONS, "lightning"}


def test_list_of_subcommands_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """Every subcommand that there is, with a sentence about it; from within Python, too."""
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    told = dict(re.findall(r"^    ([a-z]+) {2,}(\S.*\.)$", text, re.MULTILINE))
    assert set(told) == {*IntrospectionCLI.subcommands(), "show", "report", "serve", "push", "gguf"}
    assert f"{{{','.join(told)}}}" in text


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_configuration_of_several_subcommands(subcommand: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file before the subcommand: each takes its own section, and the options of the other are known as well."""
    sections = {"fit": {"data": {"train_vectors": 7}}, "test": {"data": {"train_vectors": 9}}}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(sections))
    with pytest.raises(SystemExit) as stop:
        main(["-c", str(tmp_path / "both.yaml"), subcommand, "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["train_vectors"] == sections[subcommand]["data"]["train_vectors"]


def test_unknown_subcommand_is_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """As argparse says it."""
    with pytest.raises(SystemExit) as stop:
        main(["train"])
    assert stop.value.code == 2
    assert "'fit', 'validate', 'test', 'predict'" in capsys.readouterr().err
