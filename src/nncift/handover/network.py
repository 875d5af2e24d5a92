"""A run's InfluenceNetwork as a model of the hub: config.json, model.safetensors and the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from nncift.errors import RunError
from nncift.estimator.network import InfluenceNetwork
from nncift.features.sources import FeatureSources
from nncift.handover.provenance import Line, lines_of
from nncift.handover.public_names import public_name, without_paths
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.run.folder.folder import NETWORK_FILES
from nncift.run.markdown import escaped, table
from nncift.run.storage.files import read_json

_OF_DATA = ("budget", "objective", "certificate", "verified value", "arrangement", "other options")  # not the network's


def write_network(run: FinishedRun, folder: Path, repo: str, license: str | None = None) -> None:
    """Write the network; paths in its config become names.

    Args:
        run: the run.
        folder: a new folder.
        repo: the id on the hub, for the card.
        license: of the network.

    Raises:
        RunError: the run has no network of its own.
    """
    source = run.folder.network
    if not run.folder.is_fitted:
        raise RunError(
            f"{run.folder.path} has no network of its own", "its influence is exact, or another run's network's"
        )
    network = InfluenceNetwork.from_pretrained(source)  # validated, and its checksums
    config, weights = NETWORK_FILES
    stored = read_json(source / config)
    stored["description"] = without_paths(stored["description"])
    folder.mkdir(parents=True)
    (folder / config).write_text(json.dumps(stored, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    shutil.copyfile(source / weights, folder / weights)
    (folder / "README.md").write_text(_card(run, network, repo, license), encoding="utf-8")


def _card(run: FinishedRun, network: InfluenceNetwork, repo: str, license: str | None) -> str:
    described = network.description_
    sources = FeatureSources.described(described)
    model = public_name(sources.language_model) if sources.language_model else ""
    matter: dict[str, Any] = {"library_name": "nncift"}
    matter |= {} if license is None else {"license": license}
    matter |= {"base_model": model} if "/" in model else {}
    matter |= {"tags": ["nncift", "data-selection", "influence"]}
    lines = [("recipe", network.recipe), ("reads the features", _features(sources)), *_of_network(run)]
    parts = [
        f"# {escaped(repo.rpartition('/')[2])}",
        "An InfluenceNetwork of [nncift](https://arxiv.org/abs/2502.09969): it estimates from their features how much"
        " one instruction-tuning sample helps a language model on another.",
        table(("", ""), lines),
        "## How to use it",
        f"```console\nnncift select POOL --network {repo} --budget 0.1\n```",
        f'```python\nimport nncift\n\nnetwork = nncift.InfluenceNetwork.from_pretrained("{repo}")\n```',
        "It was fitted to the influence function, model and kind of data above; on other data its fidelity is unknown.",
        *_local(sources),
    ]
    return f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n\n" + "\n\n".join(parts) + "\n"


def _features(sources: FeatureSources) -> str:
    return ", ".join(f"{kind} ({public_name(source)})" for kind, source in sources.kinds.items())


def _of_network(run: FinishedRun) -> list[Line]:
    return [(title, text) for title, text in lines_of(run) if title not in _OF_DATA]


def _local(sources: FeatureSources) -> list[str]:
    """What is to be known where a model was a folder."""
    names = [public_name(name) for kind, name in sources.kinds.items() if kind != "own"]
    local = [name for name in names if "/" not in name and name != "embedded"]
    if not local:
        return []
    listed = ", ".join(escaped(name) for name in local)
    return [f"Its models were local folders, of which only the names are kept: {listed}. Have folders of these names."]
