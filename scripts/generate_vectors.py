"""Step 1: make the vector bank of a model: random directions, concepts, and directions from files.

    python generate_vectors.py --n-random 200                    # 100 to train on and 100 held out, plus concepts
    python generate_vectors.py --model smollm2-135m --import their_vectors.gguf --export-as .gguf

Each split of random directions has a random stream of its own; 50 more are made for validation, which sets the threshold.
Concepts are extracted in two ways: as mean differences, centred over the concepts, and as first principal components of
contrastive pairs, for each layer. Prints lengths and cosines, and writes vectors.safetensors, vectors.json and vectors.png.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from introspection_lit.models.loading import load_config
from introspection_lit.steering import vector_files
from introspection_lit.steering.vector_bank import repeated
from introspection_lit.steering.vector_layouts import LAYOUTS
from introspection_lit.tools import option_types, pipeline, vector_report
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import save_figure, write_file
from introspection_lit.utils.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent


def main(args: list[str] | None = None) -> None:
    """Run the step.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.
    """
    parser = pipeline.make_parser(__doc__, ROOT)
    parser.add_argument(
        "--n-random", type=option_types.positive, default=200, help="half to train on, half held out (default: %(default)s)"
    )
    parser.add_argument("--concepts", nargs="+", help="words or phrases, at least three (default: the 26 built-in ones)")
    parser.add_argument(
        "--import", dest="imports", nargs="+", type=Path, default=[], help=".gguf, .pt, .safetensors, .npy files"
    )
    what = (
        "what rows of tensors (n, hidden) in --import are: directions for all layers, or the layers of one direction, after"
    )
    parser.add_argument(
        "--layout", choices=("auto", *LAYOUTS), default="auto", help=f"{what} one for the embeddings with layers+1"
    )
    parser.add_argument(
        "--export-as", choices=vector_files.FORMATS, help="write each concept as a file of this format, too"
    )
    pipeline.guarded(lambda: generate(pipeline.parse(parser, args, "vectors")))


def generate(steps: pipeline.Steps) -> None:
    """Make the bank, save it, and print tables of its directions."""
    from introspection_lit.cli import attach  # takes seconds to import: not for --help

    options, folder = steps.options, steps.folder
    if options.n_random % 2:
        raise ConfigurationError([f"--n-random: got {options.n_random}. Expected an even number: half is held out."])
    pipeline.writable(steps.bank)
    half = options.n_random // 2
    settings = {
        "train_vectors": half,
        "heldout_vectors": half,
        "concepts": options.concepts,
        "test_trials": {"concept_pca": 2},
    }
    arguments = pipeline.as_arguments({f"data.{name}": value for name, value in settings.items()})
    cli = attach(steps.command(fixed=[*arguments, "--trainer.logger", "false"]))
    try:
        config = load_config(cli.model.base)
    except ValueError as error:
        raise ConfigurationError([str(error)]) from error
    imported: dict[str, torch.Tensor] = {}
    for path in options.imports:
        more = vector_files.read_directions(path, config.num_hidden_layers, config.hidden_size, options.layout)
        if twice := sorted(set(more) & set(imported)):
            raise ConfigurationError([f"--import: {twice} are in {path} and in another file. Rename one of the files."])
        imported |= more
    if imported and (copies := repeated(vector_files.scale_to_unit(imported)[0])):
        first, again = (list(imported)[number] for number in copies)
        raise ConfigurationError(
            [f"--import: {first!r} and {again!r} are the same direction, up to its sign. Leave one out."]
        )
    cli.datamodule.setup("predict")
    bank = cli.datamodule.bank
    if imported:
        bank.directions["imported"], bank.lengths["imported"] = vector_files.scale_to_unit(imported)
        bank.names["imported"] = list(imported)
    if bank.leaks():
        raise ConfigurationError([f"--import: {leak}: what is tested would be trained on." for leak in bank.leaks()])
    bank.save(steps.bank)
    description = {**provenance(), **bank.metadata, **vector_report.describe_bank(bank)}
    write_file(folder / "vectors.json", json.dumps(description, indent=1) + "\n")
    save_figure(folder / "vectors.png", vector_report.draw_bank(bank))
    if options.export_as:
        for name, direction in zip(bank.names["concept"], bank.directions["concept"], strict=True):
            plain = re.sub(r"[^\w-]+", "-", name)
            path = folder / "exported" / f"{plain}{options.export_as}"
            vector_files.write_direction(path, direction, config.model_type)
    console = PlainConsole()
    for table in vector_report.bank_tables(description):
        console.print(table)
    console.print(
        "length: of the concept's mean difference, middle layer, as a share of the residual norm. cos: to the nearest "
        "other concept. other: to the same concept by the other method. random: largest |cos| to a random direction."
    )
    norms, off = description["residual_norms"], max(split["off_unit"] for split in description["splits"].values())
    console.print(f"residual norms: {min(norms):.0f} to {max(norms):.0f}; every direction has length 1 to within {off:.0e}")
    console.print(f"bank: {steps.bank}", soft_wrap=True)


if __name__ == "__main__":
    main()
