"""Read a pool: any common file or dataset of instructions and responses -> one plain `datasets.Dataset`.

One pass: row -> text -> is it bad, in a test set, a duplicate? -> written. With a folder the samples go to an
Arrow file that is memory-mapped afterwards, and what is left out is listed beside it, so that memory holds no
sample, only hashes: about 100 bytes a sample, and another 100 where rows have ids of their own. A million rows
(665 MB of JSON Lines) took 18 s and 0.2 GB of memory on one core. Samples are told apart by 60 bits of BLAKE2b: two
different ones among a million are taken for equal in one of two million pools.

A row is judged in this order, and listed where it is left out:
    rejected.jsonl    it cannot be used (only with `skip_bad_rows`; else such a row is an error)
    excluded.jsonl    it also stands in a test set (only with `exclude`)
    duplicates.jsonl  same prompt and response (of a chat: same messages) as an earlier row
`facts.json` is written last: a folder that has it is finished.
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
from nncift.data.writer import SAMPLES, PoolWriter
from nncift.errors import ConfigError, DataError, RunError
from nncift.run.files import read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

_FACTS = "facts.json"


@dataclass(frozen=True)
class PoolFacts:
    """What was read and what became of it: `read` = `rows` + `duplicates` + `excluded` + `rejected`.

    Attributes:
        source: path or hub id, "<dataset>" for data in memory.
        schema: the schema that was recognised.
        fields: the source's fields that the samples were made of.
        read: rows of the source.
        rows: samples in the pool.
        duplicates: rows left out as exact duplicates.
        excluded: rows left out because they also stand in a test set.
        rejected: rows left out because they cannot be used.
    """

    source: str
    schema: str
    fields: tuple[str, ...]
    read: int
    rows: int
    duplicates: int
    excluded: int
    rejected: int

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON-able values."""
        return asdict(self) | {"fields": list(self.fields)}


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
        prompt_field: the field with the prompt (text, or a list of messages) when no known schema fits.
        response_field: the field with the response.
        exclude: one or several test sets, in any form that a pool may have; of one with several splits, "test".
        skip_bad_rows: leave out rows that cannot be used, in the pool and in the test sets, instead of raising.
        keep_duplicates: keep exact duplicates; where their ids would be equal they get a suffix "#2", "#3", ...
        folder: write the samples and the lists of what is left out there; a finished folder is only opened.
        name: what it is, for the progress bar and messages.
        progress: show a progress bar.

    Returns:
        One row per sample, with the columns
        `id` (str): the source's `id`, else made from the content;
        `prompt`, `response` (str): as plain text;
        `messages` (str or None): of a chat, JSON of its messages up to and with the response;
        `source_row` (int64): 0-based number of the row in the source, across its files, left-out rows counted;
        `original` (str): the row as one JSON object, on one line, unchanged.

    Raises:
        DataError: the source is not usable, its schema is not known, it has bad rows (the first five are named by
            file, row and field), or nothing is left of it.
        ConfigError: only one of `prompt_field` and `response_field` is given.
        RunError: the folder was made of another source, with other options, or of files that have changed since;
            or it cannot be written.
    """
    pool, _ = read_pool(
        source,
        split=split,
        prompt_field=prompt_field,
        response_field=response_field,
        exclude=exclude,
        skip_bad_rows=skip_bad_rows,
        keep_duplicates=keep_duplicates,
        folder=folder,
        name=name,
        progress=progress,
    )
    return pool


def read_pool(
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
) -> tuple[Dataset, PoolFacts]:
    """Read a pool as `load_pool` does, with the same arguments, and tell what became of its rows."""
    if (prompt_field is None) != (response_field is None):
        raise ConfigError("--prompt-field and --response-field go together", "give both")
    named = () if prompt_field is None or response_field is None else schemas_for(prompt_field, response_field)
    origin = open_source(source, split=split)
    tests = [open_source(test, prefer="test") for test in _several(exclude)]
    recipe = {
        "source": origin.name,
        "split": split,
        "prompt_field": prompt_field,
        "response_field": response_field,
        "exclude": [test.name for test in tests],
        "skip_bad_rows": skip_bad_rows,
        "keep_duplicates": keep_duplicates,
        "files": [stamp for each in (origin, *tests) for stamp in each.stamps],
    }
    if folder is not None and (folder / _FACTS).exists():
        _check_same(folder, recipe)
        return open_pool(folder)
    contamination = _index(tests, (*named, *SCHEMAS), skip_bad_rows) if tests else None
    with PoolWriter(folder) as writer:
        samples = Samples(origin, named or SCHEMAS, skip=skip_bad_rows, rejected=writer.rejected)
        rows = _with_progress(samples, f"reading {name}") if progress else samples
        duplicates, excluded = _fill(writer, rows, samples, contamination, keep_duplicates=keep_duplicates)
        if not writer.rows:
            problem = f"no row is left for the {name}: {excluded} of {samples.read} also stand in a test set"
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
    if folder is not None:
        write_json(folder / _FACTS, facts.to_dict() | recipe)
    return pool, facts


def open_pool(folder: Path) -> tuple[Dataset, PoolFacts]:
    """Open a finished pool folder as it is, whatever has become of its source.

    Raises:
        RunError: the folder is not that of a finished pool.
    """
    from datasets import Dataset

    stored = read_json(folder / _FACTS)
    try:
        values = {name: stored[name] for name in PoolFacts.__dataclass_fields__}
        facts = PoolFacts(**values | {"fields": tuple(values["fields"])})
        pool = Dataset.from_file(str(folder / SAMPLES))
    except (KeyError, OSError, ValueError) as error:
        raise RunError(f"{folder} is damaged ({error})", "remove it and run again") from error
    return pool, facts


def _several(exclude: SourceLike | Sequence[SourceLike] | None) -> list[Any]:
    """The test sets one by one; a dataset or a list of mappings is one."""
    if exclude is None:
        return []
    if isinstance(exclude, (list, tuple)) and not (exclude and isinstance(exclude[0], Mapping)):
        return list(exclude)
    return [exclude]


def _check_same(folder: Path, recipe: Mapping[str, Any]) -> None:
    stored = read_json(folder / _FACTS)
    for option, value in recipe.items():
        if option != "files" and stored.get(option) != value:
            raise RunError(
                f"{folder} holds a pool read otherwise ({option}: {stored.get(option)!r} there, {value!r} now)",
                "choose another folder",
            )
    before = {stamp["file"]: stamp for stamp in stored.get("files", ())}
    now = {stamp["file"]: stamp for stamp in recipe["files"]}
    for file in before | now:
        if before.get(file) != now.get(file):
            what = "is gone" if file not in now else "is new" if file not in before else "has changed"
            raise RunError(f"{file} {what} since {folder} was made of it", "restore it, or choose another --output")


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
    """Write the samples that stay; the numbers of duplicates and of excluded rows."""
    duplicates = excluded = 0
    pool_row: dict[int, int] = {}  # of each content
    content_of: dict[int, int] = {}  # of each id that a row brought itself
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


def _with_progress(samples: Samples, title: str) -> Iterable[Sample]:
    from tqdm import tqdm

    return tqdm(samples, desc=title, unit=" rows")  # type: ignore[no-any-return]
