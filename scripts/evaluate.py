"""Step 5: evaluate the adapter and the untrained model on every rung of the generalisation ladder; runs `test` three times.

    python evaluate.py --adapter ../checkpoints/best --n-train-vectors 100
    python evaluate.py --adapter someone/their-adapter --question "Were you steered? Say {yes} or {no}." --threshold 0.5

The rungs are training vectors, held-out random vectors, concepts, and kinds of text that are not in training; controls
below them (exchanged answer words, factual questions) show whether the question is answered or a word said. The untrained
model is tested with and without the info prompt; it and adapters without a threshold of their own use log-odds 0 as
threshold. --adapter takes any PEFT adapter for the model, a folder or a hub id. With an introspection.json it is tested
with its training options, and its training contexts are kept out of the test; without one they are unknown, and the script
says so. Needs the bank of step 1. Writes ladder.json and ladder.png.
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
    parser = pipeline.make_parser(__doc__, ROOT)
    parser.add_argument("--adapter", help="PEFT folder or hub id; without it only the untrained model is tested")
    parser.add_argument(
        "--n-train-vectors", type=option_types.positive, help="how many training vectors of the bank (default: all)"
    )
    parser.add_argument(
        "--threshold", type=option_types.finite_number, help="on the log-odds (default: the adapter's own, or 0)"
    )
    pipeline.guarded(lambda: evaluate(pipeline.parse(parser, args, "evaluate")))


def evaluate(steps: pipeline.Steps) -> None:
    """Test all variants, print tables and a verdict, and write the files."""
    from introspection_lit.cli import attach
    from introspection_lit.tools import ladder  # takes seconds to import: not for --help

    options, folder = steps.options, steps.folder
    settings = {
        "model.adapter": options.adapter,
        "model.threshold": options.threshold,
        "data.train_vectors": options.n_train_vectors,
    }
    fixed = [*pipeline.training_options(options.adapter, steps), *pipeline.as_arguments(settings)]
    arguments = steps.command(["--data.bank", str(steps.bank)], fixed)
    print(pipeline.equivalent_command("test", arguments))
    cli = attach(arguments)
    ways = {variant.name: rows for variant, rows in ladder.evaluate_variants(cli, options.adapter is not None)}
    if not cli.trainer.is_global_zero:
        return
    ways = {name: ways[name] for name in ("untrained", "with info", "adapter") if name in ways}
    verdicts = [rungs.ladder_verdict(name, ladder.only_rungs(rows)) for name, rows in ways.items()]
    verdicts += [f"adapter: {rungs.control_verdict(ways['adapter'])}"] if "adapter" in ways else []
    origin = {**provenance(), **cli.model.identity(), "adapter": options.adapter, **protocol(cli.datamodule.run)}
    results = {**origin, "verdicts": verdicts, "ways": ways}
    write_file(folder / "ladder.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    save_figure(folder / "ladder.png", ladder.draw_ladder(ways))
    console = PlainConsole()
    console.print(ladder.rung_table(ways))
    console.print(ladder.answer_table(ways))
    limits = f"AUROC >= {rungs.LOWEST_AUROC}, TPR >= {rungs.LOWEST_TPR}, FPR <= {rungs.HIGHEST_FPR}"
    console.print(f"✗: the rung does not hold, which takes {limits}")
    for line in verdicts:
        console.print(line, highlight=False)
    console.print(f"details: {folder / 'ladder.json'}, ladder.png", soft_wrap=True)


if __name__ == "__main__":
    main()
