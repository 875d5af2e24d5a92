"""Cheap influence functions for runs with labels and network: those of nncift are computed for every pair."""

from __future__ import annotations

from nncift.influence.base import Traits
from nncift.influence.bm25 import BM25
from nncift.influence.embedding_similarity import EmbeddingSimilarity


class EstimatedBM25(BM25):
    """BM25, estimated."""

    name = "estimated-bm25"
    traits = Traits(relative=True)


class EstimatedCosine(EmbeddingSimilarity):
    """Cosine of embeddings, estimated."""

    name = "estimated-cosine"
    traits = Traits()
