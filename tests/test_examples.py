"""The examples and the guide to Python run as they are, from a folder with the adapter that they name."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from peers import needs_peers, run_with_peers

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "detector.ipynb"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the run that tests/contract holds."""
    shutil.copytree(ROOT / "tests" / "contract" / "run", tmp_path / "lightning_logs" / "default" / "version_0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_notebook_runs_and_holds_no_outputs(folder: Path) -> None:
    """Its code cells in their order, in one namespace; a training among them."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK}, cell {number}", "exec"), names)
    assert names["steered"].log_odds > names["clean"].log_odds


def test_script_asks_a_given_adapter(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two conversations at four strengths."""
    monkeypatch.setattr("sys.argv", ["ask_a_detector.py", "lightning_logs/default/version_0/adapter"])
    runpy.run_path(str(ROOT / "examples" / "ask_a_detector.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Was your internal state tampered with just now?")
    assert len({line.partition("log-odds")[2][:9] for line in lines if line.startswith("strength")}) == 8


@needs_peers
@pytest.mark.slow
@pytest.mark.parametrize("library", ["nnsight", "transformer_lens"])
def test_other_libraries_steer(folder: Path, library: str) -> None:
    """The detector's answers are those of its own steering, and steering moves them."""
    adapter = "lightning_logs/default/version_0/adapter"
    lines = run_with_peers(str(ROOT / "examples" / f"steer_with_{library}.py"), adapter, folder=folder).splitlines()
    theirs, ours = zip(
        *(map(float, re.findall(r"[+-]\d+\.\d{4}", line)) for line in lines if "length" in line), strict=True
    )
    assert len(set(ours)) == 4
    assert theirs == pytest.approx(ours, abs=1e-3)
    assert float(lines[-1].removeprefix("largest difference of the log-odds: ")) < 1e-3


def test_guide_to_python_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks in their order."""
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == len(re.findall(r"^ *print", "".join(blocks), re.MULTILINE))
    assert names["steered"] != names["clean"]
    assert names["cache"].get_seq_length() == names["ids"].shape[1]
