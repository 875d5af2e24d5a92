"""Read a pool: any common file or dataset of instructions and responses -> one plain `datasets.Dataset`.

One pass: parse, validate, decontaminate, deduplicate, write. With a folder the samples go to an Arrow file, which is
memory-mapped afterwards, and removed rows are listed in files next to it, so that memory has no sample, only hashes:
about 100 bytes a sample, and another 100 if rows have their own ids. A million rows (665 MB of JSON Lines) took 18 s
and 0.2 GB of memory on one core. Samples are identified by 60 bits of BLAKE2b: among a million, two different ones
collide in one of two million pools.

A row is checked in this order, and listed if it is removed:
    rejected    it cannot be used (only with `skip_bad_rows`; else it is an error), or is marked as not to be trained on
    excluded    it also occurs in a test set (only with `exclude`)
    duplicates  same prompt and response (of a chat: same messages and tools, but for null keys, content in parts and
                a blank system message) as an earlier row
    rejected    a model of the run cannot take it (`screen`)
The facts are written last: a folder that has them is finished (`run.folder.parts.SampleFolder`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nncift.data.appending import EarlierPool, named
from nncift.data.cleaning.deduplication import Deduplication, Screen
from nncift.data.cleaning.test_sets import TestSets
from nncift.data.facts import PoolFacts, open_pool
from nncift.data.reader import Sample, Samples
from nncift.data.schemas import schemas_for
from nncift.data.sources.sampling import RowEstimate
from nncift.data.sources.sources import Source, SourceLike, changed_file, open_source
from nncift.data.writer import PoolWriter
from nncift.errors import ConfigError, DataError, RunError
from nncift.run.folder.parts import SampleFolder
from nncift.run.options.amounts import parse_bytes
from nncift.run.progress import drawn
from nncift.run.storage.files import read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read; the fields are arguments of `load_pool`."""

    split: str | None = None
    prompt_field: str | None = None
    response_field: str | None = None
    messages_field: str | None = None
    turns: Literal["last", "all"] | None = None
    exclude: SourceLike | Sequence[SourceLike] | None = None
    exclude_fields: tuple[str, ...] = ()
    skip_bad_rows: bool = False
    keep_duplicates: bool = False
    max_row_bytes: int | None = None
    seed: int | None = None  # of the rows that a mixture draws


