"""Train two adapters that cannot learn anything, as a control of a run: on random labels, and without steering.

    python controls.py --run ../lightning_logs/quickstart/version_0

Everything else is as in the run: configuration, seed, vectors, sizes. Each is tested on held-out vectors, where it should
be at chance; if it is not, the method itself gives the answer away. They land in RUN/controls; the same command goes on
after Ctrl-C. Writes RUN/controls.json, and the run's report again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from introspection_lit import report
from introspection_lit.evaluation.controls import Row, control_row
from introspection_lit.report.result_files import read_results
from introspection_lit.tools import option_types, pipeline
from introspection_lit.tools.fit_runs import Training, reserved_option_problems, run_missing
from introspection_lit.utils import schema
from introspection_lit.utils.checksums import write_json
from introspection_lit.utils.config_files import read_plain_yaml
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("random labels", "no steering")
# Options that the script sets, so that a control differs from its run in nothing else.
RESERVED = (
    *("--config", "--seed_everything", "--data.seed", "--data.control", "--data.test_trials"),
    *("--test_after_fit", "--ckpt_path", "--trainer.logger", "--checkpoint.dirpath"),
)
# Test trials of a control if the run has no held-out ones.
TRIALS = 256


def main(args: Sequence[str] | None = None) -> None:
    """Run the script.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: 1 if a training failed, 2 if the command cannot work, 130 after Ctrl-C.
    """
    parser = option_types.parser(__doc__)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the folder of a fit that was tested")
    parser.add_argument("--epochs", type=option_types.positive, help="passes over the trials (default: as in the run)")
    options, more = parser.parse_known_args(args)
    pipeline.guarded_runs(lambda: run_controls(options.run.expanduser(), options.epochs, more))


def run_controls(run: Path, epochs: int | None, more: Sequence[str]) -> list[str]:
    """Train the controls that are missing, and write their results beside those of the run.

    Args:
        run: The run's folder.
        epochs: Passes over the trials; None: as in the run.
        more: Options of ``fit``.

    Returns:
        The controls that failed.

    Raises:
        ConfigurationError: The run is not a tested fit, or an option is reserved.
    """
    shared = [*options_of_run(run), *pipeline.as_arguments({"trainer.max_epochs": epochs}), *more]
    if problems := reserved_option_problems(more, RESERVED):
        raise ConfigurationError(problems)
    trainings = {name: training_of(run, name, shared) for name in NAMES}
    if failed := run_missing(trainings):
        print(f"failed, or left nothing tested: {', '.join(failed)}. The same command tries again.")
        return failed
    rows = [evaluate_control(name, training, untrained_auroc(run)) for name, training in trainings.items()]
    origin = provenance()
    write_json(run / "controls.json", {"commit": origin["commit"], "command": origin["command"], "rows": rows})
    PlainConsole().print(result_table(rows))
    print(f"details: {run / 'controls.json'}, {report.write_report(run)}")
    return []


def options_of_run(run: Path) -> list[str]:
    """The options of a run, with one test set, and without its checkpoint paths.

    Raises:
        ConfigurationError: The folder has no configuration of a fit, or no results.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise ConfigurationError([f"--run {run}: no config.yaml in it. Expected the folder of a fit that was tested."])
    read_results(run / "results.json")
    try:
        config = read_plain_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError([f"--run {run}: its config.yaml cannot be read ({error})."]) from error
    if not isinstance(config, dict) or "test_after_fit" not in config or not isinstance(config.get("data"), dict):
        raise ConfigurationError([f"--run {run}: its config.yaml is not that of a fit. Expected the run that trained."])
    if foreign := untrusted_parts(config):
        raise ConfigurationError(
            [
                f"--run {run}: its config.yaml could run code or write elsewhere: {'; '.join(foreign)}. It is only read "
                "without these. If you trust it, take them out of a copy of the run and give them as options."
            ]
        )
    data = config["data"]
    if data.get("control", "none") != "none":
        raise ConfigurationError([f"--run {run}: is a control itself ({data['control']}). Expected the run it belongs to."])
    bank = run / "vectors.safetensors"
    return [
        "--config",
        str(file),
        *pipeline.as_arguments({"data.bank": str(bank) if bank.is_file() and not data.get("bank") else None}),
        "--data.test_trials",
        json.dumps({"heldout": (data.get("test_trials") or {}).get("heldout", TRIALS)}),
        *("--test_after_fit", "true", "--evidence.enabled", "false"),
        *("--ckpt_path", "null", "--checkpoint.dirpath", "null"),  # the run may have set them
    ]


