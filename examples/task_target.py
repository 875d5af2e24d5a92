"""Choose rows of a pool that serve a task, and look at what was chosen.

    python examples/task_target.py
    python examples/task_target.py --pool alpaca.jsonl --target gsm8k.jsonl --budget 0.05 --model org/model

The target is a few samples of the task that the model is to get better at. They are not in the subset, and no test set
should be among them: give that to `exclude`, so that its rows are left out of the choice.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import nncift

DATA = Path(__file__).parent / "data"


def main(arguments: list[str] | None = None) -> None:
    """Choose, and print which tasks the chosen rows are of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default=str(DATA / "pool.jsonl"))
    parser.add_argument("--target", default=str(DATA / "target.jsonl"))
    parser.add_argument("--exclude", default=str(DATA / "test.jsonl"))
    parser.add_argument("--budget", default="12")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--output", default="runs/task-target")
    given = parser.parse_args(arguments)

    selection = nncift.select(
        given.pool,
        target=given.target,
        exclude=given.exclude,
        budget=given.budget,
        model=given.model,
        output=given.output,
    )
    print(f"{len(selection)} rows: {given.output}/subset.jsonl, and why: {given.output}/report.html")
    if selection.certificate is not None:
        print(f"at least {selection.certificate.share:.1%} of the best possible value for this influence")
    if "task" in selection.dataset.column_names:
        print(Counter(selection.dataset["task"]).most_common())


if __name__ == "__main__":
    main()