def load_pool(
    source: SourceLike,
    *,
    split: str | None = None,
    prompt_field: str | None = None,
    response_field: str | None = None,
    messages_field: str | None = None,
    turns: Literal["last", "all"] | None = None,
    exclude: SourceLike | Sequence[SourceLike] | None = None,
    exclude_fields: str | Sequence[str] = (),
    skip_bad_rows: bool = False,
    keep_duplicates: bool = False,
    max_row_bytes: int | str | None = None,
    seed: int | None = None,
    folder: Path | None = None,
    name: str = "pool",
    progress: bool = False,
) -> Dataset:
    """Read a pool of instruction-tuning samples.

    Args:
        source: JSON Lines, a JSON array, CSV, TSV, Parquet or Arrow (also compressed), a folder of them ("folder" or
            "folder:config"), a folder of `Dataset.save_to_disk`, a hub id ("org/name" or "org/name:config"), a list of
            these, a mixture (a YAML list of {name, path, weight or cap, split}), a dataset, a DataFrame, or an iterable
            of mappings.
        split: of a source with several splits.
        prompt_field: the field of the prompt (text, or a list of messages) if no known schema fits.
        response_field: the field of the response.
        messages_field: instead of these, the field of whole chats: a list of messages, or a text with role markers.
        turns: of a chat, the assistant turns that are trained on: "last" (the default) or "all". Turns that are marked
            otherwise (`weight` 0, `train` or `loss` false) are not trained on.
        exclude: one or several test sets, any source with texts; of several splits, "test".
        exclude_fields: the fields of their questions, if they are not recognised; others are not compared then.
        skip_bad_rows: list rows that cannot be used, of the pool and of test sets, instead of raising.
        keep_duplicates: keep exact duplicates.
        max_row_bytes: longest row that can be used, in bytes or as a text such as "64MiB", the default.
        seed: of the rows that a mixture draws.
        folder: where the samples and the lists of removed rows are written; a finished folder is only opened.
        name: of the data, for the progress bar and messages.
        progress: show a progress bar.

    Returns:
        One row per sample, with the columns
        `id` (str): the source's `id`, else a hash of the content; repeated ones get a suffix "#2", "#3", ...;
        `prompt`, `response` (str): plain text; of a chat, the prompt has system message, tools and earlier turns too;
        `messages` (str or None): of a chat, JSON of its messages up to and including the response;
        `tools` (str or None): of a chat, JSON of its tools for a chat template;
        `turns` (list of int32, or None): with `turns` "all", of a chat, the messages that are trained on;
        `source` (str or None): of a mixture, the name of the source;
        `source_row` (int64): 0-based row number in the source, across its files, removed rows counted;
        `original` (str): the row as one JSON object, on one line, unchanged.

    Raises:
        DataError: the source cannot be used, no known schema fits, it has bad rows (the first five are named by file,
            row and field), or no row remains.
        ConfigError: the fields that are given do not go together.
        RunError: the folder was written from another source, with other options, or from files that have changed;
            or it cannot be written.
    """
    options = ReadOptions(
        split=split,
        prompt_field=prompt_field,
        response_field=response_field,
        messages_field=messages_field,
        turns=turns,
        exclude=exclude,
        exclude_fields=(exclude_fields,) if isinstance(exclude_fields, str) else tuple(exclude_fields),
        skip_bad_rows=skip_bad_rows,
        keep_duplicates=keep_duplicates,
        max_row_bytes=None if max_row_bytes is None else parse_bytes("max_row_bytes", max_row_bytes),
        seed=seed,
    )
    return read_pool(source, options, folder=folder, name=name, progress=progress)[0]


def read_pool(
    source: SourceLike,
    options: ReadOptions | None = None,
    *,
    screen: Screen | None = None,
    named_elsewhere: bool = False,
    after: Path | None = None,
    folder: Path | None = None,
    name: str = "pool",
    progress: bool = False,
) -> tuple[Dataset, PoolFacts]:
    """As `load_pool`, with the data summary.

    `screen` returns why a model cannot take a row's texts, None if it can: such a row is a bad row. With
    `named_elsewhere` other data may have the fields that the options name, so it is no error if this data has none
    (`PoolFacts.has_named`). With `after`, the folder of a finished pool, the rows are added to its samples, which are
    copied as they are (`data.appending`).
    """
    options = options or ReadOptions()
    schemas = schemas_for(options.prompt_field, options.response_field, options.messages_field)
    _check_options(options)
    origin = open_source(source, split=options.split, limit=options.max_row_bytes, seed=options.seed)
    tests = [open_source(test, prefer="test", limit=options.max_row_bytes) for test in _several(options.exclude)]
    recipe = _recipe("source" if after is None else "appended", origin, tests, options)
    if after is not None:
        origin = named(origin)
    files = None if folder is None else SampleFolder(folder)
    if files is not None and files.facts.exists():
        _check_same(files, recipe, (origin, *tests))
        if files.is_finished:
            return open_pool(files.path)
    earlier = None if after is None else EarlierPool.open(after)
    test_sets = TestSets(schemas, options.exclude_fields, skip=options.skip_bad_rows)
    contamination = test_sets.index(tests) if tests else None
    with PoolWriter(files) as writer:
        samples = Samples(
            origin,
            schemas,
            all_turns=options.turns == "all",
            skip=options.skip_bad_rows,
            rejected=writer.rejected,
        )
        kept = Deduplication(writer, contamination, screen, options.keep_duplicates)
        if earlier is not None:
            earlier.begin(writer, kept)
        before = writer.rows
        kept.take(_shown(samples, f"reading {name}") if progress else samples, samples)
        has_named = not schemas or samples.has_named or test_sets.has_named
        if not (has_named or named_elsewhere):
            raise samples.no_named_field()
        if writer.rows == before:
            also = f" and {kept.duplicates} in the pool" if before else ""
            problem = f"no row of the {name} remains: {kept.excluded} of {samples.read} also occur in a test set{also}"
            raise DataError(problem, "give other data", origin.name)
        pool = writer.finish()
    facts = _facts((origin, *tests), samples, kept, writer.rows, has_named)
    recipe["files"] = [stamp for each in (origin, *tests) for stamp in each.stamps]  # hashed while they were read
    if earlier is not None:
        facts, recipe = earlier.facts_with(facts), recipe | earlier.mark()
    if files is not None:
        write_json(files.facts, facts.to_dict() | recipe)
    return pool, facts


