"""The order of packages: imports go down only, and no module is in an import circle."""

from __future__ import annotations

import ast
from pathlib import Path

import introspection_lit

PACKAGE = Path(introspection_lit.__file__).parent
NAME = PACKAGE.name


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


# Known exceptions; they may only become fewer.
CIRCLE = {
    f"{NAME}.{name}"
    for name in (
        "adapters", "batch_size", "collector", "data", "diverged", "export", "logit_lens", "module", "preparation",
        "replay", "reuse", "side_effects", "strategies", "wording",
    )
}  # fmt: skip


def test_no_module_imports_itself_by_way_of_others() -> None:
    """But for the known ones."""
    assert in_circles() == CIRCLE
