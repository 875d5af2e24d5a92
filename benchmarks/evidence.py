"""The pools, targets and test files that `docs/results.md` compares choices on with `nncift compare`.

    python benchmarks/evidence.py FOLDER

a: 1,000 P3 rows of eight families, at most 800 characters each, with 200 targets and 150 test rows of these families;
   and for some of them, 100 targets and 150 test rows of that family alone. `pool-large` has 5,000 rows, the same ones
   among them; `known` 160 rows of half of the families, and `test-new` the test rows of the others.
b: Alpaca, 500 rows, 100 targets, 93 test rows.
c: P3, Alpaca, GSM8K and reasoning-gym mixed, with GSM8K targets and test rows.
d: 1,000 P3 rows of the eight next largest families, which nothing was chosen on; of each ten targets and 100 test rows.

`target-*few` has the first ten targets of a file. Otherwise no row stands in two files of a letter. The data is
`shared/data` (`NNCIFT_SHARED_DATA`).
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import reasoning_gym

from samples import DATA

Row = dict[str, Any]

LONGEST = 800  # characters of prompt and response
FAMILIES = 8  # the largest ones of P3 among such rows
ALONE = ("gigaword", "qasc")  # families that are a target by themselves: one writes a title, one picks an answer
FEW = 10  # targets of `target-*-few`, the first ones
LARGE = 5000  # rows of the large pool
OTHERS = ("common", "ag", "commonsense", "quarel", "kilt", "adversarial", "sciq", "dbpedia")  # the next largest
TASKS = ("basic_arithmetic", "caesar_cipher", "family_relationships", "letter_counting", "simple_equations")


def read(name: str) -> list[Row]:
    """The rows of a JSONL file of the shared data."""
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def distinct(rows: Iterable[Row]) -> list[Row]:
    """Those of at most `LONGEST` characters, of equal prompts the first."""
    short = (row for row in rows if len(row["prompt"]) + len(row["response"]) <= LONGEST)
    return list({row["prompt"]: row for row in reversed(list(short))}.values())[::-1]


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows in a seeded order."""
    return [rows[k] for k in np.random.default_rng(seed).permutation(len(rows))]


def p3(first: int = 0) -> list[Row]:
    """P3's rows of the `FAMILIES` largest families after the first so many, shuffled."""
    rows = distinct({name: row[name] for name in ("prompt", "response", "task")} for row in read("p3_pool"))
    largest = Counter(row["task"] for row in rows).most_common(first + FAMILIES)
    taken = {name for name, _ in largest[first:]}
    return shuffled([row for row in rows if row["task"] in taken], 0)


def others() -> dict[str, list[Row]]:
    """The files of `d`, by name."""
    rows = p3(FAMILIES)
    assert {row["task"] for row in rows} == set(OTHERS)
    files = {"pool": rows[:1000]}
    for family in OTHERS:
        own = [row for row in rows[1000:] if row["task"] == family][: FEW + 100]
        files |= {f"target_{family}_few": own[:FEW], f"test_{family}": own[FEW:]}
    return files


def alpaca() -> list[Row]:
    """Alpaca's rows, shuffled; a prompt is the instruction and, in a paragraph of its own, the input."""
    rows = json.loads((DATA / "alpaca_en.json").read_text(encoding="utf-8"))
    prompts = ("\n\n".join(filter(None, (row["instruction"], row["input"]))) for row in rows)
    made = [{"prompt": p, "response": row["output"], "task": "alpaca"} for p, row in zip(prompts, rows, strict=True)]
    return shuffled(list({row["prompt"]: row for row in made}.values()), 0)


def gsm8k(part: str) -> list[Row]:
    """GSM8K's rows, shuffled."""
    rows = read(f"gsm8k_{part}")
    made = ({"prompt": row["question"], "response": row["answer"], "task": "gsm8k"} for row in rows)
    return shuffled(distinct(made), 0)


def reasoning(n: int) -> list[Row]:
    """Rows of reasoning-gym, of each task equally many."""
    rows = []
    for name in TASKS:
        made = reasoning_gym.create_dataset(name, size=n // len(TASKS), seed=0)
        rows += [{"prompt": row["question"], "response": str(row["answer"]), "task": name} for row in made]
    return rows


def write(folder: Path, **files: Sequence[Row]) -> None:
    """One JSONL file for each list of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        path = folder / f"{name.replace('_', '-')}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)} rows")


def main() -> None:
    """Write the files of all letters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rows = p3()
    write(folder / "a", pool=rows[:1000], target=rows[1000:1200], test=rows[1200:1350])
    left = rows[1350:]
    for family in ALONE:
        own = [row for row in left if row["task"] == family][:250]
        left = [row for row in left if row not in own]
        write(
            folder / "a",
            **{f"target_{family}": own[:100], f"target_{family}_few": own[:FEW], f"test_{family}": own[100:]},
        )
    write(folder / "a", pool_large=(rows[:1000] + left)[:LARGE])
    half = sorted({row["task"] for row in rows})[::2]
    known = [row for row in left[LARGE - 1000 :] if row["task"] in half][:160]
    write(folder / "a", known=known, test_new=[row for row in rows[1200:1350] if row["task"] not in half])
    rows = alpaca()
    write(folder / "b", pool=rows[:500], target=rows[500:600], target_few=rows[500 : 500 + FEW], test=rows[600:693])
    train, test = gsm8k("train"), gsm8k("test")
    mixture = p3()[:400] + alpaca()[:250] + train[:150] + reasoning(200)
    targets = train[150:250]
    write(folder / "c", pool=shuffled(mixture, 1), target=targets, target_few=targets[:FEW], test=test[:100])
    write(folder / "d", **others())


if __name__ == "__main__":
    main()
