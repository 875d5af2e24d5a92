"""From options to the objects of an evaluation or comparison: models, the test, the judge, the bench."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nncift.config import Config
from nncift.data.pool import ReadOptions
from nncift.errors import ConfigError, DependencyError
from nncift.evaluation.answers.endpoint import EndpointJudge
from nncift.evaluation.answers.items import Items, applies
from nncift.evaluation.answers.judge import Judge, LocalJudge, Rubric, check_judge
from nncift.evaluation.answers.text_metrics import ROUGE
from nncift.models.spec import DEFAULT_ENCODER, EncoderSpec, ModelSpec
from nncift.models.text.chats import conversations
from nncift.proof.folder import ProofFolder, claimed
from nncift.proof.options import ProofOptions
from nncift.proof.trials.trials import Bench, Test
from nncift.run.storage.files import fingerprint, read_json, write_json
from nncift.training.finetune import training_wording
from nncift.training.settings import FineTuning

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger("nncift")

_READ = ("prompt_field", "response_field", "messages_field", "turns", "skip_bad_rows", "seed")
_READ_POOL = ("keep_duplicates", "exclude", "exclude_fields")


def check_installed() -> None:
    """Refuse to begin without the packages that are needed at the end, after the trainings.

    Raises:
        DependencyError: one is missing.
    """
    for package in ("trl", "statsmodels", "rouge_score"):
        if importlib.util.find_spec(package) is None:
            raise DependencyError(f"the package {package} is missing", "pip install 'nncift[proof]'")


def stored(option: str, source: Any) -> str:
    """What a record has for a source: its path, or that it was in memory."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"{option} in memory"


def read_options(config: Config, split: str | None, *, pool: bool = False) -> ReadOptions:
    """How a side is read: the columns, and of the pool what is left out."""
    values = {name: getattr(config, name) for name in (*_READ, *(_READ_POOL if pool else ()))}
    return ReadOptions(split=split, max_row_bytes=config.row_bytes, **values)


def models_of(config: Config) -> tuple[ModelSpec, EncoderSpec]:
    """The model to train, which reads samples as it is trained on them, and the sentence encoder."""
    shared: dict[str, Any] = {
        "device": config.device,
        "batch_size": config.batch_size,
        "trust_remote_code": config.trust_remote_code,
    }
    wording = None if config.wording == "auto" else config.wording
    model = ModelSpec(config.models[0], dtype=config.dtype, max_length=config.max_length, wording=wording, **shared)
    model = dataclasses.replace(model, wording=training_wording(model))
    return model, EncoderSpec(config.encoder or DEFAULT_ENCODER, **shared)


def model_names(config: Config, options: ProofOptions) -> list[str]:
    """The models that results depend on, as the user gave them; a judge's endpoint has models of its own."""
    judge = options.judge if options.judge_url is None else None
    return [*config.models, *filter(None, (config.encoder, judge))]


def tuning_of(options: ProofOptions) -> FineTuning:
    """The settings of a fine-tuning."""
    return FineTuning(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch_size=options.tuning_batch_size,
        rank=options.rank,
        alpha=2 * options.rank,
        report_to=options.report_to,
    )


def judge_of(options: ProofOptions, model: ModelSpec, items: Items, folder: ProofFolder) -> Judge | None:
    """The judge, once it has told known answers apart; its figures are kept, and one like it is not checked again.

    Raises:
        ModelError: it cannot tell them apart, or its endpoint is down.
    """
    if options.judge is None:
        return None
    rubric = Rubric.load(options.rubric)
    judge: Judge
    if options.judge_url is not None:
        judge = EndpointJudge(options.judge_url, options.judge, rubric)
    elif options.judge == model.model:
        judge = LocalJudge(model.loaded, rubric)
    else:
        judge = LocalJudge(ModelSpec(options.judge, device=model.device).loaded, rubric)
    identity = fingerprint(judge.describe())  # of the rubric's text too, which may change behind its path
    if not _is_checked(folder, identity):
        with claimed(folder.judge, wait=True):
            if not _is_checked(folder, identity):  # by the process that was waited for
                write_json(folder.judge, {"fingerprint": identity} | check_judge(judge, items).describe())
    return judge


def _is_checked(folder: ProofFolder, identity: str) -> bool:
    """Whether the judge that was checked last is this one."""
    return folder.judge.exists() and read_json(folder.judge).get("fingerprint") == identity


def check_metrics(options: ProofOptions, test: Dataset) -> None:
    """Warn of what `metrics` names in vain, since no test item has such a reference.

    Raises:
        ConfigError: nothing else was asked for.
    """
    references = [sample.response for sample in conversations(test)]
    idle = [metric for metric in options.metrics if not any(applies(n, references).any() for n in _columns(metric))]
    if not idle:
        return
    problem = f"`metrics` {','.join(idle)} applies to no reference of the test file"
    if len(idle) == len(options.metrics) and options.judge is None:
        raise ConfigError(f"{problem}: exact_match is of short ones, rouge of longer ones", "take another metric")
    _log.warning("%s, so it is not measured: exact_match is of short ones, rouge of longer ones", problem)


def _columns(metric: str) -> Sequence[str]:
    """The names in `METRICS` that a metric of the options stands for."""
    return ROUGE if metric == "rouge" else (metric,)


def bench_of(
    folder: ProofFolder,
    model: ModelSpec,
    encoder: EncoderSpec,
    pool: Dataset,
    items: Dataset,
    options: ProofOptions,
    *,
    progress: bool,
) -> Bench:
    """Where choices from a pool are tried on a test set."""
    read = Items.read(items, model.tokenization, wording=model.wording)
    judge = judge_of(options, model, read, folder)
    wanted = [name for metric in options.wanted for name in _columns(metric)]
    metrics = tuple(dict.fromkeys(["loss", *wanted, *([] if judge is None else ["judge"])]))
    applicable = tuple(name for name in metrics if name in ("loss", "judge") or read.applies(name).any())
    test = Test(read, applicable, encoder, judge, options.max_new_tokens)
    return Bench(folder.trials, model, pool, test, tuning_of(options), options.shots, progress)
