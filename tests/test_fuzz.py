"""Every public callable with anything at all: it answers, or raises TypeError or ValueError; and
valid input, however extreme, has no NaN gradient.

200 examples of each in the gate, ``IMM_FUZZ`` of them otherwise (``make fuzz``: 5,000).
"""

import dataclasses
import math
import os
import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import imm_lib as imm
from imm_lib import checks, clipping, distributions, divergences, means, premise, worth
from imm_lib.divergences import NAMED
from imm_lib.fused import FusedIMM
from imm_lib.sequential import sequential_risk
from imm_lib.targets.kneser_ney import discounts

EXAMPLES = int(os.environ.get("IMM_FUZZ", "200"))
fuzz = settings(
    max_examples=EXAMPLES,
    derandomize="IMM_FUZZ" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

DTYPES = (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64),
    torch.float8_e5m2,
)
FLOATS = DTYPES[:2]
VALUES = (0.0, 1.0, 0.5, -1.0, 1e-3, -120.0, 1e30, math.inf, -math.inf, math.nan, 7.0)


@st.composite
def junk_tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(("normal", "rows", "log rows", "ids", "constant")))
    value = {
        "normal": lambda: torch.randn(shape, generator=generator),
        "rows": lambda: torch.randn([*shape, 3], generator=generator).softmax(-1),
        "log rows": lambda: torch.randn([*shape, 3], generator=generator).log_softmax(-1),
        "ids": lambda: torch.randint(4, shape, generator=generator),
        "constant": lambda: torch.full(shape, draw(st.sampled_from(VALUES))),
    }[kind]()
    if draw(st.booleans()):
        value = value.to(draw(st.sampled_from(DTYPES)))
    change = draw(st.sampled_from(("", "", "", "meta", "sparse", "inference", "grad", "view")))
    if change == "meta":
        value = value.to("meta")
    elif change == "sparse" and value.dim() > 0 and value.dtype != torch.float8_e5m2:
        value = value.to_sparse()
    elif change == "inference":
        with torch.inference_mode():
            value = value.clone()
    elif change == "grad" and value.is_floating_point():
        value = value.requires_grad_()
    elif change == "view" and value.dim() > 1:
        value = value.transpose(0, 1)
    return value


JUNK = st.one_of(
    junk_tensors(),
    junk_tensors(),
    st.sampled_from(
        (
            None,
            True,
            0,
            3,
            -2,
            2.5,
            math.nan,
            math.inf,
            10**30,
            "text",
            "Jensen-Shannon",
            b"",
            (),
            [],
        )
    ),
    st.builds(lambda *_: [0, 1]),
    st.builds(lambda dtype: np.ones((2, 3), dtype), st.sampled_from(("f4", "f8", "i8", "U3", "O"))),
    st.builds(object),
    junk_tensors().map(lambda value: lambda *_, **__: value),
    st.just(lambda *_: "no tensor"),
)


@dataclasses.dataclass
class World:
    """Valid arguments of matching sizes, by name; extreme at random."""

    short: int
    extended: int
    labels: int
    dtype: torch.dtype
    seed: int
    sharp: float
    padded: float | None  # log-probability of a last label that the target rules out
    divergence: str

    def __post_init__(self):
        self.draws = torch.Generator().manual_seed(self.seed)
        shape = (self.short, self.extended, self.labels)
        self.parameter = self._normal(*shape).requires_grad_()
        self.target = self._rows(self.short, self.labels)
        if self.padded is not None:
            self.target = torch.cat([self.target, self.target.new_zeros(self.short, 1)], 1)
        self.all = self.labels + (self.padded is not None)
        self.belief = self._rows(self.short, self.extended)
        # every extended context a data point, every short one with one at least
        points = torch.randint(self.short, (self.extended,), generator=self.draws)
        self.groups = torch.cat([torch.arange(self.short), points])
        self.batch = self.groups[torch.randperm(len(self.groups), generator=self.draws)]
        self.label = torch.randint(self.labels, (len(self.batch),), generator=self.draws)
        self.values = self._normal(self.extended)

    def _normal(self, *shape):
        return torch.randn(*shape, generator=self.draws).mul(self.sharp).to(self.dtype)

    def _rows(self, *shape):
        return self._normal(*shape).softmax(-1)

    def features(self, short, extended):
        return self.parameter[short.long().flatten() % self.short, extended % self.extended]

    def query(self, short, extended):
        logits = self.features(short, extended)
        if self.padded is not None:
            low = logits.new_full((len(logits), 1), self.padded)
            logits = torch.cat([logits, low], 1)
        return logits.log_softmax(-1)

    def log_q(self):
        return self.query(self.batch, torch.arange(len(self.batch)))

    def weights(self):
        """(B,) of the data points, some 0; None at times."""
        weight = self.label.to(self.dtype) + (self.label.sum() == 0)
        return weight if self.seed % 3 else None

    def joint(self):
        """(S, k, Y) log-probabilities."""
        return self.query(
            torch.arange(self.short).repeat_interleave(self.extended),
            torch.arange(self.extended).repeat(self.short),
        ).view(self.short, self.extended, -1)


