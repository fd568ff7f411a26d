"""Terms that a report explains at its end."""

from __future__ import annotations

TERMS = {
    "context": "The first turn of a conversation: system prompt, user message, reply. Only its tokens are ever steered.",
    "kind": "What sort of text a context is: chat, Python, French, logs. Unseen: no context of that kind was trained on.",
    "question": "The second turn, which asks whether something was done to the first. It is never steered.",
    "steering": "Adding a vector to the residual stream after every layer of a band, at every token of a context.",
    "band": "The layers steered, first..last, both included.",
    "strength": "How much is added. Relative: a fraction of the median norm of the residual stream after that layer, "
    "divided by the square root of the number of layers in the band that matter. Absolute: the length itself.",
    "random vector": "A random direction. Held-out: from a stream of its own, in no direction trained on.",
    "concept vector": "The direction of a concept such as bread: its mean activation minus that of all concepts.",
    "log-odds": "logit(yes) - logit(no) at the place of the answer: the score.",
    "threshold": "Log-odds above it count as steered. Set on validation data, before any test.",
    "mass": "P(yes) + P(no) among all words. Where it is small the log-odds mean nothing. Best 1.",
    "AUROC": "How often a steered trial has higher log-odds than a clean one. Chance .5, best 1; it needs no threshold.",
    "TPR": "The share of steered trials that are called steered. Best 1.",
    "FPR": "The share of distinct clean inputs that are called steered. Best 0.",
    "TPR at 1 % FPR": "The TPR where the threshold lets through 1 % of clean inputs.",
    "d'": "Distance between clean and steered in standard deviations, from TPR and FPR; rates of 0 and 1 are corrected.",
    "detection strength": "The strength from which on 75 % of steered trials are detected at 1 % FPR, by a psychometric "
    "function. Of its interval only one end is given where the other lies beyond what was tested.",
    "interval": "95 %. Of FPR: Wilson's, over distinct clean inputs, since a model answers equal inputs equally.",
    "linear probe": "A linear classifier of the activations: what can be read out of them from outside.",
    "cache reader": "A small network that reads whole caches, trained from outside on the adapter's trials: what can be "
    "found at least.",
    "information": "Bits about steered or clean that the score gives for each trial. Best 1.",
    "logit lens": "The log-odds that the residual stream after a layer would give if it were the last.",
    "balanced accuracy": "The mean of the shares of steered and of clean trials judged rightly. Chance .5.",
}
