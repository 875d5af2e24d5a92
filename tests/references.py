"""Slow, obvious versions of what the package computes fast: one forward pass per pair, plain loops."""

from __future__ import annotations

import math
import re

import numpy as np
import torch


def token_probabilities(model, context: list[int], response: list[int]) -> list[float]:
    """Probability of each response token, from one full forward pass over the whole sequence.

    The logits at position t are about token t + 1, so response token k is read at len(context) + k - 1.
    """
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + response])).logits[0].float()
    softmax = torch.softmax(logits, dim=-1)
    return [float(softmax[len(context) + k - 1, token]) for k, token in enumerate(response)]


def distance(probabilities: list[float]) -> float:
    """DELIFT's distance: ||p - 1||_2 / sqrt(T)."""
    return math.sqrt(sum((p - 1) ** 2 for p in probabilities)) / math.sqrt(len(probabilities))


def plain_context(tokenizer, wording, example: dict | None, query: dict) -> list[int]:
    """The context of a query in a plain wording, each piece tokenised on its own."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def filled(template: str, sample: dict) -> list[int]:
        pieces = re.split(r"\{(prompt|response)\}", template)  # text and names in turn
        return [token for k, piece in enumerate(pieces) for token in ids(sample[piece] if k % 2 else piece)]

    shown = ids(wording.without_example) if example is None else filled(wording.with_example, example)
    return shown + filled(wording.query, query)


def chat_context(tokenizer, example: dict | None, query: dict) -> list[int]:
    """The context of a query in the model's chat template, rendered and tokenised as a whole."""
    messages = [{"role": "user", "content": query["prompt"]}]
    if example is not None:
        earlier = [("user", example["prompt"]), ("assistant", example["response"])]
        messages = [{"role": role, "content": content} for role, content in earlier] + messages
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def delift(model, tokenizer, context, pool: list[dict], target: list[dict]) -> np.ndarray:
    """DELIFT's influence, (n_pool, n_target): d(no example) - d(example).

    `context` gives the token ids in front of a response, from an example (or None) and a query.
    """
    influence = np.zeros((len(pool), len(target)))
    for j, query in enumerate(target):
        response = tokenizer(query["response"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        alone = distance(token_probabilities(model, context(None, query), response))
        for i, example in enumerate(pool):
            shown = distance(token_probabilities(model, context(example, query), response))
            influence[i, j] = alone - shown
    return influence


def loss(model, context: list[int], response: list[int]) -> float:
    """Mean negative log-probability of the response's tokens, from one full forward pass."""
    with torch.no_grad():
        return float(response_loss(model, context + response, len(context)))


def selectit(model, tokenizer, prompts, levels: int, sample: dict, *, alpha: float, softmax: bool) -> float:
    """SelectIT's sentence-level score of one sample, from full forward passes over each rating prompt."""
    ratings = []
    for prompt in prompts:
        before, _, rest = prompt.partition("{prompt}")
        between, _, after = rest.partition("{response}")
        ids = [
            token
            for text in (before, sample["prompt"], between, sample["response"], after)
            for token in tokenizer(text, add_special_tokens=False)["input_ids"]
        ]
        with torch.no_grad():
            chances = torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), dim=-1)
        p = [float(chances[tokenizer.convert_tokens_to_ids(str(level))]) for level in range(1, levels + 1)]
        p = [value / sum(p) for value in p]
        if softmax:
            p = [math.exp(value) / sum(math.exp(other) for other in p) for value in p]
        best = max(range(levels), key=lambda k: p[k])
        ratings.append((best + 1) * sum(p[best] - p[k] for k in range(levels) if k != best) / (levels - 1))
    mean = sum(ratings) / len(ratings)
    deviation = math.sqrt(sum((rating - mean) ** 2 for rating in ratings) / len(ratings))
    return mean / (1 + alpha * deviation)


def hidden_states(model, ids: list[int], layer: int) -> np.ndarray:
    """Hidden states after `layer` layers, (T, hidden); -1 for the last, after the final normalisation."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].double().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors."""
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def bm25(documents: list[list[str]], query: list[str], *, k1: float, b: float) -> list[float]:
    """Lucene's BM25 of a query with each document."""
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in query:
            n = sum(word in other for other in documents)
            f = document.count(word)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            score += idf * f / (f + k1 * (1 - b + b * len(document) / mean)) if f else 0.0
        scores.append(score)
    return scores