WORLDS = st.builds(
    World,
    short=st.integers(1, 4),
    extended=st.integers(1, 4),
    labels=st.integers(2, 4),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 999),
    sharp=st.sampled_from((0.0, 0.1, 1.0, 10.0, 60.0)),
    padded=st.sampled_from((None, None, -120.0, -1e4, -math.inf)),
    divergence=st.sampled_from(sorted(NAMED)),
)


def contexts_of(world, kind):
    if kind == "grouped":
        return imm.GroupedContexts(world.groups, world.short)
    return imm.BeliefContexts(world.belief)


def estimator(kind, target, contexts, divergence, query, short, k, weight):
    build = {
        "exact": lambda: imm.ExactIMM(target, contexts, divergence),
        "sampled": lambda: imm.SampledIMM(target, contexts, k, divergence=divergence),
        "sequential": lambda: imm.SampledIMM(target, contexts, k, True, divergence=divergence),
        "noising": lambda: imm.SampledNoising(target, contexts, k, divergence=divergence),
    }[kind]
    return build()(query, short, weight)


def with_contexts(kind, world):
    return {
        "kind": kind,
        "target": world.target,
        "contexts": contexts_of(world, "grouped" if world.seed % 2 else "belief"),
        "divergence": world.divergence,
        "query": world.query,
        "short": world.batch,
        "k": 1 + world.seed % 3,
        "weight": world.weights(),
    }


def finite(term, surrogate):
    """What a surrogate promises where the risk is finite."""
    return surrogate if term.risk.isfinite() else term.risk


def average(
    target, num_short, num_labels, momentum, max_ratio, divergence, log_q, short, train, weight
):
    term = imm.MovingAverageIMM(target, num_short, num_labels, momentum, max_ratio, divergence)
    first = finite(term, term(log_q, short, weight))
    term.train(train)
    return first, finite(term, term(log_q, short, weight))


def serialized(target, num_short, num_labels, divergence, batches, log_q, short, frozen, weight):
    term = imm.SerializedIMM(target, num_short, num_labels, divergence)
    term.refresh(batches)
    return finite(term, term(log_q, short, frozen, weight))


def fused(target, num_short, num_labels, momentum, hidden, weight, bias, labels, short, lam):
    term = FusedIMM(target, num_short, num_labels, momentum)
    return term(hidden, weight, bias, labels, short, lam)


def fused_sampled(target, contexts, k, query, short, weight):
    return imm.FusedSampledIMM(target, contexts, k)(query, short, weight)


def clip(loss, imm_loss, parameters, lam, max_norm, imm_max_norm):
    imm.clipped_backward(loss, imm_loss, parameters, lam, max_norm, imm_max_norm)
    return loss * 0 + 1


def pomdp(transition, observation, reward, discount, tolerance, belief, temperature):
    model = imm.FinitePOMDP.of(transition, observation, reward)
    bound = imm.FastInformedBound.solve(model, discount, tolerance, 10_000)
    bound.softmax(belief, temperature), bound.split(belief)
    return bound(belief)


