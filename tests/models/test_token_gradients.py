"""Factors of token gradients against a backward pass of a whole forward pass, for each architecture."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from builders import SMALL, WITH_PREFIX_CACHE, WITHOUT, make_model, token_ids
from nncift.errors import ModelError
from nncift.models.hidden_states import layer_module
from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import Example
from nncift.models.token_gradients import token_factors

ARCHITECTURES = {**WITH_PREFIX_CACHE, **WITHOUT}
INPUT_NORMS = {"GPT2": "ln_1", "OPT": "self_attn_layer_norm", "Mamba": "norm"}


def caught(module, run) -> tuple[torch.Tensor, Any]:
    """A module's output states in a forward pass, which stay in its graph, and what the pass gives."""
    found = []
    hook = module.register_forward_hook(lambda _, __, out: found.append(out[0] if isinstance(out, tuple) else out))
    given = run()
    hook.remove()
    return found[0], given


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_factors_equal_those_of_full_passes(architecture, tiny):
    plain = make_model(architecture, ARCHITECTURES[architecture])
    model = LanguageModel(plain, tiny.tokenizer, name=architecture)
    batch = [Example.single("a", token_ids(11)[0], 3), Example("b", token_ids(9, seed=1)[0], ((2, 4), (6, 9)), False)]
    factors = token_factors(model, batch, [0, 1, 2])
    assert torch.is_grad_enabled()
    assert model.forward_tokens == 18
    for example, found in zip(batch, factors, strict=True):
        ids, places = torch.tensor([example.ids]), [t - 1 for start, end in example.spans for t in range(start, end)]
        states, value = caught(layer_module(model, 1), partial(loss, plain, example))
        (gradient,) = torch.autograd.grad(value, states)
        np.testing.assert_allclose(found.gradients, gradient[0, places], rtol=1e-4, atol=1e-5 * gradient.abs().max())
        for layer in (0, 1):
            norm = getattr(layer_module(model, layer), INPUT_NORMS.get(architecture, "input_layernorm"))
            states, _ = caught(norm, partial(plain, input_ids=ids))
            np.testing.assert_allclose(found.inputs[layer], states.detach()[0, places], rtol=1e-4, atol=1e-4)
        last = plain(input_ids=ids, output_hidden_states=True).hidden_states[-1].detach()
        np.testing.assert_allclose(found.inputs[2], last[0, places], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(factors[0].weights, np.full(8, 1 / 8), rtol=1e-6)
    np.testing.assert_allclose(factors[1].weights, [1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6], rtol=1e-6)


def loss(model, example: Example) -> torch.Tensor:
    """Mean over the turns of the mean over a turn's tokens of the negative log-probabilities."""
    ids = torch.tensor(example.ids)
    logits = model(input_ids=ids[None]).logits[0].float()
    turns = [torch.nn.functional.cross_entropy(logits[s - 1 : e - 1], ids[s:e]) for s, e in example.spans]
    return torch.stack(turns).mean()


def test_only_response_positions_go_through_the_output_layer(tiny_model):
    model = LanguageModel.load(tiny_model, device="cpu")
    seen = []
    model.model.get_output_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.shape[:2]))
    token_factors(model, [Example.single(str(k), ids, 35) for k, ids in enumerate(token_ids(40, 38))], [1])
    assert seen == [(1, 5 + 3)]


def test_layers_without_a_norm_at_their_input_are_refused(tiny):
    plain = make_model("OPT", {**WITH_PREFIX_CACHE["OPT"], "do_layer_norm_before": False})
    model = LanguageModel(plain, tiny.tokenizer, name="post-norm")
    with pytest.raises(ModelError, match="the layers of 'post-norm' have no norm at their input"):
        token_factors(model, [Example.single("a", token_ids(6)[0], 2)], [1])


def test_half_precision(tiny):
    plain = make_model("Llama", SMALL)
    batch = [Example.single("a", token_ids(11)[0], 3)]
    (exact,) = token_factors(LanguageModel(plain, tiny.tokenizer), batch, [1, 2])
    (found,) = token_factors(LanguageModel(plain.to(torch.bfloat16), tiny.tokenizer), batch, [1, 2])
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert torch.linalg.vector_norm(one - other) < 0.1 * torch.linalg.vector_norm(other)
