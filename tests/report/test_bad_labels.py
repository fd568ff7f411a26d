"""Labels of figures that look like formulas or formats are drawn as they are."""

from __future__ import annotations

import io
import string

import pytest
import torch
from chat_styles import texts
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.cbook import is_math_text

from introspection_lit.report.formatting import escape_dollars, shorten
from introspection_lit.report.kind_rates import draw_rates_by_kind
from introspection_lit.report.log_odds_plot import log_odds_figure
from introspection_lit.training.model_card import CARD

pytestmark = pytest.mark.thorough
LABELS = (
    "$",
    "$x$",
    "$\\frac$",
    "{0}",
    "{name}",
    "%s %d",
    "[bold]b[/bold]",
    "[/x]",
    "\x1b[31mred",
    "a_b^c",
    "\\",
    "\u202e",
)


@given(label=st.one_of(st.sampled_from(LABELS), texts))
def test_no_label_is_a_formula_or_a_format(label: str) -> None:
    """Of no text does matplotlib make mathematics, nor the adapter's card anything but the text."""
    assert not is_math_text(escape_dollars(label))
    assert not is_math_text(shorten(label))
    fields = {field: layout for _, field, layout, _ in string.Formatter().parse(CARD) if field}
    card = CARD.format(**{field: 0.5 if layout else label for field, layout in fields.items()})
    assert card.startswith(f"---\nbase_model: {label}\nlibrary_name: peft")
    assert f'- Question: "{label}" Answers: {label}, after the assistant has begun with "{label}".' in card


@pytest.mark.filterwarnings("ignore:Glyph 27")
def test_figures_with_odd_labels_are_drawn() -> None:
    """Really drawn: matplotlib reads formulas only then."""
    scores, several = torch.tensor([0.0, 1.0]), " ".join(LABELS)
    figure = log_odds_figure({"$a_$": (scores, scores > 0), several: (scores, scores > 0)}, 0.5)
    figure.savefig(io.BytesIO(), format="png")
    assert [panel.get_title(loc="left").replace(r"\$", "$") for panel in figure.axes] == ["$a_$", several]
    row = {"seen": False, "fpr": 0.0, "fpr_interval": [0.0, 0.1], "n_clean_distinct": 3}
    rows = [{"kind": label, **row} for label in LABELS]
    drawn = draw_rates_by_kind({"$a_$ run $": rows}, "fpr")
    assert drawn is not None
    drawn.figure.savefig(io.BytesIO(), format="png")
