"""Every number in the documents comes from a results file in the repository."""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
import signal
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from project_paths import ROOT
from rich.console import Console
from rich.table import Table

from introspection_lit.evaluation import rungs
from introspection_lit.evaluation.trial_table import CURVES
from introspection_lit.models.decoder_shape import decoder_shape
from introspection_lit.models.random_models import random_config
from introspection_lit.report.formatting import format_rate
from introspection_lit.steering.bands import named_band
from introspection_lit.tools import baseline, ladder, vector_report
from introspection_lit.tools.scaling import formulas

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
USED = ROOT / "docs" / "results" / "as-used"
RUNS = sorted((ROOT / "docs" / "results" / "quickstart").glob("seed-*.json"))


def rows_of(path: Path) -> list[str]:
    """The rows of docs/results.md for a results file."""
    results = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for name, row in results["sets"].items():
        rates = " | ".join(f"{row[key]:.3f}" for key in ("auroc", "accuracy", "tpr", "fpr"))
        low, high = row["fpr_interval"]
        rest = f"{low:.3f}-{high:.3f} | {row['mass']:.3f} | {row['n_clean_distinct']}"
        rows.append(f"| {results['seed']} | `{name}` | {rates} | {rest} |")
    return rows


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_table_of_the_seeds_agrees_with_the_results(path: Path) -> None:
    """Row by row; and the file says how to repeat it."""
    for row in rows_of(path):
        assert row in RESULTS
    results = json.loads(path.read_text(encoding="utf-8"))
    assert f"--data.seed {results['seed']}" in results["command"] or results["seed"] == 0
    assert results["commit"]
    assert "+changes" not in results["commit"]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_quickstart_reached_its_goals(path: Path) -> None:
    """What the quickstart promises: held-out and concept detection, and few false alarms on kinds never trained on."""
    results = json.loads(path.read_text(encoding="utf-8"))
    sets = results["sets"]
    assert sets["heldout"]["auroc"] >= 0.99
    assert sets["heldout"]["accuracy"] >= 0.95
    assert sets["concept"]["auroc"] >= 0.98
    assert sets["newkinds"]["fpr"] <= 0.03
    assert sets["newkinds"]["tpr"] >= 0.9  # at a threshold that must also suit long conversations
    assert results["n_clean_distinct_total"] >= 300
    assert all(row["mass"] >= 0.9 for row in sets.values())
    assert len({row["threshold"] for row in sets.values()}) == 1


def test_there_are_three_seeds_and_no_other_rows() -> None:
    """The page shows all runs that there are, and nothing else; the commit is theirs."""
    assert {json.loads(path.read_text())["seed"] for path in RUNS} == {0, 1, 2}
    assert all(f"commit `{json.loads(path.read_text())['commit']}`" in RESULTS for path in RUNS)
    shown = re.findall(r"^\| \d \| `.*$", RESULTS, re.MULTILINE)
    assert sorted(shown) == sorted(row for path in RUNS for row in rows_of(path))


def test_output_shown_first_is_that_of_seed_0() -> None:
    """The console table in the README has the numbers of the first results file."""
    for name, row in json.loads(RUNS[0].read_text(encoding="utf-8"))["sets"].items():
        rates = " │ ".join(f"{row[key]:.3f}" for key in ("auroc", "accuracy", "tpr", "fpr"))
        if not name.startswith("doses"):
            assert f"│ {name:<13} │ {rates} │" in README


LONG = sorted((ROOT / "docs" / "results" / "long").glob("*.json"))


def length_table(path: Path) -> list[str]:
    """The rows of docs/long.md for a results file."""
    found = json.loads(path.read_text(encoding="utf-8"))["evidence"]["long"]
    rows = []
    for row in found["by_length"]:
        tokens = f"{row['tokens'][0]} to {row['tokens'][1]}" + (" *" if row["tokens"][1] > found["trained"] else "")
        shares = [None if row[key] is None else f"{row[key]:.2f}" for key in ("fpr", "tpr", "part_tpr")]
        low, high = row["fpr_interval"]
        counts = f"{row['n_clean']} | {shares[0]} ({low:.2f} to {high:.2f}) | {shares[1]} | {shares[2] or ''}"
        rows.append(f"| `{row['set']}` | {tokens} | {counts} |")
    return rows


@pytest.mark.parametrize("path", LONG, ids=lambda path: path.stem)
def test_tables_of_long_conversations_agree_with_the_results(path: Path) -> None:
    """Row by row, one after another; and the page says at which commit."""
    page, results = (ROOT / "docs" / "long.md").read_text(encoding="utf-8"), json.loads(path.read_text(encoding="utf-8"))
    assert "\n".join(length_table(path)) in page
    assert results["commit"] in page
    assert "+changes" not in results["commit"]


