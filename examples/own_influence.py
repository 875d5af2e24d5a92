"""An influence function of your own, as an object from Python and by name on the command line.

    python examples/own_influence.py
    PYTHONPATH=examples nncift select examples/data/pool.jsonl --influence own_influence:CharacterNgrams

`vectors` with the trait `factored` declares that influence is a function of the inner product of two samples' vectors,
so every pair is computed exactly and nothing is labelled. A function of pairs overrides `__call__` in place of it. A
package registers its functions as entry points of the group `nncift.influence`; they are then named without the module.
An option of the constructor is `--influence-option n=4`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import HashingVectorizer

import nncift

DATA = Path(__file__).parent / "data"


class CharacterNgrams(nncift.InfluenceFunction):
    """Cosine of the counts of character n-grams in prompt and response, in [0, 1].

    Args:
        n: longest n-gram, in characters.
        sharpness: the cosine c becomes exp(sharpness (c - 1)), so that a few high similarities outweigh many low ones.
    """

    name = "character-ngrams"
    traits = nncift.Traits(factored=True)

    def __init__(self, *, n: int = 3, sharpness: float = 5.0) -> None:
        self.n = n
        self.sharpness = sharpness
        self._counts = HashingVectorizer(analyzer="char_wb", ngram_range=(2, n), alternate_sign=False, dtype=np.float32)

    def vectors(self, rows: Dataset) -> csr_array:
        """(n, 2**20) float32, of length 1."""
        texts = [f"{prompt}\n{response}" for prompt, response in zip(rows["prompt"], rows["response"], strict=True)]
        return csr_array(self._counts.transform(texts))

    def from_products(self, products: np.ndarray) -> np.ndarray:
        """Of cosines, entry by entry."""
        return np.exp(self.sharpness * (products - 1))

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples; the run keeps it, and another setting is another run."""
        return {"name": self.name, "n": self.n, "sharpness": self.sharpness}


def main(arguments: list[str] | None = None) -> None:
    """Choose by it, and print the best rows for the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default=str(DATA / "pool.jsonl"))
    parser.add_argument("--target", default=str(DATA / "target.jsonl"))
    parser.add_argument("--budget", default="6")
    parser.add_argument("--output", default="runs/own-influence")
    given = parser.parse_args(arguments)

    function = CharacterNgrams(n=4)
    selection = nncift.select(
        given.pool, target=given.target, influence=function, budget=given.budget, output=given.output
    )
    for row in selection.dataset:
        print(f"{row['nncift_rank']:3} {row['nncift_influence']:.3f} {row['prompt'][:80]!r}")


if __name__ == "__main__":
    main()
