"""dattri-llm's projected gradients of each sample, as its attributors stream them, by one of two projections.

`logra` projects each adapter factor's gradient from both sides to 16 x 16. `less` passes it through Adam first and
projects it by a dense matrix, which needs the whole gradient of a factor; as many numbers for each as make up the
asked dimension together. Its layers are hooked in the way that skips the batch's own weight gradients, the fastest it
has.
"""

from __future__ import annotations

import torch
from dattri_llm import AttributionArguments, HookManagerConfig
from dattri_llm.gradient.streaming import GradientStreamer

from job import Job, adapted_model, best_batch_size, padded, read_job, report, summed_loss, timed

SIDE = 16  # of the projection of each matrix
SIZES = {"logra": (1, 2, 4), "less": (4, 8)}  # a batch costs `less` seconds of its own; 8 was slower for `logra`


def adam(model: torch.nn.Module) -> torch.optim.Optimizer:
    """An optimiser late in training: first moments 0, second moments 1e-6."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    for weight in weights:
        optimizer.state[weight] = {
            "step": torch.tensor(10_000.0),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.full_like(weight, 1e-6),
        }
    return optimizer


def main(job: Job) -> None:
    """Measure and print."""
    model = adapted_model(job)
    factors = sum(".lora_" in name for name, weight in model.named_parameters() if weight.requires_grad)
    less = job.method == "less"
    width = job.dimension // factors if less else SIDE
    projection = {"style": "dense" if less else "logra", "proj_dim": width, "proj_max_batch_size": 32}
    config = HookManagerConfig(
        invasive_linear_io=[r"\.lora_[AB]\.\w+$"],
        capture_style="materialized",
        projection_kwargs={"__default__": {**projection, "proj_type": "rademacher"}},
    )
    arguments = AttributionArguments(output_dir=str(job.folder / "dattri"), use_cpu=True, dataloader_pin_memory=False)
    shared = {
        "loss_fn": summed_loss,
        "collate_fn": padded,
        "precondition": less,
        "optimizer": adam(model) if less else None,
    }

    with GradientStreamer(model, job.rows, arguments, batch_size=1, config=config, **shared) as owner:

        def features(numbers: list[int], size: int) -> torch.Tensor:
            rows, hooks = [job.rows[k] for k in numbers], owner.hook_manager
            with GradientStreamer(model, rows, arguments, batch_size=size, hook_manager=hooks, **shared) as source:
                blocks = [list(gradient.data.values()) for _, gradient, _ in source]
            return torch.cat([torch.cat([part.flatten(1) for part in block], dim=1) for block in blocks])

        size = best_batch_size(job, SIZES[job.method], features)
        seconds, found = timed(lambda: features(list(range(len(job.rows))), size))
    shape = f"Adam, dense to {width}" if less else f"{SIDE} x {SIDE}"
    what = f"{shape} of each factor, {found.shape[1]:,} numbers; {size} at a time"
    report(job, what, seconds, found.square().sum(1), ["dattri-llm", "dattri"])


if __name__ == "__main__":
    main(read_job(("logra", "less")))
