"""nncift's projected gradients of each sample: one backward pass per batch, streamed into a sign sketch."""

from __future__ import annotations

import torch

from job import Job, best_batch_size, read_job, report, timed
from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import Example
from nncift.training.gradients import Adam, batched_features
from nncift.training.lora import adapted, adapter_layers, adapter_weights
from nncift.training.random_projection import SignSketch

SIZES = {"cpu": (16,), "cuda": (16, 64, 256)}  # on a CPU the default of batched_features alone


def main(job: Job) -> None:
    """Measure and print."""
    model = LanguageModel.load(job.model, device=job.device)
    examples = [
        Example.single(str(k), row["input_ids"], sum(label == -100 for label in row["labels"]))
        for k, row in enumerate(job.rows)
    ]
    with adapted(model, job.adapter):
        layers = adapter_layers(model)
        shapes = {name: tuple(weight.shape) for name, weight in adapter_weights(model).items()}
        sketch = SignSketch(shapes, job.dimension, device=model.device)
        moments = {name: (torch.zeros(shape), torch.full(shape, 1e-6)) for name, shape in shapes.items()}
        change = Adam(moments, sketch.widths, device=model.device).update if job.method == "adam" else None

        def features(numbers: list[int], size: int):
            return batched_features(model, [examples[k] for k in numbers], layers, sketch, change, batch_size=size)

        size = best_batch_size(job, SIZES[job.device], features)
        seconds, found = timed(lambda: features(list(range(len(examples))), size))
    what = f"{'Adam, ' if change else ''}sign sketch to {job.dimension:,}; at most {size} at a time"
    report(job, what, seconds, torch.from_numpy(found).square().sum(1), ["peft"])


if __name__ == "__main__":
    main(read_job(("plain", "adam")))
