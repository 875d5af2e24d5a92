"""Exact influence functions: how much a pool sample helps a target sample.

Anything that satisfies `InfluenceFunction` can be passed where one is expected; strings name those of
`BUILT_IN`, entry points of the group `nncift.influence`, or "module:Class".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

BUILT_IN = {
    "delift": "nncift.influence.delift:Delift",
    "response-similarity": "nncift.influence.response_similarity:ResponseSimilarity",
    "representation-similarity": "nncift.influence.representation_similarity:RepresentationSimilarity",
    "embedding-similarity": "nncift.influence.embedding_similarity:EmbeddingSimilarity",
    "bm25": "nncift.influence.bm25:BM25",
    "selectit": "nncift.influence.selectit:SelectIT",
    "ifd": "nncift.influence.ifd:IFD",
    "perplexity": "nncift.influence.ifd:Perplexity",
    "gradient-similarity": "nncift.influence.gradient_similarity:GradientSimilarity",
    "less": "nncift.influence.less:Less",
    "in-run": "nncift.influence.in_run:InRun",
    "lossval": "nncift.influence.lossval:LossVal",
}


class InfluenceFunction(Protocol):
    """A function that gives exact influence for a block of pool samples and targets.

    A function that has to see all samples first, or wants to refuse some before any work is done, also has
    `prepare(pool, target, folder: Path | None)`. It is called with the samples to be labelled before their first
    block, again after a kill, and keeps what it computes in `folder`. A function with an attribute `progress` is told
    there whether to show a bar meanwhile.

    A function that is trained on the pool first, whatever is labelled, has `warm_up(pool, folder, *, progress)`; it
    sees all samples, before `prepare`. `check(pool, target)` sees all samples before anything costly, to refuse some or
    to remember what it has to know of all, and loads nothing. `check_lengths(pool, target)` refuses what does not fit
    into its model; a run that may measure any sample asks it first. `tokens(pool_rows, target_rows)` says how many
    tokens labelling these samples will send through the model; with `warm_up`, there is a third argument `pool`, on
    which that is done before.

    Where the values depend on all samples that `prepare` saw, the function has `relative = True`: what is measured
    later, after another call, could not be compared, so a run measures once.

    A function with `works_per_pair = True` has work of its own to do for each pair, of which what it does once for a
    sample is the lesser part. The rows to be labelled then get targets of their own, else all the same.

    A class that is named instead of an object is made with the options that the user gives, which its constructor
    lists with type hints (`options.py`); if it has a class method `from_config(config, **options)`, by that.
    """

    name: str

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Influence of each pool sample on each target.

        Args:
            pool_rows: n_pool samples that may help.
            target_rows: n_target samples to be helped.

        Returns:
            (n_pool, n_target) float32. Entry [i, j] is how much pool sample i helps target sample j; larger is
            better. It depends on the two samples alone, whatever else is in the block.
        """
        ...


def is_pointwise(function: InfluenceFunction | None) -> bool:
    """Whether a function gives one score for all targets."""
    return bool(getattr(function, "pointwise", False))


def works_per_pair(function: InfluenceFunction) -> bool:
    """Whether each pair is work of its own, so that rows had better have targets of their own."""
    return bool(getattr(function, "works_per_pair", False)) and not is_pointwise(function)


def is_relative(function: InfluenceFunction) -> bool:
    """Whether its values depend on all samples that are measured together."""
    return bool(getattr(function, "relative", False))
