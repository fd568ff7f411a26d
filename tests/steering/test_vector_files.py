"""Directions from other projects' files: written by their own libraries, read by ours, and the other way round."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from introspection_lit.steering.extraction import contrast_component
from introspection_lit.steering.vector_files import FORMATS, read_directions, scale_to_unit, write_direction
from introspection_lit.steering.vector_layouts import Layout
from introspection_lit.utils.errors import ConfigurationError

LAYERS, HIDDEN = 6, 32


@pytest.fixture(scope="module")
def repeng() -> ModuleType:
    """Repeng 0.4, which names a type that numpy 2 has dropped and wants numpy 1 for no other reason."""
    np.float_ = np.float64  # type: ignore[attr-defined]
    import repeng

    return repeng


def rows(n: int = LAYERS) -> torch.Tensor:
    """Some numbers, ``(n, hidden)``."""
    return torch.randn(n, HIDDEN, generator=torch.Generator().manual_seed(0))


def test_control_vector_of_repeng_is_read(repeng: ModuleType, tmp_path: Path) -> None:
    """Written by repeng: layer i is layer i, and layer 0, which it leaves out, stays empty."""
    directions = {layer: rows()[layer].numpy() for layer in range(1, LAYERS)}
    repeng.ControlVector(model_type="qwen2", directions=directions).export_gguf(tmp_path / "bread.gguf")
    read = read_directions(tmp_path / "bread.gguf", LAYERS, HIDDEN)
    assert list(read) == ["bread"]
    torch.testing.assert_close(read["bread"][1:], rows()[1:])
    assert not read["bread"][0].any()
    scaled, lengths = scale_to_unit(read)
    torch.testing.assert_close(lengths[0, 1:], rows()[1:].norm(dim=-1))
    torch.testing.assert_close(scaled[0].norm(dim=-1), torch.tensor([0.0, 1, 1, 1, 1, 1]))


def test_repeng_reads_our_control_vectors(repeng: ModuleType, tmp_path: Path) -> None:
    """Written by us, read by repeng."""
    write_direction(tmp_path / "bread.gguf", rows(), "qwen2")
    read = repeng.ControlVector.import_gguf(tmp_path / "bread.gguf")
    assert read.model_type == "qwen2"
    assert sorted(read.directions) == list(range(1, LAYERS))
    assert all(np.array_equal(read.directions[layer], rows()[layer].numpy()) for layer in read.directions)


@pytest.mark.parametrize("suffix", FORMATS)
def test_round_trip(suffix: str, tmp_path: Path) -> None:
    """What is exported is what is imported, bit by bit; a control vector has no layer 0."""
    write_direction(tmp_path / f"cats{suffix}", rows(), "qwen2")
    read = read_directions(tmp_path / f"cats{suffix}", LAYERS, HIDDEN)["cats"]
    first = 1 if suffix == ".gguf" else 0
    assert torch.equal(read[first:], rows()[first:])
    assert [path.name for path in tmp_path.iterdir()] == [f"cats{suffix}"]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (torch.nn.Parameter(rows()[0]), ["file"]),  # one direction for every layer
        (rows(3), ["file-0", "file-1", "file-2"]),
        (rows()[None], ["file"]),
        ({"bread": rows()[0], "cats": rows()[1].half()}, ["bread", "cats"]),  # as published sets of concepts
        ({layer: rows()[layer] for layer in range(1, 6)}, ["file"]),  # by layer, as repeng keeps them in memory
        ({"bread": {1: rows()[1]}, "cats": {"2": rows()[2]}}, ["bread", "cats"]),
        ({1: {"bread": rows()[1]}, 2: {"bread": rows()[2], "cats": rows()[2]}}, ["bread", "cats"]),
    ],
)
def test_tensors_and_dicts(content: object, names: list[str], tmp_path: Path) -> None:
    """What people save with torch."""
    torch.save(content, tmp_path / "file.pt")
    read = read_directions(tmp_path / "file.pt", LAYERS, HIDDEN)
    assert list(read) == names
    assert all(direction.shape == (LAYERS, HIDDEN) and direction.dtype == torch.float32 for direction in read.values())


def test_safetensors_by_layer(tmp_path: Path) -> None:
    """A control vector's names in a safetensors file."""
    save_file({f"direction.{layer}": rows()[layer].clone() for layer in (2, 3)}, tmp_path / "file.safetensors")
    read = read_directions(tmp_path / "file.safetensors", LAYERS, HIDDEN)["file"]
    assert torch.equal(read[2:4], rows()[2:4])
    assert not read[[0, 1, 4, 5]].any()


