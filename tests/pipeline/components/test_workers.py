"""Runs that compute elsewhere: the same bytes as in this process, whatever becomes of the workers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

import nncift
import worker_jobs
from builders import word_rows, write_rows
from nncift.errors import DependencyError, NNCIFTError
from nncift.pipeline.components.workers import described
from nncift.pipeline.configuration.configure import make_config
from nncift.run.executors.ray_cluster import RayExecutor

EXEMPT = {"run.log", "costs.json", "checksums.jsonl", "report.html", ".lock"}
SKETCH = {"influence": "worker_influence:DeadlySketch"}
ESTIMATE = {
    "influence": "worker_influence:DeadlyDelift",
    "labels": 120,
    "maximizer": "partitioned",
    "matrix": "streamed",
}
SMALL = {  # so that each stage has several parts
    "nncift.influence.gradient_sketch.SHARD": 8,
    "nncift.influence.gradient_sketch.WHITENING_TOKENS": 60,
    "nncift.features.base.SHARD": 16,
    "nncift.labels.collect.BLOCK_PAIRS": 8,
    "nncift.estimator.towers.CHUNK": 16,
    "nncift.estimator.towers._SPREAD": 1,
    "nncift.selection.maximizers.partitioned_greedy.PART": 20,
}


@pytest.fixture(scope="module")
def deaths(tmp_path_factory) -> Path:
    """A file here kills a worker, or a machine of the cluster."""
    folder = tmp_path_factory.mktemp("deaths")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(worker_jobs.DEATHS, str(folder))
        yield folder


@pytest.fixture(scope="module")
def cluster(deaths: Path):
    """Two machines of one CPU each; runs start on the first."""
    kind = pytest.importorskip("ray.cluster_utils").Cluster
    tests, shared = str(Path(worker_jobs.__file__).parent), {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
        for attempts_left in (2, 1, 0):  # Ray gives a machine 30 s to start, which is not enough on a busy one
            made = kind()
            try:
                made.add_node(include_dashboard=False, **shared)
                made.add_node(**shared)
                break
            except Exception:
                made.shutdown()
                if not attempts_left:
                    raise
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def options(tiny_model, small_encoder, tmp_path_factory) -> dict:
    pool = write_rows(tmp_path_factory.mktemp("files") / "pool.jsonl", word_rows(60))
    models = {"model": tiny_model, "encoder": small_encoder, "device": "cpu", "dtype": "float32"}
    return {"pool": pool, **models, "budget": 5}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """In this process as in the workers: with more of them products are summed in other parts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def small_parts():
    with pytest.MonkeyPatch.context() as patch:
        for name, size in SMALL.items():
            patch.setattr(name, size)
        yield


@pytest.fixture
def sent(monkeypatch) -> list[str]:
    """The parts that went to Ray, by name."""
    names, compute = list[str](), RayExecutor.map

    def map_parts(self, job, parts):
        def named():
            for part in parts:
                names.append(str(part))
                yield part

        return compute(self, job, named())

    monkeypatch.setattr(RayExecutor, "map", map_parts)
    return names


def state(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    stages = json.loads((folder / "costs.json").read_text())["stages"]
    tokens = {name: cost["forward_tokens"] for name, cost in stages.items()}
    assert tokens["influence" if "influence" in tokens else "labels"]
    files = {name: path.read_bytes() for name, path in found.items() if path.name not in EXEMPT}
    summary = json.loads(files["summary.json"])
    (summary["exact_all_pairs"] or {}).pop("seconds", None)  # as measured
    return files | {"tokens": json.dumps(tokens).encode(), "summary.json": json.dumps(summary).encode()}


@pytest.fixture(scope="module")
def local(options, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("local") / "run"
    nncift.select(**options, **SKETCH, output=folder)
    return state(folder)


def test_processes_give_the_same_bytes_though_one_is_killed(options, local, deaths, tmp_path: Path):
    (deaths / "worker").touch()
    nncift.select(**options, **SKETCH, output=tmp_path / "run", workers=2, cpus_per_worker=1)
    assert not [*deaths.iterdir()]
    assert state(tmp_path / "run") == local


def test_all_that_travels_to_ray_while_a_worker_and_a_machine_die_amid_labels(
    options, cluster, deaths, sent, tmp_path: Path
):
    nncift.select(**options, **ESTIMATE, output=tmp_path / "local")
    assert not sent
    (deaths / "worker").touch()
    (deaths / next(iter(cluster.worker_nodes)).node_id).touch()
    nncift.select(**options, **ESTIMATE, output=tmp_path / "run", ray_address=cluster.address)
    assert not [*deaths.iterdir()]
    assert state(tmp_path / "run") == state(tmp_path / "local")
    for stage in ("features/pool", "labels/block", "of the estimate", "of the choice"):
        assert sum(stage in name for name in sent) > 1, (stage, sent)


def test_refusals(options, monkeypatch, tmp_path: Path):
    for given, message in (
        ({"ray_address": "localhost:1"}, r"no Ray cluster answers at localhost:1 \(.*\): check that address"),
        ({"ray_address": "nowhere"}, "`ray_address` 'nowhere' is not an address"),
        ({"workers": 2, "executor": "local"}, "`workers` is for other processes, and `executor` is local"),
        ({"gpus_per_worker": 1, "executor": "processes"}, "`gpus_per_worker` is for `executor` ray, not processes"),
        ({"executor": "processes"}, "starts one per GPU, and there is none here"),
        ({"workers": 0}, "`workers` is 0: give a number of at least 1"),
    ):
        with pytest.raises(NNCIFTError, match=message):
            nncift.select(**options, output=tmp_path / "run", **given)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match=r"`executor` ray needs Ray: pip install 'nncift\[ray\]'"):
        nncift.select(**options, output=tmp_path / "run", executor="ray")


def test_where_a_run_computes_is_not_part_of_it(options):
    config = make_config(**options, ray_address="head:6379", workers=4)
    assert config.identity() == make_config(**options).identity()
    assert described(config) == "4 workers on the Ray cluster head:6379"
    assert described(make_config(**options, workers=3)) == "3 processes on this machine"
