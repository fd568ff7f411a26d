"""What the page shows of an answer, as HTML: two cards, both codes, the layers and the tokens that are steered."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from introspection_lit.contexts.conversations import Encoded
from introspection_lit.detector import Answer, Detector
from introspection_lit.one_cache import Reading
from introspection_lit.page.examiner import Examiner, Findings
from introspection_lit.trials.shown import ANSWER
from introspection_lit.utils.errors import IntrospectionError, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LITTLE_MASS = 0.5


def escaped(written: str) -> str:
    """A text as HTML, with invisible characters written out."""
    return html.escape(visible(written))


def problems(error: IntrospectionError, title: str = "Nothing was asked.") -> str:
    """What is wrong with the input, as a box."""
    # The same conversation is asked about several times: of the numbers that the detector gives them nobody knows.
    found = dict.fromkeys(re.sub(r"^(steering of )?conversation \d+: ", "", problem) for problem in error.problems)
    sentences = "".join(f"<p>{escaped(problem)}</p>" for problem in found)
    return f'<div class="problem" role="alert"><strong>{title}</strong>{sentences}</div>'


def said(answer: Answer, detector: Detector) -> str:
    """The answer word that the model finds likelier."""
    return detector.phrasing.answers[0 if answer.log_odds > 0 else 1]


def section(title: str, content: str) -> str:
    """A part of what is shown, with its heading."""
    return f"<section><h3>{title}</h3>{content}</section>"


def cards(findings: Findings, detector: Detector, added: str) -> str:
    """The two answers side by side, each with its log-odds, the threshold, and whether it is right.

    Args:
        findings: The answers.
        detector: That was asked.
        added: What was added while the conversation was read, in words.
    """
    both = [("clean", "Clean", "nothing added", findings.clean), ("steered", "Steered", added, findings.steered)]
    return f'<div class="cards">{"".join(_card(detector, *one) for one in both)}</div>{_mass_note(findings)}'


def _card(detector: Detector, kind: str, title: str, added: str, answer: Answer) -> str:
    right = "right" if answer.steered == (kind == "steered") else "wrong"
    judged = "steered" if answer.steered else "not steered"
    mark = f"{'✓' if right == 'right' else '✗'} {right}"
    above = "above" if answer.steered else "not above"
    return (
        f'<section class="card {kind}"><h3>{title}</h3><p class="added">{escaped(added)}</p>'
        f'<p class="word">“{escaped(said(answer, detector))}”</p>'
        f'<p class="judged">judged <strong>{judged}</strong> <span class="{right}">{mark}</span></p>'
        f'<p class="numbers">log-odds <strong>{answer.log_odds:.2f}</strong>, {above} the threshold of '
        f"{answer.threshold:.2f}</p></section>"
    )


def _mass_note(findings: Findings) -> str:
    least = min(answer.mass for answer in findings)
    if least >= LITTLE_MASS:
        return ""
    share = (
        f"only {100 * least:.0f} % of the model's probability is on the two answer words together in one of these answers"
    )
    return f'<p class="note">Careful: {share}. It would rather say something else, and log-odds mean little there.</p>'


def codes(findings: Findings, examiner: Examiner) -> str:
    """A table of the answers as trained and with the words exchanged, and a sentence on what follows."""
    trained, swapped = examiner.detector, examiner.swapped
    rows = [
        ("As trained", trained, findings.clean, findings.steered),
        ("Words exchanged", swapped, findings.swapped_clean, findings.swapped_steered),
    ]
    cells = "".join(
        f'<tr><th colspan="2" scope="rowgroup">{name}: <span>“{escaped(detector.question)}”</span></th></tr>'
        f"<tr>{_said('clean', clean, detector)}{_said('steered', steered, detector)}</tr>"
        for name, detector, clean, steered in rows
    )
    return f'<table class="codes">{cells}</table><p class="note">{_follows(findings, examiner)}</p>'


def _said(state: str, answer: Answer, asked: Detector) -> str:
    """What is said of a state, in a code: the word, what it means there, and the log-odds."""
    word = said(answer, asked)
    means = "steered" if word == asked.phrasing.answers[0] else "not steered"
    return f"<td>{state}: <strong>“{escaped(word)}”</strong> <span>({means}) {answer.log_odds:+.2f}</span></td>"


def _follows(findings: Findings, examiner: Examiner) -> str:
    """What the two codes say together: whether the question is answered or a word is said."""
    rises, rises_swapped = (
        findings.steered.log_odds - findings.clean.log_odds,
        findings.swapped_steered.log_odds - findings.swapped_clean.log_odds,
    )
    first, second = (escaped(word) for word in examiner.detector.phrasing.answers)
    if rises <= 0:
        return f"Steering does not move the answer towards “{first}” here, so there is nothing to compare."
    if rises_swapped > 0:
        return (
            f"Steering moves the first answer towards “{first}” and, where “{second}” means steered, towards “{second}”: "
            "here the model answers what it is asked."
        )
    return (
        f"Steering moves the answer towards “{first}” even where “{first}” means <em>not</em> steered: this adapter has "
        "learned to say a word when it reads a steered text, and not to answer the question."
    )


def concepts(clean: Reading, steered: Reading, added: str) -> str:
    """A table of the names that were offered, with the share of each among them, and a sentence on what is said.

    Args:
        clean: The answer about the clean conversation.
        steered: The answer about the steered one.
        added: The name of the concept that was added.
    """
    rows = "".join(
        f'<tr class="{"added" if name == added else "other"}"><th scope="row">{escaped(name)}</th>'
        f"{_share(clean, name)}{_share(steered, name)}</tr>"
        for name in clean.probabilities
    )
    sentence = (
        f"Asked which of these it was steered towards, the model says “{escaped(steered.answer)}” of the steered "
        f"conversation ({escaped(added)} was added) and “{escaped(clean.answer)}” of the clean one (nothing was). Shares "
        f"are among these words, which together have {100 * min(clean.mass, steered.mass):.0f} % of the probability."
    )
    head = '<tr><th scope="col">offered</th><th scope="col">clean</th><th scope="col">steered</th></tr>'
    return f'<p class="note">{sentence}</p><table class="concepts">{head}{rows}</table>'


def _share(reading: Reading, name: str) -> str:
    share = f"{100 * reading.probabilities[name] / reading.mass:.0f} %"
    return f"<td><strong>{share}</strong></td>" if name == reading.answer else f"<td>{share}</td>"


def layers(band: tuple[int, int], n_layers: int) -> str:
    """A strip with a box for each layer of the model, those that are steered filled."""
    first, last = band
    boxes = "".join(
        f'<span class="{"on" if first <= layer <= last else "off"}">{layer}</span>' for layer in range(n_layers)
    )
    count = last - first + 1
    word = "layer" if count == 1 else "layers"
    where = f"{first}" if count == 1 else f"{first} to {last}"
    sentence = f"{count} of the model's {n_layers} layers: {word} {where}, counted from 0, the first."
    return f'<div class="layers" role="img" aria-label="{sentence}">{boxes}</div><p class="note">{sentence}</p>'


def tokens(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> str:
    """The whole text as the model reads it, with every token that is steered marked."""
    steered = "".join(f"<mark>{escaped(piece)}</mark>" for piece in pieces(encoded.context_ids, tokenizer))
    question = "".join(f"<span>{escaped(piece)}</span>" for piece in pieces(encoded.question_ids, tokenizer))
    counts = (
        f"Marked: steered, all {len(encoded.context_ids)} tokens of the conversation. Not marked: the question, "
        f"{len(encoded.question_ids)} tokens, none of them steered. {ANSWER}: where the answer is read. Tokens are the "
        "pieces in which the model reads a text; the chat template has put those between the messages."
    )
    return f'<div class="tokens">{steered}{question}<b>{ANSWER}</b></div><p class="note">{html.escape(counts)}</p>'


def pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token, parts of one character joined; the whole text as one where tokens alone read otherwise."""
    found, waiting = [], []
    for token in ids:
        waiting.append(token)
        piece = tokenizer.decode(waiting, clean_up_tokenization_spaces=False)
        if "\ufffd" not in piece:
            found.append(piece)
            waiting = []
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return found if "".join(found) == whole else [whole]
