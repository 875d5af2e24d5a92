"""The exceptions a user can cause, and the only ones the command line turns into one line.

    NNCIFTError
    ├── DataError        a pool, target or feature file is not usable: file, row, field, what to do
    ├── ConfigError      an option has a bad value, or options do not go together
    ├── ModelError       a language model, encoder or stored network cannot be loaded or does not fit
    ├── RunError         a run folder is busy, belongs to another config, is damaged, or the disk is full
    └── DependencyError  an optional package is missing: which extra brings it

Anything else that escapes is a bug of ours and keeps its traceback. Every field goes through
`super().__init__`, so an error survives pickling on its way back from a worker process.
"""

from __future__ import annotations

from unicodedata import category

_LONGEST = 200  # characters of a message of a library


def printable(text: object) -> str:
    """`text` on one line with control characters escaped, safe for a terminal whatever the data holds.

    Spaces of any kind are plain ones.
    """
    return "".join(c if c.isprintable() else " " if category(c) == "Zs" else _escaped(c) for c in str(text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def first_line(error: BaseException) -> str:
    """The first line of a library's message, cut to 200 characters; the error's type where it has none."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


class NNCIFTError(Exception):
    """What went wrong and what to do about it, in one line.

    Args:
        problem: what went wrong, with the user's own input repeated.
        fix: what to do next.
    """

    def __init__(self, problem: str, fix: str | None = None, *more: object) -> None:
        super().__init__(problem, fix, *more)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return printable(f"{self.problem}: {self.fix}" if self.fix else self.problem)


class DataError(NNCIFTError):
    """Data that cannot be used.

    Args:
        problem: what is wrong.
        fix: what to do next.
        file: the file, folder or hub id it stands in.
        row: row number in that file, from 1 (the line number in a JSONL file).
        field: the column.
    """

    def __init__(
        self,
        problem: str,
        fix: str | None = None,
        file: str | None = None,
        row: int | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(problem, fix, file, row, field)
        self.file = file
        self.row = row
        self.field = field

    def __str__(self) -> str:
        where = ", ".join(
            part
            for part in (
                self.file,
                None if self.row is None else f"row {self.row}",
                None if self.field is None else f"field {self.field!r}",
            )
            if part
        )
        return printable(f"{where}: " if where else "") + super().__str__()


class ConfigError(NNCIFTError):
    """An option with a value that cannot be used, or options that do not go together."""


class ModelError(NNCIFTError):
    """A model that cannot be loaded, or does not fit the data or the stored network."""


class RunError(NNCIFTError):
    """A run folder that cannot be written or resumed."""


class DependencyError(NNCIFTError):
    """A package that is not installed, with the command that installs it."""
