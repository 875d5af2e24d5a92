"""The model card of an adapter that `finetune` trained: what the hub shows, and what reproduces the training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nncift.models.loading import QUANTISED
from nncift.models.spec import DEFAULT_MODEL, ModelSpec

_CARD = """\
---
{metadata}library_name: peft
pipeline_tag: text-generation
tags:
- lora
- sft
- trl
- nncift
---

# LoRA adapter of {model}

Trained with trl's SFTTrainer on {rows} samples ({tokens} tokens, {response_tokens} of them in responses), with the loss
on the responses{form}. nncift evaluates a choice of training data with it.

| setting | value |
|---|---|
{settings}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {base}
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "this folder")
```

With [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness), here on GSM8K:

```console
lm_eval run --model hf --model_args pretrained={pretrained},peft=THIS-FOLDER,dtype={dtype} --tasks gsm8k{template}
```
"""


def base_name(model: ModelSpec) -> str:
    """The base model as others can find it: its hub id, or the last part of a local folder's path."""
    if model.name == "embedded":
        return DEFAULT_MODEL
    return Path(model.name).resolve().name if Path(model.name).exists() else model.name


def model_card(record: Mapping[str, Any]) -> str:
    """The text of README.md.

    Args:
        record: the content of `training.json`.
    """
    model, on_hub = record["model"], "/" in record["model"]
    metadata = f"base_model: {json.dumps(model)}\n" if on_hub else ""  # the hub checks it
    form = ", each sample in the chat template" if record["wording"] == "chat" else ""
    if record["weighted"]:
        form += ", weighted by sample"
    facts = {"steps": record["steps"], "dtype": record["dtype"], "phases": len(record["phases"]), **record["settings"]}
    settings = "\n".join(f"| {name} | {_shown(value)} |" for name, value in facts.items() if value is not None)
    numbers = {name: f"{record[name]:,}" for name in ("rows", "tokens", "response_tokens")}
    places = {
        "base": repr(model) if on_hub else '"..."  # the folder of the base model',
        "pretrained": model if on_hub else "FOLDER-OF-THE-BASE-MODEL",
        "dtype": "bfloat16" if record["dtype"] in QUANTISED else record["dtype"],
        "template": " --apply_chat_template" if record["wording"] == "chat" else "",
    }
    return _CARD.format(metadata=metadata, model=model, form=form, settings=settings, **numbers, **places)


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