def response_loss(model, ids: list[int], start: int) -> torch.Tensor:
    """Mean negative log-likelihood of the tokens from `start` on, from the logits of all positions."""
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    return -torch.stack([log_probabilities[t - 1, ids[t]] for t in range(start, len(ids))]).mean()


def adapter_gradients(adapter, ids: list[int], start: int) -> dict[str, torch.Tensor]:
    """Gradient of one sample's loss with respect to every weight of a peft adapter, by a backward pass of its own."""
    weights = {name: weight for name, weight in adapter.named_parameters() if "lora_" in name}
    for weight in weights.values():
        weight.requires_grad_(True)
    gradients = torch.autograd.grad(response_loss(adapter, ids, start), list(weights.values()))
    for weight in weights.values():
        weight.requires_grad_(False)
    return dict(zip(weights, gradients, strict=True))


def adam_direction(gradient, first, second, betas=(0.9, 0.999), epsilon=1e-8):
    """m' / sqrt(v' + eps) after one more gradient, without bias correction."""
    m = betas[0] * first + (1 - betas[0]) * gradient
    v = betas[1] * second + (1 - betas[1]) * gradient**2
    return m / torch.sqrt(v + epsilon)


def less(adapters: list, moments: list[dict], rates: list[float], pool: list, target: list, preconditioned: str):
    """LESS without a projection, (n_pool, n_target).

    For each checkpoint a function that gives the model with its adapter, Adam's (first, second) moment by the name of
    each parameter that counts, and a learning rate; then (token ids, start of the response) of each sample of both
    sides.
    """
    influence = np.zeros((len(pool), len(target)))
    for make, state, rate in zip(adapters, moments, rates, strict=True):
        with make() as adapter:
            features = []
            for samples, side in ((pool, "pool"), (target, "target")):
                for ids, start in samples:
                    gradients = {n: g for n, g in adapter_gradients(adapter, ids, start).items() if n in state}
                    if side == "pool" and preconditioned != "no":
                        gradients = {name: adam_direction(g, *state[name]) for name, g in gradients.items()}
                    if side == "target" and preconditioned == "both":
                        gradients = {name: g / torch.sqrt(state[name][1] + 1e-8) for name, g in gradients.items()}
                    flat = torch.cat([g.flatten().double() for g in gradients.values()])
                    features.append(flat / flat.norm())
        products = torch.stack(features[: len(pool)]) @ torch.stack(features[len(pool) :]).T
        influence += rate / sum(rates) * products.numpy()
    return influence


def in_run(adapter, pool: list, targets: list, groups: list, steps: list, preconditioned: bool, clip=1.0, epsilon=1e-8):
    """First-order in-run data Shapley, (n_pool, groups): a backward pass for every sample and target of every step.

    The fresh adapter is trained here. Samples and targets are (token ids, start of the response), `groups` has the
    group of each target, a step its learning rate, the numbers of its samples, and those of its targets; `clip` is
    the longest gradient of a step.
    """
    weights = {name: weight for name, weight in adapter.named_parameters() if "lora_" in name}
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=0.0, eps=epsilon)
    scores = np.zeros((len(pool), len(set(groups))))
    for t, (rate, samples, drawn) in enumerate(steps, start=1):
        own = {k: adapter_gradients(adapter, *pool[k]) for k in samples}
        of_targets = {k: adapter_gradients(adapter, *targets[k]) for k in drawn}
        for group in set(groups):
            share = len(set(groups)) / len(drawn)
            for name, weight in weights.items():
                mean = torch.zeros_like(weight)
                for k in drawn:
                    if groups[k] == group:
                        mean += share * of_targets[k][name]
                if preconditioned:
                    earlier = optimizer.state[weight]["exp_avg_sq"] if t > 1 else torch.zeros_like(weight)
                    second = (0.999 * earlier + 0.001 * mean**2) / (1 - 0.999**t)
                    mean = mean / (torch.sqrt(second) + epsilon)
                for k in samples:
                    scores[k, group] += rate * float((own[k][name] * mean).sum())
        for name, weight in weights.items():
            weight.grad = torch.stack([own[k][name] for k in samples]).mean(dim=0)
        torch.nn.utils.clip_grad_norm_(weights.values(), clip)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return scores


