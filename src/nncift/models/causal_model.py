"""A causal language model as a function of token ids: logits and hidden states.

A hook in front of the output layer selects the positions whose logits are needed, so the model's forward stays its own
(scaled or capped logits included) while the widest matrix product is done for a fraction of the positions.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from nncift.errors import ModelError
from nncift.models.batching import Batcher
from nncift.models.onednn import onednn_linears


class CausalModel(Batcher):
    """A transformers causal language model on token ids.

    Args:
        model: the model.
        name: its name in messages.

    Attributes:
        model, name: as given, the model in evaluation mode.
        device, dtype: of the model's weights.
        vocabulary: number of logits per position.
        forward_tokens: tokens that went through the model so far, padding not counted.
        backward_tokens: tokens whose gradients went back through it, padding not counted.
        training_seconds: time of all training steps so far.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model = model.eval()
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.forward_tokens = 0
        self.backward_tokens = 0
        self.training_seconds = 0.0
        self._parameters = inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if "cache" in self._parameters else "past_key_values"
        self._embeddings = int(model.get_input_embeddings().weight.shape[0])
        vocabulary = int(getattr(model.config.get_text_config(), "vocab_size", self._embeddings))
        super().__init__(name, vocabulary, self.device.type)

    @property
    def precision(self) -> str:
        """Of the weights: "float32", "bfloat16", ..., or "8bit", "4bit" or another quantization's name."""
        quantized = getattr(self.model.config, "quantization_config", None)
        if quantized is None:
            return str(self.dtype).removeprefix("torch.")
        bits = [name for name in ("8bit", "4bit") if getattr(quantized, f"load_in_{name}", False)]
        return bits[0] if bits else str(getattr(quantized, "quant_method", "quantised"))

    def logits_at(
        self, sequences: Sequence[list[int]], rows: torch.Tensor, columns: torch.Tensor, cache: Any = None
    ) -> torch.Tensor:
        """Differentiable logits at the given positions alone.

        Args:
            sequences: n lists of token ids.
            rows: (positions,) int64, which sequence.
            columns: (positions,) int64, which of its tokens; the logits predict the next one.
            cache: keys and values that precede each sequence.

        Returns:
            (positions, vocabulary), on the model's device in its dtype.

        Raises:
            ModelError: a token is not in its vocabulary.
        """
        options: dict[str, Any] = {} if cache is None else {self._cache_argument: cache}
        if "use_cache" in self._parameters:
            options["use_cache"] = cache is not None
        logits = self._forward_at(rows, columns, {"input_ids": self._padded(sequences), **options})
        self.forward_tokens += sum(map(len, sequences))
        return logits

    def _forward_at(self, rows: torch.Tensor, columns: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """The model's forward pass, of which the output layer sees the given positions alone."""
        kept = False

        def keep(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal kept
            kept = True
            return (arguments[0][rows, columns][None], *arguments[1:])

        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(keep) if head is not None else None
        try:
            logits: torch.Tensor = self.model(**inputs).logits
        finally:
            if hook is not None:
                hook.remove()
        return logits[0] if kept else logits[rows, columns]

    @torch.inference_mode()
    def logits(
        self, sequences: Sequence[list[int]], rows: torch.Tensor, columns: torch.Tensor, cache: Any = None
    ) -> torch.Tensor:
        """`logits_at` without gradients."""
        with onednn_linears(self.model):
            return self.logits_at(sequences, rows, columns, cache)

    @torch.inference_mode()
    def masked_logits(
        self, ids: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """Logits at the given positions of sequences that are padded on either side and continue a cache of their own.

        Args:
            ids: (n, length) int64, on the model's device.
            mask: (n, cached + length) int64, 1 for a token and 0 for padding, of the cache too.
            rows: (positions,) int64, which sequence.
            columns: (positions,) int64, which of `ids`.
            cache: keys and values of the n sequences so far; `ids` are added to it.

        Returns:
            (positions, vocabulary), on the model's device in its dtype.

        Raises:
            ModelError: a token is not in its vocabulary.
        """
        self._check_tokens(ids)
        inputs = {"input_ids": ids, "attention_mask": mask, self._cache_argument: cache, "use_cache": True}
        if "position_ids" in self._parameters:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with onednn_linears(self.model):
            logits = self._forward_at(rows, columns, inputs)
        self.forward_tokens += int(mask[:, -ids.shape[1] :].sum())
        return logits

    def logits_and_states(
        self, module: Any, sequences: Sequence[list[int]], rows: torch.Tensor, columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`logits`, and the input states of a layer or the output layer, from one forward pass.

        Returns:
            (positions, vocabulary), and (n, longest, hidden), arbitrary at padding.

        Raises:
            ModelError: the forward pass never reaches the module, or a token is not in its vocabulary.
        """
        with self.entering(module, stop=False) as states:
            logits = self.logits(sequences, rows, columns)
        return logits, states[0]

    def states_entering(self, module: Any, sequences: Sequence[list[int]]) -> torch.Tensor:
        """A layer's input states, as of `logits_and_states`; the pass stops there."""
        nowhere = torch.zeros(0, dtype=torch.long)
        with self.entering(module, stop=True) as states:
            self.logits(sequences, nowhere, nowhere)
        self.forward_tokens += sum(map(len, sequences))
        return states[0]

    @contextlib.contextmanager
    def entering(self, module: Any, *, stop: bool) -> Iterator[list[torch.Tensor]]:
        """A module's input states (n, longest, hidden) of a forward pass inside the block, which ends there on request.

        Raises:
            ModelError: the forward pass never reaches the module.
        """
        states: list[torch.Tensor] = []

        def keep(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            states.append(arguments[0] if arguments else named["hidden_states"])
            if stop:
                raise _StopForward

        hook = module.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with contextlib.suppress(_StopForward):
                yield states
        finally:
            hook.remove()
        if not states:
            raise ModelError(f"the forward pass of {self.name!r} never reaches its own layers", "take another model")

    def _padded(self, sequences: Sequence[list[int]]) -> torch.Tensor:
        """Right-padded token ids on the model's device, (n, longest) int64."""
        ids = pad_sequence([torch.tensor(sequence, dtype=torch.long) for sequence in sequences], batch_first=True)
        self._check_tokens(ids)
        return ids.to(self.device)

    def _check_tokens(self, ids: torch.Tensor) -> None:
        """Raise a `ModelError` if a token is not in the vocabulary."""
        if int(ids.max()) >= self._embeddings:
            raise ModelError(
                f"the tokenizer of {self.name!r} gives token {int(ids.max())}, but the model has {self._embeddings}",
                "give a model with its own tokenizer",
            )


class _StopForward(Exception):
    """Ends a forward pass at the module whose input is read."""
