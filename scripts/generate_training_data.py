"""Step 3: write the training trials to a manifest, one JSON line each, half of them steered.

    python generate_training_data.py --n-examples 10000 --n-train-vectors 100
    python generate_training_data.py --model smollm2-135m --n-examples 640

The first line is a header: seed, sizes of the splits, hash of the bank, code version. The trials are those that training
would draw with this seed, without exact repeats. The file is written and read (by finetune.py) as a stream, so a million
trials need no more memory than a hundred. Needs the bank of step 1; loads no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

import introspection_lit
from introspection_lit.tools import option_types, pipeline
from introspection_lit.trials import manifest
from introspection_lit.trials.manifest_plan import Manifest, ManifestPlan
from introspection_lit.trials.plans import PairedPlan
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent


def main(args: Sequence[str] | None = None) -> None:
    """Run the step.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.
    """
    parser = pipeline.make_parser(__doc__, ROOT)
    parser.add_argument(
        "--n-examples", type=option_types.positive, default=10_000, help="trials, an even number (default: %(default)s)"
    )
    parser.add_argument(
        "--n-train-vectors", type=option_types.positive, help="how many training vectors of the bank (default: all)"
    )
    parser.add_argument("--output", type=Path, help="the manifest (default: train.jsonl in the folder)")
    pipeline.guarded(lambda: write_trials(pipeline.parse(parser, args, "data")))


def write_trials(steps: pipeline.Steps) -> None:
    """Draw the trials, write them, and check the file by reading it."""
    from introspection_lit.cli import attach  # takes seconds to import: not for --help
    from introspection_lit.training.experiment_setup import prepare

    options = steps.options
    path = pipeline.writable(options.output or steps.manifest)
    if options.n_examples % 2:
        raise ConfigurationError([f"--n-examples: got {options.n_examples}. Expected an even number: half is steered."])
    count = pipeline.as_arguments({"data.train_vectors": options.n_train_vectors})
    # A line of a manifest names a context, not its parts: training on a manifest has no joined conversations.
    cli = attach(steps.command(["--data.bank", str(steps.bank)], ["--data.long=null", *count]))
    data = cli.datamodule
    prepared = prepare(data.run)
    train, bank = prepared.splits["train"], prepared.bank
    plan = train.plan
    assert bank is not None
    assert isinstance(plan, PairedPlan)
    header = {
        "n": options.n_examples,
        "version": introspection_lit.__version__,
        "options": data.run.recorded_options(),
        "splits": {name: {"contexts": len(s.contexts), "vectors": s.plan.vectors} for name, s in prepared.splits.items()},
        **cli.model.base_identity.record(),
        **manifest.manifest_settings(train, bank, data.options.seed),
        **provenance(),
    }

    def rows() -> Iterator[dict[str, Any]]:
        pairs = manifest.distinct_pairs(plan, options.n_examples // 2)
        for number, pair in enumerate(track(pairs, "writing", total=options.n_examples // 2)):
            for steered, trial in enumerate(pair):
                yield manifest.manifest_row(2 * number + steered, trial, train, bank)

    def problems(path: Path) -> list[str]:
        return ManifestPlan(Manifest(path), train, bank, data.options.seed).problems()

    manifest.write_manifest(path, header, rows(), problems)
    print(
        f"{options.n_examples} trials, half steered, from {len(train.contexts)} contexts and {train.plan.vectors} vectors; "
        "read back: no leak, no steered trial twice"
    )
    print(f"manifest: {path}")


if __name__ == "__main__":
    main()