def _without_class(**known: schema.Check) -> schema.Check:
    """A section of options, none of which is a class; a text in its place would be the name of a file with options."""

    def check(value: Any, place: str) -> Iterator[str]:
        yield from schema.fields(**known)(value, place)
        if "class_path" in str(value):
            yield f"{place} names a class"

    return check


# No name of a class or file: a number, a word such as ``ddp`` or ``bf16-mixed``, or a list of these.
WORD = schema.either("a number or a word", schema.FLAG, schema.number(), schema.text(r"[\w:,-]*"))
WORD = schema.either("a number or a word", WORD, schema.listed(WORD))
LOGGER = schema.fields(
    "class_path",
    others=schema.unknown,
    class_path=schema.text(r"(lightning\.pytorch\.loggers\.)?(TensorBoardLogger|CSVLogger)"),
    init_args=schema.named(schema.single("a single value", lambda value: not isinstance(value, dict | list))),
)
RUN_CONFIG = schema.fields(
    others=schema.unknown,
    trainer=schema.fields(others=WORD, logger=schema.either("a logger of Lightning", WORD, LOGGER)),
    model=_without_class(
        base=schema.fields(trust_remote_code=schema.single("false", lambda trusted: not trusted)), lora=schema.fields()
    ),
    data=_without_class(grid=schema.fields(), reuse=schema.fields()),
    checkpoint=_without_class(filename=schema.text(r"[^/\\]*", "a name without a folder")),
    evidence=_without_class(),
    **dict.fromkeys(("seed_everything", "test_after_fit", "ckpt_path", "weights_only"), schema.ANYTHING),
)


def untrusted_parts(config: object) -> list[str]:
    """List what of a run's configuration is not read unless the user gives it himself: classes, other files, code.

    Args:
        config: The content of ``config.yaml``.
    """
    return schema.problems(schema.required(RUN_CONFIG), config)


def training_of(run: Path, name: str, shared: Sequence[str]) -> Training:
    """The training of a control."""
    slug = name.replace(" ", "-")
    overlay = ROOT / "configs" / "controls" / f"{slug}.yaml"
    given = str(overlay) if run.is_absolute() else os.path.relpath(overlay)  # as the run: the command can be compared later
    return Training(run / "controls" / slug, [*shared[:2], "--config", given, *shared[2:]])


def untrained_auroc(run: Path) -> float | None:
    """The AUROC of the untrained model on the run's held-out trials; None if it was not measured."""
    from introspection_lit.training.callbacks.evidence import UNTRAINED  # takes seconds to import: not for --help

    references = (read_results(run / "results.json").get("evidence") or {}).get("references") or []
    aurocs = [row["auroc"] for row in references if (row["observer"], row["set"]) == (UNTRAINED, "heldout")]
    return aurocs[0] if aurocs else None


def evaluate_control(name: str, training: Training, untrained: float | None) -> Row:
    """The row of a control, from its results on held-out vectors; see :func:`control_row`."""
    heldout: dict[str, Any] = read_results(training.results)["sets"]["heldout"]
    numbers = {key: heldout[key] for key in ("auroc", "tpr", "fpr")}
    return control_row(name, numbers, None, run=str(training.folder), untrained=untrained)


def result_table(rows: Sequence[Row]) -> Table:
    """Lay out the controls as a table that fits 80 columns."""
    table = Table(title="Controls, on held-out vectors", padding=(0, 1))
    for column in ("control", "expected", "AUROC", "TPR", "FPR", "held"):
        table.add_column(column, no_wrap=column != "expected")
    for row in rows:
        numbers = (f"{row[key]:.3f}" for key in ("auroc", "tpr", "fpr"))
        table.add_row(row["name"], row["expected"], *numbers, "yes" if row["held"] else "no")
    return table


if __name__ == "__main__":
    main()
