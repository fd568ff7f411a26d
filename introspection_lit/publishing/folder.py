"""Writes the folder that is uploaded: the adapter, its vectors, results, report and card, without what is personal."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from introspection_lit.models.adapter_weights import WEIGHTS
from introspection_lit.models.adapters import BANK, CONFIG, DESCRIPTION, TEMPLATE
from introspection_lit.publishing.card import completed_card
from introspection_lit.publishing.finished_run import FinishedRun
from introspection_lit.publishing.privacy import cleaned, own_names_in, without_paths
from introspection_lit.report import Run, write_report
from introspection_lit.report.command import SEEDS
from introspection_lit.report.result_files import RESULTS
from introspection_lit.utils.checksums import file_hash, with_checksum
from introspection_lit.utils.errors import ConfigurationError

README, REPORT = "README.md", "report.html"
# All that a published repository may have of ours.
PUBLISHED = (README, CONFIG, WEIGHTS, DESCRIPTION, TEMPLATE, BANK, RESULTS, REPORT)


def write_published(
    run: FinishedRun,
    folder: Path,
    name: str,
    base_model: str | None,
    licence: Mapping[str, str],
    allowed: tuple[str, ...] = (),
) -> None:
    """Write what is published of a run.

    A base model in a local folder is called by its hub id in all files; its hashes say that it is the same. Other absolute
    paths are cut to their last part. The weights are copied as they are.

    Args:
        run: The run.
        folder: An empty folder.
        name: The repository's id.
        base_model: The hub id of the base model; None: it is not on the hub.
        licence: Fields of the card.
        allowed: Names of the user or the machine that are just words.

    Raises:
        ConfigurationError: A file would hold the name of the user or of the machine.
    """
    local = run.description["base_model"]
    public = base_model if base_model and local.startswith("/") else local
    results = cleaned(_renamed(dict(run.tested.results), local, public))
    config = run.tested.config and without_paths(run.tested.config.replace(local, public))
    tested = run.tested._replace(results=results, config=config)
    _write_results(folder, tested)
    _write_adapter(run, folder, local, public)
    replace(run.bank, metadata=_renamed(run.bank.metadata, local, public)).save(folder / BANK)
    exported = (run.adapter.folder / README).read_text(encoding="utf-8").replace(local, public)
    card = completed_card(run._replace(tested=tested), exported, name, base_model, licence)
    (folder / README).write_text(str(card), encoding="utf-8")
    if problems := own_names_in(folder, allowed):
        raise ConfigurationError(problems)


def _renamed(value: Any, local: str, public: str) -> Any:
    """Nested plain values with the base model's public name in every text."""
    if isinstance(value, str):
        return value.replace(local, public)
    if isinstance(value, Mapping):
        return {key: _renamed(inner, local, public) for key, inner in value.items()}
    return [_renamed(inner, local, public) for inner in value] if isinstance(value, list) else value


def _write_results(folder: Path, tested: Run) -> None:
    """``results.json`` and the report on it; the report's settings and several seeds go into its page alone."""
    content = json.dumps(with_checksum(tested.results), indent=2, allow_nan=False) + "\n"
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / RESULTS).write_text(content, encoding="utf-8")
        if tested.config:
            (Path(place) / "config.yaml").write_text(tested.config, encoding="utf-8")
        if tested.seeds:
            (Path(place) / SEEDS).write_text(json.dumps(with_checksum(cleaned(tested.seeds))), encoding="utf-8")
        shutil.move(write_report(Path(place)), folder / REPORT)
        shutil.move(Path(place) / RESULTS, folder / RESULTS)


def _write_adapter(run: FinishedRun, folder: Path, local: str, public: str) -> None:
    """The adapter's own files; the checksums in ``introspection.json`` are those of what is written."""
    files = [CONFIG, WEIGHTS, *([TEMPLATE] if (run.adapter.folder / TEMPLATE).is_file() else [])]
    for file in files:
        shutil.copyfile(run.adapter.folder / file, folder / file)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config.get("base_model_name_or_path") == local != public:
        config["base_model_name_or_path"] = public
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    description = run.description | {"base_model": public} | {"files": {file: file_hash(folder / file) for file in files}}
    (folder / DESCRIPTION).write_text(json.dumps(with_checksum(description), indent=2) + "\n", encoding="utf-8")
