"""Step 5: how far up the ladder of generalisation the adapter climbs, beside the untrained model; `test` three times.

    python evaluate.py --adapter ../checkpoints/best --n-train-vectors 100
    python evaluate.py --adapter someone/their-adapter --question "Were you steered? Say {yes} or {no}." --threshold 0.5

The rungs are training vectors, held-out random vectors, concepts, and kinds of text never trained on. The untrained model
is asked plainly and with the info prompt; it and adapters without a threshold of their own decide at log-odds 0. Any PEFT
adapter for the model will do, a folder or a hub id. If it has our introspection.json it is asked as it was trained, and
what it was trained on is kept out of the test; else nobody can know, and the script says so. Needs the bank of step 1.
Writes ladder.json and ladder.png.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from introspection_lit.evaluation import rungs
from introspection_lit.tools import option_types, pipeline
from introspection_lit.training.protocol import protocol
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.files import save_figure, write_file
from introspection_lit.utils.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent


def main(args: Sequence[str] | None = None) -> None:
    """Run the step.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.
    """
    parser = pipeline.parser(__doc__, ROOT)
    parser.add_argument("--adapter", help="PEFT folder or hub id; without it only the untrained model is tested")
    parser.add_argument(
        "--n-train-vectors", type=option_types.positive, help="how many training vectors of the bank (default: all)"
    )
    parser.add_argument("--threshold", type=option_types.finite, help="on the log-odds (default: the adapter's own, or 0)")
    pipeline.guarded(lambda: evaluate(pipeline.parse(parser, args, "evaluate")))


def evaluate(steps: pipeline.Steps) -> None:
    """Climb the ladder and say which rung fails."""
    from introspection_lit.cli import attach
    from introspection_lit.tools import ladder  # takes seconds to import: not for --help

    options, folder = steps.options, steps.folder
    settings = {
        "model.adapter": options.adapter,
        "model.threshold": options.threshold,
        "data.train_vectors": options.n_train_vectors,
    }
    settled = [*pipeline.as_trained(options.adapter, steps), *pipeline.as_arguments(settings)]
    arguments = steps.command(["--data.bank", str(steps.bank)], settled)
    print(pipeline.same_as("test", arguments))
    cli = attach(arguments)
    ways = {way.name: rows for way, rows in ladder.climb(cli, options.adapter is not None)}
    if not cli.trainer.is_global_zero:
        return
    ways = {name: ways[name] for name in ("untrained", "with info", "adapter") if name in ways}
    verdicts = [rungs.ladder_verdict(name, rows) for name, rows in ways.items()]
    described = {**provenance(), **cli.model.identity(), "adapter": options.adapter, **protocol(cli.datamodule.run)}
    results = {**described, "verdicts": verdicts, "ways": ways}
    write_file(folder / "ladder.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    save_figure(folder / "ladder.png", ladder.figure(ways))
    console = PlainConsole()
    console.print(ladder.table(ways))
    console.print(ladder.answer_table(ways))
    limits = f"AUROC >= {rungs.LOWEST_AUROC}, TPR >= {rungs.LOWEST_TPR}, FPR <= {rungs.HIGHEST_FPR}"
    console.print(f"✗: the rung does not hold, which takes {limits}")
    for line in verdicts:
        console.print(line, highlight=False)
    console.print(f"details: {folder / 'ladder.json'}, ladder.png", soft_wrap=True)


if __name__ == "__main__":
    main()