def test_sums_over_the_seeds_are_those_that_the_page_of_long_conversations_says() -> None:
    """Clean and called steered, steered and found, over both sets of all three seeds."""
    rows = [row for path in RUNS for row in json.loads(path.read_text(encoding="utf-8"))["evidence"]["long"]["by_length"]]
    page = " ".join((ROOT / "docs" / "long.md").read_text(encoding="utf-8").split())

    def total(count: str, share: str | None, *ends: int) -> int:
        chosen = [row for row in rows if row["tokens"][1] in ends]
        return round(sum(row[count] * (1 if share is None else row[share] or 0) for row in chosen))

    clean, alarms = (total(name, None, 288) for name in ("n_clean", "alarms"))
    assert alarms == 0
    assert f"none of {clean} was called steered up to 288" in page
    assert f"{total('alarms', None, 1152)} of {total('n_clean', None, 1152)} up to 1,152" in page
    found, steered = (total("n_steered", share, 288, 1152) for share in ("tpr", None))
    assert found == steered
    assert f"all {found} were found" in page
    assert f"{total('n_steered', 'tpr', 72)} of {total('n_steered', None, 72)} of at most 72" in page
    parts = [total("n_part", share, 72, 288, 1152) for share in (None, "part_tpr")]
    assert "Of {} steered in some exchanges alone {} were found".format(*parts) in page


def test_sums_of_the_longer_experiment_are_those_that_page_and_header_say() -> None:
    """Both sets together: up to four times the longest trained length, and up to twice that."""
    results = json.loads((ROOT / "docs" / "results" / "long" / "longer.json").read_text(encoding="utf-8"))
    rows = results["evidence"]["long"]["by_length"]
    page, header = (
        " ".join((ROOT / name).read_text(encoding="utf-8").replace("#", " ").split())
        for name in ("docs/long.md", "configs/long.yaml")
    )

    def total(count: str, share: str | None = None, most: int = 4096, least: int = 0) -> int:
        chosen = [row for row in rows if least < row["tokens"][1] <= most]
        return round(sum(row[count] * (1 if share is None else row[share] or 0) for row in chosen))

    alarms, clean, late, more = total("alarms", most=2048), total("n_clean", most=2048), total("alarms"), total("n_clean")
    assert f"{alarms} of {clean} clean conversations was called steered" in page
    assert f"up to 4,096 tokens {late - alarms} of {more - clean} more" in page
    assert (
        f"{alarms} of {clean} was called steered up to 2,048 tokens and {late - alarms} of {more - clean} up to" in header
    )
    assert total("n_steered", "tpr") == total("n_steered")
    parts = f"{total('n_part', 'part_tpr')} of {total('n_part')}"
    assert f"All {total('n_steered')} steered as a whole were found, and {parts} steered in some exchanges" in page
    assert f"all {total('n_steered')} as a whole and {parts} in some exchanges were found" in header
    lengths = {row["tokens"][1] for row in rows if row["tokens"][1] <= 2048}
    in_class = {end: [total(name, least=end - 1, most=end) for name in ("alarms", "n_clean")] for end in lengths}
    worst = max(in_class.values(), key=lambda pair: pair[0] / pair[1])
    assert "at most {} of {} in a class".format(*worst) in page
    assert f"newkinds TPR {results['sets']['newkinds']['tpr']:.3f}".replace("0.", ".") in header


def test_exported_adapter_does_what_the_page_says() -> None:
    """The three rows of docs/as-used.md, from the two results files."""
    page = " ".join((ROOT / "docs" / "as-used.md").read_text(encoding="utf-8").split())
    runs = [json.loads((USED / f"{name}.json").read_text(encoding="utf-8")) for name in ("quickstart", "always-on")]
    assert all(f"commit `{run['commit']}`" in page for run in runs)
    activated, always = (run["evidence"]["as_exported"] for run in runs)
    titles = {
        "the protocol: two passes": activated["protocol"],
        "the exported adapter, one pass of plain PEFT": activated["exported"],
        "the same weights, always on, one pass of plain PEFT": always["exported"],
    }
    for title, row in titles.items():
        low, high = row["fpr_interval"]
        cells = f"{row['tpr']:.3f} | {row['fpr']:.3f} | {low:.3f}-{high:.3f} | {row['auroc']:.3f}"
        assert f"| {title} | {cells} |" in page
    assert f"at most {activated['largest_difference']:.1e} nats" in page
    several = json.loads((ROOT / "docs" / "results" / "tasks" / "seed-2.json").read_text(encoding="utf-8"))["evidence"][
        "as_exported"
    ]
    rates = [f"TPR {several[road]['tpr']:.3f} and FPR {several[road]['fpr']:.3f}" for road in ("protocol", "exported")]
    assert f"of {several['n']} trials {rates[0]} on both roads" in page
    assert rates[0] == rates[1]
    assert f"by up to {several['largest_difference']:.3f} nats" in page
    assert activated["decided_differently"] == several["decided_differently"] == 0


