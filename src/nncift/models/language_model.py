"""A causal language model with its tokenizer: log-probabilities of given responses.

In-context influence puts one example in front of many queries. The example is a shared prefix: it is encoded once
(`prefix_cache`), and its keys and values are joined to length-sorted batches of right-padded continuations (query and
response). Right padding is hidden by the causal mask and leaves the positions as they are. Only the positions that
predict a response token go through the output layer (`causal_model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from nncift.models.causal_model import CausalModel
from nncift.models.loading import load_causal_lm, quiet
from nncift.models.prefix_cache import Prefix, continues_prefix, encode_prefix
from nncift.models.text.tokenization import Tokenization

__all__ = ["LanguageModel", "Prefix"]

_CHUNK = 2**25  # positions x vocabulary that are copied to float32 at a time for the softmax


class LanguageModel(CausalModel, Tokenization):
    """A causal language model with its tokenizer.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer; neither a pad token, an end token nor a chat template is needed.
        name: its name in messages.
        max_length: longest sequence, in tokens; the model's own limit unless given.

    Attributes:
        shares_prefix: whether prefixes are encoded once; the others are those of `CausalModel` and `Tokenization`.

    Raises:
        ModelError: the model cannot be run, is not causal, or gives logits that are not finite.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str = "language model", max_length: int | None = None
    ) -> None:
        CausalModel.__init__(self, model, name)
        Tokenization.__init__(self, tokenizer, model.config, name=name, max_length=max_length)
        with quiet():
            self.shares_prefix = continues_prefix(self)
        self.forward_tokens = 0

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "float32",
        device: str | None = None,
        max_length: int | None = None,
        trust_remote_code: bool = False,
        tokenizer: Any = None,
    ) -> Self:
        """Load a model from a folder or the hub; weights from safetensors alone.

        Args:
            name: a folder, a hub id such as "org/name", or "embedded".
            dtype: "float32", "bfloat16", "float16", "auto" (as stored); "8bit" or "4bit" weights through bitsandbytes,
                which compute in bfloat16, on the CPU in float32.
            device: "cuda", "mps", "cpu"; the best there is unless given.
            max_length: longest sequence, in tokens.
            trust_remote_code: run code that comes with the model.
            tokenizer: the model's, where it is loaded already.

        Raises:
            ConfigError: `dtype` is none of these, or the device cannot be used.
            DependencyError: `dtype` needs bitsandbytes, which is not installed.
            ModelError: the model cannot be found, loaded or used.
        """
        model, tokenizer = load_causal_lm(
            name, dtype=dtype, device=device, trust_remote_code=trust_remote_code, tokenizer=tokenizer
        )
        return cls(model, tokenizer, name=name, max_length=max_length)

    def prefix(self, ids: Sequence[int]) -> Prefix:
        """Encode a shared prefix, which may be empty; costs `len(ids)` tokens."""
        return encode_prefix(self, list(ids)) if ids and self.shares_prefix else Prefix(list(ids), None)

    def response_probabilities(
        self, prefix: Prefix, queries: Sequence[list[int]], responses: Sequence[list[int]], *, batch_size: int = 32
    ) -> list[np.ndarray]:
        """Probability of each response token after the prefix, the query and the response tokens before it.

        Args:
            prefix: from `prefix`.
            queries: n lists of token ids, none of them empty.
            responses: n likewise, with the end-of-text token where it counts.
            batch_size: continuations per forward pass, at most; halved for good when memory runs out.

        Returns:
            n float32 arrays, as long as each response.

        Raises:
            ModelError: one continuation alone does not fit into memory, or a token is not in its vocabulary.
        """
        found = self.response_log_probabilities(prefix, queries, responses, batch_size=batch_size)
        return [np.exp(values) for values in found]

    def response_log_probabilities(
        self, prefix: Prefix, queries: Sequence[list[int]], responses: Sequence[list[int]], *, batch_size: int = 32
    ) -> list[np.ndarray]:
        """Natural logarithms of `response_probabilities`, finite where a probability underflows float32."""
        if any(not query or not response for query, response in zip(queries, responses, strict=True)):
            raise ValueError("a query and a response need at least one token each")
        before = prefix.ids if prefix.cache is None else []

        def work(batch: list[int]) -> list[np.ndarray]:
            sequences = [[*before, *queries[j], *responses[j]] for j in batch]
            spans = [[(len(before) + len(queries[j]), len(ids))] for j, ids in zip(batch, sequences, strict=True)]
            rows, columns, tokens = response_positions(sequences, spans)
            logits = self.logits([sequence[:-1] for sequence in sequences], rows, columns, prefix.cache)
            values = token_log_probabilities(logits, tokens.to(self.device)).cpu().numpy()
            return np.split(values, np.cumsum([len(responses[j]) for j in batch])[:-1])

        scored = [len(response) for response in responses]
        lengths = [len(query) + length - 1 for query, length in zip(queries, scored, strict=True)]
        return self.in_batches(work, lengths, scored, batch_size=batch_size, before=len(prefix.ids))

    def next_token_logits(
        self, prefix: Prefix, queries: Sequence[list[int]], tokens: Sequence[int], *, batch_size: int = 32
    ) -> np.ndarray:
        """Logits (n, K) float32 of K candidates for the token after the prefix and each of n queries, none empty."""
        before = prefix.ids if prefix.cache is None else []

        def work(batch: list[int]) -> list[np.ndarray]:
            sequences = [[*before, *queries[j]] for j in batch]
            last = torch.tensor([len(sequence) - 1 for sequence in sequences])
            logits = self.logits(sequences, torch.arange(len(batch)), last, prefix.cache)
            return list(logits[:, list(tokens)].float().cpu().numpy())

        lengths = [len(query) for query in queries]
        found = self.in_batches(work, lengths, [1] * len(lengths), batch_size=batch_size, before=len(prefix.ids))
        return np.stack(found) if found else np.zeros((0, len(tokens)), np.float32)


def response_positions(
    sequences: Sequence[list[int]], spans: Sequence[Sequence[tuple[int, int]]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, column and label of every prediction of a token in each sequence's spans, each (positions,) int64."""
    places = [(row, start, end) for row, some in enumerate(spans) for start, end in some]
    lengths = torch.tensor([end - start for _, start, end in places])
    rows = torch.repeat_interleave(torch.tensor([row for row, _, _ in places]), lengths)
    columns = torch.cat([torch.arange(start - 1, end - 1) for _, start, end in places])
    return rows, columns, torch.tensor([t for row, start, end in places for t in sequences[row][start:end]])


def token_log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of each token's probability, (n,) float32, from logits (n, vocabulary) of any precision."""
    parts = []
    size = max(_CHUNK // logits.shape[1], 1)
    for start in range(0, len(logits), size):
        chunk = logits[start : start + size].float()
        parts.append(chunk.gather(1, tokens[start : start + size, None])[:, 0] - chunk.logsumexp(dim=1))
    return torch.cat(parts)
