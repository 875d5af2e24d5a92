"""`nncift export` and `nncift push` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nncift.errors import RunError, printable

Trainer = Literal["trl", "llama-factory", "axolotl", "ms-swift"]
NAMES = {name: f"--{name.replace('_', '-')}" for name in ("format", "to_folder", "only", "license", "revision")}
"""How options of these commands are typed."""


def export(run: str, *, format: Trainer, output: str, quiet: bool = False) -> None:
    """Write a run's subset as a trainer takes it: the data, and what starts the training.

    Args:
        run: The folder of a finished run.
        format: The trainer: trl (with a script for its SFTTrainer), llama-factory (dataset_info.json), axolotl (the
            datasets section of its YAML) or ms-swift (JSON Lines for --dataset).
        output: A new folder, or one of an earlier export, which is replaced.
        quiet: No progress bar.
    """
    _check_folder(run)
    from nncift.handover.export import export as exported

    written = exported(run, format, output, progress=not quiet)
    print("\n".join(printable(line) for line in str(written).splitlines()))


def push(
    run: str,
    repo: str,
    *,
    only: Literal["data", "network"] | None = None,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
    to_folder: str | None = None,
    quiet: bool = False,
) -> None:
    """Push a run's subset and its network to the Hugging Face hub, each with a card. Log in first: hf auth login.

    Args:
        run: The folder of a finished run.
        repo: ORGANISATION/NAME or USER/NAME, of the data set and of the model.
        only: Push the data alone, or the network alone.
        private: Make the repositories private; those that exist stay as they are.
        revision: The branch to push to, made if there is none.
        license: The license for the cards, as the hub names it, such as apache-2.0; none is stated without.
        to_folder: Write the same files to this folder, and nothing to the hub.
        quiet: No progress bars.
    """
    _check_folder(run)
    from nncift.handover.push import push as pushed

    found = pushed(
        run,
        repo,
        only=only,
        private=private,
        revision=revision,
        license=license,
        to_folder=to_folder,
        progress=not quiet,
    )
    print("\n".join(printable(line) for line in str(found).splitlines()))


def _check_folder(run: str) -> None:
    """Before the imports, which take seconds."""
    if not run or not Path(run).is_dir():
        raise RunError(f"there is no folder {run!r}", "give the folder of a finished run")
