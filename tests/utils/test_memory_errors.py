"""Errors of memory are told from others, and what they hold is given back."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from memory_failures import caught, cuda, host, python

from introspection_lit.utils.errors import RunError
from introspection_lit.utils.memory_errors import give_back, is_out_of_memory


@pytest.mark.parametrize("cause", [cuda, host, python])
def test_errors_of_memory_are_known(cause: Callable[[], Any]) -> None:
    """Whoever raises them."""
    assert is_out_of_memory(caught(cause))


def test_other_errors_are_none_of_memory() -> None:
    """A shape that does not fit, Ctrl-C, an index; and what we have made of one already."""
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    for error in (RuntimeError("shape '[2]' is invalid"), KeyboardInterrupt(), ValueError("CUDA out of memory")):
        assert not is_out_of_memory(error)
    assert not is_out_of_memory(RunError([f"it said: {caught(cuda)}"]))


def test_what_an_error_holds_is_given_back() -> None:
    """Also of the error that was being handled when it came, and though somebody keeps them."""
    seen = []

    def inner() -> None:
        large = torch.zeros(10)
        seen.append(weakref.ref(large))
        host()

    def outer() -> None:
        other = torch.zeros(10)
        seen.append(weakref.ref(other))
        try:
            inner()
        finally:
            cuda()

    error = caught(outer)
    traceback = error.__traceback__  # as debuggers and loggers keep it
    assert all(reference() is not None for reference in seen)
    give_back(error)
    assert [reference() for reference in seen] == [None, None]
    assert isinstance(error, torch.OutOfMemoryError)
    assert traceback is not None
