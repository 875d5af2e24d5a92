"""Embedded real data: dialogues of chatterbot-corpus and 40 reasoning-gym task families.

`demo_data` is what `nncift demo` shows its point on within minutes; `embedded_data` is the whole mixture, which
`nncift pretrain` and benchmarks learn from.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nncift.errors import DependencyError
from nncift.run.storage.files import atomic_write, package_folder

PER_FAMILY = 40
TARGETS = 40
POOL_SEED, TARGET_SEED, TEST_SEED = 0, 1_000_000, 2_000_000  # sample i of a family has seed + i, so they are disjoint
DEMO_PER_FAMILY, DEMO_TESTS = 15, 60
DEMO_DIALOGUES = 6  # every sixth of them
# fmt: off
FAMILIES = (  # deterministic given a seed
    "ab", "aiw", "base_conversion", "basic_arithmetic", "bitwise_arithmetic", "caesar_cipher", "calendar_arithmetic",
    "chain_sum", "coin_flip", "complex_arithmetic", "count_bits", "course_schedule", "cryptarithm",
    "decimal_arithmetic", "dice", "family_relationships", "fraction_simplification", "gcd", "gsm_symbolic",
    "knights_knaves", "leg_counting", "letter_counting", "letter_jumble", "manipulate_matrix", "number_filtering",
    "number_format", "number_sequence", "number_sorting", "power_function", "prime_factorization", "products",
    "rotate_matrix", "sentence_reordering", "shortest_path", "simple_equations", "spell_backward", "syllogism",
    "time_intervals", "word_sequence_reversal", "word_sorting",
)
# fmt: on
TARGET_FAMILIES = ("family_relationships", "gsm_symbolic", "letter_jumble", "number_sorting")
DEMO_FAMILIES = ("family_relationships", "gsm_symbolic", "number_filtering", "word_sequence_reversal")  # short


def embedded_data(folder: Path) -> tuple[Path, Path]:
    """Write `pool.jsonl` and `target.jsonl` into `folder` unless they exist: id, prompt, response, family.

    Raises:
        DependencyError: chatterbot-corpus or reasoning-gym is not installed.
    """
    pool, target = folder / "pool.jsonl", folder / "target.jsonl"
    if not pool.exists():
        _write_jsonl(pool, (*_dialogue_rows(), *_task_rows(FAMILIES, PER_FAMILY, POOL_SEED)))
    if not target.exists():
        _write_jsonl(target, _task_rows(TARGET_FAMILIES, TARGETS // len(TARGET_FAMILIES), TARGET_SEED))
    return pool, target


def demo_data(folder: Path) -> tuple[Path, Path, Path]:
    """Write `small-pool.jsonl`, `small-target.jsonl` and `small-test.jsonl` into `folder` unless they exist.

    The pool has about 800 rows in the columns of `embedded_data`; target and test rows are of `DEMO_FAMILIES`.

    Raises:
        DependencyError: chatterbot-corpus or reasoning-gym is not installed.
    """
    pool, target, test = (folder / f"small-{name}.jsonl" for name in ("pool", "target", "test"))
    if not pool.exists():
        dialogues = itertools.islice(_dialogue_rows(), 0, None, DEMO_DIALOGUES)
        _write_jsonl(pool, (*dialogues, *_task_rows(FAMILIES, DEMO_PER_FAMILY, POOL_SEED)))
    for path, size, seed in ((target, TARGETS, TARGET_SEED), (test, DEMO_TESTS, TEST_SEED)):
        if not path.exists():
            _write_jsonl(path, _task_rows(DEMO_FAMILIES, size // len(DEMO_FAMILIES), seed))
    return pool, target, test


def _write_jsonl(path: Path, rows: Any) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        for number, (family, prompt, response) in enumerate(rows):
            row = {"id": f"{family}-{number}", "prompt": prompt, "response": response, "family": family}
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def _dialogue_rows() -> Iterator[tuple[str, str, str]]:
    """The distinct English question-answer pairs of chatterbot-corpus: (topic, prompt, response)."""
    import yaml

    folder = package_folder("chatterbot_corpus", "'nncift[demo]'") / "data" / "english"
    seen: set[tuple[str, str]] = set()
    for path in sorted(folder.glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            texts = [str(turn).strip() for turn in turns]
            for pair in itertools.pairwise(texts):
                if pair not in seen and all(pair):
                    seen.add(pair)
                    yield path.stem, *pair


def _task_rows(families: tuple[str, ...], size: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """`size` samples of each family of reasoning-gym: (family, prompt, response)."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of a package that it needs, where pip compiled nothing
            import reasoning_gym
    except ImportError as error:
        raise DependencyError("the demo needs the package reasoning-gym", "pip install 'nncift[demo]'") from error
    for family in families:
        with contextlib.redirect_stdout(io.StringIO()):  # a few generators print
            samples = list(reasoning_gym.create_dataset(family, size=2 * size, seed=seed))
        answered = (sample for sample in samples if str(sample["answer"]).strip())
        for sample in itertools.islice(answered, size):
            yield family, sample["question"].strip(), str(sample["answer"]).strip()
