"""Leak checks: tests must not share texts or directions with training, nor with the training of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from introspection_lit.contexts.context import fingerprint
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.tasks.questionnaire import PLAIN_TEXT, STEERING
from introspection_lit.trials.changed_plans import benign_plan_of, curriculum_of, subtracts
from introspection_lit.trials.split import Split
from introspection_lit.trials.test_sets import ASK_TRAINED

OTHER_DATA = (
    "ckpt_path: the checkpoint was trained on other contexts, vectors, questions, bands or strengths than this "
    "configuration holds. Resume with the data.* settings (data.seed above all) that it began with."
)
HINT = "Test with the data.* settings of the training, data.seed above all (config.yaml of its run)."


def bank_leak_problems(bank: VectorBank) -> list[str]:
    """Check that the splits of a bank share no direction."""
    return [f"data.bank: {leak}: what is tested has been trained on." for leak in bank.leaks()]


def direction_keys(split: Split, bank: VectorBank) -> list[str]:
    """Fingerprints of the directions that the trials of a split use."""
    return bank.keys(split.source.vectors)[: split.plan.vectors]


def training_record(splits: Mapping[str, Split], bank: VectorBank, prefill_adapter: bool) -> dict[str, Any]:
    """Record the data of training and validation, for the checkpoint.

    Args:
        splits: Splits by name; ``train`` and ``validation`` are recorded.
        bank: The directions.
        prefill_adapter: Whether the adapter is on while caches are written.

    Returns:
        Fingerprints of user messages (``messages``), directions (``vectors``) and ``questions``, the ``kinds`` of context,
        ``prefill_adapter``, ``phrasing``, ``bands``, ``strengths`` and ``strength_unit``: plain values, equal for
        equal data. With several tasks also ``tasks``: name, questions and weight of each, and the texts; ``lead_in``; and
        where there are any, the kinds of ``pairs`` and the ``concepts`` that are trained on. With benign changes of caches
        ``benign``: their share and names. With a curriculum ``curriculum``: its first strengths, its length in caches, and
        ``merged_after`` if so. With both signs of the directions ``both_signs``; with dither its strength, ``dither``.
    """
    used = [splits[name] for name in ("train", "validation")]
    train = splits["train"]
    several: dict[str, Any] = {}
    if train.questionnaire is not None:
        # Early losses and kinds of pairs only where there are any.
        parts = [
            [part.task, part.each, part.weight, *([part.early] if part.early else [])] for part in train.questionnaire.parts
        ]
        if (kinds := train.questionnaire.kinds.kinds) != (STEERING,):
            several["pairs"] = list(kinds)
        if train.questionnaire.concepts:
            several["concepts"] = sorted(train.questionnaire.concepts)
        several["tasks"] = [*parts, [PLAIN_TEXT, train.texts, train.text_weight]] if train.texts else parts
        several["lead_in"] = train.questionnaire.lead_in
    if benign := benign_plan_of(train.plan):
        several["benign"] = [benign.share, *benign.changes]
    if curriculum := curriculum_of(train.plan):
        late = ["merged_after"] if curriculum.merged_after else []
        several["curriculum"] = [*curriculum.strengths, curriculum.trials, *late]
    if subtracts(train.plan):
        several["both_signs"] = True
    if train.dither:
        several["dither"] = train.dither
    return several | {
        "messages": sorted({message for split in used for message in split.messages()}),
        "kinds": sorted({context.kind for split in used for context in split.contexts}),
        "vectors": sorted(key for split in used for key in direction_keys(split, bank)),
        "questions": sorted({fingerprint(question) for split in used for question in split.question_texts()}),
        "prefill_adapter": prefill_adapter,
        "phrasing": splits["train"].phrasing.describe() | {"answers": list(splits["train"].phrasing.answers)},
        "bands": [list(band) for band in splits["train"].plan.bands],
        "strengths": list(splits["train"].plan.strengths),
        "strength_unit": splits["train"].strength_unit,
        "control": splits["train"].control,
    }


def training_differences(record: Mapping[str, Any], split: Split, prefill_adapter: bool) -> list[str]:
    """List the settings of a test that differ from training without being leaks; these are warnings.

    Args:
        record: The :func:`training_record` of the checkpoint.
        split: A split of the current configuration.
        prefill_adapter: Whether the adapter is on while caches are written, in the current configuration.
    """
    now = {
        "prefill_adapter": prefill_adapter,
        **asdict(split.phrasing),
        "answers": list(split.phrasing.answers),
        "strength_unit": split.strength_unit,
    }
    then = {"prefill_adapter": record["prefill_adapter"], "thinking": "closed", **record["phrasing"]}
    then["strength_unit"] = record["strength_unit"]
    lead_in = record.get("lead_in") or ""
    if not split.questions[0].startswith(lead_in):
        now["lead_in"], then["lead_in"] = "another", lead_in
    return [
        f"{name} is {now[name]!r}, in training it was {then[name]!r}: the threshold was set under the latter."
        for name in now
        if name in then and now[name] != then[name]
    ]


def training_leak_problems(record: Mapping[str, Any], tests: Mapping[str, Split], bank: VectorBank) -> list[str]:
    """Check that the test sets share nothing with the training of a checkpoint.

    Args:
        record: The :func:`training_record` of the checkpoint.
        tests: Test sets by name.
        bank: The directions.

    Returns:
        A sentence for each problem: user messages, kinds (of ``newkinds``), directions or held-out questions that were
        trained on, and directions of ``seen`` that were not.
    """
    problems = []
    for name, split in tests.items():
        source, vectors = split.source, set(direction_keys(split, bank))
        messages = [text for message, text in split.messages().items() if message in record["messages"]]
        kinds = sorted({context.kind for context in split.contexts} & set(record["kinds"]))
        trained = vectors & set(record["vectors"])
        asked = split.questions if split.questionnaire is None else split.question_texts()
        questions = {fingerprint(question) for question in asked} & set(record["questions"])
        leaks = []
        if messages:
            leaks.append(f"{len(messages)} contexts were trained on (such as {messages[0][:50]!r})")
        if source.contexts == "newkinds" and kinds:
            leaks.append(f"the kinds {kinds} were trained on")
        if source.vectors == "train" and trained != vectors:
            leaks.append("some of its vectors were not trained on")
        if source.vectors != "train" and trained:
            leaks.append("some of its vectors were trained on")
        if concepts := set(bank.names.get(source.vectors, [])) & set(record.get("concepts") or []):
            leaks.append(f"the concepts {sorted(concepts)} were trained on")
        if source.questions not in ASK_TRAINED and questions:
            leaks.append("some of its questions were trained on")
        problems += [f"ckpt_path: test set {name!r}: {problem}. {HINT}" for problem in leaks]
    return problems


def audit(splits: Mapping[str, Split], bank: VectorBank) -> dict[str, Any]:
    """Measure the overlap between the splits of an experiment, for the report.

    Args:
        splits: Splits by name, ``train`` and ``validation`` among them.
        bank: The directions.

    Returns:
        ``vectors``: the largest |cos| between the directions of ``train`` or ``validation`` and those of each other split;
        ``shared_messages``: number of user messages that tests share with training or validation;
        ``unseen_kinds_in_training``: kinds of ``newkinds`` that training or validation use; ``shared_questions``: number of
        held-out questions that are trained on. All but the first are 0 or empty, because a run with leaks does not start.
    """
    directions = {split: rows.flatten(0, -2) for split, rows in bank.directions.items()}
    cosines = {
        f"{first} / {second}": round(float((directions[first] @ directions[second].T).abs().max()), 4)
        for first in ("train", "validation")
        for second in directions
        if second not in ("train", first) and len(directions[first]) and len(directions[second])
    }
    used = [splits[name] for name in ("train", "validation")]
    tests = {name: split for name, split in splits.items() if name not in ("train", "validation")}
    used_messages = {message for split in used for message in split.messages()}
    used_kinds = {context.kind for split in used for context in split.contexts}
    trained_on = {fingerprint(question) for question in splits["train"].question_texts()}
    messages = {message for split in tests.values() for message in split.messages()}
    heldout = [split for split in tests.values() if split.source.questions == "heldout"]
    newkinds = [split for split in tests.values() if split.source.contexts == "newkinds"]
    return {
        "vectors": cosines,
        "shared_messages": len(messages & used_messages),
        "unseen_kinds_in_training": sorted({c.kind for split in newkinds for c in split.contexts} & used_kinds),
        "shared_questions": len({fingerprint(question) for split in heldout for question in split.questions} & trained_on),
    }