def sinkhorn_divergence(a: np.ndarray, x: np.ndarray, b: np.ndarray, y: np.ndarray, scales: list[float]):
    """The Sinkhorn divergence of masses a on points x and b on y, whose sums may differ, and its slope in a.

    Entropic transport at each scale e in turn, cost |x - y|^2 / 2: both potentials move half way to
    f_i = -e log(sum_j b_j exp((g_j - cost_ij) / e)), and all the way once at the end.
    """

    def transport(a, x, b, y):
        cost = ((x[:, None] - y[None]) ** 2).sum(axis=2) / 2

        def potential(e, cost, mass, other):
            log_mass = np.log(mass, where=mass > 0, out=np.full(len(mass), -1e5))
            inner = log_mass + (other - cost) / e
            most = inner.max(axis=1, keepdims=True)
            return -e * (most[:, 0] + np.log(np.exp(inner - most).sum(axis=1)))

        f, g = potential(scales[0], cost, b, 0), potential(scales[0], cost.T, a, 0)
        for e in scales:
            f, g = (f + potential(e, cost, b, g)) / 2, (g + potential(e, cost.T, a, f)) / 2
        return potential(scales[-1], cost, b, g), potential(scales[-1], cost.T, a, f)

    (f, g), (f_self, _), (g_self, _) = transport(a, x, b, y), transport(a, x, a, x), transport(b, y, b, y)
    return a @ (f - f_self) + b @ (g - g_self), f - f_self


class Adam:
    """Adam with torch's constants, and decay as in AdamW."""

    def __init__(self, rate: float, decay: float = 0.0) -> None:
        self.rate, self.decay = rate, decay
        self.m = self.v = 0.0
        self.t = 0

    def step(self, value: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        direction = self.m / (1 - 0.9**self.t) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)
        return value * (1 - self.rate * self.decay) - self.rate * direction


def lossval(
    pool, target, *, epochs, learning_rate, head_learning_rate, decay, rows, seed, owners=None, of_target=None
) -> np.ndarray:
    """LossVal's weights (n,) by hand-written gradients in float64, from prompts and responses (turns, d) of both sides.

    Turn t is of pool sample owners[t], of target of_target[t]; each is a sample of its own unless given.
    """
    prompts, responses = (np.asarray(side, dtype=np.float64) for side in pool)
    x, y = (np.hstack([np.asarray(side, dtype=np.float64) for side in sides]) for sides in (pool, target))
    owners, of_target = (
        np.arange(len(side)) if given is None else np.array(given) for side, given in ((x, owners), (y, of_target))
    )
    counts, of_targets = np.bincount(owners), np.bincount(of_target)
    diameter = 1.1 * max(np.linalg.norm(one - other) for one in x for other in y)
    scales = [diameter**2]
    while scales[-1] * (1 if len(scales) == 1 else 0.25) > 0.05**2:  # the first comes twice
        scales.append(scales[-1] * (1 if len(scales) == 1 else 0.25))
    scales.append(0.05**2)
    w, matrix, bias = np.ones(len(counts)), np.zeros((prompts.shape[1],) * 2), np.zeros(prompts.shape[1])
    of_w, of_matrix, of_bias = Adam(learning_rate), Adam(head_learning_rate, decay), Adam(head_learning_rate, decay)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        slope = np.zeros(len(w))
        for batch in torch.randperm(len(w), generator=generator).tensor_split(math.ceil(len(w) / rows)):
            n, every = np.flatnonzero(np.isin(owners, batch.numpy())), np.arange(len(of_targets))
            helped = torch.randperm(len(every), generator=generator)[:rows].numpy() if len(every) > rows else every
            m = np.flatnonzero(np.isin(of_target, helped))
            errors = responses[n] - (prompts[n] + prompts[n] @ matrix + bias)
            losses = (errors**2).sum(axis=1)
            shares, masses = w[owners[n]] / counts[owners[n]], len(batch) / len(helped) / of_targets[of_target[m]]
            distance, potential = sinkhorn_divergence(shares, x[n], masses, y[m], scales)
            by_share = losses * distance**2 + 2 * (shares @ losses) * distance * potential
            np.add.at(slope, owners[n], by_share / counts[owners[n]])
            back = -2 * distance**2 * shares[:, None] * errors  # by the prediction
            matrix = of_matrix.step(matrix, prompts[n].T @ back)
            bias = of_bias.step(bias, back.sum(axis=0))
        w = np.maximum(of_w.step(w, slope), 0)
    return w


