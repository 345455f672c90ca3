"""Units on a cluster: results as ever, and a worker that is lost loses one unit."""

import concurrent.futures
import os
import signal
import threading
import time

import pytest

from imm_lib import experiments, results
from imm_lib.__main__ import main

NAME = "logistic-fixed"


def numbers(file):
    return [
        (entry["unit"], entry["numbers"]) for entry in results.load(file.stem, file.parent)["units"]
    ]


def test_any_executor_serves(tmp_path):
    experiment = experiments.find(NAME)
    alone = experiments.run(experiment, "ci", where=tmp_path / "alone")
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        other = experiments.run(experiment, "ci", where=tmp_path / "other", executor=executor)
    assert numbers(other) == numbers(alone)


def test_a_cluster_of_two_one_of_which_is_killed(tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    experiment = experiments.find(NAME)
    alone = experiments.run(experiment, "ci", where=tmp_path / "alone")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        workers = client.run(os.getpid)
        killed = []

        def kill_one_at_work():
            while not killed:
                busy = [address for address, keys in client.processing().items() if keys]
                if busy:
                    os.kill(workers[busy[0]], signal.SIGKILL)
                    killed.append(busy[0])
                time.sleep(0.02)

        thread = threading.Thread(target=kill_one_at_work)
        thread.start()
        words = ["run", NAME, "--scale", "ci", "--out", str(tmp_path / "there")]
        assert main([*words, "--cluster", cluster.scheduler_address]) == 0
        thread.join()
    file = tmp_path / "there" / alone.name
    assert numbers(file) == numbers(alone) and killed
    assert "--cluster" not in results.load(file.stem, file.parent)["command"]


def test_an_address_where_nothing_answers(tmp_path, capsys):
    pytest.importorskip("distributed")
    words = ["run", NAME, "--scale", "ci", "--out", str(tmp_path), "--cluster"]
    assert main([*words, "nowhere"]) == 2
    assert "--cluster must be the address of a scheduler" in capsys.readouterr().err
    assert main([*words, "tcp://127.0.0.1:1", "--jobs", "2"]) == 2
    assert "give one of them" in capsys.readouterr().err
