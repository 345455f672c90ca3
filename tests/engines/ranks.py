"""Training runs that several processes do together, and one process alone; what they end with."""

import os
import sys
import warnings
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import nll_loss
from torch.nn.parallel import DistributedDataParallel

import imm_lib as imm
from imm_lib import distributed
from imm_lib.clipping import add_clipped
from imm_lib.fused import FusedIMM

S, Y, N, STEPS, BATCH = 5, 4, 60, 12, 11
SHORT = torch.randint(S, (N,), generator=torch.Generator().manual_seed(0))
X = torch.randn(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABEL = torch.randint(Y, (N,), generator=torch.Generator().manual_seed(2))
TARGET = torch.rand(S, Y, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).softmax(
    1
)
WEIGHT = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
WORDS = imm.KneserNeyBigram.fit(torch.cat([SHORT, SHORT.flip(0)]).clamp(max=Y - 1), Y)
ESTIMATORS = (
    *("moving average", "serialized", "sampled", "exact", "noising", "reverse-KD"),
    *("fused", "fused, seen labels", "fused, no table"),
    *("moving average, weights", "sampled, weights", "reverse-KD, weights"),
)
ENGINES = ("ddp", "fsdp2")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 6).double(), nn.Linear(6, Y).double()

    def forward(self, x, fused=None, label=None, short=None):
        hidden = self.first(x).tanh()
        if fused is None:
            return self.last(hidden).log_softmax(-1)
        return fused(hidden, self.last.weight, self.last.bias, label, short)


class Fixed(imm.GroupedContexts):
    """Draws that depend on the short context alone, so that every division of work draws alike."""

    def sample(self, short, k, generator=None):
        place = torch.arange(k) * 7 + short.unsqueeze(1)
        return self.order[self.starts[short].unsqueeze(1) + place % self.counts[short].unsqueeze(1)]


def estimator(name, group):
    contexts = Fixed(SHORT, S)
    return {
        "moving average": lambda: imm.MovingAverageIMM(TARGET, S, Y, 0.3, group=group),
        "serialized": lambda: imm.SerializedIMM(TARGET, S, Y, group=group),
        "sampled": lambda: imm.SampledIMM(TARGET, contexts, 3, group=group),
        "exact": lambda: imm.ExactIMM(TARGET, contexts, group=group),
        "noising": lambda: imm.SampledNoising(TARGET, contexts, 3, group=group),
        "reverse-KD": lambda: imm.ReverseKD(TARGET, group=group),
        "fused": lambda: FusedIMM(TARGET, S, Y, 0.3, group=group),
        "fused, seen labels": lambda: FusedIMM(WORDS, Y, Y, 0.3, labels="seen", group=group),
        "fused, no table": lambda: FusedIMM(TARGET, S, Y, labels="none", group=group),
    }[name.removesuffix(", weights")]().double()


def shard(batch, rank, ranks):
    """Unequal parts of a batch: the first rank has the most."""
    cut = [0] + [len(batch) - 2 * (ranks - r) for r in range(1, ranks)] + [len(batch)]
    return batch[cut[rank] : cut[rank + 1]]


def term_of(name, term, model, frozen, batch):
    if name.endswith(", weights"):
        whole, weight = name.removesuffix(", weights"), WEIGHT[batch]
        return term_of(whole, partial(term, weight=weight), model, frozen, batch)
    if name in ("sampled", "exact", "noising"):
        return term(lambda short, extended: model(X[extended]), SHORT[batch])
    log_q = model(X[batch])
    if name == "serialized":
        with torch.no_grad():
            old = frozen(X[batch])
        return term(log_q, SHORT[batch], log_q_frozen=old)
    return term(log_q, SHORT[batch])


def run(name, wrap, group=None):
    """Parameters, risks and table after a few steps of SGD on batches of all ranks together."""
    rank, ranks = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    model, term, risks = wrap(Model()), estimator(name, group), []
    optimiser = torch.optim.SGD(model.parameters(), 0.3)
    batches = torch.arange(N).repeat(3)[: STEPS * BATCH].split(BATCH)
    frozen = Model()
    if name == "serialized":
        own = shard(torch.arange(N), rank, ranks)
        with torch.no_grad():
            term.refresh((frozen(X[part]), SHORT[part]) for part in own.split(7))
    for batch in batches:
        own = shard(batch, rank, ranks)
        if name.startswith("fused"):
            short = SHORT[own].clamp(max=term.shape[0] - 1)
            label = LABEL[own].where(own % 5 > 0, -100)
            loss = model(X[own], term, label, short)
        else:
            loss = nll_loss(model(X[own]), LABEL[own]) * distributed.share(len(own), X, group)
            loss = loss + term_of(name, term, model, frozen, own)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        risks.append(term.risk.clone())
    table = term.table if hasattr(term, "table") else torch.zeros(0)
    return flat(model.parameters()), torch.stack(risks), table