def coverage_and_ranks(
    influence: np.ndarray, rows: list[int], eta: float = 0.01, level: np.ndarray | None = None
) -> float:
    """What runs with a target maximise by default: coverage, and a little for a sample's best rank on any target.

    Both beyond `level`, what known samples give each target.
    """
    s = np.maximum(influence, 0).astype(float)
    known = np.zeros(s.shape[1]) if level is None else np.maximum(level, 0)
    relevance = [0.0] * len(s)
    for j in range(s.shape[1]):
        ranked = sorted((i for i in range(len(s)) if s[i, j] > known[j]), key=lambda i: (-s[i, j], i))
        for rank, i in enumerate(ranked, 1):
            relevance[i] = max(relevance[i], (1 - known[j] / s[:, j].max()) / rank)
    scale, chosen = float(s.max(axis=0).mean()), sorted(set(rows))
    covered = sum(max(known[j], *s[chosen, j]) - known[j] for j in range(s.shape[1])) if chosen else 0.0
    return float(covered + eta * scale * sum(relevance[i] for i in chosen))


def objective(name: str, entries: np.ndarray, known: np.ndarray, subset: list[int], *, eta: float, nu: float) -> float:
    """The value of a subset (`nncift.selection.objectives.table`), term by term."""
    s, s_known = np.maximum(entries, 0).astype(float), np.maximum(known, 0).astype(float)
    covered = [max((s[i, j] for i in subset), default=0.0) for j in range(s.shape[1])]
    if name == "facility-location":
        return sum(covered)
    if name == "concave-cover":
        return sum(math.sqrt(sum(s[i, j] for i in set(subset))) for j in range(s.shape[1]))
    if name == "facility-location-mutual-information":
        return sum(covered) + eta * sum(max(s[i]) for i in set(subset))
    if name == "facility-location-reciprocal-rank":
        level = np.array([nu * max((row[j] for row in s_known), default=0.0) for j in range(s.shape[1])])
        return coverage_and_ranks(entries, subset, eta, level)
    if name in ("graph-cut", "log-determinant"):
        return of_features(name, entries, sorted(set(subset)), entries, redundancy=0.2, expected=2)
    if name == "mean-influence":
        return sum(max(0.0, float(np.mean(entries[i], dtype=float))) for i in set(subset))
    return sum(max(0.0, c - nu * max((row[j] for row in s_known), default=0.0)) for j, c in enumerate(covered))


def of_features(
    name: str, entries: np.ndarray, subset: list[int], features: np.ndarray, *, redundancy: float, expected: float
) -> float:
    """The value of a subset under the objectives that compare samples by their features, pair by pair."""
    u = [max(0.0, float(np.mean(row, dtype=float))) for row in entries]
    norms = [math.sqrt(sum(float(x) ** 2 for x in row)) or 1.0 for row in features]
    n = len(entries)
    cosine = [
        [
            sum(float(x) * float(y) for x, y in zip(features[i], features[k], strict=True)) / norms[i] / norms[k]
            for k in range(n)
        ]
        for i in range(n)
    ]
    if name == "log-determinant":
        q = [math.sqrt(each / (sum(u) / n)) if sum(u) else 0.0 for each in u]
        kernel = np.array([[q[i] * q[k] * cosine[i][k] for k in subset] for i in subset]).reshape(len(subset), -1)
        return float(np.linalg.slogdet(np.eye(len(subset)) + kernel)[1])
    pairs = [(1 + cosine[i][k]) / 2 for i in range(n) for k in range(n)]
    weight = redundancy * (sum(u) / n) / (2 * expected * (sum(pairs) / n**2))
    return sum(u[i] for i in subset) - weight * sum((1 + cosine[i][k]) / 2 for i in subset for k in subset)
