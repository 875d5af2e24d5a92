"""The built-in influence functions: the table that `nncift influences` prints and the docs contain."""

from __future__ import annotations

import inspect
import sys
import textwrap
from dataclasses import dataclass
from typing import Any, Literal

from nncift.influence.options import options_of
from nncift.run.options.registry import resolve

BUILT_IN = {
    "delift": "nncift.influence.delift:Delift",
    "gradient-sketch": "nncift.influence.gradient_sketch:GradientSketch",
    "response-similarity": "nncift.influence.response_similarity:ResponseSimilarity",
    "representation-similarity": "nncift.influence.representation_similarity:RepresentationSimilarity",
    "embedding-similarity": "nncift.influence.embedding_similarity:EmbeddingSimilarity",
    "bm25": "nncift.influence.bm25:BM25",
    "selectit": "nncift.influence.selectit:SelectIT",
    "ifd": "nncift.influence.ifd:IFD",
    "perplexity": "nncift.influence.ifd:Perplexity",
    "gradient-similarity": "nncift.influence.gradients.gradient_similarity:GradientSimilarity",
    "less": "nncift.influence.gradients.less:Less",
    "in-run": "nncift.influence.gradients.in_run:InRun",
    "lossval": "nncift.influence.lossval:LossVal",
    "random": "nncift.influence.random_rows:Random",
    "stratified-random": "nncift.influence.random_rows:StratifiedRandom",
}
DRAWN = ("random", "stratified-random")
"""Those that look at no influence: what every choice has to be better than."""


def is_factored(name: str) -> bool:
    """Whether the influence function of a name is computed exactly for every pair (`Traits.factored`).

    Raises:
        ConfigError: there is no such function.
    """
    kind = resolve(name, BUILT_IN, "nncift.influence")
    return bool(getattr(getattr(kind, "traits", None), "factored", False))


@dataclass(frozen=True)
class About:
    """Summary of an influence function."""

    name: str  # as in `--influence`
    formula: str  # entry [i, j], pool sample i on target j; larger is better
    source: str  # the publication
    scale: str  # range and interpretation of the values
    per_sample: str  # cost per measured sample
    good_for: str  # when to use it
    kind: Literal["pairwise", "pointwise"] = "pairwise"  # pointwise: one score per sample, the same for every target
    per_pair: str = "nothing"  # additional cost per measured pair
    whole_target: bool = False  # whether a pointwise score depends on the target as a whole

    @property
    def target(self) -> str:
        """Whether it needs a target."""
        if self.kind == "pointwise" and not self.whole_target:
            return "not used"
        return "required" + (" as a whole" if self.whole_target else "") + " (defaults to the pool itself)"


