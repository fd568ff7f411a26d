"""The style sheet of the page: colours of the report's figures, nothing wider than a telephone, nothing from elsewhere."""

from __future__ import annotations

# In the order of the page. Colours with var() are Gradio's own, which follow the visitor's choice of light or dark.
CSS = """
.gradio-container { max-width: 62rem !important; margin: 0 auto !important; --soft: #5a6068; }
.dark .gradio-container, .gradio-container.dark { --soft: #a8afb8; }
#ask { color: #1c1e21; }
.dark #ask { color: #fff; }
.shown { overflow-wrap: anywhere; padding: 0 !important; }
.shown h3 { margin: 0 0 .4rem; font-size: 1rem; }
.shown p { margin: .3rem 0; }
.shown > section, .shown section + section { margin-top: 1.4rem; }
.shown .card + .card { margin-top: 0; }
.shown .note { color: var(--soft); font-size: .875rem; max-width: 46rem; }
.shown .problem { border-left: 4px solid #D55E00; background: var(--block-background-fill); padding: .6rem .9rem; }
.shown .cards { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem; }
.shown .card { border: 1px solid var(--border-color-primary); border-top: 5px solid #0072B2; border-radius: .5rem;
  background: var(--block-background-fill); padding: .7rem .8rem; min-width: 0; }
.shown .card.steered { border-top-color: #E69F00; }
.shown .card .added { color: var(--soft); font-size: .875rem; min-height: 2.6em; }
.shown .card .word { font-size: 1.9rem; line-height: 1.2; font-weight: 600; }
.shown .card .numbers { font-size: .875rem; font-variant-numeric: tabular-nums; }
.shown .right, .shown .wrong { white-space: nowrap; font-weight: 600; }
.shown .right { color: #00795a; }
.shown .wrong { color: #b8470a; }
.dark .shown .right { color: #35c79c; }
.dark .shown .wrong { color: #ff9a5c; }
.shown table, .shown tr { border: 0 !important; }
.shown table { width: 100%; border-collapse: collapse; margin: 0; font-variant-numeric: tabular-nums; }
.shown th, .shown td { text-align: left; vertical-align: top; padding: .3rem .5rem .3rem 0 !important;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.shown .codes { table-layout: fixed; max-width: 46rem; }
.shown .codes th { border-bottom: 0 !important; padding-top: .7rem !important; }
.shown .codes span { color: var(--soft); font-weight: 400; font-size: .875rem; }
.shown .concepts { max-width: 26rem; }
.shown .concepts th { font-weight: 400; }
.shown .concepts .added th { font-weight: 600; }
.shown .layers { display: flex; flex-wrap: wrap; gap: 3px; }
.shown .layers span { width: 1.65rem; text-align: center; font-size: .8rem; line-height: 1.6rem; border-radius: 3px;
  border: 1px solid var(--border-color-primary); }
.shown .layers .on { background: #E69F00; border-color: #E69F00; color: #000; font-weight: 600; }
.shown .tokens { white-space: pre-wrap; font-family: ui-monospace, monospace; font-size: .8125rem; line-height: 1.75;
  border: 1px solid var(--border-color-primary); border-radius: .5rem; padding: .6rem .7rem; }
.shown mark { background: #f7d693; color: #000; box-shadow: inset -1px 0 #b97f00; }
.shown .tokens b { color: #0072B2; }
.shown img { width: 100%; max-width: 34rem; height: auto; display: block; border-radius: .5rem; }
.shown details { font-size: .875rem; max-width: 34rem; }
@media (max-width: 30rem) {
  .shown .cards { gap: .5rem; }
  .shown .card { padding: .55rem .6rem; }
  .shown .card .added { min-height: 4.9em; }
}
"""
