"""Parts of publishing that need no run: paths in texts, licences, the limits and the model index of a results file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from results_example import example

from introspection_lit.models.base_model import BaseModel
from introspection_lit.publishing.card import eval_results, limits
from introspection_lit.publishing.licence import licence_of
from introspection_lit.publishing.privacy import cleaned, without_paths
from introspection_lit.training.model_card import FOLDER, OWN_TEMPLATE, on_hub

DESCRIPTION = {"strengths": [0.3, 2.0], "strength_unit": "relative", "bands": [[0, 9], [10, 18]], "dtype": "float32"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fit --config /home/me/a/b.yaml --x=/data/me/c", "fit --config b.yaml --x=c"),
        ("--data.contexts '/home/me/my own/mine.jsonl' --a \"/b/c d/e f\"", "--data.contexts 'mine.jsonl' --a \"e f\""),
        ("~/models/tiny and C:\\Users\\me\\x.json", "tiny and x.json"),
        ("/home/me/run/", "run"),
        ("https://huggingface.co/a/b or sqlite:///mlflow.db", "https://huggingface.co/a/b or sqlite:///mlflow.db"),
        ("lightning_logs/a/b ../c/d train / heldout 1/2 <b>x</b> /no_think", None),
    ],
)
def test_absolute_paths_are_cut(text: str, shown: str | None) -> None:
    """To their last part; addresses, relative paths, fractions, tags and a prompt's commands stay."""
    assert without_paths(text) == (text if shown is None else shown)


def test_the_wording_is_published_as_it_is() -> None:
    """A question may be about a path."""
    results = {"questions": {"train": ["Is /etc/a/b there?"]}, "kinds": [{"what": "from /home/me/a/x"}], "n": 3}
    assert cleaned(results) == results | {"kinds": [{"what": "from x"}]}


def test_licences(tmp_path: Path, tiny: Path) -> None:
    """Of the embedded GGUF file, of a folder's README, of a model that does not say it."""
    assert licence_of(BaseModel()) == {"license": "apache-2.0"}
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: theirs\nlanguage: en\n---\n\nA model.\n")
    assert licence_of(BaseModel(str(tmp_path))) == {"license": "other", "license_name": "theirs"}
    assert licence_of(BaseModel(str(tiny))) == licence_of(BaseModel("random:tiny")) == {}


def test_the_model_index_has_every_rate() -> None:
    """Through huggingface_hub's own conversion and back."""
    results = example()
    made = list(eval_results(results, "me/x"))
    name, back = model_index_to_eval_results(eval_results_to_model_index("x", made))
    assert name == "x"
    rates = {"roc_auc": "auroc", "recall": "tpr", "false_positive_rate": "fpr", "accuracy": "accuracy"}
    found = {(one.dataset_type.rpartition("/")[2], rates[one.metric_type]): one.metric_value for one in back}
    assert found == {
        (name, rate): pytest.approx(row[rate], abs=1e-6) for name, row in results["sets"].items() for rate in rates.values()
    }


def test_limits_begin_with_the_controls() -> None:
    """What they have shown, or that they were not tested."""
    results: dict[str, Any] = example()
    run: Any = SimpleNamespace(tested=SimpleNamespace(results=results), description=DESCRIPTION)
    assert limits(run)[0].startswith("Controls: none were tested")
    results["sets"] |= {"swapped": {"auroc": 0.013}, "factual": {"auroc": 0.871}}
    assert "exchanged has an AUROC of 0.013" in limits(run)[0]
    assert "(factual) to an AUROC of 0.871" in limits(run)[0]
    assert not any(line.startswith("Controls: none") for line in limits(run))


def test_limits_say_whether_concepts_are_named() -> None:
    """That only an adapter that was trained on concepts says what was added."""
    for concepts, said in (
        (["tea", "soup"], "and, asked for it, which of some concepts, and is"),
        ([], ", not what, and is"),
    ):
        described = {**DESCRIPTION, "trained_on": {"concepts": concepts}}
        run: Any = SimpleNamespace(tested=SimpleNamespace(results=example()), description=described)
        assert said in limits(run)[-1]


def test_limits_name_a_curriculum() -> None:
    """Training with strong doses first is another training; without one nothing is said of it."""
    options = {"data.curriculum": {"strengths": [0.3, 2.0], "trials": 1600}}
    said = [
        " ".join(limits(cast("Any", SimpleNamespace(tested=SimpleNamespace(results=example()), description=description))))
        for description in (DESCRIPTION, {**DESCRIPTION, "options": options})
    ]
    assert "moving there" not in said[0]
    assert "(relative), moving there from 0.3 to 2 in the first 1600 trials, layers" in said[1]


def test_the_code_of_the_card_names_the_repository() -> None:
    """The adapter's folder and its chat template; and what the code of the template needs is imported."""
    card = f"from peft import PeftModel\nmodel = PeftModel.from_pretrained(base, {FOLDER})\nx = {OWN_TEMPLATE}\n"
    code = on_hub(card, "me/x")
    compile(code, "card", "exec")
    assert "this/folder" not in code
    assert "PeftModel.from_pretrained(base, 'me/x')" in code
    assert "hf_hub_download('me/x', \"chat_template.jinja\")" in code
    assert "from huggingface_hub import hf_hub_download\n" in code
