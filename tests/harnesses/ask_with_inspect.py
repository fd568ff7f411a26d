"""Runs the task of Inspect AI on a run with three models, and prints what their logs say; for the environment of peers."""

from __future__ import annotations

import json
import sys

from inspect_ai import eval as evaluate
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from introspection_lit.harnesses.inspect_ai import introspection

assert "torch" not in sys.modules, "Inspect loads its extensions whenever it looks for a task or a model"

run, base, logs, sentence = sys.argv[1:]


def said(text: str) -> ModelOutput:
    """What a model without log-probabilities says; without usage, Inspect would download an encoding to count tokens."""
    output = ModelOutput.from_content("mockllm/model", text)
    output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    return output


models = {
    "adapter": get_model(f"introspection/{run}/adapter", device="cpu"),
    "text": get_model("mockllm/model", custom_outputs=[said(text) for text in (sentence, "I cannot say.") * 5]),
    "plain": get_model("hf/base", model_path=base, device="cpu", do_sample=False),
}
found = {}
for name, model in models.items():
    (log,) = evaluate(introspection, task_args={"run": run}, model=model, log_dir=logs, display="none", max_tokens=3)
    assert log.status == "success", log.error
    found[name] = {
        "metadata": log.eval.metadata,
        "metrics": {name: metric.value for name, metric in log.results.scores[0].metrics.items()},
        "scores": {sample.id: sample.scores["detection"].metadata for sample in log.samples},
        "said": {sample.id: sample.output.completion for sample in log.samples},
    }
print(json.dumps(found))
