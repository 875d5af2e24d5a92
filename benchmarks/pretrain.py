"""Fit the bundled network to committed exact values, and evaluate it on unseen task families.

    python benchmarks/pretrain.py

The labels are the influence with the highest linear datamodeling score, gradients along the evaluated kind of training,
on 240 x 160 samples of P3, of the demo's tasks and conversations and of GSM8K. Printed is the linear datamodeling score
on the committed training outcomes: of a network fitted to none of their families, of boosted trees on the same labels,
of a network on half of them, and of the final one, written to src/nncift/estimator/pretrained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from datasets import Dataset

import nncift
from exact_values import FOLDER, JOBS, ExactValues
from fidelity import read_features
from fidelity_methods import boosted_trees
from fidelity_tasks import Sides, grid
from known_truth import OUTCOMES, p3, trained_samples
from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.datamodels import TrainingOutcomes, linear_datamodeling_score
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs
from nncift.models.language_model import LanguageModel
from nncift.models.spec import DEFAULT_ENCODER, DEFAULT_MODEL

CARD = """---
library_name: nncift
tags: [data-selection, influence]
license: apache-2.0
---
The bundled InfluenceNetwork: `nncift select pool.jsonl --network pretrained` ranks unlabelled data with it, from one
forward pass of SmolLM2-135M-Instruct and one of MiniLM for each sample.

- Fitted to: exact influence of {rows} x {columns} samples of P3 ({families} families), reasoning-gym,
  chatterbot-corpus and GSM8K, by LESS with both sides preconditioned, along three epochs on that pool.
- Evaluated by: the linear datamodeling score on {subsets} fine-tunings of SmolLM2 on halves of 120 samples of P3.
  Unseen families (a network of {unseen_rows} x {unseen_columns} samples): {unseen.value:.2f} (95 % interval
  {unseen.low:.2f} to {unseen.high:.2f}), from half the labels {half.value:.2f}, boosted trees {trees.value:.2f}; this
  network, fitted to other samples of them: {seen.value:.2f}.
- Not for: another language model (`nncift pretrain --model X` makes one), or where fidelity matters: label some.
- Made by: `python benchmarks/pretrain.py`; config.json has the settings.
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", default="mixture-less", choices=list(JOBS))
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-fidelity"))
    parser.add_argument("--output", type=Path, default=Path(nncift.__file__).parent / "estimator" / "pretrained")
    options = parser.parse_args()
    model = LanguageModel.load(options.model)
    exact = ExactValues.load(FOLDER / f"{options.values}.safetensors")
    pool, target = JOBS[options.values][1]()
    features = read_features(pool, target, _name(options.values, pool, target), options.folder, model)
    judged_pool, judged_target, judged_families, _ = trained_samples()
    judged = read_features(
        judged_pool, judged_target, _name("truth", judged_pool, judged_target), options.folder, model
    )
    outcomes = TrainingOutcomes.load(OUTCOMES)
    family_of = dict(zip(*_families(), strict=True))
    sides = [np.array([family_of.get(one, "") for one in side["id"]]) for side in (pool, target)]
    every = [np.arange(len(side)) for side in sides]
    new = [np.flatnonzero(~np.isin(side, judged_families)) for side in sides]
    half = [np.sort(np.random.default_rng(0).permutation(side)[: len(side) // 2]) for side in new]
    facts: dict = {"rows": len(pool), "columns": len(target), "subsets": len(outcomes.subsets)}
    facts |= {"families": len(set(np.concatenate(sides)) - {""}), "unseen_rows": len(new[0])}
    facts |= {"unseen_columns": len(new[1])}

    def report(name: str, estimated: np.ndarray) -> None:
        facts[name] = score = linear_datamodeling_score(estimated, outcomes)
        print(f"{name}: {score.value:.3f} ({score.low:.3f} to {score.high:.3f})", flush=True)

    report("trees", boosted_trees_on(judged, features, grid(exact.influence, *new)))
    for name, kept in (("half", half), ("unseen", new), ("seen", every)):
        labels = grid(exact.influence, *kept)
        network = InfluenceNetwork().fit(*features, labels)
        report(name, network.estimate(*judged).rows(slice(None)))
    network.description_ = {
        "features": {"encoder": DEFAULT_ENCODER, "own": None, "language_model": DEFAULT_MODEL},
        "influence": json.loads(json.dumps(exact.settings, default=str)),
        "pairs": len(labels),
    }
    network.save_pretrained(options.output)
    (options.output / "README.md").write_text(CARD.format(**facts), encoding="utf-8")
    print(f"written to {options.output}: {sum(path.stat().st_size for path in options.output.iterdir()):,} bytes")


def boosted_trees_on(judged: Sides, features: Sides, labels: LabelledPairs) -> np.ndarray:
    """Predictions of boosted trees for the evaluation samples, whose features (not labels) are in the fit."""
    both = [
        Features({name: np.concatenate([old.blocks[name], new.blocks[name]]) for name in old.blocks})
        for old, new in zip(features, judged, strict=True)
    ]
    predicted = boosted_trees(both[0], both[1], labels, 0)
    return predicted[len(features[0]) :, len(features[1]) :]


def _families() -> tuple[list[str], list[str]]:
    """Of all samples of P3 the ids and the families."""
    rows, families = p3()
    return list(map(str, rows["id"])), list(map(str, families))


def _name(values: str, pool: Dataset, target: Dataset) -> str:
    return f"{values.partition('-')[0]}-{len(pool)}x{len(target)}"


if __name__ == "__main__":
    main()
