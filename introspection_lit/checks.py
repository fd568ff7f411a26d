"""Finds everything that is wrong with a configuration before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from introspection_lit.checkpoint_contents import content_problems, finite
from introspection_lit.checkpoint_files import read_checkpoint
from introspection_lit.contexts import shared_messages
from introspection_lit.conversations import repeated_questions
from introspection_lit.errors import ConfigurationError
from introspection_lit.model import SAFE_PRECISIONS, BaseModel, Lora
from introspection_lit.steering import BAND_NAMES, check_band, named_band
from introspection_lit.trials import LEAST_STRENGTH, MOST_STRENGTH, TEST_SETS, Bands

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from transformers import PretrainedConfig

    from introspection_lit.contexts import Context
    from introspection_lit.vectors import VectorBank

T = TypeVar("T")

# More vectors, trials, or rows of a batch than any run has.
MOST, MOST_ROWS, MOST_WORKERS, MOST_RANK = 10_000_000, 100_000, 256, 65_536
# What a checkpoint can be chosen by.
FIGURES = ("auroc", "accuracy", "tpr", "fpr", "mass", "loss")
OTHERS = ("validation/selection", "step", "epoch")
MONITORED = (*OTHERS, *(f"{split}/{name}" for split in ("validation", "train") for name in FIGURES))

SHARDED_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


class Problems:
    """Collects problems, so that a user sees them all at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, problems: Iterable[str | None]) -> None:
        """Add those that are not None."""
        self.found += [problem for problem in problems if problem is not None]

    def attempt(self, action: Callable[..., T], *args: Any) -> T | None:
        """Run something that may raise; its problems are added and None comes back."""
        try:
            return action(*args)
        except ConfigurationError as error:
            self.found += error.problems
        except ValueError as error:
            self.found.append(str(error))
        return None

    def raise_if_any(self) -> None:
        """Raise them all.

        Raises:
            ConfigurationError: There is at least one.
        """
        if self.found:
            raise ConfigurationError(self.found)


def resolve_bands(bands: Sequence[str | Sequence[int]], n_layers: int, option: str = "bands") -> Bands:
    """Turn the bands of a configuration into layer numbers.

    Args:
        bands: ``early``, ``middle``, ``late``, ``all``, or [first, last], both inclusive.
        n_layers: Decoder layers of the model.
        option: The option they come from, for messages.

    Raises:
        ConfigurationError: A band is no band, outside the model, or cannot reach the cache.
    """
    problems = [] if bands else [f"data.{option}: got none. Expected at least one, such as 'middle' or [21, 42]."]
    resolved = []
    for band in bands:
        if isinstance(band, str):
            if band not in BAND_NAMES:
                problems.append(f"data.{option}: got {band!r}. Expected one of {', '.join(BAND_NAMES)}, or [first, last].")
                continue
            if n_layers < 4:
                problems.append(f"data.{option}: {band!r} needs a model of at least 4 layers; it has {n_layers}.")
                continue
            resolved.append(named_band(band, n_layers))
        elif len(band) != 2:
            problems.append(f"data.{option}: got {list(band)}. Expected [first, last], both inclusive.")
        else:
            first_last = (int(band[0]), int(band[1]))
            problem = check_band(first_last, n_layers)
            if problem:
                problems.append(f"data.{option}: {problem}")
            resolved.append(first_last)
    if problems:
        raise ConfigurationError(problems)
    return tuple(resolved)


def strength_problems(option: str, strengths: Sequence[float]) -> list[str]:
    """Check a range of strengths: 0 < lowest <= highest."""
    low, high = strengths
    if not LEAST_STRENGTH <= low <= high <= MOST_STRENGTH:
        return [
            f"data.{option}: got {[low, high]}. Expected [lowest, highest] with 0 < lowest <= highest: a strength of "
            f"zero, or below {LEAST_STRENGTH:g}, is a clean trial with the wrong label, and one above {MOST_STRENGTH:g} "
            "leaves nothing of the text."
        ]
    return []


