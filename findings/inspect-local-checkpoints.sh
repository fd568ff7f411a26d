#!/usr/bin/env bash
# inspect-ai 0.3.285, transformers 5.23.0, accelerate 1.15.0, torch 2.13.0: a local checkpoint in Inspect (`hf/local`, `-M model_path=...`):
# whose answers `--cache` gives, and whose log-probabilities `--logprobs`.
#
# Guess: the cache knows which checkpoint answered: another `model_path`, or greedy in place of sampled (`-M do_sample=false`), is
#        asked anew. The log-probabilities of an output are those of its tokens, one for each, as with APIs; their sum is that
#        of the answer.
# Seen:  model arguments are no part of the key, which has the model's name (`hf/local`, as the documentation of the provider
#        writes it), the base URL, messages, epoch and generation options. A second checkpoint, asked the same for a week, is given
#        the answers of the first: its weights are loaded, its log ends in "success" and names its own path, and the scores are
#        equal. So are those of another `do_sample`. A scope of one's own, CachePolicy(scopes={"model_path": ...}), tells them apart.
#        Log-probabilities are those of the most likely token at each step, not of the one that was drawn (the provider draws
#        unless told otherwise), which may not be among the `top_logprobs` either: their mean is -1.90, that of the tokens -3.10.
#        And a reply that ends early has as many of them, and as many output tokens in its usage, as the longest of its batch. With
#        do_sample=false the first is right, the second is not.
# Fails if that changes. Run (a minute, and the installation): bash findings/inspect-local-checkpoints.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip transformers==5.23.0 accelerate==1.15.0 inspect-ai==0.3.285
cat > "$folder/look.py" <<'PYTHON'
import re
import sys

import torch
from inspect_ai import Task, eval as evaluate
from inspect_ai.dataset import Sample
from inspect_ai.model import CachePolicy, GenerateConfig, get_model
from inspect_ai.scorer import includes
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

root, questions, END, NEW = sys.argv[1], [f"w{first} w6 w7" for first in range(20, 32)], "end", 24
config = Qwen3Config(
    vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=128, initializer_range=0.2, bos_token_id=None, eos_token_id=1, pad_token_id=None,
)
words = Tokenizer(models.WordLevel({END if token == 1 else f"w{token}": token for token in range(config.vocab_size)}, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
for seed, name in enumerate(("first", "second")):
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(f"{root}/{name}")
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END, pad_token=END).save_pretrained(f"{root}/{name}")
contents = "{% for message in messages %}{{ message.content }}{% endfor %}"


def ask(name, cache=None, do_sample=False):
    """Outputs and log of an evaluation of a checkpoint."""
    torch.manual_seed(5)
    path = f"{root}/{name}"
    model = get_model("hf/local", model_path=path, device="cpu", do_sample=do_sample, chat_template=contents, memoize=False)
    task = Task(dataset=[Sample(input=each, target="w9") for each in questions], scorer=includes())
    options = GenerateConfig(max_tokens=NEW, logprobs=True, top_logprobs=3, cache=cache)
    (log,) = evaluate(task, model=model, log_dir=f"{root}/logs", display="none", **options.model_dump(exclude_none=True))
    assert log.status == "success" and log.eval.model_args["model_path"] == path
    return [sample.output for sample in log.samples]


def replies(outputs):
    return [re.findall(r"w\d+", output.completion) for output in outputs]


first, second, drawn = ask("first"), ask("second"), ask("first", do_sample=True)
for name, outputs in (("first", first), ("second", second)):
    print(f"{name}, no cache:", " ".join(replies(outputs)[0]))
assert all(a != b for a, b in zip(replies(first), replies(second)))
assert replies(ask("first", cache=True)) == replies(first)
cached, sampled = ask("second", cache=True), ask("first", cache=True, do_sample=True)
print("second, cache=True, after the first:", " ".join(replies(cached)[0]))
assert replies(cached) == replies(sampled) == replies(first)
scoped = ask("second", cache=CachePolicy(scopes={"model_path": "second"}))
print("second, with a scope of its own:", " ".join(replies(scoped)[0]))
assert replies(scoped) == replies(second)

model = AutoModelForCausalLM.from_pretrained(f"{root}/first", dtype=torch.float32).eval()
for way, outputs in (("greedy", first), ("drawn", drawn)):
    told = true = same = among = 0
    lengths, entries = [], set()
    for question, tokens, output in zip(questions, replies(outputs), outputs):
        given = output.choices[0].logprobs.content
        ids = torch.tensor([[int(word[1:]) for word in (*question.split(), *tokens)]])
        with torch.no_grad():
            steps = model(ids).logits[0, 2:-1].log_softmax(-1)
        sums = sum(float(each.logprob) for each in given[: len(tokens)])
        assert abs(sums - steps.amax(-1).sum().item()) < 1e-2
        told, true = told + sums, true + steps.gather(1, ids[0, 3:, None]).sum().item()
        same += sum(each.token == token for each, token in zip(given, tokens))
        among += sum(token in [top.token for top in each.top_logprobs] for each, token in zip(given, tokens))
        lengths.append(len(tokens))
        entries |= {len(given), output.usage.output_tokens}
    print(f"{way}: of {sum(lengths)} tokens, {same} have their own log-probability and {among} are among the three; mean as given "
          f"{told / sum(lengths):.2f}, of the tokens {true / sum(lengths):.2f}")
    print(f"{way}: replies of {lengths} tokens; log-probabilities and output tokens of each: {entries}")
    assert len(entries) == 1 and max(lengths) <= min(entries)
    if way == "greedy":
        assert same == among == sum(lengths) and abs(told - true) < 0.1
    else:
        assert same < sum(lengths) / 2 and among < sum(lengths) * 0.8 and told - true > 0.5 * sum(lengths)
        assert min(lengths) < min(entries) - 1  # one for the end itself
PYTHON
INSPECT_CACHE_DIR="$folder/cache" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/look.py" "$folder" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
