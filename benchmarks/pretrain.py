"""Makes the network that comes with nncift, from committed exact values, and judges it on families it never saw.

    python benchmarks/pretrain.py

The teacher is LESS with both sides preconditioned, on 240 x 160 samples of P3: what training does is foretold best by
gradients. Judged is the linear datamodelling score on the committed outcomes of training (other samples): of a network
that saw none of their families, and of the one that is kept. It lands in src/nncift/pretrained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import nncift
from exact_values import FOLDER, JOBS, ExactValues
from fidelity import read_features
from fidelity_tasks import grid
from known_truth import OUTCOMES, p3, trained_samples
from nncift.config import DEFAULT_ENCODER, DEFAULT_MODEL
from nncift.language_model import LanguageModel
from nncift.network import InfluenceNetwork
from nncift.truth import TrainingOutcomes, linear_datamodelling_score

CARD = """---
library_name: nncift
tags: [data-selection, influence]
license: apache-2.0
---
The InfluenceNetwork that comes with nncift: `nncift select pool.jsonl --labels 0` ranks data with it that nobody
labelled, from one forward pass of SmolLM2-135M-Instruct and one of MiniLM for each sample.

- Learned from: exact influence of {rows} x {columns} samples of P3 ({families} families), by LESS with both sides
  preconditioned.
- Judged by: the linear datamodelling score on {subsets} fine-tunings of SmolLM2 on halves of 120 other samples of P3.
  Families it never saw (a network of {unseen_rows} x {unseen_columns} samples): {unseen.value:.2f} (95 % interval
  {unseen.low:.2f} to {unseen.high:.2f}); this network, which saw other samples of them: {seen.value:.2f}.
- Not for: another language model (`nncift pretrain --model X` makes one), or where fidelity matters: label some.
- Made by: `python benchmarks/pretrain.py`; config.json has the settings.
"""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", default="p3-less", choices=list(JOBS))
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-fidelity"))
    parser.add_argument("--output", type=Path, default=Path(nncift.__file__).parent / "pretrained")
    options = parser.parse_args()
    model = LanguageModel.load(options.model)
    exact = ExactValues.load(FOLDER / f"{options.values}.safetensors")
    pool, target = JOBS[options.values][1]()
    features = read_features(pool, target, f"p3-{len(pool)}x{len(target)}", options.folder, model)
    judged_pool, judged_target, family, _ = trained_samples()
    judged = read_features(judged_pool, judged_target, "truth", options.folder, model)
    outcomes = TrainingOutcomes.load(OUTCOMES)
    rows, families = p3()
    family_of = dict(zip(rows["id"], families, strict=True))
    seen = [np.array([family_of[one] in set(family) for one in side["id"]]) for side in (pool, target)]
    facts: dict = {"rows": len(pool), "columns": len(target), "subsets": len(outcomes.subsets)}
    facts["families"] = len({family_of[one] for one in (*pool["id"], *target["id"])})
    facts |= {"unseen_rows": int((~seen[0]).sum()), "unseen_columns": int((~seen[1]).sum())}
    for name, kept in (("unseen", [~side for side in seen]), ("seen", [np.ones_like(side) for side in seen])):
        labels = grid(exact.influence, *map(np.flatnonzero, kept))
        network = InfluenceNetwork().fit(*features, labels)
        facts[name] = linear_datamodelling_score(network.estimate(*judged).rows(slice(None)), outcomes)
        print(f"{name}: {facts[name].value:.3f} ({facts[name].low:.3f} to {facts[name].high:.3f})")
    network.description_ = {
        "features": {"encoder": DEFAULT_ENCODER, "own": None, "language_model": DEFAULT_MODEL},
        "influence": json.loads(json.dumps(exact.settings, default=str)),
        "pairs": len(labels),
    }
    network.save_pretrained(options.output)
    (options.output / "README.md").write_text(CARD.format(**facts), encoding="utf-8")
    print(f"written to {options.output}: {sum(path.stat().st_size for path in options.output.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