def rows_asked(group):
    """How many rows a sampled term runs here in one step."""
    seen, term = [], estimator("sampled", group)
    own = shard(torch.arange(20), dist.get_rank(group), dist.get_world_size(group))
    model = Model()

    def query(short, extended):
        seen.append(len(extended))
        return model(X[extended])

    term(query, SHORT[own])
    term(query, SHORT[own][:1] * 0)  # one short context in all: the others run it for nothing
    return seen


def clipped(wrap, group):
    """Norms and gradients of a separate clip of cross-entropy and term; what is refused."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    own, joint = shard(torch.arange(BATCH), rank, ranks), None if ranks == 1 else group
    model, term = wrap(Model()), estimator("moving average", joint)
    parameters = list(model.parameters())

    def loss():
        mean = nll_loss(model(X[own]), LABEL[own])
        return mean * distributed.share(len(own), X, joint)

    if hasattr(model, "unshard"):  # FSDP2: every backward pass has a forward pass of its own
        scalar = sum(p.sum() for p in Model().parameters())  # any: refused before it is looked at
        refused = message(lambda: imm.clipped_backward(scalar, scalar, parameters))
        norms = (
            add_clipped(lambda: loss().backward(), parameters, 0.01),
            add_clipped(lambda: term(model(X[own]), SHORT[own]).backward(), parameters, 0.02, 0.7),
        )
    else:
        refused, log_q = "", model(X[own])
        primary = nll_loss(log_q, LABEL[own]) * distributed.share(len(own), X, joint)
        imm_loss = term(log_q, SHORT[own])
        norms = imm.clipped_backward(primary, imm_loss, parameters, 0.7, 0.01, 0.02, group=group)
    return refused, torch.stack([whole(n) for n in norms]), flat(p.grad for p in parameters)


def whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def flat(tensors):
    return torch.cat([whole(t).detach().flatten() for t in tensors])


def message(call):
    """What an error says."""
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "no error"


def sequential(wrap, group):
    """A sequential term beside the cross-entropy: through the wrapper, and through the module."""
    rank, ranks = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    own = shard(torch.arange(BATCH), rank, ranks)
    model = wrap(Model())
    term = imm.SampledIMM(TARGET, Fixed(SHORT, S), 3, sequential=True, group=group).double()
    refused = message(lambda: term(lambda short, extended: model(X[extended]), SHORT[own]))
    inner = getattr(model, "module", model)
    loss = nll_loss(model(X[own]), LABEL[own]) * distributed.share(len(own), X, group)
    (loss + term(lambda short, extended: inner(X[extended]), SHORT[own])).backward()
    return refused, flat(p.grad for p in model.parameters())


def refused_shards(wrap, group):
    model = wrap(Model())
    term = imm.SampledIMM(TARGET, Fixed(SHORT, S), 3, sequential=True, group=group).double()
    return message(lambda: term(lambda short, extended: model(X[extended]), SHORT[:5]))


class Inside(nn.Module):
    """A module that holds its term, whose contexts are of this rank's own data points."""

    def __init__(self, short):
        super().__init__()
        self.model, self.term = Model(), imm.ExactIMM(TARGET, imm.GroupedContexts(short, S))

    def forward(self, x, short):
        return self.term(lambda _, extended: self.model(x[extended]), short)


def inside(rank):
    """Whether wrapping, and a step, leave each rank's data what they were."""
    own = SHORT[rank * 20 : rank * 20 + 20]
    kept, wrapped = own.clone(), DistributedDataParallel(Inside(own))
    wrapped(X[rank * 20 : rank * 20 + 20], own[:4]).backward()
    contexts = wrapped.module.term.contexts
    return torch.equal(own, kept) and torch.equal(contexts.short, kept)


def worker(rank, ranks, file, out):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
    group, mesh = dist.group.WORLD, init_device_mesh("cpu", (ranks,))

    def sharded(model):
        for layer in (model.first, model):  # the last layer is whole inside the model's forward
            fully_shard(layer, mesh=mesh)
        return model

    wraps = {"ddp": DistributedDataParallel, "fsdp2": sharded}
    found = {
        (engine, name): run(name, wraps[engine], group) for engine in ENGINES for name in ESTIMATORS
    }
    alone = [dist.new_group([r]) for r in range(ranks)][rank]
    found["rows"] = rows_asked(group)
    found["clipped"] = {name: clipped(wrap, group) for name, wrap in wraps.items()}
    found["clipped alone"] = clipped(lambda model: model, alone)
    found["sequential"] = sequential(DistributedDataParallel, group)
    found["sequential, shards"] = refused_shards(sharded, group)
    found["inside"] = inside(rank)
    torch.save(found, f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
