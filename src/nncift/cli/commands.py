"""The sub-commands, with their help."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import App, Group, Parameter

from nncift.cli import diff, explore, handover, machine, proof
from nncift.cli.messages import as_typed
from nncift.cli.options import OUTPUT, Options
from nncift.config import Config
from nncift.errors import ConfigError, RunError, printable

# The headings of the list of commands, in the order of a user's work.
_CHOOSE, _PROVE, _LOOK, _HAND_OVER, _CARE, _OTHER = (
    Group(heading, sort_key=place)
    for place, heading in enumerate(
        ("Choose", "Prove by training", "Look", "Hand over", "Run and machine", "Without a command")
    )
)

app = App(
    name="nncift",
    help="Find the small subset of instruction-tuning data worth fine-tuning a language model on.",
    version_flags=["--version"],
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # `entry.main` handles it
    default_parameter=Parameter(negative=()),
    group_commands=_OTHER,
)
_places = itertools.count()  # of the commands below their headings: as they stand here


def _command(
    group: Group, *examples: str, name: tuple[str, ...] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A sub-command under a heading, whose help ends with examples; `name` is that of the function unless given."""
    epilogue = "\n".join(["Examples:", "", *(f"- `{line}`" for line in examples)])
    return app.command(name=name, group=group, sort_key=next(_places), help_epilogue=epilogue)


@_command(
    _CHOOSE,
    "nncift select alpaca.jsonl --budget 0.1 --output runs/alpaca",
    "nncift select org/pool --budget 20000 --target gsm8k.jsonl --model Qwen/Qwen2.5-0.5B --output runs/math",
    "nncift select pool.jsonl --target task.jsonl --influence less --output runs/less",
    "nncift select pool.parquet --budget 2Mtok --influence delift --labels 15m --exclude test.jsonl --dry-run",
    "nncift select new.jsonl --network runs/less --budget 0.05 --output runs/new",
    "nncift select new.jsonl --target task.jsonl --influence less --labels 0 --output runs/zero",
    "nncift select new.jsonl --known trained-on.jsonl --budget 0.1 --output runs/continual",
    "nncift select --from runs/alpaca --budget 0.2",
    "nncift select --from runs/alpaca --append new.jsonl --output runs/grown",
    "nncift select --config run.yaml --seed 1",
)
def select(
    options: Annotated[Options | None, Parameter(name="*")] = None,
    *,
    config: Annotated[str | None, OUTPUT] = None,
    dry_run: Annotated[bool, OUTPUT] = False,
    quiet: Annotated[bool, OUTPUT] = False,
) -> None:
    """Choose the subset of a pool worth fine-tuning on; the same command resumes a run that was killed.

    Args:
        options: The options.
        config: A YAML file of options, NAME: VALUE; the command line overrides it.
        dry_run: Print the plan (pairs, LLM tokens, seconds, memory, disk) and do nothing.
        quiet: No progress bars.
    """
    from nncift.pipeline.configuration.paths import check_paths

    if options is None:
        raise ConfigError("`pool` is empty", "give a file, a folder or a hub id")
    check_paths(options)

    from nncift.pipeline.configuration.configure import make_config

    given = dict(options.given)  # type: ignore[attr-defined]
    pool = given.pop("pool", None)
    made = make_config(pool, **given)
    if dry_run:
        with _uncollected():
            from nncift.pipeline.plan import plan

            planned = plan(made, progress=not quiet)
        print(as_typed(planned))
        if made.append:
            print(printable(f"Of the samples of {made.from_run} is deducted what holds there."))
        elif made.from_run is not None:
            print(printable(f"Of what can be taken from {made.from_run} at most the vectors are deducted."))
        return
    from nncift.pipeline.select import select as run
    from nncift.report.terminal import summary_text

    run(None if pool is None else made.pool, **given, progress=not quiet)
    print(as_typed(summary_text(made.folder)))


@_command(
    _CHOOSE,
    "nncift demo",
    "nncift demo --model HuggingFaceTB/SmolLM2-360M-Instruct --encoder BAAI/bge-small-en-v1.5 --output runs/360m",
)
def demo(
    *,
    output: str = "runs/demo",
    model: str = "embedded",
    encoder: str = "embedded",
    influence: str | None = None,
    quiet: bool = False,
) -> None:
    """Select from real data that come with the package, and train on the choice: minutes, without a hub.

    Args:
        output: The run folder.
        model: The language model: a hub id, a folder, or "embedded".
        encoder: The sentence encoder: a hub id, a folder, or "embedded".
        influence: The influence function; by default that of nncift select.
        quiet: No progress bars.
    """
    from nncift.demo import run_demo

    print(
        run_demo(
            output=output,
            model=model,
            encoder=encoder,
            influence=influence,
            progress=not quiet,
        )
    )


