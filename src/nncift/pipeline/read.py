"""Reading: the samples of every side, from their sources into the run folder."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from nncift.data.pool import ReadOptions, open_pool, read_pool
from nncift.errors import NNCIFTError
from nncift.features.features import SampleSet
from nncift.models.locate import PRETRAINED
from nncift.run.files import atomic_write
from nncift.run.folder import RunFolder

if TYPE_CHECKING:
    from nncift.data.sources import SourceLike
    from nncift.pipeline.context import Run
    from nncift.pipeline.takeover import EarlierRun


def read(run: Run) -> None:
    """Read pool, target and known samples; what is in the folder already is only opened."""
    with run.costs.stage("read"):
        for side, source in run.sources.items():
            if source is not None:
                run.samples[side] = _read_side(run, side, source)
        if (fitted := _fitted_run(run)) is not None:
            run.samples["target"] = _copy_target(run, fitted)
        if run.earlier is not None:
            _compare(run, run.earlier)


def _compare(run: Run, earlier: EarlierRun) -> None:
    """Take what came from memory from the earlier run, and note which other samples are the same."""
    for side in ("pool", "target", "known"):
        if getattr(run.config, side) is not None and side not in run.samples:
            earlier.copy_samples(side)
            run.samples[side] = SampleSet(*open_pool(run.folder.samples(side).path))
    for side, same in earlier.same_samples.items():
        if side in run.samples:
            earlier.note(side, f"{side}: the same samples" if same else f"{side}: other samples")


def _read_side(run: Run, side: str, source: SourceLike) -> SampleSet:
    config = run.config
    options = ReadOptions(
        split={"pool": config.split, "target": config.target_split, "known": config.known_split}[side],
        prompt_field=config.prompt_field,
        response_field=config.response_field,
        exclude=config.exclude if side == "pool" else (),
        skip_bad_rows=config.skip_bad_rows,
        keep_duplicates=config.keep_duplicates,
    )
    try:
        folder = run.folder.samples(side).path
        return SampleSet(*read_pool(source, options, folder=folder, name=side, progress=run.progress))
    except NNCIFTError as error:
        if side != "pool" and error.fix:
            error.fix = error.fix.replace("`split`", f"`{side}_split`")
        raise


def _fitted_run(run: Run) -> RunFolder | None:
    """The run whose target a run with its network and no target of its own takes over, if it has one."""
    if run.config.network in (None, PRETRAINED) or run.config.target is not None:
        return None
    fitted = RunFolder(run.config.network)
    return fitted if fitted.samples("target").facts.exists() else None


def _copy_target(run: Run, fitted: RunFolder) -> SampleSet:
    """The target of a fitted run, with its features, which the new run then finds computed."""
    there, here = fitted.samples("target"), run.folder.samples("target")
    names = run.features.names("target").values()
    features = [fitted.features.array(name) for name in names] + [fitted.features.facts(name) for name in names]
    for source in (there.samples, *features, there.facts):
        copy = run.folder.path / source.relative_to(fitted.path)
        if source.exists() and not copy.exists():
            with atomic_write(copy) as temporary:
                shutil.copyfile(source, temporary)
    return SampleSet(*open_pool(here.path))
