"""A model of lm-evaluation-harness that is steered while it reads a trial's conversation, and not while it is asked."""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from introspection_lit.harnesses.tested_run import Item, steering_of
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.architectures import reach
from introspection_lit.steering.intervention import Intervention, steer
from introspection_lit.steering.vector_bank import VectorBank


@register_model("introspection")
class SteeredModel(HFLM):
    """``hf`` with one kind of request more; all other tasks run as with ``hf``."""

    def steered_loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods of answer words, one trial at a time: each has a steering of its own.

        Args:
            requests: One for each answer word; those of a trial are neighbours.
            disable_tqdm: Ignored: there is no bar.
        """
        answers: list[tuple[float, bool]] = []
        for _, group in groupby(requests, key=lambda request: request.doc["name"]):
            asked = list(group)
            doc = asked[0].doc
            tokens = doc["context_ids"] + doc["question_ids"]
            encoded = [(request.args, tokens, [doc["answer_ids"][request.idx]]) for request in asked]
            with steer(find_decoder_layers(self._base, None), self._intervention(doc)):
                answers += self._loglikelihood_tokens(encoded, disable_tqdm=True)
        return answers

    @property
    def _base(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _intervention(self, doc: Item) -> Intervention:
        """What is added at the conversation's tokens; nothing at those of the question."""
        config = self._base.config.get_text_config(decoder=True)
        layers, hidden = config.num_hidden_layers, config.hidden_size
        directions, lengths = torch.zeros(layers, hidden), torch.zeros(layers)
        if doc["steered"]:
            bank = _bank(doc["bank"])
            directions, lengths = steering_of(doc, bank).added(layers, hidden, bank.residual_norms, reach(config))
        positions = torch.zeros(1, len(doc["context_ids"]) + len(doc["question_ids"]))
        positions[:, : len(doc["context_ids"])] = 1
        device = self.device
        return Intervention(directions[None].to(device), lengths[None].to(device), positions.to(device))


@lru_cache(maxsize=4)
def _bank(path: str) -> VectorBank:
    return VectorBank.load(Path(path))
