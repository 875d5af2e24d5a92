"""Everything that is measured of one model on a test set, item by item.

The answers and the losses come in shards, the judge's grades after them; a killed measurement repeats at most one shard
of each, and ends with the same bytes. What is quick, the metrics of the texts, is computed from the answers at the end.
An answer that the judge gives no grade has NaN, and is left out of its mean; too many of all the items are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nncift.errors import ConfigError, ModelError, RunError
from nncift.evaluation.answers.generation import Answer, answer
from nncift.evaluation.answers.in_context import Demonstrations
from nncift.evaluation.answers.items import Items
from nncift.evaluation.answers.judge import AT_A_TIME, Judge, check_grades
from nncift.evaluation.answers.results import METRICS, ItemScores
from nncift.evaluation.answers.text_metrics import ROUGE, embedding_similarity, exact_match, rouge, rouge_scorer
from nncift.evaluation.datamodels import mean_losses
from nncift.models.language_model import LanguageModel
from nncift.models.spec import EncoderSpec
from nncift.run.progress import drawn
from nncift.run.shards import SHARD, Arrays, Shards
from nncift.run.storage.checksums import content_hash
from nncift.run.storage.files import fingerprint, read_json, write_json
from nncift.training.lora import WEIGHTS, adapted, check_adapter_folder

SCORES = "scores.parquet"


def measure(
    model: LanguageModel,
    items: Items,
    *,
    folder: Path,
    adapter: Path | None = None,
    demonstrations: Demonstrations | None = None,
    metrics: Sequence[str] | None = None,
    encoder: EncoderSpec | None = None,
    judge: Judge | None = None,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> ItemScores:
    """Measure a model on every item of a test set; the same call resumes after a kill.

    Args:
        model: the language model.
        items: n test items, rendered for it.
        folder: of its parts while it runs, then of `scores.parquet`; a folder for each measurement.
        adapter: the folder of a LoRA adapter to attach.
        demonstrations: stand before the items (in-context learning).
        metrics: names of `METRICS`; all that can be measured unless given. "loss" alone generates nothing.
        encoder: for the embedding similarity.
        judge: grades the answers; check it first (`check_judge`).
        max_new_tokens: of an answer; by its reference (`Items.new_tokens`) unless given.
        batch_size: sequences per pass, at most; 32 unless given, on CUDA as many as fit.
        progress: show progress bars.

    Raises:
        ConfigError: a metric is unknown, or lacks its encoder or judge.
        DependencyError: rouge-score is needed and not installed.
        ModelError: the adapter does not fit, one sequence does not fit into memory, or the judge fails or leaves too
            many answers without a grade.
        RunError: the folder has results of another measurement.
    """
    wanted = _wanted(metrics, items, encoder, judge)
    new_tokens = items.new_tokens(max_new_tokens)
    shown = items if demonstrations is None else demonstrations.before(items, model, new_tokens=new_tokens)
    if adapter is not None:
        check_adapter_folder(adapter)
    generates = wanted != ["loss"]
    work = _Answers(model, shown, tuple(new_tokens) if generates else (), batch_size)
    identity = fingerprint(
        [model.name, model.precision, None if adapter is None else content_hash(adapter / WEIGHTS)],
        [items.ids, items.prompts, items.references, [example.key for example in shown.examples]],
        [wanted, work.new_tokens, getattr(encoder, "name", None), None if judge is None else judge.describe()],
    )
    _claim(folder, identity)
    if (folder / SCORES).exists():
        return ItemScores.load(folder / SCORES)
    answers = Shards(len(items), SHARD, folder, "answers", ".parquet")
    with contextlib.ExitStack() as stack:
        if adapter is not None:
            stack.enter_context(adapted(model, adapter))
        bar = stack.enter_context(tqdm(total=len(items), desc="test items", unit=" items", **drawn(progress)))
        answers.compute(work, bar=bar)
    texts, values = work.collect(answers)
    grades = None
    if "judge" in wanted and judge is not None:
        grades = Shards(len(items), AT_A_TIME, folder, "grades", ".npy")
        with tqdm(total=len(items), desc="judge", unit=" items", **drawn(progress)) as bar:
            grades.compute(_Grades(judge, items, texts), bar=bar)
        values["judge"] = np.concatenate([part["values"] for part in grades])
        try:
            check_grades(judge, values["judge"])
        except ModelError:
            grades.drop()  # so that the same call asks again: there may be another model behind the endpoint
            raise
    values |= _of_texts(texts, items, wanted, encoder)
    kept = {name: values[name] for name in wanted}
    scores = ItemScores(items.ids, kept, texts if generates else ())
    scores.save(folder / SCORES)
    for shards in filter(None, (answers, grades)):
        shards.drop()
    return scores


def _wanted(metrics: Sequence[str] | None, items: Items, encoder: EncoderSpec | None, judge: Judge | None) -> list[str]:
    """The metrics to measure, in the order of `METRICS`."""
    given = {"similarity": encoder, "judge": judge}
    if metrics is None:
        wanted = [name for name in METRICS if given.get(name, True) is not None and items.applies(name).any()]
    else:
        if unknown := set(metrics) - METRICS.keys():
            raise ConfigError(f"`metrics` {sorted(unknown)[0]!r} is unknown", f"give some of {', '.join(METRICS)}")
        wanted = [name for name in METRICS if name in metrics]
    for name, needs in (("similarity", "encoder"), ("judge", "judge")):
        if name in wanted and given[name] is None:
            raise ConfigError(f"the metric {name!r} needs `{needs}`", "give one, or leave the metric out")
    if not wanted:
        raise ConfigError("`metrics` is empty", f"give some of {', '.join(METRICS)}")
    if set(wanted) & set(ROUGE):
        rouge_scorer()  # a missing package is reported before the work
    return wanted


def _claim(folder: Path, identity: str) -> None:
    """Make the folder this measurement's, or check that it is."""
    path = folder / "measurement.json"
    if not path.exists():
        write_json(path, {"fingerprint": identity})
    elif read_json(path) != {"fingerprint": identity}:
        raise RunError(f"{folder} has results of another model, test set or settings", "choose another folder")


