"""A causal language model that says how probable given responses are, with prefixes that are encoded once.

In-context influence shows one example to many queries. The example is a prefix that all of them share: it is
encoded once, and its keys and values are joined to length-sorted batches of right-padded continuations (query
and response). Padding stands to the right of everything real, so the causal mask hides it and the model's own
positions are right. A hook in front of the output layer lets only those positions through that predict a
response token, so the model's forward stays its own (scaled or capped logits included) while the widest matrix
product is done for a fraction of the positions. Models that cannot continue such a cache (state-space and
hybrid ones) read the prefix again with every continuation: correct, and slower. Loading tries it out.
"""

from __future__ import annotations

import gc
import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Self, TypeVar

import numpy as np
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from nncift.errors import ModelError
from nncift.loading import first_line, load_causal_lm, out_of_memory, quiet

T = TypeVar("T")

_LOGITS = 2**28  # positions x vocabulary that one batch may send to the output layer: 1 GiB in float32
_CHUNK = 2**25  # the same for the float32 copies made while turning logits into probabilities
_OVERHEAD = {"cpu": 32}  # what starting one more batch costs, in tokens
_OVERHEAD_ACCELERATOR = 4096
_NO_LIMIT = 10**9  # tokenizers write about 1e30 where they know no longest sequence
_DEFAULT_CONTEXT = 2048  # for models that know no longest sequence either


@dataclass(frozen=True)
class Prefix:
    """Token ids that many continuations share, with their keys and values (None: read again each time)."""

    ids: list[int]
    cache: Any


