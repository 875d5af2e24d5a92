"""A causal language model as a function of token ids: logits and hidden states, in batches that fit into memory.

A hook in front of the output layer lets only those positions through that are asked for, so the model's forward stays
its own (scaled or capped logits included) while the widest matrix product is done for a fraction of the positions.
Rows are sorted by length and cut into the batches that cost least; one that does not fit is halved, and so are all
that come after it.
"""

from __future__ import annotations

import gc
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch

from nncift.errors import ModelError
from nncift.models.loading import out_of_memory
from nncift.models.onednn import frozen_linears

T = TypeVar("T")

_LOGITS = 2**28  # positions x vocabulary that one batch may send to the output layer: 1 GiB in float32
_OVERHEAD = {"cpu": 32}  # what starting one more batch costs, in tokens
_OVERHEAD_ACCELERATOR = 4096


class CausalModel:
    """A transformers causal language model that reads token ids.

    Args:
        model: the model.
        name: what to call it in messages.

    Attributes:
        model, name: as given, the model in evaluation mode.
        device, dtype: where and how precise the model is.
        vocabulary: number of tokens that it gives logits for.
        forward_tokens: tokens that went through the model so far, padding not counted.
        backward_tokens: tokens whose gradients went back through it, padding not counted.
        oom_splits: sizes of the batches that did not fit into memory and were halved.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model = model.eval()
        self.name = name
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.forward_tokens = 0
        self.backward_tokens = 0
        self.oom_splits: list[int] = []
        self._most_rows: int | None = None  # learned when memory ran out
        self._parameters = inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if "cache" in self._parameters else "past_key_values"
        self._embeddings = int(model.get_input_embeddings().weight.shape[0])
        self.vocabulary = int(getattr(model.config.get_text_config(), "vocab_size", self._embeddings))

    @property
    def precision(self) -> str:
        """How precise the weights are: "float32", "bfloat16", ..., or "8bit", "4bit" or another quantisation's name."""
        quantised = getattr(self.model.config, "quantization_config", None)
        if quantised is None:
            return str(self.dtype).removeprefix("torch.")
        bits = [name for name in ("8bit", "4bit") if getattr(quantised, f"load_in_{name}", False)]
        return bits[0] if bits else str(getattr(quantised, "quant_method", "quantised"))

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
        return self._positions(self.tensor(sequences), None, rows, columns)

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor, cache: Any, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """As `logits_at` of right-padded ids (n, longest), after a cache (or None); not counted, without gradients."""
        with frozen_linears(self.model):
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
    def logits_and_states(
        self, module: Any, sequences: Sequence[list[int]], rows: torch.Tensor, columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both from one forward pass: `logits_at` without gradients, and the hidden states that a layer is given.

        Returns:
            (positions, vocabulary), and (n, longest, hidden), of which what stands for padding is arbitrary.

        Raises:
            ModelError: the pass does not come to the module, or a token is not in the model.
        """
        states: list[torch.Tensor] = []

        def keep(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            states.append(arguments[0] if arguments else named["hidden_states"])

        hook = module.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            logits = self.logits(self.tensor(sequences), None, rows, columns)
        finally:
            hook.remove()
        if not states:
            raise ModelError(f"{self.name!r} does not run its own layers", "take another model")
        self.forward_tokens += sum(map(len, sequences))
        return logits, states[0]

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
            with frozen_linears(self.model):
                self.model(input_ids=self.tensor(sequences), **options)
        except _FarEnough as reached:
            self.forward_tokens += sum(map(len, sequences))
            return reached.states
        finally:
            hook.remove()
        raise ModelError(f"{self.name!r} does not run its own layers", "take another model")

    def tensor(self, sequences: Sequence[list[int]]) -> torch.Tensor:
        """Right-padded token ids on the model's device, (n, longest) int64.

        Raises:
            ModelError: a token is not in the model.
        """
        ids = torch.zeros(len(sequences), max(len(sequence) for sequence in sequences), dtype=torch.long)
        for number, sequence in enumerate(sequences):
            ids[number, : len(sequence)] = torch.tensor(sequence)
        if int(ids.max()) >= self._embeddings:
            raise ModelError(
                f"the tokenizer of {self.name!r} gives token {int(ids.max())}, but the model knows {self._embeddings}",
                "give a model with its own tokenizer",
            )
        return ids.to(self.device)

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
                if positions * self.vocabulary > _LOGITS and start < end - 1:
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
