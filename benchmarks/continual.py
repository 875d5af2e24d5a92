"""Continual selection: does the choice leave what known samples cover to others?

    python benchmarks/continual.py --seeds 5
    python benchmarks/continual.py --influence delift --labels 1000 --seeds 3

P3, half of whose task families are known: `known` holds samples of these alone, the pool samples of all. The share of
new families in the choice (conditional gain) stands beside that of plain facility location with the same influence, and
of a random choice (expected). Mean and standard error over seeds, which draw families, samples and labels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

import nncift
from known_truth import p3, short_samples
from nncift.features.features import stored_features
from nncift.features.sources import FeatureSources
from nncift.influence.catalogue import is_factored
from nncift.run.folder.folder import RunFolder
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.coverage import FacilityLocation


def shares(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, float]:
    """Share of new families in each choice, for one draw of families and samples."""
    rows, families = p3()
    rng = np.random.default_rng(seed)
    order = rng.permutation(short_samples(options.longest))
    names = rng.permutation(np.unique(families[order]))
    is_known = np.isin(families, names[: len(names) // 2])
    pool, rest = order[: options.pool], order[options.pool :]
    known = rest[is_known[rest]][: options.known]
    given: dict[str, Any] = {"influence": options.influence, "budget": options.budget, "seed": seed, "progress": True}
    given |= {"model": "embedded", "encoder": "embedded"}
    if is_factored(options.influence):  # exact for every pair, so it is no work to choose again
        plain = nncift.select(_source_rows(rows, pool), output=folder / "plain", **given)
        selection = nncift.select(
            _source_rows(rows, pool), known=_source_rows(rows, known), output=folder / "known", **given
        )
    else:
        selection = nncift.select(
            _source_rows(rows, pool), known=_source_rows(rows, known), labels=options.labels, output=folder, **given
        )
        network = nncift.InfluenceNetwork.from_pretrained(folder / "network")
        names_of = FeatureSources.described(network.description_).names("pool")
        features = stored_features(RunFolder(folder).features, names_of)
        plain = lazy_greedy(FacilityLocation(network.estimate(features, features)), len(selection))
    new = ~is_known[pool]
    return {
        "conditional gain": float(new[selection.indices].mean()),
        "facility location": float(new[plain.indices].mean()),
        "random (expected)": float(new.mean()),
    }


def _source_rows(rows: Dataset, which: np.ndarray) -> list[dict[str, Any]]:
    return [json.loads(original) for original in rows.select(which)["original"]]


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=600)
    parser.add_argument("--known", type=int, default=300)
    parser.add_argument("--budget", default="0.1")
    parser.add_argument("--labels", default="2000")
    parser.add_argument("--influence", default="response-similarity")
    parser.add_argument("--longest", type=int, default=800, help="characters of a sample, at most")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nncift-continual-") as temporary:
        folder = options.folder or Path(temporary)
        found = [shares(options, seed, folder / f"seed-{seed}") for seed in range(options.seeds)]
    print(f"share of new families in the choice, {options.influence}, n = {options.seeds} draws")
    for name in found[0]:
        values = np.array([one[name] for one in found])
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        print(f"  {name:<20} {values.mean():6.1%} +- {error:.1%}")


if __name__ == "__main__":
    main()
