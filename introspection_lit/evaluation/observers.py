"""Outside observers: classifiers that detect steering from the cache or from the text, without asking the model.

A linear probe on the KV cache shows what simple methods with full access reach; classifiers on the norms of keys and values
and on the text of the context are baselines. All are fitted on training trials of the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache

from introspection_lit.steering.caches import row_tensors
from introspection_lit.utils.errors import ConfigurationError

PROBE, NORMS, TEXT = "linear probe", "norms", "text"
# Inverse regularisation strengths (C) tried in cross-validation.
PENALTIES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]


class Features(NamedTuple):
    """Inputs of the observers for a batch of trials.

    Attributes:
        means: Keys and values of every layer and head, averaged over the context's tokens,
            ``(batch, layers * 2 * heads * head_dim)`` float32.
        norms: Mean norms of keys and values, ``(batch, layers * 2 * heads)`` float32.
        texts: The contexts as text.
    """

    means: NDArray[np.float32]
    norms: NDArray[np.float32]
    texts: list[str]


def cache_features(cache: Cache, mask: Tensor, texts: Sequence[str]) -> Features:
    """Compute the observers' features of a cache.

    The first token is left out: it is the same in every context, and its norm dwarfs all others.

    Args:
        cache: After the prefill; keys and values of each layer ``(batch, heads, context, head_dim)``. The states of
            recurrent layers, ``(batch, heads, ...)``, count as those of one token; states of convolutions are left out.
        mask: 1 at tokens, ``(batch, context)``, padded left.
        texts: Of the contexts.
    """
    tokens = mask.bool() & (mask.cumsum(dim=1) > 1)
    means, norms = [], []
    with torch.autocast(mask.device.type, enabled=False):
        for layer in cache.layers:
            for name, kept in row_tensors(layer).items():
                states = kept.float()
                if name.startswith("recurrent_states"):  # one state of all tokens
                    means.append(states.mean(dim=-1).flatten(1))
                    norms.append(states.flatten(2).norm(dim=-1))
                elif name in ("keys", "values"):
                    weights = tokens[:, -states.shape[-2] :].float()  # a sliding window keeps the last positions only
                    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
                    means.append(torch.einsum("bhtd,bt->bhd", states, weights).flatten(1))
                    norms.append(torch.einsum("bht,bt->bh", states.norm(dim=-1), weights))
    return Features(torch.cat(means, 1).cpu().numpy(), torch.cat(norms, 1).cpu().numpy(), list(texts))


def concatenate(parts: Sequence[Features]) -> Features:
    """Concatenate the features of several batches."""
    return Features(
        np.concatenate([part.means for part in parts]),
        np.concatenate([part.norms for part in parts]),
        [text for part in parts for text in part.texts],
    )


class Observers:
    """Three classifiers: a linear probe on means and norms, one on norms alone, and one on character n-grams of the text.

    All are logistic regressions whose regularisation is chosen by cross-validation over contexts. The probe's features are
    standardised and projected by PCA onto as many components as there are trials, which only saves time.

    Args:
        features: Of the training trials.
        labels: True where steered, ``(n,)``.
        groups: The context of each trial, ``(n,)``.

    Attributes:
        trials: Number of training trials.
        models: The fitted classifiers, by name.

    Raises:
        ConfigurationError: Fewer than two contexts, one class only, or NaN or infinite values in the caches.
    """

    def __init__(self, features: Features, labels: NDArray[np.bool_], groups: Sequence[Any]) -> None:
        # sklearn takes a second to import
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
            return GridSearchCV(LogisticRegression(max_iter=1000), {"C": PENALTIES}, cv=folds, scoring="neg_log_loss")

        if broken := int((~_finite_rows(features)).sum()):
            raise ConfigurationError(
                [f"data.strengths: the caches of {broken} of {len(labels)} training trials are not finite."]
            )
        self.trials = len(labels)
        n_grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), max_features=5000)
        self.models = {
            PROBE: make_pipeline(StandardScaler(), PCA(), regression()).fit(_probe_inputs(features), labels),
            NORMS: make_pipeline(StandardScaler(), regression()).fit(features.norms, labels),
            TEXT: make_pipeline(n_grams, regression()).fit(features.texts, labels),
        }

    def scores(self, features: Features) -> dict[str, NDArray[np.float64]]:
        """Log-odds of "steered", ``(batch,)``, by observer; NaN where a cache holds NaN or infinity."""
        finite = _finite_rows(features)
        means, norms = (np.where(finite[:, None], part, 0) for part in (features.means, features.norms))
        inputs = {PROBE: _probe_inputs(Features(means, norms, features.texts)), NORMS: norms, TEXT: features.texts}
        return {
            name: np.where(finite, model.decision_function(inputs[name]), np.nan) for name, model in self.models.items()
        }


def _finite_rows(features: Features) -> NDArray[np.bool_]:
    """True for trials whose features are all finite, ``(batch,)``."""
    return np.asarray(np.isfinite(features.means).all(axis=1) & np.isfinite(features.norms).all(axis=1))


def _probe_inputs(features: Features) -> NDArray[np.float32]:
    return np.concatenate([features.means, features.norms], axis=1)
