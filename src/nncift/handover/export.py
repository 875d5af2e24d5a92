"""Files of a run's subset that a trainer takes as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nncift.data.rows import json_text
from nncift.errors import ConfigError
from nncift.handover.axolotl import Axolotl
from nncift.handover.chats import TrainingChat, training_chats
from nncift.handover.folders import new_folder, replaced_folder
from nncift.handover.llama_factory import LlamaFactory
from nncift.handover.ms_swift import MsSwift
from nncift.handover.trainers import LeftOut, Trainer, in_ticks
from nncift.handover.trl import Trl
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.run.folder.records import counted
from nncift.run.options.registry import suggest
from nncift.run.progress import drawn
from nncift.selection.selection import Selection

TRAINERS: dict[str, type[Trainer]] = {
    "trl": Trl,
    "llama-factory": LlamaFactory,
    "axolotl": Axolotl,
    "ms-swift": MsSwift,
}
_LEFT_OUT = "left-out.jsonl"


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: where.
        format: the trainer's name.
        files: the data files, one for each phase.
        samples: selected samples in them.
        rows: of the data files; more than samples where several turns of a chat are trained on.
        left_out: samples that the trainer's form cannot hold, by the reason.
        unweighted: the run has weights, and the trainer takes none.
    """

    folder: Path
    format: str
    files: tuple[str, ...]
    samples: int
    rows: int
    left_out: dict[str, int]
    unweighted: bool

    def __str__(self) -> str:
        lines = [f"{counted(self.samples, 'sample')} for {TRAINERS[self.format].title} in {self.folder}"]
        return "\n".join([*lines, *self.notes])

    @property
    def notes(self) -> list[str]:
        """What of the run is not in the files, a sentence each."""
        notes = [f"Left out ({counted(n, 'sample')}, in {_LEFT_OUT}): {why}." for why, n in self.left_out.items()]
        if self.unweighted:
            notes.append(f"The run's weights are not in it: {TRAINERS[self.format].title} has no weights of samples.")
        return notes


def export(
    run: str | os.PathLike[str], format: str, output: str | os.PathLike[str], *, progress: bool = True
) -> Export:
    """Write a run's subset in the form that a trainer takes, with what starts the training.

    Chats keep their turns, system prompts and tools. The loss is on the turns that the run chose the samples by.

    Args:
        run: the folder of a finished run.
        format: "trl", "llama-factory", "axolotl" or "ms-swift".
        output: a new or empty folder, or an earlier export's, which is replaced.
        progress: show a progress bar.

    Raises:
        ConfigError: there is no such format, or it cannot hold any of the samples.
        RunError: the run is not finished, or the folder cannot be used.
    """
    if format not in TRAINERS:
        raise ConfigError(f"there is no format {format!r}", suggest(format, [*TRAINERS]))
    trainer, folder = TRAINERS[format](), new_folder(output)
    selection = FinishedRun.open(run).selection
    with replaced_folder(folder, {"format": format}) as temporary:
        with tqdm(
            total=len(selection),
            desc="exporting",
            unit=" samples",
            **drawn(progress),
        ) as bar:
            written = _written(trainer, format, selection, temporary, bar)
        readme = _readme(trainer, written)
        (temporary / "README.md").write_text(readme, encoding="utf-8")
    return Export(folder, **written)


def _written(trainer: Trainer, format: str, selection: Selection, folder: Path, bar: tqdm) -> dict[str, Any]:
    """Write the data; the fields of `Export`."""
    phases = [selection] if selection.phase is None else [selection.take(places) for places in selection.phases]
    files = ["train.jsonl"] if len(phases) == 1 else [f"phase-{n}.jsonl" for n in range(1, len(phases) + 1)]
    left_out: dict[str, int] = {}
    samples = rows = 0
    with open(folder / _LEFT_OUT, "w", encoding="utf-8", newline="\n") as listed:
        for file, phase in zip(files, phases, strict=True):
            with open(folder / file, "w", encoding="utf-8", newline="\n") as data:
                for chat in training_chats(phase):
                    lines, why = _lines(trainer, chat)
                    data.writelines(lines)
                    bar.update()
                    rows, samples = rows + len(lines), samples + (not why)
                    if why:
                        left_out[why] = left_out.get(why, 0) + 1
                        listed.write(json_text({"id": chat.id, "reason": why}) + "\n")
    if not samples:
        reason = next(iter(left_out), "the selection is empty")
        raise ConfigError(f"{trainer.title} cannot take any of the samples ({reason})", "give another `format`")
    if not left_out:
        (folder / _LEFT_OUT).unlink()
    trainer.write_config(folder, files)
    unweighted = selection.weights is not None and not trainer.weighted
    return {
        "format": format,
        "files": tuple(files),
        "samples": samples,
        "rows": rows,
        "left_out": left_out,
        "unweighted": unweighted,
    }


def _lines(trainer: Trainer, chat: TrainingChat) -> tuple[list[str], str]:
    """The lines of a sample, and why there are none."""
    try:
        return [json_text(row) + "\n" for row in trainer.rows(chat)], ""
    except LeftOut as reason:
        return [], str(reason)


def _readme(trainer: Trainer, written: dict[str, Any]) -> str:
    """How to train on the folder."""
    return "\n\n".join(_paragraphs(trainer, Export(Path(), **written))) + "\n"


def _paragraphs(trainer: Trainer, written: Export) -> Iterator[str]:
    yield f"# Training data for {trainer.title}"
    rows = f", {counted(written.rows, 'row')}" if written.rows != written.samples else ""
    yield (
        f"{counted(written.samples, 'sample')}{rows}, selected by nncift and checked against {trainer.title}"
        f" {trainer.version}. The loss is on the responses that they were selected by."
    )
    yield from trainer.usage(list(written.files))
    if len(written.files) > 1:
        names = in_ticks(list(written.files))
        yield (
            f"The files {names} are phases from easy to hard: train on one after the other, each beginning with the"
            " model that the one before has made."
        )
    yield from written.notes
