"""bergson's gradient index: what `bergson build --projection_dim 16` does once the model is loaded.

Each adapter factor's gradient is projected from both sides to 16 x 16, and all are written to the index on disk. The
functions are those that the command's worker calls, in its order; calling them here keeps the model's loading out of
the time. bergson sorts by length itself and cuts batches by a budget of padded tokens, no less than the longest sample;
that budget is the batch size here. Its own search takes the largest that fits into memory, which
was the slowest on the CPUs tried.
"""

from __future__ import annotations

import numpy as np
import torch
from bergson.collection import collect_gradients
from bergson.config.config import DataConfig, IndexConfig, PreprocessConfig
from bergson.data import allocate_batches, load_gradients
from bergson.utils.worker_utils import create_processor, setup_data_pipeline, setup_model_and_peft

from job import Job, best_batch_size, read_job, report, timed

SIDE = 16  # of the projection of each matrix
BUDGETS = {"cpu": (512, 1024, 2048), "cuda": (2048, 8192, 32768)}  # 2048 is bergson's default


def main(job: Job) -> None:
    """Measure and print."""
    config = IndexConfig(
        run_path=str(job.folder / "bergson"),
        model=str(job.adapter),
        tokenizer=job.model,
        precision="fp32",
        data=DataConfig(dataset=str(job.folder / "samples.jsonl")),
        projection_dim=SIDE,
        loss_reduction="mean",
    )
    config.partial_run_path.mkdir(parents=True)
    data, _ = setup_data_pipeline(config)
    model, targets = setup_model_and_peft(config)
    processor = create_processor(model, config, targets)

    def build(numbers: list[int], size: int) -> None:
        some = data.select(numbers)
        lengths = some["length"][:]
        collect_gradients(
            model=model,
            data=some,
            processor=processor,
            cfg=config,
            batches=allocate_batches(lengths, max(size, *lengths)),
            target_modules=targets,
            preprocess_cfg=PreprocessConfig(),
        )

    size = best_batch_size(job, BUDGETS[job.device], build)
    seconds, _ = timed(lambda: build(list(range(len(data))), size))
    found = np.asarray(load_gradients(config.partial_run_path))
    what = f"{SIDE} x {SIDE} of each factor, {found.shape[1]:,} numbers on disk; {size} tokens at a time"
    report(job, what, seconds, torch.from_numpy(found.astype(np.float64)).square().sum(1), ["bergson"])


if __name__ == "__main__":
    main(read_job(("build",)))
