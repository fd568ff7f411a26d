"""Step 4: train the adapter; `fit` with other defaults.

    python finetune.py --epochs 3 --grad-accum 8 --lr 2e-4
    python finetune.py --model smollm2-135m --epochs 1 --grad-accum 1 --lr 3e-3 --batch-size 16

Trains on the manifest of step 3 if there is one (or on --manifest FILE), with the options recorded in it; without one,
trials are drawn during training. Needs the bank of step 1. Copies the best adapter to ../checkpoints/best, a PEFT folder
with its training options in introspection.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from introspection_lit.models.adapters import check_replaceable, copy_adapter
from introspection_lit.tools import option_types, pipeline
from introspection_lit.trials.manifest_plan import Manifest
from introspection_lit.utils.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent

# By option: its type, its default, the name of the setting, and its meaning.
OPTIONS: dict[str, tuple[Callable[[str], float], float, str, str]] = {
    "--epochs": (option_types.positive, 3, "trainer.max_epochs", "passes over the trials"),
    "--grad-accum": (option_types.positive, 8, "trainer.accumulate_grad_batches", "batches in a step"),
    "--lr": (option_types.finite_number, 2e-4, "model.learning_rate", "peak learning rate"),
    "--batch-size": (option_types.positive, 4, "data.batch_size", "trials in a batch, even"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run the step.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.
    """
    parser = pipeline.make_parser(__doc__, ROOT)
    for name, (kind, default, _, meaning) in OPTIONS.items():
        parser.add_argument(name, type=kind, help=f"{meaning} (default: that of --config, or {default})")
    parser.add_argument("--manifest", type=Path, help="the trials (default: train.jsonl in the folder, if it is there)")
    parser.add_argument("--output", type=Path, default=ROOT / "checkpoints", help="gets best/ (default: ../checkpoints)")
    pipeline.guarded(lambda: finetune(pipeline.parse(parser, args, "finetune")))


def finetune(steps: pipeline.Steps) -> None:
    """Train, and copy the best adapter to the output folder."""
    from introspection_lit.cli import main as run
    from introspection_lit.training.run_context import run_folder  # takes seconds to import: not for --help

    options = steps.options
    best = options.output.expanduser() / "best"
    check_replaceable(pipeline.writable(best) if not best.is_dir() else best)
    path = options.manifest or (steps.manifest if steps.manifest.is_file() else None)
    print(f"trials: {path or 'drawn as training goes (generate_training_data.py writes them out)'}")
    defaults = pipeline.as_arguments({name: default for _, default, name, _ in OPTIONS.values()})
    typed = {name: getattr(options, flag.strip("-").replace("-", "_")) for flag, (_, _, name, _) in OPTIONS.items()}
    fixed = ["--test_after_fit", "false", *pipeline.as_arguments(typed)]
    if path is not None:
        manifest = Manifest(path.expanduser())
        fixed = [
            *pipeline.recorded_options(manifest.header.get("options", {}), manifest.path, steps),
            "--data.manifest",
            str(manifest.path),
            *fixed,
        ]
    arguments = steps.command(["--data.bank", str(steps.bank), *defaults], fixed)
    print(pipeline.equivalent_command("fit", arguments))
    cli = run(["fit", *arguments])
    adapter = run_folder(cli.trainer) / "adapter"
    if cli.trainer.is_global_zero:
        if not adapter.is_dir():
            raise ConfigurationError(["finetune: no adapter came out, since no validation has been run to its end."])
        copy_adapter(adapter, best)
        print(f"adapter: {best}")


if __name__ == "__main__":
    main()
