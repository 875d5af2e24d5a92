"""Cheap influence functions for runs with labels and network: those of nncift are computed for every pair."""

from __future__ import annotations

from nncift.influence.base import Traits
from nncift.influence.bm25 import BM25
from nncift.influence.embedding_similarity import EmbeddingSimilarity


class Overlap(BM25):
    """BM25, estimated."""

    name = "overlap"
    traits = Traits(relative=True)


class Likeness(EmbeddingSimilarity):
    """Cosine of embeddings, estimated."""

    name = "likeness"
    traits = Traits()
