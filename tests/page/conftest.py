"""Fixtures of the page's tests: an adapter of random weights, and the page made for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_adapter import tiny_adapter

from introspection_lit.detector import Detector
from introspection_lit.page.examiner import Examiner
from introspection_lit.page.functions import Page


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter's folder."""
    return tiny_adapter(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="session")
def detector(adapter: Path) -> Detector:
    """The reference: nothing of the page has touched it."""
    return Detector.from_pretrained(adapter, device="cpu")


@pytest.fixture(scope="session")
def page(adapter: Path) -> Page:
    """The functions behind the page."""
    return Page(Examiner(Detector.from_pretrained(adapter, device="cpu")))
