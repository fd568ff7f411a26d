"""GGUF files: whole, in parts that are all there, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_example import Arrays, write_gguf
from tiny_models import SIZES
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig

from introspection_lit.models.base_identity import base_hashes
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.gguf_files import unpack_gguf
from introspection_lit.models.loading import load_model, load_tokenizer
from introspection_lit.utils.errors import ConfigurationError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for what is unpacked."""
    monkeypatch.setenv("INTROSPECTION_LIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_whole_file_is_the_model(model: Path, tmp_path: Path) -> None:
    """Logits and tokens are those of the folder that the file was made of."""
    unpacked = BaseModel(str(write_gguf(tmp_path / "whole.gguf", model)))
    ids = load_tokenizer(BaseModel(str(model)))("What is this?", return_tensors="pt")["input_ids"]
    assert torch.equal(load_tokenizer(unpacked)("What is this?", return_tensors="pt")["input_ids"], ids)
    with torch.no_grad():
        torch.testing.assert_close(load_model(unpacked)(ids).logits, load_model(BaseModel(str(model)))(ids).logits)


def test_a_file_is_checked_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was unpacked is used as it is: reading the header of a file of 98 MB takes seconds, at each of three places."""
    file = write_gguf(tmp_path / "whole.gguf", model)
    folder = unpack_gguf(file)
    monkeypatch.setattr("introspection_lit.models.gguf_files._reader", lambda _: pytest.fail("the header was read again"))
    assert unpack_gguf(file) == folder


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda tensors: {name: each for name, each in tensors.items() if not name.startswith("blk.3.")},
            r"12 missing \(model\.layers\.3\.",
        ),
        (lambda tensors: tensors | {"rope_freqs.weight": np.ones(4, "float32")}, r"1 unexpected \(rope_freqs\)"),
        (lambda tensors: tensors | {"output_norm.weight": np.ones(4, "float32")}, r"model\.norm\.weight \[4\] instead of"),
    ],
)
def test_tensors_that_are_not_the_models(
    edit: Callable[[Arrays], Arrays], said: str, model: Path, tmp_path: Path, cache: Path
) -> None:
    """The error names some of them; nothing stays in the cache that a second run would take for the model."""
    file = write_gguf(tmp_path / "changed.gguf", model, edit)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=said):
            unpack_gguf(file)
    assert list(cache.iterdir()) == []


def test_experts_of_which_one_half_is_there(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Gate and up of all experts are one tensor in transformers, which leaves zeros where one of them is missing."""
    sizes = SIZES | {"num_hidden_layers": 1, "num_experts": 128, "moe_intermediate_size": 768}  # no other width is read
    config = Qwen3MoeConfig(**sizes, vocab_size=len(tokenizer), pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder := tmp_path / "experts")
    tokenizer.save_pretrained(folder)
    unpack_gguf(write_gguf(tmp_path / "whole.gguf", folder, architecture="qwen3moe"))
    half = write_gguf(
        tmp_path / "half.gguf",
        folder,
        lambda tensors: {name: each for name, each in tensors.items() if name != "blk.0.ffn_up_exps.weight"},
        architecture="qwen3moe",
    )
    with pytest.raises(ConfigurationError, match=r"1 missing \(blk\.0\.ffn_up_exps\)"):
        unpack_gguf(half)


def split(model: Path, folder: Path, count: int = 3) -> list[Path]:
    """A model in parts, as llama.cpp splits them: the first has the header, the others tensors alone."""
    files = [folder / f"model-{number + 1:05d}-of-{count:05d}.gguf" for number in range(count)]
    weights: Arrays = {}

    def keep(tensors: Arrays) -> Arrays:
        weights.update(tensors)
        return {name: tensors[name] for name in sorted(tensors)[::count]}

    write_gguf(files[0], model, keep, part=(0, count))
    for number in range(1, count):
        writer = gguf.GGUFWriter(files[number], "qwen2")
        writer.kv_data[0].clear()
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        for name in sorted(weights)[number::count]:
            writer.add_tensor(name, weights[name])
        for write in (
            writer.write_header_to_file,
            writer.write_kv_data_to_file,
            writer.write_tensors_to_file,
            writer.close,
        ):
            write()
    return files


@pytest.mark.parametrize("given", [0, 2])
def test_parts_are_read_as_one_model(given: int, model: Path, tmp_path: Path, cache: Path) -> None:
    """By the name of any of them: weights and tokens are those of the whole, and one folder is kept."""
    files = split(model, tmp_path)
    joined, whole = BaseModel(str(files[given])), BaseModel(str(write_gguf(tmp_path / "whole.gguf", model)))
    models = [load_model(base).state_dict() for base in (joined, whole)]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])
    tokenizers = [load_tokenizer(base) for base in (joined, whole)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert not list(cache.rglob("*.gguf"))
    assert unpack_gguf(files[1]) == unpack_gguf(files[0])
    assert base_hashes(BaseModel(str(files[1]))) == base_hashes(BaseModel(str(files[0])))


def test_parts_that_are_no_whole_are_refused_before_a_tensor_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is missing, by its name; one with another's name; one of another model; one without its name."""
    monkeypatch.setattr("gguf.dequantize", lambda *_: pytest.fail("a tensor was read"))
    monkeypatch.setattr("introspection_lit.models.gguf_files._join", lambda *_: pytest.fail("a tensor was read"))
    files = split(model, tmp_path)
    second = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(ConfigurationError, match=r"3 GGUF files, of which 1 are not beside it: model-00002-of-00003\.gguf"):
        unpack_gguf(files[0])
    files[1].write_bytes(files[2].read_bytes())
    with pytest.raises(ConfigurationError, match=r"model-00002-of-00003\.gguf says that it is part 3"):
        unpack_gguf(files[0])
    (tmp_path / "renamed.gguf").write_bytes(second)
    with pytest.raises(ConfigurationError, match=r"renamed\.gguf says that it is part 2 of a model in 3"):
        unpack_gguf(tmp_path / "renamed.gguf")


def test_a_part_without_a_header(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut by bytes, or without what a model's header has; neither is read as a whole."""
    whole = write_gguf(tmp_path / "whole.gguf", model).read_bytes()
    cut = tmp_path / "rest.gguf"
    cut.write_bytes(whole[len(whole) // 2 :])
    monkeypatch.setattr("introspection_lit.models.gguf_files._reader", lambda _: pytest.fail("it was read"))
    with pytest.raises(ConfigurationError, match="it has no GGUF header"):
        unpack_gguf(cut)
    monkeypatch.undo()
    writer = gguf.GGUFWriter(bare := tmp_path / "bare.gguf", "qwen2")
    writer.kv_data[0].clear()
    writer.add_tensor("blk.3.attn_q.weight", np.ones(4, "float32"))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    with pytest.raises(ConfigurationError, match=r"no general\.architecture"):
        unpack_gguf(bare)
