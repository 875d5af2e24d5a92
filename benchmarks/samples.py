"""The samples that benchmarks run on: P3 where the shared data is, else the demo's embedded pool."""

from __future__ import annotations

import os
from pathlib import Path

from datasets import Dataset

from nncift.demo import embedded_data
from nncift.embedded import cache_folder
from nncift.pool import load_pool

DATA = Path(os.environ.get("NNCIFT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def shuffled_samples() -> Dataset:
    """Prompts and responses in a seeded order; says which they are."""
    path = DATA / "p3_pool.jsonl.gz"
    if not path.exists():
        path, _ = embedded_data(cache_folder() / "demo")
    print(f"samples: {path}")
    return load_pool(path).shuffle(seed=0)
