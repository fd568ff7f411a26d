"""The texts of the page, for somebody who has not read a paper, and the conversations that it begins with."""

from __future__ import annotations

INTRODUCTION = """\
# Does the model notice?

A language model turns a text into long lists of numbers, layer by layer, before it answers. Here you can **steer**
it: while it reads your conversation, a direction is added to these numbers. Then the direction is taken away, and the
model is asked whether somebody tampered with it. It was trained to notice, on other directions and other texts.

You get two answers: **clean** (nothing was added) and **steered**. A good detector says no to the first and yes to
the second.
"""

EXPLANATION = """\
**Log-odds** say how sure the model is: how much likelier than the other word it finds the one that means "steered",
on a logarithmic scale. 0: both alike. +2.3: ten times likelier. -2.3: ten times less likely.

**Threshold.** The model counts as having noticed if the log-odds are above this number. It was set once, on other
texts, and is stored with the adapter (the trained part of the model); it need not be 0, so a "no" can still count as
noticed.

**Direction.** A *random* direction means nothing; the model never met these in training. A *concept* is the direction
in which the numbers move when texts are about bread, cats, ...; it was found in the model itself. Or a *file* of your
own.

**Layers.** The direction is added after each of the layers between the two sliders. Early layers are near the words,
late ones near the answer. What is added after the last layer of all would change nothing that the question can read.

**Strength.** 1 on ten layers adds a third of the usual size of these numbers after each of them. Training used a
range of strengths; below it, steering is hard to notice, and far above it the text is drowned.

**Words exchanged.** Asked to say "no" if it was tampered with, a model that has understood the question exchanges its
answers. One that has only learned to say "yes" when it reads something odd does not. The threshold does not apply to
this question.

**Which concept.** An adapter that was trained to name concepts is also asked which of nine was added, or nothing. It
was trained on other concepts than those of this page. Others are not asked.

**What this does not show.** One conversation is an anecdote: how often it is right is in the report of the run. Only the
conversation is steered; question and answer are read without.
"""

# A message and a reply each, written for this page.
EXAMPLE_NAMES = ["Cooking", "Python", "The sky"]
EXAMPLES = [
    [
        "What should I cook tonight? I have rice, mushrooms and half an hour.",
        "A risotto: fry the mushrooms, add the rice and warm stock little by little, and stir in some butter at the end.",
    ],
    [
        "Write a function in Python that counts the vowels in a word.",
        "def vowels(word):\n    return sum(letter in 'aeiou' for letter in word.lower())",
    ],
    [
        "Why is the sky blue in the day and red in the evening?",
        "Air scatters blue light more than red. In the evening sunlight crosses more air, so mostly red is left of it.",
    ],
]
