"""Read a pool: any common file or dataset of instructions and responses -> one plain `datasets.Dataset`.

One pass: parse, validate, decontaminate, deduplicate, write. With a folder the samples go to an Arrow file, which is
memory-mapped afterwards, and removed rows are listed in files next to it, so that memory has no sample, only hashes:
about 100 bytes a sample, and another 100 if rows have their own ids. A million rows (665 MB of JSON Lines) took 18 s
and 0.2 GB of memory on one core. Samples are identified by 60 bits of BLAKE2b: among a million, two different ones
collide in one of two million pools.

A row is checked in this order, and listed if it is removed:
    rejected    it cannot be used (only with `skip_bad_rows`; else it is an error)
    excluded    it also occurs in a test set (only with `exclude`)
    duplicates  same prompt and response (of a chat: same messages) as an earlier row
The facts are written last: a folder that has them is finished (`run.folder.SampleFolder`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.data.decontamination import Contamination
from nncift.data.reader import Sample, Samples, short_hash
from nncift.data.schemas import SCHEMAS, Schema, schemas_for
from nncift.data.sources import Source, SourceLike, open_source
from nncift.data.writer import PoolWriter
from nncift.errors import ConfigError, DataError, RunError
from nncift.run.files import read_json, write_json
from nncift.run.folder import SampleFolder
from nncift.run.progress import drawn

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class PoolFacts:
    """Data summary: `read` = `rows` + `duplicates` + `excluded` + `rejected`."""

    source: str  # path or hub id, "<dataset>" for data in memory
    schema: str  # that fits
    fields: tuple[str, ...]  # of the source, that the samples are made of
    read: int  # rows of the source
    rows: int  # samples in the pool
    duplicates: int  # removed exact duplicates
    excluded: int  # removed rows that also occur in a test set
    rejected: int  # removed rows that cannot be used

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self) | {"fields": list(self.fields)}


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read; the fields are arguments of `load_pool`."""

    split: str | None = None
    prompt_field: str | None = None
    response_field: str | None = None
    exclude: SourceLike | Sequence[SourceLike] | None = None
    skip_bad_rows: bool = False
    keep_duplicates: bool = False


def load_pool(
    source: SourceLike,
    *,
    split: str | None = None,
    prompt_field: str | None = None,
    response_field: str | None = None,
    exclude: SourceLike | Sequence[SourceLike] | None = None,
    skip_bad_rows: bool = False,
    keep_duplicates: bool = False,
    folder: Path | None = None,
    name: str = "pool",
    progress: bool = False,
) -> Dataset:
    """Read a pool of instruction-tuning samples.

    Args:
        source: JSON Lines, a JSON array, CSV or Parquet (also `.gz`), a folder of them, a folder of
            `Dataset.save_to_disk`, a hub id ("org/name" or "org/name:config"), a dataset, or a list of mappings.
        split: of a hub id or a DatasetDict with several splits.
        prompt_field: the field of the prompt (text, or a list of messages) if no known schema fits.
        response_field: the field of the response.
        exclude: one or several test sets, in any form that a pool may have; of several splits, "test".
        skip_bad_rows: list rows that cannot be used, of the pool and of test sets, instead of raising.
        keep_duplicates: keep exact duplicates; equal ids get a suffix "#2", "#3", ...
        folder: where the samples and the lists of removed rows are written; a finished folder is only opened.
        name: of the data, for the progress bar and messages.
        progress: show a progress bar.

    Returns:
        One row per sample, with the columns
        `id` (str): the source's `id`, else a hash of the content;
        `prompt`, `response` (str): plain text;
        `messages` (str or None): of a chat, JSON of its messages up to and including the response;
        `source_row` (int64): 0-based row number in the source, across its files, removed rows counted;
        `original` (str): the row as one JSON object, on one line, unchanged.

    Raises:
        DataError: the source cannot be used, no known schema fits, it has bad rows (the first five are named by file,
            row and field), or no row remains.
        ConfigError: only one of `prompt_field` and `response_field` is given.
        RunError: the folder was written from another source, with other options, or from files that have changed;
            or it cannot be written.
    """
    options = ReadOptions(split, prompt_field, response_field, exclude, skip_bad_rows, keep_duplicates)
    return read_pool(source, options, folder=folder, name=name, progress=progress)[0]


