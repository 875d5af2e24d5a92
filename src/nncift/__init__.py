"""nncift: find the small subset of instruction-tuning data worth fine-tuning a language model on.

    import nncift

    selection = nncift.select("alpaca.jsonl", budget=0.1, output="runs/alpaca")
    selection.dataset  # the chosen rows
    selection.sft_dataset()  # the same for trl.SFTTrainer

`__init__.pyi` lists the public names; each is imported on first use, so importing the package is instant.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
