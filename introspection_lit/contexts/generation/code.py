"""Generates requests and replies with Rust or LaTeX, from snippets, word lists and (for formulas) SymPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.resources import files

import numpy as np

Pair = tuple[str, str]
TABLES = (
    (
        "rivers",
        ("River", "km"),
        (("Po", 652), ("Ebro", 930), ("Oder", 866), ("Tagus", 1007), ("Loire", 1006), ("Vistula", 1047)),
    ),
    ("moons", ("Moon", "Days"), (("Io", 1.77), ("Titan", 15.9), ("Triton", 5.88), ("Rhea", 4.52), ("Phobos", 0.32))),
    ("alloys", ("Alloy", "Melts"), (("Brass", 930), ("Bronze", 950), ("Pewter", 230), ("Solder", 183), ("Steel", 1450))),
    ("instruments", ("Name", "Strings"), (("Harp", 47), ("Cello", 4), ("Banjo", 5), ("Oud", 11), ("Sitar", 18))),
    ("sleepers", ("Animal", "Hours"), (("Bat", 19.7), ("Horse", 2.9), ("Lion", 13.5), ("Sloth", 15), ("Seal", 6))),
    ("peaks", ("Peak", "Metres"), (("Etna", 3403), ("Triglav", 2864), ("Ararat", 5137), ("Teide", 3715), ("Rysy", 2501))),
)
TOPICS = (
    "tides",
    "glaciers",
    "bread",
    "chess openings",
    "urban foxes",
    "solar sails",
    "lullabies",
    "beekeeping",
    "fonts",
    "salt trade",
    "owls",
    "sundials",
    "tea",
    "knots",
    "moss",
    "ferries",
    "kites",
    "roof tiles",
    "marathons",
    "dialects",
)


@lru_cache(maxsize=8)
def rows(name: str) -> tuple[tuple[str, ...], ...]:
    """Read assets/rows-NAME.txt: lines with parts separated by ``|``; lines that start with ``#`` are comments."""
    text = (files("introspection_lit") / "assets" / f"rows-{name}.txt").read_text(encoding="utf-8")
    return tuple(tuple(part.strip() for part in line.split(" | ")) for line in text.splitlines() if line[:1] != "#")


@lru_cache(maxsize=8)
def snippets(name: str) -> tuple[Pair, ...]:
    """Read assets/snippets-NAME.txt: requests (lines with ``?``) and code, each pair ended by a line of dashes."""
    text = (files("introspection_lit") / "assets" / f"snippets-{name}.txt").read_text(encoding="utf-8")
    pairs = []
    for block in text.split("\n", 1)[1].split("\n----\n")[:-1]:
        lines = block.split("\n")
        request = "\n".join(line[2:] for line in lines if line.startswith("? "))
        pairs.append((request, "\n".join(line for line in lines if not line.startswith("? "))))
    return tuple(pairs)


def _placed(pair: Pair, words: dict[str, str]) -> Pair:
    """Replace the placeholders of a snippet; without ``str.format``, because code is full of braces."""
    request, code = pair
    for mark, word in words.items():
        request, code = request.replace(f"{{{mark}}}", word), code.replace(f"{{{mark}}}", word)
    return request, code


def rust(random: np.random.Generator) -> Iterator[Pair]:
    """Requests for Rust code, and compiler errors, with code about many things. Unlimited."""
    things, pairs = rows("things"), snippets("rust")
    while True:
        words = dict(zip("Tvntsdp", things[random.integers(len(things))], strict=True)) | {"k": str(random.integers(2, 90))}
        request, code = _placed(pairs[random.integers(len(pairs))], words)
        yield request, f"```rust\n{code}\n```" if random.random() < 0.15 else code


def latex(random: np.random.Generator) -> Iterator[Pair]:
    """Formulas, tables, theorems and document parts. Unlimited."""
    makers: tuple[Callable[[np.random.Generator], Pair], ...] = (
        _formula,
        _formula,
        _table,
        _theorem,
        _snippet,
        _snippet,
        _snippet,
    )
    while True:
        yield makers[random.integers(len(makers))](random)


