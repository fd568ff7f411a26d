"""Step 4: trains the adapter; `fit` with other defaults.

    python finetune.py --epochs 3 --grad-accum 8 --lr 2e-4
    python finetune.py --model smollm2-135m --epochs 1 --grad-accum 1 --lr 3e-3 --batch-size 16

Trains on the manifest of step 3 if there is one (or on --manifest FILE), with the settings that it was made with; without
one, trials are drawn as training goes. Needs the bank of step 1. The best adapter is left in ../checkpoints/best: a PEFT
folder that says what it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from introspection_lit import pipeline
from introspection_lit.callbacks import run_folder
from introspection_lit.cli import main as run
from introspection_lit.errors import ConfigurationError
from introspection_lit.export import copy_adapter
from introspection_lit.manifest import Manifest

ROOT = Path(__file__).resolve().parent.parent


def main(args: Sequence[str] | None = None) -> None:
    """Run the step.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.
    """
    parser = pipeline.parser(__doc__, ROOT)
    parser.add_argument("--epochs", type=int, default=3, help="passes over the trials (default: %(default)s)")
    parser.add_argument("--grad-accum", type=int, default=8, help="batches in a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-4, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="trials in a batch, even (default: %(default)s)")
    parser.add_argument("--manifest", type=Path, help="the trials (default: train.jsonl in the folder, if it is there)")
    parser.add_argument("--output", type=Path, default=ROOT / "checkpoints", help="gets best/ (default: ../checkpoints)")
    pipeline.guarded(lambda: finetune(pipeline.parse(parser, args, "finetune")))


def settings_of(manifest: Manifest) -> list[str]:
    """The settings that a manifest was made with, as arguments of the command line."""
    header = manifest.header
    settings = {"data.manifest": manifest.path, "data.train_vectors": header["train_vectors"]}
    settings |= {"seed_everything": header["seed"], "data.seed": header["seed"], "data.contexts": header["contexts"]}
    settings |= {f"data.{name}": pipeline.quoted(header[name]) for name in ("questions", "answers", "bands", "strengths")}
    settings |= {"data.system_prompt": header["system"], "data.answer_prefix": header["answer_prefix"]}
    settings["data.strength_unit"] = header["strength_unit"]
    return [f"--{name}={value}" for name, value in settings.items()]


def finetune(steps: pipeline.Steps) -> None:
    """Train, and leave the best adapter where evaluate.py looks for it."""
    options = steps.options
    path = options.manifest or (steps.manifest if steps.manifest.is_file() else None)
    manifest = [] if path is None else settings_of(Manifest(path.expanduser()))
    print(f"trials: {path or 'drawn as training goes (generate_training_data.py writes them out)'}")
    arguments = steps.command(
        *("--data.bank", str(steps.bank)),
        *("--trainer.max_epochs", str(options.epochs)),
        *("--trainer.accumulate_grad_batches", str(options.grad_accum)),
        *("--model.learning_rate", str(options.lr)),
        *("--data.batch_size", str(options.batch_size)),
        *("--test_after_fit", "false"),
        *manifest,
    )
    print(pipeline.same_as("fit", arguments))
    cli = run(["fit", *arguments])
    made = run_folder(cli.trainer) / "adapter"
    if cli.trainer.is_global_zero:
        if not made.is_dir():
            raise ConfigurationError(["finetune: no adapter came out, since no validation has been run to its end."])
        copy_adapter(made, options.output.expanduser() / "best")
        print(f"adapter: {options.output.expanduser() / 'best'}")


if __name__ == "__main__":
    main()
