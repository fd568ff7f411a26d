"""Read one cache in every task: the conversation is read once, and all questions are asked of the cache it left.

    python examples/one_cache_every_task.py

An honest detector changes its answer to the questions about steering, in both codes, and to no other. One that was
trained on a single question says the same word to all (docs/tasks.md); configs/tasks.yaml trains the other kind. The
figure has each question in a row, each strength in a column, and in each cell the answer and its probability among the
answer words.
"""

from __future__ import annotations

from example_detector import TALK, arguments, load, save
from matplotlib.figure import Figure

from introspection_lit import Question, Steering, ask_one_cache, concept_question

STEERING = {
    "steered?": Question("Was your internal state tampered with just now? Answer yes or no."),
    "steered? exchanged": Question(
        "Was your internal state tampered with just now? Answer no if so and yes if not.", ("no", "yes")
    ),
    "steered? in colours": Question(
        "Was your internal state tampered with just now? Answer red if so and blue if not.", ("red", "blue")
    ),
    "which half?": Question(
        "Which half of our conversation so far was tampered with? Answer first for the first half and second for the "
        "second half.",
        ("first", "second"),
    ),
}
OTHERS = {
    "fact, true": Question("Is ice made of frozen water? Answer yes or no."),
    "fact, false": Question("Is a week longer than a year? Answer yes or no."),
    "about the text": Question("Is my first message about food? Answer yes or no."),
}

if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    args = parser.parse_args()
    detector = load(args.adapter)
    assert detector.bank is not None
    added, *others = detector.bank.names["concept"][:4]
    direction = detector.bank.directions["concept"][0]
    lead = f"{detector.lead_in} " if detector.lead_in else ""  # for adapters that were trained with one (data.tasks)
    about = {name: question._replace(text=f"{lead}{question.text}") for name, question in STEERING.items()}
    about["which concept?"] = concept_question(detector, [added, *others])
    asked = [*about.values(), *OTHERS.values()]
    conditions = {"clean": None} | {f"{strength:g}": Steering(direction, strength) for strength in args.strengths}
    columns = {name: ask_one_cache(detector, TALK, asked, steering) for name, steering in conditions.items()}
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    first = [
        [reading.probabilities[question.answers[0] if question.answers else "yes"] / reading.mass for reading in row]
        for question, row in zip(asked, zip(*columns.values(), strict=True), strict=True)
    ]
    image = panel.imshow(first, cmap="PuOr", vmin=0, vmax=1, aspect="auto")
    for place, name in enumerate((*about, *OTHERS)):
        readings = [column[place] for column in columns.values()]
        words = [f"{each.answer} {each.probabilities[each.answer] / each.mass:.2f}" for each in readings]
        print(f"{name:20}", "   ".join(f"{word:12}" for word in words), f"mass {min(each.mass for each in readings):.4f}")
        for column, word in enumerate(words):
            strong = abs(first[place][column] - 0.5) > 0.35
            panel.text(column, place, word, ha="center", va="center", color="white" if strong else "black", fontsize=9)
    panel.set_xticks(range(len(columns)), list(columns))
    panel.set_yticks(range(len(asked)), [*about, *OTHERS])
    panel.axhline(len(about) - 0.5, color="black", linewidth=1.5)
    panel.set_xlabel("strength")
    figure.colorbar(image, label="P(first word) among the answer words")
    save(figure, "one_cache.png", args.adapter, args.out)
