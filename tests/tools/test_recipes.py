"""Recipes for weak doses: what is refused, the runs, and the numbers of their table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from project_paths import CONFIG, ROOT
from run_scripts import script
from seeds_in_process import in_process
from tiny_models import contexts_file

from introspection_lit.cli import main
from introspection_lit.tools import recipe_numbers
from introspection_lit.tools.fit_runs import Training
from introspection_lit.tools.pipeline import as_arguments

FOLDER = ROOT / "docs" / "results" / "recipes"


@pytest.mark.parametrize(
    ("text", "words", "part"),
    [
        ("base: {}", ["--only", "wide"], "'wide' is not in"),
        ("base: {}", ["--data.seed", "4"], "--data.seed: is decided by the script"),
        ("one: {data.seed: 3}", [], "--data.seed: is decided by the script"),
        ("one: 3", [], "expected options of fit by recipe"),
        ("{", [], "cannot be read"),
    ],
)
def test_what_cannot_work_is_refused(
    text: str, words: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is trained."""
    (tmp_path / "recipes.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        script("recipes").main(["--config", CONFIG, "--recipes", str(tmp_path / "recipes.yaml"), *words])
    assert stop.value.code == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("name", yaml.safe_load((FOLDER / "recipes.yaml").read_text()))
def test_each_recipe_is_accepted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By fit, on top of the configuration; and it changes what it names."""
    recipe = yaml.safe_load((FOLDER / "recipes.yaml").read_text())[name]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(FOLDER / "weak-doses.yaml"), *as_arguments(recipe), "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for option, value in recipe.items():
        found = printed
        for part in option.split("."):
            found = found[part]
        if option != "data.tasks":
            assert (found | value if isinstance(value, dict) else value) == found


@pytest.mark.slow
def test_recipes_are_run_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table holds what the runs' results say; a second call runs nothing."""
    config = yaml.safe_load(Path(CONFIG).read_text())
    config["data"] |= {
        "batch_size": 8, "eval_batch_size": 8, "validation_trials": 8, "trials_per_epoch": 16,
        "test_trials": {"heldout": 8, "doses": 24, "doses_concept": 24}, "test_doses": [0.04, 4.0],
        "contexts": contexts_file(tmp_path / "contexts.jsonl", chat=12, python=12, csv=4),
        "validation_kinds": ["csv"], "test_kinds": [],
    }  # fmt: skip
    config["model"]["base"] = {"name_or_path": "random:tiny"}
    config["trainer"]["max_epochs"] = 1
    config["evidence"] = {
        "sets": ["doses", "doses_concept"], "probe_trials": 0, "lens_trials": 0, "texts": 2, "facts": 4, "report": False,
    }  # fmt: skip
    file, recipes, folder = tmp_path / "doses.yaml", tmp_path / "recipes.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(config))
    recipes.write_text(
        "base: {evidence.reader_trials: 64}\nrank-2: {model.lora.r: 2}\nfast: {model.learning_rate: 1.0e-2}\n"
    )
    in_process(monkeypatch)
    command = ["--config", str(file), "--recipes", str(recipes), "--folder", str(folder), "--only", "rank-2"]
    script("recipes").main(command)
    assert "vectors at 0.04: AUROC" in capsys.readouterr().out
    rows = json.loads((folder / "recipes.json").read_text())["rows"]
    assert set(rows) == {"base", "rank-2"}
    assert json.loads((folder / "rank-2" / "seed-0" / "results.json").read_text())["lora"]["r"] == 2
    for name, row in rows.items():
        evidence = json.loads((folder / name / "seed-0" / "results.json").read_text())["evidence"]
        observers = {"auroc": "adapter"} | ({"reader": "cache reader"} if name == "base" else {})
        assert evidence["reader_trials"] == (64 if name == "base" else None)
        assert ("random_reader" in row) == (name == "base")
        for vectors in ("random", "concept"):
            for number, observer in observers.items():
                (point,) = (point for point in evidence["curves"][vectors][observer] if point["strength"] == 0.04)
                assert row[f"{vectors}_{number}"]["values"] == [point["auroc"]]
        assert {"heldout", "worst_cell", "perplexity"} <= set(row) <= set(recipe_numbers.NUMBERS)
    script("recipes").main(command)
    assert capsys.readouterr().out.count("there already") == 2


def test_a_number_that_was_not_tested_is_none(tmp_path: Path) -> None:
    """No dose sets, no unseen kinds."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(
        json.dumps({"sets": {"heldout": {"auroc": 0.75, "tpr": 0.5, "fpr": 0.5}}})
    )
    found = recipe_numbers.recipe_numbers(Training(tmp_path / "run", []))
    assert found.pop("heldout") == 0.75
    assert set(found.values()) == {None}
