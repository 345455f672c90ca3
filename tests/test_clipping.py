"""Separate clipping through ``backward``: hooks, tied and sparse weights, checkpoints, scaled
losses and several processes.
"""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import imm_lib as imm
from imm_lib.clipping import add_clipped

DATA = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def losses(net, data=DATA):
    answer = net(data)
    return 5 * answer[:, 0].square().mean(), 3 * answer[:, 1].square().mean()


def by_hand(net, make, limits, lam):
    """clip + λ clip, gradients by autograd.grad."""
    parameters, norms, total = list(net.parameters()), [], None
    for which, weight in ((0, 1.0), (1, lam)):
        grads = torch.autograd.grad(make(net)[which], parameters)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        part = [weight * min(1.0, limits[which] / norm.item()) * g for g in grads]
        total = part if total is None else [a + b for a, b in zip(total, part, strict=True)]
        norms.append(norm)
    return norms, total


def check(net, expected, tolerance=1e-5):
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=tolerance, atol=1e-7)


def test_hooks_run_with_each_gradient():
    net, seen = network(), []
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    _, expected = by_hand(net, losses, (0.1, 0.2), 0.5)
    imm.clipped_backward(*losses(net), net.parameters(), 0.5, 0.1, 0.2)
    check(net, expected)
    # each parameter's gradient of each loss alone, unclipped
    assert len(seen) == 8
    for which in (0, 1):
        grads = torch.autograd.grad(losses(net)[which], list(net.parameters()))
        for gradient in grads:
            assert any(
                torch.allclose(gradient, came, atol=1e-6)
                for came in seen
                if came.shape == gradient.shape
            )


def test_what_was_in_grad_stays_and_is_added_to():
    net = network()
    held = [torch.full_like(p, 2.0) for p in net.parameters()]
    for parameter, before in zip(net.parameters(), held, strict=True):
        parameter.grad = before
    _, expected = by_hand(net, losses, (0.1, 0.2), 0.5)
    imm.clipped_backward(*losses(net), net.parameters(), 0.5, 0.1, 0.2)
    check(net, [a + 2 for a in expected])
    assert all((before == 2).all() for before in held)


def test_a_weight_listed_twice_counts_once():
    net = network()
    norms, expected = by_hand(net, losses, (0.1, 0.2), 0.5)
    twice = [*net.parameters(), *net.parameters()]
    torch.testing.assert_close(
        list(imm.clipped_backward(*losses(net), twice, 0.5, 0.1, 0.2)), norms
    )
    check(net, expected)


def test_tied_weights():
    table, word = nn.Embedding(6, 4), torch.tensor([0, 1, 5])

    def tied(_):
        answer = (table(word) @ table.weight.T).log_softmax(-1)
        return -answer[:, 0].mean(), -answer[:, 1].mean()

    norms, expected = by_hand(table, tied, (0.1, 100.0), 2.0)
    weights = [table.weight, table.weight]
    found = imm.clipped_backward(*tied(None), weights, 2.0, 0.1, 100.0)
    torch.testing.assert_close(list(found), norms)
    check(table, expected)


@pytest.mark.parametrize("before", [None, "dense", "sparse"])
def test_sparse_gradients(before):
    """Words that occur twice in a batch are in a sparse gradient twice."""
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table, head = nn.Embedding(6, 4, sparse=sparse), nn.Linear(4, 2)
        parameters = [*table.parameters(), *head.parameters()]
        if before:
            full = torch.ones(6, 4)
            table.weight.grad = full.to_sparse(1) if sparse and before == "sparse" else full.clone()
        answer = head(table(torch.tensor([0, 1, 1, 1, 5])))
        norms = imm.clipped_backward(
            answer[:, 0].square().mean(), answer[:, 1].square().mean(), parameters, 0.5, 0.01, 0.02
        )
        found.append([*norms, *(p.grad.to_dense() for p in parameters)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant):
    net = network()
    inputs = DATA.clone().requires_grad_()

    def make(net):
        answer = checkpoint(net, inputs, use_reentrant=reentrant)
        return 5 * answer[:, 0].square().mean(), 3 * answer[:, 1].square().mean()

    norms, expected = by_hand(net, losses, (0.1, 0.2), 0.5)
    found = imm.clipped_backward(*make(net), net.parameters(), 0.5, 0.1, 0.2)
    torch.testing.assert_close(list(found), norms)
    check(net, expected)


def test_other_leaves_are_left_alone():
    net, inputs = network(), DATA.clone().requires_grad_()
    head = list(net[2].parameters())
    net[0].weight.grad = torch.full_like(net[0].weight, 7.0)
    imm.clipped_backward(*losses(net, inputs), head, 0.5, 0.1, 0.2)
    assert all(p.grad is not None for p in head)
    assert net[0].bias.grad is None and inputs.grad is None
    assert (net[0].weight.grad == 7).all()


def test_a_parameter_of_one_loss_only():
    net, extra = network(), nn.Parameter(torch.tensor(2.0))
    first, second = losses(net)
    norms = imm.clipped_backward(first, second * extra, [*net.parameters(), extra], 0.5, 1e9)
    assert extra.grad.item() == pytest.approx(0.5 * second.item())
    assert norms[0] > 0
    alone = nn.Parameter(torch.tensor(1.0))
    imm.clipped_backward(first.detach() * extra, second.detach() * extra, [extra, alone])
    assert alone.grad is None


@pytest.mark.parametrize("which", [0, 1])
def test_an_error_puts_gradients_back(which):
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, upstream):
            raise ValueError("as it happens")

    net = network()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    pair = list(losses(net))
    pair[which] = Fails.apply(pair[which])
    with pytest.raises(ValueError, match="as it happens"):
        imm.clipped_backward(*pair, net.parameters())
    assert all((p.grad == 3).all() for p in net.parameters())


