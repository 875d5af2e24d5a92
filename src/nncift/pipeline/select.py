"""The table of contents: `select` reads top to bottom as the stages of a run.

Each stage writes a file into the run folder when it is finished and is skipped when the file is there, so
the same call resumes a killed run and ends with the same bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Unpack

from nncift.data.sources.memory import repeatable
from nncift.pipeline.check import check
from nncift.pipeline.choosing.arrange import arrange
from nncift.pipeline.choosing.choose import choose, estimate
from nncift.pipeline.choosing.exact import exact_matrix
from nncift.pipeline.choosing.near_duplicates import leave_out_near_duplicates
from nncift.pipeline.choosing.verify import Evidence, verify
from nncift.pipeline.configuration.configure import make_config, sources_of
from nncift.pipeline.configuration.options import SelectOptions
from nncift.pipeline.context import Run
from nncift.pipeline.inputs.featurize import featurize
from nncift.pipeline.inputs.first_cut import first_cut
from nncift.pipeline.inputs.read import compare, read
from nncift.pipeline.learning.label import label, probe
from nncift.pipeline.learning.learn import learn
from nncift.pipeline.learning.measure import drop_checkpoints
from nncift.report.html import write_report
from nncift.report.reasons import explain
from nncift.report.summary import write_summary

if TYPE_CHECKING:
    from nncift.data.sources.sources import SourceLike
    from nncift.influence.base import InfluenceFunction
    from nncift.matrix.matrix import InfluenceMatrix
    from nncift.selection.selection import Selection


def select(
    pool: SourceLike | None = None,
    *,
    target: SourceLike | None = None,
    known: SourceLike | None = None,
    append: SourceLike | None = None,
    influence: str | InfluenceFunction | None = None,
    progress: bool = True,
    **options: Unpack[SelectOptions],
) -> Selection:
    """Choose the subset of a pool worth fine-tuning on; the same call resumes a run that was killed.

    Args:
        pool: the data to choose from: a file, folder or hub id, a list of these, a mixture (a YAML file), a
            `datasets.Dataset`, a DataFrame, or dicts; that of `from_run` unless given.
        target: samples of the task to get better at; the pool itself unless given.
        known: samples that the model was trained on before: only what the subset adds to them counts.
        append: new data for the pool of `from_run`: these alone are read and get features or vectors.
        influence: the exact influence function: a name, an `InfluenceFunction`, or a callable with a name.
        progress: show progress bars; in a log file, a line every half a minute.
        **options: the other options of a run, as `nncift select --help` describes them at length.

            Data
            split: the split of the pool to read, where there are several.
            target_split: the split of the target.
            known_split: the split of the known samples.
            prompt_field: the column with the prompt, when the schema is not recognised.
            response_field: the column with the response.
            messages_field: the column with whole chats, instead of those two.
            turns: the assistant turns of a chat that count: "last", the default, or "all".
            exclude: one or several test sets whose samples must not be in the subset.
            exclude_fields: the columns of the test sets' questions, when they are not recognised.
            skip_bad_rows: leave out rows that cannot be used, instead of raising.
            keep_duplicates: keep exact duplicates.
            near_duplicates: leave samples out of the choice whose sentence embedding has this cosine with an earlier
                one's, such as 0.95.
            max_row_bytes: the longest row; "64MiB" unless given.

            Influence, labels and network
            influence_options: options of the influence function itself: a mapping, or NAME=VALUE texts.
            labels: pairs to compute exactly: 2000, 0.01, "15m", "200samples", "auto"; 0 takes "gradient-sketch"
                in place of `influence`. "gradient-sketch", the similarities, "bm25", "ifd" and "perplexity" take none:
                they are exact for every pair.
            fidelity: with `labels` "auto", the subset-sum correlation at which labelling stops; 0.6 unless given.
            labels_from: a file of exact values computed by another tool.
            probes: targets on which every pool sample is measured exactly.
            network: a fitted network: a run folder, a saved network, a hub id or "pretrained".
            recipe: "process", a Gaussian process over pairs, or "paper", NN-CIFT's network.

            Choice
            budget: how much to choose: 0.1 of the pool, 2000 samples or "2Mtok". 0.1 unless given.
            first_cut: keep only this many budgets of samples, such as 10, by a static encoder, before all else.
            quota: how much of each value of a column: {"task": "equal"}, {"task": "proportional"} or
                {"task": {"gsm8k": 0.5, "alpaca": 200}}, the rest of the others.
            cap: how much at most: {"source": 0.3} of each value, or {"task": {"gsm8k": 0.1}}.
            objective: the objective to maximise, by name or as "module:Class".
            eta: reciprocal rank, mutual information: weight of what a sample is worth by itself.
            nu: how much the known samples count; 1 unless given.
            redundancy: graph cut: weight of the redundancy of the chosen samples; 1 unless given.
            maximizer: "lazy", the default, "stochastic", "threshold" or "partitioned".
            verify: size of the shortlist to measure exactly, as a multiple of the budget; with `labels` 0 that of
                "gradient-sketch", which `influence` measures.
            matrix: how the influence of all pairs is held: "auto", the default, "stored", "streamed" or "sparse".
            weights: weight the selected samples by their marginal gains.
            difficulty: of the selected samples: "ifd", "perplexity", "module:Class" or a column of the data.
            phases: divide the subset into this many phases, from easy to hard.
            order: of the subset: "gain", the order selected, or "curriculum", from easy to hard.
            seed: of everything random.

            Models and features
            model: the language model: a hub id, a folder or "embedded".
            encoder: the sentence encoder: a hub id, a folder or "embedded".
            first_cut_encoder: the static encoder of `first_cut`: a hub id, a folder or "embedded".
            features: what the network reads of a sample: "sentence,lm", a `.npy` file, a column or "module:Class".
            target_features: a `.npy` file of the target's features, where those of the pool are one.
            dtype: precision of the language model: "float32", "bfloat16", "float16", "8bit" or "4bit".
            device: "cuda", "mps" or "cpu"; the best there is unless given.
            batch_size: sequences per forward pass, at most.
            max_length: longest sequence that the language model reads, in tokens.
            wording: how the model reads samples: "auto", the default, "chat" or "plain".
            trust_remote_code: run code that comes with a model.

            Workers
            executor: where models read samples: "local", this process; "processes", on this machine; "ray".
            workers: number of worker processes; one per GPU unless given, on Ray as many as there is room for.
            ray_address: the Ray cluster: "HOST:PORT" of its head node, or "auto".
            gpus_per_worker: GPUs of each worker on Ray.
            cpus_per_worker: CPUs of each worker, which are its threads.

            Output
            output: the run folder; runs/NAME-OF-THE-POOL unless given.
            from_run: an earlier run: its options hold unless others are given, and what it computed is reused.
            keep_selection: keep what `from_run` selected; the budget is of samples selected beside it.
            no_cache: neither use nor keep features in the cache for other runs.
            keep_checkpoints: keep the checkpoints of warm-up training.

    Returns:
        The chosen samples in the order chosen; `.dataset` holds their rows. The run folder holds
        `subset.jsonl`, `report.html` and everything that led there.

    Raises:
        NNCIFTError: what went wrong; nothing half-written is left behind.
    """
    pool, target, known, append = (repeatable(source) for source in (pool, target, known, append))
    config = make_config(pool, target=target, known=known, append=append, influence=influence, **options)
    sources = sources_of(config, {"pool": pool, "target": target, "known": known, "append": append})
    with Run.open(config, sources, influence, progress=progress) as run:
        matrix, evidence = influence_of_all(run)
        leave_out_near_duplicates(run)
        selection = choose(run, matrix)
        selection = verify(run, matrix, selection, evidence)
        selection = arrange(run, selection)
        drop_checkpoints(run)
        with run.costs.stage("report"):
            given = evidence.network.description_ if evidence is not None and evidence.labels is None else None
            if not run.folder.reasons.exists():
                explain(run.folder, matrix, selection if run.kept_rows is None else selection.among(run.kept_rows))
            scored = run.is_pointwise and not run.is_exact  # samples are labelled, each with its one score
            every = matrix.shape[0] if scored else math.prod(matrix.shape)
            write_summary(run.folder, selection, all_pairs=every, scored=scored, given=given)
            write_report(run.folder)
    return selection


def influence_of_all(run: Run) -> tuple[InfluenceMatrix, Evidence | None]:
    """The influence of every pair, and what it was estimated from, None where it is exact.

    Stages that are finished are not run again.
    """
    read(run)
    first_cut(run)
    if run.earlier is not None:
        compare(run, run.earlier)
    check(run)
    if run.is_exact:
        return exact_matrix(run), None
    featurize(run)
    labels = label(run)
    network = learn(run, labels)
    probes = probe(run, network)
    return estimate(run, network, probes), Evidence(network, labels, probes)
