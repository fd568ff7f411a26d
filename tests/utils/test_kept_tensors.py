"""Tensors that are kept for other runs: the same bits, measured again when anything differs or the file is damaged."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from damage import damaged, left_in
from torch import Tensor

from introspection_lit.utils import kept_tensors as module
from introspection_lit.utils.kept_tensors import kept_tensors

MODEL = {"model": {"hashes": {"weights": "0123"}}, "threads": 1}


class Measured:
    """Counts how often it is called; each time with other numbers, as no measurement should."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Tensor]:
        """Other numbers each time, one of the two tensors not contiguous."""
        self.calls += 1
        numbers = torch.randn(3, 2, generator=torch.Generator().manual_seed(self.calls))
        return {"norms": numbers, "directions": numbers.T}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, for measurements of any duration."""
    monkeypatch.setenv("INTROSPECTION_LIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "WORTH_KEEPING", 0.0)
    return tmp_path / "cache"


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Whether two measurements are equal, bit for bit."""
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def test_measured_once(cache: Path) -> None:
    """The second time, the file is read."""
    measure = Measured()
    first = kept_tensors("norms", MODEL, measure)
    assert same(kept_tensors("norms", MODEL, measure), first)
    assert same(first, Measured()())
    assert measure.calls == 1
    assert len(left_in(cache)) == 1


@pytest.mark.parametrize("other", [{"threads": 2}, {"model": {"hashes": {"weights": "0124"}}}, {"texts": [[1, 2]]}])
def test_measured_again_when_something_differs(cache: Path, other: dict[str, object]) -> None:
    """Each has a file of its own."""
    measure = Measured()
    first = kept_tensors("norms", MODEL, measure)
    assert not same(kept_tensors("norms", MODEL | other, measure), first)
    assert same(kept_tensors("norms", MODEL, measure), first)  # and the first stays


def test_measured_again_with_other_packages(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another torch may round otherwise."""
    measure = Measured()
    kept_tensors("norms", MODEL, measure)
    monkeypatch.setattr(module, "version", lambda _: "0")
    kept_tensors("norms", MODEL, measure)
    assert measure.calls == 2


def test_a_file_of_another_model_under_this_name_is_not_read(cache: Path) -> None:
    """Names have 64 bits of a hash; the checksum in the file is over all that it was made of."""
    kept_tensors("norms", MODEL | {"threads": 2}, Measured())
    other = next(cache.iterdir())
    measure = Measured()
    first = kept_tensors("norms", MODEL, measure)
    own = next(path for path in cache.iterdir() if path != other)
    own.write_bytes(other.read_bytes())
    kept_tensors("norms", MODEL, measure)
    assert measure.calls == 2
    assert same(first, Measured()())


def test_a_damaged_file_is_replaced(cache: Path) -> None:
    """Cut off, or with one bit changed."""
    kept_tensors("norms", MODEL, Measured())
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for content in damaged(whole, 20, first=8):
        path.write_bytes(content)
        measure = Measured()
        assert same(kept_tensors("norms", MODEL, measure), Measured()())
        assert path.read_bytes() == whole
    assert len(left_in(cache)) == 1


def test_two_at_once(cache: Path) -> None:
    """Both measure, and what they leave is one whole file."""
    barrier, calls = Barrier(2, timeout=60), []

    def measure() -> dict[str, Tensor]:
        barrier.wait()
        calls.append(1)
        return Measured()()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: kept_tensors("norms", MODEL, measure), range(2)))
    assert len(calls) == 2
    assert same(*found)
    assert len(left_in(cache)) == 1
    again = Measured()
    assert same(kept_tensors("norms", MODEL, again), found[0])
    assert again.calls == 0


def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model cannot be told from others."""


def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement takes less than is worth a file."""
    monkeypatch.setattr(module, "WORTH_KEEPING", 1e9)


@pytest.mark.parametrize(("depends_on", "change"), [(None, nothing_known), (MODEL, fast)])
def test_not_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, depends_on: dict[str, object] | None, change: Callable[..., None]
) -> None:
    """No file is written."""
    change(monkeypatch)
    measure = Measured()
    for _ in range(2):
        kept_tensors("norms", depends_on, measure)
    assert measure.calls == 2
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_a_warning(cache: Path) -> None:
    """The run goes on with what it has measured."""
    cache.write_text("a file")
    with pytest.warns(UserWarning, match=r"norms are not kept .* INTROSPECTION_LIT_CACHE: .* cannot be written"):
        assert same(kept_tensors("norms", MODEL, Measured()), Measured()())