def trainer_problems(trainer: Trainer) -> list[str]:
    """Check what Lightning takes without a word, and fails at or leaves out in the middle of a run."""
    clip, interval = trainer.gradient_clip_val, getattr(trainer, "val_check_interval", None)
    every = trainer.check_val_every_n_epoch
    problems = []
    if trainer.accumulate_grad_batches < 1:
        problems.append(f"trainer.accumulate_grad_batches: got {trainer.accumulate_grad_batches}. Expected at least 1.")
    if clip is not None and not 0 <= clip < float("inf"):
        problems.append(f"trainer.gradient_clip_val: got {clip}. Expected a number, at least 0 (0: no clipping).")
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        problems.append(
            "trainer.val_check_interval: got a time. Expected batches, or a part of an epoch: by the clock, no two runs "
            "would be alike, and processes would not agree."
        )
    elif interval is not None and not interval > 0:
        problems.append(f"trainer.val_check_interval: got {interval}. Expected a number above 0.")
    if every is not None and every < 1:
        problems.append(f"trainer.check_val_every_n_epoch: got {every}. Expected at least 1.")
    logged: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if logged < 0:
        problems.append(f"trainer.log_every_n_steps: got {logged}. Expected 0 or more.")
    if trainer.num_sanity_val_steps < 0:
        given = trainer.num_sanity_val_steps
        problems.append(f"trainer.num_sanity_val_steps: got {given}. Expected 0 or more, or -1 for all of validation.")
    if trainer.overfit_batches > 0:  # type: ignore[attr-defined]
        problems.append("trainer.overfit_batches: trials are drawn anew, there is no set to repeat. Leave it out.")
    if trainer.limit_train_batches == 0:
        problems.append("trainer.limit_train_batches: got 0, so nothing would be trained. Leave it out.")
    if trainer.state.fn == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        monitored = [getattr(saver, "monitor", None) for saver in trainer.checkpoint_callbacks]
        unknown = [name for name in monitored if name is not None and name not in MONITORED]
        problems += [f"checkpoint.monitor: got {name!r}. Expected one of {', '.join(MONITORED)}." for name in unknown]
        if trainer.limit_val_batches == 0 and any(str(name).startswith("validation") for name in monitored):
            problems.append("trainer.limit_val_batches: got 0, so no threshold and no best checkpoint would be found.")
    return problems


def count_problems(counts: dict[str, int], sizes: dict[str, int], test_sets: Sequence[str]) -> list[str]:
    """Check the numbers of vectors, trials and rows.

    Args:
        counts: Numbers that must be at least 1, by option.
        sizes: Numbers of trials or rows that must be even and at least 2, by option.
        test_sets: Names of test sets.
    """
    problems = [f"data.{option}: got {count}. Expected at least 1." for option, count in counts.items() if count < 1]
    problems += [
        f"data.{option}: got {count}. Expected at most {MOST}: more could not be held in memory, or not be run."
        for option, count in (counts | sizes).items()
        if count > MOST
    ]
    if not test_sets:
        problems.append(f"data.test_trials: got none. Expected some of: {', '.join(TEST_SETS)}.")
    problems += [
        f"data.{option}: got {size}. Expected an even number, at least 2: half of every batch is steered."
        for option, size in sizes.items()
        if size < 2 or size % 2
    ]
    problems += [
        f"data.test_trials: {name!r} is no test set. Expected some of: {', '.join(TEST_SETS)}."
        for name in test_sets
        if name not in TEST_SETS
    ]
    return problems


def split_problems(splits: dict[str, list[Context]], needed: Iterable[str], left_out: int) -> list[str]:
    """Check that no text is shared by two splits and that none that is needed is empty.

    Args:
        splits: Contexts by split.
        needed: The context splits that trials will be drawn from.
        left_out: How many contexts were left out before.
    """
    problems = [
        f"data.contexts: the user message {user[:60]!r} is in more than one split: what is tested has been trained on."
        for user in shared_messages(splits)[:5]
    ]
    sizes = ", ".join(f"{name} {len(contexts)}" for name, contexts in splits.items())
    for name in sorted(set(needed)):
        if not splits[name]:
            hint = "Name some kinds in data.test_kinds" if name == "newkinds" else "Give more contexts of each kind"
            problems.append(
                f"data.contexts: no context is left for {name!r} (there are: {sizes}; {left_out} were left out: longer than"
                f" data.max_context_tokens or with control tokens). {hint}, or raise data.max_context_tokens."
            )
    return problems


