"""A campaign against nncift: runs killed at any instant, full disks, mutated inputs, damaged run folders.

    python benchmarks/reliability                  # the whole campaign, hours on two cores
    python benchmarks/reliability --short          # a short version, as in `make test`
    python benchmarks/reliability --parts inputs --inputs 50000 --seed 1

The promise under test (docs/reliability.md):
    kills    a run killed at any instant is resumed by the same call and ends with the same bytes;
    space    a run whose disk is full is refused in one line, and the same call resumes it once there is room;
    inputs   any input either works or is refused in one line, a `NNCIFTError`;
    damage   a file of a run folder that has changed is noticed when it is used, named in one line, and repaired by
             `nncift repair` and the same call, with the same bytes.
Exit code 1 if it does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import children
import damage
import inputs
import kills
import runs
import space

PARTS: dict[str, Any] = {
    "kills": kills.campaign,
    "space": space.campaign,
    "inputs": inputs.campaign,
    "damage": damage.campaign,
}
FULL = {"kills": 200, "space": 120, "inputs": 10_000, "damage": 0}  # instants, disks, inputs, runs (0: every kind)
SHORT = {"kills": 3, "space": 1, "inputs": 200, "damage": 1}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--short", action="store_true", help="a few of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--kinds", nargs="*", default=(), help="kinds of runs whose names have one of these texts")
    parser.add_argument("--model", type=Path, help="language model of the runs; a random one by default")
    parser.add_argument("--encoder", default="embedded", help="sentence encoder of the runs (default: %(default)s)")
    parser.add_argument("--files", type=int, help="files of a run to damage, at random (by default all)")
    for part in PARTS:
        parser.add_argument(f"--{part}", type=int, help=f"how many (by default {FULL[part]})")
    options = parser.parse_args()
    children.import_libraries()
    with tempfile.TemporaryDirectory(prefix="nncift-runs-") as folder:
        given = options.kinds, options.model, options.encoder
        kinds = runs.kinds(Path(folder), *given) if options.parts != ["inputs"] else []
        sys.exit(bool(_tried(options, kinds)))


def _tried(options: argparse.Namespace, kinds: list[runs.Kind]) -> list[str]:
    """What failed in the chosen parts."""
    figures, failures = {}, list[str]()
    for part in options.parts:
        amount = getattr(options, part)
        if amount is None:
            amount = (SHORT if options.short else FULL)[part]
        since = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f"nncift-{part}-") as folder:
            more: dict[str, Any] = {} if part == "inputs" else {"kinds": kinds}
            more |= {"most": options.files} if part == "damage" else {}
            table, failed = PARTS[part](Path(folder), amount, options.seed, **more)
        figures[part] = {"table": table, "failures": failed, "seconds": round(time.perf_counter() - since)}
        failures += failed
        print(f"\n## {part} ({figures[part]['seconds']} s)\n")
        _print(table)
        for failure in failed:
            print(f"FAILED {failure}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return failures


def _print(table: list[dict[str, object]]) -> None:
    names = list(dict.fromkeys(name for row in table for name in row))
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in table:
        print(f"| {' | '.join(str(row.get(name, '')) for name in names)} |")


if __name__ == "__main__":
    main()