def anchors(document: Path) -> set[str]:
    """What headings can be linked to as on GitHub: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
FOLDERS = ("introspection_lit", "scripts", "tests", "examples")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_python_files_that_documents_name_exist(document: Path) -> None:
    """A name may be the end of a path: a file that moves is renamed in the documents too."""
    names = re.findall(r"(?<![\w*/])[\w/]+\.py\b", document.read_text(encoding="utf-8"))
    assert [name for name in names if not any(path.as_posix().endswith(f"/{name}") for path in SOURCES)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_imports_of_examples_work(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every block of Python that a document shows; some are for the folder ``scripts``."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    for block in re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), document.name, "exec"), {})


def test_tests_that_the_check_list_names_exist() -> None:
    """As ``file::test``, or a name alone after one of the same file."""
    tests = {path.as_posix(): path.read_text(encoding="utf-8") for path in SOURCES if path.name.startswith("test_")}
    file = None
    for line in (ROOT / "docs" / "validity.md").read_text(encoding="utf-8").splitlines():
        for named, test in re.findall(r"`(?:([\w/]+\.py)::)?(test_\w+)`", line):
            file = next(text for path, text in tests.items() if path.endswith(f"/{named}")) if named else file
            assert file, test
            assert f"def {test}(" in file, test


def test_keys_of_a_checkpoint_are_those_of_the_table() -> None:
    """Compared with the one that tests/contract keeps."""
    kept = torch.load(next((ROOT / "tests" / "contract").rglob("*.ckpt")), weights_only=True)
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.split("## What a checkpoint holds")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert {key for row in rows for key in re.findall(r"`(.*?)`", row)} == kept.keys()


PIPELINE = ROOT / "docs" / "results" / "pipeline"
GUIDE = ROOT / "docs" / "pipeline.md"


def printed(*tables: Table) -> str:
    """Tables as a terminal of 80 columns shows them."""
    out = io.StringIO()
    console = Console(file=out, width=80)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def test_guide_to_the_pipeline_shows_its_results() -> None:
    """Every table in it is what the script prints for the results file; one run, one commit, no uncommitted changes."""
    guide = GUIDE.read_text(encoding="utf-8")
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in PIPELINE.glob("*.json")}
    assert set(results) == {"vectors", "baseline", "baseline-info", "ladder"}
    assert printed(*vector_report.bank_tables(results["vectors"])) in guide
    for name in ("baseline", "baseline-info"):
        directions, summary = results[name]["directions"], results[name]["summary"]
        assert printed(baseline.direction_table(directions, summary), baseline.control_table(summary)) in guide
    ways = results["ladder"]["ways"]
    assert printed(ladder.rung_table(ways), ladder.answer_table(ways)) in guide
    assert all(line in guide for line in results["ladder"]["verdicts"])
    assert results["ladder"]["verdicts"] == [rungs.ladder_verdict(name, rows) for name, rows in ways.items()]
    assert {result["commit"] for result in results.values()} == {results["ladder"]["commit"]}
    assert "+changes" not in results["ladder"]["commit"]
    assert all(result["command"] in guide for result in results.values())


def test_guide_says_how_much_is_a_push_toward_yes() -> None:
    """The correlations between detection and the control questions, over directions, are those of the results."""
    rows = json.loads((PIPELINE / "baseline.json").read_text(encoding="utf-8"))["directions"]
    shifts: dict[str, dict[tuple, float]] = defaultdict(dict)
    for row in rows:
        shifts[row["question"]][row["vectors"], row["vector"]] = row["log_odds_shift"]
    detection = shifts["detection"]
    guide = " ".join(GUIDE.read_text(encoding="utf-8").split())
    for question in ("clear yes", "clear no"):
        r = np.corrcoef([detection[key] for key in detection], [shifts[question][key] for key in detection])[0, 1]
        assert f"for the {question} at {r:.2f}" in guide
    assert f"over the {len(detection)} directions" in guide


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_links_and_anchors_resolve(document: Path) -> None:
    """Documents, headings and pictures, from where the document is."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^):]*))?\)", document.read_text(encoding="utf-8")):
        file = document.parent / target if target else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_commands_of_the_pipeline_are_those_of_the_issue() -> None:
    """In the README as people will copy them; options that do not exist would fail here."""
    commands = re.findall(r"^python ((?:generate|baseline|finetune|evaluate)\w*\.py) (.*)$", README, re.MULTILINE)
    assert len(commands) == 6
    for name, options in commands:
        text = (ROOT / "scripts" / name).read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z-]+", options):
            assert f'"{option}"' in text