class Payload:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rows(), "can mean 6 directions or one"),
        (torch.zeros(HIDDEN), "it is zero"),
        (torch.full((HIDDEN,), float("nan")), "not finite"),
        (torch.ones(HIDDEN + 1), r"has shape \(33,\). Expected \(32,\)"),
        ({9: torch.ones(HIDDEN)}, r"for the layers \[9\], which the model does not have"),
        ({1: torch.ones(HIDDEN - 1)}, r"has shape \(31,\). Expected \(32,\)"),
        (torch.ones(HIDDEN, dtype=torch.int64), "expected a plain tensor of floating-point numbers, got torch.int64"),
        ({1: torch.ones(HIDDEN, dtype=torch.bool)}, "got torch.bool"),
        ({1: torch.ones(4, 8)}, r"has shape \(4, 8\)"),
        ({1: torch.ones(HIDDEN), "1": torch.ones(HIDDEN)}, "a layer is there twice"),
        ({-1: torch.ones(HIDDEN), -2: torch.ones(HIDDEN)}, "negative layer numbers.*counted from 0"),
        ({"-1": torch.ones(HIDDEN)}, "negative layer numbers"),
        ({f"layer_{n}": torch.ones(HIDDEN) for n in range(7)}, r"layers \[6\].*--layout layers\+1"),
        (torch.full((HIDDEN,), 3e38), "not finite"),
        (torch.ones(HIDDEN).to_sparse(), "got torch.float32 .torch.sparse"),
        ({}, "holds no direction"),
        ({"bread": "text"}, "expected a tensor of floating-point numbers, got str"),
        ({1: "text"}, "got str"),
        ({"a": {"bread": torch.ones(HIDDEN)}, "b": {"bread": torch.ones(HIDDEN)}}, "two directions are called 'bread'"),
        (Payload(), "cannot be read as .pt.*never loaded"),
    ],
)
def test_bad_files_are_refused(content: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is named, and nothing in a file is run."""
    monkeypatch.chdir(tmp_path)
    torch.save(content, "file.pt")
    with pytest.raises(ConfigurationError, match=message):
        read_directions(Path("file.pt"), LAYERS, HIDDEN)
    assert not Path("ran").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A model's GGUF, a cut-off file, an unknown kind of file, no file."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("direction.1", np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "model.gguf").read_bytes()[:40])
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0")
    (tmp_path / "file.npz").write_bytes(b"")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\0")
    for name, message in (
        ("model.gguf", "not a 'controlvector'"),
        ("cut.gguf", "cannot be read as .gguf"),
        ("cut.safetensors", "cannot be read as .safetensors"),
        ("file.npz", "none of .gguf, .pt, .safetensors, .npy"),
        ("cut.npy", "cannot be read as .npy"),
        ("none.pt", "no such file"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            read_directions(tmp_path / name, LAYERS, HIDDEN)


def test_hidden_states_have_the_embeddings_first(tmp_path: Path) -> None:
    """One row more than layers, as tools for persona vectors write: one direction, and what was done is said."""
    torch.save(rows(LAYERS + 1), tmp_path / "one.pt")
    torch.save(rows(LAYERS + 1)[None].expand(2, -1, -1) * torch.tensor([1.0, 2.0])[:, None, None], tmp_path / "two.pt")
    for name, count in (("one", 1), ("two", 2)):
        with pytest.warns(UserWarning, match=r"a direction for each of the 6 layers, after a row for the embeddings"):
            read = read_directions(tmp_path / f"{name}.pt", LAYERS, HIDDEN)
        assert len(read) == count
        torch.testing.assert_close(next(iter(read.values())), rows(LAYERS + 1)[1:])


@pytest.mark.parametrize("more", [0, 1])
def test_layers_with_a_dimension_of_one_between(more: int, tmp_path: Path) -> None:
    """As (layers, 1, hidden): one direction; it was refused."""
    torch.save({"vector": rows(LAYERS + more)[:, None]}, tmp_path / "v.pt")
    with pytest.warns(UserWarning, match=r"\([67], 1, 32\) is read as a direction for each of the 6 layers"):
        read = read_directions(tmp_path / "v.pt", LAYERS, HIDDEN)
    assert torch.equal(read["vector"], rows(LAYERS + more)[more:])
    assert len(read_directions(tmp_path / "v.pt", LAYERS, HIDDEN, "directions")) == LAYERS + more


@pytest.mark.parametrize("prefix", ["layer_", "layer", "Layer-", "layers.", "model.layers."])
def test_keys_that_name_layers(prefix: str, tmp_path: Path) -> None:
    """One direction, not one for each key; with ``layers+1`` the first is that of the embeddings."""
    torch.save({f"{prefix}{layer}": rows()[layer] for layer in range(LAYERS)}, tmp_path / "v.pt")
    assert torch.equal(read_directions(tmp_path / "v.pt", LAYERS, HIDDEN)["v"], rows())
    shifted = read_directions(tmp_path / "v.pt", LAYERS, HIDDEN, "layers+1")["v"]
    assert torch.equal(shifted[:-1], rows()[1:])
    assert not shifted[-1].any()


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((LAYERS, HIDDEN), "directions", LAYERS),
        ((LAYERS, HIDDEN), "layers", 1),
        ((LAYERS + 1, HIDDEN), "directions", LAYERS + 1),
        ((LAYERS + 1, HIDDEN), "layers+1", 1),
        ((2, LAYERS, HIDDEN), "layers", 2),
        ((2, LAYERS + 1, HIDDEN), "layers+1", 2),
        ((2, LAYERS, HIDDEN), "directions", 2),
        ((3, HIDDEN), "layers", r"shape \(3, 32\). Expected \(6, 32\) or \(n, 6, 32\) with --layout layers"),
        ((HIDDEN,), "layers+1", r"shape \(32,\). Expected \(7, 32\)"),
        ((2, LAYERS + 1, HIDDEN), "directions", r"shape \(2, 7, 32\)"),
    ],
)
def test_what_is_said_about_a_file_decides(
    shape: tuple[int, ...], layout: Layout, expected: int | str, tmp_path: Path
) -> None:
    """Without a warning; a shape that does not fit is refused."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    torch.save(numbers, tmp_path / "v.pt")
    if isinstance(expected, str):
        with pytest.raises(ConfigurationError, match=expected):
            read_directions(tmp_path / "v.pt", LAYERS, HIDDEN, layout)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_directions(tmp_path / "v.pt", LAYERS, HIDDEN, layout)
    assert len(read) == expected
    first = next(iter(read.values()))
    assert bool((first == first[0]).all()) == (layout == "directions" and len(shape) == 2)


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", "<f8"])
def test_numpy_files(kind: str, tmp_path: Path) -> None:
    """Arrays in either order of bytes; whole numbers and objects are none."""
    np.save(tmp_path / "v.npy", rows()[0].numpy().astype(kind))
    read = read_directions(tmp_path / "v.npy", LAYERS, HIDDEN)["v"]
    torch.testing.assert_close(read, rows()[0].expand(LAYERS, -1), rtol=1e-3, atol=1e-3)
    np.save(tmp_path / "v.npy", np.ones(HIDDEN, dtype=np.int64))
    with pytest.raises(ConfigurationError, match=r"got torch\.int64"):
        read_directions(tmp_path / "v.npy", LAYERS, HIDDEN)
    np.save(tmp_path / "v.npy", np.array([Payload()]), allow_pickle=True)
    with pytest.raises(ConfigurationError, match=r"cannot be read as \.npy"):
        read_directions(tmp_path / "v.npy", LAYERS, HIDDEN)


def test_principal_components_are_those_of_repeng(
    repeng: ModuleType, tiny: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The same pairs through repeng and through us: the same direction at every layer, the same way round."""
    model = AutoModelForCausalLM.from_pretrained(tiny)
    pairs = [
        (f"I think about bread and {word}", f"I think about {word} and rain") for word in ("tea", "milk", "sand", "ink")
    ]
    dataset = [repeng.DatasetEntry(positive=positive, negative=negative) for positive, negative in pairs]
    fast = AutoTokenizer.from_pretrained(tiny)
    theirs = repeng.ControlVector.train(model, fast, dataset, method="pca_center").directions
    hidden = []
    for text in (text for pair in pairs for text in pair):
        with torch.no_grad():
            states = model(**fast(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        hidden.append(torch.stack([state[0, -1] for state in states[1:]]))
    activations = torch.stack(hidden).numpy()
    for layer in range(1, LAYERS):
        ours = contrast_component(activations[::2, layer], activations[1::2, layer])
        assert ours @ theirs[layer] == pytest.approx(1, abs=1e-4)
