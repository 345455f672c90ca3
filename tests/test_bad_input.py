"""One table of bad inputs: what is called, what is raised, and what the sentence has to name."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from worlds import PairModel, random_log_q, random_probabilities

import imm_lib as imm
from imm_lib.worth import Worth, informations

DATA = torch.tensor([0, 1, 0, 2])
GROUPED = imm.GroupedContexts(DATA, num_short=4)
KERNEL = imm.KernelContexts(torch.tensor([0.0, 1.0]))
TARGET = random_probabilities(4, 3)
LOG_Q = random_log_q(4, 3)
NET = PairModel(4, 4, 3)


def off(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """A copy with one bad entry."""
    copy = tensor.clone()
    copy.view(-1)[0] = value
    return copy


class Scorer:
    """What scikit-learn calls a classifier."""

    def predict_proba(self, rows):
        return rows


def serialized() -> imm.SerializedIMM:
    term = imm.SerializedIMM(TARGET, 4, 3).double()
    term.refresh([(LOG_Q, DATA)])
    return term


def moving() -> imm.MovingAverageIMM:
    return imm.MovingAverageIMM(TARGET, 4, 3).double()


def sampled(**options) -> imm.SampledIMM:
    return imm.SampledIMM(TARGET, GROUPED, **options)


ONE = torch.ones((), requires_grad=True)
NAN, INF = float("nan"), float("inf")
CASES = {
    # contexts
    "grouped: empty": (
        lambda: imm.GroupedContexts(torch.tensor([], dtype=torch.long)),
        ValueError,
        "short .*(0,)",
    ),
    "grouped: float ids": (
        lambda: imm.GroupedContexts(torch.tensor([0.0])),
        TypeError,
        "short .*integer.*float32",
    ),
    "grouped: bool ids": (
        lambda: imm.GroupedContexts(torch.tensor([True])),
        TypeError,
        "short .*integer.*bool",
    ),
    "grouped: a list": (
        lambda: imm.GroupedContexts([0, 1]),
        TypeError,
        "short .*Tensor.*\\[0, 1\\]",
    ),
    "grouped: a column": (
        lambda: imm.GroupedContexts(pd.Series([0, 1])),
        TypeError,
        "short must be a torch.Tensor, got a Series$",
    ),
    "grouped: negative id": (
        lambda: imm.GroupedContexts(torch.tensor([0, -1])),
        ValueError,
        "short .*-1",
    ),
    "grouped: 2-D": (
        lambda: imm.GroupedContexts(torch.zeros(2, 2).long()),
        ValueError,
        "short .*1-D.*(2, 2)",
    ),
    "grouped: id too large": (
        lambda: imm.GroupedContexts(DATA, 2),
        ValueError,
        "short .*\\[0, 2\\).*2",
    ),
    "grouped: hashes for ids": (
        lambda: imm.GroupedContexts(torch.tensor([3, 2**41])),
        ValueError,
        "short must hold ids that count from 0.*torch.unique",
    ),
    "grouped: extend half a context": (lambda: GROUPED.extend(0.5), TypeError, "s must be an int"),
    "grouped: extend a word": (lambda: GROUPED.extend("0"), TypeError, "s must be an int"),
    "kernel: beyond its dtype": (
        lambda: imm.KernelContexts(torch.zeros(2)).sample(
            torch.tensor([1e300], dtype=torch.float64), 2
        ),
        ValueError,
        "short must be finite in torch.float32",
    ),
    "query: on another device": (
        lambda: sampled(k=2)(lambda s, e: torch.zeros(len(e), 3, device="meta"), DATA),
        ValueError,
        "query.* is on meta but short is on cpu",
    ),
    "weights: a sum without an inverse": (
        lambda: imm.ReverseKD(TARGET)(LOG_Q, DATA, torch.full((len(DATA),), 1e-44)),
        ValueError,
        "weight must be finite.*resolves",
    ),
    **{
        f"weights: float64 of {size:g} for a model of float32": (
            lambda size=size: imm.ReverseKD(TARGET)(
                LOG_Q.float(), DATA, torch.full((len(DATA),), size, dtype=torch.float64)
            ),
            ValueError,
            "weight must be finite.*float32 resolves",
        )
        for size in (1e-50, 1e50)
    },
    "informations: extended of floats": (
        lambda: informations(
            lambda s, e: LOG_Q[e.long()],
            [ONE],
            GROUPED,
            DATA,
            torch.arange(float(len(DATA))),
        ),
        TypeError,
        "extended must be an integer tensor",
    ),
    "worth: nothing": (
        lambda: Worth.of(torch.zeros(0, 0), torch.zeros(0, 0)),
        ValueError,
        r"full must be .*\(d, d\)",
    ),
    "worth: no information": (
        lambda: Worth.of(torch.eye(2), -torch.eye(2)),
        ValueError,
        "induced must have no negative eigenvalue, got -1 ",
    ),
    "grouped: num_short 0": (lambda: imm.GroupedContexts(DATA, 0), ValueError, "num_short .*0"),
    "extend: too large": (lambda: GROUPED.extend(4), ValueError, "s must be in \\[0, 4\\), got 4"),
    "extend: negative": (lambda: GROUPED.extend(-1), ValueError, "s must be in .*-1"),
    "exact: contexts": (
        lambda: imm.ExactIMM(TARGET, DATA),
        TypeError,
        "contexts .*context classes.*int64",
    ),
    "sample: never seen": (
        lambda: GROUPED.sample(torch.tensor([0, 3]), 2),
        ValueError,
        "short .*never seen.*3",
    ),
    "weights: never seen": (
        lambda: GROUPED.log_weights(torch.tensor([3])),
        ValueError,
        "short .*never seen.*3",
    ),
    "support: never seen": (
        lambda: GROUPED.support(torch.tensor([3])),
        ValueError,
        "short .*never seen.*3",
    ),
    "sample: out of range": (
        lambda: GROUPED.sample(torch.tensor([4]), 2),
        ValueError,
        "short .*\\[0, 4\\).*4",
    ),
    "sample: k 0": (lambda: GROUPED.sample(DATA, 0), ValueError, "k .*at least 1.*0"),
    "sample: k float": (lambda: KERNEL.sample(torch.zeros(1), 2.0), TypeError, "k .*int.*2.0"),
    "sample: k bool": (lambda: GROUPED.sample(DATA, True), TypeError, "k .*int.*True"),
    "sample: other device": (
        lambda: GROUPED.sample(DATA.to("meta"), 2),
        ValueError,
        "short is on meta",
    ),
    "kernel: bandwidth 0": (
        lambda: imm.KernelContexts(torch.zeros(3), 0.0),
        ValueError,
        "bandwidth .*0",
    ),
    "kernel: bandwidth < 0": (
        lambda: imm.KernelContexts(torch.zeros(3), -1),
        ValueError,
        "bandwidth .*-1",
    ),
    "kernel: bandwidth subnormal": (
        lambda: imm.KernelContexts(torch.zeros(3), 1e-320),
        ValueError,
        "bandwidth .*1e-320",
    ),
    "kernel: bandwidth nan": (
        lambda: imm.KernelContexts(torch.zeros(3), NAN),
        ValueError,
        "bandwidth .*nan",
    ),
    "kernel: bandwidth text": (
        lambda: imm.KernelContexts(torch.zeros(3), "1"),
        TypeError,
        "bandwidth .*'1'",
    ),
    "kernel: empty": (lambda: imm.KernelContexts(torch.zeros(0)), ValueError, "values .*(0,)"),
    "kernel: integers": (lambda: imm.KernelContexts(DATA), TypeError, "values .*floating.*int64"),
    "kernel: nan": (lambda: imm.KernelContexts(torch.tensor([NAN])), ValueError, "values .*finite"),
    "kernel: 3-D": (
        lambda: imm.KernelContexts(torch.zeros(1, 1, 1)),
        ValueError,
        "values .*(1, 1, 1)",
    ),
    "kernel: query shape": (
        lambda: KERNEL.log_weights(torch.zeros(2, 2)),
        ValueError,
        "short .*(B,).*(2, 2)",
    ),
    "kernel: query nan": (
        lambda: KERNEL.log_weights(torch.tensor([NAN])),
        ValueError,
        "short .*finite",
    ),
    "belief: sums": (
        lambda: imm.BeliefContexts(torch.full((2, 2), 0.4)),
        ValueError,
        "belief .*sum to 1.*0.2",
    ),
    "belief: negative": (
        lambda: imm.BeliefContexts(torch.tensor([[1.5, -0.5]])),
        ValueError,
        "belief .*-0.5",
    ),
    "belief: nan": (
        lambda: imm.BeliefContexts(torch.tensor([[NAN, 1.0]])),
        ValueError,
        "belief .*finite",
    ),
    "belief: 1-D": (
        lambda: imm.BeliefContexts(torch.tensor([1.0])),
        ValueError,
        "belief .*(S, E).*(1,)",
    ),
    "belief: id": (
        lambda: imm.BeliefContexts(torch.ones(2, 1)).log_weights(torch.tensor([2])),
        ValueError,
        "short .*\\[0, 2\\).*2",
    ),
    "sample: generator": (
        lambda: GROUPED.sample(DATA[:2], 2, generator=3),
        TypeError,
        "generator .*Generator.*3",
    ),
    "kernel sample: generator": (
        lambda: KERNEL.sample(torch.zeros(1), 2, 3),
        TypeError,
        "generator .*Generator.*3",
    ),
    # pure functions
    "induce: above 0": (lambda: imm.induce(LOG_Q + 9), ValueError, "log_q .*at most 0"),
    "induce: nan": (lambda: imm.induce(off(LOG_Q, NAN)), ValueError, "log_q .*nan"),
    "induce: 1-D": (lambda: imm.induce(LOG_Q[0]), ValueError, "log_q .*k, Y.*(3,)"),
    "induce: empty": (lambda: imm.induce(LOG_Q[:0]), ValueError, "log_q .*non-empty.*(0, 3)"),
    "induce: integers": (
        lambda: imm.induce(torch.zeros(2, 2).long()),
        TypeError,
        "log_q .*floating.*int64",
    ),
    "induce: an array": (lambda: imm.induce(LOG_Q.numpy()), TypeError, "log_q .*Tensor.*ndarray"),
    "induce: weights' k": (
        lambda: imm.induce(LOG_Q, LOG_Q.new_zeros(3)),
        ValueError,
        "log_w .*4.*(3,)",
    ),
    "induce: weights unnormalised": (
        lambda: imm.induce(LOG_Q, LOG_Q.new_zeros(4)),
        ValueError,
        "log_w .*normalised",
    ),
    "induce: weights' device": (
        lambda: imm.induce(LOG_Q, LOG_Q.new_zeros(4).to("meta")),
        ValueError,
        "log_w is on meta.*log_q is on cpu",
    ),
    "risk: labels": (
        lambda: imm.imm_risk(TARGET[0, :2], LOG_Q),
        ValueError,
        "target .*3.*(2,)",
    ),
    "risk: target sums": (
        lambda: imm.imm_risk(2 * TARGET[0], LOG_Q),
        ValueError,
        "target .*sum to 1",
    ),
    "risk: target nan": (
        lambda: imm.imm_risk(off(TARGET[0], NAN), LOG_Q),
        ValueError,
        "target .*nan",
    ),
    "risk: target negative": (
        lambda: imm.noising_risk(torch.tensor([1.5, -0.5, 0.0]), LOG_Q),
        ValueError,
        "target .*-0.5",
    ),
    "crosstalk: above 0": (lambda: imm.crosstalk(LOG_Q + 9), ValueError, "log_q .*at most 0"),
    # targets
    "target: sums": (lambda: imm.ReverseKD(2 * TARGET), ValueError, "target .*sum to 1"),
    "target: nan": (lambda: imm.ReverseKD(off(TARGET, NAN)), ValueError, "target .*finite"),
    "target: negative": (lambda: imm.ReverseKD(TARGET - 1), ValueError, "target .*negative"),
    "target: 1-D": (lambda: imm.ReverseKD(TARGET[0]), ValueError, "target .*(S, Y).*(3,)"),
    "target: integers": (
        lambda: imm.ReverseKD(torch.ones(2, 1).long()),
        TypeError,
        "target .*floating.*int64",
    ),
    "target: text": (lambda: imm.ReverseKD("bigram"), TypeError, "target .*callable.*'bigram'"),
    "target: callable's shape": (
        lambda: imm.ReverseKD(lambda s: TARGET[0])(LOG_Q, DATA),
        ValueError,
        "target\\(short\\) .*\\(4, Y\\).*(3,)",
    ),
    "target: callable's sums": (
        lambda: imm.ReverseKD(lambda s: 2 * TARGET[s])(LOG_Q, DATA),
        ValueError,
        "target\\(short\\) .*sum to 1",
    ),
    # estimators
    "sampled: k 0": (lambda: sampled(k=0), ValueError, "k .*at least 1.*0"),
    "sampled: k float": (lambda: sampled(k=1.5), TypeError, "k .*int.*1.5"),
    "sampled: generator": (lambda: sampled(generator=3), TypeError, "generator .*Generator.*3"),
    "sampled: empty batch": (lambda: sampled()(NET, DATA[:0]), ValueError, "short .*non-empty"),
    "sampled: never seen": (
        lambda: sampled()(NET, torch.tensor([3])),
        ValueError,
        "short .*never seen.*3",
    ),
    "sampled: labels": (
        lambda: sampled()(PairModel(4, 4, 5), DATA),
        ValueError,
        "query\\(short, extended\\) .*\\(30, 3\\).*5",
    ),
    "sequential: labels": (
        lambda: sampled(sequential=True)(PairModel(4, 4, 5), DATA),
        ValueError,
        "query\\(short, extended\\) .*\\(3, 3\\).*5",
    ),
    "exact: query's nan": (
        lambda: imm.ExactIMM(TARGET, GROUPED)(lambda s, e: NAN * NET(s, e), DATA),
        ValueError,
        "query\\(short, extended\\) .*nan",
    ),
    "exact: query's logits": (
        lambda: imm.ExactIMM(TARGET, GROUPED)(lambda s, e: 9 - NET(s, e), DATA),
        ValueError,
        "query\\(short, extended\\) .*at most 0",
    ),
    "noising: k 0": (lambda: imm.SampledNoising(TARGET, GROUPED, 0), ValueError, "k .*at least 1"),
    "table: target's size": (
        lambda: imm.SerializedIMM(TARGET, 5, 3),
        ValueError,
        "target .*(5, 3).*(4, 3)",
    ),
    "table: num_labels": (lambda: imm.MovingAverageIMM(TARGET, 4, 0), ValueError, "num_labels .*0"),
    "serialized: before refresh": (
        lambda: imm.SerializedIMM(TARGET, 4, 3).double()(LOG_Q, DATA, LOG_Q),
        ValueError,
        "short .*never visited by a refresh.*0",
    ),
    "serialized: unseen by refresh": (
        lambda: serialized()(LOG_Q, torch.tensor([0, 1, 2, 3]), LOG_Q),
        ValueError,
        "short .*never visited by a refresh.*3",
    ),
    "serialized: frozen shape": (
        lambda: serialized()(LOG_Q, DATA, LOG_Q[:2]),
        ValueError,
        "log_q_frozen .*(4, 3)",
    ),
    "serialized: labels": (
        lambda: serialized()(LOG_Q[:, :2].log_softmax(-1), DATA, LOG_Q),
        ValueError,
        "log_q .*(4, 3).*(4, 2)",
    ),
    "serialized: rows": (
        lambda: serialized()(LOG_Q, DATA[:2], LOG_Q),
        ValueError,
        "log_q .*(2, 3).*(4, 3)",
    ),
    "serialized: empty refresh": (lambda: serialized().refresh([]), ValueError, "batches .*none"),
    "serialized: refresh with nothing": (
        lambda: serialized().refresh(None),
        TypeError,
        "batches .*pairs.*None",
    ),
    "serialized: refresh with one pair": (
        lambda: serialized().refresh((LOG_Q, DATA)),
        TypeError,
        "batches .*pairs.*float64 tensor",
    ),
    "table: a state of another kind": (
        lambda: moving().load_state_dict({"table": None, "visited": torch.zeros(4)}),
        TypeError,
        "state_dict\\['table'\\] .*Tensor.*None",
    ),
    "moving: momentum 0": (
        lambda: imm.MovingAverageIMM(TARGET, 4, 3, 0.0),
        ValueError,
        "momentum .*\\(0, 1\\].*0",
    ),
    "moving: momentum 2": (
        lambda: imm.MovingAverageIMM(TARGET, 4, 3, 2),
        ValueError,
        "momentum .*\\(0, 1\\].*2",
    ),
    "moving: max_ratio": (
        lambda: imm.MovingAverageIMM(TARGET, 4, 3, max_ratio=0.5),
        ValueError,
        "max_ratio .*0.5",
    ),
    "moving: nan": (lambda: moving()(off(LOG_Q, NAN), DATA), ValueError, "log_q .*nan"),
    "moving: float ids": (lambda: moving()(LOG_Q, DATA.double()), TypeError, "short .*integer"),
    "moving: id": (lambda: moving()(LOG_Q, DATA + 2), ValueError, "short .*\\[0, 4\\).*4"),
    "moving: other device": (
        lambda: moving()(LOG_Q.to("meta"), DATA.to("meta")),
        ValueError,
        "log_q is on meta but the table is on cpu",
    ),
    "moving: eval before a visit": (
        lambda: moving().eval()(LOG_Q, DATA),
        ValueError,
        "short .*never visited.*0",
    ),
    "surprise: labels without values": (
        lambda: imm.premise.surprise(TARGET, torch.zeros(len(TARGET), device="meta").long()),
        ValueError,
        "label must hold values",
    ),
    "informations: contexts without values": (
        lambda: imm.worth.informations(
            lambda s, e: s, torch.nn.Linear(1, 2).parameters(), GROUPED, DATA, DATA.to("meta")
        ),
        ValueError,
        "extended must hold values",
    ),
    "moving: callable's labels": (
        lambda: imm.MovingAverageIMM(lambda s: TARGET[s], 4, 2).double()(
            LOG_Q[:, :2].log_softmax(-1).log_softmax(1), DATA
        ),
        ValueError,
        "target.short. must be .*num_labels = 2",
    ),
    # baselines and clipping
    "reverse-KD: labels": (
        lambda: imm.ReverseKD(TARGET)(LOG_Q[:, :2].log_softmax(-1), DATA),
        ValueError,
        "log_q .*(4, 3).*(4, 2)",
    ),
    "reverse-KD: short": (
        lambda: imm.ReverseKD(TARGET)(LOG_Q, [0, 1, 0, 2]),
        TypeError,
        "short .*Tensor",
    ),
    "interpolation: weight": (
        lambda: imm.Interpolation(TARGET, 1.2),
        ValueError,
        "weight .*\\[0, 1\\].*1.2",
    ),
    "clip: lambda < 0": (
        lambda: imm.clipped_backward(ONE * 1, ONE * 1, [ONE], lam=-1),
        ValueError,
        "lam .*-1",
    ),
    "clip: lambda nan": (
        lambda: imm.clipped_backward(ONE * 1, ONE * 1, [ONE], lam=NAN),
        ValueError,
        "lam .*nan",
    ),
    "clip: norm": (
        lambda: imm.clipped_backward(ONE * 1, ONE * 1, [ONE], max_norm=0),
        ValueError,
        "max_norm .*0",
    ),
    "clip: not a scalar": (
        lambda: imm.clipped_backward(ONE * 1, torch.ones(2), [ONE]),
        ValueError,
        "imm_loss .*scalar.*(2,)",
    ),
    "clip: no graph": (
        lambda: imm.clipped_backward(ONE * 1, torch.ones(()), [ONE]),
        ValueError,
        "imm_loss .*graph",
    ),
    "clip: a bare tensor": (
        lambda: imm.clipped_backward(ONE * 1, ONE * 1, ONE),
        TypeError,
        "parameters .*iterable",
    ),
    "clip: not a leaf": (
        lambda: imm.clipped_backward(ONE * 1, ONE * 1, [ONE * 1]),
        ValueError,
        "parameters .*leaf",
    ),
    "risk: leading dimensions": (
        lambda: imm.imm_risk(TARGET[:3], LOG_Q.expand(4, 4, 3)),
        ValueError,
        "target .*leading dimensions",
    ),
    "induce: leading dimensions": (
        lambda: imm.induce(LOG_Q.expand(4, 4, 3), LOG_Q.new_zeros(3, 4) - math.log(4)),
        ValueError,
        "log_w .*leading dimensions",
    ),
    "risk: empty target": (lambda: imm.imm_risk(TARGET[:0], LOG_Q), ValueError, "target .*(0, 3)"),
    "clip: no parameters": (
        lambda: imm.clipped_backward(ONE * 1, ONE * 1, []),
        ValueError,
        "parameters .*none",
    ),
    # tabular worlds
    "world: 2-D": (
        lambda: imm.TabularWorld(torch.ones(1, 1)),
        ValueError,
        "joint .*(S, E, Y).*(1, 1)",
    ),
    "world: sums": (lambda: imm.TabularWorld(torch.ones(2, 2, 2)), ValueError, "joint .*sum to 1"),
    "world: negative": (
        lambda: imm.TabularWorld(torch.tensor([[[1.5, -0.5]]])),
        ValueError,
        "joint .*negative",
    ),
    "world: empty context": (
        lambda: imm.TabularWorld(torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])),
        ValueError,
        "joint .*s = 1",
    ),
    "world: model's shape": (
        lambda: imm.counterexample().kl(LOG_Q[None]),
        ValueError,
        "log_q .*(2, 2, 2).*(1, 4, 3)",
    ),
    "world: lambda": (
        lambda: imm.counterexample().noising_minimiser(-0.1),
        ValueError,
        "lam .*-0.1",
    ),
    "contexts: the class": (
        lambda: imm.ExactIMM(TARGET, imm.KernelContexts),
        TypeError,
        "contexts must be one of the context classes, got .*KernelContexts",
    ),
    "sampled: a word for a flag": (
        lambda: sampled(sequential="no"),
        TypeError,
        "sequential must be True or False, got 'no'",
    ),
    "exact: a query of one argument": (
        lambda: imm.ExactIMM(TARGET, GROUPED)(torch.nn.Linear(3, 3), DATA),
        TypeError,
        r"query must take \(short, extended\), got \(input",
    ),
    "mean: a query of one argument": (
        lambda: imm.means.ExactMean(TARGET, GROUPED)(lambda x: x, DATA),
        TypeError,
        r"query must take \(short, extended\), got \(x\)",
    ),
    "fused sampled: a query of three": (
        lambda: imm.FusedSampledIMM(TARGET, GROUPED)(lambda x, y, z: x, DATA, TARGET),
        TypeError,
        r"query must take \(short, extended\), got \(x, y, z\)",
    ),
    "exact: integers for a kernel": (
        lambda: imm.ExactIMM(lambda s: s.log_softmax(1), KERNEL)(NET, DATA),
        TypeError,
        "short must be a floating-point tensor, got .*int64",
    ),
    "mean: integers for a kernel": (
        lambda: imm.means.ExactMean(lambda s: s.log_softmax(1), KERNEL)(NET, DATA),
        TypeError,
        "short must be a floating-point tensor, got .*int64",
    ),
    "exact: a classifier": (
        lambda: imm.ExactIMM(Scorer(), KERNEL),
        TypeError,
        "target must be a .*; imm.from_sklearn makes a target of a classifier",
    ),
    "exact: a classifier's method": (
        lambda: imm.ExactIMM(Scorer().predict_proba, KERNEL),
        TypeError,
        "target must be a .*; imm.from_sklearn makes a target of a classifier",
    ),
    "mean: a regressor": (
        lambda: imm.means.ExactMean(object(), KERNEL),
        TypeError,
        "target must be a (S, D) table or a callable short -> (B, D), got",
    ),
    "mean: no column": (
        lambda: imm.means.ExactMean(lambda s: s, KERNEL)(NET, torch.zeros(3)),
        ValueError,
        r"target\(short\) must be \(1, D\); one output is \[:, None\], got",
    ),
    "worth: pairs without labels": (
        lambda: imm.worth.compare(
            NET, NET.parameters(), GROUPED, DATA, torch.arange(4), TARGET, pairs=DATA
        ),
        TypeError,
        "pairs must be (short, labels), got a int64 tensor",
    ),
    "exact: finer labels": (
        lambda: imm.ExactIMM(TARGET[:, :2].softmax(1), GROUPED)(NET, DATA[:2]),
        ValueError,
        r"; for a target of coarser labels give imm.coarsen\(log_q, labels\)",
    ),
    "reverse KD: finer labels": (
        lambda: imm.ReverseKD(TARGET[:, :2].softmax(1))(LOG_Q, DATA),
        ValueError,
        r"; for a target of coarser labels give imm.coarsen\(log_q, labels\)",
    ),
    "moving average: finer labels": (
        lambda: imm.MovingAverageIMM(TARGET[:, :2].softmax(1), 4, 2)(LOG_Q.float(), DATA),
        ValueError,
        r"; for a target of coarser labels give imm.coarsen\(log_q, labels\)",
    ),
    "world: objective": (
        lambda: imm.counterexample().minimise("kd", 1),
        ValueError,
        "objective .*imm.*'kd'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name):
    call, error, pattern = CASES[name]
    pattern = re.sub(
        r"(?<!\\)\((.*?)(?<!\\)\)", r"\\(\1\\)", pattern
    )  # plain brackets are shapes, not groups
    with pytest.raises(error, match=pattern) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 240
    assert caught.traceback[-1].path.parts[-2] in ("imm_lib", "targets")


@pytest.mark.parametrize("build", [serialized, moving])
@pytest.mark.parametrize(("name", "size"), [("table", (5, 3)), ("visited", (5,))])
def test_a_state_of_another_size_is_refused_whole(build, name, size):
    term = build()
    state = {key: value.clone() for key, value in term.state_dict().items()}
    before = {key: value.clone() for key, value in state.items()}
    state["table"].fill_(-1.0)
    state[name] = torch.zeros(size, dtype=state[name].dtype)
    with pytest.raises(
        ValueError, match=rf"state_dict\['{name}'\] must be .* got {re.escape(str(size))}"
    ):
        term.load_state_dict(state)
    for key, value in term.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[key].nan_to_num())


def test_numpy_labels_are_labels():
    fused, hidden, weight = (
        imm.FusedIMM(TARGET, 4, 3, labels="none"),
        torch.ones(4, 1),
        TARGET[:3, :1],
    )
    labels = DATA.numpy()
    value = fused(hidden, weight.float(), None, labels, labels)
    assert torch.equal(value, fused(hidden, weight.float(), None, DATA, DATA))
    with pytest.raises(TypeError, match="labels must be an integer tensor of ids, got a float64"):
        fused(hidden, weight.float(), None, labels / 2, labels)


def test_names_that_the_package_lacks():
    with pytest.raises(AttributeError, match=r"no attribute 'from_sklern'$") as caught:
        imm.from_sklern  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("from_sklern", imm)
    with pytest.raises(AttributeError, match=r"; there is imm_lib.means.ExactMean$"):
        imm.ExactMean  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'Tensor'$"):
        imm.Tensor  # noqa: B018


def test_bad_calls_leave_the_table_alone():
    term = moving()
    term(LOG_Q, DATA)
    before = term.table.clone()
    wrong_target = imm.MovingAverageIMM(lambda s: TARGET[s, :2].softmax(1), 4, 3).double()
    wrong_target.load_state_dict(term.state_dict())
    bad = [
        (term, off(LOG_Q, NAN), DATA),
        (term, LOG_Q, DATA + 2),
        (term, LOG_Q[:, :2].log_softmax(-1), DATA),
    ]
    for one, log_q, short in [*bad, (wrong_target, LOG_Q, DATA)]:
        with pytest.raises(ValueError):
            one(log_q, short)
        assert torch.equal(one.table.nan_to_num(), before.nan_to_num())


def test_bad_clipping_leaves_the_gradients_alone():
    ONE.grad = None
    with pytest.raises(ValueError):
        imm.clipped_backward(ONE * 1, ONE * 1, [ONE], lam=-1)
    assert ONE.grad is None


def test_gpu_like_tensors_are_not_looked_at():
    """On a device whose values cannot be read for free, only shapes are checked; meta tensors have
    no values at all.
    """
    log_q = torch.zeros(2, 3, 4, device="meta") + 9
    assert imm.induce(log_q).shape == (2, 4)
    assert imm.imm_risk(
        torch.ones(4, device="meta"), log_q, torch.ones(2, 3, device="meta")
    ).shape == (2,)
    with pytest.raises(ValueError, match=r"target must be \(\.\.\., 4\)"):
        imm.imm_risk(torch.ones(5, device="meta"), log_q)


def test_a_number_that_no_float_holds_is_refused():
    with pytest.raises(ValueError, match="weight must be a finite number"):
        imm.Interpolation(TARGET, 10**400)


def test_numbers_of_numpy_are_numbers():
    worth = Worth(torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.5]))
    expected = worth.optimal_lambda(100, 50, known=True)
    for kind in (np.int64, np.float32, np.float64):
        assert worth.optimal_lambda(kind(100), kind(50), known=True) == expected
