"""Contexts whose replies the model itself writes, so that the text is typical of its own output."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from introspection_lit.contexts.context import Context, exchange
from introspection_lit.utils.cache_option import cache_option
from introspection_lit.utils.seeds import generator

KIND = "model-written"
TEMPERATURE = 0.8
LONGEST = 80  # tokens of a reply; a longer one is left out
REQUESTS = (
    "Tell me about {} in two sentences.",
    "What should a beginner know about {}?",
    "Write a short message to a friend about {}.",
    "Give me one good reason to like {}.",
    "Explain {} to a child, briefly.",
    "I am writing a talk on {}. How should I begin?",
    "Name three things that go with {}.",
    "What is the hardest part of {}?",
    "Make up a question about {} and answer it.",
    "Is {} worth a whole weekend? Answer in one line.",
    "Describe {} without using the word itself.",
    "My neighbour cannot stop talking about {}. What can I say?",
    "A slogan for {}, please.",
    "Where does {} come from?",
)
SUBJECTS = (
    "beekeeping", "night trains", "sourdough", "chess", "wool", "thunderstorms", "maps", "the trombone", "lighthouses",
    "recycling", "juggling", "moss", "tax forms", "comets", "fencing", "tea", "earthquakes", "wild garlic", "typewriters",
    "swimming in cold water", "origami", "bats", "jury duty", "street markets", "sign language", "caves", "metre and inch",
    "puppets", "rye bread", "migrating birds", "hiccups", "stamps", "clay", "roundabouts", "ice hockey", "lullabies",
    "solar panels", "crosswords", "snails", "goats", "silence", "rope bridges", "onions", "dancing", "old radios", "rivers",
)  # fmt: skip


def requests(seed: int) -> Iterator[str]:
    """All combinations of request and subject, each once, in random order."""
    pairs = [(template, subject) for template in REQUESTS for subject in SUBJECTS]
    for index in generator(seed, "context sources", KIND).permutation(len(pairs)):
        template, subject = pairs[index]
        yield template.format(subject)


@torch.no_grad()
def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, users: list[str], random: torch.Generator
) -> list[str]:
    """Sample the model's replies to a batch of messages.

    Args:
        model: The model, in eval mode.
        tokenizer: Its tokenizer.
        users: The user messages; their tokens are padded on the left.
        random: Random generator on the CPU; used once for each token of the batch.

    Returns:
        The replies, stripped; empty if the model wrote nothing or did not end within ``LONGEST`` tokens.
    """
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True)
        for user in users
    ]
    encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    longest = max(map(len, encoded))
    end_tokens = getattr(model.generation_config, "eos_token_id", None)  # a number, several, or None
    ends = {tokenizer.eos_token_id, *(end_tokens if isinstance(end_tokens, list) else [end_tokens])}
    tokens = torch.tensor([[0] * (longest - len(ids)) + ids for ids in encoded], device=model.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in encoded], device=model.device)
    replies: list[list[int]] = [[] for _ in users]
    open_rows = set(range(len(users)))
    cache, name = None, cache_option(model)
    for _ in range(LONGEST):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            **{name: cache},
            use_cache=True,
            logits_to_keep=1,
        )
        cache = getattr(output, name)
        probabilities = (output.logits[:, -1].float().cpu() / TEMPERATURE).softmax(-1)
        tokens = torch.multinomial(probabilities, 1, generator=random).to(model.device)
        mask = torch.cat([mask, torch.ones_like(tokens)], 1)
        for row in sorted(open_rows):
            token = int(tokens[row])
            if token in ends:
                open_rows.discard(row)
            else:
                replies[row].append(token)
        if not open_rows:
            break
    texts = (tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in replies)
    return ["" if row in open_rows else str(text) for row, text in enumerate(texts)]


def model_written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    usable: Callable[[Context], bool],
    count: int,
    seed: int,
    batch: int = 16,
) -> Iterator[Context]:
    """Make contexts of kind ``model-written``, without empty or unfinished replies and contexts that are too long.

    Args:
        model: The model, in eval mode.
        tokenizer: Its tokenizer, with a chat template.
        usable: Whether a context is short enough.
        count: Number of contexts; fewer if the requests run out (there are subjects times wordings).
        seed: Random seed; replies are reproducible on the same hardware and versions only.
        batch: Number of replies sampled at once.
    """
    source = requests(seed)
    random = torch.Generator().manual_seed(int(np.random.default_rng([seed, 7]).integers(2**31)))
    n_contexts = 0
    while n_contexts < count:
        users = [user for _, user in zip(range(batch), source, strict=False)]
        if not users:
            return
        for user, reply in zip(users, sample(model, tokenizer, users, random), strict=True):
            if reply and n_contexts < count and usable(context := exchange(KIND, user, reply)):
                n_contexts += 1
                yield context
