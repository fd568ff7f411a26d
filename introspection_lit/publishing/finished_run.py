"""Reads a finished run from its folder, and refuses one that cannot be published: nothing is loaded, nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from introspection_lit.models.adapter_config import Adapter
from introspection_lit.models.adapters import BANK, adapter_file_problems, read_adapter
from introspection_lit.models.base_model import BaseModel
from introspection_lit.report.command import load_run
from introspection_lit.report.page import Run
from introspection_lit.report.result_files import RESULTS
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.utils.errors import ConfigurationError, Problems
from introspection_lit.utils.paths import parse_path

WHERE = "lightning_logs/quickstart/version_0"
TESTED = "python -m introspection_lit test --config RUN/config.yaml --ckpt_path CHECKPOINT"
# What results and an exported adapter say of the same weights.
SHARED = {
    "threshold": "the threshold",
    "lora": "the shape of the adapter",
    "base_hashes": "the base model",
    "base_model": "the name of the base model",
    "dtype": "the dtype",
    "quantization": "the quantisation",
}


class FinishedRun(NamedTuple):
    """A run that was trained and tested.

    Attributes:
        adapter: The exported adapter.
        description: Its ``introspection.json``.
        tested: Its results, settings and controls.
        bank: Its vectors.
    """

    adapter: Adapter
    description: dict[str, Any]
    tested: Run
    bank: VectorBank

    @property
    def base(self) -> BaseModel:
        """The base model that the adapter was made for."""
        recorded = self.description
        return BaseModel(recorded["base_model"], recorded.get("revision"), recorded["dtype"])


def read_run(folder: str, tested: str | None = None) -> FinishedRun:
    """Read a run's adapter, vectors and results.

    Args:
        folder: The run's folder, as ``fit`` has written it.
        tested: The folder of its test; None: the same.

    Raises:
        ConfigurationError: Something is missing or damaged, or the results are of other weights; all problems.
    """
    place, problems = parse_path("RUN", folder), Problems()
    if not place.is_dir():
        raise ConfigurationError([f"RUN: no such folder: {folder}. Expected that of a run, such as {WHERE}."])
    results = problems.attempt(_read_results, place if tested is None else parse_path("--results", tested))
    adapter = problems.attempt(_read_adapter, place / "adapter")
    bank = problems.attempt(_read_bank, place / BANK)
    if results is not None and adapter is not None and adapter.description is not None:
        problems.add([_other_weights(results, adapter)])
        if bank is not None and adapter.description.get("bank") != bank.fingerprint:
            problems.add([f"{place / BANK} holds other vectors than those that the adapter was trained on."])
    problems.raise_if_any()
    assert results and adapter and adapter.description and bank  # noqa: PT018 - a missing one is a problem
    return FinishedRun(adapter, adapter.description, results, bank)


def _read_results(folder: Path) -> Run:
    if not (folder / RESULTS).is_file():
        raise ConfigurationError(
            [
                f"{folder} has no {RESULTS}: what is published says what was measured. '{TESTED}' writes one; if that test "
                "has a folder of its own, name it with --results."
            ]
        )
    return load_run(folder)


def _read_bank(path: Path) -> VectorBank:
    if not path.is_file():
        raise ConfigurationError([f"{path} is not there. Expected the vectors that the run was trained with."])
    return VectorBank.load(path)


def _read_adapter(folder: Path) -> Adapter:
    if not folder.is_dir():
        raise ConfigurationError([f"{folder} is not there. Expected the adapter that a fit exports at its end."])
    adapter = read_adapter(str(folder))
    if adapter.description is None:
        raise ConfigurationError(
            [f"{folder} has no introspection.json. Expected an adapter that this package has exported."]
        )
    if problems := adapter_file_problems(adapter):
        raise ConfigurationError(problems)
    return adapter


def _other_weights(tested: Run, adapter: Adapter) -> str | None:
    """The problem if results are of another checkpoint than the exported adapter; None: they are of the same."""
    results, description = tested.results, adapter.description or {}
    differing = [
        text
        for name, text in SHARED.items()
        if name in results and name in description and results[name] != description[name]
    ]
    steps = {"the results": _tested_step(tested), "the adapter": description.get("step")}
    if differing == ["the name of the base model"] and results.get("base_hashes"):
        differing = []  # it has moved, and its hashes are equal
    if not differing and None not in steps.values() and len(set(steps.values())) > 1:
        differing = [f"the training step ({', '.join(f'{name}: {step}' for name, step in steps.items())})"]
    if not differing and results.get("checkpoint") is None and results.get("adapter") is None:
        differing = ["whether there is an adapter: the untrained model was tested"]
    if not differing:
        return None
    checkpoint = adapter.folder.parent / "checkpoints" / f"best-step{description.get('step')}.ckpt"
    return (
        f"{tested.path} is of other weights than {adapter.folder}: they differ in {', '.join(differing)}. Test the "
        f"checkpoint that was exported, {checkpoint}, and name the folder of that test with --results."
    )


def _tested_step(tested: Run) -> int | None:
    """The training step of the checkpoint that was tested; None if its file is not where it was."""
    from introspection_lit.training.checkpoint_files import read_checkpoint  # imports Lightning

    name = tested.results.get("checkpoint")
    places = [Path(name), tested.path.parent / "checkpoints" / Path(name).name] if name else []
    found = next((place for place in places if place.is_file()), None)
    return None if found is None else int(read_checkpoint(str(found))["global_step"])
