"""Wordings of requests for passages of real text, by kind."""

from __future__ import annotations

import numpy as np

# {} is the subject of the passage: a function, a file, a package, a topic, a code point.
REQUESTS = {
    "manual": (
        "What does the Python reference say about {}?",
        "I need the exact rules for {}. A short excerpt will do.",
        "Quote the language manual, topic {}.",
        "help('{}')",
        "Our style guide links to the chapter on {}. Paste the part that matters.",
        "{}: how is it defined, word for word?",
        "Somebody in review asked about {}. Is there something official?",
        "Remind me what the documentation has on {}",
        "looking for the fine print on {}",
        "Open pydoc at {} and read me a bit of it.",
        "Could you cite a paragraph on {}?",
        "I forgot the details of {} again.",
        "Teach me about {}, but formally please",
        "Which passage covers {}?",
    ),
    "docstrings": (
        "What does {} do?",
        "Docstring of {}, please.",
        "{}?",
        "I came across {} in old code. What is it for?",
        "print({}.__doc__)",
        "Explain {} in the words of its authors.",
        "Is there any documentation for {}",
        "Before I use {}: what should I know?",
        "Copy the note that belongs to {} here.",
        "my editor shows nothing when I hover over {}, what should it show",
        "Short description of {}",
        "How is {} documented in the standard library?",
    ),
    "licences": (
        "Under what terms can I use {}?",
        "Read me a piece of the licence of {}.",
        "Our lawyer asks about {}. What does its licence file say?",
        "LICENSE of {}, any paragraph",
        "What may I not do with {}?",
        "I want to ship {} with our product. Which text applies?",
        "Quote from the copying conditions of {}",
        "Which notices come with {}?",
        "{}: licence wording?",
        "We are doing an audit of dependencies. Next is {}.",
        "Does {} come with a warranty? Quote, don't paraphrase.",
        "show the legal bit of {}",
    ),
    "headers": (
        "Show me a part of {}",
        "What is declared in {}?",
        "cat {} | sed -n 20,40p",
        "I'm reading {} and lost my place. Paste something from the middle.",
        "Is there anything interesting in {}?",
        "{}: excerpt please, unchanged.",
        "Need the C++ from {} for a bug report",
        "Give me the lines of {} that you find hardest.",
        "how does torch do it in {}",
        "Which definitions live in {}?",
    ),
    "bytecode": (
        "Disassemble {}.",
        "dis.dis({})",
        "What does the bytecode of {} look like?",
        "Which instructions does the compiler emit for {}?",
        "Show a stretch of {} as the interpreter sees it.",
        "{} in bytecode, a few instructions",
        "I'm curious how {} compiles.",
        "Is {} cheap? Let me see its opcodes",
        "dump the code object of {} please",
        "From {}: some lines of disassembly.",
    ),
    "unicode": (
        "Which character is {}?",
        "Characters around {}, with names.",
        "I see a box instead of {}. What should be there?",
        "unicodedata lookup: {}",
        "Make a small table that starts with {}.",
        "{} and some others for my symbol collection",
        "Font test: list {} and what else you like.",
        "What is the official name of {}? Add a few more.",
        "Describe {} the way the character database does.",
        "how do I spell {} out loud",
    ),
}


def request_for(kind: str, random: np.random.Generator, name: str) -> str:
    """Make a request for a passage.

    Args:
        kind: A key of ``REQUESTS``.
        random: Random generator for the wording.
        name: Subject of the passage.
    """
    return REQUESTS[kind][random.integers(len(REQUESTS[kind]))].format(name)
