"""The language experiments: texts, models, histories, terms, training and its checkpoints,
gradients.
"""

import copy
import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import imm_lib as imm
from imm_lib.data import Corpus
from imm_lib.experiments import language as lm
from imm_lib.experiments.language import (
    LSTM,
    Diverged,
    Histories,
    MovingAverage,
    Noising,
    OwnPass,
    Published,
    Sampled,
    Serialized,
    Settings,
    Stream,
    Term,
    Transformer,
    Uncorrected,
    fidelity,
    measures,
    part,
    topics,
    train,
    without_dropout,
)
from imm_lib.experiments.language.training import Run

V = 7


def text(size, seed=0):
    """A text whose next word depends on two words before."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(V, V, V, generator=generator).pow(4)
    tokens = [0, 1]
    for _ in range(size - 2):
        tokens.append(
            torch.multinomial(rows[tokens[-2], tokens[-1]], 1, generator=generator).item()
        )
    return torch.tensor(tokens)


@pytest.fixture
def texts():
    vocab = ["<eos>", "<unk>", "a", "b", "c", "d", "e"]
    return Corpus("toy", text(400), text(120, 0)[-100:], text(90, 0)[-80:], vocab)


@pytest.fixture
def bigram(texts):
    return imm.KneserNeyBigram.fit(texts.train, V)


def lstm(dropout=0.0, width=8):
    torch.manual_seed(1)
    return LSTM(V, width, dropout=dropout, scale=0.5).double()


def transformer(dropout=0.0, width=8):
    torch.manual_seed(1)
    model = Transformer(V, width, dropout=dropout, heads=2, window=5, longest=12).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


SMALL = Settings(width=8, dropout=0.2, batch=4, unroll=5, epochs=3, lr=0.5)


# texts


def test_part_keeps_lines_and_maps_rare_words(texts):
    vocab = ["<eos>", "<unk>", "x", "y", "z"]
    corpus = Corpus(
        "c",
        torch.tensor([2, 3, 0, 2, 4, 0, 3, 0]),
        torch.tensor([4, 0, 2, 0]),
        torch.tensor([3, 0]),
        vocab,
    )
    small = part(corpus, lines=2, held_out=1)
    assert small.vocab == ["<eos>", "<unk>", "x"]
    assert small.train.tolist() == [2, 1, 0, 2, 1, 0]
    assert small.valid.tolist() == [1, 0]
    assert small.test.tolist() == [1, 0]


def test_part_goes_on_with_the_first_line():
    vocab = ["<eos>", "<unk>", "x", "y"]
    corpus = Corpus(
        "c", torch.tensor([2, 0, 3, 0, 3, 2, 0]), torch.tensor([2, 0]), torch.tensor([3, 0]), vocab
    )
    assert part(corpus, lines=2, first=2, least=1).train.tolist() == [3, 2, 0, 2, 0]
    assert part(corpus, lines=2, first=5, least=1).train.tolist() == [3, 2, 0, 2, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lines": 0}, "lines"),
        ({"lines": 99}, "lines must be at most"),
        ({"lines": 1, "held_out": 9}, "held_out"),
        ({"lines": 1, "least": -1}, "least"),
    ],
)
def test_part_refuses(arguments, words):
    corpus = Corpus(
        "c", torch.tensor([1, 0]), torch.tensor([1, 0]), torch.tensor([1, 0]), ["<eos>", "<unk>"]
    )
    with pytest.raises(ValueError, match=words):
        part(corpus, **arguments)


def test_part_needs_the_two_symbols():
    corpus = Corpus("c", *(torch.tensor([0, 1]),) * 3, ["a", "b"])
    with pytest.raises(ValueError, match="<unk>"):
        part(corpus, 1)


def test_a_stream_reads_every_word_once_in_columns():
    tokens = torch.arange(24)
    stream = Stream(tokens, batch=3, unroll=3)
    blocks = list(stream)
    assert len(blocks) == len(stream) == 3
    assert torch.equal(torch.cat([b.words for b in blocks], 1).flatten(), tokens[:21])
    assert torch.equal(torch.cat([b.labels for b in blocks], 1).flatten(), tokens[1:22])
    for block in blocks:
        assert torch.equal(stream.words[block.place], block.words)


@pytest.mark.parametrize("tokens", [torch.arange(4), torch.arange(0)])
def test_a_stream_refuses_a_short_text(tokens):
    with pytest.raises(ValueError, match="tokens must"):
        Stream(tokens, batch=4)


def test_topics_need_more_than_the_previous_word():
    tokens = topics(20_000, seed=1)
    assert torch.equal(tokens, topics(20_000, seed=1)) and not torch.equal(
        tokens, topics(20_000, seed=2)
    )
    assert tokens.shape == (20_000,) and tokens.min() >= 0 and tokens.max() < 40
    pairs = tokens[:-1] * 40 + tokens[1:]
    bigram = torch.bincount(pairs, minlength=1600).view(40, 40).double()
    entropy = torch.special.entr(bigram / bigram.sum(1, keepdim=True)).sum(1)
    one = topics(20_000, seed=1, count=1)
    alone = torch.bincount(one[:-1] * 40 + one[1:], minlength=1600).view(40, 40).double()
    alone = torch.special.entr((alone / alone.sum(1, keepdim=True)).nan_to_num()).sum(1)
    weight = torch.bincount(tokens, minlength=40), torch.bincount(one, minlength=40)
    assert (entropy * weight[0]).sum() > 1.3 * (alone * weight[1]).sum()
    with pytest.raises(ValueError, match="switch"):
        topics(10, switch=2.0)


# models


@pytest.mark.parametrize("build", [lstm, transformer])
def test_a_model_gives_distributions_and_carries_its_state(build):
    model, words = build(), text(20).view(2, 10)
    log_q, state = model(words, model.begin(2))
    assert log_q.shape == (2, 10, V)
    torch.testing.assert_close(log_q.exp().sum(-1), torch.ones(2, 10, dtype=torch.float64))
    if build is lstm:
        first, half = model(words[:, :4], model.begin(2))
        second, end = model(words[:, 4:], half)
        torch.testing.assert_close(torch.cat([first, second], 1), log_q)
        torch.testing.assert_close(end, state)


@pytest.mark.parametrize("build", [lstm, transformer])
def test_a_model_does_not_look_ahead(build):
    model, words = build(), text(20).view(2, 10)
    changed = words.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % V
    before, after = (model(w, model.begin(2))[0] for w in (words, changed))
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_states_before_words_are_those_of_reading_one_by_one():
    model, words = lstm(), text(20).view(2, 10)
    start = torch.randn_like(model.begin(2))
    states, end = model.states(words, start)
    state = start
    for step in range(10):
        torch.testing.assert_close(states[:, step], state)
        _, state = model(words[:, step : step + 1], state)
    torch.testing.assert_close(end, state)


def test_a_transformers_state_is_its_window():
    model, words = transformer(), text(20).view(2, 10)
    states, end = model.states(words, model.begin(2))
    assert (states[:, 0] == V).all()
    assert torch.equal(states[:, 7], words[:, 2:7])
    assert torch.equal(end, words[:, -5:])
    assert torch.equal(end, model(words, model.begin(2))[1])


def test_models_refuse():
    with pytest.raises(ValueError, match="heads"):
        Transformer(V, 9, heads=2)
    with pytest.raises(ValueError, match="longest"):
        transformer()(text(13).view(1, 13), transformer().begin(1))
    with pytest.raises(ValueError, match="dropout"):
        LSTM(V, dropout=1.5)


def test_without_dropout_and_back():
    model = LSTM(V, 8, dropout=0.5).train()
    words = text(20).view(2, 10)
    with without_dropout(model):
        assert torch.equal(model(words, model.begin(2))[0], model(words, model.begin(2))[0])
        assert all(lstm.training for lstm in model.lstms)  # or CUDA would refuse the backward pass
    assert model.training and model.dropout.training


# histories


@pytest.mark.parametrize("steps", [1, 3])
def test_cached_histories_answer_as_the_pass_over_the_text(steps):
    model, stream = lstm(dropout=0.3).train(), Stream(text(60), batch=2, unroll=7)
    histories = Histories(stream, V, steps, dtype=torch.float64)
    histories.refresh(model)
    with without_dropout(model):
        whole = model(stream.words.view(2, -1), model.begin(2))[0].flatten(0, 1)
        # histories that cross into the second column go on where the training's column begins anew
        places = torch.arange(steps - 1, stream.length)
        answers = histories.query(model)(stream.words[places], places)
    torch.testing.assert_close(answers, whole[places])


def test_histories_without_a_cache_forget_what_lies_before():
    model, stream = lstm(), Stream(text(60), batch=2, unroll=7)
    histories = Histories(stream, V, 3, cache=False)
    answer = histories.query(model)(stream.words[[10]], torch.tensor([10]))
    expected = model(stream.words[8:11].unsqueeze(0), model.begin(1))[0][:, -1]
    torch.testing.assert_close(answer, expected)
    assert histories.states is None


def test_a_history_before_the_text_is_completed_with_its_end():
    model, stream = lstm(), Stream(text(60), batch=2, unroll=7)
    answer = Histories(stream, V, 2, cache=False).query(model)(stream.words[[0]], torch.tensor([0]))
    words = torch.stack([stream.words[-1], stream.words[0]]).unsqueeze(0)
    torch.testing.assert_close(answer, model(words, model.begin(1))[0][:, -1])


def test_half_precision_states_are_near():
    model, stream = lstm(), Stream(text(60), batch=2, unroll=7)
    places = torch.arange(len(stream.words))
    answers = []
    for dtype in (torch.float64, torch.float16):
        histories = Histories(stream, V, dtype=dtype)
        histories.refresh(model)
        answers.append(histories.query(model)(stream.words, places))
    assert histories.states.dtype == torch.float16
    assert 0 < (answers[0] - answers[1]).abs().max() < 1e-2


def test_a_cache_that_does_not_fit(monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(MemoryError, match=r"GB.*float16, fewer lines"):
        Histories(Stream(text(60), 2), V).refresh(lstm())


# terms


@pytest.mark.parametrize("words", [0, 12])
@pytest.mark.parametrize("chunk", [1, 900, 10_000])
def test_parts_of_a_sampled_term_add_up(texts, bigram, words, chunk):
    model, stream = lstm(), Stream(texts.train, 4, 5)
    block = next(iter(stream))
    histories = Histories(stream, V, dtype=torch.float64)
    histories.refresh(model)
    term = Sampled(bigram, 1.0, histories, k=400, words=words, chunk=chunk, seed=3)
    total = sum(p.item() for p in term.own(model, block))
    generator = torch.Generator().manual_seed(3)
    drawn = block.words.flatten()
    if words:
        drawn = drawn[torch.randint(len(drawn), (words,), generator=generator)]
    exact = imm.ExactIMM(bigram, histories.contexts)(histories.query(model), drawn).item()
    assert total == pytest.approx(exact, abs=0.02)


def test_words_are_drawn_by_count(texts, bigram):
    model, stream = lstm(), Stream(texts.train, 4, 5)
    block = next(iter(stream))
    histories = Histories(stream, V, dtype=torch.float64)
    histories.refresh(model)

    def mean(words, times):
        term = Sampled(bigram, 1.0, histories, k=50, words=words, seed=1)
        with torch.no_grad():
            values = [sum(p.item() for p in term.own(model, block)) for _ in range(times)]
        return torch.tensor(values)

    few, whole = mean(4, 300), mean(0, 20)
    assert abs(few.mean() - whole.mean()) < 4 * few.std() / 300**0.5


def test_noising_replaces_labels_at_kneser_neys_rate():
    tokens, block = text(400), next(iter(Stream(text(4001), 20, 200)))
    noising = Noising(tokens, V, gamma=1.0)
    pairs = set(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    followers = torch.tensor([sum(a == x for a, _ in pairs) for x in range(V)])
    preceders = torch.tensor([sum(b == y for _, b in pairs) for y in range(V)]).double()
    rate = followers / torch.bincount(tokens[:-1], minlength=V)
    labels = torch.stack([noising.labels(block) for _ in range(20)])
    q = preceders / preceders.sum()
    for x in range(V):
        at = (block.words == x).expand_as(labels)
        original = block.labels.expand_as(labels)[at]
        changed = (labels[at] != original).double()
        expected = (rate[x] * (1 - q[original])).mean()
        assert abs(changed.mean() - expected) < 5 * (expected / len(changed)) ** 0.5 + 0.01
    assert torch.equal(Noising(tokens, V, gamma=0.0).labels(block), block.labels)


def test_terms_that_share_the_pass_are_the_estimators(texts, bigram):
    model, stream = lstm(), Stream(texts.train, 4, 5)
    block = next(iter(stream))
    log_q, _ = model(block.words, model.begin(4))
    flat, short = log_q.flatten(0, 1), block.words.flatten()
    torch.testing.assert_close(
        Uncorrected(bigram, 1.0).shared(log_q, block), imm.ReverseKD(bigram)(flat, short)
    )
    term = MovingAverage(bigram, 1.0, memory=20, max_ratio=5)
    term.begin_epoch(model, stream, True)
    twin = imm.MovingAverageIMM(bigram, V, V, 1 / 20, 5)
    twin.load_state_dict(measures.induced(model, stream, bigram).state_dict())
    torch.testing.assert_close(term.shared(log_q, block), twin(flat, short))
    own = OwnPass(MovingAverage(bigram, 1.0, memory=20, max_ratio=5))
    own.begin_epoch(model, stream, True)
    assert own.shared(log_q, block) is None
    twin.load_state_dict(measures.induced(model, stream, bigram).state_dict())
    torch.testing.assert_close(next(own.own(model, block)), twin(flat, short))


def test_the_published_way_begins_from_the_state_before_the_block(texts, bigram):
    model, stream = lstm(dropout=0.4).train(), Stream(texts.train, 2, 3)
    term = Published(bigram, 1.0, Histories(stream, V, 4, cache=False), k=5, seed=7)
    term.begin_epoch(model, stream, True)
    generator, state = torch.Generator().manual_seed(7), model.begin(2)
    for block, _ in zip(stream, range(2), strict=False):
        total = sum(part.item() for part in term.own(model, block))
        expected = 0.0
        with torch.no_grad(), without_dropout(model):
            for column in range(3):
                places = term.histories.contexts.sample(block.words[:, column], 5, generator)
                for row in range(2):
                    rows = []
                    for place in places[row].tolist():
                        words = torch.tensor(
                            [
                                stream.words[p % len(stream.words)]
                                for p in range(place - 3, place + 1)
                            ]
                        )
                        rows.append(model(words.view(1, -1), state[row : row + 1])[0][0, -1])
                    target = bigram(block.words[row, column].view(1))[0].double()
                    expected -= (target * imm.induce(torch.stack(rows))).sum().item() / 6
            state = model(block.words, state)[1]
        assert total == pytest.approx(expected)
    assert model.training


# gradients


@pytest.mark.parametrize("build", [lstm, transformer])
def test_the_exact_gradient_is_autograds(texts, bigram, build):
    model, tokens = build(dropout=0.3).train(), texts.train[:25]
    stream = Stream(tokens, 2, 12)
    exact = fidelity.exact_gradient(model, stream, bigram)
    with without_dropout(model):
        log_q = model(stream.words.view(2, 12), model.begin(2))[0].flatten(0, 1)
        risk = 0.0
        for word in stream.words.unique():
            same = stream.words == word
            log_induced = torch.logsumexp(log_q[same], 0) - math.log(int(same.sum()))
            risk -= same.sum() / len(same) * (bigram(word.view(1))[0].double() * log_induced).sum()
        grads = torch.autograd.grad(risk, list(model.parameters()), allow_unused=True)
    flat = [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(model.parameters(), grads, strict=True)
    ]
    expected = torch.cat([g.flatten() for g in flat])
    assert fidelity.compare(exact, expected)["error"] < 1e-5  # the table of Q̂ is float32


def test_estimators_by_fidelity(texts, bigram):
    """What was measured on toys: corrected terms near the exact gradient, the uncorrected one far
    from it.
    """
    torch.manual_seed(0)
    model, stream = LSTM(V, 16, scale=1.5).double(), Stream(texts.train, 1, 399)
    exact = fidelity.exact_gradient(model, stream, bigram)
    found = {}
    histories = Histories(stream, V, 20, dtype=torch.float64)
    for name, term in {
        "serialized": Serialized(bigram, 1.0),
        "average": MovingAverage(bigram, 1.0, max_ratio=math.inf),
        "cached": Sampled(bigram, 1.0, histories, k=300, words=0, chunk=5000),
        "uncorrected": Uncorrected(bigram, 1.0),
    }.items():
        term.begin_epoch(model, stream, True)
        term.eval()
        found[name] = fidelity.compare(
            fidelity.mean_gradient(model, stream, term, 3 if name == "cached" else 1), exact
        )
    assert found["serialized"]["error"] < 1e-4
    assert found["average"]["error"] < 1e-4
    assert found["cached"]["cosine"] > 0.9
    assert found["uncorrected"]["cosine"] < found["cached"]["cosine"]


# measures


def test_perplexity_and_mixture(texts, bigram):
    model = lstm()
    stream = Stream(texts.valid, 3, 4)
    log_p = measures.label_log_probs(model, stream)
    whole = model(stream.words.view(3, -1), model.begin(3))[0]
    expected = F.nll_loss(whole.flatten(0, 1), stream.labels)
    assert measures.perplexity(log_p) == pytest.approx(math.exp(expected.item()), rel=1e-5)
    log_b = bigram.log_prob(stream.words, stream.labels)
    mixed = measures.mixture(log_p, log_b, 0.25)
    torch.testing.assert_close(mixed.exp(), 0.75 * log_p.double().exp() + 0.25 * log_b.exp())
    assert torch.equal(measures.mixture(log_p, log_b, 0.0), log_p)
    assert torch.equal(measures.mixture(log_p, log_b, 1.0), log_b)
    with pytest.raises(ValueError, match="weight"):
        measures.mixture(log_p, log_b, 1.5)
    assert measures.perplexity(torch.full((3,), -math.inf)) == math.exp(700)


def test_loss_by_frequency_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    law = 1 / torch.arange(1.0, 31.0) ** 1.5
    train, other = (torch.multinomial(law, n, True, generator=generator) for n in (400, 300))
    stream = Stream(other, 3, 4)
    log_q = -torch.rand(len(stream.words), generator=generator)
    words = train[:-1].tolist()
    pairs = set(zip(words, train[1:].tolist(), strict=True))
    loop = {}
    for x, y, value in zip(
        *(t.tolist() for t in (stream.words, stream.labels, log_q)), strict=True
    ):
        n = words.count(x)
        level = "rare" if n < 10 else "medium" if n < 100 else "frequent"
        name = f"{level}, {'seen' if (x, y) in pairs else 'unseen'}"
        loop.setdefault(name, []).append(-value)
    found = measures.by_frequency(log_q, stream, train, imm.KneserNeyBigram.fit(train, 30))
    assert found.keys() == loop.keys() and len(found) == 6
    for name, losses in loop.items():
        assert found[name]["share"] == pytest.approx(len(losses) / len(stream.words))
        assert found[name]["loss"] == pytest.approx(sum(losses) / len(losses))
    whole = sum(part["share"] * part["loss"] for part in found.values())
    assert whole == pytest.approx(-log_q.mean().item())


def test_the_induced_bigram_is_the_mean_over_histories(texts, bigram):
    model, stream = lstm(dropout=0.5).train(), Stream(texts.train, 3, 4)
    found = measures.induced(model, stream, bigram)
    with without_dropout(model):
        q = model(stream.words.view(3, -1), model.begin(3))[0].flatten(0, 1).exp()
    for word in range(V):
        torch.testing.assert_close(found.table[word].exp(), q[stream.words == word].mean(0).float())
    numbers = measures.induced_perplexities(found, texts)
    table = found.table.double()
    loss = -table[texts.valid[:-1], texts.valid[1:]]
    assert numbers["valid"]["safe"] == pytest.approx(math.exp(loss.mean()))
    assert numbers["valid"]["paper"] == pytest.approx(math.exp(loss[:70].mean()))


@pytest.mark.parametrize("lag", [0, 2])
def test_the_fused_pass_for_the_induced_bigram_is_that_over_log_probabilities(texts, bigram, lag):
    model, stream = lstm(dropout=0.5).train(), Stream(texts.train[texts.train != 3], 3, 4)
    slow = imm.SerializedIMM(bigram, V, V)
    slow.refresh(
        (model.log_probs(features).flatten(0, 1), block.short(lag).flatten())
        for block, features in lm.histories.read(model, stream)
    )
    found = measures.induced(model, stream, bigram, lag)
    assert torch.equal(found.visited, slow.visited) and not found.visited[3]
    torch.testing.assert_close(found.table, slow.table, equal_nan=True)


@pytest.mark.parametrize("lag", [1, 3])
def test_the_induced_skip_bigram_is_the_mean_over_histories(texts, bigram, lag):
    model, stream = lstm(), Stream(texts.train, 1, 400)
    (block,) = stream
    table = measures.induced(model, stream, bigram, lag).table.double()
    log_q, _ = model(block.words, model.begin(1))
    before = torch.cat([block.words[0, :1].expand(lag), block.words[0, :-lag]])
    for word in before.unique():
        expected = log_q[0, before == word].exp().mean(0)
        torch.testing.assert_close(table[word].exp(), expected, atol=1e-6, rtol=1e-5)


def test_a_skip_bigrams_term_is_the_estimator_on_earlier_words(texts, bigram):
    stream, model = Stream(texts.train, 4, 5), lstm()
    with pytest.raises(TypeError, match="lag"):
        MovingAverage(bigram, 1.0, lag=1.5)
    term = MovingAverage(bigram, 1.0, lag=1, max_ratio=1e6)
    term.begin_epoch(model, stream, True)
    first, second = list(stream)[:2]
    log_q, _ = model(second.words, model.begin(4))
    before = torch.cat([first.words[:, -1:], second.words[:, :-1]], 1)
    twin = copy.deepcopy(term.imm)
    expected = twin(log_q.flatten(0, 1), before.flatten())
    torch.testing.assert_close(term.shared(log_q, second), expected)


def test_several_terms_are_a_weighted_sum(texts, bigram):
    settings = dataclasses.replace(SMALL, epochs=2)
    two = lm.Several([MovingAverage(bigram, 0.5), MovingAverage(bigram, 1.5)])
    once, twice = (train(texts, term, settings).last for term in (MovingAverage(bigram, 2.0), two))
    for a, b in zip(once.parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"terms must share the pass.*Sampled"):
        lm.Several([Sampled(bigram, 1.0, Histories(Stream(texts.train, 4, 5), V))])
    with pytest.raises(ValueError, match="OwnPass"):
        lm.Several([MovingAverage(bigram, 1.0), OwnPass(MovingAverage(bigram, 1.0))])
    with pytest.raises(ValueError, match="none"):
        lm.Several([])


def test_words_without_a_history_in_the_induced_bigram(texts, bigram):
    stream = Stream(texts.train[texts.train != 3], 2, 5)
    found = measures.induced(lstm(), stream, bigram)
    assert not found.visited[3]
    numbers = measures.induced_perplexities(found, texts)["test"]
    assert math.isfinite(numbers["safe"]) and numbers["paper"] < numbers["safe"]


# training


@pytest.mark.parametrize("build", [lstm, transformer])
@pytest.mark.parametrize("name", ["average", "uncorrected", "cached"])
def test_a_step_with_a_fused_term_is_that_without(texts, bigram, build, name):
    """Value, and clipped gradients of every weight."""
    settings, gradients, table = dataclasses.replace(SMALL, dropout=0.0), [], None

    def histories():
        return Histories(Stream(texts.train, 4, 5), V, dtype=torch.float64)

    pairs = {
        "average": [lambda: MovingAverage(bigram, 0.5), lambda: lm.Fused(bigram, 0.5, "all")],
        "uncorrected": [lambda: Uncorrected(bigram, 0.5), lambda: lm.Fused(bigram, 0.5, "none")],
        "cached": [
            lambda: Sampled(bigram, 0.5, histories(), k=9),
            lambda: lm.FusedSampled(bigram, 0.5, histories(), k=9),
        ],
    }
    for term in pairs[name]:
        run = Run(texts, term().double(), settings)
        run.model = build()
        run.hidden, run.log_probs = run.model.hidden, run.model.log_probs
        run.term.begin_epoch(run.model, run.train, True)
        if name == "average":  # the slow term's table comes in single precision
            table = table or copy.deepcopy(run.term.imm.state_dict())
            run.term.imm.load_state_dict(table)
        value, _ = run.step(next(iter(run.train)), run.model.begin(4), 0, True)
        gradients.append([torch.tensor(value), *(p.grad for p in run.model.parameters())])
    for slow, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)


def terms(texts, bigram):
    stream = Stream(texts.train, 4, 5)
    return {
        "baseline": Term(),
        "noising": Noising(texts.train, V),
        "uncorrected": Uncorrected(bigram, 0.5),
        "average": MovingAverage(bigram, 0.5),
        "own": OwnPass(MovingAverage(bigram, 0.5)),
        "serialized": Serialized(bigram, 0.5),
        "cached": Sampled(bigram, 0.5, Histories(stream, V), k=3, words=10),
        "rerun": Sampled(bigram, 0.5, Histories(stream, V, 4, cache=False), k=3, words=0),
    }


NAMES = ["baseline", "noising", "uncorrected", "average", "own", "serialized", "cached", "rerun"]


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_bit_for_bit_the_whole_one(texts, bigram, name, tmp_path):
    settings = dataclasses.replace(SMALL, epochs=4, start=1)
    whole = train(texts, terms(texts, bigram)[name], settings)
    file = tmp_path / "run.pt"
    train(
        texts, terms(texts, bigram)[name], dataclasses.replace(settings, epochs=2), checkpoint=file
    )
    torch.rand(5)  # what happens between must not matter
    resumed = train(texts, terms(texts, bigram)[name], settings, checkpoint=file)
    for a, b in zip(whole.last.parameters(), resumed.last.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [e["valid"] for e in whole.history] == [e["valid"] for e in resumed.history]
    if name != "baseline":
        plain = train(texts, settings=settings)
        assert plain.history[0]["valid"] == whole.history[0]["valid"]
        assert [e["valid"] for e in plain.history][1:] != [e["valid"] for e in whole.history][1:]


def test_training_leaves_torchs_generator_alone(texts):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(texts, settings=dataclasses.replace(SMALL, epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_a_resumed_run_keeps_adams_moments(texts, tmp_path):
    settings, file = (
        dataclasses.replace(SMALL, model="transformer", optimiser="adam", lr=0.01),
        tmp_path / "run.pt",
    )
    whole = train(texts, settings=settings)
    train(texts, settings=dataclasses.replace(settings, epochs=1), checkpoint=file)
    resumed = train(texts, settings=settings, checkpoint=file)
    for a, b in zip(whole.last.parameters(), resumed.last.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("model", ["lstm", "transformer"])
def test_training_learns_and_keeps_the_best_epoch(texts, model):
    # a window and places for 35 words, more than the text's columns need
    settings = dataclasses.replace(
        SMALL, model=model, width=8, epochs=10, lr=1.0 if model == "lstm" else 0.1
    )
    trained = train(texts, settings=settings)
    valid = [e["valid"] for e in trained.history]
    assert min(valid) < V < valid[0] + 2
    stream = Stream(texts.valid, 4, 5)
    assert measures.perplexity(measures.label_log_probs(trained.model, stream)) == pytest.approx(
        min(valid)
    )


def test_the_rate_falls_when_validation_does_not_and_training_stops(texts):
    trained = train(texts, settings=dataclasses.replace(SMALL, epochs=200, lr=4.0, decay=0.1))
    rates, best = [e["lr"] for e in trained.history], math.inf
    for entry, following in zip(trained.history, rates[1:], strict=False):
        assert following == pytest.approx(entry["lr"] * (1.0 if entry["valid"] < best else 0.1))
        best = min(best, entry["valid"])
    assert len(rates) < 200


def test_the_rate_falls_where_it_is_told_to(texts):
    settings = dataclasses.replace(SMALL, epochs=5, falls=[1, 3])
    rates = [entry["lr"] for entry in train(texts, None, settings).history]
    assert rates == [0.5, 0.25, 0.25, 0.125, 0.125]
    never = dataclasses.replace(settings, falls=())
    assert {entry["lr"] for entry in train(texts, None, never).history} == {0.5}
    with pytest.raises(ValueError, match="falls"):
        dataclasses.replace(SMALL, falls=[0])


def test_a_term_may_wait_for_a_lower_rate(texts, bigram):
    settings = dataclasses.replace(SMALL, lr=4.0, epochs=30, start_lr=0.5)
    history = train(texts, MovingAverage(bigram, 0.2), settings).history
    assert [e["term"] for e in history] == [e["lr"] <= 2.0 for e in history]
    assert not history[0]["term"] and history[-1]["term"]


def test_gradients_are_clipped_apart(texts, bigram):
    """The step with a term of its own passes is clip(loss) + λ clip(term), as clipped_backward has
    it.
    """
    from imm_lib.experiments.language.training import _add_gradients

    model, stream = lstm(), Stream(texts.train, 4, 5)
    block = next(iter(stream))
    histories = Histories(stream, V)
    histories.refresh(model)
    settings = dataclasses.replace(SMALL, clip=0.01)

    def losses():
        log_q, _ = model(block.words, model.begin(4))
        term = Sampled(bigram, 0.7, histories, words=0, chunk=20, seed=2)
        return log_q, F.nll_loss(log_q.flatten(0, 1), block.labels.flatten()), term

    def grads():
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    _, loss, term = losses()
    model.zero_grad()
    _add_gradients(model, loss, None, term.own(model, block), 0.7, settings)
    ours = grads()
    _, loss, term = losses()
    model.zero_grad()
    imm.clipped_backward(loss, sum(term.own(model, block)), model.parameters(), 0.7, 0.01)
    for a, b in zip(ours, grads(), strict=True):
        torch.testing.assert_close(a, b)
    log_q, loss, _ = losses()
    shared = Uncorrected(bigram, 0.7).shared(log_q, block)
    model.zero_grad()
    _add_gradients(model, loss, shared, (), 0.7, dataclasses.replace(settings, clip_apart=True))
    ours = grads()
    model.zero_grad()
    log_q, loss, _ = losses()
    imm.clipped_backward(
        loss, Uncorrected(bigram, 0.7).shared(log_q, block), model.parameters(), 0.7, 0.01
    )
    for a, b in zip(ours, grads(), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_clipped_together_if_told_so(texts, bigram):
    from imm_lib.experiments.language.training import _add_gradients

    model, stream = lstm(), Stream(texts.train, 4, 5)
    block, histories = next(iter(stream)), Histories(stream, V)
    histories.refresh(model)
    for seed, limit in ((2, 0.01), (3, 1e9)):
        found = []
        for ours in (True, False):
            loss = F.nll_loss(
                model(block.words, model.begin(4))[0].flatten(0, 1), block.labels.flatten()
            )
            parts = Sampled(bigram, 0.7, histories, words=0, chunk=20, seed=seed).own(model, block)
            model.zero_grad()
            if ours:
                _add_gradients(
                    model,
                    loss,
                    None,
                    parts,
                    0.7,
                    dataclasses.replace(SMALL, clip=limit, clip_apart=False),
                )
            else:
                (loss + 0.7 * sum(parts)).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        torch.testing.assert_close(*found)


def test_a_term_acts_on_every_other_block(texts, bigram):
    settings = dataclasses.replace(SMALL, dropout=0.0, clip=1e9, every=2)
    run = Run(texts, Uncorrected(bigram, 0.3), settings)
    block = next(iter(run.train))

    def gradient(number):
        run.model.zero_grad()
        run.step(block, run.model.begin(4), number, True)
        return [p.grad.clone() for p in run.model.parameters()]

    def expected(lam):
        log_q, _ = run.model(block.words, run.model.begin(4))
        loss = F.nll_loss(log_q.flatten(0, 1), block.labels.flatten())
        loss = loss + lam * imm.ReverseKD(bigram)(log_q.flatten(0, 1), block.words.flatten())
        return torch.autograd.grad(5 * loss, list(run.model.parameters()))

    for number, lam in enumerate([0.6, 0.0, 0.6, 0.0, 0.6]):
        for a, b in zip(gradient(number), expected(lam), strict=True):
            torch.testing.assert_close(a, b)


def test_weights_that_become_nan_in_the_last_step_are_not_kept(texts, tmp_path):
    file = tmp_path / "run.pt"

    class Poison(Term):
        def own(self, model, block):
            yield model.head.bias.sum() * (math.nan if block.words.shape[1] < 5 else 0.0)

    with pytest.raises(Diverged, match="validation loss is NaN"):
        train(texts, Poison(1.0), SMALL, checkpoint=file)
    assert not file.exists()


def test_a_diverging_run_stops_and_keeps_its_checkpoint(texts, tmp_path):
    file = tmp_path / "run.pt"
    train(texts, settings=dataclasses.replace(SMALL, epochs=1), checkpoint=file)
    before = file.read_bytes()

    class Broken(Term):
        def labels(self, block):
            raise AssertionError("not reached")

        def begin_epoch(self, model, stream, first):
            torch.nn.init.constant_(model.head.bias, math.nan)

    with pytest.raises(Diverged, match=r"step 1 of epoch 1"):
        train(texts, type("Broken", (Broken,), {"labels": Term.labels})(), SMALL)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [({"width": 9}, "width = 9"), ({"dropout": 0.0}, "dropout"), ({"lr": 0.1}, "lr")],
)
def test_a_checkpoint_of_another_run(texts, tmp_path, change, words):
    file = tmp_path / "run.pt"
    train(texts, settings=dataclasses.replace(SMALL, epochs=1), checkpoint=file)
    with pytest.raises(ValueError, match=words):
        train(texts, settings=dataclasses.replace(SMALL, **change), checkpoint=file)


def test_a_checkpoint_of_another_text_or_term(texts, bigram, tmp_path):
    file, settings = tmp_path / "run.pt", dataclasses.replace(SMALL, epochs=1)
    train(texts, MovingAverage(bigram, 1.0), settings, checkpoint=file)
    with pytest.raises(ValueError, match="text ="):
        train(
            dataclasses.replace(texts, train=texts.train.flip(0)),
            MovingAverage(bigram, 1.0),
            SMALL,
            checkpoint=file,
        )
    for term in (Term(), MovingAverage(bigram, 0.5), MovingAverage(bigram, 1.0, memory=9)):
        with pytest.raises(ValueError, match="term ="):
            train(texts, term, SMALL, checkpoint=file)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint(texts, tmp_path, content):
    file = tmp_path / "run.pt"
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"checkpoint must be a file that train has written, got run\.pt"
    ):
        train(texts, settings=SMALL, checkpoint=file)
    assert file.read_bytes() == content


def test_a_checkpoint_of_another_vocabulary(texts, tmp_path):
    file = tmp_path / "run.pt"
    train(texts, settings=dataclasses.replace(SMALL, epochs=1), checkpoint=file)
    with pytest.raises(ValueError, match="vocabulary = 8"):
        train(
            dataclasses.replace(texts, vocab=[*texts.vocab, "f"]), settings=SMALL, checkpoint=file
        )


@pytest.mark.parametrize(
    "change",
    [
        {"model": "gru"},
        {"optimiser": "lion"},
        {"epochs": 0},
        {"lr": 0.0},
        {"decay": 2.0},
        {"start": -1},
        {"start_lr": 0.0},
        {"every": 0},
    ],
)
def test_settings_refuse(change):
    with pytest.raises((ValueError, TypeError), match=next(iter(change))):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_text_shorter_than_a_batch(texts, split):
    with pytest.raises(ValueError, match="tokens must"):
        train(dataclasses.replace(texts, **{split: texts.train[:3]}), settings=SMALL)


@pytest.mark.parametrize(
    ("split", "tokens", "words"),
    [
        ("train", torch.tensor([]).long(), "train must be"),
        ("valid", torch.full((99,), V), "valid must hold"),
    ],
)
def test_a_text_that_is_empty_or_has_unknown_words(texts, split, tokens, words):
    with pytest.raises(ValueError, match=words):
        train(dataclasses.replace(texts, **{split: tokens}), settings=SMALL)


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from imm_lib.data import Corpus
from imm_lib.experiments.language import *
from test_language import text, SMALL, V
import dataclasses
vocab = ["<eos>", "<unk>", "a", "b", "c", "d", "e"]
texts = Corpus("toy", text(400), text(120, 0)[-100:], text(90, 0)[-80:], vocab)
settings = dataclasses.replace(SMALL, epochs=300, least_lr=1e-300)
trained = train(texts, Noising(texts.train, V), settings, checkpoint=Path({file!r}))
"""


