"""The exported adapter as people use it: plain PEFT, conversation and question in one pass, equals the protocol."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

from introspection_lit import Detector, Steering
from introspection_lit.cli import main
from introspection_lit.contexts.context import BUILTIN, Context, Message
from introspection_lit.contexts.conversations import Phrasing, encode
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_model, load_tokenizer
from introspection_lit.steering.intervention import Intervention, steer
from introspection_lit.steering.prefill import pad, position_ids, steered_cache
from introspection_lit.tasks.invocation import invocation_tokens
from introspection_lit.tasks.questions import QUESTION, builtin_questions
from introspection_lit.tasks.task import with_lead_in
from introspection_lit.training.callbacks import adapter_export
from introspection_lit.utils.errors import ConfigurationError

CONFIG = str(Path(__file__).parents[1] / "conf/tiny.yaml")
PHRASING, LEAD_IN = Phrasing(), "Introspection query:"
ASKED = builtin_questions([QUESTION], PHRASING.answers)[0]
SETS = ["--data.test_trials", "{heldout: 8, as_exported: 40}", "--evidence.enabled", "true"]
CHEAP = [*SETS, "--evidence.probe_trials", "0", "--evidence.lens_trials", "0", "--evidence.texts", "0"]


def some(n: int) -> list[Context]:
    """A few built-in contexts of different lengths."""
    return [context for context in load_contexts(BUILTIN) if context.turns[0].role != "system"][::97][:n]


def after(contexts: list[Context], *questions: str) -> list[tuple[Context, str | None]]:
    """Each question after each context."""
    return [(context, question) for context in contexts for question in questions]


@pytest.fixture(
    params=[pytest.param("qwen2"), *(pytest.param(f, marks=pytest.mark.thorough) for f in FAMILIES if f != "qwen2")]
)
def exported(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path], tmp_path: Path) -> tuple[Any, ...]:
    """A family's model with an adapter that acts, its tokenizer, and a plain PEFT model of the exported folder."""
    source = tiny_folder(request.param)
    tokenizer = load_tokenizer(BaseModel(str(source)))
    ours = add_lora(load_model(BaseModel(str(source))), Lora()).eval()
    torch.manual_seed(1)
    for name, parameter in ours.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    config = copy.copy(ours.peft_config["default"])
    config.alora_invocation_tokens = invocation_tokens(
        tokenizer, after(some(4), with_lead_in(LEAD_IN, ASKED)), LEAD_IN, PHRASING
    )
    ours.peft_config["default"], kept = config, ours.peft_config["default"]
    ours.save_pretrained(tmp_path / "adapter")
    ours.peft_config["default"] = kept
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), tmp_path / "adapter"
    )
    return ours, tokenizer, plain.eval()


def protocol(
    model: Any, rows: list[tuple[list[int], list[int]]], scale: torch.Tensor, direction: torch.Tensor
) -> torch.Tensor:
    """Logits at the answers, ``(rows, vocabulary)``: the steered prefill, then the question pass; each row on its own."""
    layers, logits = find_decoder_layers(model), []
    for number, (context, question) in enumerate(rows):
        ids, mask = pad([context], 0, "left")
        added = Intervention(direction[[number]], scale[[number]], mask.bool())
        cache = steered_cache(model, model, layers, ids, mask, added)
        with torch.no_grad():
            logits.append(model(input_ids=torch.tensor([question]), past_key_values=cache).logits[0, -1])
    return torch.stack(logits)


