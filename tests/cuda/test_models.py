"""Forward passes, features, influence and the matrix on a GPU, beside the same on the CPU, in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders import WITH_PREFIX_CACHE, WITHOUT, chat, make_model, samples, token_ids, tokenizer_of_bytes, word_rows
from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.answers.generation import answer
from nncift.features.features import Features
from nncift.features.language_model import language_features
from nncift.features.sentence import embed
from nncift.influence.base import Setup
from nncift.influence.catalogue import BUILT_IN
from nncift.influence.gradient_sketch import GradientSketch
from nncift.influence.gradients.in_run import InRun, InRunTraining
from nncift.influence.gradients.less import Less
from nncift.labels.pairs import LabelledPairs
from nncift.matrix.matrix import InfluenceMatrix
from nncift.models.encoder import load_encoder
from nncift.models.language_model import LanguageModel
from nncift.models.loading import default_dtype
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.models.text.examples import Example
from nncift.models.token_gradients import token_factors
from nncift.run.options.registry import resolve
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.coverage import ConcaveCover, FacilityLocation
from nncift.selection.objectives.relevance import FacilityLocationMutualInformation, FacilityLocationReciprocalRank
from nncift.training.lora import Lora
from nncift.training.trainer import Training

pytestmark = pytest.mark.filterwarnings("default")  # the libraries' warnings on a GPU are no failures

ARCHITECTURES = WITH_PREFIX_CACHE | WITHOUT
POOL = samples(word_rows(6))
TARGET = samples([*word_rows(4, offset=40), chat("chat", "Say river", "river", "And now a stone", "a stone")])
LORA = Lora(rank=4, alpha=16, dropout=0.0)  # a GPU drops other inputs than the CPU
OWN = {
    "less": {"training": Training(lora=LORA, epochs=2, learning_rate=1e-3), "dimension": 512},
    "in-run": {"training": InRunTraining(lora=LORA, epochs=2, learning_rate=1e-3, batch_size=3)},
    "gradient-similarity": {"dimension": 512},
    "gradient-sketch": {"dimension": 2048},
    "lossval": {"epochs": 3},
}


def close(found, expected, tolerance: float = 1e-3) -> None:
    """Equal up to a share of the largest value."""
    found, expected = (
        np.asarray(x.detach().cpu() if isinstance(x, torch.Tensor) else x, np.float64) for x in (found, expected)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def both(architecture: str, device: str) -> list[LanguageModel]:
    """A model of random weights on the CPU and on the device."""
    tokenizer = tokenizer_of_bytes()
    models = [make_model(architecture, ARCHITECTURES[architecture]).to(place) for place in ("cpu", device)]
    return [LanguageModel(model, tokenizer, name=architecture, max_length=96) for model in models]


def test_a_loaded_model_gives_the_logits_of_the_cpu(on_cpu, on_device, device):
    assert on_device.device.type == device
    assert all(weight.device.type == device for weight in on_device.model.parameters())
    rows, columns = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 6, 3, 10, 2])
    sequences = [[token % 250 for token in ids] for ids in token_ids(7, 4, 11)]
    logits = [model.logits(sequences, rows, columns) for model in (on_cpu, on_device)]
    assert logits[1].device.type == device
    close(logits[1], logits[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_probabilities_after_a_shared_prefix(architecture, device):
    models = both(architecture, device)
    assert models[0].shares_prefix == models[1].shares_prefix
    prefix, queries, responses = token_ids(12)[0], token_ids(3, 5, 2, seed=1), token_ids(4, 1, 6, seed=2)
    cpu, found = (model.response_probabilities(model.prefix(prefix), queries, responses) for model in models)
    close(np.concatenate(found), np.concatenate(cpu))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generated_answers_and_losses(architecture, device):
    prompts, references = token_ids(9, 3, 14, 14, 6), token_ids(4, 2, 5, 1, 3, seed=1)
    cpu, found = (
        answer(model, prompts, references, max_new_tokens=[40, 3, 9, 0, 12]) for model in both(architecture, device)
    )
    close([one.loss for one in found], [one.loss for one in cpu])
    assert [one.text for one in found] == [one.text for one in cpu]


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "GPT2", "Cohere"])
def test_token_factors(architecture, device):
    examples = [Example.single(str(k), ids, 3 + k) for k, ids in enumerate(token_ids(9, 7, 12))]
    for found, cpu in zip(
        *(token_factors(model, examples, [1, 2]) for model in reversed(both(architecture, device))), strict=True
    ):
        assert found.gradients.device.type == device
        for one, other in zip(found, cpu, strict=True):
            close(one, other)


def test_bfloat16_is_the_default_and_gives_similar_logits(model_folder, on_cpu, device):
    spec = ModelSpec(model_folder, device=device)
    assert spec.precision == default_dtype(device) == spec.loaded.precision
    rows, columns = torch.zeros(9, dtype=torch.long), torch.arange(9)
    ids = [token % 250 for token in token_ids(9)[0]]
    cpu, found = (model.logits([ids], rows, columns).float() for model in (on_cpu, spec.loaded))
    close(found, cpu, 0.2)


def test_features_of_the_language_model(model_folder, device):
    cpu, found = (
        language_features(TARGET, ModelSpec(model_folder, device=place, dtype="float32")) for place in ("cpu", device)
    )
    for name, block in cpu.items():
        close(found[name], block)


def test_embeddings(encoder_folder, device):
    cpu, found = (embed(TARGET, load_encoder(encoder_folder, device=place)) for place in ("cpu", device))
    close(found, cpu)


def influence(name: str, model: str, encoder: str, place: str, dtype: str | None, **own) -> np.ndarray:
    """Values of a built-in function on the block."""
    setup = Setup((ModelSpec(model, device=place, dtype=dtype),), EncoderSpec(encoder, device=place))
    function = resolve(name, BUILT_IN, "nncift.influence").build(setup, **own)
    function.check(POOL, TARGET)
    function.prepare(POOL, TARGET)
    found: np.ndarray = function(POOL, TARGET)
    assert found.shape == (len(POOL), len(TARGET))
    assert np.isfinite(found).all()
    return found


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_influence_function(name, model_folder, encoder_folder, device):
    cpu, found = (
        influence(name, model_folder, encoder_folder, place, "float32", **OWN.get(name, {}))
        for place in ("cpu", device)
    )
    assert found.dtype == np.float32
    close(found, cpu, 1e-2 if name in ("less", "in-run", "lossval") else 2e-3)  # those train


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_influence_function_in_the_default_dtype(name, model_folder, encoder_folder, device):
    influence(name, model_folder, encoder_folder, device, None, **OWN.get(name, {}))


def test_exact_cosines_of_gradients(model_folder, device):
    cpu, found = (GradientSketch(model_folder, dimension=0, device=place, dtype="float32") for place in ("cpu", device))
    for function in (cpu, found):
        function.prepare(POOL, TARGET)
    close(found(POOL, TARGET), cpu(POOL, TARGET))
    close(found.norms(TARGET), cpu.norms(TARGET))


@pytest.mark.parametrize("kind", [Less, InRun])
def test_trained_functions_with_other_preconditioning_and_dropout(kind, model_folder, device):
    training = Training if kind is Less else InRunTraining
    lora = Lora(rank=4, alpha=16, dropout=0.1)
    for preconditioned in {"no", "both" if kind is Less else "yes"}:
        function = kind(
            ModelSpec(model_folder, device=device, dtype="float32"),
            training=training(lora=lora, epochs=2),
            preconditioned=preconditioned,
        )
        function.prepare(POOL, TARGET)
        assert np.isfinite(function(POOL, TARGET)).all()


def towers(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"pool_side": (300, 24), "target_side": (37, 24), "pool_bias": (300,), "target_bias": (37,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def hidden_units(seed: int = 0) -> dict[str, np.ndarray | float]:
    rng = np.random.default_rng(seed)
    shapes = {"pool_side": (300, 24), "target_side": (37, 24), "output_weight": (24,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} | {
        "output_bias": 0.5
    }


@pytest.mark.parametrize(
    ("build", "parts"),
    [(InfluenceMatrix.from_towers, towers()), (InfluenceMatrix.from_factors, hidden_units())],
    ids=["towers", "factors"],
)
def test_a_matrix_on_the_device(build, parts, device):
    cpu, found = build(**parts), build(**parts, device=device)
    assert device == "cpu" or type(found) is not type(cpu)
    close(found.block(np.array([3, 299, 0]), slice(5, 30)), cpu.block(np.array([3, 299, 0]), slice(5, 30)))
    close(found.row_means(), cpu.row_means())
    covered = np.random.default_rng(1).random(37).astype(np.float32)
    close(found.coverage_gains(np.arange(0, 300, 7), covered), cpu.coverage_gains(np.arange(0, 300, 7), covered))


@pytest.mark.parametrize(
    "objective", [FacilityLocation, FacilityLocationReciprocalRank, FacilityLocationMutualInformation, ConcaveCover]
)
def test_the_same_subset_is_selected(objective, device):
    cpu, found = (
        lazy_greedy(objective(InfluenceMatrix.from_towers(**towers(), device=place)), 12) for place in (None, device)
    )
    np.testing.assert_array_equal(found.indices, cpu.indices)
    close(found.gains, cpu.gains)


@pytest.mark.parametrize("recipe", ["process", "paper"])
def test_an_estimate_is_scored_on_the_device(recipe, device):
    rng = np.random.default_rng(0)
    pool, target = (Features.of(rng.standard_normal((n, 5)).astype(np.float32)) for n in (60, 9))
    where = rng.integers(0, [60, 9], (80, 2)).astype(np.int32)
    pairs = LabelledPairs(*where[np.unique(where @ [9, 1], return_index=True)[1]].T, np.float32(0))
    values = np.sin(pairs.pool_index + 2.0 * pairs.target_index).astype(np.float32)
    network = InfluenceNetwork(recipe).fit(pool, target, LabelledPairs(pairs.pool_index, pairs.target_index, values))
    cpu, found = (network.estimate(pool, target, device=place) for place in (None, device))
    close(found.block(slice(0, 60), slice(0, 9)), cpu.block(slice(0, 60), slice(0, 9)))
