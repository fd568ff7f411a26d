"""Makes ``scripts/endurance`` importable, as it is for the scripts beside it.

``scripts/`` itself is not on the path: ``evaluate.py`` there would hide the package of that name, which lm_eval imports.
"""

from project_paths import ROOT

__path__ = [str(ROOT / "scripts" / "endurance")]
