"""Plans of trials whose caches are changed besides steering: every change in turn, or benign ones in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from introspection_lit.steering.bands import Bands
from introspection_lit.tasks.questionnaire import STEERING, PairKinds
from introspection_lit.trials.composed_plans import ExchangesPlan, MixedPlan, SeveralQuestionsPlan
from introspection_lit.trials.curriculum import Curriculum
from introspection_lit.trials.plans import PairedPlan, Plan, TrialPlan, equal_part
from introspection_lit.trials.trial import Trial
from introspection_lit.utils.seeds import draw_in_rounds, generator

# The strength of steered trials whose caches are changed, in ``data.strength_unit``.
STRENGTH = 0.5


@dataclass(frozen=True)
class DeployedPlan(PairedPlan):
    """Pairs of a clean and a steered cache with every change in turn, over the same contexts and interventions.

    With n changes, pairs nj to nj + n - 1 share context, question, direction and band; pair i has change ``i % n``.

    Attributes:
        seed: The experiment's seed.
        split: Name of the split; names the random stream.
        contexts: Number of contexts.
        questions: Number of questions.
        vectors: Number of directions.
        bands: Bands to draw from, (first, last) layer inclusive.
        strengths: Lowest and highest strength, which are equal.
        changes: Names of the changes; empty: none.
        variants: Changes that are other texts, each with the distance of a context's variant from it in the split's list.
    """

    seed: int
    split: str
    contexts: int
    questions: int
    vectors: int
    bands: Bands
    strengths: tuple[float, float]
    changes: tuple[str, ...]
    variants: tuple[tuple[str, int], ...] = ()

    def trial(self, number: int) -> Trial:
        """Make trial ``number``."""
        pair, steered = divmod(number, 2)
        turn, place = divmod(pair, len(self.changes))
        context, change = self.context_of(pair), self.changes[place]
        question = draw_in_rounds(self.seed, self.split, "question", turn, self.questions)
        if not steered:
            return Trial(self.split, number, context, question, steered=False, change=change)
        vector = draw_in_rounds(self.seed, self.split, "vector", turn, self.vectors)
        band = self.bands[draw_in_rounds(self.seed, self.split, "band", turn, len(self.bands))]
        return Trial(self.split, number, context, question, True, vector, band, self.strengths[0], change=change)

    def context_of(self, pair: int) -> int:
        """Index of the context of both trials of a pair."""
        turn, place = divmod(pair, len(self.changes))
        context = draw_in_rounds(self.seed, self.split, "context", turn, self.contexts)
        return context + dict(self.variants).get(self.changes[place], 0)

    def batch(
        self, number: int, size: int, lengths: Sequence[int], pool: int, share: tuple[int, int] = (0, 1)
    ) -> list[Trial]:
        """The trials of a batch: pairs of the same change, as far as they go, with contexts of similar length."""
        pool_number, position = divmod(number, pool)
        each = size // 2
        pairs = range(pool_number * pool * each, (pool_number + 1) * pool * each)
        order = sorted(pairs, key=lambda pair: (pair % len(self.changes), lengths[self.context_of(pair)], pair))
        batch = equal_part(order[position * each : (position + 1) * each], share)
        return [self.trial(2 * pair + place) for pair in batch for place in range(2)]


@dataclass(frozen=True)
class BenignPlan(TrialPlan):
    """Trials in pairs, a share of which have caches that are changed in a benign way, the same for both.

    Attributes:
        changes: Names of the changes, drawn equally often.
        share: Share of the pairs that have one, 0 to 1.
        kinds_of: Kinds of the pairs, of which only those of a clean and a steered cache are changed; None: all are such.
        variants: Changes that are other texts, each with the distance of a context's variant from it in the split's list.
    """

    changes: tuple[str, ...] = ()
    share: float = 0.0
    kinds_of: PairKinds | None = None
    variants: tuple[tuple[str, int], ...] = ()

    def change_of(self, pair: int) -> str:
        """The change of both caches of a pair; empty: none."""
        random = generator(self.seed, "change", self.split, pair)
        if random.random() >= self.share or (self.kinds_of is not None and self.kinds_of.of(pair) != STEERING):
            return ""
        return self.changes[int(random.integers(len(self.changes)))]

    def trial(self, number: int) -> Trial:
        """Make trial ``number``."""
        return super().trial(number)._replace(change=self.change_of(number // 2))

    def context_of(self, pair: int) -> int:
        """Index of the context of both trials of a pair."""
        return super().context_of(pair) + dict(self.variants).get(self.change_of(pair), 0)


def innermost(plan: Plan) -> Plan:
    """The plan that contexts and interventions are drawn by, of a plan that may be made of others."""
    while isinstance(plan, SeveralQuestionsPlan | MixedPlan | ExchangesPlan):
        plan = plan.pairs
    return plan


def benign_plan_of(plan: Plan) -> BenignPlan | None:
    """The plan with benign changes that a plan is made of, if there is one."""
    plan = innermost(plan)
    return plan if isinstance(plan, BenignPlan) else None


def curriculum_of(plan: Plan) -> Curriculum | None:
    """The curriculum of the strengths of a plan, if there is one; its trials are caches."""
    plan = innermost(plan)
    return plan.curriculum if isinstance(plan, TrialPlan) else None


def subtracts(plan: Plan) -> bool:
    """Whether some trials of a plan subtract their direction."""
    plan = innermost(plan)
    return isinstance(plan, TrialPlan) and plan.both_signs


PlanType = TypeVar("PlanType", bound=Plan)


def without_curriculum(plan: PlanType) -> PlanType:
    """The same plan, but every trial has the strengths that the curriculum ends with."""
    if isinstance(plan, TrialPlan):
        return replace(plan, curriculum=None)
    if isinstance(plan, SeveralQuestionsPlan | MixedPlan | ExchangesPlan):
        return replace(plan, pairs=without_curriculum(plan.pairs))  # type: ignore[arg-type]
    return plan