@dataclass(frozen=True, eq=False)
class _Answers:
    """Losses and answers of a range of the items, which are sorted so that those of a batch are alike."""

    model: LanguageModel
    items: Items
    new_tokens: tuple[int, ...]  # of the answer to each item, at most; empty: no answers are generated
    batch_size: int | None

    @property
    def order(self) -> list[int]:
        """The items, the longest answers and then the longest prompts first: a batch lasts as long as its longest."""
        lengths = [len(example.ids) for example in self.items.examples]
        rooms = self.new_tokens or [0] * len(lengths)
        return sorted(range(len(lengths)), key=lambda k: (-rooms[k], -lengths[k]))

    def __call__(self, rows: range) -> Arrays:
        chosen = self.order[rows.start : rows.stop]
        examples = [self.items.examples[k] for k in chosen]
        if not self.new_tokens:
            answers = [Answer("", loss) for loss in mean_losses(self.model, examples).tolist()]
        else:
            prompts = self.items.prompt_ids
            references = [example.ids[example.spans[-1][0] :] for example in examples]
            answers = answer(
                self.model,
                [prompts[k] for k in chosen],
                references,
                max_new_tokens=[self.new_tokens[k] for k in chosen],
                wording=self.items.wording,
                batch_size=self.batch_size,
            )
            answers = self._over_turns(answers, chosen)
        texts = np.array([one.text for one in answers], dtype=object)
        return {"item": np.array(chosen), "loss": np.array([one.loss for one in answers], np.float64), "answer": texts}

    def _over_turns(self, answers: list[Answer], chosen: list[int]) -> list[Answer]:
        """The answers, with the mean loss over all turns of those items that have several."""
        several = [place for place, k in enumerate(chosen) if len(self.items.examples[k].spans) > 1]
        if several:
            losses = mean_losses(self.model, [self.items.examples[chosen[place]] for place in several])
            for place, loss in zip(several, losses.tolist(), strict=True):
                answers[place] = Answer(answers[place].text, loss)
        return answers

    def collect(self, shards: Shards) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
        """Answers and losses of all items, in their own order."""
        texts, losses = [""] * len(self.items), np.full(len(self.items), np.nan)
        for part in shards:
            for k, text, loss in zip(part["item"], part["answer"], part["loss"], strict=True):
                texts[k], losses[k] = text, loss
        return tuple(texts), {"loss": losses}


@dataclass(frozen=True, eq=False)
class _Grades:
    """A judge's grades of a range of the answers."""

    judge: Judge
    items: Items
    answers: tuple[str, ...]

    def __call__(self, rows: range) -> Arrays:
        part = slice(rows.start, rows.stop)
        return {"values": self.judge.rate(self.items.prompts[part], self.items.references[part], self.answers[part])}


def _of_texts(
    texts: Sequence[str], items: Items, wanted: Sequence[str], encoder: EncoderSpec | None
) -> dict[str, np.ndarray]:
    """The metrics of answer and reference as texts, (n,) float64 each; NaN where one does not apply."""
    values = dict[str, np.ndarray]()
    if "exact_match" in wanted:
        pairs = zip(texts, items.references, strict=True)
        values["exact_match"] = np.array([exact_match(given, reference) for given, reference in pairs])
    if set(wanted) & set(ROUGE):
        values |= rouge(texts, items.references)
    if "similarity" in wanted and encoder is not None:
        values["similarity"] = embedding_similarity(texts, items.references, encoder)
    return {name: np.where(items.applies(name), column, np.nan) for name, column in values.items()}