def question_problems(train: Sequence[str], heldout: Sequence[str], test_sets: Sequence[str]) -> list[str]:
    """Check that there are questions, and that held-out ones are not trained on."""
    problems = [] if train else ["data.questions: got none. Expected at least one question."]
    if not all(question.strip() for question in (*train, *heldout)):
        problems.append("data.questions, data.heldout_questions: got an empty question. Leave it out.")
    if "newquestions" in test_sets and not heldout:
        problems.append("data.heldout_questions: got none, but the test set 'newquestions' asks them. Give at least one.")
    return problems + heldout_problems(train, heldout)


def heldout_problems(train: Sequence[str], heldout: Sequence[str]) -> list[str]:
    """Check that no held-out question is trained on; ``train`` may include what conversations of the user's own ask."""
    return [
        f"data.heldout_questions: {question!r} is a question of the training too: what is tested has been trained on."
        for question in repeated_questions(train, heldout)
    ]


def bank_size_problems(bank: VectorBank, counts: dict[str, int | None]) -> list[str]:
    """Check that a given bank has as many vectors as are asked for, by split."""
    return [
        f"data.{split}_vectors: {count} asked for, but data.bank has {len(bank.directions.get(split, ()))}. Ask for "
        "fewer, or make a larger bank."
        for split, count in counts.items()
        if count is not None and count > len(bank.directions.get(split, ()))
    ]


def window_problems(context: int, question: int, config: PretrainedConfig) -> list[str]:
    """Check that the longest conversation fits into what the model can attend to.

    Args:
        context: Most tokens of a context.
        question: Tokens of the question.
        config: The model's configuration.
    """
    window = getattr(config, "max_position_embeddings", None)
    if window is None or context + question <= window:
        return []
    if question >= window:
        parts = "a question, with data.info before it and data.answer_prefix after it"
        return [f"data.questions, data.heldout_questions: {parts}, has {question} tokens; the model has {window}."]
    return [
        f"data.max_context_tokens: {context}, and {question} for the question, are more than the {window} positions of the "
        f"model. Expected at most {window - question}."
    ]


def run_folder_problems(folder: str | None, resuming: bool) -> list[str]:
    """Check that a new run does not land in the folder of an older one, whose results would then pass for its own.

    Args:
        folder: Where the run's files go.
        resuming: It goes on from a checkpoint.
    """
    if folder is None or resuming or not list(Path(folder).glob("checkpoints/*.ckpt")):
        return []
    return [
        f"trainer.logger: {folder} holds the checkpoints of another run. Leave the logger's version out, name another "
        "folder, or resume with ckpt_path."
    ]


def precision_problems(base: BaseModel, precision: str, sharded: bool = False) -> list[str]:
    """Check that the trainer's precision leaves packed NF4 bytes alone, and that FSDP can shard what there is.

    Args:
        base: The model.
        precision: The trainer's, such as ``bf16-mixed``.
        sharded: It is trained with FSDP.
    """
    if sharded and (problems := sharding_problems(base, precision)):
        return problems
    if base.quantization != "nf4" or base.quant_storage == "uint8":
        return []
    safe = SAFE_PRECISIONS[base.quant_storage]
    if precision in safe:
        return []
    return [
        f"base.quant_storage: {base.quant_storage!r} with trainer.precision {precision!r} would cast the packed NF4 bytes "
        f"and destroy the weights. Expected trainer.precision {' or '.join(safe)}, or base.quant_storage 'uint8'."
    ]


def sharding_problems(base: BaseModel, precision: str) -> list[str]:
    """Check that FSDP can shard a model: it puts all weights of a decoder layer into one tensor of a floating dtype.

    Args:
        base: The model.
        precision: The trainer's, such as ``bf16-mixed``.
    """
    problems = []
    if base.quantization == "int8":
        problems.append("base.quantization: FSDP cannot shard int8 weights. Use nf4 or none, or trainer.strategy ddp.")
    if base.quantization == "nf4" and base.quant_storage == "uint8":
        problems.append(
            "base.quant_storage: FSDP cannot shard uint8. Use bfloat16 with trainer.precision bf16-mixed or bf16-true, or "
            "float32 with 32-true."
        )
    elif base.quantization == "nf4" and base.quant_storage != base.dtype and precision != "bf16-true":
        problems.append(
            f"base.quant_storage: {base.quant_storage!r} differs from base.dtype {base.dtype!r}. FSDP shards a decoder "
            "layer's packed weights together with its norms: give both the same dtype."
        )
    if precision not in SHARDED_PRECISIONS:
        problems.append(
            f"trainer.precision: got {precision!r} with FSDP. Expected {', '.join(SHARDED_PRECISIONS)}: float16 would need "
            "a scaled loss."
        )
    return problems