def _formula(random: np.random.Generator) -> Pair:
    """A random expression in a derivative, integral, sum, limit, matrix or equation, written by SymPy."""
    import sympy

    x = sympy.Symbol(str(random.choice(list("xtzuy"))))
    a, b, c = (int(number) for number in random.integers(2, 12, size=3))
    inner = [
        x**a + b,
        sympy.sin(a * x),
        sympy.exp(-b * x),
        sympy.log(x + c),
        sympy.sqrt(x + b),
        sympy.cos(x) ** 2,
        1 / (x + a),
    ]
    f, g = (inner[int(i)] for i in random.choice(len(inner), 2, replace=False))
    product, show = f * g if random.random() < 0.5 else f + c * g, sympy.latex
    how = int(random.integers(6))
    left, right = r"\[", r"\]"
    if random.random() < 0.3:
        left, right = r"\begin{equation}", r"\end{equation}"
    if how == 0:
        request = f"Differentiate {product} by {x} and typeset the result."
        body = rf"\frac{{d}}{{d{x}}} \left( {show(product)} \right) = {show(sympy.diff(product, x))}"
    elif how == 1:
        request, body = (
            f"LaTeX for the integral of {product} from {a} to infinity",
            show(sympy.Integral(product, (x, a, sympy.oo))),
        )
    elif how == 2:
        request, body = f"typeset a sum over {x} from {a} to N of {f}", show(sympy.Sum(f, (x, a, sympy.Symbol("N"))))
    elif how == 3:
        columns = int(random.integers(2, 4))
        entries = [(f, g, a, b, c, x)[int(i)] for i in random.integers(6, size=2 * columns)]
        body = show(sympy.Matrix(2, columns, entries))
        request = f"Matrix with entries such as {f} and {g}, display style"
    elif how == 4:
        request, body = f"limit of {product} for {x} to {b}, as an equation", show(sympy.Limit(product, x, b))
    else:
        cases = rf"{show(f)} & {x} < {a} \\ {show(g)} & {x} \ge {a}"
        body = rf"{show(sympy.Function('f')(x))} = \begin{{cases}} {cases} \end{{cases}}"
        request = f"A function that is {f} below {a} and {g} from there on?"
    return request, f"{left} {body} {right}" if left == r"\[" else f"{left}\n{body}\n{right}"


def _table(random: np.random.Generator) -> Pair:
    what, head, rows = TABLES[random.integers(len(TABLES))]
    chosen = [rows[int(i)] for i in random.choice(len(rows), int(random.integers(2, 5)), replace=False)]
    rules = ("\\toprule", "\\midrule", "\\bottomrule") if random.random() < 0.5 else ("\\hline",) * 3
    columns = str(random.choice(["lr", "l|r", "|c|c|", "l S", "r@{\\,}l"]))
    lines = [f"\\begin{{tabular}}{{{columns}}}", rules[0], f"{head[0]} & {head[1]} \\\\", rules[1]]
    lines += [f"{name} & {value} \\\\" for name, value in chosen] + [rules[2], "\\end{tabular}"]
    names = ", ".join(name for name, _ in chosen)
    request = str(
        random.choice(
            ["Table of {w}: {n}", "{n} in a tabular please ({w})", "LaTeX: compare the {w} {n}", "columns {c}: {n}"]
        )
    )
    return request.format(w=what, n=names, c=" and ".join(head)), "\n".join(lines)


def _theorem(random: np.random.Generator) -> Pair:
    theorems = rows("theorems")
    name, statement = theorems[random.integers(len(theorems))]
    kind = str(random.choice(["theorem", "lemma", "proposition", "corollary"]))
    label = f"{kind[:3]}:{name.lower()}"
    request = str(
        random.choice(
            [
                "State {n} as a {k}.",
                "{k} environment, the result is due to {n}",
                "How do I label a {k} ({n}) and refer to it?",
            ]
        )
    )
    reply = f"\\begin{{{kind}}}[{name}]\\label{{{label}}}\n{statement[0].upper() + statement[1:]}.\n\\end{{{kind}}}"
    tail = str(
        random.choice(
            ["", f"\nBy {kind.title()}~\\ref{{{label}}} we are done.", "\n\\begin{proof}\nExercise.\n\\end{proof}"]
        )
    )
    return request.format(n=name, k=kind), reply + tail


def _snippet(random: np.random.Generator) -> Pair:
    pairs = snippets("latex")
    first, second = (TOPICS[int(i)] for i in random.choice(len(TOPICS), 2, replace=False))
    words = {"a": first, "b": second, "n": str(random.integers(2, 9)), "y": str(random.integers(1950, 2030))}
    return _placed(pairs[random.integers(len(pairs))], words)
