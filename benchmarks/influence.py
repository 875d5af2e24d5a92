"""Influence functions judged on known truth, beside random: families, shuffled responses, and what training did.

    python benchmarks/influence.py families  # precision: does a target of one family find that family?
    python benchmarks/influence.py noise     # AUC: do samples with another's response come last?
    python benchmarks/influence.py judge     # linear datamodeling score, on the committed outcomes of training
    python benchmarks/influence.py judge --outcomes FOLDER  # on train.jsonl, test.jsonl and lds.jsonl there
    python benchmarks/influence.py top-tail  # training without, and with only, the samples that a function ranks first
    python benchmarks/influence.py train     # makes those outcomes: hours; several processes share the work
    python benchmarks/influence.py speed     # DELIFT and per-sample gradients beside their naive forms

Everything that is computed is kept under `--folder`; the same command goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from scipy.stats import rankdata

import delift
import gradients
from functions import NAMES, TRAINING, exact_values
from known_truth import OUTCOMES, family_samples, noisy_samples, trained_samples, trained_subsets
from nncift.evaluation.baselines import feature_similarities
from nncift.evaluation.datamodels import TrainingOutcomes, linear_datamodeling_score, measure_outcomes, noise_ceiling
from nncift.features.features import Features
from nncift.features.gradient_sketch import GradientSketchFeatures
from nncift.features.sources import SKETCH
from nncift.models.encoder import embed_texts, load_encoder
from nncift.models.language_model import LanguageModel
from nncift.models.spec import ModelSpec
from nncift.run.storage.files import fingerprint, write_json
from public_outcomes import read_public
from top_tail import top_tail

PER_PAIR = ("delift",)  # each pair is a pass of the model, so they are judged on fewer targets
PER_TARGET_SET = ("lossval",)  # one score for all targets that it is given: it is given one family at a time


def families(options: argparse.Namespace, model: LanguageModel, folder: Path) -> dict[str, dict[str, float]]:
    """Share of the family among as many best samples as the family has, for each family of targets."""
    pool, target, family, of_target = family_samples(
        options.rows, 5, options.targets, longest=options.longest, seed=options.seed
    )
    names = np.unique(of_target)
    scores = {"random": np.random.default_rng(0).random((len(pool), len(target)))}
    for name in options.functions:
        kept = np.ones(len(target), bool)
        if name in PER_PAIR:
            kept = np.arange(len(target)) % options.targets < options.pair_targets
        parts = [of_target == one for one in names] if name in PER_TARGET_SET else [kept]
        scores[name] = np.full((len(pool), len(target)), np.nan)
        for number, part in enumerate(parts):
            place = folder / str(number) if name in PER_TARGET_SET else folder
            scores[name][:, part] = exact_values(name, model, pool, target.select(np.flatnonzero(part)), place)[0]
    table = {}
    for name, influence in scores.items():
        table[name] = {}
        for one in names:
            mean = np.nanmean(influence[:, of_target == one], axis=1)
            size = int((family == one).sum())
            table[name][f"{one} ({size})"] = float((family[np.argsort(-mean, kind="stable")[:size]] == one).mean())
        table[name]["mean"] = float(np.mean(list(table[name].values())))
    return table


def noise(options: argparse.Namespace, model: LanguageModel, folder: Path) -> dict[str, dict[str, float]]:
    """Probability that a sample with another's response scores below one with its own."""
    pool, target, shuffled = noisy_samples(
        options.rows, options.targets, share=0.2, longest=options.longest, seed=options.seed
    )
    prompts, responses = (embed_texts(list(pool[side]), load_encoder("embedded")) for side in ("prompt", "response"))
    table = {
        "random": {"AUC": area(np.random.default_rng(0).random(len(pool)), shuffled)},
        "cosine of prompt and response": {"AUC": area((prompts * responses).sum(axis=1), shuffled)},
    }
    for name in options.functions:
        some = target.select(range(options.pair_targets)) if name in PER_PAIR else target
        table[name] = {"AUC": area(exact_values(name, model, pool, some, folder)[0].mean(axis=1), shuffled)}
    return table


def area(scores: np.ndarray, below: np.ndarray) -> float:
    """Area under the curve of telling the samples that should be below from the others, ties half."""
    ranks = rankdata(scores)
    n, m = int((~below).sum()), int(below.sum())
    return float((ranks[~below].sum() - n * (n + 1) / 2) / (n * m))