def mean_arguments(world):
    """Of the estimators of means: log-probabilities will do as values."""
    return {
        "target": world.target,
        "contexts": contexts_of(world, "belief"),
        "query": lambda short, extended: world.query(short, extended).clamp_min(-1e3),
        "short": world.batch,
    }


def table_sizes(world):
    return {"num_short": world.short, "num_labels": world.all}


# name -> (call, valid arguments of a world); what is called differentiates by world.parameter
CALLS = {
    **{
        kind: (estimator, partial(with_contexts, kind))
        for kind in ("exact", "sampled", "sequential", "noising")
    },
    "MovingAverageIMM": (
        average,
        lambda w: {
            "target": w.target,
            **table_sizes(w),
            "momentum": 0.1 + 0.9 * (w.seed % 2),
            "max_ratio": (1.0, math.inf)[w.seed % 2],
            "divergence": w.divergence,
            "log_q": w.log_q(),
            "short": w.batch,
            "train": bool(w.seed % 3),
            "weight": w.weights(),
        },
    ),
    "SerializedIMM": (
        serialized,
        lambda w: {
            "target": w.target,
            **table_sizes(w),
            "divergence": w.divergence,
            "batches": [(w.log_q().detach(), w.batch)],
            "log_q": w.log_q(),
            "short": w.batch,
            "frozen": w.log_q().detach(),
            "weight": w.weights(),
        },
    ),
    "FusedIMM": (
        fused,
        lambda w: {
            "target": w.target,
            **table_sizes(w),
            "momentum": 0.5,
            "hidden": w.parameter.flatten(0, 1)[:1].expand(len(w.batch), -1),
            "weight": torch.eye(w.all, dtype=w.dtype)[:, : w.labels],
            "bias": None,
            "labels": w.label,
            "short": w.batch,
            "lam": 0.7,
        },
    ),
    "FusedSampledIMM": (
        fused_sampled,
        lambda w: {
            "target": w.target,
            "contexts": contexts_of(w, "grouped" if w.seed % 2 else "belief"),
            "k": 1 + w.seed % 3,
            "query": w.features,
            "short": w.batch,
            "weight": torch.eye(w.all, dtype=w.dtype)[:, : w.labels],
        },
    ),
    "ReverseKD": (
        lambda target, log_q, short, weight: imm.ReverseKD(target)(log_q, short, weight),
        lambda w: {
            "target": w.target,
            "log_q": w.log_q(),
            "short": w.batch,
            "weight": w.weights(),
        },
    ),
    "Interpolation": (
        lambda target, weight, log_q, short: imm.Interpolation(target, weight)(log_q, short),
        lambda w: {
            "target": w.target,
            "weight": (w.seed % 11) / 10,
            "log_q": w.log_q(),
            "short": w.batch,
        },
    ),
    "induce": (imm.induce, lambda w: {"log_q": w.joint(), "log_w": w.belief.log()}),
    "crosstalk": (imm.crosstalk, lambda w: {"log_q": w.joint(), "log_w": w.belief.log()}),
    **{
        name: (
            getattr(imm, name),
            lambda w: {"target": w.target, "log_q": w.joint(), "log_w": w.belief.log()},
        )
        for name in ("imm_risk", "noising_risk")
    },
    "undo_class_weights": (
        imm.undo_class_weights,
        lambda w: {"logits": w.parameter, "weight": w.target[0, : w.labels] + 0.1},
    ),
    "GroupedContexts": (
        lambda short, num_short, asked, k, generator: imm.GroupedContexts(short, num_short).sample(
            asked, k, generator
        ),
        lambda w: {
            "short": w.groups,
            "num_short": w.short,
            "asked": w.batch,
            "k": 3,
            "generator": w.draws,
        },
    ),
    "KernelContexts": (
        lambda values, bandwidth, asked, k, generator: imm.KernelContexts(values, bandwidth).sample(
            asked, k, generator
        ),
        lambda w: {
            "values": w.values,
            "bandwidth": 0.5,
            "asked": w.values[:2],
            "k": 3,
            "generator": w.draws,
        },
    ),
    "MixedContexts": (
        lambda values, group, bandwidth, asked, k: imm.MixedContexts(
            values, group, bandwidth
        ).sample(asked, k),
        lambda w: {
            "values": w.values.unsqueeze(1),
            "group": torch.zeros(w.extended, dtype=torch.long),
            "bandwidth": 0.5,
            "asked": w.values.new_zeros(2, 2),
            "k": 3,
        },
    ),
    "BeliefContexts": (
        lambda belief, asked, k: imm.BeliefContexts(belief).sample(asked, k),
        lambda w: {"belief": w.belief, "asked": w.batch, "k": 3},
    ),
    "support": (
        lambda contexts, asked: contexts.support(asked),
        lambda w: {"contexts": contexts_of(w, "belief"), "asked": w.batch},
    ),
    "KneserNeyBigram": (
        lambda tokens, vocab_size, short, label: imm.KneserNeyBigram.fit(
            tokens, vocab_size
        ).log_prob(short, label),
        lambda w: {
            "tokens": torch.cat([w.batch, w.batch]),
            "vocab_size": w.short,
            "short": w.batch,
            "label": w.batch,
        },
    ),
    "KneserNeyBigram.perplexity": (
        lambda short, label, vocab_size, tokens, zero: imm.KneserNeyBigram.fit_pairs(
            short, label, vocab_size
        ).perplexity(tokens, zero),
        lambda w: {
            "short": w.batch,
            "label": w.batch.flip(0),
            "vocab_size": w.short,
            "tokens": w.batch.repeat(40),
            "zero": ("safe", "zero-loss", "paper")[w.seed % 3],
        },
    ),
    "FastInformedBound": (
        pomdp,
        lambda w: {
            "transition": w._rows(2, w.short, w.short),
            "observation": w._rows(2, w.short, w.labels),
            "reward": w._normal(2, w.short),
            "discount": (0.0, 0.5, 0.9, 0.99)[w.seed % 4],
            "tolerance": 1e-3,
            "belief": w._rows(3, w.short),
            "temperature": 0.5,
        },
    ),
    "TabularWorld": (
        lambda joint, log_q, lam: (
            (imm.TabularWorld(joint).imm_risk(log_q) + imm.TabularWorld(joint).g(log_q))
            * imm.TabularWorld(joint).noising_minimiser(lam).sum()
        ),
        lambda w: {
            "joint": w._rows(w.short * w.extended * w.labels)
            .add(0.01)
            .div(1 + 0.01 * w.short * w.extended * w.labels)
            .view(w.short, w.extended, w.labels),
            "log_q": w.parameter.log_softmax(-1),
            "lam": 0.5,
        },
    ),
    "clipped_backward": (
        clip,
        lambda w: {
            "loss": w.log_q().clamp_min(-1e3).mean(),
            "imm_loss": w.log_q().clamp_min(-1e3).square().mean(),
            "parameters": [w.parameter],
            "lam": 0.5,
            "max_norm": 1.0,
            "imm_max_norm": None,
        },
    ),
    "add_clipped": (
        clipping.add_clipped,
        lambda w: {
            "backward": w.log_q().clamp_min(-1e3).mean().backward,
            "parameters": [w.parameter],
            "max_norm": 1.0,
            "weight": 0.5,
        },
    ),
    "premise.lead": (
        premise.lead,
        lambda w: {
            "query": w.query,
            "contexts": contexts_of(w, "belief"),
            "target": w.target,
            "short": w.batch.repeat(2),
            "label": w.label.repeat(2),
        },
    ),
    "premise.surprise": (
        premise.surprise,
        lambda w: {"rows": w.target[w.batch], "label": w.label},
    ),
    "worth.informations": (
        worth.informations,
        lambda w: {
            "query": w.query,
            "parameters": [w.parameter],
            "contexts": contexts_of(w, "belief"),
            "short": w.batch,
            "extended": torch.arange(len(w.batch)) % w.extended,
            "weight": None,
        },
    ),
    "sequential_risk": (
        lambda target, passes, divergence: sequential_risk(
            target, passes, divergences.as_divergence(divergence)
        ),
        lambda w: {
            "target": w.target,
            "passes": [lambda: w.joint()[:, 0]] * 2,
            "divergence": w.divergence,
        },
    ),
    "coarsen": (
        imm.coarsen,
        lambda w: {"log_q": w.log_q(), "labels": torch.arange(w.all)},
    ),
    "ExactMean": (
        lambda target, contexts, query, short: means.ExactMean(target, contexts)(query, short),
        mean_arguments,
    ),
    "SampledMean": (
        lambda target, contexts, query, short, k: means.SampledMean(target, contexts, k)(
            query, short
        ),
        lambda w: mean_arguments(w) | {"k": 2},
    ),
    "MovingAverageMean": (
        lambda target, num_short, outputs, momentum, values, short: means.MovingAverageMean(
            target, num_short, outputs, momentum
        )(values, short),
        lambda w: {
            "target": w.target,
            "num_short": w.short,
            "outputs": w.all,
            "momentum": 0.5,
            "values": w.log_q().clamp_min(-1e3),
            "short": w.batch,
        },
    ),
    "induced_mean": (
        means.induced_mean,
        lambda w: {"values": w.parameter, "weight": w.belief},
    ),
    "linear_worth": (
        lambda inputs, averaged, theta, noise: (
            means.linear_worth(inputs, averaged, theta, noise).gain
        ),
        lambda w: {
            "inputs": torch.eye(3, dtype=w.dtype).repeat(2, 1),
            "averaged": torch.eye(3, dtype=w.dtype).repeat(2, 1) / 2,
            "theta": torch.arange(3, dtype=w.dtype),
            "noise": 0.5,
        },
    ),
    "Worth.of": (
        lambda full, induced, context, damping: worth.Worth.of(
            full, induced, context, damping
        ).excess_risk(1.0, 100),
        lambda w: {
            "full": torch.eye(3, dtype=w.dtype),
            "induced": torch.eye(3, dtype=w.dtype) / 2,
            "context": torch.eye(3, dtype=w.dtype) / 3,
            "damping": 0.1,
        },
    ),
    "discounts": (discounts, lambda w: {"counts": w.groups + 1}),
    "alpha": (divergences.alpha, lambda w: {"order": float(w.sharp)}),
    "balanced": (divergences.balanced, lambda w: {"weight": (w.seed % 11) / 10}),
    "as_divergence": (divergences.as_divergence, lambda w: {"divergence": w.divergence}),
    "sinkhorn": (
        lambda cost, epsilon, steps: divergences.sinkhorn(cost, epsilon, steps),
        lambda w: {
            "cost": (torch.arange(3.0).unsqueeze(1) - torch.arange(3.0)).abs(),
            "epsilon": 0.5,
            "steps": 50,
        },
    ),
}
# what an inner function promises of valid input only
UNCHECKED = {("sequential_risk", "target"), ("sequential_risk", "passes"), ("discounts", "counts")}
UNCHECKED |= {("support", "contexts"), ("add_clipped", "backward"), ("add_clipped", "weight")}
UNCHECKED |= {(kind, "kind") for kind in ("exact", "sampled", "sequential", "noising")}
UNCHECKED |= {("MovingAverageIMM", "train")}
# modules, protocols and what needs other input than tensors: each has a test of bad input
ELSEWHERE = {"data", "divergences", "means", "plotting", "premise", "results", "worth"} | {
    "Contexts",
    "coarsen",
    "FinitePOMDP",
    "counterexample",
    "device",
    "from_sklearn",
}
# log-probabilities, of which -inf is one like the others
ROWS = {"induce", "Interpolation", "undo_class_weights"}
ESTIMATORS = {"ExactIMM": "exact", "SampledIMM": "sampled", "SampledNoising": "noising"}


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)


