"""What a choice costs as the pool grows, beside other libraries, with its certificate and what was planned.

    python benchmarks/selection.py                  # all of it, one after the other
    python benchmarks/selection.py pairs 5k 52k     # some of it
    OMP_NUM_THREADS=1 python benchmarks/selection.py 1M

`pairs`: pairs scored per second (`pair_scoring.py`). `2k`, `5k`, `10k`: facility location of 30 % from a stored matrix
and from two towers, beside submodlib and apricot where they are installed. `streamed`: 5 % of up to 20,000, nothing
stored. `10k-own` to `1M`: the pool its own target, 1 % (52k: 10 %), in the form that `matrix.planning.forms` gives it.
`1M-1000`: a million samples for a thousand targets, 1 %. `loss`: at 50,000, what the sparse form loses beside a choice
that reads all pairs. Ten million samples: `large_pools.py`.

Each is a process of its own, so that the peak memory is its own: the samples' vectors (0.5 GiB a million on a side)
count. CPU seconds are of all threads. "planned" is what `nncift select --dry-run` reckons, from rates measured on 2,048
samples, in CPU seconds too; its memory is that of the choice beside that of the vectors. From 100k,
300k and 1M follows the exponent of CPU seconds in samples.

Clusters: 200 of like size with vectors of 128 numbers, seeded; `-uneven`: 1,000 of very different size.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1))

import numpy as np

from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.planning.costs import planned_choice
from nncift.matrix.planning.forms import choose_form, first_helpers
from nncift.matrix.sparse import SparseMatrix, sparsified
from nncift.matrix.stored import in_memory
from nncift.selection.certificate import pairs_for_bound
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.coverage import FacilityLocation
from nncift.selection.objectives.relevance import FacilityLocationReciprocalRank
from nncift.selection.objectives.table import ObjectiveOptions
from pair_scoring import estimated, towers
from pair_scoring import main as score_pairs

PEERS = {"2k": 2_000, "5k": 5_000, "10k": 10_000}  # beside other libraries, 30 %
SIZES = {  # name to pool, targets (0: the pool itself), share to select
    "10k-own": (10_000, 0, 0.01),
    "20k": (20_000, 0, 0.01),
    "52k": (52_000, 0, 0.10),
    "100k": (100_000, 0, 0.01),
    "100k-uneven": (100_000, 0, 0.01),
    "100k-1000": (100_000, 1000, 0.01),
    "300k": (300_000, 0, 0.01),
    "1M": (1_000_000, 0, 0.01),
    "1M-1000": (1_000_000, 1000, 0.01),
}
GIB = 1 << 30


def uneven(n: int) -> np.ndarray:
    """Samples of length 1 in 1,000 clusters of very different size that stand out less: float32 (n, 128)."""
    rng = np.random.default_rng(0)
    centres, shares = rng.standard_normal((1000, 128), dtype=np.float32), rng.dirichlet(np.full(1000, 0.5))
    x = centres[rng.choice(1000, n, p=shares)] + np.float32(0.8) * rng.standard_normal((n, 128), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, seconds and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def show(*cells: Any) -> None:
    """A row of a Markdown table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def beside_peers(n: int) -> None:
    """Facility location of 30 % on one matrix, by this library and others."""
    budget, matrix = round(0.3 * n), estimated(n)
    stored = in_memory(matrix)
    for held in (in_memory(estimated(500)), estimated(500)):
        lazy_greedy(FacilityLocation(held), 5)  # compiles
    show(f"{n:,} x {n:,}, 30 %", "value", "s", "CPU s", "of ours, stored")
    show(*["---"] * 5)
    ours, wall, cpu = timed(lambda: lazy_greedy(FacilityLocation(stored), budget))
    show("nncift, stored matrix", f"{ours.value:.2f}", f"{wall:.2f}", f"{cpu:.2f}", "1")
    found, seconds, spent = timed(lambda: lazy_greedy(FacilityLocation(matrix), budget))
    show("nncift, from towers", f"{found.value:.2f}", f"{seconds:.2f}", f"{spent:.2f}", f"{spent / cpu:.1f}")
    s = np.maximum(stored.rows(slice(None)), 0)
    for name, peer, layout in (
        ("submodlib", _submodlib, s.T.copy),
        ("apricot", _apricot, partial(s.astype, np.float64)),
    ):
        if importlib.util.find_spec(name) is None:
            show(name, "not installed", "", "", "")
            continue
        given = layout()  # what the peer takes, before its time begins
        few = given[:20, :20].copy()
        peer(few, 5)  # imports
        _, *compiling = timed(partial(peer, few, 5))  # at each call, if at all
        indices, *whole = timed(partial(peer, given, budget))
        value = np.maximum.reduce(s[indices]).sum(dtype=np.float64)
        for label, (seconds, spent) in {
            name: whole,
            f"{name}, without compiling": [all_of - part for all_of, part in zip(whole, compiling, strict=True)],
        }.items():
            show(label, f"{value:.2f}", f"{seconds:.2f}", f"{spent:.2f}", f"{spent / cpu:.1f}")