class LanguageModel:
    """A causal language model with its tokenizer.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer; neither a pad token, an end token nor a chat template is needed.
        name: what to call it in messages.
        max_length: longest sequence it is to read, in tokens; the model's own limit unless given.

    Attributes:
        model, tokenizer, name: as given, the model in evaluation mode.
        device, dtype: where and how precise the model is.
        context_length: longest sequence in tokens, the smaller of the model's limit and `max_length`.
        leading_ids: what the tokenizer puts before a text, mostly nothing or the beginning-of-text token.
        end_ids: the end-of-text token, or nothing for a tokenizer without one.
        shares_prefix: whether prefixes are encoded once.
        forward_tokens: tokens that went through the model so far, padding not counted.
        backward_tokens: tokens whose gradients went back through it, padding not counted.
        oom_splits: sizes of the batches that did not fit into memory and were halved.

    Raises:
        ModelError: the model cannot be run, looks ahead, or gives logits that are not finite.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str = "language model", max_length: int | None = None
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.context_length = _context_length(model.config, tokenizer, max_length)
        self.leading_ids = _leading_ids(tokenizer)
        self.end_ids: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.forward_tokens = 0
        self.backward_tokens = 0
        self.oom_splits: list[int] = []
        self._most_rows: int | None = None  # learned when memory ran out
        self._parameters = inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if "cache" in self._parameters else "past_key_values"
        self._embeddings = int(model.get_input_embeddings().weight.shape[0])
        self._vocabulary = int(getattr(model.config.get_text_config(), "vocab_size", self._embeddings))
        with quiet():
            self.shares_prefix = self._try_out()

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
            dtype: "float32", "bfloat16", "float16", or "auto" (as stored).
            device: "cuda", "mps", "cpu"; the best there is unless given.
            max_length: longest sequence to read, in tokens.
            trust_remote_code: run code that comes with the model.

        Raises:
            ConfigError: `dtype` is none of these.
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
        cache = DynamicCache()
        row, last = torch.tensor([0]), torch.tensor([len(ids) - 1])
        if self.in_memory(lambda: self._logits(self._tensor([ids]), cache, row, last)) is None:
            raise self.too_big(len(ids))
        self.forward_tokens += len(ids)
        return Prefix(ids, _shared(cache))

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
            logits = self._logits(self._tensor(sequences), prefix.cache, torch.arange(len(batch)), last)
            self.forward_tokens += sum(map(len, sequences))
            return list(logits[:, list(tokens)].float().cpu().numpy())

        lengths = [len(query) for query in queries]
        found = self.in_batches(work, lengths, [1] * len(lengths), batch_size=batch_size, before=len(prefix.ids))
        return np.stack(found) if found else np.zeros((0, len(tokens)), np.float32)

    def in_batches(
        self,
        work: Callable[[list[int]], Sequence[T]],
        lengths: Sequence[int],
        scored: Sequence[int],
        *,
        batch_size: int,
        before: int = 0,
    ) -> list[T]:
        """What `work` gives for each of n rows, done in length-sorted batches that are halved when memory runs out.

        Args:
            work: gives one result per row of a batch of row numbers.
            lengths: tokens of each row.
            scored: how many positions of each row meet the output layer.
            batch_size: rows in a batch, at most; halved for good when memory runs out.
            before: tokens in front of every row, for the error alone.

        Raises:
            ModelError: one row alone does not fit into memory.
        """
        order = sorted(range(len(lengths)), key=lambda j: -lengths[j])
        results: dict[int, T] = {}
        waiting = deque(self.batches(order, lengths, scored, batch_size))
        while waiting:
            batch = waiting.popleft()
            found = self.in_memory(partial(work, batch))
            if found is not None:
                results.update(zip(batch, found, strict=True))
                continue
            if len(batch) == 1:
                raise self.too_big(before + lengths[batch[0]])
            self.oom_splits.append(len(batch))
            self._most_rows = len(batch) // 2
            waiting = deque(self.batches([*batch, *chain(*waiting)], lengths, scored, batch_size))
        return [results[j] for j in range(len(lengths))]

    def batches(
        self, order: Sequence[int], lengths: Sequence[int], scored: Sequence[int], batch_size: int
    ) -> list[list[int]]:
        """Cut length-sorted rows into the batches that cost least: padded tokens, and a little for each batch.

        Args:
            order: row numbers, the longest row first.
            lengths: tokens of each row.
            scored: positions of each row that meet the output layer.
            batch_size: rows of a batch, at most.
        """
        most = min(batch_size, self._most_rows or batch_size)
        overhead = _OVERHEAD.get(self.device.type, _OVERHEAD_ACCELERATOR)
        cost, begin = [0] + [0] * len(order), [0] * (len(order) + 1)
        for end in range(1, len(order) + 1):
            best, positions = None, 0
            for start in range(end - 1, max(end - most, 0) - 1, -1):
                positions += scored[order[start]]
                if positions * self._vocabulary > _LOGITS and start < end - 1:
                    break
                total = cost[start] + (end - start) * lengths[order[start]] + overhead
                if best is None or total < best:
                    best, begin[end] = total, start
            cost[end] = best or 0
        batches, end = [], len(order)
        while end:
            batches.append(list(order[begin[end] : end]))
            end = begin[end]
        return batches[::-1]

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
        logits = self._logits(self._tensor(sequences), prefix.cache, row, column)
        parts = []
        size = max(_CHUNK // logits.shape[1], 1)
        for start in range(0, len(logits), size):
            chunk, tokens = logits[start : start + size].float(), wanted[start : start + size, None]
            parts.append(chunk.gather(1, tokens)[:, 0] - chunk.logsumexp(dim=1))
        self.forward_tokens += sum(len(sequence) for sequence in sequences)
        values = torch.cat(parts).cpu().numpy()
        return np.split(values, np.cumsum([len(response) for _, response in rows])[:-1])

    def logits_at(self, sequences: Sequence[list[int]], rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The model's logits at the given positions alone, through which gradients can go back.

        Args:
            sequences: n lists of token ids; padding does not change what stands before it.
            rows: (positions,) int64, which sequence.
            columns: (positions,) int64, which of its tokens; the logits are about the one after it.

        Returns:
            (positions, vocabulary), on the model's device and in its precision.

        Raises:
            ModelError: a token is not in the model.
        """
        self.forward_tokens += sum(map(len, sequences))
        return self._positions(self._tensor(sequences), None, rows, columns)

    @torch.inference_mode()
    def _logits(self, ids: torch.Tensor, cache: Any, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return self._positions(ids, cache, rows, columns)

    def _positions(self, ids: torch.Tensor, cache: Any, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The model's logits at the given positions alone, (positions, vocabulary)."""
        kept = False

        def keep(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal kept
            kept = True
            return (arguments[0][rows, columns][None], *arguments[1:])

        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(keep) if head is not None else None
        options: dict[str, Any] = {} if cache is None else {self._cache_argument: cache}
        if "use_cache" in self._parameters:
            options["use_cache"] = cache is not None
        try:
            logits: torch.Tensor = self.model(input_ids=ids, **options).logits
        finally:
            if hook is not None:
                hook.remove()
        return logits[0] if kept else logits[rows, columns]

    @torch.inference_mode()
    def states_entering(self, module: Any, sequences: Sequence[list[int]]) -> torch.Tensor:
        """Hidden states that are given to a module of the model, where the forward pass ends.

        Args:
            module: a layer, or the output layer.
            sequences: n lists of token ids.

        Returns:
            (n, longest, hidden), on the model's device and in its precision; what stands for padding is arbitrary.

        Raises:
            ModelError: the pass does not come to the module, or a token is not in the model.
        """

        def stop(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _FarEnough(arguments[0] if arguments else named["hidden_states"])

        options = {"use_cache": False} if "use_cache" in self._parameters else {}
        hook = module.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.model(input_ids=self._tensor(sequences), **options)
        except _FarEnough as reached:
            self.forward_tokens += sum(map(len, sequences))
            return reached.states
        finally:
            hook.remove()
        raise ModelError(f"{self.name!r} does not run its own layers", "take another model")

    def _tensor(self, sequences: Sequence[list[int]]) -> torch.Tensor:
        """Right-padded token ids on the model's device, (n, longest)."""
        ids = torch.zeros(len(sequences), max(len(sequence) for sequence in sequences), dtype=torch.long)
        for number, sequence in enumerate(sequences):
            ids[number, : len(sequence)] = torch.tensor(sequence)
        if int(ids.max()) >= self._embeddings:
            raise ModelError(
                f"the tokenizer of {self.name!r} gives token {int(ids.max())}, but the model knows {self._embeddings}",
                "give a model with its own tokenizer",
            )
        return ids.to(self.device)

    def _try_out(self) -> bool:
        """Check on a few tokens that the model looks back alone, and find out whether it continues a shared prefix."""
        ids = [(7 * step + 3) % self._vocabulary for step in range(12)]
        try:
            whole = self._all_logits(ids)
        except Exception as error:  # a model that wants images, a kernel that the device lacks
            if out_of_memory(error):
                raise self.too_big(len(ids)) from error
            raise ModelError(
                f"{self.name!r} cannot read text alone ({first_line(error)})", "give a decoder-only language model"
            ) from error
        if not bool(torch.isfinite(whole).all()):
            raise ModelError(
                f"{self.name!r} gives logits that are not finite", "try --dtype float32, or download it again"
            )
        tolerance = float(whole.std()) * (1e-3 if self.dtype == torch.float32 else 0.1)

        def differs(some: torch.Tensor, other: torch.Tensor) -> bool:
            return float((some - other).abs().mean()) > tolerance

        if differs(self._all_logits(ids[:6]), whole[:6]):
            raise ModelError(
                f"{self.name!r} is not a causal language model: what follows a token changes what it predicts",
                "give a decoder-only language model",
            )
        try:
            cache = DynamicCache()
            self._logits(self._tensor([ids[:6]]), cache, torch.tensor([0]), torch.tensor([5]))
            rows, columns = torch.tensor([0] * 6 + [1] * 2), torch.tensor([*range(6), 0, 1])
            continued = self._logits(self._tensor([ids[6:], ids[6:8]]), _shared(cache), rows, columns).float()
        except Exception:  # whatever it says, this model does not take such a cache
            return False
        return not differs(continued, torch.cat([whole[6:], whole[6:8]]))

    def _all_logits(self, ids: list[int]) -> torch.Tensor:
        positions = torch.arange(len(ids))
        return self._logits(self._tensor([ids]), None, torch.zeros_like(positions), positions).float()

    def in_memory(self, work: Callable[[], T]) -> T | None:
        """What `work` gives, or None when memory ran out on the way."""
        try:
            return work()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        gc.collect()  # only here, after the error is gone, is nothing of its frames held any more
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).empty_cache()
        return None

    def too_big(self, tokens: int) -> ModelError:
        """The error to raise when one sequence alone does not fit into memory."""
        return ModelError(
            f"{self.name!r} ran out of memory on one sequence of {tokens} tokens",
            "lower --max-length, use --dtype bfloat16, or take a smaller model",
        )


class _FarEnough(Exception):
    """Ends a forward pass at the module whose input was wanted."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


class _SharedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values of a prefix, joined to those of any batch and left as they are.

    A cache of the library would keep the joined ones of all layers until the pass ends; here a layer's are
    freed as soon as its attention is done.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values  # (1, heads, prefix, head width)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of prefix and batch, (batch, heads, prefix + continuation, head width)."""
        n = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(n, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(n, -1, -1, -1), value_states], dim=-2),
        )


def _shared(cache: Any) -> Any:
    shared = DynamicCache()
    shared.layers = [_SharedLayer(layer.keys, layer.values) for layer in cache.layers]
    return shared


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