@pytest.mark.parametrize("name", CALLS)
@fuzz
@given(world=WORLDS, data=st.data())
def test_anything_is_answered_or_refused(name, world, data):
    call, valid = CALLS[name]
    arguments = valid(world)
    open_to = [key for key in arguments if (name, key) not in UNCHECKED]
    which = st.lists(st.sampled_from(open_to), max_size=2, unique=True) if open_to else st.just([])
    worse = data.draw(which, "replaced")
    for key in worse:
        arguments[key] = data.draw(JUNK, key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = call(**arguments)
        except (TypeError, ValueError) as error:
            assert worse, f"valid input was refused: {error}"
            assert str(error)
            return
    if worse:
        return
    for value in tensors(found):
        assert not value.isnan().any()
        finite = value.isfinite()
        if value.requires_grad and (finite.all() or name in ROWS):
            total = value[finite].sum()
            (gradient,) = torch.autograd.grad(total, world.parameter, retain_graph=True)
            assert gradient.isfinite().all()


ODD_DTYPES = (
    *(torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.complex128),
    *(torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int64, torch.bool),
)


def changes(value):
    """A valid tensor in every one of many other forms."""
    yield from (value.to("meta"), value.flatten()[0], value.unsqueeze(0), value.numpy(force=True))
    yield from (value.detach().to(dtype) for dtype in ODD_DTYPES)
    if value.dtype.is_floating_point:
        yield from (value.detach() * 0, value.detach() * math.nan, -value.detach())
    else:
        yield from (value + 1000, value - 1000)
    for dim in range(value.dim()):
        yield from (
            value.narrow(dim, 0, 0),
            value.narrow(dim, 0, 1),
            value.repeat_interleave(2, dim),
        )
    yield value.new_empty([0] * value.dim())
    if value.dim():
        yield from (
            value.detach().to_sparse(),
            value.transpose(0, -1),
            value.expand(2, *value.shape),
        )


# what an error may speak of, though it is no argument of the call here
INNER = {"query(short, extended)", "short", "hidden", "full", "log_q_frozen", "log_w"}
INNER |= {"belief", "the table", "the bigram", "the data of GroupedContexts"}


def named_in(message):
    """What an error says is wrong, and what it does not fit."""
    if found := re.match(r"(.+) is on \S+ but (.+) is on \S+: move", message):
        return set(found.groups())
    return {re.match(r"(\w+\(short, extended\)|\w+)? ?", message)[1]}


def altered(arguments, open_to):
    """One argument after the other in other forms: (its name, the value)."""
    for key in open_to:
        value = arguments[key]
        if isinstance(value, torch.Tensor):
            yield from ((key, other) for other in changes(value))
        if key != "zero":  # a word has errors of its own
            yield from ((key, other) for other in (object(), "text", -2, 2.5, math.nan, True))
        if key == "query":
            forms = len(list(changes(torch.ones(1, 2))))
            yield from (
                (key, lambda *asked, n=n, query=value: list(changes(query(*asked)))[n])
                for n in range(forms)
            )


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_in_another_form_is_answered_or_refused_by_name(name):
    call, valid = CALLS[name]
    wrong = []
    for seed in range(3):
        world = World(3, 2, 2, FLOATS[seed % 2], seed, 1.0, None, "cross-entropy")
        fresh = partial(valid, world)
        arguments = fresh()
        open_to = [key for key in arguments if (name, key) not in UNCHECKED]
        for key, other in altered(arguments, open_to):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    call(**(fresh() | {key: other}))
                except (TypeError, ValueError) as error:
                    if unnamed := named_in(str(error)) - set(arguments) - INNER:
                        wrong.append(f"{key}: {unnamed} is no argument: {error}")
                except Exception as error:
                    wrong.append(f"{key}: {checks.describe(other)}: {error!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(NAMED))
@fuzz
@given(world=WORLDS)
def test_divergences_of_anything_valid(name, world):
    log_q = world.joint()[:, 0]
    value = NAMED[name](world.target, log_q)
    assert not value.isnan().any()
    finite = value.isfinite()
    if finite.any():
        rows = log_q.detach()[finite].requires_grad_()
        found = NAMED[name](world.target[finite], rows)
        assert torch.equal(found, value[finite])
        (gradient,) = torch.autograd.grad(found.sum(), rows)
        assert gradient.isfinite().all()


def test_every_public_name_is_here():
    named = set(CALLS) | set(ESTIMATORS) | ELSEWHERE
    assert set(imm.__all__) <= named, set(imm.__all__) - named
    assert set(ESTIMATORS.values()) <= set(CALLS)
    assert callable(checks.ids) and callable(distributions.probabilities)
