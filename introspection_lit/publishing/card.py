"""The model card of a published adapter: the exported one, completed with what its test has found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from introspection_lit.evaluation.rungs import CONTROLS, RUNGS, control_verdict
from introspection_lit.publishing.finished_run import FinishedRun
from introspection_lit.report.tables import CHOICE_SETS, SET_HEAD, TASK_SETS, set_cells
from introspection_lit.report.verdict import answer_sentences, verdict_sentences
from introspection_lit.training.model_card import beginning, on_hub

Results = Mapping[str, Any]
# Of a test set: the field, and the metric's identifier and name on the hub.
METRICS = {
    "auroc": ("roc_auc", "AUROC"),
    "tpr": ("recall", "TPR"),
    "fpr": ("false_positive_rate", "FPR"),
    "accuracy": ("accuracy", "accuracy"),
}
AT_THRESHOLD = ("tpr", "fpr", "accuracy")
TITLES = RUNGS | {name: title for name, (title, _) in CONTROLS.items()} | TASK_SETS | CHOICE_SETS
TAGS = ("introspection", "activation-steering", "lora")
ASK = """## Ask it in five lines

```python
from introspection_lit import Detector, Steering
detector = Detector.from_pretrained({name!r})
direction = detector.bank.directions["heldout"][0]  # a direction that it was never trained on
print(detector.ask("What is the capital of France?", "Paris."))
print(detector.ask("What is the capital of France?", "Paris.", Steering(direction, strength={strength:g})))
```

`introspection_lit` loads the base model, reads the conversation without the adapter, and asks with it.

"""
USE = "## Use\n"  # of the exported card


def completed_card(run: FinishedRun, text: str, name: str, base_model: str | None, licence: Mapping[str, str]) -> ModelCard:
    """The exported adapter's card with metadata for the hub, how to ask, results, limits, versions and files.

    Args:
        run: The run, without what is not to be published.
        text: Of the exported card.
        name: The repository's id.
        base_model: The hub id of the base model; None: it is not on the hub.
        licence: ``license`` and, where it is of no usual kind, ``license_name`` and ``license_link``.
    """
    results, contexts = run.tested.results, str(run.tested.results.get("contexts") or "")
    activated = run.adapter.config.to_dict().get("alora_invocation_tokens") is not None
    data = ModelCardData(
        base_model=base_model,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=[*TAGS, *(["alora"] if activated else [])],
        datasets=[contexts.removeprefix("hub:")] if contexts.startswith("hub:") else None,
        model_name=name.rpartition("/")[2],
        eval_results=list(eval_results(results, name)),
        base_model_relation="adapter" if base_model else None,
        **dict[str, Any](licence),
    )
    body = on_hub(ModelCard(text, ignore_metadata_errors=True).text.strip(), name)
    first, use, rest = body.partition(USE)
    strength = max(results.get("strengths") or run.description["strengths"])
    parts = [first, ASK.format(name=name, strength=strength), use, rest, "\n\n", *_sections(run)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{''.join(parts)}")


def eval_results(results: Results, name: str) -> Iterator[EvalResult]:
    """The rates of every test set, as the hub's model index has them.

    Args:
        results: Content of ``results.json``.
        name: The repository's id, for the address of the file that they come from.
    """
    for test_set, row in (results.get("sets") or {}).items():
        title = TITLES.get(test_set)
        for field, (identifier, shown) in METRICS.items():
            if row.get(field) is None:
                continue
            interval = row.get(f"{field}_interval")
            arguments = {"threshold": row.get("threshold")} if field in AT_THRESHOLD else {}
            yield EvalResult(
                task_type="text-classification",
                task_name="detection of activation steering",
                dataset_type=f"introspection_lit/{test_set}",
                dataset_name=test_set if title is None else f"{test_set}: {title}",
                dataset_split="test",
                dataset_args=_arguments(results, row),
                metric_type=identifier,
                metric_name=shown,
                metric_value=round(row[field], 6),
                metric_args=arguments | ({"interval_95": interval} if interval else {}) or None,
                source_name="results.json",
                source_url=f"https://huggingface.co/{name}/blob/main/results.json",
            )


def _arguments(results: Results, row: Results) -> dict[str, Any]:
    """What a number depends on: the trials, strengths and seed."""
    counts = {name: row[name] for name in ("n", "n_steered", "n_clean", "n_clean_distinct") if row.get(name) is not None}
    settings = ("strengths", "strength_unit", "seed")
    return counts | {name: results[name] for name in settings if results.get(name) is not None}


def _sections(run: FinishedRun) -> Iterator[str]:
    """Results, limits, versions and files."""
    results = run.tested.results
    yield "## Results\n\n" + _table(results)
    yield "\n## Limits\n\n" + "".join(f"- {sentence}\n" for sentence in limits(run))
    versions = {"python": results.get("python")} | dict(results.get("versions") or {})
    told = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    yield f"\n## Versions\n\n{told}; commit {results.get('commit') or 'unknown'}; {results.get('hardware')}.\n"
    if results.get("command"):
        yield f"\nTested by\n\n    {' '.join(str(results['command']).split())}\n"
    yield (
        "\n## Files\n\n`adapter_model.safetensors`, `adapter_config.json`: the adapter, for PEFT. `introspection.json`: "
        "its question, threshold and training. `vectors.safetensors`: the directions that it was trained and tested on. "
        "`results.json`, `report.html`: its test, in numbers and as a page.\n"
    )


def _table(results: Results) -> str:
    """The test sets, a row each."""
    rows = [("test set", *SET_HEAD), ("---", *["---:"] * len(SET_HEAD))]
    sets = results.get("sets") or {}
    rows += [(f"`{name}`", *set_cells(row)) for name, row in sets.items() if row.get("auroc") is not None]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows) if len(rows) > 2 else ""
    choices = [
        f"`{name}` ({CHOICE_SETS[name]}): {sets[name]['accuracy']:.3f} right." for name in sets if name in CHOICE_SETS
    ]
    return table + ("\n" if table and choices else "") + "\n".join(choices) + ("\n" if choices else "")


def _names(description: Mapping[str, Any]) -> bool:
    """Whether the adapter was trained to say which concept was added."""
    return bool((description.get("trained_on") or {}).get("concepts"))


def limits(run: FinishedRun) -> list[str]:
    """What the test has found, controls first, and what no test of this package shows."""
    results, description = run.tested.results, run.description
    controls = [] if answer_sentences(results) else [control_verdict(dict(results.get("sets") or {}))]
    bands = ", ".join(f"{first}..{last}" for first, last in description["bands"])
    what = " and, asked for it, which of some concepts" if _names(description) else ", not what"
    begun = beginning(description.get("options") or {})
    return [
        *controls,
        *verdict_sentences(results),
        f"Trained on strengths {description['strengths'][0]:g} to {description['strengths'][-1]:g} "
        f"({description['strength_unit']}){begun}, layers {bands}, for one base model in {description['dtype']}; elsewhere "
        "it has not been measured unless the table says so.",
        f"It says that something was added to the activations{what}, and is no guard against somebody who knows it.",
    ]
