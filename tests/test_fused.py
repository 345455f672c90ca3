"""The fused last layer against its slow twin: cross-entropy plus an unfused estimator."""

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import assert_same, random_probabilities

import imm_lib as imm
from imm_lib import checks, corrections, head

S = Y = 6
N, H = 17, 4
TEXT = torch.randint(S, (40,), generator=torch.Generator().manual_seed(0))
BIGRAM = imm.KneserNeyBigram.fit(TEXT, S)
TARGET = random_probabilities(S, Y)


def fused(labels="all", momentum=0.3, max_ratio=math.inf, target=None):
    target = (
        target
        if target is not None
        else {"seen": copy.deepcopy(BIGRAM).double()}.get(labels, TARGET)
    )
    return imm.FusedIMM(target, S, Y, momentum, max_ratio, labels).double()


def layer(seed=0, size=N, labels=Y, bias=True):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    return normal(size, H), normal(labels, H), normal(labels) if bias else None


def batch(seed=0, size=N):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(Y, (size,), generator=draw), torch.randint(S, (size,), generator=draw)


class Twin(nn.Module):
    """The same from whole log-probabilities, with the library's other estimators or by the book."""

    def __init__(self, module):
        super().__init__()
        self.kind, self.max_ratio = module.labels, module.max_ratio
        self.average = imm.MovingAverageIMM(
            module.target, S, Y, module.momentum, module.max_ratio
        ).double()
        self.uncorrected = imm.ReverseKD(module.target)

    def forward(
        self, hidden, weight, bias, labels, short, lam=1.0, ignored=-100, label_weights=None
    ):
        log_q = F.linear(hidden, weight, bias).log_softmax(1)
        loss = F.nll_loss(log_q, labels, label_weights, ignore_index=ignored)
        log_q, short = log_q[labels != ignored], short[labels != ignored]
        if self.kind == "none":
            term = self.uncorrected(log_q, short)
            self.risk = self.uncorrected.risk
        else:
            term = self.average(log_q, short)
            self.risk = self.average.risk
        if self.kind == "seen":
            table, target = self.average.table[short], self.average.target(short)
            seen = torch.zeros(S, Y, dtype=torch.bool)
            seen.view(-1)[BIGRAM.keys] = True
            ratio = (log_q.detach() - table).exp().clamp(max=self.max_ratio)
            ratio = torch.where(seen[short], ratio, 1.0)
            rest, lumped = (torch.where(seen[short], 0, x).sum(1) for x in (target, table.exp()))
            risk = (target * table).where(seen[short], 0).sum(1) + rest * lumped.clamp(
                min=1e-300
            ).log()
            self.risk = -risk.mean()  # with the others as one label
            term = -(target * ratio * log_q).sum(1).mean()
            term = term - term.detach() + self.risk  # the value is the risk, the gradient eq. 13's
        return loss + lam * term

    def table(self, module):
        """Its table as the module keeps it."""
        if self.kind == "seen":
            return torch.cat([self.average.table.view(-1)[BIGRAM.keys], module.table[-1:]])
        return self.average.table


def small_parts(patch, rows):
    patch.setattr(head, "LEAST", rows)
    patch.setattr(head, "ELEMENTS", {"cpu": 1})


