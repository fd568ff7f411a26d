"""Outside observers: what can be told from the cache, or from the text alone, without asking the model.

A linear probe on the KV cache is what an outsider with full access reaches by simple means; the norms of keys and values
and the text of the context are floors. Each is fitted on trials that the adapter was trained on, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache

from introspection_lit.utils.errors import ConfigurationError

PROBE, NORMS, TEXT = "linear probe", "norms", "text"
# Inverse strengths of the penalty that are tried.
PENALTIES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]


class Features(NamedTuple):
    """What observers see of a batch of trials.

    Attributes:
        means: Keys and values of every layer and head, averaged over the context's tokens,
            ``(batch, layers * 2 * heads * head_dim)`` float32.
        norms: Their mean norms, ``(batch, layers * 2 * heads)`` float32.
        texts: The contexts in words.
    """

    means: NDArray[np.float32]
    norms: NDArray[np.float32]
    texts: list[str]


def cache_features(cache: Cache, mask: Tensor, texts: Sequence[str]) -> Features:
    """Read a cache as an outsider would.

    The first token is left out: it is the same in every context, and its norm dwarfs all others.

    Args:
        cache: As the prefill left it; layers of ``(batch, heads, context, head_dim)``.
        mask: 1 at tokens, ``(batch, context)``, padded left.
        texts: Of the contexts.
    """
    kept = mask.bool() & (mask.cumsum(dim=1) > 1)
    means, norms = [], []
    with torch.autocast(mask.device.type, enabled=False):
        for layer in cache.layers:
            there = kept[:, -layer.keys.shape[-2] :].float()  # a sliding window keeps the last positions only
            share = there / there.sum(dim=1, keepdim=True).clamp(min=1)
            for states in (layer.keys.float(), layer.values.float()):
                means.append(torch.einsum("bhtd,bt->bhd", states, share).flatten(1))
                norms.append(torch.einsum("bht,bt->bh", states.norm(dim=-1), share))
    return Features(torch.cat(means, 1).cpu().numpy(), torch.cat(norms, 1).cpu().numpy(), list(texts))


def joined(parts: Sequence[Features]) -> Features:
    """Several batches as one."""
    return Features(
        np.concatenate([part.means for part in parts]),
        np.concatenate([part.norms for part in parts]),
        [text for part in parts for text in part.texts],
    )


class Observers:
    """A linear probe on means and norms, one on norms alone, and a reader of the text, fitted on trials with labels.

    All are logistic regressions whose penalty is chosen by cross-validation over contexts. The probe's features are
    standardised and rotated to as many components as there are trials, which changes nothing but the time.

    Args:
        features: Of the training trials.
        labels: True where steered, ``(n,)``.
        groups: Which context each trial has, ``(n,)``.

    Raises:
        ConfigurationError: There are too few contexts to set the penalty by, one class only, or caches that are not finite.
    """

    def __init__(self, features: Features, labels: NDArray[np.bool_], groups: Sequence[Any]) -> None:
        # sklearn takes a second: only where observers are fitted
        from sklearn.decomposition import PCA
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, GroupKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if len(set(groups)) < 2 or len(set(labels)) < 2:
            raise ConfigurationError(
                [
                    f"evidence.probe_trials: got {len(labels)} trials of {len(set(groups))} contexts, {labels.sum()} of "
                    "them steered. Expected two contexts or more, some of both: use more trials, or 0."
                ]
            )
        folds = list(GroupKFold(min(5, len(set(groups)))).split(labels, labels, groups))

        def regression() -> GridSearchCV:
            found = LogisticRegression(max_iter=1000)
            return GridSearchCV(found, {"C": PENALTIES}, cv=folds, scoring="neg_log_loss")

        if broken := int((~_finite(features)).sum()):
            raise ConfigurationError(
                [f"data.strengths: the caches of {broken} of {len(labels)} training trials are not finite."]
            )
        self.trials = len(labels)
        words = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), max_features=5000)
        self.fitted = {
            PROBE: make_pipeline(StandardScaler(), PCA(), regression()).fit(_probed(features), labels),
            NORMS: make_pipeline(StandardScaler(), regression()).fit(features.norms, labels),
            TEXT: make_pipeline(words, regression()).fit(features.texts, labels),
        }

    def scores(self, features: Features) -> dict[str, NDArray[np.float64]]:
        """The log-odds that each observer gives to "steered", ``(batch,)``, by name; nan where a cache is not finite."""
        fine = _finite(features)
        means, norms = (np.where(fine[:, None], part, 0) for part in (features.means, features.norms))
        seen = {PROBE: _probed(Features(means, norms, features.texts)), NORMS: norms, TEXT: features.texts}
        return {name: np.where(fine, model.decision_function(seen[name]), np.nan) for name, model in self.fitted.items()}


def _finite(features: Features) -> NDArray[np.bool_]:
    """The trials whose caches are, ``(batch,)``."""
    return np.asarray(np.isfinite(features.means).all(axis=1) & np.isfinite(features.norms).all(axis=1))


def _probed(features: Features) -> NDArray[np.float32]:
    return np.concatenate([features.means, features.norms], axis=1)
