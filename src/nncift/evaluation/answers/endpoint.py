"""A judge behind an OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama, or a hosted one.

Requests run side by side, and the client repeats those that fail for the moment (rate limits, server errors, lost
connections) with growing pauses. The key is read from OPENAI_API_KEY; servers of one's own mostly need none.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from nncift.errors import ConfigError, DependencyError, ModelError, first_line
from nncift.evaluation.answers.judge import AT_A_TIME, Rubric, no_grades
from nncift.run.progress import advance

KEY = "OPENAI_API_KEY"

_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_GRADE = re.compile(r"(?<![\w.,-])[1-5](?![\w]|[.,]\d)")
_SETTINGS = {"temperature": 0, "max_tokens": 1024}  # some models refuse one of them; the rest of the call stays
_SHOWN = 80  # characters of a reply without a grade in the message


class EndpointJudge:
    """A model behind a chat-completions endpoint as judge.

    Args:
        url: base URL of the API, such as "http://localhost:8000/v1".
        model: the model's name there.
        rubric: its instructions; ours unless given.
        timeout: seconds until a request is given up.
        retries: of a failed request, at most.
        concurrency: requests at a time.

    Raises:
        ConfigError: the URL is none, or a number is too small.
        DependencyError: openai is not installed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        rubric: Rubric | None = None,
        *,
        timeout: float = 120.0,
        retries: int = 4,
        concurrency: int = 8,
    ) -> None:
        if not re.match(r"https?://[^/]", url):
            raise ConfigError(f"`judge_url` {url!r} is no URL", 'give one such as "http://localhost:8000/v1"')
        if timeout <= 0 or retries < 0 or concurrency < 1:
            raise ConfigError("a judge needs a positive timeout, and at least one request at a time")
        try:
            import openai
        except ImportError as error:
            raise DependencyError("`judge_url` needs the package openai", 'pip install "nncift[proof]"') from error
        self.url, self.name, self.rubric, self.concurrency = url, model, rubric or Rubric.load(), concurrency
        key = os.environ.get(KEY) or "none"
        self._client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=retries)
        self._settings: dict[str, Any] = dict(_SETTINGS)

    def describe(self) -> dict[str, Any]:
        """The endpoint, the model and the rubric."""
        return {"judge": self.name, "url": self.url, "rubric": self.rubric.text}

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def rate(self, prompts: Sequence[str], references: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Grades of n answers, (n,) float64 in 1..5; NaN for a reply without one.

        Raises:
            ModelError: the endpoint is down or refuses the request, or none of a whole shard of replies has a grade;
                `check_grades` decides on the share of all.
        """
        texts = [self.rubric.fill(*parts) for parts in zip(prompts, references, answers, strict=True)]
        with ThreadPoolExecutor(self.concurrency) as threads:
            waiting = [threads.submit(self._reply, text) for text in texts]
            try:
                replies = []
                for future in waiting:
                    replies.append(future.result())
                    advance(1)
            except BaseException:
                for future in waiting:
                    future.cancel()
                raise
        grades = [parse_grade(reply) for reply in replies]
        if len(grades) >= AT_A_TIME and not any(grades):
            raise no_grades(self.name, len(grades), len(grades), f", such as {replies[0].strip()[:_SHOWN]!r}")
        return np.array([math.nan if grade is None else grade for grade in grades], np.float64)

    def _reply(self, text: str) -> str:
        """What the model answers to the instructions."""
        import openai

        try:
            try:
                reply = self._complete(text)
            except openai.BadRequestError as error:  # a reasoning model, say, takes no temperature
                refused = [name for name in _SETTINGS if name in str(error)]
                if not refused:
                    raise
                self._settings = {name: value for name, value in self._settings.items() if name not in refused}
                reply = self._complete(text)
        except openai.OpenAIError as error:
            raise self._failed(error) from error
        except ValueError as error:  # the body is no JSON
            raise ModelError(f"{self.url} does not answer as an OpenAI-compatible endpoint", _ADDRESS) from error
        choices = getattr(reply, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise ModelError(f"{self.url} does not answer as an OpenAI-compatible endpoint", _ADDRESS)
        return choices[0].message.content or ""

    def _complete(self, text: str) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return self._client.chat.completions.create(model=self.name, messages=messages, **self._settings)

    def _failed(self, error: Exception) -> ModelError:
        import openai

        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return ModelError(f"{self.url} refuses the key", f"set {KEY} to a valid one")
        if isinstance(error, openai.NotFoundError):
            return ModelError(f"{self.url} has no model {self.name!r} ({first_line(error)})", _ADDRESS)
        if isinstance(error, openai.APITimeoutError):
            return ModelError(f"the judge at {self.url} did not answer in time", "take a faster one")
        if isinstance(error, openai.APIConnectionError):
            reason = first_line(error.__cause__ or error)
            return ModelError(f"the judge at {self.url} cannot be reached ({reason})", f"start it, or {_ADDRESS}")
        return ModelError(f"the judge at {self.url} failed ({first_line(error)})", "run the same command again")


_ADDRESS = "check `judge_url` (it mostly ends in /v1) and the judge's model name"


def parse_grade(reply: str) -> int | None:
    """The first digit from 1 to 5 that stands alone in a reply, thoughts left out; None where there is none."""
    found = _GRADE.search(_THOUGHTS.sub("", reply))
    return int(found[0]) if found else None
