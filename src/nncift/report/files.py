"""The files of a finished run that its report is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nncift.data.facts import open_samples
from nncift.errors import RunError
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import Fidelity, Reasons, Summary, Verification
from nncift.run.storage.checksums import verify_folder
from nncift.run.storage.files import read_array, read_json, read_table


class FinishedFiles:
    """What the files of a finished run hold; large arrays are memory-mapped.

    Args:
        folder: of the run.

    Raises:
        RunError: the run is not finished (the message names what is missing), or is damaged.
    """

    def __init__(self, folder: RunFolder) -> None:
        verify_folder(folder.path, but=folder.report)
        pool, target = folder.candidates, folder.samples("target").samples
        features = [] if folder.vectors.is_finished("pool") else [folder.features.array("pool")]
        required = (folder.config, folder.costs, folder.summary, pool, *features, folder.influence, folder.selection)
        if missing := [relative(path, folder) for path in required if not path.is_file()]:
            problem = f"{folder.path} is not the folder of a finished run: it lacks {', '.join(missing)}"
            raise RunError(problem, "run the same `nncift select` command again, which resumes it")
        self.folder = folder
        self.config: dict[str, Any] = read_json(folder.config)
        self.summary = Summary.load(folder.summary)
        self.fidelity = Fidelity.find(folder.fidelity)
        self.verification = Verification.find(folder.verification)
        self.reasons = Reasons.find(folder.reasons)
        self.pool = open_samples(pool)
        self.target = open_samples(target) if target.is_file() else None
        self.features = dense_features(folder, "pool")  # (n_pool, d)
        self.target_features = dense_features(folder, "target")  # (n_target, d)
        self.influence = read_array(folder.influence)  # (n_pool,)
        selection = read_table(folder.selection).sort_by("rank")  # a row per selected sample, best first
        self.chosen: np.ndarray = selection["pool_index"].to_numpy()
        if folder.first_cut.is_finished:  # what numbers samples here numbers those that it kept
            self.chosen = np.searchsorted(read_array(folder.first_cut.rows), self.chosen)
        self.gains: np.ndarray = selection["gain"].to_numpy()
        lengths = {pool: len(self.pool), **{path: len(read_array(path)) for path in features}}
        lengths[folder.influence] = len(self.influence)
        if len({*lengths.values()}) > 1 or np.any(self.chosen >= len(self.influence)):
            found = ", ".join(f"{relative(path, folder)} has {n} rows" for path, n in lengths.items())
            raise RunError(f"the files of {folder.path} do not belong together ({found})", "run into a new folder")


def relative(path: Path, folder: RunFolder) -> str:
    """A file as the reader of a run folder finds it."""
    return path.relative_to(folder.path).as_posix()


def dense_features(folder: RunFolder, side: str) -> np.ndarray | None:
    """Features of a side, or the vectors that give the influence; None of sparse ones, scores, and without any."""
    paths = (folder.features.array(side), folder.vectors.array(side))
    found = next((path for path in paths if path.is_file()), None)
    array = None if found is None else read_array(found)
    return None if array is None or array.ndim != 2 or array.shape[1] < 2 else array
