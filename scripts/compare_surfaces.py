"""Ask about the first twenty trials of a tested run wherever people ask, and print the log-odds beside those of its test.

    python scripts/compare_surfaces.py lightning_logs/quickstart/version_0
    python scripts/compare_surfaces.py RUN --json surfaces.json

RUN is the folder of a run that was tested, with its adapter (docs/where-people-work.md). The notebook is run cell by cell
with that adapter; the page answers by the function that its button calls; lm-evaluation-harness and Inspect AI are run as
programs. What is not installed is left out, and so are trials that the page's boxes and sliders cannot hold.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from introspection_lit.tools import pipeline
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.errors import RunError
from introspection_lit.utils.files import write_file
from introspection_lit.utils.launchers import without_launcher

if TYPE_CHECKING:
    from introspection_lit.harnesses.tested_run import Item, TestedRun

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "detector.ipynb"
TRIALS = 20  # as the notebook asks
MISSING = "not installed"
# Log-odds by the name of a trial; or why there are none.
Asked = dict[str, float] | str


def ask_notebook(tested: TestedRun) -> Asked:
    """Run ``examples/detector.ipynb`` with the run's adapter, as somebody who names it in the first cell."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    code, found = re.subn(
        r"^ADAPTER = .*", lambda _: f"ADAPTER = {str(tested.folder / 'adapter')!r}", code, flags=re.MULTILINE
    )
    assert found == 1
    names: dict[str, Any] = {}
    sys.path.insert(0, str(NOTEBOOK.parent))
    try:
        with redirect_stdout(StringIO()):
            exec(compile(code, NOTEBOOK.name, "exec"), names)
    finally:
        sys.path.remove(str(NOTEBOOK.parent))
    return {trial["name"]: answer.log_odds for trial, answer in zip(names["trials"], names["again"], strict=True)}


def ask_page(tested: TestedRun, files_only: bool = False) -> Asked:
    """Ask the function that the page's button calls, with what a visitor would type, choose and upload.

    Args:
        tested: The run.
        files_only: Upload every direction, those too that the page offers.

    Returns:
        Log-odds as the page has them before it rounds them to two digits; without the trials that it cannot hold.
    """
    if find_spec("gradio") is None:
        return MISSING
    from introspection_lit.detector import Detector
    from introspection_lit.page.examiner import Examiner, Findings
    from introspection_lit.page.functions import Page
    from introspection_lit.page.layout import build
    from introspection_lit.steering.specification import Steering

    class Noting(Examiner):
        """Keeps the last answers."""

        last: Findings | None = None

        def compare(self, conversation: tuple[str, str], steering: Steering) -> Findings:
            self.last = super().compare(conversation, steering)
            return self.last

    examiner, found = Noting(Detector.from_pretrained(tested.folder / "adapter")), dict[str, float]()
    page = Page(examiner)
    ask = next(event.fn for event in build(page).fns.values() if event.fn == page.ask)
    # A clean trial, too, is shown beside a steered one: this.
    anything = {"vectors": "heldout", "vector": 0, "band": (0, page.reachable - 1), "strength": 1.0}
    for item in filter(_page_holds, tested.items[:TRIALS]):
        examiner.last, texts = None, [message["content"] for message in item["messages"]]
        shown, _ = next(ask(*texts, *_choose(page, item if item["steered"] else anything, files_only)))
        odds = examiner.last and (examiner.last.steered if item["steered"] else examiner.last.clean).log_odds
        if odds is None or f"{odds:.2f}" not in shown:
            raise RunError([f"the page was asked about {item['name']}, and shows no answer, but: {shown[:500]}"])
        found[item["name"]] = odds
    return found


def _page_holds(item: Item) -> bool:
    """Whether its boxes and sliders can hold a trial: one exchange, no system prompt of its own, not too long or strong."""
    from introspection_lit.page.examiner import MOST_CHARACTERS
    from introspection_lit.page.layout import LEAST, MOST

    roles, length = zip(*((turn["role"], len(turn["content"])) for turn in item["messages"]), strict=True)
    added = not item["steered"] or (item["unit"] == "relative" and LEAST <= item["strength"] <= MOST)
    return roles == ("user", "assistant") and sum(length) <= MOST_CHARACTERS and added


def _choose(page: Any, item: Item, files_only: bool) -> tuple[Any, ...]:
    """What is chosen below the conversation: kind of direction, its name, the file, the band and the strength."""
    from introspection_lit.page.directions import OWN, SPLITS
    from introspection_lit.steering.vector_files import write_direction

    split, numbers = item["vectors"], (*item["band"], item["strength"])
    kinds = {vectors: kind for kind, vectors in SPLITS.items()}
    if split in kinds and not files_only:
        return kinds[split], page.bank.names[split][item["vector"]], None, *numbers
    rows = page.bank.directions[split][item["vector"]].expand(page.n_layers, page.hidden)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "direction.safetensors"
        write_direction(file, rows, str(page.detector.config.model_type))
        own = page.take_file(str(file)).own
    return OWN, page.names(OWN, own)[0], own, *numbers