@_command(
    _CHOOSE,
    "nncift pretrain --model Qwen/Qwen2.5-0.5B --output runs/qwen",
    "nncift pretrain mixture.jsonl --model Qwen/Qwen2.5-0.5B --labels 2h --output runs/qwen",
    "nncift select pool.jsonl --network runs/qwen --model Qwen/Qwen2.5-0.5B --output runs/pool",
)
def pretrain(
    pool: str | None = None,
    *,
    model: str = "embedded",
    encoder: str | None = None,
    influence: str = "less",
    labels: str = "20000",
    output: str = "runs/pretrained",
    device: str | None = None,
    quiet: bool = False,
) -> None:
    """Pretrain an InfluenceNetwork for a model, so that new pools can be ranked without computing any influence.

    Args:
        pool: A broad mixture of data to label; by default the demo's, dialogues and reasoning tasks.
        model: The language model: a hub id, a folder, or "embedded".
        encoder: The sentence encoder: a hub id, a folder, or "embedded".
        influence: The exact influence to learn: by default LESS gradients, which have the highest LDS.
        labels: Pairs to compute exactly: a count, a fraction, a time budget or auto.
        output: The run folder; nncift push shares its network on the hub.
        device: cuda, mps or cpu; the best there is by default.
        quiet: No progress bars.
    """
    from nncift.pipeline.configuration.paths import check_paths

    if pool is not None:
        check_paths(Config(pool))
    from nncift.data.demo import embedded_data
    from nncift.pipeline.select import select as run
    from nncift.report.terminal import summary_text
    from nncift.run.storage.files import cache_folder

    run(
        str(embedded_data(cache_folder() / "demo")[0]) if pool is None else pool,
        budget=1,
        model=model,
        encoder=encoder or ("embedded" if model == "embedded" else None),
        influence=influence,
        influence_options={"preconditioned": "both"} if influence == "less" else None,
        labels=labels,
        output=output,
        device=device,
        progress=not quiet,
    )
    print(as_typed(summary_text(Path(output))))
    print(printable(f"Use it: nncift select POOL --network {output}"))
    print(printable(f"Share it: nncift push {output} YOUR/NAME --only network"))


_command(
    _PROVE,
    "nncift evaluate runs/math --test gsm8k-test.jsonl",
    "nncift evaluate runs/math --test gsm8k-test.jsonl --against runs/random --seeds 3 --methods lora",
    "nncift evaluate runs/chat --test held-out.jsonl --judge gpt-5 --judge-url https://api.openai.com/v1",
)(proof.evaluate)
_command(
    _PROVE,
    "nncift compare pool.jsonl --target task.jsonl --test test.jsonl --influence less,delift --budget 0.05,0.1",
    "nncift compare pool.jsonl --test test.jsonl --methods lora,icl --exact all --seeds 5 --dry-run",
    "nncift compare pool.jsonl --target task.jsonl --influence less --study labels,depth",
)(proof.compare)


@_command(_LOOK, "nncift report runs/alpaca")
def report(run: str) -> None:
    """Regenerate report.html for a finished run, evaluation or comparison.

    Args:
        run: The folder of the run, the evaluation or the comparison.
    """
    if not run or not Path(run).is_dir():  # before the imports, which take seconds
        raise RunError(f"there is no folder {run!r}", "give the folder of a finished run or comparison")
    from nncift.pipeline.earlier_runs.redraw import redraw
    from nncift.proof.results.pages import write_again

    print(printable(write_again(run) or redraw(run)))


_command(_LOOK, "nncift diff runs/alpaca runs/larger", "nncift diff runs/less runs/sketch --output diff.md")(diff.diff)
_command(_LOOK, "nncift explore runs/alpaca", "nncift explore runs/alpaca --export site --no-browser")(explore.explore)

_command(
    _HAND_OVER,
    "nncift export runs/math --format trl --output train",
    "nncift export runs/math --format llama-factory --output LLaMA-Factory/data/math",
)(handover.export)
_command(
    _HAND_OVER,
    "nncift push runs/math org/math-subset --private --license cc-by-4.0",
    "nncift push runs/less org/less-network --only network",
    "nncift push runs/math org/math-subset --to-folder upload",
)(handover.push)


@_command(_CARE, "nncift repair runs/alpaca")
def repair(run: str) -> None:
    """Check every file of a run, and remove the damaged ones: the same select command then computes them again.

    Args:
        run: The run folder.
    """
    from nncift.run.folder.repair import repair as repaired

    print("\n".join(printable(line) for line in repaired(Path(run))))


@_command(_CHOOSE, "nncift influences", "nncift influences delift")
def influences(name: str | None = None) -> None:
    """List the influence functions: formula, source, cost, what each is good for; or explain one.

    Args:
        name: A listed name, or your own "module:Class".
    """
    from nncift.influence.catalogue import explain, overview

    print(overview() if name is None else explain(name))


_command(_CARE, "nncift doctor", name=("doctor", "env"))(machine.doctor)
machine.add_completion(app)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no unreachable objects inside the block: among all those that imports make it takes a second or two."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
