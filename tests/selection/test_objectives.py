"""One conformance suite over the objective table, and the choice of an objective from the options."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import references
from nncift.errors import ConfigError
from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives import table as objectives
from nncift.selection.objectives.table import COMPARES_FEATURES, OBJECTIVES, Objective, ObjectiveOptions, make_objective

PLAIN, RANKS, MUTUAL, CONDITIONAL, CONCAVE, MEAN, GRAPH_CUT, LOG_DETERMINANT = OBJECTIVES


def make(name: str, entries: np.ndarray, known: np.ndarray | None = None, covered: np.ndarray | None = None):
    """The objective with eta 0.3 and nu 0.7, where it has them."""
    of_known = {"nu": 0.7, "known": None if known is None else InfluenceMatrix.from_array(known).column_max()}
    options = {
        PLAIN: {},
        RANKS: {"has_target": True, "eta": 0.3, **of_known},
        MUTUAL: {"has_target": True, "eta": 0.3},
        CONDITIONAL: of_known,
        CONCAVE: {},
        MEAN: {},
        GRAPH_CUT: {"features": entries, "redundancy": 0.2, "expected": 2},
        LOG_DETERMINANT: {"features": entries},
    }
    return make_objective(name, InfluenceMatrix.from_array(entries), ObjectiveOptions(**options[name], covered=covered))


def coverage(name: str, entries: np.ndarray) -> np.ndarray:
    """What a subset covers of each target, float32."""
    clipped = np.maximum(entries, 0)
    return clipped.sum(axis=0) if name == CONCAVE else clipped.max(axis=0)


@st.composite
def cases(draw) -> tuple[np.ndarray, np.ndarray, list[int]]:
    n, m, known = draw(st.integers(1, 8)), draw(st.integers(1, 70)), draw(st.integers(0, 3))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    low = draw(st.sampled_from([-1.0, 0.0, -10.0]))  # some or all influence negative
    entries, known_entries = rng.uniform(low, 1, (n, m)), rng.uniform(low, 1, (known, m))
    return entries.astype(np.float32), known_entries.astype(np.float32), draw(st.permutations(range(n)))


@pytest.mark.parametrize("name", OBJECTIVES)
@given(case=cases())
@settings(deadline=None, max_examples=60)
def test_monotone_submodular_normalised_and_equal_to_the_naive_value(name, case):
    entries, known, order = case
    objective = make(name, entries, known)
    assert isinstance(objective, Objective)
    assert (objective.name, objective.n) == (name, len(entries))
    everyone = np.arange(len(entries))
    assert (objective.normalised, objective.submodular) == (True, True)
    assert objective.monotone or name == GRAPH_CUT
    assert objective.value == 0
    gains = objective.gains(everyone)
    for position, i in enumerate(order):
        before, expected = objective.value, gains[i]
        objective.add(i)
        chosen = order[: position + 1]
        value = references.objective(name, entries, known, chosen, eta=0.3, nu=0.7)
        assert objective.value == pytest.approx(value, rel=1e-5, abs=1e-5)
        assert objective.value - before == pytest.approx(expected, rel=1e-5, abs=1e-5)
        after = objective.gains(everyone)
        assert (after >= 0).all() or not objective.monotone
        left = order[position + 1 :]
        assert (after[left] <= gains[left]).all()  # bit by bit: lazy greedy relies on it
        assert (after[chosen] == 0).all()
        if name not in COMPARES_FEATURES:
            later = make(name, entries, known, covered=coverage(name, entries[chosen]))
            assert later.value == 0
            assert later.gains(everyone)[left] == pytest.approx(after[left], rel=1e-5)  # `covered` continues a subset
        gains = after
    before = objective.value
    objective.add(order[0])  # again
    assert objective.value == before


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gains_are_independent_of_the_other_candidates(name):
    rng = np.random.default_rng(1)
    objective = make(name, rng.random((40, 90), dtype=np.float32), rng.random((2, 90), dtype=np.float32) / 2)
    objective.add(7)
    together = objective.gains(np.arange(40))
    for order in (np.arange(40)[::-1], np.array([5, 39, 5, 0])):
        np.testing.assert_array_equal(objective.gains(order), together[order])


def submodlib_function(name: str, s: np.ndarray, s_known: np.ndarray):
    """The peer; its matrices are transposed: (targets, candidates)."""
    submodlib = pytest.importorskip("submodlib")
    (n, m), columns, known = s.shape, np.ascontiguousarray(s.T), np.ascontiguousarray(s_known.T)
    if name == PLAIN:
        return submodlib.FacilityLocationFunction(n=n, mode="dense", separate_rep=True, n_rep=m, sijs=columns)
    if name == MUTUAL:
        kind = submodlib.FacilityLocationVariantMutualInformationFunction
        return kind(n=n, num_queries=m, query_sijs=s, queryDiversityEta=0.3)
    if name == CONCAVE:
        root = submodlib.functions.featureBased.FeatureBased.squareRoot
        return submodlib.FeatureBasedFunction(n=n, features=s.tolist(), numFeatures=m, sparse=False, mode=root)
    kind = submodlib.FacilityLocationConditionalGainFunction
    return kind(n=n, num_privates=len(s_known), data_sijs=columns, private_sijs=known, privacyHardness=0.7)


@pytest.mark.parametrize("name", [PLAIN, MUTUAL, CONDITIONAL, CONCAVE])
@pytest.mark.parametrize("seed", range(3))
def test_submodlib_values(name, seed):
    rng = np.random.default_rng(seed)
    m = 50 if name == CONDITIONAL else 30  # submodlib's targets are the ground set
    s = rng.uniform(-1, 1, (50, m)).astype(np.float32)
    s /= s.max(axis=0)  # as submodlib scales features
    known = rng.uniform(-1, 0.5, (4, m)).astype(np.float32)
    objective = make(name, s, known)
    peer = submodlib_function(name, np.maximum(s, 0), np.maximum(known, 0))
    subset: set[int] = set()
    for i in rng.permutation(50)[:12].tolist():
        gain = peer.marginalGain(subset, i)
        assert objective.gains(np.array([i]))[0] == pytest.approx(gain, rel=1e-4, abs=1e-4)
        objective.add(i)
        subset.add(i)
        assert objective.value == pytest.approx(peer.evaluate(subset), rel=1e-5)


MATRIX = InfluenceMatrix.from_array(np.array([[0.5, 0.2], [0.1, 0.9], [-1.0, 0.3]], dtype=np.float32))
KNOWN = np.array([0.4, -1.0], dtype=np.float32)


@pytest.mark.parametrize(
    ("options", "name", "recorded"),
    [
        ({}, PLAIN, {}),
        ({"has_target": True}, RANKS, {"eta": 0.01}),
        ({"has_target": True, "eta": 0}, RANKS, {"eta": 0}),
        ({"known": KNOWN}, CONDITIONAL, {"nu": 1}),
        ({"known": KNOWN, "has_target": True, "nu": 0.5}, RANKS, {"nu": 0.5, "eta": 0.01}),
    ],
)
def test_default_objective(options, name, recorded):
    objective = make_objective(None, MATRIX, ObjectiveOptions(**options))
    assert (objective.name, objective.options) == (name, recorded)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("facility", {}, "no objective 'facility': did you mean 'facility-location'?"),
        *[(name, {}, f"`objective` {name} needs a `target`") for name in (RANKS, MUTUAL)],
        (CONDITIONAL, {"has_target": True}, f"`objective` {CONDITIONAL} needs `known` samples"),
        (None, {"eta": 1.0}, f"`eta` needs the `objective` {RANKS} or {MUTUAL}, not {PLAIN}"),
        (None, {"eta": 1.0, "known": KNOWN}, f"`eta` needs the `objective` {RANKS} or {MUTUAL}, not {CONDITIONAL}"),
        (MUTUAL, {"nu": 1.0, "has_target": True}, f"`nu` needs the `objective` {CONDITIONAL} or {RANKS}, not {MUTUAL}"),
        (PLAIN, {"known": KNOWN}, f"`known` needs the `objective` {CONDITIONAL} or {RANKS}, not {PLAIN}"),
        (None, {"known": KNOWN[:1]}, "does not fit 2 targets"),
        (None, {"covered": KNOWN[:1]}, "does not fit 2 targets"),
        (None, {"redundancy": 1.0}, f"`redundancy` needs the `objective` {GRAPH_CUT}, not {PLAIN}"),
        (GRAPH_CUT, {"features": np.ones((3, 2)), "redundancy": -1.0}, "`redundancy` is -1.0"),
        (GRAPH_CUT, {"known": KNOWN}, f"`known` needs the `objective` {CONDITIONAL} or {RANKS}, not {GRAPH_CUT}"),
        (GRAPH_CUT, {}, "this `objective` compares samples by their features, and has none"),
        (LOG_DETERMINANT, {"features": np.ones((4, 2))}, "features of the shape (4, 2) do not fit 3 samples"),
        ("operator:is_", {}, "`objective` operator:is_ gives no objective"),
        *[(None, {"eta": bad, "has_target": True}, "`eta` is") for bad in (-0.1, float("nan"), float("inf"))],
        *[(None, {"nu": bad, "known": KNOWN}, "`nu` is") for bad in (-0.1, float("nan"), float("inf"))],
    ],
)
def test_options_that_do_not_go_with_the_objective(name, options, message):
    with pytest.raises(ConfigError) as error:
        make_objective(name, MATRIX, ObjectiveOptions(**options))
    assert message in str(error.value)


def test_own_objective():
    exec(textwrap.dedent(objectives.__doc__[objectives.__doc__.index("    class ") :]), globals())
    objective = make_objective(f"{__name__}:Relevance", MATRIX, ObjectiveOptions(eta=3.0, known=KNOWN))
    assert lazy_greedy(objective, 2).indices.tolist() == [1, 0]


def test_mean_influence_takes_the_same_order_whatever_the_tokens():
    rng = np.random.default_rng(0)
    matrix = InfluenceMatrix.from_array(rng.random((40, 6), dtype=np.float32))
    costs = rng.integers(1, 30, 40).astype(float)
    order = np.argsort(-matrix.row_means(), kind="stable")
    plain = lazy_greedy(make_objective(MEAN, matrix, ObjectiveOptions()), 12)
    assert plain.indices.tolist() == order[:12].tolist()
    objective = make_objective(MEAN, matrix, ObjectiveOptions(costs=costs))
    room, expected = 100.0, []
    for row in order.tolist():  # those that still fit, in the order of their means
        if costs[row] <= room:
            expected.append(row)
            room -= costs[row]
    assert lazy_greedy(objective, costs=costs, max_cost=100.0).indices.tolist() == expected
    with pytest.raises(ConfigError, match="3 costs for 40 samples"):
        make_objective(MEAN, matrix, ObjectiveOptions(costs=costs[:3]))