def test_scaled_losses():
    """The step of a scaler is the step without it; norms and limits are those of the losses."""
    steps = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        net = network()
        optimiser = torch.optim.SGD(net.parameters(), 0.1)
        norms = imm.clipped_backward(*losses(net), net.parameters(), 0.5, 0.1, 0.2, scaler=scaler)
        if scaler is None:
            optimiser.step()
        else:
            scaler.step(optimiser)
            scaler.update()
        steps.append([*norms, *net.parameters()])
    torch.testing.assert_close(*steps)


def test_a_scaler_skips_a_step_of_infinite_gradients():
    net, scaler = network(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimiser, before = (
        torch.optim.SGD(net.parameters(), 0.1),
        [p.clone() for p in net.parameters()],
    )
    first, second = losses(net)
    imm.clipped_backward(first * math.inf, second, net.parameters(), scaler=scaler)
    scaler.step(optimiser)
    scaler.update()
    torch.testing.assert_close(list(net.parameters()), before)
    assert scaler.get_scale() == 512
    with pytest.raises(TypeError, match=r"scaler must be .*GradScaler.*got 3"):
        imm.clipped_backward(*losses(net), net.parameters(), scaler=3)


def test_a_sum_of_terms_may_be_clipped_in_nests():
    net = network()
    first, second = losses(net)
    sizes = []

    def both():
        sizes.append(add_clipped(partial(first.backward, retain_graph=True), net.parameters()))
        sizes.append(add_clipped(second.backward, net.parameters(), weight=0.3))

    norm = add_clipped(both, net.parameters(), 0.05)
    grads = torch.autograd.grad(losses(net)[0] + 0.3 * losses(net)[1], list(net.parameters()))
    whole = torch.cat([g.flatten() for g in grads]).norm()
    torch.testing.assert_close(norm, whole)
    check(net, [g * 0.05 / whole for g in grads], 1e-4)
    assert sizes[1].item() > 0


# several processes


def half(rank):
    return DATA[4 * rank : 4 * rank + 4]


def in_a_process(rank, folder, wrap):
    """One of two, each with half of the data."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    net = network()
    model = DistributedDataParallel(net, gradient_as_bucket_view=wrap == "view") if wrap else net
    for _ in range(2):  # the second adds to the first
        norms = imm.clipped_backward(*losses(model, half(rank)), net.parameters(), 0.5, 0.1, 0.2)
    torch.save([*norms, *(p.grad for p in net.parameters())], f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("wrap", ["ddp", "view", ""])
def test_processes_clip_the_gradient_of_the_joint_batch(tmp_path, wrap):
    torch.multiprocessing.spawn(in_a_process, (str(tmp_path), wrap), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    net = network()
    norms, expected = by_hand(net, losses, (0.1, 0.2), 0.5)
    torch.testing.assert_close(one, [*norms, *(2 * g for g in expected)], rtol=1e-4, atol=1e-6)


def test_gradients_are_means_over_the_ranks(one_rank, monkeypatch):
    """Two ranks of equal gradients, by a sum that counts this one twice."""
    from imm_lib import clipping

    alone = clipping.dist.all_reduce

    def twice(value, op=clipping.dist.ReduceOp.SUM, group=None):
        alone(value, op, group)
        if op == clipping.dist.ReduceOp.SUM:
            value.mul_(2)

    monkeypatch.setattr(clipping.dist, "all_reduce", twice)
    monkeypatch.setattr(clipping.dist, "get_world_size", lambda group=None: 2)
    net, other = network(), network()
    unused = torch.zeros(2, requires_grad=True)
    sparse = nn.Embedding(4, 2, sparse=True)
    parameters = [*net.parameters(), unused, sparse.weight]

    def backward():
        (losses(net)[0] + sparse(torch.tensor([1, 1])).sum()).backward()

    norm = add_clipped(backward, parameters, 0.1, group=one_rank)
    losses(other)[0].backward()
    grads = [p.grad for p in other.parameters() if p.grad is not None]
    expected = torch.cat([*(g.flatten() for g in grads), torch.tensor([2.0, 2.0])]).norm()
    assert norm.item() == pytest.approx(expected.item())
    share = 0.1 / expected
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad * share, rtol=1e-4, atol=1e-6)
    assert unused.grad is None
    torch.testing.assert_close(sparse.weight.grad[1], torch.full((2,), 2 * share.item()))