def test_speeds_of_the_gpu_on_the_scaling_page_are_those_of_its_file() -> None:
    """Trials a second, and the operations that ran, as rates and as shares of the ceiling."""
    page = " ".join((ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").split())
    found = json.loads((ROOT / "docs" / "results" / "gpu-day" / "speed-32b.json").read_text(encoding="utf-8"))
    measured = {(row["path"], row["batch"]): row for row in found["result"]["rows"]}
    shares = {}
    for path in ("batched", "batched, reuse"):
        for batch in (4, 128):
            row = measured[path, batch]
            rates = f"{row['trials_per_second']:.2f} | {row['lowest']:.2f}-{row['highest']:.2f}"
            assert f"| {path} | {batch} | {rates} | {row['tflops_run']:.0f} |" in page
            shares[path, batch] = f"{row['tflops_run'] / found['result']['ceiling_tflops']:.0%}".replace("%", " %")
    small, large, small_reuse, large_reuse = shares.values()
    said = f"{small} of its ceiling in batches of 4 and {large} in batches of 128 with nothing reused, {small_reuse} and"
    assert f"{said} {large_reuse} with everything" in page
    assert f"showed {found['result']['ceiling_tflops']:.0f}e12" in page
    assert f"`{found['commit']}`, `{found['command']}`" in page
    speeds = " ".join((ROOT / "docs" / "performance.md").read_text(encoding="utf-8").split())
    assert f"that really ran, {large} with nothing reused and {large_reuse} with everything" in speeds


def test_control_adapters_are_those_of_the_results() -> None:
    """They could not learn anything, and did not."""
    found = json.loads((ROOT / "docs" / "results" / "quickstart" / "controls.json").read_text(encoding="utf-8"))
    areas = {row["name"]: row["auroc"] for row in found["rows"]}
    said = f"on random labels AUROC {areas['random labels']:.3f}, without steering {areas['no steering']:.3f}"
    assert said in " ".join(RESULTS.split())
    assert f"commit `{found['commit']}`" in " ".join(RESULTS.split())
    assert all(row["held"] for row in found["rows"])


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "results" / "performance").glob("*.json")), ids=lambda path: path.stem
)
def test_speeds_agree_with_the_benchmarks_own_output(path: Path) -> None:
    """Every row of every benchmark file is in the page, with the commit and the command that made it."""
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    results = json.loads(path.read_text(encoding="utf-8"))
    assert "+changes" not in results["commit"]
    assert results["commit"] in page
    assert results["command"].split(" --json")[0].replace("benchmark.py", "scripts/benchmark.py") in page
    for row in results["rows"]:
        rates = f"{row['trials_per_second']:.2f} | {row['lowest']:.2f}-{row['highest']:.2f} | {row['ratio']:.2f}"
        assert f"| {row['path']} | {row['batch']} | {rates} | {row['of_ceiling']:.0%} |" in page
    assert f"{results['ratio']:.2f}" in page


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "results" / "performance" / "against").glob("*.json")), ids=lambda path: path.stem
)
def test_ratios_of_two_builds_agree_with_the_benchmarks_own_output(path: Path) -> None:
    """Every row, with both commits and the options."""
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    results = json.loads(path.read_text(encoding="utf-8"))
    assert all(f"`{results[build]['commit']}`" in page for build in ("this", "other"))
    assert f"{shlex.join(results['options'])} --rounds {results['pairs']} --against" in page
    for row in results["rows"]:
        rates = f"{row['this']:.2f} | {row['other']:.2f} | {row['ratio']:.3f} | {row['standard_error']:.3f}"
        assert f"| {row['path']} | {row['batch']} | {rates} |" in page


