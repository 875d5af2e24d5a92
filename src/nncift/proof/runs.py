"""The runs that a comparison's values come from: several choices share one, and so may the processes that make them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nncift.pipeline.configuration.configure import sources_of
from nncift.pipeline.context import Run
from nncift.pipeline.inputs.read import read
from nncift.proof.folder import claimed
from nncift.proof.trials.selectors import check_same_pool

if TYPE_CHECKING:
    from nncift.config import Config
    from nncift.proof.inputs.inputs import Inputs


@contextlib.contextmanager
def opened(inputs: Inputs, config: Config) -> Iterator[Run]:
    """A run with its samples; one that another process works in is waited for.

    Args:
        inputs: of the comparison.
        config: of the run (`Inputs.config`).

    Raises:
        RunError: it read other rows than the comparison.
    """
    sources = sources_of(config, inputs.sources)
    with claimed(config.folder, wait=True), Run.open(config, sources, progress=inputs.progress) as run:
        read(run)
        check_same_pool(run, inputs.samples)
        yield run
