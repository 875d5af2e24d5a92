"""Reading: the samples of every side, from their sources into the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nncift.data.facts import open_pool
from nncift.data.pool import ReadOptions, read_pool
from nncift.data.sources.sources import NO_SOURCE
from nncift.errors import ConfigError, DataError, NNCIFTError, RunError
from nncift.features.features import SampleSet
from nncift.models.locate import PRETRAINED
from nncift.models.text.screening import ExampleScreen, RowScreen, Screen
from nncift.pipeline.configuration.configure import earlier_options
from nncift.run.folder.folder import RunFolder
from nncift.run.storage.checksums import checksums_of, content_hash, forget
from nncift.run.storage.files import remove, take_file

if TYPE_CHECKING:
    from nncift.config import Config
    from nncift.data.sources.sources import SourceLike
    from nncift.pipeline.context import Run
    from nncift.pipeline.earlier_runs.takeover import EarlierRun


def read(run: Run) -> None:
    """Read pool, target and known samples; what is in the folder already is only opened."""
    with run.costs.stage("read"):
        for side, source in run.sources.items():
            if source is not None:
                run.samples[side] = _read_side(run, side, source)
        _check_named_fields(run)
        if (fitted := _fitted_run(run)) is not None:
            run.samples["target"] = _copy_target(run, fitted)
        if run.earlier is not None:
            _copy(run, run.earlier)


def _copy(run: Run, earlier: EarlierRun) -> None:
    """Take what came from memory from the earlier run."""
    for side in ("pool", "target", "known"):
        if getattr(run.config, side) is not None and side not in run.samples:
            earlier.copy_samples(side)
            run.samples[side] = SampleSet(*open_pool(run.folder.samples(side).path))


def compare(run: Run, earlier: EarlierRun) -> None:
    """Note which samples are those of the earlier run."""
    for side, same in earlier.same_samples.items():
        if side == "pool" and earlier.kept:
            new = len(run.pool) - earlier.kept
            earlier.note(side, f"pool: {earlier.kept:,} samples taken, {new:,} appended")
        elif side in run.samples:
            earlier.note(side, f"{side}: the same samples" if same else f"{side}: other samples")


def _read_side(run: Run, side: str, source: SourceLike) -> SampleSet:
    config = run.config
    options = ReadOptions(
        split=side_splits(config)[side],
        prompt_field=config.prompt_field,
        response_field=config.response_field,
        messages_field=config.messages_field,
        turns=config.turns,
        exclude=config.exclude if side == "pool" else (),
        exclude_fields=config.exclude_fields if side == "pool" else (),
        skip_bad_rows=config.skip_bad_rows,
        keep_duplicates=config.keep_duplicates,
        max_row_bytes=config.row_bytes,
        seed=config.seed,
    )
    folder = run.folder.samples(side)
    before = checksums_of(folder.samples)
    grows = side == "pool" and bool(config.append)
    try:
        others = grows or sum(source is not None for source in run.sources.values()) > 1
        read = SampleSet(
            *read_pool(
                source,
                options,
                screen=_screen(run, side),
                named_elsewhere=others,
                after=RunFolder(str(config.from_run)).samples("pool").path if grows else None,
                folder=folder.path,
                name="appended data" if grows else side,
                progress=run.progress,
            )
        )
    except NNCIFTError as error:
        if side != "pool" and error.fix:
            error.fix = error.fix.replace("`split`", f"`{side}_split`")
        if not grows and _is_elsewhere(config, side, error):
            there = f"it is relative to the folder in which {config.from_run} was made"
            error.fix = f"{there}: run the same command there, or give `{side}`"
        raise
    begun = any(made.path.exists() for made in (run.folder.features, run.folder.vectors, run.folder.first_cut))
    if begun and before and content_hash(folder.samples) not in before:
        forget(folder.samples)  # they were read again, because a file was lost, and do not fit the others
        remove(folder.path)
        raise RunError(
            f"the {side} has changed since {run.folder.path} was written", "restore it, or choose another `output`"
        )
    return read


def _is_elsewhere(config: Config, side: str, error: NNCIFTError) -> bool:
    """Whether the error is that a side is a relative path of the earlier run, which is not there from here."""
    path = getattr(config, side)
    if config.from_run is None or not isinstance(path, str) or Path(path).expanduser().is_absolute():
        return False
    missing = isinstance(error, DataError) and error.file == path and error.problem.startswith(NO_SOURCE)
    return missing and earlier_options(config.from_run).get(side) == path


def _check_named_fields(run: Run) -> None:
    """Refuse named columns that none of pool, target, known samples and test sets has."""
    config = run.config
    names = [name for name in (config.prompt_field, config.response_field, config.messages_field) if name is not None]
    facts = {side: samples.facts for side, samples in run.samples.items() if samples.facts is not None}
    if not names or any(each.has_named for each in facts.values()):
        return
    found = "; ".join(f"of the {side}: {', '.join(each.fields)}" for side, each in facts.items())
    columns = f"columns {names[0]!r} and {names[1]!r}" if len(names) == 2 else f"column {names[0]!r}"
    raise ConfigError(f"none of the data has the {columns}", f"columns that were read instead, {found}")


def side_splits(config: Config) -> dict[str, str | None]:
    """The split to read of each side."""
    return {"pool": config.split, "target": config.target_split, "known": config.known_split}


def _screen(run: Run, side: str) -> RowScreen | None:
    """What refuses rows of a side that its models cannot take: the influence function's, and that of the features."""
    screens: list[Screen | None] = []
    if run.influence is not None and (side != "known" or run.is_exact):
        screens.append(run.influence.screen("target" if side == "target" else "pool"))
    if run.difficulty is not None and side == "pool":
        screens.append(run.difficulty.screen("pool"))
    if run.features.language_model is not None:
        screens.append(ExampleScreen(run.model, cut_responses=True))
    asked = [screen for screen in screens if screen is not None]
    return RowScreen(asked) if asked else None


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
        take_file(source, run.folder.path / source.relative_to(fitted.path))
    return SampleSet(*open_pool(here.path))