def _recipe(name: str, origin: Source, tests: Sequence[Source], options: ReadOptions) -> dict[str, Any]:
    """What the samples depend on, ready for JSON: the source under a name, and the options."""
    test_sets = {"exclude": [test.name for test in tests], "exclude_fields": list(options.exclude_fields)}
    found = {name: origin.name, **vars(options), **test_sets}
    del found["seed"]  # of a mixture alone, which has it in its stamp
    return found


def _facts(sources: Sequence[Source], samples: Samples, kept: Deduplication, rows: int, has_named: bool) -> PoolFacts:
    """The data summary of samples that were read from the first of the sources."""
    return PoolFacts(
        source=sources[0].name,
        schema=", ".join(samples.schemas),
        fields=samples.fields,
        read=samples.read,
        rows=rows,
        duplicates=kept.duplicates,
        excluded=kept.excluded,
        rejected=samples.bad,
        undesired=samples.undesired,
        schemas=samples.schemas,
        notes=(*(note for source in sources for note in source.notes), *samples.notes, *kept.notes),
        has_named=has_named,
    )


def _shown(samples: Samples, title: str) -> Iterator[Sample]:
    """The samples, with a bar that counts rows, bad ones too."""
    from tqdm import tqdm

    estimate = RowEstimate(samples.source)
    with tqdm(desc=title, unit=" rows", total=estimate.rows, **drawn(True)) as bar:
        for sample in samples:
            estimate.look(sample.row, samples.read)
            bar.total = estimate.rows
            bar.update(samples.read - bar.n)
            yield sample
        bar.total = samples.read
        bar.update(samples.read - bar.n)


def _check_options(options: ReadOptions) -> None:
    if options.turns not in (None, "last", "all"):
        raise ConfigError(f"`turns` is {options.turns!r}", 'give "last" or "all"')
    if options.exclude_fields and not _several(options.exclude):
        raise ConfigError("`exclude_fields` names fields of test sets, and there is none", "give `exclude` too")


def _several(exclude: SourceLike | Sequence[SourceLike] | None) -> list[Any]:
    """The test sets; a dataset or a list of mappings is one."""
    if exclude is None:
        return []
    if isinstance(exclude, (list, tuple)) and not (exclude and isinstance(exclude[0], Mapping)):
        return list(exclude)
    return [exclude]


def _check_same(files: SampleFolder, recipe: Mapping[str, Any], sources: Sequence[Source]) -> None:
    stored = read_json(files.facts)
    for option, value in recipe.items():
        if (stored.get(option) or None) != (value or None):  # an earlier version has fewer
            raise RunError(
                f"{files.path} has a pool with other options ({option}: {stored.get(option)!r} there, {value!r} now)",
                "choose another folder",
            )
    stamps = [stamp for source in sources for stamp in source.stamps]
    if changed := changed_file(stored.get("files", ()), stamps):
        file, how = changed
        undo = "remove" if how == "is new" else "restore"
        raise RunError(f"{file} {how} since {files.path} was written", f"{undo} it, or choose another `output`")
