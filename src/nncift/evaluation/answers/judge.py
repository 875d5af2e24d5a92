"""A language model as judge: it grades answers from 1 to 5 against the reference, by a rubric in a text file.

A judge is first checked on answers whose worth is known: the reference itself, another item's reference, and the first
half of the reference. One that does not grade the reference above these is refused, with its figures. A model that is
loaded here grades by its next-token probabilities of the digits, which gives a finer scale than the most probable digit
(as SelectIT does); an endpoint by the digit that it writes (`endpoint`).
"""

from __future__ import annotations

import os.path
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from scipy.special import softmax
from scipy.stats import rankdata

from nncift.errors import ConfigError, DataError, ModelError
from nncift.evaluation.answers.items import Items, choose_wording
from nncift.influence.ratings import answer_tokens
from nncift.models.language_model import LanguageModel
from nncift.models.text.chats import Style

GRADES = 5
AT_A_TIME = 16  # answers that a judge grades between two writes: each may be a request

_PLACEHOLDERS = re.compile(r"\{prompt\}|\{reference\}|\{answer\}")
_CHECKED = 50  # items on which a judge is checked, at most
_MIN_CHECKED = 5  # with fewer nothing can be told
_MIN_HALVED = 8  # words of a reference whose half is clearly worse than the whole
_RESAMPLES = 1000  # of the interval
_UNGRADED, _FEW = 0.1, 2  # share of the answers that may have no grade, or their number where that is larger


@dataclass(frozen=True)
class Rubric:
    """Instructions to a judge: a text with {prompt}, {reference} and {answer}, once each, that asks for a digit."""

    text: str

    def __post_init__(self) -> None:
        found = sorted(_PLACEHOLDERS.findall(self.text))
        if found != ["{answer}", "{prompt}", "{reference}"]:
            raise ConfigError(
                f"the rubric contains {', '.join(found) or 'no placeholder'}",
                "it needs {prompt}, {reference} and {answer}, once each",
            )

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Read a text file, by default ours (`rubric.txt`); a missing or incomplete one is a ConfigError."""
        source = files("nncift.evaluation.answers") / "rubric.txt" if path is None else Path(path)
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"the rubric {str(path)!r} cannot be read", "give a text file in UTF-8") from error
        return cls(text.rstrip())

    def fill(self, prompt: str, reference: str, answer: str) -> str:
        """The instructions for one answer."""
        texts = {"{prompt}": prompt, "{reference}": reference, "{answer}": answer}
        return _PLACEHOLDERS.sub(lambda found: texts[found[0]], self.text)


class Judge(Protocol):
    """Grades answers."""

    name: str

    def rate(self, prompts: Sequence[str], references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Grades of n answers from 1 to 5, (n,) float64; NaN where the judge gives none."""

    def describe(self) -> dict[str, Any]:
        """What the grades depend on, ready for JSON."""


def check_grades(judge: Judge, grades: np.ndarray) -> None:
    """Refuse a judge that leaves too many answers without a grade.

    Args:
        judge: the judge.
        grades: of all answers, (n,) float64, NaN where there is none: a tenth of them, or two.

    Raises:
        ModelError: there are more, or there is no grade at all.
    """
    n, missing = len(grades), int(np.isnan(grades).sum())
    if missing > max(_FEW, _UNGRADED * n) or (missing and missing == n):
        raise no_grades(judge.name, missing, n)


def no_grades(name: str, missing: int, n: int, example: str = "") -> ModelError:
    """The error of a judge without a grade in so many of n replies."""
    return ModelError(
        f"the judge {name!r} gave no grade from 1 to 5 in {missing} of {n} replies{example}",
        "take another model, or a rubric that asks for one digit",
    )