def test_a_killed_run_goes_on(texts, tmp_path):
    file = tmp_path / "run.pt"
    script = SCRIPT.format(tests=str(Path(__file__).parent), file=str(file))
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while not file.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(torch.load(file, weights_only=True)["progress"]["history"])
    assert 0 < done < 300
    settings = dataclasses.replace(SMALL, epochs=done + 2, least_lr=1e-300)
    resumed = train(texts, Noising(texts.train, V), settings, checkpoint=file)
    whole = train(texts, Noising(texts.train, V), settings)
    assert [e["valid"] for e in resumed.history] == [e["valid"] for e in whole.history]


def test_readings_pair_the_seeds_that_have_finished():
    def unit(arm, seed, test):
        numbers = {
            "valid": test + 1,
            "test": test,
            "mixture": {"test": test - 1},
            "induced": {"test": {"safe": 2 * test}},
            "epochs": [{"cpu_s": 1.0 if arm == "baseline" else 1.5}] * 4,
        }
        return {"unit": {"arm": arm, "lines": 5, "seed": seed}, "numbers": numbers}

    units = [unit("baseline", s, t) for s, t in enumerate((10.0, 12.0, 14.0))]
    units += [
        unit("a", s, t) for s, t in enumerate((9.0, 10.0, 11.0, 1.0))
    ]  # the baseline lacks the last seed
    units += [
        {"unit": {"arm": "b", "lines": 5, "seed": 0}, "numbers": {"diverged": "at step 1"}},
        unit("b", 1, 13.0),
    ]
    result = {
        "config": {"sizes": [[5, 4]], "arms": {"baseline": {}, "a": {}, "b": {}, "c": {}}},
        "units": units,
    }
    found = lm.readings.summary(result)
    assert list(found) == ["baseline", "a", "b"]
    assert found["a"]["seeds"] == 3 and found["a"]["test"] == 10 and found["a"]["cost"] == 1.5
    # differences -1, -2, -3: a standard error of 1/sqrt(3), and Student's 97.5 % point for two
    # degrees is 4.3027
    assert found["a"]["difference"] == -2 and found["a"]["half_width"] == pytest.approx(
        4.3027 / 3**0.5, rel=1e-4
    )
    assert found["b"]["seeds"] == 1 and math.isnan(found["b"]["difference"])
    assert found["baseline"]["difference"] == found["baseline"]["half_width"] == 0
    changes = lm.readings.changes({"units": units[:4]}, {"units": units[4:]})
    assert changes["a", 5].shape == (3, 2) and changes["b", 5].shape == (1, 2)
    assert changes["a", 5][0].tolist() == pytest.approx([-10.0, 100 * (8 / 9 - 1)])
    assert changes["baseline", 5].abs().max() == 0
