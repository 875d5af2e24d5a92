"""A run's subset as a data set of the hub: Parquet shards in two configurations, and the card.

`default` has the rows as they were, in the order chosen, with our columns; `sft` the columns of trl's SFTTrainer, in a
split for each phase. The card names the files, and their names a digest of the rows: of data sets in local folders,
`load_dataset` compares cards alone, and would give the rows that it has cached of another with the same card.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nncift.handover.provenance import lines_of
from nncift.handover.public_names import without_paths
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.run.folder.records import counted
from nncift.run.markdown import escaped, table
from nncift.run.progress import advance
from nncift.run.storage.checksums import content_hash
from nncift.run.storage.files import fingerprint
from nncift.selection.selection import OPTIONAL, SOURCE, Selection

if TYPE_CHECKING:
    from datasets import Dataset

_SHARD = 500_000_000  # bytes in memory, as `datasets` has them
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_COLUMNS = {
    "nncift_rank": "when the row was chosen, from 1",
    "nncift_gain": "its marginal gain of the objective then",
    "nncift_influence": "its mean influence over the targets; of very many targets over a random sample",
    "nncift_source": "the source of the row",
    "nncift_weight": "its weight in the loss, mean 1",
    "nncift_difficulty": "its difficulty; larger is harder",
    "nncift_phase": "the phase in which it is trained on, from 1",
}


def write_data_set(run: FinishedRun, folder: Path, repo: str, license: str | None = None) -> None:
    """Write the data set; a bar around it moves by the rows of both configurations.

    Args:
        run: the run.
        folder: a new folder.
        repo: the id on the hub, for the card.
        license: of the data, as the hub names it; the card says that none is stated without one.
    """
    selection = run.selection
    rows = selection.dataset
    if SOURCE in rows.column_names:
        names = [None if name is None else without_paths(name) for name in rows[SOURCE]]
        rows = rows.remove_columns(SOURCE).add_column(SOURCE, names)
    files = {"default": {"train": _write(rows, folder, "data", "train")}, "sft": {}}
    for split, phase in _phases(selection):
        files["sft"][split] = _write(phase.sft_dataset(weights=phase.weights is not None), folder, "sft", split)
    card = _front_matter(len(rows), files, license) + _card(run, repo, rows.column_names, license)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _phases(selection: Selection) -> Iterator[tuple[str, Selection]]:
    """The splits of the configuration `sft`."""
    if selection.phase is None:
        yield "train", selection
        return
    for number, places in enumerate(selection.phases, 1):
        yield f"phase_{number}", selection.take(places)


def _write(rows: Dataset, root: Path, folder: str, split: str) -> str:
    """Parquet files as the hub names them; their pattern."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    count = max(-(-int(rows.data.nbytes) // _SHARD), 1)
    files = [root / folder / f"{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    with _without_bars():
        for number, file in enumerate(files):
            shard = rows.shard(count, number, contiguous=True)
            shard.to_parquet(str(file))
            advance(len(shard))
    digest = fingerprint(*map(content_hash, files))
    for file in files:
        file.rename(file.with_stem(f"{file.stem}-{digest}"))
    return f"{folder}/{split}-*-{digest}.parquet"


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Without a bar of `datasets` for each file."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _front_matter(rows: int, files: dict[str, dict[str, str]], license: str | None) -> str:
    """The card's metadata; `files` are the patterns by configuration and split."""
    matter: dict[str, Any] = {
        "configs": [
            {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
            for name, splits in files.items()
        ],
        **({} if license is None else {"license": license}),
        "task_categories": ["text-generation"],
        "size_categories": [next((size for most, size in _SIZES if rows < most), "n>1M")],
        "tags": ["nncift", "data-selection", "instruction-tuning"],
    }
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n"


def _card(run: FinishedRun, repo: str, columns: list[str], license: str | None) -> str:
    selected, pool = len(run.selection), len(run.pool)
    purpose = "represent the pool" if run.own_target else "serve a target"
    others = {f"nncift_{column}" for name, column in OPTIONAL.items() if getattr(run.selection, name) is None}
    ours = [name for name in _COLUMNS if name in columns and name not in others]  # the data may have such a column
    parts = [
        f"# {escaped(repo.rpartition('/')[2])}",
        f"{counted(selected, 'sample')} of {pool:,}, chosen by [nncift](https://arxiv.org/abs/2502.09969) to {purpose}:"
        " instruction-tuning data worth fine-tuning on.",
        "## How it was chosen",
        table(("", ""), lines_of(run)),
        "## How to use it",
        f"```python\nfrom datasets import load_dataset\n\n"
        f'rows = load_dataset("{repo}", split="train")  # as they were, in the order chosen\n'
        f'sft = load_dataset("{repo}", "sft")  # prompt, completion: for trl, loss on the completion\n```',
        table(("column", "what it is"), [(name, _COLUMNS[name]) for name in ours]),
        *([] if license else ["## License", "Not stated: the rows are under the licenses of their sources."]),
    ]
    return "\n" + "\n\n".join(parts) + "\n"
