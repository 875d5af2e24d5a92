"""Frozen linear layers on the CPU through oneDNN; without gradients all linear layers count as frozen.

torch computes float32 matrix products with MKL, which uses AVX-512 on Intel's processors alone: on an AMD EPYC one
thread does 105 GFLOP/s, and 235 with oneDNN, which torch ships as well. Frozen layers need two products, y = x W^T and
the gradient g W; both go through oneDNN inside a block. torch computes bfloat16 with oneDNN anyway, so that only its
layout of the weights gains. Other devices, other dtypes and a torch without oneDNN are unaffected. Results differ from
MKL's by the order of summation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from nncift.models.batching import in_memory
from nncift.models.loading import multiplies_bfloat16

_PACKED = 2**31  # bytes of weights that are copied into oneDNN's layout, at most
_PACKABLE = (torch.float32, torch.bfloat16)
_REORDER = "_reorder_linear_weight"
_ROWS = 16  # of the products for which the layout is chosen; it serves any number of rows


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


@contextlib.contextmanager
def packed_linears(model: torch.nn.Module) -> Iterator[None]:
    """As `onednn_linears`, with gradients disabled inside the block and the weights copied into oneDNN's own layout.

    For many passes over few tokens each, as in generation: oneDNN reorders a plain weight at every product, of bfloat16
    too, which at 4 to 16 rows takes about a third of a pass. Models of more than 2 GiB, and those whose copy does not
    fit into memory, keep their plain weights.
    """
    linears = [layer for layer in model.modules() if type(layer) is torch.nn.Linear and "forward" not in vars(layer)]
    with torch.no_grad(), contextlib.ExitStack() as stack:
        layers = [layer for layer in linears if _is_eligible(layer.weight, *_PACKABLE)]
        if sum(layer.weight.nbytes for layer in layers) <= _PACKED and hasattr(torch.ops.mkldnn, _REORDER):
            reorder = getattr(torch.ops.mkldnn, _REORDER)
            weights = in_memory(lambda: [reorder(layer.weight.detach(), _ROWS) for layer in layers])
            for layer, weight in zip(layers, weights or (), strict=weights is not None):
                layer.forward = partial(_packed, layer, weight)  # type: ignore[method-assign]
                stack.callback(delattr, layer, "forward")
        stack.enter_context(onednn_linears(model))  # the others
        yield


def _packed(layer: torch.nn.Linear, weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    if inputs.dtype != layer.weight.dtype:
        return torch.nn.functional.linear(inputs, layer.weight, layer.bias)
    return _product(inputs, weight, layer.bias)


def _is_eligible(weight: torch.Tensor, *dtypes: torch.dtype) -> bool:
    """Whether a weight of one of these dtypes, float32 unless given, can go through oneDNN."""
    if weight.device.type != "cpu" or weight.dtype not in (dtypes or (torch.float32,)):
        return False
    if weight.dtype == torch.bfloat16 and not multiplies_bfloat16("cpu"):
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