def test_tables_of_the_recipes_agree_with_the_results() -> None:
    """A row for each recipe that was run, the others by name, what the cache reader found, more seeds, and the commit."""
    folder = ROOT / "docs" / "results" / "recipes"
    results, seeds = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("recipes", "batches-of-4")
    )
    page = (ROOT / "docs" / "weak-doses.md").read_text(encoding="utf-8")
    columns = [f"{vectors}_{number}" for number in ("auroc", "strength") for vectors in CURVES]
    columns += ["heldout", "worst_kind", "swapped", "perplexity"]
    rows = results["rows"]
    for name, row in rows.items():
        assert f"| {name} | {' | '.join(format_rate(row[column]['values'][0]) for column in columns)} |" in page
    recipes = yaml.safe_load((folder / "recipes.yaml").read_text(encoding="utf-8"))
    assert f"Not run: {', '.join(name for name in recipes if name not in rows)}." in page
    found = [format_rate(rows["base"][f"{vectors}_reader"]["values"][0])[1:] for vectors in CURVES]
    assert re.search(rf"reaches {found[0]} \(.*\) and {found[1]} \(", page)
    columns = [f"{vectors}_{number}" for vectors in CURVES for number in ("auroc", "reader")]
    columns += [f"{vectors}_strength" for vectors in CURVES]
    first = [(rows["base"] if "reader" in column else rows["smallest-batches"])[column]["values"][0] for column in columns]
    others = zip(*(seeds["rows"]["base"][column]["values"] for column in columns), strict=True)
    for seed, values in enumerate((first, *others)):
        assert f"| {seed} | {' | '.join(map(format_rate, values))} |" in page
    for each in (results, seeds):
        assert f"`{each['commit']}`" in page
        assert "+changes" not in each["commit"]
    assert seeds["command"] in page


def test_fits_of_the_scaling_page_are_those_of_the_benchmark() -> None:
    """Rate, overhead and worst error of each path, and what the fit says for each batch."""
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "docs" / "results" / "performance" / "float32.json").read_text(encoding="utf-8"))
    shape = decoder_shape(random_config("smollm2-135m"))
    bands = [named_band(name, shape.layers) for name in ("early", "middle", "late")]
    for path, share in (("batched", 1.0), ("batched, reuse", formulas.prefill_share(bands, shape.layers, True, 1.0))):
        rows = [row for row in results["rows"] if row["path"] == path]
        operations = formulas.trial_operations(shape, context=72, question=36, prefill_share=share).total
        found = formulas.fit_rows(rows, operations)
        line = f"{operations / 1e9:.1f} | {found.rate / 1e9:.0f} | {found.overhead:.2f} s | {found.worst:.0%}".replace(
            "%", " %"
        )
        assert f"| {path} | {line} |" in page
        for row in rows:
            fitted = row["batch"] / (found.overhead + row["batch"] * operations / found.rate)
            measured = f"{row['trials_per_second']:.2f} | {row['lowest']:.2f}-{row['highest']:.2f}"
            assert f"| {path} | {row['batch']} | {measured} | {fitted:.2f} |" in page


def test_tables_of_the_reliability_page_are_those_of_the_runs() -> None:
    """Of the ended runs, the generated cases and the soak; nothing was lost."""
    page, folder = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"), ROOT / "docs" / "results" / "reliability"
    paths = sorted(folder.glob("chaos-*.json"))
    assert [path.stem for path in paths] == ["chaos-1", "chaos-2"]
    for path in paths:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert f"`{found['commit']}`" in page
        for number in (9, 15, 2):
            mine = [outcome for outcome in found["outcomes"] if outcome["fault"]["signal"] == number]
            assert mine
            assert all(outcome["identical"] for outcome in mine)
            ended = sum(any(outcome["statuses"]) for outcome in mine)
            name = signal.Signals(number).name
            assert f"| {found['processes']} | {name} | {len(mine)} | {ended} | {len(mine)} | {len(mine)} |" in page
    soak = json.loads((folder / "soak.json").read_text(encoding="utf-8"))
    assert f"`{soak['commit']}`" in page
    for check in soak["checks"]:
        assert check["passed"]
        assert f"| {check['name']} | {check['found']} | {check['limit']} |" in page
    generated = json.loads((folder / "bad-input.json").read_text(encoding="utf-8"))
    assert f"`{generated['commit']}`" in page
    files = {name.split("::")[0].split("/")[-1] for name in generated["properties"]}
    for file in files:
        rows = [row for name, row in generated["properties"].items() if f"{file}::" in name]
        tried, right, refused, lost = (sum(row[key] for row in rows) for key in ("tried", "right", "refused", "failed"))
        assert lost == 0
        assert f"| {len(rows)} | {tried} | {right} | {refused} | 0 |" in page
