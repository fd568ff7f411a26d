"""Every module is imported in the default tier, and every package has tests of its own there."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import introspection_lit

TESTS = Path(__file__).parent
FOUND = list(pkgutil.walk_packages(introspection_lit.__path__, "introspection_lit."))
MODULES = [module.name for module in FOUND if not module.name.endswith("__main__")]
PACKAGES = [module.name.split(".")[1] for module in FOUND if module.ispkg and module.name.count(".") == 1]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_imported(name: str) -> None:
    """By its own name; ``__main__`` is run where the command line is started."""
    if name.startswith("introspection_lit.harnesses.inspect_ai"):
        pytest.importorskip("inspect_ai", reason="in an environment of its own (tests/helpers/peers.py)")
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_tests_in_the_default_tier(package: str) -> None:
    """In the folder of its name, one file at least that is not left out as a whole."""
    files = sorted((TESTS / package).glob("test_*.py"))
    assert [path for path in files if "pytestmark = pytest.mark." not in path.read_text(encoding="utf-8")]
