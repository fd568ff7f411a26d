"""Damage to what we write is found when it is read: results, banks, manifests and adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bank_example import random_bank, small_bank
from damage import damaged
from manifest_example import manifest_of, training_split
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from introspection_lit.models.adapter_weights import WEIGHTS
from introspection_lit.models.adapters import CONFIG as PEFT_CONFIG
from introspection_lit.models.adapters import DESCRIPTION, changed_files, copy_adapter
from introspection_lit.report.command import load_run
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.trials.manifest_plan import Manifest, ManifestPlan
from introspection_lit.utils.checksums import CHECKSUM, checksum_problem, file_hash, with_checksum, write_json
from introspection_lit.utils.errors import ConfigurationError


def leaves(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of nested content: where it is kept, and under what."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from leaves(content[key])


def test_every_change_of_results_breaks_their_seal(tmp_path: Path) -> None:
    """Each value and each name, one at a time; layout and order may change, and older files have no seal."""
    content = {"sets": {"seen": {"auroc": 0.25, "n": 3, 4: None}}, "words": ["yes", "né", "\ud800", True]}
    path = tmp_path / "results.json"
    write_json(path, content)
    text = path.read_text()
    read = json.loads(text)
    assert checksum_problem(read) is None
    assert checksum_problem(json.loads(json.dumps(dict(reversed(read.items()))))) is None
    assert checksum_problem({name: value for name, value in read.items() if name != CHECKSUM}) is None
    places = len(list(leaves(read)))
    assert places == 11
    for number in range(places):
        for change in ("value", "name"):
            changed = json.loads(text)
            holder, key = list(leaves(changed))[number]
            if key == CHECKSUM and change == "name":
                continue
            if change == "value":
                holder[key] = 0.250001 if holder[key] == 0.25 else [holder[key]]
            elif isinstance(holder, dict):
                holder[f"{key}x"] = holder.pop(key)
            else:
                holder.insert(key, None)
            assert checksum_problem(changed), (key, change)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"auroc": float("nan")})
    assert path.read_text() == text


def test_the_report_refuses_changed_results(tmp_path: Path) -> None:
    """And says how a change that is meant is made."""
    write_json(tmp_path / "results.json", {"sets": {"seen": {"auroc": 0.75, "tpr": 0.5, "fpr": 0.0}}})
    assert load_run(tmp_path).results["sets"]["seen"]["auroc"] == 0.75
    changed = (tmp_path / "results.json").read_text().replace("0.75", "0.95")
    (tmp_path / "results.json").write_text(changed)
    with pytest.raises(ConfigurationError, match=r"changed or damaged.*remove its field 'sha256'"):
        load_run(tmp_path)
    plain = {name: value for name, value in json.loads(changed).items() if name != CHECKSUM}
    (tmp_path / "results.json").write_text(json.dumps(plain))
    assert load_run(tmp_path).results["sets"]["seen"]["auroc"] == 0.95


def test_no_damage_to_a_bank_goes_unseen(tmp_path: Path) -> None:
    """It is refused, or all that it holds is what was saved; one without a seal is read as ever."""
    path, bank = tmp_path / "bank.safetensors", small_bank(16)
    bank.save(path)
    refused = 0
    for content in damaged(path.read_bytes(), 100, first=200):
        path.write_bytes(content)
        try:
            again = VectorBank.load(path)
        except ConfigurationError:
            refused += 1
        else:
            assert again.names == bank.names
            assert again.metadata.items() >= bank.metadata.items()
            assert again.fingerprint == bank.fingerprint
    assert refused > 390
    tensors = {f"directions.{split}": rows for split, rows in bank.directions.items()}
    header = {"format": "introspection_lit/vector-bank/1", "names": json.dumps(bank.names), **bank.metadata}
    save_file(tensors | {"residual_norms": bank.residual_norms}, path, metadata=header)
    assert VectorBank.load(path).fingerprint == bank.fingerprint


def test_no_damage_to_a_manifest_goes_unseen(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Its lines are those that were written, or something is said; a change that is meant needs no seal."""
    train, bank = training_split(tokenizer), random_bank()
    path = manifest_of(tmp_path / "m.jsonl", train, bank, 8)
    content = path.read_bytes()

    def problems() -> list[str]:
        try:
            return ManifestPlan(Manifest(path), train, bank, 0).problems()
        except ConfigurationError as error:
            return error.problems

    assert problems() == []
    for changed in damaged(content, 80):
        path.write_bytes(changed)
        try:
            header = json.loads(changed.split(b"\n")[0])
        except ValueError:
            header = {}
        if isinstance(header, dict) and CHECKSUM in header:  # else its name is what was damaged
            assert problems()
    changed = content.replace(b'"begins": "message', b'"begins": "Message', 1)
    path.write_bytes(changed)
    assert "remove 'sha256' from its first line" in problems()[0]
    header = json.loads(changed.split(b"\n")[0])
    del header[CHECKSUM]
    path.write_bytes(json.dumps(header).encode() + b"\n" + changed.split(b"\n", 1)[1])
    assert problems() == []


def test_changed_adapters_are_noticed(tmp_path: Path) -> None:
    """Weights, PEFT's configuration, our description; older exports say nothing of their files."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / PEFT_CONFIG).write_text('{"r": 4, "lora_alpha": 8}')
    description = with_checksum(
        {"threshold": 0.5, "files": {name: file_hash(folder / name) for name in (WEIGHTS, PEFT_CONFIG)}}
    )
    assert changed_files(folder, description) == []
    assert changed_files(folder, {"threshold": 0.5}) == changed_files(folder, None) == []
    assert DESCRIPTION in changed_files(folder, description | {"threshold": 0.6})[0]
    for name in (WEIGHTS, PEFT_CONFIG):
        content = (folder / name).read_bytes()
        for changed in damaged(content, 20):
            (folder / name).write_bytes(changed)
            (problem,) = changed_files(folder, description)
            assert str(folder / name) in problem
        (folder / name).write_bytes(content)
    (folder / DESCRIPTION).write_text(json.dumps(description))
    copy_adapter(folder, tmp_path / "copy")
    assert changed_files(tmp_path / "copy", description) == []