def ask_lm_eval(tested: TestedRun) -> Asked:
    """Run lm-evaluation-harness: one pass of plain PEFT over each conversation with its question."""
    if find_spec("lm_eval") is None:
        return MISSING
    import torch

    from introspection_lit.models.random_models import is_random
    from introspection_lit.models.sources import resolve
    from introspection_lit.tasks.adapter_record import base_of

    base = base_of(tested.adapter, None)
    if is_random(base.name) or base.quantization != "none":
        return "it loads no random weights" if is_random(base.name) else f"it is not asked in {base.quantization}"
    place = resolve(base)
    named = f"pretrained={place['pretrained_model_name_or_path']},dtype={base.dtype},peft={tested.folder / 'adapter'}"
    named += f",revision={place['revision']}" if "revision" in place else ""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        asked = ["run", "--model", "introspection", "--model_args", named, "--tasks", "introspection", "--device", device]
        # -P: a folder with an evaluate.py, such as this one, would hide the package that the harness imports.
        program = [sys.executable, "-P", "-m", "introspection_lit.harnesses.lm_eval"]
        _run([*program, *asked, "--limit", str(TRIALS), "--log_samples", "--output_path", folder])
        (file,) = Path(folder).rglob("samples_introspection_*.jsonl")
        samples = list(map(json.loads, file.read_text(encoding="utf-8").splitlines()))
    found = {}
    for sample in samples:
        (steered, _), (not_steered, _) = sample["filtered_resps"]
        found[sample["doc"]["name"]] = float(steered) - float(not_steered)
    return found


def ask_inspect(tested: TestedRun) -> Asked:
    """Run Inspect AI with the provider ``introspection``."""
    if find_spec("inspect_ai") is None:
        return MISSING
    with tempfile.TemporaryDirectory() as folder:
        model = ["--model", f"introspection/{tested.folder / 'adapter'}", "-T", f"run={tested.folder}"]
        log = ["--display", "plain", "--log-dir", folder, "--log-format", "json"]
        program = str(Path(sys.executable).with_name("inspect"))
        # With PYTHONPATH Inspect finds the metadata beside the sources, and takes the package for not installed.
        _run([program, "eval", "introspection_lit/introspection", *model, *log, "--limit", str(TRIALS)], {"PYTHONPATH"})
        (file,) = Path(folder).rglob("*.json")
        samples = json.loads(file.read_text(encoding="utf-8"))["samples"]
    return {sample["id"]: sample["scores"]["detection"]["metadata"]["log_odds"] for sample in samples}


def _run(command: Sequence[str], unset: Collection[str] = ()) -> None:
    """Run a program, without some variables of the environment, and without those of launchers.

    Raises:
        RunError: It failed; the end of what it has said.
    """
    environment = {name: value for name, value in without_launcher().items() if name not in unset}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ended.returncode:
        raise RunError([f"{' '.join(command)} ended with {ended.returncode}: {(ended.stdout + ended.stderr)[-3000:]}"])


SURFACES = {"notebook": ask_notebook, "page": ask_page, "lm-eval": ask_lm_eval, "Inspect": ask_inspect}


def compare(run: Path) -> dict[str, Any]:
    """Ask everywhere.

    Args:
        run: The run's folder.

    Returns:
        ``trials``: name, label, and log-odds of ``test`` and by surface (None: not asked there); by surface, too,
        ``largest_difference`` from those of ``test``, in nats, and ``not_asked``: what was not, and why.

    Raises:
        ConfigurationError: The run has no trials that can be asked again.
        RunError: A program failed.
    """
    from introspection_lit.harnesses.tested_run import read_tested_run
    from introspection_lit.training.quiet import quieten

    quieten()
    tested = read_tested_run(run.resolve())
    asked = {name: ask(tested) for name, ask in SURFACES.items()}
    found = {name: answers for name, answers in asked.items() if isinstance(answers, dict)}
    reasons = {name: answers for name, answers in asked.items() if isinstance(answers, str)}
    trials, differences = [], {}
    for item in tested.items[:TRIALS]:
        answers = {name: each.get(item["name"]) for name, each in found.items()}
        trials.append({"trial": item["name"], "steered": item["steered"], "test": item["log_odds"], **answers})
    for name in found:
        both = [(trial[name], trial["test"]) for trial in trials if trial[name] is not None]
        differences[name] = max((abs(answer - expected) for answer, expected in both), default=None)
        if len(both) < len(trials):
            reasons[name] = f"cannot hold {len(trials) - len(both)} of these {len(trials)} trials"
    return {"trials": trials, "largest_difference": differences, "not_asked": reasons}


def table_of(compared: dict[str, Any]) -> Table:
    """The log-odds side by side, a row for each trial, and the largest differences from ``test`` below."""
    table, differences = Table(title="Log-odds of the same trials", padding=(0, 1)), compared["largest_difference"]
    for column in ("trial", "", "test", *differences):
        table.add_column(column, justify="right" if column not in ("trial", "") else "left", no_wrap=True)
    for trial in compared["trials"]:
        odds = ["" if trial[name] is None else f"{trial[name]:+.3f}" for name in ("test", *differences)]
        table.add_row(trial["trial"], "steered" if trial["steered"] else "clean", *odds)
    table.add_section()
    table.add_row("difference", "at most", "", *("" if most is None else f"{most:.1e}" for most in differences.values()))
    return table


def main(args: Sequence[str] | None = None) -> None:
    """Compare, print the table, and write the file.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: 2 for a run that cannot be asked about, 1 for an error on the way.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that was tested, with its adapter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there, too")
    options = parser.parse_args(args)
    pipeline.guarded(lambda: _main(options))


def _main(options: argparse.Namespace) -> None:
    from introspection_lit.utils.provenance import provenance

    output = pipeline.writable(options.json) if options.json else None
    compared = compare(options.run)
    console = PlainConsole()
    console.print(table_of(compared))
    for name, reason in compared["not_asked"].items():
        console.print(f"{name}: {reason}")
    if output is not None:
        write_file(output, json.dumps({**provenance(), **compared}, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