class LocalJudge:
    """A model of ours as judge: the expected grade under its next-token probabilities of the digits 1 to 5.

    Args:
        model: the judge.
        rubric: its instructions; ours unless given.
        wording: "chat" or "plain"; "chat" where the model has a chat template unless given.
        batch_size: answers per forward pass, at most.
    """

    def __init__(
        self,
        model: LanguageModel,
        rubric: Rubric | None = None,
        *,
        wording: Style | None = None,
        batch_size: int = 16,
    ) -> None:
        self.model, self.name, self.rubric = model, model.name, rubric or Rubric.load()
        self.wording, self.batch_size = choose_wording(model, wording), batch_size

    def describe(self) -> dict[str, Any]:
        """The model, its precision, the rubric and the wording."""
        facts = {"judge": self.name, "dtype": self.model.precision, "max_length": self.model.context_length}
        return facts | {"rubric": self.rubric.text, "wording": self.wording}

    def rate(self, prompts: Sequence[str], references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Expected grades, (n,) float64 in [1, 5].

        Raises:
            DataError: reference and answer alone exceed the judge's context.
            ModelError: the digits are no single tokens of the model, or one text does not fit into memory.
        """
        if not answers:
            return np.zeros(0)
        queries = [self._fitting(*texts) for texts in zip(prompts, references, answers, strict=True)]
        cue = self._render(self.rubric.fill("", "", ""))[-64:]
        digits = answer_tokens(self.model, cue, GRADES)
        shared = len(os.path.commonprefix([query[:-1] for query in queries]))  # noqa: RUF071 (of tokens)
        prefix = self.model.prefix(queries[0][:shared])
        rest = [query[shared:] for query in queries]
        logits = self.model.next_token_logits(prefix, rest, digits, batch_size=self.batch_size)
        return np.asarray(softmax(logits.astype(np.float64), axis=1) @ np.arange(1, GRADES + 1))

    def _render(self, text: str) -> str:
        return self.model.chat([{"role": "user", "content": text}]) if self.wording == "chat" else f"{text}\n"

    def _fitting(self, prompt: str, reference: str, answer: str) -> list[int]:
        """The instructions in token ids, with as much of the end of the prompt as the context holds."""
        leading = self.model.leading_ids if self.wording == "plain" else []

        def ids(skipped: int) -> list[int]:
            text = self._render(self.rubric.fill(prompt[skipped:], reference, answer))
            return [*leading, *self.model.encode([text])[0]]

        def fits(skipped: int) -> bool:
            return len(ids(skipped)) <= self.model.context_length

        skipped = 0 if fits(0) else bisect_left(range(len(prompt) + 1), True, key=fits)
        if skipped > len(prompt):
            raise DataError(
                f"an answer and its reference exceed the context of the judge {self.name!r},"
                f" {self.model.context_length} tokens",
                "take a judge with a longer context",
            )
        return ids(skipped)


@dataclass(frozen=True)
class JudgeCheck:
    """Grades of answers whose worth is known.

    Attributes:
        n: items whose reference has a grade, and another item's reference in its place.
        n_truncated: items whose reference and its first half have one, if it is long enough to be halved.
        reference, shuffled, truncated: mean grades of the reference, of another item's, and of the first half; None
            where there are none.
        auc_shuffled, auc_truncated: probability that the reference is graded above the other, ties count half; each
            with its 95 % bootstrap interval over items as [value, low, high].
    """

    n: int
    n_truncated: int
    reference: float
    shuffled: float
    truncated: float | None
    auc_shuffled: tuple[float, float, float]
    auc_truncated: tuple[float, float, float] | None

    def describe(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    @property
    def passed(self) -> bool:
        """Whether the reference is graded above both, beyond chance."""
        return all(auc is None or auc[1] > 0.5 for auc in (self.auc_shuffled, self.auc_truncated))

    def __str__(self) -> str:
        text = f"reference {self.reference:.2f}, another item's {self.shuffled:.2f}"
        text += f" (AUC {_shown(self.auc_shuffled)}, {self.n} items)"
        if self.truncated is not None and self.auc_truncated is not None:
            text += f", first half of the reference {self.truncated:.2f}"
            text += f" (AUC {_shown(self.auc_truncated)}, {self.n_truncated} items)"
        return text


def check_judge(judge: Judge, items: Items, *, seed: int = 0) -> JudgeCheck:
    """Grade known answers of up to 50 test items.

    Args:
        judge: the judge.
        items: the test set.
        seed: of the items and of the bootstrap.

    Raises:
        ConfigError: the test set is too small, or its references are all alike.
        ModelError: the judge does not grade the reference above the others, with its figures, or gives no grades.
    """
    rng = np.random.default_rng(seed)
    places = np.sort(rng.permutation(len(items))[:_CHECKED]).tolist()
    prompts, references = [items.prompts[k] for k in places], [items.references[k] for k in places]
    others = [_another(references, k) for k in range(len(references))]
    known = [k for k, other in enumerate(others) if other is not None]
    if len(known) < _MIN_CHECKED:
        raise ConfigError(
            f"a judge cannot be checked on {len(known)} items with different references",
            f"give a test set with at least {_MIN_CHECKED}, or leave out the judge",
        )
    prompts, references = [prompts[k] for k in known], [references[k] for k in known]
    halved = [k for k, text in enumerate(references) if len(text.split()) >= _MIN_HALVED]
    halved = halved if len(halved) >= _MIN_CHECKED else []
    whole = [references[k] for k in halved]
    right = judge.rate(prompts, references, references)
    wrong = judge.rate(prompts, references, [others[k] or "" for k in known])
    half = judge.rate([prompts[k] for k in halved], whole, [_half(text) for text in whole])
    check_grades(judge, np.concatenate([right, wrong, half]))
    check = JudgeCheck(
        n=int(np.isfinite(right + wrong).sum()),
        n_truncated=int(np.isfinite(right[halved] + half).sum()),
        reference=float(np.nanmean(right)),
        shuffled=float(np.nanmean(wrong)),
        truncated=float(np.nanmean(half)) if halved else None,
        auc_shuffled=_auc(right, wrong, rng),
        auc_truncated=_auc(right[halved], half, rng) if halved else None,
    )
    if not check.passed:
        raise ModelError(
            f"the judge {judge.name!r} cannot tell right answers from wrong ones: mean grades {check}",
            "take a stronger judge, or another rubric",
        )
    return check


def _another(references: list[str], k: int) -> str | None:
    """The next reference that differs from the k-th."""
    turned = [*references[k + 1 :], *references[:k]]
    return next((text for text in turned if text.split() != references[k].split()), None)


def _half(text: str) -> str:
    words = re.findall(r"\S+\s*", text)
    return "".join(words[: len(words) // 2]).strip()


def _auc(higher: np.ndarray, lower: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Probability that a value of the first exceeds one of the second, with its interval over items (pairs)."""
    both = np.isfinite(higher) & np.isfinite(lower)
    higher, lower = higher[both], lower[both]
    if not len(higher):
        return 0.5, 0.0, 1.0

    def auc(which: np.ndarray) -> float:
        n = len(which)
        ranks = rankdata(np.concatenate([higher[which], lower[which]]))
        return float((ranks[:n].sum() - n * (n + 1) / 2) / n**2)

    n = len(higher)
    low, high = np.quantile([auc(rng.integers(n, size=n)) for _ in range(_RESAMPLES)], [0.025, 0.975])
    return auc(np.arange(n)), float(low), float(high)


def _shown(auc: tuple[float, float, float]) -> str:
    return f"{auc[0]:.2f} [{auc[1]:.2f}, {auc[2]:.2f}]"
