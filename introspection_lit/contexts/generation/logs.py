"""Generates exchanges about log lines in many formats: requests for lines, and explanations of lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

from introspection_lit.contexts.generation.code import rows

Pair = tuple[str, str]
USERS = ("lena", "omar", "svc-report", "mwangi", "root", "petra", "guest7", "tomasz", "aiko", "deploy")
HOSTS = ("heron.example", "node-4", "db2.mill.example", "edge-fra", "lab-pi", "kestrel", "atlas-07", "shop.example")
FILES = (
    "/srv/in/may.csv",
    "/var/lib/q/7.db",
    "C:\\data\\stock.xls",
    "/home/omar/plan.md",
    "s3://cold/2021.tar",
    "notes/todo.txt",
)
ASK_FOR = (
    "Show me what {s} would write if things go wrong.",
    "Invent some lines from the log of a {s} service.",
    "I need test data: {f} lines, component {s}, at least one failure.",
    "sample {f} log with {s} in it please",
    "How would {f} look for the {s} daemon?",
    "Write a short trace from {s} around {t}.",
    "What does a bad morning of {s} look like in {f} format?",
    "fake log, {s}, {t} onwards",
    "My parser for {f} needs a case with {s}. Give me one.",
)
EXPLAIN = (
    "what happened?",
    "Is this bad?",
    "Please explain.",
    "Any idea?",
    "Do I have to get up for this?",
    "Translate for my boss.",
    "Found this at {t}. Worry?",
    "Why does {s} say that?",
    "first day on call, what do I do",
    "Summarise in one line.",
    "",
)
ANSWERS = (
    "{m}.",
    "In short: {m}.",
    "The line that counts is the {p} one: {m}.",
    "{s} complains: {m}. The rest is routine.",
    "Nothing else stands out. {m}.",
    "Look at {s} first, since {m}.",
    "It means this: {m}. I would check again after an hour.",
    "At {t} it turned sour: {m}.",
)


def logs(random: np.random.Generator) -> Iterator[Pair]:
    """Exchanges about log lines: the user asks for lines, or pastes lines and asks for their meaning. Unlimited."""
    names, events = [*LAYOUTS, *SPECIAL], rows("events")
    while True:
        service, good, bad, meaning = events[random.integers(len(events))]
        name = names[random.integers(len(names))]
        clock = int(random.integers(86_000))
        count = int(random.integers(1, 5))
        failing = int(random.integers(count))
        host = _one(HOSTS, random)
        lines = []
        for place in range(count):
            other = events[random.integers(len(events))]
            who, text = (service, bad) if place == failing else (other[0], other[1])
            if random.random() < 0.3 and place != failing:
                who, text = service, good
            lines.append(_line(name, random, clock, who, _message(text, random), place == failing, host))
            clock += int(random.integers(1, 90))
        words = {"s": service, "f": name, "t": _time(clock), "m": meaning}
        words["p"] = ("first", "second", "third", "fourth")[failing]
        listing = "\n".join(lines)
        if random.random() < 0.5:
            yield _one(ASK_FOR, random).format(**words), listing
        else:
            question, answer = _one(EXPLAIN, random).format(**words), _one(ANSWERS, random).format(**words)
            message = f"{listing}\n{question}".strip() if random.random() < 0.7 else f"{question}\n{listing}".strip()
            yield message, re.sub(r"(^|\. )[a-z]", lambda start: start[0].upper(), answer)


def _line(name: str, random: np.random.Generator, clock: int, who: str, text: str, bad: bool, host: str) -> str:
    if name in SPECIAL:
        return SPECIAL[name](random, clock, who, text, bad, host)
    return LAYOUTS[name].format(**_fields(random, clock, who, text, bad, host))


def _one(texts: tuple[str, ...], random: np.random.Generator) -> str:
    return texts[random.integers(len(texts))]


def _message(text: str, random: np.random.Generator) -> str:
    return text.format(
        n=random.integers(2, 9000),
        hex=f"{random.integers(16**6):06x}",
        ip=f"192.0.2.{random.integers(1, 255)}",
        user=_one(USERS, random),
        host=_one(HOSTS, random),
        file=_one(FILES, random),
    )


def _time(clock: int) -> str:
    return f"{clock // 3600:02}:{clock // 60 % 60:02}:{clock % 60:02}"


def _nginx(random: np.random.Generator, clock: int, who: str, text: str, bad: bool, host: str) -> str:
    path = _one(("/cart", "/api/v2/items", "/login", "/static/app.js", "/feed.xml", "/admin"), random)
    code = _one(("500", "502", "403", "404"), random) if bad else _one(("200", "304", "201"), random)
    agent = _one(("curl/8.4", "Mozilla/5.0", f"{who}-client/2.1"), random)
    size = random.integers(80, 50_000)
    return f'192.0.2.{random.integers(1, 255)} - - [{_time(clock)}] "GET {path} HTTP/1.1" {code} {size} "{agent}" {text!r}'


def _java(random: np.random.Generator, clock: int, who: str, text: str, bad: bool, host: str) -> str:
    if not bad:
        return f"{_time(clock)} INFO  [main] c.{who}.{who.title()}Service - {text}"
    error = _one(("IllegalStateException", "IOException", "TimeoutException", "NullPointerException"), random)
    method = _one(("flush", "accept", "poll", "resolve", "drain"), random)
    name, line, more = f"{who.title()}Worker", random.integers(20, 700), random.integers(3, 30)
    return f"java.io.{error}: {text}\n\tat org.{who}.{name}.{method}({name}.java:{line})\n\t... {more} more"


def _fields(random: np.random.Generator, clock: int, who: str, text: str, bad: bool, host: str) -> dict[str, object]:
    """Values for the placeholders in ``LAYOUTS``."""
    return {
        "time": _time(clock),
        "t": text,
        "w": who,
        "W": who.title(),
        "h": host,
        "H": host.upper(),
        "clock": clock,
        "day": 1 + clock % 28,
        "pid": 300 + clock % 7000,
        "ms": clock % 1000,
        "pod": f"{clock % 4096:03x}",
        "L": "E" if bad else "I",
        "level": "error" if bad else "info",
        "LEVEL": "ERROR" if bad else "INFO",
        "ok": "FAIL" if bad else "OK",
        "mark": "!!" if bad else "--",
        "failed": "Failed: " if bad else "",
        "event": "Warning  BackOff" if bad else "Normal  Pulled",
    }


LAYOUTS = {
    "syslog": "Mar {day:2} {time} {h} {w}[{pid}]: {t}",
    "JSON": '{{"t":{clock},"lvl":"{level}","svc":"{w}","msg":"{t}"}}',
    "journald": "{h} systemd[1]: {w}.service: {failed}{t}",
    "kubernetes": "{ms}s  {event}  pod/{w}-{pod}  {t}",
    "klog": "{L}0{day:03} {time} {pid} {w}.go:{ms}] {t}",
    "logfmt": 'at={time} level={level} app={w} host={h} msg="{t}"',
    "Android": "{L}/{W}({pid:5}): {t}",
    "CSV audit": "{time};{h};{w};{ok};{t}",
    "Python logging": "{LEVEL}:{w}.worker:{t}",
    "dmesg": "[{clock:6}.{ms:03}] {w}: {t}",
    "bracketed": "[{time}] [{w}] {mark} {t}",
    "Windows event": "{LEVEL}, {H}, Source {w}, ID {pid}: {t}",
    "Erlang": "=={LEVEL} REPORT== {time} {{{w}, '{t}'}}",
}
# Formats with a different structure for errors.
SPECIAL: dict[str, Callable[[np.random.Generator, int, str, str, bool, str], str]] = {"nginx": _nginx, "Java": _java}
