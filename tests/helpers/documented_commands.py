"""Every command that README, docs, headers of configurations and help texts show, as it is written there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from project_paths import ROOT

# What begins a command in an inline span, a comment or a block that shows output, too; in a block of bash all lines are.
STARTS = r"(?:cd \w+ && )?(?:\.venv/bin/)?(?:python|make|pip|lm_eval|introspection-lit|tensorboard|torchrun|sbatch)\s"
# What changes the shell for the lines below it, such as `cd scripts` or `export RUN=...`.
STATE = re.compile(r"cd [\w/.]+|export \w+=\S.*")


@dataclass(frozen=True)
class Command:
    """A command, where it stands, and the lines above it in the same block that change the shell."""

    source: str
    text: str
    state: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The folder to run it in: that of the scripts where it names one of them without its folder."""
        named = re.search(r"python (\w+\.py)", self.text)
        inside = named and (ROOT / "scripts" / named[1]).exists() and not self.state
        return "scripts" if inside and not self.text.startswith("cd ") else "."


def without_comment(text: str) -> str:
    """A command without the comment behind it."""
    return re.sub(r"""\s+# [^"']*$""", "", text)


def logical_lines(text: str) -> Iterator[str]:
    """Lines as bash reads them: joined after a backslash, without empty ones and those that are comments alone."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield " ".join(line.split()) if "'" not in line and '"' not in line else line.strip()


def of_document(path: Path) -> Iterator[Command]:
    """Of the blocks of bash in a page, and of its inline code."""
    text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        state: list[str] = []
        for line in logical_lines(block):
            if language == "bash" and STATE.fullmatch(line):
                state.append(without_comment(line))
            elif language == "bash" or (not language and re.match(STARTS, line)):
                yield Command(name, without_comment(line), tuple(state))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`]+)`", prose):
        if re.match(STARTS, span):
            yield Command(name, " ".join(span.split()))


def of_header(path: Path) -> Iterator[Command]:
    """Of the comments of a configuration or a batch script; options may go on in the next comment."""
    lines = [
        line.lstrip("# ").removeprefix("Command:").strip() for line in path.read_text().splitlines() if line[:1] == "#"
    ]
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        if re.match(STARTS, line):
            whole = f"{line} {following}" if following.startswith("--") else line
            yield Command(str(path.relative_to(ROOT)), without_comment(whole))


def of_help(path: Path) -> Iterator[Command]:
    """Of the indented lines of a module's docstring, which ``--help`` prints."""
    for line in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines():
        if re.match(r" {4}" + STARTS, line):
            yield Command(str(path.relative_to(ROOT)), without_comment(line.strip()))


def documented_commands() -> list[Command]:
    """All of them, each once: the first place where it stands counts.

    Those of docs/results are not among them: they say how a result was made, with the code of that time.
    """
    found: dict[tuple[str, str], Command] = {}
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
    headers = [*sorted((ROOT / "configs").rglob("*.yaml")), *sorted((ROOT / "docs").rglob("*.yaml"))]
    headers += sorted((ROOT / "scripts").rglob("*.sbatch"))
    modules = [
        path for folder in ("scripts", "examples", "introspection_lit") for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    for command in (
        *(command for path in pages for command in of_document(path)),
        *(command for path in headers for command in of_header(path)),
        *(command for path in modules for command in of_help(path)),
    ):
        found.setdefault((command.text, command.folder if "cd scripts" not in command.state else "scripts"), command)
    return list(found.values())
