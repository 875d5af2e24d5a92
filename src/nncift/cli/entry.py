"""The process of a command: settings of the libraries, one-line errors, exit code 2."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import cyclopts

from nncift.cli.commands import app
from nncift.cli.messages import as_typed
from nncift.cli.options import read_config_file, take_config_file
from nncift.errors import NNCIFTError, printable


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's error is one line on stderr and exit code 2, a bug keeps its traceback."""
    _configure_libraries()
    if "" not in sys.path:
        sys.path.append("")  # the working folder, where "module:Class" may be: a script's path lacks it
    try:
        rest, file = take_config_file(list(sys.argv[1:] if arguments is None else arguments))
        app.config = () if file is None else (_config_of(file, rest),)
        app(rest, exit_on_error=False, print_error=False)
    except NNCIFTError as error:
        _fail(str(error))
    except cyclopts.CycloptsError as error:
        _fail(f"{printable(error)} See nncift {_sub_command(rest)}--help.")
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python raises again when it flushes
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nnncift: stopped; the same command resumes from here.", file=sys.stderr)
        sys.exit(130)


def _config_of(file: Path, arguments: list[str]) -> cyclopts.config.Dict:
    """The options in a file, under the name of the command: at the top cyclopts drops keys that are commands' names."""
    command = _sub_command(arguments).strip()
    return cyclopts.config.Dict({command: read_config_file(file)}, source=str(file))


def _sub_command(arguments: list[str]) -> str:
    """The sub-command that the arguments name, with a space; nothing where there is none."""
    name = arguments[0] if arguments else ""
    return f"{name} " if name in list(app) else ""


def _fail(message: str) -> None:
    print(f"nncift: {as_typed(message)}", file=sys.stderr)
    sys.exit(2)


def _configure_libraries() -> None:
    """Settings that the libraries read when they are imported, where the user has made none.

    Their progress bars and advice stay off the terminal. Threads that wait sleep: while they spin, as is the
    default, another busy process makes a forward pass on two cores ten times slower.
    """
    for name, value in (
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_VERBOSITY", "error"),
        ("DATASETS_VERBOSITY", "error"),
        ("OMP_WAIT_POLICY", "PASSIVE"),
    ):
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # what it misses on a CPU, once peft has loaded it
