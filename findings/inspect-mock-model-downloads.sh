#!/usr/bin/env bash
# inspect-ai 0.3.285: whether its model for tests, `mockllm`, works without a network.
#
# Guess: `mockllm/model` answers from a list in memory, so an evaluation of it needs no network.
# Seen:  An output without `usage` gets a default one, for which Inspect counts tokens with tiktoken, which downloads the encoding
#        o200k_base from openaipublic.blob.core.windows.net: without a network the sample, and the evaluation, ends in an error.
#        `ModelOutput.from_content`, as in the documentation, has no usage. With a usage nothing is asked for.
# Fails if that changes. Run (a minute): bash findings/inspect-mock-model-downloads.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check inspect-ai==0.3.285
cat > "$folder/look.py" <<'PYTHON'
import socket
import tempfile

asked = []


def refuse(host, *rest, **options):
    asked.append(host)
    raise socket.gaierror(-2, "no network in this test")


socket.getaddrinfo = refuse

from inspect_ai import Task, eval as evaluate
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import includes


def status(usage):
    output = ModelOutput.from_content("mockllm/model", "yes")
    output.usage = usage
    model = get_model("mockllm/model", custom_outputs=[output], memoize=False)
    task = Task(dataset=[Sample(input="Yes or no?", target="yes")], scorer=includes())
    with tempfile.TemporaryDirectory() as logs:
        (log,) = evaluate(task, model=model, log_dir=logs, display="none")
    print(f"usage {usage}: {log.status}, asked for {sorted(set(map(str, asked)))}")
    return log.status


counted = status(ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2))
assert (counted, asked) == ("success", [])
assert status(None) == "error"
assert any("openaipublic" in str(host) for host in asked)
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
