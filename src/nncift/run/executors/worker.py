"""A worker process of `processes`: `python -m nncift.run.executors.worker`."""

from __future__ import annotations

import contextlib
import os
import signal

from nncift.run.executors.answers import Answering
from nncift.run.executors.processes import JOB, read_message, write_message


def main() -> None:
    """Answer messages until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run's own process ends this one
    messages, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints is no answer
    worker = Answering()
    with contextlib.suppress(BrokenPipeError):
        while (message := read_message(messages)) is not None:
            kind, data = message
            write_message(answers, kind, (worker.begin if kind == JOB else worker.answer)(data))


if __name__ == "__main__":
    main()
    os._exit(0)  # at once: a GPU's libraries may take seconds to end
