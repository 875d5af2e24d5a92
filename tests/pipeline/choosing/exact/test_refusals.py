"""Exact influence of every pair: options of an estimate, and functions without vectors, are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import nncift
from nncift.errors import ConfigError, DataError
from nncift.influence.base import InfluenceFunction, Traits
from nncift.influence.bm25 import BM25
from nncift.influence.embedding_similarity import EmbeddingSimilarity


@pytest.mark.parametrize(
    "option",
    [
        {"labels": 60},
        {"labels": "auto"},
        {"probes": 2},
        {"verify": 2},
        {"recipe": "paper"},
        {"features": "sentence"},
    ],
)
def test_options_of_an_estimate_are_refused(files, common, tmp_path: Path, option):
    (name, value) = next(iter(option.items()))
    message = f"bm25 is computed exactly for every pair, so `{name}` {value} has no use: leave it out"
    with pytest.raises(ConfigError, match=message):
        nncift.select(files["pool"], influence="bm25", output=tmp_path / "run", **common, **option)
    assert not (tmp_path / "run").exists()


def test_labels_for_the_default_name_a_function_that_is_estimated(files, common, tmp_path: Path):
    message = "gradient-sketch is computed .* so `labels` 60 has no use: leave it out, or give `influence` less"
    with pytest.raises(ConfigError, match=message):
        nncift.select(files["pool"], labels=60, output=tmp_path / "run", **common)


def test_a_network_beside_an_exact_function(files, common, tmp_path: Path):
    options = {**common, "influence": "builders:EstimatedBM25", "labels": 60}
    nncift.select(files["pool"], output=tmp_path / "fitted", **options)
    with pytest.raises(ConfigError, match="bm25 is computed exactly for every pair, so `labels` 60 has no use"):
        nncift.select(files["pool"], influence="bm25", network=tmp_path / "fitted", labels=60, **common)


def test_the_folder_of_a_run_that_estimated_is_refused(files, common, tmp_path: Path):
    """As of an earlier version, which had labels for every function."""
    nncift.select(files["pool"], influence="bm25", output=tmp_path / "run", **common)
    (tmp_path / "run/labels").mkdir()
    with pytest.raises(ConfigError, match="holds a run that estimated bm25 from labels; now it is exact"):
        nncift.select(files["pool"], influence="bm25", output=tmp_path / "run", **common)


def test_in_the_laboratory_it_can_be_estimated_nevertheless(files, common, tmp_path: Path):
    function = BM25()
    function.traits = dataclasses.replace(function.traits, factored=False)
    nncift.select(files["pool"], influence=function, labels=60, output=tmp_path / "run", **common)
    assert (tmp_path / "run/network").exists()


class Broken(EmbeddingSimilarity):
    """Has no vector of some samples."""

    name = "broken"

    def vectors(self, rows):
        found = super().vectors(rows)
        found[[text.endswith(" 7") for text in rows["prompt"]]] = np.nan
        return found


class NoVectors(InfluenceFunction):
    """Says that it has vectors, and has none."""

    name = "no-vectors"
    traits = Traits(factored=True)

    def __call__(self, pool_rows, target_rows):
        return np.zeros((len(pool_rows), len(target_rows)), np.float32)


def test_vectors_that_cannot_be_used(files, common, tmp_path: Path):
    with pytest.raises(DataError, match="the vector of 'row-7' by broken is not finite"):
        nncift.select(files["pool"], influence=f"{__name__}:Broken", output=tmp_path / "run", **common)
    with pytest.raises(ConfigError, match="NoVectors is incomplete: give it a `name`, `traits` and `vectors`"):
        nncift.select(files["pool"], influence=NoVectors(), output=tmp_path / "none", **common)
