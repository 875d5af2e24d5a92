"""What a run is asked to do: one frozen dataclass. The command line, its help, YAML and validation come from it.

The types are not put off by `from __future__ import annotations`: the command line reads them from a sub-class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from nncift.config import checks
from nncift.models.spec import DEFAULT_MODEL
from nncift.run.folder.naming import folder_of
from nncift.run.options.amounts import parse_budget, parse_bytes
from nncift.run.options.quotas import parse_all_rules
from nncift.run.options.validation import check_types

DEFAULT_INFLUENCE = "gradient-sketch"
BUILT_IN_FEATURES = ("sentence", "lm", "gradient-sketch")
DEFAULT_LABELS = "2000"
DEFAULT_LABELLED_SAMPLES = "200samples"  # where the cost is per sample: 100 rows and 100 targets
DEFAULT_DIFFICULTY = "ifd"
EXECUTION = ("executor", "workers", "ray_address", "gpus_per_worker", "cpus_per_worker")
"""Fields of where a run computes: it may go on elsewhere, with the same result."""
_NOT_IDENTITY = ("output", "keep_checkpoints", "no_cache", *EXECUTION)  # that do not determine what a run computes


@dataclass(frozen=True)
class Config:
    """The options of one selection; `config.json` in the run folder holds them."""

    pool: tuple[str, ...] | str
    """What to choose from: JSONL, JSON, CSV, TSV, Parquet or Arrow (also .gz, .bz2, .xz, .zst), a folder of them (also
    FOLDER:CONFIG), a saved dataset, or a hub id; several of these; or a mixture: a .yaml list of sources with name,
    path and, for one that is not taken whole, weight (a share of its rows) or cap (a number of rows)."""
    _: KW_ONLY
    budget: str = "0.1"
    """How much to choose: a fraction (0.1 or 10%; 1.0 is everything), a number of samples (2000; 1 is one sample) or of
    tokens (500ktok, 2Mtok)."""
    output: str | None = None
    """The run folder; the same command resumes it. By default runs/NAME-OF-THE-POOL."""
    from_run: str | None = None
    """An earlier run: its options apply unless given anew, and what it computed is reused where it still holds
    (features, labels, network). Its test sets stay excluded. POOL may be left out: it is that run's."""
    append: tuple[str, ...] = ()
    """New data, added to the pool of the run that --from names: only they are read and get features or vectors;
    everything else, labels and network too, is reused. Instead of POOL; may be given several times."""
    keep_selection: bool = False
    """With --append: keep what that run selected, and select from all other samples in addition. --budget is then
    how many more; a fraction is of the new samples."""
    target: str | None = None
    """Samples of the task to get better at; without it the subset represents the whole pool."""
    known: str | None = None
    """Samples that the model was trained on before (continual tuning): only what the subset adds to them counts."""
    influence: str | None = None
    """The influence function: a name that `nncift influences` lists, or your own "module:Class". By default
    gradient-sketch. It, the similarities, bm25, ifd and perplexity are computed exactly for every pair, without
    labels or a network; the others for as many pairs as --labels says."""
    influence_options: Mapping[str, Any] | Sequence[str] | None = None
    """An option of the influence function itself, NAME=VALUE, such as training.epochs=2; may be given several times.
    `nncift influences NAME` lists them."""
    labels: str | None = None
    """How many pairs to compute exactly (the training set of the network): a count (2000), a fraction (0.01), a time
    budget (90s, 15m), or all pairs of so many pool samples and targets (200samples), for functions whose cost is per
    sample and not per pair, such as less. auto adds pairs by active learning until --fidelity is reached; 0 computes
    none: gradient-sketch, exact for every pair, stands in for --influence (with --verify, --influence measures its
    shortlist), or the network that --network names predicts it. For pointwise functions it counts samples. By default
    200samples where the cost is per sample, else 2000. Functions that are exact for every pair need none."""
    fidelity: float | None = None
    """With --labels auto: the fidelity at which labelling stops, measured as the subset-sum correlation on held-out
    samples: the correlation, within a target, of estimated and exact influence summed over random subsets. By
    default 0.6; similarities that need no labels have 0.2 to 0.4."""
    labels_from: str | None = None
    """Exact values computed by another tool: a table (Parquet, CSV, JSONL) of pool_id, target_id, influence; or a
    matrix NAME.npy beside NAME.pool_ids.json and NAME.target_ids.json."""
    probes: int | None = None
    """Number of targets for which influence is computed exactly for every pool sample; the network fills in the other
    targets. Much more accurate; costs that many pairs per sample."""
    verify: float | None = None
    """Size of a shortlist as a multiple of the budget: its influence is computed exactly, on at most 64 targets, and
    the subset is selected from it by these exact values; 2 is a good value. With --labels 0 the shortlist is that of
    gradient-sketch, and only it is measured by --influence."""
    network: str | None = None
    """A fitted InfluenceNetwork: a run folder, a saved network, a hub id, or "pretrained", which comes with nncift
    (write ./pretrained for a folder of that name): nothing is labelled or fitted. With --labels it is the prior: its
    predictions are rescaled to the labels, and a network is fitted to the residuals."""
    model: str = DEFAULT_MODEL
    """The language model that influence is computed with: a hub id, a folder, or "embedded". For selectit also several,
    separated by commas."""
    encoder: str | None = None
    """The sentence encoder: hub id, folder or "embedded". By default all-MiniLM-L6-v2, or the fitted network's own."""
    first_cut_encoder: str | None = None
    """The static encoder of --first-cut, a model of model2vec: hub id, folder or "embedded". By default
    minishlab/potion-base-8M."""
    features: str | None = None
    """The network's features of each sample, separated by commas: sentence (the encoder's embedding), lm (the language
    model's hidden states and losses, one forward pass per sample), gradient-sketch (from the same pass as lm, beside
    it), or your own: a .npy file with one row per pool row, a column of the data, or "module:Class". By default those
    of the given network, else lm where the influence function runs a language model (with sentence if --encoder is
    given), else sentence."""
    target_features: str | None = None
    """Features of the target samples (.npy), required if --features is a .npy file."""
    split: str | None = None
    """The split to read when the pool has several: on the hub, in a folder, or in a saved DatasetDict."""
    target_split: str | None = None
    """The split to read of the target."""
    known_split: str | None = None
    """The split to read of the known samples."""
    prompt_field: str | None = None
    """The column with the prompt, when the schema is not recognised."""
    response_field: str | None = None
    """The column with the response."""
    messages_field: str | None = None
    """Instead of these two: the column with whole chats, as lists of messages or as text with role markers. Data that
    lack the named columns are read by the schema that they fit."""
    turns: Literal["last", "all"] | None = None
    """Which assistant turns of a chat are scored and trained on: last (the default) or all; all influence
    functions, the features sentence and lm, and training then take the mean over turns. Turns marked otherwise (weight
    0, train or loss false) never are."""
    exclude: tuple[str, ...] = ()
    """Test sets whose samples must not be in the subset, any data with texts; may be given several times."""
    exclude_fields: tuple[str, ...] = ()
    """The columns of the test sets' questions, when they are not recognised; may be given several times."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be used and list them in rejected.jsonl, instead of stopping."""
    keep_duplicates: bool = False
    """Keep exact duplicates."""
    near_duplicates: float | None = None
    """Leave near-duplicates out of the choice: samples whose sentence embedding has at least this cosine, such as
    0.95, with that of an earlier, kept one. pool/near_duplicates.jsonl lists each with its twin."""
    max_row_bytes: int | str | None = None
    """The longest row that can be used. By default 64MiB."""
    first_cut: float | None = None
    """For pools too large for a language model to read: first keep this many times the budget, such as 10, by the
    embeddings of a static encoder (thousands of samples a second): the samples most similar to each target or,
    without a target, representative ones. Everything else reads only these. first-cut/rows.parquet lists all. Needs
    nncift[first-cut]."""
    quota: Mapping[str, Any] | Sequence[str] | None = None
    """How much of each value of a column to choose: task=proportional (its share of the pool), task=equal, or
    amounts as task=gsm8k:0.5,alpaca:200 (a fraction of the budget, or a number; 0.5+ for at least so much), the
    rest from other values; may be given several times. The column `source` is that of a mixture; none drops the
    quotas of --from."""
    cap: Mapping[str, Any] | Sequence[str] | None = None
    """The most of each value of a column to choose: source=0.3 of each, or task=gsm8k:0.1; may be given several
    times. Quotas and caps may be on two columns."""
    recipe: Literal["process", "paper"] = "process"
    """The InfluenceNetwork: "process" is ours (two towers, closed form), "paper" NN-CIFT's (100 hidden units)."""
    objective: str | None = None
    """The objective to maximise: facility-location, facility-location-reciprocal-rank,
    facility-location-conditional-gain, facility-location-mutual-information, concave-cover, mean-influence,
    graph-cut, log-determinant, or your own "module:Class". By default mean-influence if the influence function is
    pointwise (one score of a sample for all targets), else the second with --target, the third with --known, the
    first without either."""
    eta: float | None = None
    """Reciprocal rank and mutual information: weight of what each sample is worth by itself. By default 0.01:
    coverage of the targets decides, and this orders the samples that add next to nothing to it."""
    nu: float | None = None
    """How much the known samples count. By default 1."""
    redundancy: float | None = None
    """Graph cut: weight of the redundancy of the chosen samples. By default 1, at which a subset as redundant as
    the pool has no utility left."""
    maximizer: Literal["lazy", "stochastic", "threshold", "partitioned"] | None = None
    """How the objective is maximised: lazy greedy (the default); stochastic greedy, the best of a random sample at
    each step; threshold greedy, all whose gain reaches a falling threshold; or partitioned, first in parts of the
    pool and then among what was chosen there, for pools of more than 200,000 samples or so."""
    matrix: Literal["auto", "stored", "streamed", "sparse"] = "auto"
    """How the influence of all pairs is held for the choice: stored in memory; streamed, computed whenever it is
    read; or sparse, only each target's strongest helpers, with a bound on what that may lose (facility location in
    all its forms). By default by memory and size: sparse for more than 20,000 targets where all pairs do not
    fit."""
    weights: bool = False
    """Weight the selected samples by their marginal gains, each between 0.2 and 5 with mean 1 (nncift_weight)."""
    difficulty: str | None = None
    """The difficulty of the selected samples, larger is harder: ifd, perplexity (the model's own loss), another
    pointwise influence function, your own "module:Class", or a column of numbers in the data. By default ifd, with
    --phases or --order curriculum."""
    phases: int | None = None
    """Divide the subset into this many phases of equally many samples, from easy to hard, to train on one after the
    other (nncift_phase)."""
    order: Literal["gain", "curriculum"] = "gain"
    """The order of the subset, or within each phase: gain, as selected, or curriculum, from easy to hard."""
    dtype: Literal["float32", "bfloat16", "float16", "8bit", "4bit"] | None = None
    """Precision of the language model; 8bit and 4bit through bitsandbytes. By default bfloat16 where the device
    multiplies in it (CUDA, CPUs with AVX512-BF16 or AMX), else float32; a resumed run keeps its own."""
    device: str | None = None
    """cuda, mps or cpu; the best there is by default."""
    batch_size: int | None = None
    """Sequences per forward pass, at most; halved when memory runs out. By default 32, on CUDA as many as fit."""
    max_length: int | None = None
    """Longest sequence the language model reads, in tokens; the model's own limit by default."""
    wording: Literal["auto", "chat", "plain"] | None = None
    """How the language model reads samples: chat, all in its chat template; plain, all as plain text; auto, the
    default: as chats where samples are chats and the model has a template."""
    trust_remote_code: bool = False
    """Run code that comes with a model; never taken over from an earlier run."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of an influence function that trains (less, in-run), which are removed when the run is
    complete."""
    no_cache: bool = False
    """Do not read or write the cache of features that runs share ($NNCIFT_CACHE, at most $NNCIFT_CACHE_SIZE,
    10GB)."""
    executor: Literal["local", "processes", "ray"] | None = None
    """Where the models read the samples: local, in this process (the default); processes, several on this machine,
    one per GPU; ray, on a Ray cluster. The result is the same up to rounding, so an interrupted run may be resumed
    elsewhere."""
    workers: int | None = None
    """Number of worker processes, each with its own models; given alone, it implies --executor processes. By
    default one per GPU; on Ray as many as the cluster has room for."""
    ray_address: str | None = None
    """The Ray cluster: HOST:PORT of its head node, or auto, the default: the one of this machine or $RAY_ADDRESS.
    Given alone, it implies --executor ray."""
    gpus_per_worker: float | None = None
    """GPUs of each worker on Ray, such as 0.5; by default 1 where the cluster has any."""
    cpus_per_worker: int | None = None
    """CPUs of each worker, which are its threads. By default 1 on Ray, on this machine its share of the CPUs."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        checks.check_given(self)
        check_types(self, skip=("budget", "labels", "influence_options", "quota", "cap"))  # which are parsed
        if isinstance(self.pool, tuple) and len(self.pool) == 1:
            object.__setattr__(self, "pool", self.pool[0])
        checks.check_texts(self)
        self._complete()
        checks.check_together(self)

    def _complete(self) -> None:
        """Parse values, and set the options that others imply."""
        if self.max_row_bytes is not None:
            object.__setattr__(self, "max_row_bytes", self.row_bytes)
        parse_budget(self.budget)
        for name, rules in parse_all_rules(self.quota, self.cap).items():
            object.__setattr__(self, name, rules)
        if str(self.labels).strip() == "0":
            network = self.network or ("pretrained" if self.probes is not None else None)  # which a network completes
            object.__setattr__(self, "labels", None if network else "0")
            object.__setattr__(self, "network", network)
        if self.difficulty is None and (self.phases is not None or self.order == "curriculum"):
            object.__setattr__(self, "difficulty", DEFAULT_DIFFICULTY)
        if self.executor is None:
            on_ray = self.ray_address is not None or self.gpus_per_worker is not None
            implied = "ray" if on_ray else "processes" if self.workers is not None else None
            object.__setattr__(self, "executor", implied)

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
        return next(iter(self.all_own_features), None)

    @property
    def all_own_features(self) -> list[str]:
        """All names among them that are not built in, of which there may be one."""
        return [name for name in self.feature_names if name not in BUILT_IN_FEATURES]

    @property
    def in_rounds(self) -> bool:
        """Whether labels are computed in rounds."""
        return str(self.labels).strip() == "auto"

    @property
    def unlabelled(self) -> bool:
        """Whether nothing is labelled and no network given: what would be estimated is gradient-sketch instead."""
        return self.labels == "0"

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
        return Path(self.output) if self.output else folder_of(self.pools)

    @property
    def row_bytes(self) -> int | None:
        """`max_row_bytes` as a number."""
        return None if self.max_row_bytes is None else parse_bytes("max_row_bytes", self.max_row_bytes)

    @property
    def pools(self) -> tuple[str, ...]:
        """The sources of the pool."""
        return (self.pool,) if isinstance(self.pool, str) else self.pool

    @property
    def models(self) -> tuple[str, ...]:
        """The language models: several, separated by commas, for an influence function that asks several."""
        return (self.model,) if Path(self.model).is_dir() else tuple(self.model.split(","))

    def identity(self) -> dict[str, Any]:
        """The fields that determine what the run computes."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_IDENTITY}


def default_fields() -> dict[str, Any]:
    """What `Config.identity` has for the fields that a config of an earlier version lacks."""
    return {f.name: f.default for f in fields(Config) if f.default is not MISSING and f.name not in _NOT_IDENTITY}