@pytest.mark.parametrize("steered", [False, True], ids=["clean", "steered"])
def test_one_plain_pass_equals_the_protocol(exported: tuple[Any, ...], steered: bool) -> None:
    """Alone, padded on either side, and through generate; the adapter is off before the question and on from its turn."""
    ours, tokenizer, plain = exported
    asked = with_lead_in(LEAD_IN, ASKED)
    encoded = [encode(tokenizer, context, asked, PHRASING) for context in some(3)]
    rows = [(one.context_ids, one.question_ids) for one in encoded]
    layers = find_decoder_layers(plain)
    torch.manual_seed(2)
    direction = torch.nn.functional.normalize(torch.randn(3, 1, ours.config.hidden_size), dim=-1)
    scale = torch.zeros(3, len(layers))
    if steered:
        scale[:, 1:3] = torch.tensor([[3.0], [5.0], [2.0]])
    expected = protocol(ours, rows, scale, direction)
    for side in ("left", "right"):
        ids, mask = pad([context + question for context, question in rows], tokenizer.pad_token_id or 0, side)
        places = torch.zeros_like(mask, dtype=torch.bool)
        for row, (context, question) in enumerate(rows):
            start = ids.shape[1] - len(context) - len(question) if side == "left" else 0
            places[row, start : start + len(context)] = True
        last = ids.shape[1] - 1 if side == "left" else mask.sum(1) - 1
        added = Intervention(direction, scale, places)
        with torch.no_grad(), steer(layers, added):
            logits = plain(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).logits
        torch.testing.assert_close(logits[torch.arange(3), last], expected, atol=1e-4, rtol=0)
        if side == "left":  # the one that generate takes
            made = generated(plain, layers, added, ids, mask)
            torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    with torch.no_grad():  # the base model alone says something else
        base = ours.get_base_model()
        with ours.disable_adapter():
            without = base(torch.tensor([rows[0][0] + rows[0][1]])).logits[0, -1]
    assert (without - expected[0]).abs().max() > 0.1


def generated(model: Any, layers: list, added: Intervention, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The logits of the first token that ``generate`` makes, steered while it reads its input."""
    with torch.no_grad(), steer(layers, added):
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    first: torch.Tensor = made.logits[0]
    return first


def test_other_text_is_read_by_the_base_model(exported: tuple[Any, ...]) -> None:
    """Without the lead-in the plain model equals the base to the bit, whatever is asked, and continues text as it does."""
    ours, tokenizer, plain = exported
    ids = torch.tensor([encode(tokenizer, some(1)[0], "What is the capital of France?", PHRASING).context_ids])
    with torch.no_grad(), ours.disable_adapter():
        base = ours(input_ids=ids).logits
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, base)
    with ours.disable_adapter():
        expected = ours.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(plain.generate(input_ids=ids, max_new_tokens=6, do_sample=False), expected)


def test_invocation_is_more_than_the_mark_of_a_turn(tiny: Path) -> None:
    """With a lead-in it ends where wordings differ; of a single question it is the question; unlike questions have none."""
    tokenizer = load_tokenizer(BaseModel(str(tiny)))
    tokens = invocation_tokens(tokenizer, after(some(4), with_lead_in(LEAD_IN, ASKED)), LEAD_IN, PHRASING)
    assert tokenizer.decode(tokens) == f"<|im_start|>user\n{LEAD_IN}"
    single = tokenizer.decode(invocation_tokens(tokenizer, after(some(4), ASKED), "", PHRASING))
    assert single == f"<|im_start|>user\n{ASKED}".removesuffix(".")
    alike = [ASKED, ASKED.replace("Answer", "Say")]
    assert tokenizer.decode(invocation_tokens(tokenizer, after(some(4), *alike), "", PHRASING)).endswith(
        ASKED.split(" Answer")[0]
    )
    with pytest.raises(ConfigurationError, match=r"no beginning of their own.*data\.lead_in"):
        invocation_tokens(tokenizer, after(some(4), ASKED, "Is it so?"), "", PHRASING)
    holding = Context("chat", (*some(1)[0].turns, *Context("chat", some(1)[0].turns).turns))
    asking = Context("chat", (holding.turns[0]._replace(content=f"{LEAD_IN} what is it?"), *holding.turns[1:2]))
    with pytest.raises(ConfigurationError, match="a context holds"):
        invocation_tokens(tokenizer, after([asking], with_lead_in(LEAD_IN, ASKED)), LEAD_IN, PHRASING)


def test_conversations_with_questions_of_their_own(tiny: Path) -> None:
    """Beside others they share nothing; alone, one question is the invocation, whatever stands before it."""
    tokenizer = load_tokenizer(BaseModel(str(tiny)))
    own = [
        replace(context, question_turns=(Message("user", "Has anything been added? yes or no?"),)) for context in some(3)
    ]
    with pytest.raises(ConfigurationError, match="no beginning of their own"):
        invocation_tokens(tokenizer, [(own[0], None), *after(some(2), ASKED)], "", PHRASING)
    alone = tokenizer.decode(invocation_tokens(tokenizer, [(context, None) for context in own], "", PHRASING))
    assert alone.startswith("<|im_start|>user\nHas anything been added? yes or no?")


def test_a_failing_check_loses_no_training(
    tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT fails on some layers: the export is then always on, complete, and says why."""

    def fail(*_: Any) -> None:
        raise IndexError("the shape of the mask")

    monkeypatch.setattr(adapter_export, "check_export", fail)
    common = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, "--trainer.max_epochs", "1"]
    with pytest.warns(UserWarning, match="acts on everything it reads"):
        main(["fit", *common, f"--trainer.logger.init_args.save_dir={tmp_path}"])
    folder = tmp_path / "default" / "version_0" / "adapter"
    assert json.loads((folder / "adapter_config.json").read_text())["alora_invocation_tokens"] is None
    assert "IndexError: the shape of the mask" in (folder / "README.md").read_text()
    Detector.from_pretrained(folder)