def _submodlib(rows: np.ndarray, budget: int) -> list[int]:
    """From a row for each of the represented."""
    from submodlib.functions.facilityLocation import FacilityLocationFunction

    n = len(rows)
    peer = FacilityLocationFunction(n=n, mode="dense", separate_rep=True, n_rep=n, sijs=rows)
    return [i for i, _ in peer.maximize(budget=budget, optimizer="LazyGreedy", show_progress=False)]


def _apricot(s: np.ndarray, budget: int) -> list[int]:
    """From numbers of double precision."""
    from apricot import FacilityLocationSelection

    return list(FacilityLocationSelection(budget, metric="precomputed", optimizer="lazy").fit(s).ranking)


def large(name: str) -> None:
    """One choice with its certificate, in the form that its size asks for; the last line is a record for `main`."""
    n, targets, share = SIZES[name]
    side, budget = uneven(n) if name.endswith("-uneven") else towers(n + targets), round(share * n)
    zeros = np.zeros(n, dtype=np.float32)
    others = side[n:] if targets else side
    matrix = InfluenceMatrix.from_towers(side[:n], others, pool_bias=zeros, target_bias=zeros[: targets or n])
    del side, others
    form = choose_form(*matrix.shape, budget, may_be_sparse=True)
    lazy_greedy(FacilityLocation(sparsified(estimated(2000), 4, visits=300)), 4, certify=True)  # compiles
    before = _peak()
    certified = pairs_for_bound(*matrix.shape, budget) / (n * matrix.shape[1])
    planned = planned_choice(form, matrix.shape, budget, estimated(2048), certified=certified, clock=time.process_time)

    def choose() -> tuple[Any, InfluenceMatrix, float]:
        since = time.process_time()
        held = in_memory(matrix) if form == "stored" else matrix
        if form == "sparse":
            held = sparsified(matrix, first_helpers(*matrix.shape, budget))
        searched = time.process_time() - since
        kind = FacilityLocationReciprocalRank if targets else FacilityLocation
        objective = kind(held, ObjectiveOptions(has_target=bool(targets)))
        return lazy_greedy(objective, budget, certify=True), objective, searched

    (selection, objective, searched), wall, cpu = timed(choose)
    held = objective.matrix
    more = held.left_out(objective.covered) if isinstance(held, SparseMatrix) else 0.0
    memory = (before + planned.memory) / GIB
    show(
        f"{n:,} x {targets or n:,}, {share:.0%}{', uneven' if name.endswith('-uneven') else ''}",
        f"sparse, {held.helpers} helpers" if isinstance(held, SparseMatrix) else form,
        f"{wall:.1f}",
        f"{cpu:.1f} ({searched:.1f} to find the helpers)" if form == "sparse" else f"{cpu:.1f}",
        f"{_peak() / GIB:.2f}",
        selection.certificate.percent,
        f"{more / (selection.value + more):.2%}" if form == "sparse" else "0",
        f"{planned.seconds:.1f} s, {memory:.2f} GiB",
    )
    print(json.dumps({"n": n, "form": form, "cpu": cpu, "fitted": name in ("100k", "300k", "1M")}), file=sys.stderr)


