"""kronfluence's self-influence without preconditioning: the squared norm of each sample's gradient, nothing kept.

It has no projection and hands out no gradients; this is the least that it computes from the gradient of every single
sample (identity strategy, no factors to fit).
"""

from __future__ import annotations

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs

from job import Job, adapted_model, best_batch_size, padded, read_job, report, summed_loss, timed

SIZES = (1, 2, 4)  # 8 was slower on the CPUs tried


class ResponseLoss(Task):
    """The samples' response losses, and the adapter's two factors as the layers to follow."""

    def __init__(self, layers: list[str]) -> None:
        self.layers = layers

    def compute_train_loss(self, batch, model, sample=False) -> torch.Tensor:
        """The loss whose gradients are taken."""
        return summed_loss(model, batch)

    def compute_measurement(self, batch, model) -> torch.Tensor:
        """The same; not used here."""
        return summed_loss(model, batch)

    def get_influence_tracked_modules(self) -> list[str]:
        """The adapter's layers."""
        return self.layers


def main(job: Job) -> None:
    """Measure and print."""
    model = adapted_model(job)
    layers = [name.removesuffix(".weight") for name, _ in model.named_parameters() if ".lora_" in name]
    task = ResponseLoss(layers)
    analyzer = Analyzer(
        analysis_name="peers",
        model=prepare_model(model, task),
        task=task,
        cpu=True,
        disable_tqdm=True,
        output_dir=str(job.folder / "kronfluence"),
    )
    analyzer.fit_all_factors("none", job.rows, factor_args=FactorArguments(strategy="identity"))

    def scores(numbers: list[int], size: int) -> torch.Tensor:
        analyzer.compute_self_scores(
            scores_name="own",
            factors_name="none",
            train_dataset=[job.rows[k] for k in numbers],
            per_device_train_batch_size=size,
            dataloader_kwargs=DataLoaderKwargs(collate_fn=padded),
            overwrite_output_dir=True,
        )
        return analyzer.load_self_scores("own")["all_modules"]

    size = best_batch_size(job, SIZES, scores)
    seconds, found = timed(lambda: scores(list(range(len(job.rows))), size))
    what = f"squared norm, no projection, nothing kept; {size} at a time"
    report(job, what, seconds, found, ["kronfluence"])


if __name__ == "__main__":
    main(read_job(("self",)))