CATALOGUE = (
    About(
        name="delift",
        formula="d(no example, j) - d(example i, j), with d = norm(p - 1) / sqrt(T) over the probabilities p of the T"
        " tokens of j's response",
        source="DELIFT, arXiv:2411.04425, eq. 1-2",
        scale="-1 to 1; negative if the example does harm",
        per_sample="one pass, as an example or as a zero-shot query (145 tokens, 0.15 s)",
        per_pair="one pass over the target; the example is encoded once for all targets (159 tokens, 0.17 s with 12"
        " targets)",
        good_for="NN-CIFT's main function: measured in-context influence; the most expensive of these",
    ),
    About(
        name="gradient-sketch",
        formula="exp(5 (c - 1)), with c = 0.8 mean over six layers l of cos(G_il, G_jl) + 0.2 cos(z_i, z_j), with G_l ="
        " sum over response tokens t of g_t x_lt^T, g the gradient at the last layer's output, x the input of l,"
        " normalized and whitened over the pool, z the mean of x at two thirds of the depth",
        source="this project",
        scale="0 to 1; 1 = the same gradient, 0.007 = unrelated gradients",
        per_sample="one pass (146 tokens, 0.14 s)",
        per_pair="an inner product: every pair is computed, without labels",
        good_for="predicting the effect of training without labels, training or backward passes",
    ),
    About(
        name="response-similarity",
        formula="exp(5 (cos(z_i, z_j) - 1)), with z the mean over the response tokens of the inputs of the middle"
        " layer, each dimension standardized over all samples",
        source="this project",
        scale="0 to 1; 1 = identical response, 0.007 = no more similar than two random samples",
        per_sample="half a pass (155 tokens, 0.07 s)",
        per_pair="a dot product: every pair is computed, without labels",
        good_for="predicting the effect of training without gradients; cheap",
    ),
    About(
        name="representation-similarity",
        formula="cos(h_i, h_j), with h = sum_t t * h_t / sum_t t over the last hidden states h_t of prompt"
        " and response",
        source="RDS+, Ivison et al. 2025, arXiv:2503.01807",
        scale="-1 to 1, mostly close to 1: only the ranking is meaningful",
        per_sample="one pass (155 tokens, 0.13 s)",
        per_pair="a dot product: every pair is computed, without labels",
        good_for="a widely used baseline for targeted selection",
    ),
    About(
        name="embedding-similarity",
        formula="cos(e_i, e_j), with e the sentence embedding of prompt and response",
        source="DELIFT (SE), arXiv:2411.04425, sec. 5",
        scale="-1 to 1; topical similarity, which need not imply usefulness",
        per_sample="one pass of the sentence encoder (0.05 s), no language model",
        per_pair="a dot product: every pair is computed, without labels",
        good_for="a first look without a language model",
    ),
    About(
        name="bm25",
        formula="sum over the words w of j: ln(1 + (N - n_w + 0.5) / (n_w + 0.5)) * f_w / (f_w + k1 * (1 - b + b *"
        " L_i / L)), with f_w the frequency of w in i, n_w the number of the N pool samples with w",
        source="Lucene's BM25, as in bm25s, arXiv:2407.03618",
        scale="0 and up; 0 without shared words, higher for long targets",
        per_sample="word counts (0.0001 s), no model",
        per_pair="the words of the target: every pair is computed, without labels",
        good_for="a lexical baseline that is hard to beat; no model at all",
    ),
    About(
        name="selectit",
        formula="mean(t) / (1 + alpha * std(t)) over the rating prompts, with t = b * mean margin of the most probable"
        " rating b of 1..K; mean over models by size",
        source="SelectIT, NeurIPS 2024, arXiv:2402.16705",
        kind="pointwise",
        scale="0 to K; high if rated high with certainty",
        per_sample="one pass for each of five rating prompts and each model (761 tokens, 0.74 s)",
        good_for="general quality without a target; needs a model that can rate",
    ),
    About(
        name="ifd",
        formula="L(response after the prompt) / L(response alone), with L the mean negative log-probability of its"
        " tokens",
        source="Cherry LLM, NAACL 2024, arXiv:2308.12032",
        kind="pointwise",
        scale="0 and up; near 0 the prompt implies the response, above 1 it misleads",
        per_sample="two passes, one of them over the response alone (154 tokens, 0.15 s)",
        good_for="difficult samples; also favours noisy samples, so clean the pool first",
    ),
    About(
        name="perplexity",
        formula="exp(L(response after the prompt))",
        source="a common baseline",
        kind="pointwise",
        scale="1 and up; larger is harder",
        per_sample="one pass (147 tokens, 0.14 s)",
        good_for="a baseline; favours noisy samples",
    ),
    About(
        name="gradient-similarity",
        formula="cos(g_i, g_j), with g the projected gradient of a response's mean loss at a fresh LoRA adapter",
        source="TracIn at one checkpoint, arXiv:2002.08484",
        scale="-1 to 1; 1 for the same gradient",
        per_sample="one forward and one backward pass (293 tokens, 0.46 s)",
        per_pair="an inner product",
        good_for="predicting the effect of training without a warm-up; linear in the number of samples",
    ),
    About(
        name="less",
        formula="sum over checkpoints k: w_k cos(G_ik, g_jk), with g the projected LoRA gradient, G = m' / sqrt(v' +"
        " 1e-8) its Adam update direction, w_k the checkpoint's fraction of the learning rate",
        source="LESS, arXiv:2402.04333",
        scale="-1 to 1; 0 to 1 with `sharpness`; about -1 to 1 with `directions`",
        per_sample="one forward and one backward pass per checkpoint (4: 1,172 tokens, 1.8 s), after a LoRA warm-up on"
        " 5 % of the samples; with `layers` part of the backward pass, with `directions` two forward passes for each"
        " (K, or the target's tasks) instead",
        per_pair="an inner product per checkpoint",
        good_for="a target task; the best predictor of the effect of training; linear in the number of samples",
    ),
    About(
        name="in-run",
        formula="sum over the steps t that train on i: r_t <g_it, G_jt>, with r the learning rate, g the LoRA gradient"
        " of i, G that of the targets of j's task over sqrt(v) + 1e-8, v Adam's second moment",
        source="In-Run Data Shapley, arXiv:2406.11011",
        scale="around 0; negative if it does harm; equal for targets of one task",
        per_sample="four epochs of LoRA fine-tuning at about 1.4 times its plain cost, targets included (2,105"
        " tokens, 6.6 s with 24 samples and 12 targets)",
        good_for="each sample's contribution to one actual training run, for the whole target or for each of its tasks",
    ),
    About(
        name="lossval",
        formula="the weight w_i that minimizes, with a head h, (sum over n: w_n * norm(r_n - h(p_n))^2) * OT_w(pool,"
        " target)^2, after 100 epochs of Adam from w = 1; p and r are embeddings of prompt and response, OT is the"
        " Sinkhorn divergence between the samples (p, r) of masses w and the target's",
        source="LossVal, arXiv:2412.04158; prompt and response for its inputs and labels",
        kind="pointwise",
        scale="about 0 to 2; initialized to 1; only the ranking within a run is meaningful",
        per_sample="two passes of the sentence encoder, over prompt and response; 100 steps of a small head"
        " (0.07 s); no language model",
        good_for="detecting responses that do not match their prompts, given a clean target; no language model",
        whole_target=True,
    ),
    About(
        name="random",
        formula="a random number u_i",
        source="simple random sampling",
        kind="pointwise",
        scale="0 to 1; means nothing",
        per_sample="a hash (0.0001 s), no model",
        good_for="random rows, where no choice is better than they are (`nncift compare`)",
    ),
    About(
        name="stratified-random",
        formula="1 - (r_i + u_c) / n_c, with r_i = 0, 1, ... the place of i in a random order of its cluster c of n_c"
        " samples, u_c a random number; the clusters are those of k-means on the sentence embeddings",
        source="stratified sampling with proportional allocation",
        kind="pointwise",
        scale="0 to 1; means nothing",
        per_sample="one pass of the sentence encoder (0.05 s), no language model",
        good_for="random rows that cover the topics of a pool in proportion",
    ),
)

