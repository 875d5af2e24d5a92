"""Frozen linear layers on the CPU through oneDNN; without gradients all linear layers count as frozen.

torch computes float32 matrix products with MKL, which uses AVX-512 on Intel's processors alone: on an AMD EPYC one
thread does 105 GFLOP/s, and 235 with oneDNN, which torch ships as well. Frozen layers need two products, y = x W^T and
the gradient g W; both go through oneDNN inside a block. Other devices, other dtypes and a torch without oneDNN are
unaffected. Results differ from MKL's by the order of summation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch


@contextlib.contextmanager
def onednn_linears(model: torch.nn.Module) -> Iterator[None]:
    """Run the model's frozen float32 linear layers on the CPU through oneDNN inside the block.

    With gradients disabled, all count as frozen. A nested block adds the layers frozen in between.
    """
    linears = [layer for layer in model.modules() if type(layer) is torch.nn.Linear and "forward" not in vars(layer)]
    layers = [layer for layer in linears if _is_eligible(layer.weight)]
    for layer in layers:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_eligible(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    frozen = not (weight.requires_grad and torch.is_grad_enabled())
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return frozen and available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _forward(layer: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    if inputs.dtype != torch.float32:
        return torch.nn.functional.linear(inputs, layer.weight, layer.bias)
    if not torch.is_grad_enabled():
        return _product(inputs, layer.weight, layer.bias)
    product: torch.Tensor = _Frozen.apply(inputs, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return product


class _Frozen(torch.autograd.Function):
    """inputs @ weight.T + bias, differentiable in the inputs alone."""

    @staticmethod
    def forward(context: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        context.save_for_backward(weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = context.saved_tensors
        return _product(gradients[0].contiguous(), weight.t(), None), None, None


def _product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product
