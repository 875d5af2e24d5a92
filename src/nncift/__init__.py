"""nncift: find the small subset of instruction-tuning data worth fine-tuning a language model on.

    import nncift

    selection = nncift.select("alpaca.jsonl", budget=0.1, output="runs/alpaca")
    selection.dataset  # the chosen rows, ready for trl.SFTTrainer

The names below are loaded on first use (PEP 562), so importing the package is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "BM25": "influence.bm25",
    "Config": "config",
    "Delift": "influence.delift",
    "EmbeddingSimilarity": "influence.embedding_similarity",
    "FacilityLocation": "objectives",
    "FacilityLocationMutualInformation": "objectives",
    "IFD": "influence.ifd",
    "GradientSimilarity": "influence.gradient_similarity",
    "InRun": "influence.in_run",
    "InfluenceFunction": "influence",
    "InfluenceMatrix": "matrix",
    "InfluenceNetwork": "network",
    "LabelledPairs": "pairs",
    "LanguageModel": "language_model",
    "Less": "influence.less",
    "LossVal": "influence.lossval",
    "NNCIFTError": "errors",
    "Perplexity": "influence.ifd",
    "RepresentationSimilarity": "influence.representation_similarity",
    "ResponseSimilarity": "influence.response_similarity",
    "SelectIT": "influence.selectit",
    "Selection": "selection",
    "collect": "pairs",
    "embed": "embeddings",
    "lazy_greedy": "greedy",
    "load_pool": "pool",
    "measure_fidelity": "fidelity",
    "plan_pairs": "labelling",
    "read_labels": "given_labels",
    "select": "pipeline",
    "write_report": "report",
}

__all__ = [  # the keys of _HOME, which a test compares
    "BM25",
    "IFD",
    "Config",
    "Delift",
    "EmbeddingSimilarity",
    "FacilityLocation",
    "FacilityLocationMutualInformation",
    "GradientSimilarity",
    "InRun",
    "InfluenceFunction",
    "InfluenceMatrix",
    "InfluenceNetwork",
    "LabelledPairs",
    "LanguageModel",
    "Less",
    "LossVal",
    "NNCIFTError",
    "Perplexity",
    "RepresentationSimilarity",
    "ResponseSimilarity",
    "SelectIT",
    "Selection",
    "collect",
    "embed",
    "lazy_greedy",
    "load_pool",
    "measure_fidelity",
    "plan_pairs",
    "read_labels",
    "select",
    "write_report",
]

if TYPE_CHECKING:
    from nncift.config import Config
    from nncift.embeddings import embed
    from nncift.errors import NNCIFTError
    from nncift.fidelity import measure_fidelity
    from nncift.given_labels import read_labels
    from nncift.greedy import lazy_greedy
    from nncift.influence import InfluenceFunction
    from nncift.influence.bm25 import BM25
    from nncift.influence.delift import Delift
    from nncift.influence.embedding_similarity import EmbeddingSimilarity
    from nncift.influence.gradient_similarity import GradientSimilarity
    from nncift.influence.ifd import IFD, Perplexity
    from nncift.influence.in_run import InRun
    from nncift.influence.less import Less
    from nncift.influence.lossval import LossVal
    from nncift.influence.representation_similarity import RepresentationSimilarity
    from nncift.influence.response_similarity import ResponseSimilarity
    from nncift.influence.selectit import SelectIT
    from nncift.labelling import plan_pairs
    from nncift.language_model import LanguageModel
    from nncift.matrix import InfluenceMatrix
    from nncift.network import InfluenceNetwork
    from nncift.objectives import FacilityLocation, FacilityLocationMutualInformation
    from nncift.pairs import LabelledPairs, collect
    from nncift.pipeline import select
    from nncift.pool import load_pool
    from nncift.report import write_report
    from nncift.selection import Selection


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nncift' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"nncift.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