TOKENS = (
    "Token counts are for SmolLM2-135M on P3 samples of 140 tokens on average; times are for two CPU cores. A dot"
    " product takes less than 0.0001 s."
)
_WIDTH = 100  # of the terminal
_COLUMNS = ("name", "formula", "source", "kind", "target", "scale", "per_sample", "per_pair", "good_for")
_TITLES = ("influence[i, j]", "source", "kind", "target", "scale", "cost per sample", "cost per pair", "good for")


def overview() -> str:
    """All built-in functions for the terminal, one paragraph each."""
    return "\n\n".join([*(_paragraph(about) for about in CATALOGUE), textwrap.fill(TOKENS, _WIDTH)])


def markdown() -> str:
    """All built-in functions as a Markdown table."""
    rows = [("name", *_TITLES), ("---",) * len(_COLUMNS), *(tuple(_cells(about)) for about in CATALOGUE)]
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + ["", textwrap.fill(TOKENS, 120), ""])


def explain(name: str) -> str:
    """One function in full: its row of the table, the docstrings of its module and class, its options."""
    function: Any = resolve(name, BUILT_IN, "nncift.influence")
    parts = [_paragraph(about) for about in CATALOGUE if about.name == name]
    module = inspect.getdoc(sys.modules[function.__module__]) if inspect.isclass(function) else None
    return "\n\n".join([*parts, *(text for text in (module, inspect.getdoc(function), _options(function)) if text)])


def _options(function: Any) -> str:
    """The options, a line each; empty if there is none."""
    lines = [f"  {name:<24} {option}" for name, option in options_of(function).items()]
    return "\n".join(["Options (--influence-option NAME=VALUE):", *lines]) if lines else ""


def _cells(about: About) -> list[str]:
    name, formula, *others = (str(getattr(about, column)) for column in _COLUMNS)
    return [f"`{name}`", f"`{formula}`", *others]


def _paragraph(about: About) -> str:
    lines = [about.name]
    for title, column in zip(_TITLES, _COLUMNS[1:], strict=True):
        text, first = str(getattr(about, column)), f"  {title:<16} "
        lines.append(textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first)))
    return "\n".join(lines)
