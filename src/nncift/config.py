"""What a run is asked to do: one frozen dataclass. The command line, its help, YAML and validation come from it.

The types are not put off by `from __future__ import annotations`: the command line reads them from a sub-class.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from nncift.errors import ConfigError
from nncift.models.spec import DEFAULT_MODEL
from nncift.run.amounts import parse_budget, parse_labels

DEFAULT_INFLUENCE = "delift"
BUILT_IN_FEATURES = ("sentence", "lm")
DEFAULT_LABELS = "2000"


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
    from_run: str | None = None
    """An earlier run whose options hold unless others are given; what it computed is taken where it still holds
    (features, labels, network), and its test sets stay excluded."""
    target: str | None = None
    """Samples of the task to get better at; without it the subset represents the whole pool."""
    known: str | None = None
    """Samples that the model was trained on before (continual tuning): only what the subset adds to them counts."""
    influence: str | None = None
    """The exact influence function: a name that `nncift influences` lists, or your own "module:Class". By default
    delift."""
    influence_options: Mapping[str, Any] | Sequence[str] | None = None
    """An option of the influence function itself, NAME=VALUE, such as training.epochs=2; may be given several times.
    `nncift influences NAME` lists them."""
    labels: str | None = None
    """How many pairs to compute exactly (the training set of the network): a count (2000), a fraction (0.01) or a time
    budget (90s, 15m). auto adds pairs by active learning until --fidelity is reached; 0 computes none and uses the
    bundled pretrained network. For pointwise functions it counts samples. By default 2000."""
    fidelity: float | None = None
    """With --labels auto: the target fidelity, the rank correlation within a target on held-out samples at which
    labelling stops. By default 0.5."""
    labels_from: str | None = None
    """Exact values computed by another tool: a table (Parquet, CSV, JSONL) of pool_id, target_id, influence; or a
    matrix NAME.npy beside NAME.pool_ids.json and NAME.target_ids.json."""
    probes: int | None = None
    """Number of targets for which influence is computed exactly for every pool sample; the network fills in the other
    targets. Much more accurate; costs that many pairs per sample."""
    verify: float | None = None
    """Size of a shortlist as a multiple of the budget: its influence is computed exactly, on at most 64 targets, and
    the subset is selected from it by these exact values; 2 is a good value."""
    network: str | None = None
    """A fitted InfluenceNetwork: a run folder, a saved network, a hub id, or "pretrained", which comes with nncift
    (write ./pretrained for a folder of that name): nothing is labelled or fitted. With --labels it is the prior: its
    predictions are rescaled to the labels, and a network is fitted to the residuals."""
    model: str = DEFAULT_MODEL
    """The language model that influence is computed with: a hub id, a folder, or "embedded". For selectit also several,
    separated by commas."""
    encoder: str | None = None
    """The sentence encoder: hub id, folder or "embedded". By default all-MiniLM-L6-v2, or the fitted network's own."""
    features: str | None = None
    """The network's features of each sample, separated by commas: sentence (the encoder's embedding), lm (the language
    model's hidden states and losses, one forward pass per sample), or your own: a .npy file with one row per pool row,
    a column of the data, or "module:Class". By default those of the given network, else sentence,lm where the influence
    function runs a language model, else sentence."""
    target_features: str | None = None
    """Features of the target samples (.npy), required if --features is a .npy file."""
    split: str | None = None
    """The split to read when the pool is on the hub or a saved DatasetDict with several."""
    target_split: str | None = None
    """The split to read of the target."""
    known_split: str | None = None
    """The split to read of the known samples."""
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
    objective: str | None = None
    """The objective to maximise: facility-location, facility-location-mutual-information,
    facility-location-conditional-gain, or your own "module:Class". By default the last with --known, else the second
    with --target, else the first."""
    eta: float | None = None
    """Mutual information: weight of each sample's own relevance. By default number of targets / number to choose."""
    nu: float | None = None
    """Conditional gain: how much the known samples count. By default 1."""
    dtype: Literal["float32", "bfloat16", "float16", "8bit", "4bit"] | None = None
    """Precision of the language model; 8bit and 4bit through bitsandbytes. By default bfloat16 on CUDA."""
    device: str | None = None
    """cuda, mps or cpu; the best there is by default."""
    batch_size: int | None = None
    """Sequences per forward pass, at most; halved when memory runs out. By default 32, on CUDA as many as fit."""
    max_length: int | None = None
    """Longest sequence the language model reads, in tokens; the model's own limit by default."""
    trust_remote_code: bool = False
    """Run code that comes with a model."""
    no_cache: bool = False
    """Neither use nor keep features in the cache for other runs ($NNCIFT_CACHE, at most $NNCIFT_CACHE_SIZE, 10GB)."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        for field in fields(self):  # as of a shell variable that is not set
            if getattr(self, field.name) == "":
                raise ConfigError(f"`{field.name}` is empty", "give a value, or leave it out")
        parse_budget(self.budget)
        unlabelled = str(self.labels).strip() == "0"
        if unlabelled:  # short for `network` "pretrained", or for `network` alone
            object.__setattr__(self, "labels", None)
            object.__setattr__(self, "network", self.network or "pretrained")
        if self.network is not None and not self.measures:
            reason = f"{'`labels` 0' if unlabelled else '`network`'} computes no influence"
            self._refuse(reason, "influence", "influence_options")
        if self.labels_from is not None:
            reason = "`labels_from` provides the exact values"
            self._refuse(reason, "network", "influence", "influence_options", "labels", "probes", "verify")
        if self.known is not None:
            reason = "the influence of `known` samples is estimated, and does not compare with exact values"
            self._refuse(reason, "probes", "verify")
        if self.recipe == "paper":
            self._refuse('the `recipe` "paper" has no prior and no posterior variance', "network", "probes")
        if self.labels is not None and not self.in_rounds:
            parse_labels(self.labels)
        if self.fidelity is not None and not (self.in_rounds and 0 < self.fidelity <= 1):
            raise ConfigError(f"`fidelity` {self.fidelity} needs `labels` auto and a number above 0 and at most 1")
        for name, option in (("eta", "target"), ("nu", "known"), ("known_split", "known"), ("target_split", "target")):
            if getattr(self, name) is not None and getattr(self, option) is None:
                raise ConfigError(
                    f"`{name}` {getattr(self, name)} needs `{option}`", f"give `{option}`, or leave it out"
                )
        self._check_features()
        if (self.prompt_field is None) != (self.response_field is None):
            raise ConfigError("`prompt_field` and `response_field` go together", "give both")
        self._check_numbers()

    def _check_numbers(self) -> None:
        least = {
            "batch_size": 1,
            "max_length": 16,
            "probes": 1,
            "seed": 0,
            "verify": 1,
            "eta": 0,
            "nu": 0,
        }
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise ConfigError(f"`{name}` is {value}", f"give a number of at least {lowest}")

    def _check_features(self) -> None:
        names, own = self.feature_names, self.own_features
        if self.encoder is not None and names and "sentence" not in names:
            raise ConfigError("`encoder` was given, but `features` has no sentence", "leave one of them out")
        if len(set(names)) < len(names) or any(not name for name in names):
            raise ConfigError(f"`features` {self.features!r} names one twice, or none", "give each once")
        if len([name for name in names if name not in BUILT_IN_FEATURES]) > 1:
            raise ConfigError(
                f"`features` {self.features!r} names several of your own",
                "join them into one file; beside it, sentence and lm can be given",
            )
        if self.target_features is not None and (own is None or self.target is None):
            raise ConfigError("`target_features` needs `features` of your own and `target`")
        if (own or "").endswith(".npy") and self.target and not self.target_features:
            raise ConfigError("`features` is a file of the pool's features", "give `target_features` too")
        if (own or "").endswith(".npy") and self.known:
            raise ConfigError("`features` is a file of the pool's features, and `known` has none", "give a column")

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
        return next((name for name in self.feature_names if name not in BUILT_IN_FEATURES), None)

    def _refuse(self, reason: str, *names: str) -> None:
        """Refuse options that do not go with another."""
        if taken := [name for name in names if getattr(self, name)]:
            raise ConfigError(f"{reason}, so `{taken[0]}` cannot be given with it", "leave one of them out")

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
        """The fields that determine what the run computes: all but `output` and `no_cache`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("output", "no_cache")}


def _stem(pool: str) -> str:
    return Path(pool).name.partition(".")[0] or "pool"
