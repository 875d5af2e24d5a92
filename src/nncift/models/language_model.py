"""A causal language model with its tokenizer, that says how probable given responses are.

In-context influence shows one example to many queries. The example is a prefix that all of them share: it is
encoded once (`prefix_cache`), and its keys and values are joined to length-sorted batches of right-padded
continuations (query and response). Padding stands to the right of everything real, so the causal mask hides it and
the model's own positions are right. Only the positions that predict a response token meet the output layer
(`causal_model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch

from nncift.errors import ModelError
from nncift.models.causal_model import CausalModel
from nncift.models.loading import first_line, load_causal_lm, quiet
from nncift.models.prefix_cache import Prefix, continues_prefix, encode_prefix

__all__ = ["LanguageModel", "Prefix"]

_CHUNK = 2**25  # positions x vocabulary that are copied to float32 at a time to turn logits into probabilities
_NO_LIMIT = 10**9  # tokenizers write about 1e30 where they know no longest sequence
_DEFAULT_CONTEXT = 2048  # for models that know no longest sequence either


class LanguageModel(CausalModel):
    """A causal language model with its tokenizer.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer; neither a pad token, an end token nor a chat template is needed.
        name: what to call it in messages.
        max_length: longest sequence it is to read, in tokens; the model's own limit unless given.

    Attributes:
        tokenizer: as given; the rest of the model's are those of `CausalModel`.
        context_length: longest sequence in tokens, the smaller of the model's limit and `max_length`.
        leading_ids: what the tokenizer puts before a text, mostly nothing or the beginning-of-text token.
        end_ids: the end-of-text token, or nothing for a tokenizer without one.
        shares_prefix: whether prefixes are encoded once.

    Raises:
        ModelError: the model cannot be run, looks ahead, or gives logits that are not finite.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str = "language model", max_length: int | None = None
    ) -> None:
        super().__init__(model, name)
        self.tokenizer = tokenizer
        self.context_length = _context_length(model.config, tokenizer, max_length)
        self.leading_ids = _leading_ids(tokenizer)
        self.end_ids: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        with quiet():
            self.shares_prefix = continues_prefix(self)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "float32",
        device: str | None = None,
        max_length: int | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """Load a model from a folder or the hub; weights from safetensors alone.

        Args:
            name: a folder, a hub id such as "org/name", or "embedded".
            dtype: "float32", "bfloat16", "float16", "auto" (as stored), "8bit" or "4bit" (through bitsandbytes).
            device: "cuda", "mps", "cpu"; the best there is unless given.
            max_length: longest sequence to read, in tokens.
            trust_remote_code: run code that comes with the model.

        Raises:
            ConfigError: `dtype` is none of these.
            DependencyError: bitsandbytes is asked for and not installed.
            ModelError: the model cannot be found, loaded or used; says why and what to do.
        """
        model, tokenizer = load_causal_lm(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        return cls(model, tokenizer, name=name, max_length=max_length)

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Render a conversation, up to where the assistant's next turn begins, with the model's own chat template.

        Raises:
            ModelError: there is no template, or it refuses these messages.
        """
        if not self.has_chat_template:
            raise ModelError(f"{self.name!r} has no chat template", "use the plain wording")
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program of the model's authors
            raise ModelError(
                f"the chat template of {self.name!r} refuses the messages ({first_line(error)})",
                "use the plain wording",
            ) from error

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without the special tokens that the tokenizer would put around it."""
        if not texts:
            return []
        ids = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [list(text) for text in ids["input_ids"]]

    def prefix(self, ids: Sequence[int]) -> Prefix:
        """Encode what many continuations share; costs `len(ids)` tokens. An empty prefix is fine."""
        ids = list(ids)
        if not ids or not self.shares_prefix:
            return Prefix(ids, None)
        prefix = encode_prefix(self, ids)
        self.forward_tokens += len(ids)
        return prefix

    def response_probabilities(
        self, prefix: Prefix, queries: Sequence[list[int]], responses: Sequence[list[int]], *, batch_size: int = 32
    ) -> list[np.ndarray]:
        """Probability of each response token after the prefix, the query and the response tokens before it.

        Args:
            prefix: what `prefix` gave.
            queries: n lists of token ids, none of them empty.
            responses: n likewise, the end-of-text token included where it is to be scored.
            batch_size: continuations per forward pass, at most; halved for good when memory runs out.

        Returns:
            n arrays, float32, as long as each response.

        Raises:
            ModelError: one continuation alone does not fit into memory, or a token is not in the model.
        """
        found = self.response_log_probabilities(prefix, queries, responses, batch_size=batch_size)
        return [np.exp(values) for values in found]

    def response_log_probabilities(
        self, prefix: Prefix, queries: Sequence[list[int]], responses: Sequence[list[int]], *, batch_size: int = 32
    ) -> list[np.ndarray]:
        """The natural logarithms of `response_probabilities`, finite where a probability is too small for float32."""
        if any(not query or not response for query, response in zip(queries, responses, strict=True)):
            raise ValueError("a query and a response hold at least one token each")
        lengths = [len(query) + len(response) - 1 for query, response in zip(queries, responses, strict=True)]

        def work(batch: list[int]) -> list[np.ndarray]:
            return self._score(prefix, [(queries[j], responses[j]) for j in batch])

        return self.in_batches(
            work, lengths, [len(response) for response in responses], batch_size=batch_size, before=len(prefix.ids)
        )

    def next_token_logits(
        self, prefix: Prefix, queries: Sequence[list[int]], tokens: Sequence[int], *, batch_size: int = 32
    ) -> np.ndarray:
        """Logits of K candidates for the token that follows the prefix and each of n queries.

        Only the last position of a query meets the output layer. Queries must not be empty.

        Returns:
            (n, K) float32.

        Raises:
            ModelError: one query alone does not fit into memory, or a token is not in the model.
        """
        before = prefix.ids if prefix.cache is None else []

        def work(batch: list[int]) -> list[np.ndarray]:
            sequences = [[*before, *queries[j]] for j in batch]
            last = torch.tensor([len(sequence) - 1 for sequence in sequences])
            logits = self.logits(self.tensor(sequences), prefix.cache, torch.arange(len(batch)), last)
            self.forward_tokens += sum(map(len, sequences))
            return list(logits[:, list(tokens)].float().cpu().numpy())

        lengths = [len(query) for query in queries]
        found = self.in_batches(work, lengths, [1] * len(lengths), batch_size=batch_size, before=len(prefix.ids))
        return np.stack(found) if found else np.zeros((0, len(tokens)), np.float32)

    def _score(self, prefix: Prefix, rows: Sequence[tuple[list[int], list[int]]]) -> list[np.ndarray]:
        """Log-probabilities of the response tokens of one batch."""
        before = prefix.ids if prefix.cache is None else []
        sequences = [[*before, *query, *response[:-1]] for query, response in rows]
        first = [len(before) + len(query) - 1 for query, _ in rows]  # the position that predicts the response's start
        row = torch.cat([torch.full((len(response),), number) for number, (_, response) in enumerate(rows)])
        column = torch.cat(
            [torch.arange(start, start + len(response)) for start, (_, response) in zip(first, rows, strict=True)]
        )
        wanted = torch.tensor([token for _, response in rows for token in response], device=self.device)
        logits = self.logits(self.tensor(sequences), prefix.cache, row, column)
        values = token_log_probabilities(logits, wanted).cpu().numpy()
        self.forward_tokens += sum(len(sequence) for sequence in sequences)
        return np.split(values, np.cumsum([len(response) for _, response in rows])[:-1])


def token_log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of each token's probability, (n,) float32, from logits (n, vocabulary) of any precision."""
    parts = []
    size = max(_CHUNK // logits.shape[1], 1)
    for start in range(0, len(logits), size):
        chunk, wanted = logits[start : start + size].float(), tokens[start : start + size, None]
        parts.append(chunk.gather(1, wanted)[:, 0] - chunk.logsumexp(dim=1))
    return torch.cat(parts)


def _context_length(config: Any, tokenizer: Any, max_length: int | None) -> int:
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    if limit is None:
        known = tokenizer.model_max_length < _NO_LIMIT
        limit = tokenizer.model_max_length if known else max(max_length or 0, _DEFAULT_CONTEXT)
    return int(min(limit, max_length or limit))


def _leading_ids(tokenizer: Any) -> list[int]:
    plain, full = (list(tokenizer("a", add_special_tokens=add)["input_ids"]) for add in (False, True))
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return []
