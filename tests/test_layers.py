"""The order of packages: imports go down only, and no module is in an import circle."""

from __future__ import annotations

import ast
from pathlib import Path

import introspection_lit

PACKAGE = Path(introspection_lit.__file__).parent
NAME = PACKAGE.name
# Files beside the packages.
ROOT = ("__main__", "cli", "detector", "model", "one_cache", "subcommands")
# Of them, those that the page is made for; the others call the page.
DETECTORS = {f"{NAME}.detector", f"{NAME}.one_cache"}
# From the ground up; packages in one set do not know each other.
LAYERS = (
    {"utils"},
    {"contexts", "models", "steering"},
    {"tasks"},
    {"trials"},
    {"evaluation"},
    {"report"},
    {"training"},
    {"page", "publishing"},
    {"tools", "harnesses"},
)


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """Every module of the package that a file imports: at the top, inside functions, and for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES}


GRAPH = {name: imports_of(path) - {name} for name, path in MODULES.items()}


def package_of(name: str) -> str:
    """The package that a module is in; empty for the files of the root."""
    parts = name.split(".")
    return parts[1] if len(parts) > 2 or (len(parts) == 2 and MODULES[name].name == "__init__.py") else ""


def layer_of(name: str) -> float:
    """How high a module stands: of the root, the detectors right below page and publishing, the others above."""
    package = package_of(name)
    if not package:
        return LAYERS.index({"page", "publishing"}) + (-0.5 if name in DETECTORS else 0.5)
    return next(height for height, packages in enumerate(LAYERS) if package in packages)


def upward_imports() -> set[tuple[str, str]]:
    """Imports that go up, or across to a package of the same layer."""
    found = set()
    for name, imported in GRAPH.items():
        for other in imported - {NAME}:
            same = package_of(name) == package_of(other)
            if not same and (package_of(other) == "tools" or layer_of(other) >= layer_of(name)):
                found.add((name, other))
    return found


def in_circles() -> set[str]:
    """The modules that import themselves by way of others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = GRAPH[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    return {name for name in GRAPH if name in reached(name)}


def test_packages_import_only_from_below() -> None:
    """Imports inside functions and for type checkers count."""
    assert upward_imports() == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Such a circle ties files together that nobody can then read alone."""
    assert in_circles() == set()


def test_root_has_few_files() -> None:
    """Whatever is no front door has a package."""
    assert {name for name, path in MODULES.items() if path.parent == PACKAGE} <= {
        NAME,
        *(f"{NAME}.{root}" for root in ROOT),
    }


def test_files_can_be_read_in_one_go() -> None:
    """At most 350 lines each."""
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 350} == {}