def nf4_on_cpu_problems(base: BaseModel, config: PretrainedConfig, device: str) -> list[str]:
    """Check that bitsandbytes can dequantise the model on the CPU.

    Its CPU kernel (0.50.2) gives silently wrong weights, some 20 to 40 % off instead of 9, where a matrix's rows are not a
    multiple of the block of 64 weights.

    Args:
        base: The model asked for.
        config: Its configuration.
        device: Type of the device it will run on.
    """
    widths = {name: getattr(config, name, 0) for name in ("hidden_size", "intermediate_size")}
    odd = [f"{name} {width}" for name, width in widths.items() if width % 64]
    if base.quantization != "nf4" or device != "cpu" or not odd:
        return []
    return [
        f"base.quantization: nf4 on the CPU needs matrices with rows of a multiple of 64; the model has {', '.join(odd)}, "
        "and bitsandbytes would silently compute with wrong weights. Use quantization 'none' or a GPU."
    ]


def lora_problems(lora: Lora, n_layers: int) -> list[str]:
    """Check the adapter's settings against the model."""
    problems = []
    if not lora.target_modules:
        problems.append("model.lora.target_modules: got none. Expected names of linear modules, such as q_proj.")
    if lora.r < 1 or lora.alpha <= 0 or not 0 <= lora.dropout < 1:
        problems.append(
            f"model.lora: got r {lora.r}, alpha {lora.alpha}, dropout {lora.dropout}. Expected r >= 1, alpha > 0 and "
            "0 <= dropout < 1."
        )
    if lora.r > MOST_RANK:
        problems.append(f"model.lora.r: got {lora.r}. Expected at most {MOST_RANK}, which is more than any matrix has.")
    outside = [layer for layer in lora.layers if not 0 <= layer < n_layers]
    if outside:
        problems.append(f"model.lora.layers: {outside} are outside the model's layers 0..{n_layers - 1}.")
    return problems


def identity_problems(saved: dict[str, Any] | None, identity: dict[str, Any]) -> list[str]:
    """Check that a checkpoint belongs to the configuration it is loaded into.

    Args:
        saved: What the checkpoint says it belongs to; None or empty if it says nothing.
        identity: What the configuration says.
    """
    threshold = saved.get("threshold") if isinstance(saved, dict) else None
    if not isinstance(saved, dict) or isinstance(threshold, Tensor) or not finite(threshold):
        return ["ckpt_path: the file is a checkpoint, but not one of introspection_lit."]
    said = {name: repr(saved.get(name))[:300] for name in identity}
    return [
        f"ckpt_path: the checkpoint has {name} {said[name]}, the configuration {value!r}. Use the configuration "
        "saved beside the checkpoint (config.yaml)."
        for name, value in identity.items()
        if not _equal(saved.get(name), value)
    ]


def _equal(one: object, other: object) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, TypeError, ValueError):
        return False


def checkpoint_problems(
    path: str | None, identity: dict[str, Any], function: str = "test", loops: Mapping[str, Mapping[str, Any]] | None = None
) -> list[str]:
    """Check that the checkpoint that is to be loaded exists, can be read, fits, and holds what is needed.

    Args:
        path: What the command line names; None if nothing.
        identity: What the configuration says the checkpoint must belong to.
        function: What it is loaded for: fit, validate, test or predict.
        loops: The state of the trainer's own loops, by name: that of the checkpoint must be like it. None: of no trainer.
    """
    if path is None:
        return []
    try:
        checkpoint = read_checkpoint(path)
    except ConfigurationError as error:
        return error.problems
    except OSError as error:
        return [f"ckpt_path: {str(path)[:200]} cannot be read ({error.strerror})."]
    problems = identity_problems(checkpoint.get("introspection"), identity)
    return problems or ([] if loops is None else content_problems(checkpoint, function, loops))
