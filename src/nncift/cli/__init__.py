"""The command line: sub-commands made from Config; one-line errors, exit code 2."""

from nncift.cli.commands import app
from nncift.cli.entry import main

__all__ = ["app", "main"]
