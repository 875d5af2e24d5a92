"""Choose again when new data has come: only what it adds to what the model was trained on counts.

    python examples/continual.py
    python examples/continual.py --pool january.jsonl --later february.jsonl --budget 0.1 --model org/model

The first run chooses from the pool. The second chooses from the later data with the first subset as `known`: the gain
of a row is what it adds to the coverage of that subset (the conditional gain of facility location).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nncift

DATA = Path(__file__).parent / "data"


def main(arguments: list[str] | None = None) -> None:
    """Choose twice, the second time with and without the first subset as known samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default=str(DATA / "pool.jsonl"))
    parser.add_argument("--later", default=str(DATA / "later.jsonl"))
    parser.add_argument("--budget", default="8")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--output", type=Path, default=Path("runs/continual"))
    given = parser.parse_args(arguments)

    options = {"budget": given.budget, "model": given.model}
    nncift.select(given.pool, output=str(given.output / "first"), **options)
    known = str(given.output / "first" / "subset.jsonl")
    further = nncift.select(given.later, known=known, output=str(given.output / "further"), **options)
    plain = nncift.select(given.later, output=str(given.output / "plain"), **options)

    shared = set(further.indices.tolist()) & set(plain.indices.tolist())
    print(f"{len(further)} rows beside those known; {len(shared)} of them would be chosen without --known, too")
    print(f"train on both: {known}, then {given.output / 'further' / 'subset.jsonl'}")


if __name__ == "__main__":
    main()