def judge(options: argparse.Namespace, model: LanguageModel, folder: Path) -> dict[str, dict[str, float]]:
    """Linear datamodeling score on training outcomes, with its interval; the noise ceiling beside it."""
    if options.outcomes is not None:
        pool, target, outcomes = read_public(options.outcomes)
        influence = {"random": np.random.default_rng(0).random((len(pool), len(target)))}
    else:
        pool, target, outcomes, influence = committed_outcomes(model)
    given = {name: json.loads(value) for name, _, value in (text.partition("=") for text in options.options)}
    influence |= {name: exact_values(name, model, pool, target, folder, **given)[0] for name in options.functions}
    if "gradient-sketch" in options.functions and not options.options:
        influence["the same as features"] = sketch_features(model, pool, target)
    table = {}
    for name, matrix in influence.items():
        score = linear_datamodeling_score(matrix, outcomes)
        table[name] = {"LDS": score.value, "low": score.low, "high": score.high}
    if len(outcomes.after) < 2:
        return table
    again, ceiling = noise_ceiling(outcomes)
    table["the same training, another seed"] = {"LDS": again.value, "low": again.low, "high": again.high}
    table["perfect (from that)"] = {"LDS": ceiling}
    return table


def sketch_features(model: LanguageModel, pool: Dataset, target: Dataset) -> np.ndarray:
    """The similarity of gradient sketches that features of a run give."""
    source = GradientSketchFeatures(ModelSpec(model))
    sides = [Features({SKETCH: source(rows)[SKETCH]}) for rows in (pool, target)]
    i, j = np.divmod(np.arange(len(pool) * len(target)), len(target))
    return feature_similarities(*sides)[SKETCH](i, j).reshape(len(pool), len(target))


def committed_outcomes(model: LanguageModel) -> tuple[Dataset, Dataset, TrainingOutcomes, dict[str, np.ndarray]]:
    """The samples, what training did, and the baselines."""
    pool, target, family, of_target = trained_samples()
    outcomes = TrainingOutcomes.load(OUTCOMES)
    if outcomes.settings["model"] != model.name:
        raise SystemExit(f"the outcomes are those of {outcomes.settings['model']!r}: {model.name!r} cannot be judged")
    if tuple(pool["id"]) != outcomes.pool_ids or tuple(target["id"]) != outcomes.target_ids:
        raise SystemExit("the samples are not those of the outcomes")
    influence = {
        "random": np.random.default_rng(0).random((len(pool), len(target))),
        "the family is known": (family[:, None] == of_target).astype(np.float64),
    }
    return pool, target.add_column("task", of_target.tolist()), outcomes, influence


def train(options: argparse.Namespace, model: LanguageModel, folder: Path) -> None:
    """Fine-tune on every subset with two seeds and store the outcomes."""
    pool, target, _, _ = trained_samples()
    outcomes = measure_outcomes(model, pool, target, trained_subsets(), TRAINING, folder, progress=True)
    with FileLock(folder / ".lock"):  # all processes that shared the work come here
        outcomes.save(OUTCOMES)
    print(f"written to {OUTCOMES}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = {"families": families, "noise": noise, "judge": judge, "top-tail": top_tail, "train": train}
    parser.add_argument("what", choices=(*tasks, "speed"))
    parser.add_argument("--functions", nargs="*", default=list(NAMES), help="names, such as delift 'less, both sides'")
    parser.add_argument("--options", nargs="*", default=[], help="of these functions, for judge: NAME=VALUE in JSON")
    parser.add_argument("--rows", type=int, default=1000, help="pool samples")
    parser.add_argument("--targets", type=int, default=20, help="targets; of each family for `families`")
    parser.add_argument("--pair-targets", type=int, default=4, help="the same for functions with a pass for each pair")
    parser.add_argument("--longest", type=int, default=250, help="characters of a sample, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--outcomes", type=Path, help="for judge: a folder with train.jsonl, test.jsonl and lds.jsonl")
    parser.add_argument("--results", type=Path, help="for top-tail: where its outcomes are, if not with the committed")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-influence"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "speed":
        common = ["--model", options.model, *(["--device", options.device] if options.device else [])]
        delift.main(["--rows", "32", "--targets", "64", "--longest", "250", *common])
        gradients.main(common)
        return
    model = LanguageModel.load(options.model, dtype=options.dtype, device=options.device)
    given = {"families": "rows targets pair_targets longest seed", "noise": "rows targets pair_targets longest seed"}
    settings = "-".join(str(getattr(options, name)) for name in given.get(options.what, "").split())
    if options.outcomes is not None:
        settings = fingerprint(str(options.outcomes.resolve()))
    parts = [options.what, settings, "" if options.dtype == "float32" else options.dtype, *options.options]
    folder = options.folder / "-".join(filter(None, parts))
    table = tasks[options.what](options, model, folder)
    if table is None:
        return
    write_json(folder / "table.json", table)
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    print("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(f"{row[c]:.2f}" if c in row else "" for c in columns) + " |")


if __name__ == "__main__":
    main()
