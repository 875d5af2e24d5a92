"""Frozen linear layers through oneDNN against torch's own."""

from __future__ import annotations

import pytest
import torch

from nncift.models import onednn
from nncift.models.onednn import onednn_linears, packed_linears


def replaced(layers) -> list[bool]:
    return ["forward" in vars(layer) for layer in layers]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (1, 1, 24)])
def test_equal_linear_layers(bias, shape):
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40, bias=bias).requires_grad_(False)
    plain, fast = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    expected = layer(plain.requires_grad_())
    with onednn_linears(layer):
        found = layer(fast.requires_grad_())
        assert "_Frozen" in type(found.grad_fn).__name__
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    expected.backward(gradient)
    found.backward(gradient)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast.grad, plain.grad, rtol=1e-5, atol=1e-5)


def test_trained_layers_and_other_dtypes_are_unaffected():
    layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4).bfloat16().requires_grad_(False))
    with onednn_linears(layers):
        assert replaced(layers) == [False, False]
    layers.requires_grad_(False)
    with onednn_linears(layers):
        assert replaced(layers) == [True, False]
    with pytest.raises(RuntimeError, match="could not create a primitive"), onednn_linears(layers):
        layers(torch.zeros(2, 3))
    assert replaced(layers) == [False, False]


def test_a_nested_block_adds_layers_frozen_in_between():
    layers = torch.nn.Sequential(torch.nn.Linear(4, 4).requires_grad_(False), torch.nn.Linear(4, 4))
    with onednn_linears(layers):
        layers.requires_grad_(False)
        with onednn_linears(layers):
            assert replaced(layers) == [True, True]
        assert replaced(layers) == [True, False]
    assert replaced(layers) == [False, False]


@pytest.mark.parametrize("native", [False, True])
def test_packed_weights_of_bfloat16_equal_plain_ones(monkeypatch, native):
    """Where the CPU has products of it; others convert at every product, whatever the layout."""
    if native and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no products of bfloat16 for this CPU")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Linear(40, 8, bias=False)).bfloat16()
    inputs = [torch.randn(shape).bfloat16() for shape in ((1, 24), (7, 24), (2, 5, 24))]
    with torch.inference_mode():
        expected = [layers(each) for each in inputs]
        with packed_linears(layers):
            assert replaced(layers) == [native, native]
            for each, wanted in zip(inputs, expected, strict=True):
                torch.testing.assert_close(layers(each), wanted, rtol=2**-7, atol=2**-7)
    assert replaced(layers) == [False, False]


@pytest.mark.parametrize("limit", [2**31, 0])
def test_packed_weights_equal_plain_ones(monkeypatch, limit):
    monkeypatch.setattr(onednn, "_PACKED", limit)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Linear(40, 8, bias=False))
    inputs = [torch.randn(shape) for shape in ((1, 24), (7, 24), (2, 5, 24), (3, 1, 24))]
    with torch.inference_mode():
        expected = [layers(each) for each in inputs]
        with packed_linears(layers), onednn_linears(layers):
            assert replaced(layers) == [True, True]
            for each, wanted in zip(inputs, expected, strict=True):
                torch.testing.assert_close(layers(each), wanted, rtol=1e-5, atol=1e-5)
    assert replaced(layers) == [False, False]
    assert layers[0].weight.requires_grad
