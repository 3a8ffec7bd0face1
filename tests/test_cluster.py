"""Sweeps on Ray: a cluster of two nodes, one of which dies, and addresses and options that are wrong."""

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sweep_runs import Inline, command, environment, results, tiny_grid

from mtanytime.__main__ import main
from mtanytime.experiments import cluster
from mtanytime.experiments.sweep import sweep

# A node that refuses connections is dead after a second and a half; a slow one, on a busy machine, is not.
QUICK = {"health_check_period_ms": 500, "health_check_timeout_ms": 10_000, "health_check_failure_threshold": 3}


@contextmanager
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster on this machine: a head and a node with one processor each."""
    for name, value in {**cluster.ENVIRONMENT, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": QUICK}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes.add_node(num_cpus=1)
        yield nodes
    finally:
        nodes.shutdown()


def test_a_node_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Its cells are run again on the other node, and the table is that of an uninterrupted sweep on one machine."""
    grid, out = tiny_grid(), tmp_path / "cluster"
    assert len(grid.cells) == 12
    with two_nodes(monkeypatch) as nodes:
        started, killed = time.monotonic(), None
        words = command(grid, out, "--on", nodes.address)
        with subprocess.Popen(words, env=environment(), text=True, stdout=subprocess.PIPE) as process:
            while process.poll() is None and killed is None:
                time.sleep(0.02)
                done, begun = (len(list(out.glob(f"*seed*/{name}"))) for name in ("result.json", "log.txt"))
                if done >= 3 and begun >= done + 2:  # a cell runs on each node
                    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
                    killed = len(list(out.glob("*seed*/result.json")))
            printed, _ = process.communicate(timeout=300)
        seconds = time.monotonic() - started
    assert process.returncode == 0
    assert killed < 11  # in the middle
    assert "raylet" not in printed  # Ray's own messages
    sweep(grid, tmp_path / "here", Inline(), progress=False)
    assert results(out) == results(tmp_path / "here")
    attempts = [len(re.findall(r"on .*, process \d+", log.read_text())) for log in out.glob("*seed*/log.txt")]
    print(f"{seconds:.1f} s; killed after {killed} cells; attempts {sum(attempts)}")
    assert sum(attempts) >= 12


def test_an_address_that_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that is not there, or a server of another kind, is one line of error before anything is written."""
    monkeypatch.setattr(cluster, "ANSWER_WITHIN", 2.0)  # shorter, for the test
    with socket.create_server(("127.0.0.1", 0)) as server:
        busy = server.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as other:
            free = other.getsockname()[1]
        for port, reason in ((free, "Connection refused"), (busy, "no answer in 2 s")):
            options = ["smoke", "--out", str(tmp_path / "sweep"), "--on", f"127.0.0.1:{port}"]
            assert main(["sweep", *options]) == 1
            error = capsys.readouterr().err
            assert error.startswith("error: --on: expected the address of a running Ray cluster, got 127.0.0.1:")
            assert reason in error
            assert len(error.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


def test_without_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The base install has no Ray; the error says how to get it."""
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    assert main(["sweep", "smoke", "--out", str(tmp_path / "sweep"), "--on", "ray"]) == 1
    assert "--on: expected Ray, which is not installed; pip install 'mtanytime[cluster]'" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_more_than_a_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that no machine can run would wait for ever; machines that died do not count."""
    machines = [(True, {"CPU": 4.0}), (True, {"CPU": 2.0, "GPU": 1.0}), (False, {"CPU": 64.0, "GPU": 8.0})]
    left = []
    ray = SimpleNamespace(
        init=lambda *address, **options: None,
        nodes=lambda: [{"Alive": alive, "Resources": resources} for alive, resources in machines],
        shutdown=lambda: left.append(True),
    )
    monkeypatch.setattr(cluster, "_import_ray", lambda: ray)
    with pytest.raises(ValueError, match="--gpus: expected at most 1, the GPUs of a machine of the cluster, got 2"):
        cluster.Cluster("ray", gpus=2.0)
    with pytest.raises(ValueError, match="--cpus: expected at most 4, the CPUs of a machine of the cluster, got 8"):
        cluster.Cluster("ray", cpus=8)
    assert left == [True, True]
