"""Passages of real text from Python and from the installed dependencies.

Source files are read and parsed, never imported or run. The passages depend on the installed versions.
"""

from __future__ import annotations

import ast
import dis
import inspect
import re
import sys
import sysconfig
import textwrap
import unicodedata
import warnings
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from types import CodeType

import numpy as np

from introspection_lit.contexts.generation.requests import request_for

Pair = tuple[str, str]
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+(?=[A-Z\"'(`*\d])")


def cut(text: str, random: np.random.Generator, shortest: int = 70, longest: int = 400, lines: bool = False) -> str:
    """Cut a passage out of a text at the ends of sentences or lines.

    Args:
        text: The text.
        random: Random generator for start and length.
        shortest: Minimum length, in characters.
        longest: Maximum length, in characters.
        lines: Cut at line ends and keep them, instead of at sentence ends.

    Returns:
        The passage; empty if the random position gives none of a valid length.
    """
    units = text.split("\n") if lines else _SENTENCE_END.split(" ".join(text.split()))
    separator = "\n" if lines else " "
    start = int(random.integers(max(1, len(units) - 1)))
    target = int(random.integers(shortest, longest + 1))
    passage = units[start]
    for unit in units[start + 1 :]:
        if len(passage) + len(separator) + len(unit) > target:
            break
        passage += separator + unit
    passage = textwrap.dedent(passage).strip("\n") if lines else passage
    return passage if passage.strip()[:1] not in ("*", "}", ")") and shortest <= len(passage) <= longest else ""


def manual(random: np.random.Generator) -> Iterator[Pair]:
    """Paragraphs of the Python language reference, from pydoc's help topics."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some builds of Python come without it
        return

    paragraphs = [
        (topic, part) for topic in sorted(topics) for part in re.split(r"\n\s*\n", topics[topic]) if _is_prose(part)
    ]
    yield from _endless("manual", [(name.lower(), part) for name, part in paragraphs], random)


def docstrings(random: np.random.Generator, part: tuple[int, ...] = (0, 1), longest: int = 400) -> Iterator[Pair]:
    """Prose paragraphs of docstrings of the standard library, asked for by the name of what they describe.

    Args:
        random: Random generator for passages and requests.
        part: Which of four disjoint quarters, 0 to 3; the others are for kinds that transform the text.
        longest: Maximum length of a passage, in characters.
    """
    passages = [(name, text) for name, text in _docstrings() if zlib.crc32(text.encode()) % 4 in part]
    yield from _endless("docstrings", passages, random, longest=longest)


def licences(random: np.random.Generator) -> Iterator[Pair]:
    """Paragraphs of the licence files of installed packages, with their line breaks."""
    paragraphs = [
        (name, part)
        for name, path in licence_files()
        for part in re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="ignore"))
        if len(part.split()) > 9 and _letters(part) > 0.7
    ]
    yield from _endless("licences", paragraphs, random, lines=True)


@lru_cache(maxsize=1)
def licence_files() -> tuple[tuple[str, Path], ...]:
    """The licence files of installed packages, each with the package's name and version; without duplicate texts."""
    licences_by_text: dict[str, tuple[str, Path]] = {}
    for distribution in sorted(distributions(), key=lambda d: (str(d.metadata["Name"]).lower(), d.version)):
        for file in sorted(distribution.files or [], key=str):
            if re.match(r"(?i)(licen[cs]e|copying|notice|third[-_]party)", file.name) and file.suffix not in (
                ".py",
                ".pyc",
            ):
                path = Path(str(file.locate()))
                if path.is_file():
                    text = " ".join(path.read_text(encoding="utf-8", errors="ignore").split())
                    licences_by_text.setdefault(text, (f"{distribution.metadata['Name']} {distribution.version}", path))
    return tuple(licences_by_text.values())


def headers(random: np.random.Generator) -> Iterator[Pair]:
    """Lines of torch's C++ and CUDA headers, without generated ones."""
    yield from _endless("headers", _header_blocks(), random, longest=330, lines=True)


def bytecode(random: np.random.Generator) -> Iterator[Pair]:
    """Disassembled functions of the standard library, as ``dis`` prints them, without addresses."""
    functions = _compiled()
    for index in random.permutation(len(functions)):
        name, code = functions[index]
        listing = re.sub(r" at 0x[0-9a-fA-F]+", "", dis.Bytecode(code).dis().rstrip("\n"))
        reply = cut(re.sub(r" {4,}", "    ", listing), random, 90, 260, lines=True)
        if reply and "frozenset(" not in reply:  # sets of strings print in a different order in every process
            yield request_for("bytecode", random, name), reply


def unicode_names(random: np.random.Generator) -> Iterator[Pair]:
    """Characters of the Unicode database with their names, numbers and categories, in several layouts."""
    points = [point for point in range(0xA1, 0x1FB00) if unicodedata.name(chr(point), "") and not _ideograph(point)]
    layouts = (
        lambda c: f"U+{ord(c):04X} {c} {unicodedata.name(c)}",
        lambda c: f"{c}  {unicodedata.name(c).lower()} ({unicodedata.category(c)})",
        lambda c: f"- {unicodedata.name(c).capitalize()}: {c}, number {ord(c)}",
        lambda c: f"| {c} | {ord(c):x} | {unicodedata.name(c)} |",
        lambda c: f"\\u{ord(c):04x} = {unicodedata.name(c)}, {unicodedata.bidirectional(c)}",
        lambda c: f"{unicodedata.name(c)} [{unicodedata.category(c)}] &#{ord(c)};",
    )
    while True:
        layout, count = layouts[random.integers(len(layouts))], int(random.integers(1, 5))
        start = int(random.integers(len(points)))
        if random.random() < 0.5:
            chosen = [chr(point) for point in points[start : start + count]]
        else:
            chosen = [chr(points[int(i)]) for i in random.integers(len(points), size=count)]
        yield request_for("unicode", random, f"U+{ord(chosen[0]):04X}"), "\n".join(map(layout, chosen))


def _endless(
    kind: str, texts: Sequence[tuple[str, str]], random: np.random.Generator, longest: int = 400, lines: bool = False
) -> Iterator[Pair]:
    """Yield passages of the texts in random order, eight rounds, each with a new request and a new cut."""
    for _ in range(8):
        for index in random.permutation(len(texts)):
            name, text = texts[index]
            if reply := cut(text, random, longest=longest, lines=lines):
                yield request_for(kind, random, name), reply


@lru_cache(maxsize=1)
def _sources() -> tuple[tuple[str, str], ...]:
    """Name and source text of the standard library's Python modules."""
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        left_out = {
            "test",
            "tests",
            "site-packages",
            "idlelib",
            "lib2to3",
            "turtledemo",
            "pydoc_data",
            "encodings",
            "__main__",
        }
        if parts[0] in sys.stdlib_module_names and not left_out & set(parts):
            name = ".".join(parts).removesuffix(".__init__")
            modules.append((name, path.read_text(encoding="utf-8", errors="ignore")))
    return tuple(modules)


@lru_cache(maxsize=1)
def _docstrings() -> tuple[tuple[str, str], ...]:
    """Names and prose paragraphs of the docstrings of the standard library, without duplicates."""
    names: dict[str, str] = {}
    for module, source in _sources():
        tree = ast.parse(source)
        nodes = [(module, node) for node in [tree]] + [
            (f"{module}.{node.name}", node)
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
        ]
        for name, node in nodes:
            for part in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                if _is_prose(part):
                    names.setdefault(" ".join(part.split()), name)
    return tuple((name, text) for text, name in names.items())


@lru_cache(maxsize=1)
def _header_blocks() -> tuple[tuple[str, str], ...]:
    """Paths below torch/include with the blocks of each file, which empty lines separate."""
    header_blocks = []
    specification = find_spec("torch")
    root = Path(specification.origin or "").parent / "include" if specification else Path()
    for folder in ("ATen", "c10", "torch"):
        for path in sorted(root.joinpath(folder).rglob("*")):
            if path.suffix in (".h", ".cuh", ".hpp") and "ops" not in path.relative_to(root).parts[:2]:
                lines = path.read_text(encoding="utf-8", errors="ignore").expandtabs(4).split("\n")
                code = [line.rstrip() for line in lines if not re.match(r"#(include|pragma|undef)|namespace |} *//", line)]
                blocks = re.split(r"\n{2,}", "\n".join(code))
                header_blocks += [
                    (path.relative_to(root).as_posix(), b) for b in blocks if len(b) > 60 and "opyright" not in b
                ]
    return tuple(header_blocks)


@lru_cache(maxsize=1)
def _compiled() -> tuple[tuple[str, CodeType], ...]:
    """The compiled functions of the standard library, without modules of more than 60,000 characters."""
    functions = []
    for module, source in _sources():
        if len(source) < 60_000:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old modules, about escapes
                code = compile(source, f"{module}.py", "exec", dont_inherit=True)
            functions += [(f"{module}.{inner.co_qualname}", inner) for inner in _functions(code)]
    return tuple(functions)


def _functions(code: CodeType) -> Iterator[CodeType]:
    """All nested functions in a module's code, without comprehensions and lambdas."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & inspect.CO_NEWLOCALS and "<" not in inner.co_name:
                yield inner
            yield from _functions(inner)


def _is_prose(text: str) -> bool:
    """Whether a paragraph has sentences, and is no code, table, heading or grammar."""
    text = text.strip()
    sentences = re.match(r"[A-Z]", text) and text.endswith((".", ":", "!", "?"))
    odd_lines = re.search(r"(>>>|::=|^[*=~-]{3}|\s{6,}\S|@\w+:)", text, re.MULTILINE)
    return bool(sentences) and not odd_lines and len(text.split()) > 10 and _letters(text) > 0.75


def _letters(text: str) -> float:
    """The share of letters among the characters that are not white space."""
    squeezed = "".join(text.split())
    return sum(map(str.isalpha, squeezed)) / max(1, len(squeezed))


def _ideograph(point: int) -> bool:
    """Whether a character's Unicode name is only a number: Chinese and Korean characters, Tangut and Nushu."""
    return bool(re.search(r"-[0-9A-F]{4,}$|^HANGUL SYLLABLE", unicodedata.name(chr(point))))