def read_pool(
    source: SourceLike,
    options: ReadOptions | None = None,
    *,
    folder: Path | None = None,
    name: str = "pool",
    progress: bool = False,
) -> tuple[Dataset, PoolFacts]:
    """As `load_pool`, with the data summary."""
    from tqdm import tqdm

    options = options or ReadOptions()
    fields = [field for field in (options.prompt_field, options.response_field) if field is not None]
    if len(fields) == 1:
        raise ConfigError("`prompt_field` and `response_field` go together", "give both")
    named = schemas_for(*fields) if fields else ()
    origin = open_source(source, split=options.split)
    tests = [open_source(test, prefer="test") for test in _several(options.exclude)]
    recipe = {"source": origin.name, **vars(options), "exclude": [test.name for test in tests]}
    recipe["files"] = [stamp for each in (origin, *tests) for stamp in each.stamps]
    files = None if folder is None else SampleFolder(folder)
    if files is not None and files.facts.exists():
        _check_same(files, recipe)
        return open_pool(files.path)
    contamination = _index(tests, (*named, *SCHEMAS), options.skip_bad_rows) if tests else None
    with PoolWriter(files) as writer:
        samples = Samples(origin, named or SCHEMAS, skip=options.skip_bad_rows, rejected=writer.rejected)
        rows = tqdm(samples, desc=f"reading {name}", unit=" rows", **drawn(progress))
        duplicates, excluded = _fill(writer, rows, samples, contamination, keep_duplicates=options.keep_duplicates)
        if not writer.rows:
            problem = f"no row of the {name} remains: {excluded} of {samples.read} also occur in a test set"
            raise DataError(problem, "give other data", origin.name)
        pool = writer.finish()
    facts = PoolFacts(
        source=origin.name,
        schema=samples.schema.name if samples.schema else "",
        fields=samples.fields,
        read=samples.read,
        rows=writer.rows,
        duplicates=duplicates,
        excluded=excluded,
        rejected=samples.bad,
    )
    if files is not None:
        write_json(files.facts, facts.to_dict() | recipe)
    return pool, facts


def open_pool(folder: Path) -> tuple[Dataset, PoolFacts]:
    """Open a finished pool folder, whether or not its source has changed.

    Raises:
        RunError: the folder is not that of a finished pool.
    """
    from datasets import Dataset

    files = SampleFolder(folder)
    stored = read_json(files.facts)
    try:
        values = {name: stored[name] for name in PoolFacts.__dataclass_fields__}
        facts = PoolFacts(**values | {"fields": tuple(values["fields"])})
        pool = Dataset.from_file(str(files.samples))
    except (KeyError, OSError, ValueError) as error:
        raise RunError(f"{folder} is damaged ({error})", "remove it and run again") from error
    return pool, facts


def _several(exclude: SourceLike | Sequence[SourceLike] | None) -> list[Any]:
    """The test sets; a dataset or a list of mappings is one."""
    if exclude is None:
        return []
    if isinstance(exclude, (list, tuple)) and not (exclude and isinstance(exclude[0], Mapping)):
        return list(exclude)
    return [exclude]


def _check_same(files: SampleFolder, recipe: Mapping[str, Any]) -> None:
    stored = read_json(files.facts)
    for option, value in recipe.items():
        if option != "files" and stored.get(option) != value:
            raise RunError(
                f"{files.path} has a pool with other options ({option}: {stored.get(option)!r} there, {value!r} now)",
                "choose another folder",
            )
    before = {stamp["file"]: stamp for stamp in stored.get("files", ())}
    now = {stamp["file"]: stamp for stamp in recipe["files"]}
    for file in before | now:
        if before.get(file) != now.get(file):
            what = "is gone" if file not in now else "is new" if file not in before else "has changed"
            raise RunError(f"{file} {what} since {files.path} was written", "restore it, or choose another `output`")


def _index(tests: Sequence[Source], schemas: Sequence[Schema], skip: bool) -> Contamination:
    contamination = Contamination()
    for test in tests:
        for sample in Samples(test, schemas, skip=skip):
            contamination.add(sample.identity, sample.row.file, sample.text.prompt, sample.text.response)
    return contamination


def _fill(
    writer: PoolWriter,
    rows: Iterable[Sample],
    samples: Samples,
    contamination: Contamination | None,
    *,
    keep_duplicates: bool,
) -> tuple[int, int]:
    """Write the samples that remain; the numbers of duplicates and of excluded rows."""
    duplicates = excluded = 0
    pool_row: dict[int, int] = {}  # by content
    content_of: dict[int, int] = {}  # by the row's own id
    copies: dict[int, int] = {}
    for sample in rows:
        id_hash = short_hash(sample.identity) if sample.own else sample.content
        if sample.own and content_of.setdefault(id_hash, sample.content) != sample.content:
            samples.refuse(sample.row, "id", f"{sample.identity[:40]!r} is the id of an earlier row with other content")
        elif contamination and (found := contamination.find(sample.text.prompt, sample.text.response)):
            excluded += 1
            writer.exclude(sample, *found)
        elif keep_duplicates:
            copies[id_hash] = copies.get(id_hash, 0) + 1
            writer.keep(sample, sample.identity + (f"#{copies[id_hash]}" if copies[id_hash] > 1 else ""))
        elif sample.content in pool_row:
            duplicates += 1
            writer.drop_duplicate(sample, pool_row[sample.content])
        else:
            pool_row[sample.content] = writer.rows
            writer.keep(sample, sample.identity)
    return duplicates, excluded