@pytest.fixture(scope="module")
def run(tiny: Path, some_contexts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit with the test after it."""
    root = tmp_path_factory.mktemp("exported")
    common = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts]
    main(["fit", *common, "--test_after_fit", "true", f"--trainer.logger.init_args.save_dir={root}", *CHEAP])
    return root / "default" / "version_0"


def result(folder: Path) -> dict[str, Any]:
    """What a test says about the exported adapter."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())["evidence"]["as_exported"]
    return found


def test_the_test_set_compares_both_roads(run: Path) -> None:
    """The same trials, rates and score; and every row of the file has both."""
    found = result(run)
    assert found["largest_difference"] < 1e-4
    assert (found["n"], found["decided_differently"]) == (40, 0)
    assert found["protocol"] == found["exported"]
    rows = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    both = [row["scores"] for row in rows if row["split"] == "as_exported"]
    assert len(both) == 40
    assert all(row["as exported"] == pytest.approx(row["adapter"], abs=1e-4) for row in both)
    assert not any("as exported" in row["scores"] for row in rows if row["split"] != "as_exported")
    page = (run / "report.html").read_text()
    assert "The exported adapter does what the table says" in page
    assert "as exported: plain PEFT, one pass" in page


@pytest.fixture
def again(tiny: Path, some_contexts: list[str], run: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Tests the run, or an adapter, in a folder of its own."""

    def test(*options: str) -> dict[str, Any]:
        bank = ["--data.bank", str(run / "vectors.safetensors")]
        common = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, *bank, *CHEAP]
        cli = main(["test", *common, f"--trainer.logger.init_args.save_dir={tmp_path}", *options])
        return result(Path(cli.trainer.log_dir or ""))

    return test


def test_a_checkpoint_and_a_folder_give_the_same(run: Path, again: Callable[..., dict[str, Any]]) -> None:
    """The exported adapter is the best checkpoint; an activated folder is read by the protocol as any other."""
    best = next((run / "checkpoints").glob("best*.ckpt"))
    for options in (["--ckpt_path", str(best)], ["--model.adapter", str(run / "adapter")]):
        found, expected = again(*options), result(run)
        assert found["largest_difference"] < 1e-4
        assert found["exported"]["tpr"] == pytest.approx(expected["exported"]["tpr"])
        assert found["exported"]["auroc"] == pytest.approx(expected["exported"]["auroc"])


def test_a_folder_that_is_always_on_is_told(run: Path, again: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """An older export, without invocation tokens: it also reads the conversation, and that shows."""
    older = tmp_path / "older"
    older.mkdir()
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        (older / file).write_bytes((run / "adapter" / file).read_bytes())
    config = json.loads((older / "adapter_config.json").read_text())
    (older / "adapter_config.json").write_text(json.dumps(config | {"alora_invocation_tokens": None}))
    assert again("--model.adapter", str(older))["largest_difference"] > 0.01


def test_what_cannot_be_compared_is_said(run: Path, tiny: Path, some_contexts: list[str], tmp_path: Path) -> None:
    """Another checkpoint than the exported one, changed or refused files, none at all: the protocol alone, and why."""
    bank = ["--data.bank", str(run / "vectors.safetensors")]
    common = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, *bank, *CHEAP]
    best = next((run / "checkpoints").glob("best*.ckpt"))
    for name, change, why in (
        ("none", None, "is no exported adapter"),
        ("other", {}, "was exported at step"),
        ("refused", {"init_lora_weights": "pissa"}, "initialisation that leaves the base model"),
    ):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        checkpoint = shutil.copy(best if name != "other" else other_checkpoint(run, best), folder / "checkpoints")
        if change is not None:
            shutil.copytree(run / "adapter", folder / "adapter")
        if change:
            (folder / "adapter" / "introspection.json").unlink()
            settings = folder / "adapter" / "adapter_config.json"
            settings.write_text(json.dumps(json.loads(settings.read_text()) | change))
        logger = f"--trainer.logger.init_args.save_dir={folder}"
        with pytest.warns(UserWarning, match=f"scored by the protocol alone.*{why}"):
            cli = main(["test", *common, logger, "--ckpt_path", str(checkpoint)])
        results = json.loads((Path(cli.trainer.log_dir or "") / "results.json").read_text())
        assert results["evidence"]["as_exported"] is None
        assert results["sets"]["as_exported"]["n_steered"] == 20


def other_checkpoint(run: Path, best: Path) -> Path:
    """The best checkpoint as if it were of another step."""
    content = torch.load(best, weights_only=True) | {"global_step": 1}
    content.pop("sha256")
    made = run / "checkpoints" / "other.ckpt"
    torch.save(content, made)
    return made


def code_of(card: str) -> str:
    """The Python of a model card."""
    block = re.search(r"```python\n(.*?)```", card, re.S)
    assert block is not None
    return block[1]


def test_the_cards_lines_print_what_the_card_says(run: Path) -> None:
    """Run as they stand, but for the folder's name."""
    card = (run / "adapter" / "README.md").read_text()
    with redirect_stdout(StringIO()) as printed:
        exec(code_of(card).replace("this/folder", str(run / "adapter")), {})
    number = re.search(r"lines above print about (-?\d+\.\d\d)", card)
    assert number is not None
    assert float(printed.getvalue()) == pytest.approx(float(number[1]), abs=0.01)
    checked = json.loads((run / "adapter" / "introspection.json").read_text())["check"]
    assert checked["largest_difference"] < 1e-4
    assert abs(checked["example"] - checked["example_without"]) > 0.01


def test_detector_and_test_agree(run: Path) -> None:
    """On every trial of the set, clean or steered: the front door, the test's two passes and plain PEFT's one."""
    detector = Detector.from_pretrained(run / "adapter")
    assert detector.bank is not None
    lines = (run / "trials.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "as_exported"]
    contexts = {context.key: context for context in load_contexts(str(used_contexts(run)))}
    vectors = detector.bank.directions["heldout"]
    steering = [
        Steering(vectors[row["vector"]], row["strength"], tuple(row["band"])) if row["steered"] else None for row in rows
    ]
    answers = detector.ask_many([contexts[row["context_key"]] for row in rows], steering)
    assert len(rows) == 40
    for row, answer in zip(rows, answers, strict=True):
        assert answer.log_odds == pytest.approx(row["scores"]["as exported"], abs=1e-4)


def used_contexts(run: Path) -> Path:
    """The file of contexts in the run's configuration."""
    found = re.search(r"^  contexts: (.+)$", (run / "config.yaml").read_text(), re.M)
    assert found is not None
    return Path(found[1])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--data.prefill_adapter", "true"], "data.prefill_adapter"),
        (["--data.questions", '["Was it so? {yes} or {no}.", "Now, {yes} or {no}?"]'], "data.lead_in"),
    ],
)
def test_what_cannot_be_activated_says_so(
    tiny: Path, some_contexts: list[str], tmp_path: Path, options: list[str], why: str
) -> None:
    """The folder is a plain LoRA, and its card says why and what that means."""
    common = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, "--trainer.max_epochs", "1"]
    with pytest.warns(UserWarning, match="acts on everything it reads"):
        main(["fit", *common, f"--trainer.logger.init_args.save_dir={tmp_path}", *options])
    folder = tmp_path / "default" / "version_0" / "adapter"
    assert json.loads((folder / "adapter_config.json").read_text())["alora_invocation_tokens"] is None
    description = json.loads((folder / "introspection.json").read_text())
    assert (description["invocation"], description["check"]) == (None, None)
    card = (folder / "README.md").read_text()
    assert why in card
    assert "acts on everything it reads" in card
