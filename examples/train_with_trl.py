"""Train on a choice with trl: a LoRA adapter by SFTTrainer, with the loss on the responses.

    python examples/train_with_trl.py
    python examples/train_with_trl.py --pool alpaca.jsonl --budget 0.1 --model org/model --epochs 3

`nncift evaluate RUN --test FILE` does this with several seeds and tests the result; this is for a training of your own.
Needs `pip install 'nncift[proof]'` for trl.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import nncift

DATA = Path(__file__).parent / "data"


def main(arguments: list[str] | None = None) -> None:
    """Choose, train, and save the adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default=str(DATA / "pool.jsonl"))
    parser.add_argument("--budget", default="8")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("runs/trl"))
    given = parser.parse_args(arguments)

    selection = nncift.select(given.pool, budget=given.budget, model=given.model, output=str(given.output / "run"))
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(given.model),
        train_dataset=selection.sft_dataset(),  # conversations: the loss is on the completion, with any chat template
        processing_class=AutoTokenizer.from_pretrained(given.model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        args=SFTConfig(
            output_dir=str(given.output / "trainer"),
            num_train_epochs=given.epochs,
            per_device_train_batch_size=4,
            learning_rate=2e-4,
            warmup_steps=0.03,  # a fraction of all steps
            max_length=1024,
            bf16=torch.cuda.is_available(),  # trl's default, which transformers refuses on a CPU
            save_strategy="no",
            report_to="none",
        ),
    )
    trained = trainer.train()
    trainer.save_model(str(given.output / "adapter"))
    print(f"loss {trained.training_loss:.3f} over {len(selection)} rows: {given.output / 'adapter'}")


if __name__ == "__main__":
    main()
