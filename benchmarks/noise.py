"""Does LossVal find wrong responses? A fifth of the pool's responses change places; the target is clean.

The figure is the AUC: how often a sample with its own response scores above one with another's; 0.5 is chance.
Beside it the cosine of a sample's prompt and response embeddings, which needs neither target nor training.

    python benchmarks/noise.py --seeds 3 4 5
    python benchmarks/noise.py --pool ../shared/data/gsm8k_train.jsonl.gz
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from datasets import Dataset
from scipy.stats import rankdata

from nncift.embeddings import embed_texts, load_encoder
from nncift.influence.lossval import LossVal
from nncift.pool import load_pool
from samples import shuffled_samples


class Remembering:
    """A sentence encoder that embeds no text twice, so that seeds and baselines share the work."""

    def __init__(self, name: str, device: str | None) -> None:
        self.encoder = load_encoder(name, device=device)
        self.known: dict[str, np.ndarray] = {}

    def encode(self, texts: list[str], **options) -> np.ndarray:
        """Embeddings of the texts, (n, d) float32."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known |= dict(zip(new, self.encoder.encode(new, **options), strict=True))
        return np.stack([self.known[text] for text in texts])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default=None)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--targets", type=int, default=150)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--encoder", default="embedded")
    parser.add_argument("--device", default=None)
    options = parser.parse_args()

    data = load_pool(options.pool) if options.pool else shuffled_samples()
    encoder = Remembering(options.encoder, options.device)
    print(f"{options.rows} samples, {options.share:.0%} of them wrong, {options.targets} clean targets")
    print(f"{'seed':>6}{'lossval':>10}{'cosine':>10}{'seconds of lossval':>22}")
    for seed in options.seeds:
        order = np.random.default_rng(seed).permutation(len(data))[: options.rows + options.targets]
        target = data.select(order[options.rows :])
        pool, wrong = with_wrong_responses(data.select(order[: options.rows]), options.share, seed)
        prompts, responses = (embed_texts(list(pool[side]), encoder) for side in ("prompt", "response"))
        function = LossVal(encoder, device=options.device)
        since = time.perf_counter()
        function.prepare(pool, target)
        seconds = time.perf_counter() - since
        scores = function(pool, target.select([0]))[:, 0]
        cosine = (prompts * responses).sum(axis=1)
        print(f"{seed:>6}{auc(scores, wrong):>10.3f}{auc(cosine, wrong):>10.3f}{seconds:>22.1f}", flush=True)


def with_wrong_responses(pool: Dataset, share: float, seed: int) -> tuple[Dataset, np.ndarray]:
    """The pool, of which a share have passed their responses on in a ring, and which those are, (n,) bool."""
    ring = np.random.default_rng([seed, 1]).permutation(len(pool))[: round(share * len(pool))]
    responses = np.array(pool["response"], dtype=object)
    responses[ring] = responses[np.roll(ring, 1)]
    changed = Dataset.from_dict({"id": pool["id"], "prompt": pool["prompt"], "response": list(responses)})
    return changed, np.isin(np.arange(len(pool)), ring)


def auc(scores: np.ndarray, wrong: np.ndarray) -> float:
    """How often a right sample scores above a wrong one."""
    right, others = int((~wrong).sum()), int(wrong.sum())
    return float((rankdata(scores)[~wrong].sum() - right * (right + 1) / 2) / (right * others))


if __name__ == "__main__":
    main()
