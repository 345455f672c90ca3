"""Several processes on the loopback train as one process does on the joint batch."""

import cells
import pytest
import ranks
import torch


@pytest.fixture(scope="module", params=[2, 3])
def processes(request):
    return cells.started(request.param)


@pytest.mark.parametrize("engine", ranks.ENGINES)
@pytest.mark.parametrize("name", ranks.ESTIMATORS)
def test_parameters_risks_and_tables_equal_one_process(processes, engine, name):
    alone = ranks.run(name, lambda model: model)
    for found in processes:
        for joint, single in zip(found[engine, name], alone, strict=True):
            torch.testing.assert_close(joint, single, rtol=1e-12, atol=1e-12, equal_nan=True)
    first, *others = (found[engine, name] for found in processes)
    for other in others:  # bit for bit: a difference would grow
        assert all(
            torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, other, strict=True)
        )


def test_ranks_deal_the_rows_out(processes):
    first, second = zip(*(found["rows"] for found in processes), strict=True)
    assert sum(first) == 3 * len(ranks.SHORT[:20].unique())
    assert max(first) - min(first) <= 3
    assert second == (3,) * len(processes)


def test_the_separate_clip_is_that_of_one_process(processes):
    for found in processes:
        _, norms, grads = found["clipped alone"]
        for engine in ranks.ENGINES:
            refused, joint_norms, joint_grads = found["clipped"][engine]
            torch.testing.assert_close(joint_norms, norms, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(joint_grads, grads, rtol=1e-12, atol=1e-12)
            assert ("add_clipped twice" in refused) == (engine == "fsdp2")


def test_a_sequential_term_does_not_run_the_wrapper(processes):
    _, alone = ranks.sequential(lambda model: model, None)
    for found in processes:
        refused, grads = found["sequential"]
        assert "DistributedDataParallel" in refused and ".module" in refused
        torch.testing.assert_close(grads, alone, rtol=1e-12, atol=1e-12)
        assert "FSDPModule" in found["sequential, shards"]


def test_contexts_of_each_rank_stay_its_own(processes):
    assert all(found["inside"] for found in processes)
