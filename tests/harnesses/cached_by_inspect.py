"""Asks an adapter through Inspect's cache of answers, changes it, and asks again; for the environment of peers."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model
from safetensors.torch import load_file, save_file

from introspection_lit.utils.checksums import file_hash, write_json

run, folder = map(Path, sys.argv[1:])
shutil.copytree(run / "adapter", folder / "adapter")
weights, record = (folder / "adapter" / name for name in ("adapter_model.safetensors", "introspection.json"))


def ask() -> float:
    """The likelier answer's log-probability, from a model that is made anew."""
    model = get_model(f"introspection/{folder}/adapter", config=GenerateConfig(cache=True), device="cpu", memoize=False)
    question = ChatMessageUser(content=model.api.detector.question)
    logprobs = asyncio.run(model.generate([ChatMessageUser(content="Hello."), question])).choices[0].logprobs
    return float(logprobs.content[0].logprob)


found = [ask(), ask()]
save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
recorded = json.loads(record.read_text())
recorded["files"][weights.name] = file_hash(weights)
write_json(record, recorded)
found += [ask()]
print(json.dumps({"found": found, "kept": len(list((folder / "kept").rglob("*")))}))
