"""What a run is asked to do: one frozen dataclass. The command line, its help, YAML and validation come from it.

The types are not put off by `from __future__ import annotations`: the command line reads them from a sub-class.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nncift.errors import ConfigError

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_INFLUENCE = "delift"
KNOWN_FEATURES = ("sentence", "lm")
DEFAULT_LABELS = "2000"


class Amount(NamedTuple):
    """A budget or a number of labels: how much, of what."""

    kind: Literal["fraction", "count", "tokens", "seconds"]
    value: float


@dataclass(frozen=True)
class Config:
    """The options of one selection; `config.json` in the run folder holds them."""

    pool: str
    """What to choose from: JSONL, JSON, CSV or Parquet (also .gz), a folder of them, a saved dataset, or a hub id."""
    _: KW_ONLY
    budget: str = "0.1"
    """How much to choose: a fraction (0.1 or 10%; 1.0 is everything), a number of samples (2000; 1 is one sample) or of
    tokens (500ktok, 2Mtok)."""
    output: str | None = None
    """The run folder; the same command resumes it. By default runs/NAME-OF-THE-POOL."""
    target: str | None = None
    """Samples of the task to get better at; without it the subset is to represent the whole pool."""
    influence: str | None = None
    """The exact influence function: a name that `nncift influences` lists, or your own "module:Class". By default
    delift."""
    influence_options: Mapping[str, Any] | Sequence[str] | None = None
    """An option of the influence function's own, NAME=VALUE, such as training.epochs=2; may be given several times.
    `nncift influences NAME` lists them."""
    labels: str | None = None
    """How much to measure exactly: a number of pairs (2000; of samples, where one score holds for every target), a
    fraction of all (0.01) or a time (90s, 15m). auto: in rounds, where least is known, until --fidelity is reached or a
    round no longer helps. 0: nothing; the network that comes with nncift ranks. By default 2000."""
    fidelity: float | None = None
    """With --labels auto: the rank correlation within a target, on samples held out, at which labelling ends. By
    default 0.5."""
    labels_from: str | None = None
    """Exact values made elsewhere, instead of computing them: a table (Parquet, CSV, JSONL) of pool_id, target_id,
    influence; or a matrix NAME.npy beside NAME.pool_ids.json and NAME.target_ids.json."""
    probes: int | None = None
    """Targets on which the influence of every pool sample is measured exactly, to complete what the network says of
    it: far more faithful, at so many pairs for each sample."""
    verify: float | None = None
    """Measure a shortlist of so many times the budget exactly, on at most 64 targets, and choose from it by the
    measured values; 2 is a good value."""
    network: str | None = None
    """A run folder or a saved InfluenceNetwork that has learned already, or "pretrained", which comes with nncift
    (write ./pretrained for a folder of yours of that name): nothing is labelled or learned. With --labels it is the
    starting point: its predictions are rescaled to fit the labels, and the remaining error is learned."""
    model: str = DEFAULT_MODEL
    """The language model that exact influence is measured with: a hub id, a folder, or "embedded". For selectit also
    several, separated by commas."""
    encoder: str | None = None
    """The sentence encoder: hub id, folder or "embedded". By default all-MiniLM-L6-v2, or the learned network's own."""
    features: str | None = None
    """What the network knows of each sample, several separated by commas: sentence (the encoder's embedding), lm (the
    language model's own view, one forward pass per sample), or your own: a .npy file with one row per pool row, or a
    column of the data. By default what the learned network needs, else sentence,lm where the influence function asks a
    language model, else sentence."""
    target_features: str | None = None
    """The target's, where --features names a .npy file; a column name given with --features holds for both."""
    split: str | None = None
    """The split to read when the pool is on the hub or a saved DatasetDict with several."""
    target_split: str | None = None
    """The split to read of the target."""
    prompt_field: str | None = None
    """The column with the prompt, when the schema is not recognised."""
    response_field: str | None = None
    """The column with the response."""
    exclude: tuple[str, ...] = ()
    """Test sets whose samples must not be in the subset; may be given several times."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be used and list them in rejected.jsonl, instead of stopping."""
    keep_duplicates: bool = False
    """Keep exact duplicates."""
    recipe: Literal["process", "paper"] = "process"
    """The InfluenceNetwork: "process" is ours (two towers, closed form), "paper" NN-CIFT's (100 hidden units)."""
    eta: float | None = None
    """With a target: weight of each sample's own relevance. By default number of targets / number to choose."""
    dtype: Literal["float32", "bfloat16", "float16", "8bit", "4bit"] | None = None
    """Precision of the language model; 8bit and 4bit through bitsandbytes. By default bfloat16 on CUDA."""
    device: str | None = None
    """cuda, mps or cpu; the best there is by default."""
    batch_size: int | None = None
    """Texts per forward pass, at most; halved by itself when memory runs out. By default 32, on CUDA as many as fit."""
    max_length: int | None = None
    """Longest sequence the language model reads, in tokens; the model's own limit by default."""
    trust_remote_code: bool = False
    """Run code that comes with a model."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        parse_budget(self.budget)
        unlabelled = str(self.labels).strip() == "0"
        if unlabelled:  # short for --network pretrained, or for --network alone
            object.__setattr__(self, "labels", None)
            object.__setattr__(self, "network", self.network or "pretrained")
        if self.network is not None:
            if self.recipe == "paper":
                raise ConfigError('the recipe "paper" cannot start from a network', 'take the recipe "process"')
            if not self.measures:
                option = "--labels 0" if unlabelled else "--network"
                self._refuse(f"{option} computes no influence", "influence", "influence_options")
        if self.labels_from is not None:
            reason = "--labels-from brings the exact values"
            self._refuse(reason, "network", "influence", "influence_options", "labels", "probes", "verify")
        if self.probes is not None and self.recipe == "paper":
            raise ConfigError('the recipe "paper" cannot be completed by --probes', 'take the recipe "process"')
        if self.verify is not None and not (math.isfinite(self.verify) and self.verify >= 1):
            raise ConfigError(f"--verify {self.verify} is no multiple of the budget", "give a number of at least 1")
        if self.labels is not None and not self.in_rounds:
            parse_labels(self.labels)
        if self.fidelity is not None and not (self.in_rounds and 0 < self.fidelity <= 1):
            raise ConfigError(f"--fidelity {self.fidelity} needs --labels auto and a number above 0 and at most 1")
        self._check_features()
        if (self.prompt_field is None) != (self.response_field is None):
            raise ConfigError("--prompt-field and --response-field go together", "give both")
        if self.eta is not None and (self.target is None or not (math.isfinite(self.eta) and self.eta >= 0)):
            raise ConfigError(f"--eta {self.eta} needs --target and a number of at least 0")
        for name, least in (("batch_size", 1), ("max_length", 16), ("probes", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} {value} is too small", f"give at least {least}")

    def _check_features(self) -> None:
        names = self.feature_names
        if self.encoder is not None and names and "sentence" not in names:
            raise ConfigError("--encoder was given, but --features has no sentence", "leave one of them out")
        if len(set(names)) < len(names) or any(not name for name in names):
            raise ConfigError(f"--features {self.features!r} names one twice, or none", "give each once")
        if len([name for name in names if name not in KNOWN_FEATURES]) > 1:
            raise ConfigError(
                f"--features {self.features!r} names several of your own",
                "join them into one file; beside it, sentence and lm can be given",
            )
        own = self.own_features
        if self.target_features is not None and (own is None or self.target is None):
            raise ConfigError("--target-features needs --features of your own and --target")
        if (own or "").endswith(".npy") and self.target and not self.target_features:
            raise ConfigError("--features is a file of the pool's features", "give --target-features too")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What `features` names; nothing where it is not given."""
        if self.features is None:
            return ()
        whole = self.features.endswith(".npy") and Path(self.features).exists()  # a path may hold a comma
        return (self.features,) if whole else tuple(name.strip() for name in self.features.split(","))

    @property
    def own_features(self) -> str | None:
        """The user's own among them: a file or a column."""
        return next((name for name in self.feature_names if name not in KNOWN_FEATURES), None)

    def _refuse(self, reason: str, *names: str) -> None:
        """Refuse options that do not go with another."""
        taken = [
            name.removesuffix("s") if name == "influence_options" else name for name in names if getattr(self, name)
        ]
        if taken:
            option = taken[0].replace("_", "-")
            raise ConfigError(f"{reason}, so --{option} cannot be given with it", "leave one of them out")

    @property
    def in_rounds(self) -> bool:
        """Whether labels are computed in rounds."""
        return str(self.labels).strip() == "auto"

    @property
    def learns(self) -> bool:
        """Whether a network is fitted to labels that the run computes."""
        return self.labels_from is None and (self.network is None or self.labels is not None)

    @property
    def measures(self) -> bool:
        """Whether exact influence is computed."""
        return self.learns or self.probes is not None or self.verify is not None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output) if self.output else Path("runs") / (re.sub(r"\W+", "-", _stem(self.pool)).strip("-"))

    @property
    def models(self) -> tuple[str, ...]:
        """The language models: several, separated by commas, for an influence function that asks several."""
        return (self.model,) if Path(self.model).is_dir() else tuple(self.model.split(","))

    def identity(self) -> dict[str, Any]:
        """The fields that say what the run computes: all but where it is written."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "output"}


def _stem(pool: str) -> str:
    return Path(pool).name.partition(".")[0] or "pool"


_AMOUNT = re.compile(r"(?P<number>\d+(?:\.\d*)?(?:e\d+)?|\.\d+)\s*(?P<unit>%|[kKmMgG]?tok(?:ens)?|s|m|h)?")
_TOKENS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def _parse(option: str, text: str | int | float, units: str, example: str) -> Amount:
    raw = str(text).replace("_", "").strip()
    match = _AMOUNT.fullmatch(raw)
    unit = match["unit"] or "" if match else ""
    allowed = not unit or unit == "%" or (unit in _SECONDS and "s" in units) or ("tok" in unit and "t" in units)
    if match is None or not allowed or isinstance(text, bool):
        raise ConfigError(f"--{option} {text!r} is not an amount", f"give {example}")
    number = float(match["number"])
    if number <= 0 or not math.isfinite(number):
        raise ConfigError(f"--{option} {text!r} is zero", f"give {example}")
    if unit == "%":
        amount = Amount("fraction", number / 100)
    elif "tok" in unit:
        amount = Amount("tokens", round(number * _TOKENS[unit.partition("tok")[0].lower()]))
    elif unit:
        amount = Amount("seconds", number * _SECONDS[unit])
    elif "." in raw:
        amount = Amount("fraction", number)
    else:
        amount = Amount("count", number)
    if amount.kind == "fraction" and amount.value > 1:
        raise ConfigError(f"--{option} {text!r} is more than everything", f"give {example}")
    return amount


def parse_budget(budget: str | int | float) -> Amount:
    """Read a budget: "0.1", "10%", "2000", "2Mtok".

    Raises:
        ConfigError: it is no such thing, zero, or a fraction above 1.
    """
    return _parse("budget", budget, "t", "a fraction (0.1 or 10%), a number of samples (2000) or tokens (2Mtok)")


def parse_labels(labels: str | int | float) -> Amount:
    """Read a number of labels: "2000", "0.01", "1%", "90s", "15m".

    Raises:
        ConfigError: it is no such thing, zero, or a fraction above 1.
    """
    return _parse(
        "labels", labels, "s", "a number of pairs (2000), a fraction of all pairs (0.01), a time (90s, 15m) or auto"
    )
