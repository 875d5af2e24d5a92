"""`nncift evaluate` and `nncift compare` on the command line: their options, and what they print."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

from cyclopts import Group, Parameter, Token

from nncift.cli.options import OUTPUT, options_class
from nncift.config import Config
from nncift.errors import printable
from nncift.proof.options import OF_ONE_RUN, CompareOptions, ProofOptions, refuse_of_one_run

_TEST = Group("Test and training", sort_key=-1)
_OWN = {"influences": "--influence", "budgets": "--budget", "studies": "--study"}  # fields typed by another name
_OTHERWISE = ("influence", "budget", "output")  # which a comparison takes in a form of its own

NAMES = {
    field.name: _OWN.get(field.name, f"--{field.name.replace('_', '-')}")
    for field in dataclasses.fields(CompareOptions)
} | {"against": "--against"}
"""How each field of the options is typed."""


def _split(kind: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Several values, separated by commas or given several times."""
    values = tuple(part.strip() for token in tokens for part in token.value.split(","))
    choices = get_args(get_args(kind)[0])  # of a literal type
    if choices and (wrong := [value for value in values if value not in choices]):
        raise ValueError(f"{wrong[0]!r} is not one of {', '.join(choices)}.")
    return values


def _shown(default: Any) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _proof_class(base: type[ProofOptions]) -> type[ProofOptions]:
    """The options of a class with fields of several values separated by commas."""
    hints, fields = get_type_hints(base), []
    for field in dataclasses.fields(base):
        several = str(hints[field.name]).startswith("tuple")
        parameter = Parameter(
            name=NAMES[field.name],
            group=_TEST,
            converter=_split if several else None,
            n_tokens=1 if several else None,
            accepts_keys=False if several else None,
            show_default=_shown if field.default not in ((), None, False, dataclasses.MISSING) else False,
        )
        default = dataclasses.field(default=field.default, kw_only=True)
        fields.append((field.name, Annotated[hints[field.name], parameter], default))
    return dataclasses.make_dataclass(
        f"_{base.__name__}", fields, bases=(base,), frozen=True, namespace={"__module__": __name__}
    )


if TYPE_CHECKING:
    EvaluateFlags = ProofOptions
    CompareFlags = CompareOptions
    SelectFlags = Config
else:
    EvaluateFlags, CompareFlags = map(_proof_class, (ProofOptions, CompareOptions))
    SelectFlags = options_class(without=_OTHERWISE, hidden=OF_ONE_RUN, refuse=refuse_of_one_run)


_READING = Group("Reading, as in the run unless given", sort_key=0)


@Parameter(group=_READING, show_default=False)
@dataclass(frozen=True, kw_only=True)
class Inherited:
    """Options of an evaluation that are those of the run unless given."""

    prompt_field: str | None = None
    """The test file's column with the prompt, when the schema is not recognised."""
    response_field: str | None = None
    """The column with the reference response."""
    messages_field: str | None = None
    """Instead of these two: the column with whole chats."""
    turns: Literal["last", "all"] | None = None
    """Which assistant turns of a chat are tested on: last or all."""
    skip_bad_rows: bool | None = None
    """Leave out test rows that cannot be used, instead of stopping."""
    max_row_bytes: str | None = None
    """The longest row that can be used."""
    wording: Literal["auto", "chat", "plain"] | None = None
    """How the model reads rows, in training and test: chat, plain, or auto, in its chat template where it has one."""
    max_length: int | None = None
    """Longest sequence the model reads, in tokens."""
    batch_size: int | None = None
    """Sequences per forward pass, at most."""
    trust_remote_code: bool | None = None
    """Run code that comes with a model; never taken over from the run."""


def evaluate(
    run: str,
    proof: Annotated[EvaluateFlags, Parameter(name="*")],
    *,
    against: str | None = None,
    model: str | None = None,
    encoder: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    seed: int | None = None,
    inherited: Annotated[Inherited | None, Parameter(name="*")] = None,
    output: Annotated[str | None, OUTPUT] = None,
    quiet: Annotated[bool, OUTPUT] = False,
) -> None:
    """Fine-tune the model on a run's choice, and compare it with the model as it is and with in-context learning.

    Args:
        run: The folder of a finished run.
        proof: The options.
        against: Another finished run, whose choice is used likewise and compared.
        model: The model to fine-tune: a hub id, a folder, or "embedded"; that of the run by default.
        encoder: The sentence encoder, which finds similar examples: a hub id, a folder, or "embedded"; that of the run
            by default.
        dtype: Precision of the model; 8bit and 4bit train with QLoRA on CUDA.
        device: cuda, mps or cpu; the best there is by default.
        seed: The first seed; that of the run by default.
        inherited: How the test file and the model are read; as in the run unless given.
        output: The folder of the evaluation; evaluation/NAME-OF-THE-TEST in the run's by default.
        quiet: No progress bars.
    """
    from nncift.proof.evaluate import evaluate as run_evaluation
    from nncift.proof.results.tables import evaluation_text

    given = {"model": model, "encoder": encoder, "dtype": dtype, "device": device, "seed": seed}
    given |= dataclasses.asdict(inherited or Inherited())
    done = run_evaluation(
        run,
        against=against,
        output=output,
        progress=not quiet,
        **_values(proof),
        **{name: value for name, value in given.items() if value is not None},
    )
    print(evaluation_text(done.results))
    print(printable(f"Report: {done.folder / 'report.html'}; all figures: results.json"))


def compare(
    select: Annotated[SelectFlags, Parameter(name="*")],
    proof: Annotated[CompareFlags | None, Parameter(name="*")] = None,
    *,
    output: Annotated[str | None, OUTPUT] = None,
    dry_run: Annotated[bool, OUTPUT] = False,
    quiet: Annotated[bool, OUTPUT] = False,
) -> None:
    """Compare influence functions with each other and with random rows, by training on what each chooses.

    Args:
        select: The options of every run.
        proof: The options of the comparison.
        output: The folder; the same command resumes it, and several processes may work on it. By default
            runs/compare-NAME-OF-THE-POOL.
        dry_run: Print what would be trained and what it would cost, and do nothing.
        quiet: No progress bars.
    """
    from nncift.pipeline.configuration.paths import check_paths

    check_paths(select)
    from nncift.proof.compare import compare as run_comparison
    from nncift.proof.results.tables import text_table

    given = dict(select.given) | _values(proof or CompareOptions())  # type: ignore[attr-defined]
    if dry_run:
        from nncift.proof.plan import plan

        print(printable_lines(plan(given.pop("pool"), **given)))
        return
    done = run_comparison(given.pop("pool"), output=output, progress=not quiet, **given)
    print(text_table(done.results))
    print(printable(f"Report: {done.folder / 'report.html'}; tables: results.md, results.csv, results.json"))


def _values(options: Any) -> dict[str, Any]:
    """The options that differ from their defaults, and those without one."""
    return {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    }


def printable_lines(text: object) -> str:
    """A text of several lines, each safe for a terminal."""
    return "\n".join(map(printable, str(text).splitlines()))
