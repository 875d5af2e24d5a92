"""`nncift compare --study`: the paper's studies on a pool's exact influence; every fitted network is a file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nncift.evaluation.studies import Exact, Point, measure, points, summarise
from nncift.features.sources import FeatureSources
from nncift.pipeline.choosing.choose import objective_of
from nncift.pipeline.components.influences import learned_features
from nncift.pipeline.inputs.featurize import featurize
from nncift.proof.folder import share
from nncift.proof.inputs.inputs import Inputs
from nncift.proof.runs import opened
from nncift.proof.trials.selectors import Selector, as_file_name, exact_influence
from nncift.run.progress import already, drawn
from nncift.run.storage.files import read_json, write_json


def study(inputs: Inputs) -> list[dict[str, Any]]:
    """The records of every study of every influence function, ready for JSON: as `summarise`, with "influence"."""
    found = []
    for name in inputs.influences:
        exact = _exact(inputs, name)
        seeds = range(inputs.base.seed, inputs.base.seed + inputs.proof.seeds)
        every = [point for one in inputs.proof.studies for point in points(one, seeds)]
        folder = inputs.folder.studies / as_file_name(name)
        paths = {point: folder / f"{point.slug}.json" for point in every}
        with tqdm(total=len(every), desc=f"studies of {name}", unit=" networks", **drawn(inputs.progress)) as bar:
            already(bar, sum(path.exists() for path in paths.values()))
            share({path: partial(_measure, point, exact, path, bar) for point, path in paths.items()})
        records = summarise({point: read_json(path)["records"] for point, path in paths.items()})
        found += [{"influence": name, "pointwise": exact.pointwise} | record for record in records]
    return found


def _measure(point: Point, exact: Exact, path: Path, bar: tqdm) -> None:
    write_json(path, {"records": measure(point, exact)})
    bar.update()


def _exact(inputs: Inputs, name: str) -> Exact:
    """The exact influence of a function, which the choices by it share, with the features of its network."""
    selector = Selector("exact", name)
    config = inputs.config(selector)
    folder = inputs.folder.exact / selector.slug
    with opened(inputs, config) as run:
        if run.is_exact:  # a run reads no features then, and a study does
            names = inputs.base.feature_names or learned_features(config, run.function)
            run.features = FeatureSources.named(names, encoder=run.encoder.name, model=config.models[0])
        featurize(run)
        influence, known, _ = exact_influence(run, folder)
    pointwise = run.function.traits.pointwise
    return Exact(
        influence[:, :1] if pointwise else influence,
        run.pool.features,
        run.target.features,
        lambda matrix, size: objective_of(run, matrix, float(size), known=known),
        own_target=run.own_target,
        pointwise=pointwise,
    )