@given(
    seed=st.integers(0, 10**6),
    labels=st.sampled_from(["all", "seen", "none"]),
    size=st.integers(1, 25),
    rows=st.sampled_from([1, 2, 5, 100]),
    lam=st.sampled_from([0.2, 1.0, 3.0]),
    max_ratio=st.sampled_from([math.inf, 1.3]),
    bias=st.booleans(),
    ignore=st.booleans(),
    weighted=st.booleans(),
    look=st.booleans(),
    heavy=st.sampled_from([1, 6, 10**9]),
)
@settings(max_examples=150, deadline=None)
def test_fused_is_the_sum_of_its_parts(
    seed, labels, size, rows, lam, max_ratio, bias, ignore, weighted, look, heavy
):
    """Value, gradients, table and risk, over some steps, for parts of any size."""
    module = fused(labels, max_ratio=max_ratio)
    twin = Twin(module)
    label_weights = random_probabilities(Y, seed=seed) if weighted else None
    with pytest.MonkeyPatch.context() as patch:
        for step in range(3):
            inputs = layer(seed + step, size, bias=bias)
            ids, short = batch(seed + step, size)
            if ignore:
                ids[1::2] = -100
            wanted = [x for x in inputs if x is not None]
            small_parts(patch, rows)
            patch.setattr(corrections, "HEAVY", heavy)
            if not look:
                patch.setattr(checks, "visible", lambda x: False)
            value = module(*inputs, ids, short, lam, label_weights=label_weights)
            patch.undo()
            right = twin(*inputs, ids, short, lam, label_weights=label_weights)
            torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(module.risk, twin.risk, rtol=1e-12, atol=1e-12)
            assert_same(*(torch.autograd.grad(-2.5 * x, wanted) for x in (value, right)))
            assert not module.cross_entropy.requires_grad and not module.risk.requires_grad
    if labels != "none":
        assert torch.equal(module.visited, twin.average.visited)
        seen = twin.table(module)
        close = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}
        rows = module.visited if labels == "all" else module.visited[BIGRAM.keys // Y]
        torch.testing.assert_close(
            module.table[: len(rows)][rows], seen[: len(rows)][rows], **close
        )


@pytest.mark.parametrize("labels", ["all", "seen", "none"])
@pytest.mark.parametrize("rows", [4, 100])
@pytest.mark.parametrize("look", [True, False])
def test_a_group_of_one_rank_is_no_group(labels, rows, look, one_rank, monkeypatch):
    """By the pass that moves the average by the probabilities of all ranks."""
    small_parts(monkeypatch, rows)
    if not look:
        monkeypatch.setattr(checks, "visible", lambda x: False)
    alone, together = fused(labels), fused(labels)
    together.group = one_rank
    for step in range(4):
        found = []
        label, short = batch(step)
        label[: 2 * step] = -100
        for module in (alone, together):
            hidden, weight, bias = layer(step)
            value = module(hidden, weight, bias, label, short, lam=0.7)
            gradient = torch.autograd.grad(value, (hidden, weight, bias))
            tables = (module.table[:-1] if labels == "seen" else module.table, module.visited)
            found.append([value, *gradient, module.risk, module.cross_entropy, *tables])
        torch.testing.assert_close(found[1], found[0], equal_nan=True)  # rows never visited


@pytest.mark.parametrize("labels", ["all", "seen", "none"])
def test_no_tensor_holds_all_logits(labels, monkeypatch):
    """Also where all data points share one short context."""
    small_parts(monkeypatch, 5)

    class Watch(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                self.most = max(self.most, found.numel())
            return found

    for short in (batch(0, 300)[1], torch.zeros(300, dtype=torch.long)):
        with Watch() as watch:
            fused(labels)(*layer(0, 300), batch(0, 300)[0], short).backward()
        assert watch.most <= max(300 * H, 2 * S * Y)
    with Watch() as watch:
        F.cross_entropy(F.linear(*layer(0, 300)), batch(0, 300)[0])
    assert watch.most == 300 * Y


def test_without_lambda_it_is_the_cross_entropy():
    module, inputs, (ids, short) = fused(), layer(), batch()
    value = module(*inputs, ids, short, lam=0.0)
    right = F.cross_entropy(F.linear(*inputs), ids)
    torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
    assert_same(*(torch.autograd.grad(x, inputs) for x in (value, right)))
    assert module.risk is None and module.table.isnan().all() and not module.visited.any()


def test_in_eval_mode_the_table_stands_still():
    for labels in ("all", "seen", "none"):
        module = fused(labels)
        twin = Twin(module)
        ids, short = batch()
        module(*layer(), ids, short), twin(*layer(), ids, short)
        before = module.table.clone()
        module.eval(), twin.eval()
        inputs = layer(5)
        value, right = (x(*inputs, ids, short) for x in (module, twin))
        torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
        assert_same(*(torch.autograd.grad(x, inputs) for x in (value, right)))
        assert torch.equal(before.nan_to_num(), module.table.nan_to_num())


@pytest.mark.parametrize("labels", ["all", "seen", "none"])
def test_a_target_of_another_precision(labels):
    """A bigram that another module has taken along to double precision."""
    inputs = [x.detach().float() for x in layer()]
    single, double = (copy.deepcopy(BIGRAM), copy.deepcopy(BIGRAM).double())
    values = [
        imm.FusedIMM(t, S, Y, 0.3, labels=labels)(*inputs, *batch()) for t in (single, double)
    ]
    assert values[0].dtype == values[1].dtype == torch.float32
    torch.testing.assert_close(*values)


def duplicates(module):
    """Copies of three kinds."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    )


@pytest.mark.parametrize("labels", ["all", "seen", "none"])
def test_a_copy_in_the_middle_of_training_goes_on_like_the_original(labels):
    module, inputs = fused(labels), layer()
    module(*inputs, *batch(1))
    copies = [module, *duplicates(module)]
    values = [one(*inputs, *batch(2)) for one in copies]
    assert torch.stack(values).unique().numel() == 1
    for one in copies[1:]:
        assert torch.equal(one.table.nan_to_num(), module.table.nan_to_num())


def test_a_copy_of_the_sampled_term_draws_like_the_original():
    contexts, (hidden, weight, bias) = imm.GroupedContexts(TEXT, S), layer(0, len(TEXT))
    term = imm.FusedSampledIMM(TARGET, contexts, 3)
    term(lambda _, e: hidden[e], batch()[1], weight, bias)
    values = []
    for one in (term, *duplicates(term)):
        torch.manual_seed(5)
        values.append(one(lambda _, e: hidden[e], batch()[1], weight, bias))
    assert torch.stack(values).unique().numel() == 1


@pytest.mark.parametrize("labels", ["all", "seen", "none"])
def test_layouts_and_a_scaled_loss(labels):
    """Transposed, strided and repeated hidden states, and the factor of a gradient scaler."""
    (_, weight, bias), (ids, short) = layer(), batch()
    draw = torch.randn(2 * N, 2 * H, dtype=torch.float64)
    for hidden in (
        draw[:N, :H],
        draw[::2, ::2],
        draw.T.contiguous()[:H, :N].T,
        draw[:1, :H].expand(N, H),
    ):
        hidden = hidden.detach().requires_grad_()
        found = []
        for module in (fused(labels), Twin(fused(labels))):
            value = 2.0**12 * module(hidden, weight, bias, ids, short)
            grads = torch.autograd.grad(value, (hidden, weight, bias))
            found.append([g / 2.0**12 for g in grads])
        assert_same(*found)


def test_tied_embeddings_and_dropout_before_the_layer():
    weight = torch.randn(Y, H, dtype=torch.float64, requires_grad=True)
    ids, short = batch()
    found = []
    for module in (fused(), Twin(fused())):
        torch.manual_seed(0)
        hidden = F.dropout(torch.tanh(F.embedding(short, weight)), 0.5)
        value = module(hidden, weight, None, ids, short)
        found.append(torch.autograd.grad(value, [weight]))
    assert_same(*found)


def test_what_needs_no_gradient_gets_none():
    hidden, weight, bias = layer()
    ids, short = batch()
    with torch.no_grad():
        assert not fused()(hidden, weight, bias, ids, short).requires_grad
    value = fused()(hidden.detach(), weight, bias.detach(), ids, short)
    right = Twin(fused())(hidden, weight, bias, ids, short)
    assert_same(*(torch.autograd.grad(x, [weight]) for x in (value, right)))


def test_a_second_derivative_is_refused():
    inputs = layer()
    value = fused()(*inputs, *batch())
    first = torch.autograd.grad(value, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        sum(x.square().sum() for x in first).backward()
    assert_same(first, torch.autograd.grad(Twin(fused())(*inputs, *batch()), inputs))


def test_function_transforms_are_refused():
    module, inputs, (ids, short) = fused(), [x.detach() for x in layer()], batch()

    def loss(*inputs):
        return module(*inputs, ids, short)

    for transform in (
        lambda: torch.func.grad(loss)(*inputs),
        lambda: torch.func.jacrev(loss)(*inputs),
        lambda: torch.vmap(loss, (0, None, None))(torch.stack([inputs[0]] * 2), *inputs[1:]),
    ):
        with pytest.raises(ValueError, match=r"does not work under torch\.func"):
            transform()
    assert not module.visited.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    inputs = [x.detach().to(dtype).requires_grad_() for x in layer()]
    module = imm.FusedIMM(TARGET.float(), S, Y)
    value = module(*inputs, *batch())
    right = Twin(fused("all", 0.1))(*(x.double() for x in inputs), *batch())
    assert value.dtype == torch.float32 and module.table.dtype == torch.float32
    torch.testing.assert_close(value.double(), right, rtol=2e-2, atol=2e-2)
    found, exact = (torch.autograd.grad(x, inputs) for x in (value, right))
    assert all(a.dtype == dtype for a in found)
    assert_same([x.double() for x in found], [x.double() for x in exact], tolerance=2e-2)


def test_autocast():
    inputs = [x.detach().float().requires_grad_() for x in layer()]
    with torch.autocast("cpu", torch.bfloat16):
        value = imm.FusedIMM(TARGET.float(), S, Y)(*inputs, *batch())
    right = imm.FusedIMM(TARGET.float(), S, Y)(*inputs, *batch())
    torch.testing.assert_close(value, right, rtol=2e-2, atol=2e-2)
    found = [torch.autograd.grad(x, inputs) for x in (value, right)]
    assert all(a.dtype == torch.float32 for a in found[0]) and not torch.equal(
        found[0][0], found[1][0]
    )
    assert_same(*found, tolerance=2e-2)


@pytest.mark.parametrize("labels", ["all", "seen", "none"])
@pytest.mark.parametrize("rows", [5, 100])
def test_a_step_needs_no_value(labels, rows, monkeypatch):
    """As of the other estimators: on the meta device there is none to ask for."""
    monkeypatch.setattr(head, "LEAST", rows)
    monkeypatch.setattr(head, "ELEMENTS", {"meta": 1})
    module = fused(labels, max_ratio=2.0).to("meta")
    inputs = [x.detach().to("meta").requires_grad_() for x in layer()]
    module(*inputs, *(x.to("meta") for x in batch())).backward()
    assert all(x.grad.shape == x.shape for x in inputs)


def test_refresh_is_the_induced_model(monkeypatch):
    small_parts(monkeypatch, 4)
    serialized = imm.SerializedIMM(TARGET, S, Y).double()
    sweeps = [(layer(seed)[0], batch(seed)[1]) for seed in range(3)]
    _, weight, bias = layer()
    serialized.refresh([(F.linear(h, weight, bias).log_softmax(1), s) for h, s in sweeps])
    close = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}
    for labels in ("all", "seen", "none"):
        module = fused(labels)
        module.refresh(sweeps, weight, bias)
        right = serialized.table if labels == "all" else serialized.table.view(-1)[BIGRAM.keys]
        if labels != "none":
            torch.testing.assert_close(module.table[: len(right)], right, **close)
        assert torch.equal(module.visited, serialized.visited)
        before = module.table.clone()
        for bad in ([], [sweeps[0], (sweeps[0][0] * math.nan, sweeps[0][1])]):
            with pytest.raises(ValueError):
                module.refresh(bad, weight, bias)
        torch.testing.assert_close(module.table, before, **close)


def test_tables_travel_between_twins_but_not_between_kinds():
    average, module = imm.MovingAverageIMM(TARGET, S, Y, 0.3).double(), fused()
    ids, short = batch()
    average(F.linear(*layer()).log_softmax(1).detach(), short)
    module.load_state_dict(average.state_dict())
    module(*layer(1), ids, short), average(F.linear(*layer(1)).log_softmax(1).detach(), short)
    torch.testing.assert_close(module.table, average.table, rtol=1e-12, atol=1e-12, equal_nan=True)
    for left, right in (("all", "seen"), ("seen", "all"), ("seen", "none"), ("none", "all")):
        with pytest.raises(ValueError, match=r"state_dict\['table'\] must be"):
            fused(left).load_state_dict(fused(right).state_dict())


@pytest.mark.parametrize("labels", ["all", "seen"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_what_is_not_finite_is_refused_before_anything_changes(labels, value):
    module, (ids, short) = fused(labels), batch()
    module(*layer(), ids, short)
    before = copy.deepcopy(module.state_dict())
    for place in range(3):
        inputs = [x.detach().clone() for x in layer(3)]
        inputs[place].view(-1)[-1] = value
        if place == 2 and value in (-math.inf, 1e308):
            continue  # a label that is ruled out, one that is certain
        if place == 1:
            inputs[0].fill_(1e5)
        with pytest.raises(ValueError, match=r"must (be finite|have products)"):
            module(*inputs, ids, short)
    for name, old in before.items():
        assert torch.equal(old.nan_to_num(), module.state_dict()[name].nan_to_num())


@pytest.mark.parametrize("labels", ["all", "seen"])
@pytest.mark.parametrize("rows", [3, 100])
def test_what_cannot_be_refused_does_not_stay(labels, rows, monkeypatch):
    """On a GPU: the rows of short contexts with NaN stay as they were, the others move."""
    small_parts(monkeypatch, rows)
    module, (ids, short) = fused(labels), batch()
    short = short.clamp(max=S - 2)
    short[0] = 0
    module(*layer(), ids, short)
    clean, hidden = copy.deepcopy(module), [x.detach().clone() for x in layer(1)]
    short[3:5] = S - 1  # a first visit
    monkeypatch.setattr(checks, "visible", lambda x: False)
    clean(*hidden, ids, short)
    others = (short != short[0]) & (short != S - 1)
    hidden[0][0], hidden[0][3] = math.nan, math.inf
    old = module.table.clone()
    assert module(*hidden, ids, short).isnan()
    owner = torch.arange(S) if labels == "all" else BIGRAM.keys // Y
    table = module.table[: len(owner)]
    moved = torch.isin(owner, short[others])
    torch.testing.assert_close(table[moved], clean.table[: len(owner)][moved])
    if rows == 100:
        assert torch.equal(table[owner == short[0]], old[: len(owner)][owner == short[0]])
        assert not module.visited[S - 1]
    assert table[module.visited[owner]].isfinite().all()


def test_a_label_that_is_ruled_out():
    bias = torch.zeros(Y, dtype=torch.float64)
    bias[2] = -math.inf
    target = TARGET.clone()
    target[:, 2] = 0
    target = target / target.sum(1, keepdim=True)
    ids, short = batch()
    ids[ids == 2] = 1
    inputs = layer()[:2]
    for labels in ("all", "none"):
        module = fused(labels, target=target)
        value, right = (x(*inputs, bias, ids, short) for x in (module, Twin(module)))
        torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
        assert_same(*(torch.autograd.grad(x, inputs) for x in (value, right)))


GOOD = (*(x.detach() for x in layer()), *batch())


def with_argument(place, value):
    return [*GOOD[:place], value, *GOOD[place + 1 :]]


def odd_ids(value):
    ids = GOOD[3].clone()
    ids[4] = value
    return ids


BAD = {
    "hidden: a list": (0, [1.0], TypeError, "hidden must be a torch.Tensor"),
    "hidden: ids": (0, GOOD[3], TypeError, "hidden must be a floating-point"),
    "hidden: three dimensions": (0, GOOD[0][None], ValueError, "hidden must be .*[(]N, H[)]"),
    "hidden: batch and time": (0, GOOD[0][None], ValueError, r"join batch and time by flatten"),
    "hidden: NaN": (0, GOOD[0] * math.nan, ValueError, "hidden must be finite"),
    "hidden: half": (0, GOOD[0].bfloat16(), ValueError, "weight must have hidden's dtype"),
    "hidden: sparse": (0, GOOD[0].to_sparse(), TypeError, "hidden must be a dense tensor"),
    "weight: a layer": (1, nn.Linear(H, Y), TypeError, "weight must be a torch.Tensor"),
    "weight: transposed": (1, GOOD[1].T, ValueError, "weight must be .* as hidden"),
    "bias: False": (2, False, TypeError, "bias must be a torch.Tensor"),
    "bias: rules all out": (2, GOOD[2] * 0 - math.inf, ValueError, "bias must leave some label"),
    "labels: one-hot": (3, F.one_hot(GOOD[3], Y), ValueError, "labels must be .17,."),
    "hidden: none": (0, GOOD[0][:0], ValueError, "hidden must be .*[(]N, H[)]"),
    "hidden: width": (0, GOOD[0][:, :2], ValueError, "weight must be [(]Y, 2[)] as hidden"),
    "hidden: float32": (0, GOOD[0].float(), ValueError, "weight must have hidden's dtype"),
    "weight: labels": (1, GOOD[1][:3], ValueError, "bias must be .3,."),
    "bias: size": (2, GOOD[2][:3], ValueError, "bias must be .6,."),
    "bias: float32": (2, GOOD[2].float(), ValueError, "bias must have hidden's dtype"),
    "labels: too large": (3, odd_ids(Y), ValueError, r"labels must hold ids in \[0, 6\)"),
    "labels: negative": (3, odd_ids(-1), ValueError, r"labels must hold ids in \[0, 6\)"),
    "labels: real": (3, GOOD[3].double(), TypeError, "labels must be an integer"),
    "labels: fewer": (3, GOOD[3][:3], ValueError, "labels must be .17,."),
    "labels: all ignored": (
        3,
        odd_ids(0) * 0 - 100,
        ValueError,
        "labels must hold one that is not",
    ),
    "short: too large": (4, odd_ids(S), ValueError, r"short must hold ids in \[0, 6\)"),
    "short: fewer": (4, GOOD[4][:3], ValueError, "short must be .17,."),
    "short: real": (4, GOOD[4].double(), TypeError, "short must be an integer"),
    "hidden: elsewhere": (0, GOOD[0].to("meta"), ValueError, "weight is on cpu but hidden"),
    "labels: elsewhere": (3, GOOD[3].to("meta"), ValueError, "labels is on meta"),
    "short: elsewhere": (4, GOOD[4].to("meta"), ValueError, "short is on meta"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    place, value, kind, message = BAD[name]
    module = fused()
    with pytest.raises(kind, match=message):
        module(*with_argument(place, value))
    assert module.table.isnan().all() and not module.visited.any()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"lam": -1}, ValueError, "lam must be a finite number in"),
        ({"lam": "1"}, TypeError, "lam must be a real number"),
        ({"lam": math.nan}, ValueError, "lam must be a finite number in"),
        ({"lam": torch.tensor(1.0)}, TypeError, "lam must be a real number"),
        ({"ignore_index": None}, TypeError, "ignore_index must be an int"),
        ({"ignore_index": 2**70}, ValueError, "ignore_index must be a number of int64, got"),
        ({"label_weights": [1.0] * Y}, TypeError, "label_weights must be a torch.Tensor"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be an int"),
        ({"label_weights": torch.ones(2)}, ValueError, "label_weights must be .6,."),
        ({"label_weights": torch.zeros(Y)}, ValueError, "label_weights must be finite"),
        ({"label_weights": -torch.ones(Y)}, ValueError, "label_weights must be finite"),
        ({"label_weights": torch.ones(Y) * math.nan}, ValueError, "label_weights must be finite"),
    ],
)
def test_bad_options_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        fused()(*GOOD, **options)


@pytest.mark.parametrize("size", [1e-42, 1e-50, 1e50])
def test_label_weights_that_the_table_cannot_hold_are_refused(size):
    module, given = imm.FusedIMM(TARGET, S, Y), [x.detach().float() for x in layer()]
    with pytest.raises(ValueError, match="label_weights must be finite"):
        module(*given, *batch(), label_weights=torch.full((Y,), size, dtype=torch.float64))


def test_a_weight_of_other_labels_is_refused():
    with pytest.raises(ValueError, match=r"weight must be .*, with num_labels rows"):
        fused()(GOOD[0], GOOD[1][:3], None, *GOOD[3:])


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: imm.FusedIMM(TARGET, 3, Y), ValueError, "target must be .*got .6, 6."),
        (lambda: imm.FusedIMM(BIGRAM, 3, Y), ValueError, "target must be .*got .6, 6."),
        (lambda: imm.FusedIMM(TARGET, S, Y, momentum=0), ValueError, "momentum"),
        (lambda: imm.FusedIMM(TARGET, S, Y, max_ratio=0.5), ValueError, "max_ratio"),
        (
            lambda: imm.FusedIMM(TARGET, S, Y, labels="some"),
            ValueError,
            "labels must be one of all",
        ),
        (lambda: imm.FusedIMM(TARGET, S, Y, labels="seen"), ValueError, "labels = 'seen' needs"),
    ],
)
def test_bad_construction_is_refused(build, kind, message):
    with pytest.raises(kind, match=message):
        build()


def test_an_unvisited_short_context_is_refused_in_eval_mode():
    for labels in ("all", "seen"):
        with pytest.raises(ValueError, match="short has a context that was never visited"):
            fused(labels).eval()(*GOOD)
    assert fused("none").eval()(*GOOD).isfinite()


def test_a_bad_answer_of_the_target_changes_nothing(monkeypatch):
    small_parts(monkeypatch, 3)

    def target(short):
        return torch.where((short == S - 1).any(), 2.0, 1.0) * TARGET[short]

    module = fused(target=target)
    with pytest.raises(ValueError, match=r"target\(short\) must sum to 1"):
        module(*GOOD)
    assert not module.visited.any()
    with pytest.raises(
        ValueError, match=r"target\(short\) must be \(\d+, 6\), with num_labels = 6"
    ):
        fused(target=lambda short: torch.full((len(short), 2), 0.5))(*GOOD)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("rows", [2, 4, 100])
@pytest.mark.parametrize("look", [True, False])
def test_the_sampled_risk_is_that_of_log_probabilities(k, rows, look, monkeypatch):
    """The same draws, value and gradients, whether a part holds many short contexts or a piece."""
    small_parts(monkeypatch, rows)
    if not look:
        monkeypatch.setattr(checks, "visible", lambda x: False)
    contexts, (hidden, weight, bias) = imm.GroupedContexts(TEXT, S), layer(0, len(TEXT))
    found = []
    for build in (imm.FusedSampledIMM, imm.SampledIMM):
        term = build(TARGET, contexts, k, generator=torch.Generator().manual_seed(1))
        if build is imm.SampledIMM:
            value = term(lambda _, e: F.linear(hidden[e], weight, bias).log_softmax(1), batch()[1])
        else:
            value = term(lambda _, e: hidden[e], batch()[1], weight, bias)
        assert torch.equal(term.risk, value.detach())
        found.append([value, *torch.autograd.grad(-2.5 * value, (hidden, weight, bias))])
    assert_same(*found)


def test_a_context_that_is_drawn_twice_is_run_once():
    contexts, (hidden, weight, bias) = imm.GroupedContexts(TEXT, S), layer(0, len(TEXT))
    asked = []

    def query(short, extended):
        asked.append(torch.stack([short, extended]))
        return hidden[extended]

    imm.FusedSampledIMM(TARGET, contexts, 50)(query, batch()[1], weight, bias)
    (found,) = asked
    assert len(found.unique(dim=1).T) == len(found.T) < 50
    assert torch.equal(found[0], found[0].sort().values)


def test_the_sampled_risk_refuses_what_does_not_fit():
    contexts, (hidden, weight, bias) = imm.GroupedContexts(TEXT, S), layer(0, len(TEXT))
    term = imm.FusedSampledIMM(TARGET, contexts, 2)
    with pytest.raises(ValueError, match=r"query\(short, extended\) must be \(\d+, H\)"):
        term(lambda _, e: hidden[e[1:]], torch.arange(S), weight, bias)
    with pytest.raises(ValueError, match=r"weight must be \(6, H\)"):
        term(lambda _, e: hidden[e], torch.arange(S), weight[:3], None)
    with pytest.raises(ValueError, match="hidden must be finite"):
        term(lambda _, e: hidden[e] * math.nan, torch.arange(S), weight, bias)


@pytest.mark.parametrize("labels", ["all", "seen", "none"])
def test_ignored_points_may_be_of_contexts_that_were_never_visited(labels):
    module, (hidden, weight, bias), (label, short) = fused(labels), layer(), batch()
    padding = short == 0
    assert padding.any()
    label[padding] = -100
    some = ~padding
    module(hidden[some], weight, bias, label[some], short[some])
    module.eval()
    inputs = hidden, weight, bias
    expected = module(hidden[some], weight, bias, label[some], short[some])
    parts = expected.detach(), module.risk, *torch.autograd.grad(expected, inputs)
    found = module(hidden, weight, bias, label, short)
    assert_same([found.detach(), module.risk, *torch.autograd.grad(found, inputs)], list(parts))
    label[padding.nonzero()[0]] = 1
    if labels != "none":
        with pytest.raises(ValueError, match="never visited in train mode: 0"):
            module(hidden, weight, bias, label, short)


@pytest.mark.parametrize("dtype, label", [(torch.uint8, 156), (torch.uint16, 65_436)])
def test_no_unsigned_label_is_taken_for_an_ignored_one(dtype, label):
    """-100 as a number of an unsigned dtype."""
    labels, short = torch.tensor([label, 0]), torch.tensor([0, 0])
    hidden, weight = torch.randn(2, 3), torch.randn(label + 1, 3)
    module = imm.FusedIMM(torch.full((1, label + 1), 1 / (label + 1)), 1, label + 1)
    module(hidden, weight, None, labels.to(dtype), short)
    expected = F.cross_entropy(hidden @ weight.T, labels)
    torch.testing.assert_close(module.cross_entropy, expected)