def streamed() -> None:
    """Facility location of 5 % from towers, nothing stored."""
    lazy_greedy(FacilityLocation(estimated(500)), 5, certify=True)  # compiles
    show("streamed, 5 %", "s", "CPU s", "with the certificate", "at least, of the best")
    show(*["---"] * 5)
    for n in (5_000, 10_000, 14_000, 20_000):
        matrix, budget = estimated(n), n // 20
        _, wall, cpu = timed(lambda matrix=matrix, budget=budget: lazy_greedy(FacilityLocation(matrix), budget))
        found, _, spent = timed(
            lambda matrix=matrix, budget=budget: lazy_greedy(FacilityLocation(matrix), budget, certify=True)
        )
        show(f"{n:,} x {n:,}", f"{wall:.1f}", f"{cpu:.1f}", f"{spent / cpu:.1f} x", found.certificate.percent)


def loss(n: int = 50_000) -> None:
    """What the sparse form loses of the objective's value, beside a choice that reads all pairs.

    The greedy choices of smaller budgets are the beginning of that of the largest one.
    """
    matrix, shares = estimated(n), (0.01, 0.05, 0.10)
    exact, _, cpu = timed(lambda: lazy_greedy(FacilityLocation(matrix), round(max(shares) * n)))
    show(f"{n:,} x {n:,}", f"all pairs ({cpu:.0f} CPU s)", "sparse", "CPU s", "lost")
    show(*["---"] * 5)
    for share in shares:
        budget = round(share * n)
        best, helpers = exact.gains[:budget].sum(), first_helpers(n, n, budget)
        for visits in (None, 4096):  # every pair, as for a pool of this size, and as for a larger one
            found, _, spent = timed(
                lambda budget=budget, helpers=helpers, visits=visits: lazy_greedy(
                    FacilityLocation(sparsified(matrix, helpers, visits=visits)), budget
                )
            )
            whole = FacilityLocation(matrix)
            matrix.cover(found.indices, whole.covered)
            label = f"{share:.0%}, {helpers} helpers, {'all' if visits is None else f'{visits:,}'} visited"
            show(label, f"{best:.1f}", f"{whole.value:.1f}", f"{spent:.1f}", f"{1 - whole.value / best:.2%}")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


PARTS = {"pairs": score_pairs, "streamed": streamed, "loss": loss}


def one(name: str) -> None:
    """One part of it, in this process."""
    if name in PARTS:
        PARTS[name]()
    elif name in PEERS:
        beside_peers(PEERS[name])
    else:
        large(name)


def main(names: list[str]) -> None:
    """All parts, each in a process of its own, and the exponent of the cost."""
    found, headed = [], False
    for name in names:
        if name in SIZES and not headed:
            show("pool x targets", "form", "s", "CPU s", "peak GiB", "at least, of the best", "left out", "planned")
            show(*["---"] * 8)
        headed = name in SIZES
        command = [sys.executable, __file__, "--here", name]
        process = subprocess.run(command, stderr=subprocess.PIPE if headed else None, text=True, check=False)
        if process.returncode:
            print(process.stderr or "", file=sys.stderr)
            raise SystemExit(f"{name} failed")
        found += [json.loads(process.stderr.splitlines()[-1])] if headed else []
    sizes = [each for each in found if each["fitted"] and each["form"] == "sparse"]
    if len(sizes) > 2:
        n, cpu = (np.log([each[key] for each in sizes]) for key in ("n", "cpu"))
        print(f"\nCPU seconds grow as samples to the power of {np.polyfit(n, cpu, 1)[0]:.2f} (sparse, 1 %)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        one(sys.argv[2])
    else:
        parts = [*PARTS, *PEERS, *SIZES]
        if unknown := [name for name in sys.argv[1:] if name not in parts]:
            raise SystemExit(f"there is no {unknown[0]}: choose from {', '.join(parts)}")
        main(sys.argv[1:] or parts)
