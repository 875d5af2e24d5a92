"""Slow, obvious versions of what the package computes fast: one forward pass per pair, plain loops."""

from __future__ import annotations

import math

import numpy as np
import torch


def token_probabilities(model, context: list[int], response: list[int]) -> list[float]:
    """Probability of each response token, from one full forward pass over the whole sequence.

    The logits at position t are about token t + 1, so response token k is read at len(context) + k - 1.
    """
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + response])).logits[0].float()
    softmax = torch.softmax(logits, dim=-1)
    return [float(softmax[len(context) + k - 1, token]) for k, token in enumerate(response)]


def distance(probabilities: list[float]) -> float:
    """DELIFT's distance: ||p - 1||_2 / sqrt(T)."""
    return math.sqrt(sum((p - 1) ** 2 for p in probabilities)) / math.sqrt(len(probabilities))


def plain_context(tokenizer, wording, example: dict | None, query: dict) -> list[int]:
    """The context of a query in a plain wording, each piece tokenised on its own."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def filled(template: str, sample: dict) -> list[int]:
        before, _, rest = template.partition("{prompt}")
        between, found, after = rest.partition("{response}")
        if not found:
            return ids(before) + ids(sample["prompt"]) + ids(rest)
        return ids(before) + ids(sample["prompt"]) + ids(between) + ids(sample["response"]) + ids(after)

    shown = ids(wording.without_example) if example is None else filled(wording.with_example, example)
    return shown + filled(wording.query, query)


def chat_context(tokenizer, example: dict | None, query: dict) -> list[int]:
    """The context of a query in the model's chat template, rendered and tokenised as a whole."""
    messages = [{"role": "user", "content": query["prompt"]}]
    if example is not None:
        earlier = [("user", example["prompt"]), ("assistant", example["response"])]
        messages = [{"role": role, "content": content} for role, content in earlier] + messages
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def delift(model, tokenizer, context, pool: list[dict], target: list[dict]) -> np.ndarray:
    """DELIFT's influence, (n_pool, n_target): d(no example) - d(example).

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        context: gives the token ids in front of a response, from an example (or None) and a query.
        pool: the examples.
        target: the queries.
    """
    influence = np.zeros((len(pool), len(target)))
    for j, query in enumerate(target):
        response = tokenizer(query["response"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        alone = distance(token_probabilities(model, context(None, query), response))
        for i, example in enumerate(pool):
            shown = distance(token_probabilities(model, context(example, query), response))
            influence[i, j] = alone - shown
    return influence
