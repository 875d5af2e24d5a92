"""What the trainers' own code makes of the files of `nncift export`: texts, and the tokens with a loss.

    nncift export RUN --format axolotl --output DATA
    PEER/bin/python benchmarks/trainer_formats.py axolotl DATA TOKENIZER

In an environment of the trainer: llamafactory==0.9.5, axolotl==0.19.0 or ms-swift==4.6.0. Needs no weights; TOKENIZER
is a folder or hub id, and is given a template that renders tools. docs/handover.md says what was checked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import yaml
from datasets import load_dataset
from transformers import AutoTokenizer

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function | tojson }}\n{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)


def llama_factory(folder: Path, tokenizer) -> list[tuple[list[int], list[int]]]:
    """Its parser, converter and processor, with the template qwen."""
    from llamafactory.data.converter import align_dataset
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
    from llamafactory.data.template import get_template_and_fix_tokenizer

    options = yaml.safe_load((folder / "train.yaml").read_text())
    [data] = get_dataset_list([options["dataset"]], str(folder))
    rows = load_dataset("json", data_files=str(folder / data.dataset_name), split="train")
    arguments = SimpleNamespace(
        streaming=False,
        preprocessing_num_workers=1,
        overwrite_cache=True,
        media_dir=".",
        mask_history=options["mask_history"],
        cutoff_len=4096,
        train_on_prompt=False,
        template="qwen",
        tool_format=None,
        default_system=None,
        enable_thinking=False,
        preserve_thinking=False,
    )
    aligned = align_dataset(rows, data, arguments, SimpleNamespace(local_process_index=0))
    template = get_template_and_fix_tokenizer(tokenizer, arguments)
    processor = SupervisedDatasetProcessor(template, tokenizer, None, arguments)
    made = processor.preprocess_dataset(aligned.to_dict())
    return list(zip(made["input_ids"], made["labels"], strict=True))


def axolotl(folder: Path, tokenizer) -> list[tuple[list[int], list[int]]]:
    """Its schema of a data set, and its strategy chat_template."""
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.datasets import SFTDataset

    options = DictDefault(yaml.safe_load((folder / "axolotl.yaml").read_text()) | {"sequence_len": 4096})
    data = dict(options.datasets[0])
    SFTDataset(**data)
    rows = load_dataset("json", data_files=str(folder / data["path"]), split="train")
    tokenizer.chat_template = TEMPLATE
    strategy = load(tokenizer, options, data)
    made = [strategy.tokenize_prompt(dict(row)) for row in rows]
    return [(row["input_ids"], row["labels"]) for row in made]


def ms_swift(folder: Path) -> None:
    """Its loader of data sets."""
    from swift.dataset import load_dataset as load

    for row in load(str(folder / "train.jsonl"))[0]:
        print(row["messages"], row.get("tools"))


def main() -> None:
    """Print the text of each row, and that of its tokens with a loss."""
    trainer, folder = sys.argv[1], Path(sys.argv[2])
    if trainer == "ms-swift":
        ms_swift(folder)
        return
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[3])
    read = {"llama-factory": llama_factory, "axolotl": axolotl}[trainer]
    for ids, labels in read(folder, tokenizer):
        print(repr(tokenizer.decode(ids)))
        print("  loss on", repr(tokenizer.decode([label for label in labels if label != -100])))


if __name__ == "__main__":
    main()
