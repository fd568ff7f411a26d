#!/usr/bin/env bash
# torchmetrics 1.9.0, torch 2.13.0, scikit-learn 1.9.0: the AUROC of log-odds depends on how large they are, and on the batches.
#
# Guess: BinaryAUROC takes logits as well as probabilities, and since only their order counts, the sigmoid that it puts on logits
#        changes nothing; batches add up to what all rows give at once.
# Seen:  the sigmoid is computed in float32, where it is exactly 1 from 17 on: log-odds of 18 and 19 (clean) and 25 and 30 (steered)
#        become ties, and the AUROC .667 where the scores' is 1. And each `update` decides anew whether its scores are
#        logits: scores of which all are in [0, 1] stay as they are. So .9 (clean) in one batch, and 1.5 (steered) in another
#        become .9 and .818: AUROC 0; in one batch it is 1. BinaryAveragePrecision rounds large log-odds in the same way (.5).
#        scikit-learn's functions, which sort what they are given, say 1 in both.
# Fails if the numbers change. Run: bash findings/torchmetrics-log-odds.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 torchmetrics==1.9.0 scikit-learn==1.9.0
cat > "$folder/look.py" <<'PYTHON'
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision


def both(metric, *batches):
    """The metric of batches of (score, label)."""
    made = metric()
    for batch in batches:
        scores, labels = zip(*batch)
        made.update(torch.tensor(scores), torch.tensor(labels))
    return round(float(made.compute()), 3)


large = [(-2.0, 0), (18.0, 0), (19.0, 0), (25.0, 1), (30.0, 1)]
scores, labels = zip(*large)
found = {
    "large log-odds, AUROC": both(BinaryAUROC, large),
    "large log-odds, AUROC of scikit-learn": round(roc_auc_score(labels, scores), 3),
    "large log-odds, average precision": both(BinaryAveragePrecision, large),
    "large log-odds, average precision of scikit-learn": round(average_precision_score(labels, scores), 3),
    "one batch, AUROC": both(BinaryAUROC, [(0.9, 0), (1.5, 1)]),
    "two batches, AUROC": both(BinaryAUROC, [(0.9, 0)], [(1.5, 1)]),
}
for name, value in found.items():
    print(f"{name}: {value}")
expected = [0.667, 1.0, 0.5, 1.0, 1.0, 0.0]
assert list(found.values()) == expected, "it has changed"
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
