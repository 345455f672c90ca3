"""A target that reads the last c words: what it reads, its extended contexts, and its term against
brute force.
"""

import copy

import pytest
import torch

import imm_lib as imm
from imm_lib.experiments import language as lm
from imm_lib.experiments.language import Stream, snippets
from imm_lib.experiments.language.snippets import (
    FirstWord,
    Reader,
    SampledSnippets,
    UncorrectedSnippets,
)

V, C = 7, 3


@pytest.fixture
def stream():
    return Stream(
        torch.randint(V, (61,), generator=torch.Generator().manual_seed(0)), batch=4, unroll=5
    )


def transformer(window, seed=1):
    torch.manual_seed(seed)
    model = lm.Transformer(V, 8, heads=2, window=window, longest=12).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def test_a_reader_sees_its_words_and_no_others(stream):
    reader = Reader(transformer(C - 1))
    short = snippets.last_words(stream.words, torch.tensor([0, 2, 30]), C)
    assert short[1].tolist() == stream.words[:3].tolist() and short[0, -1] == stream.words[0]
    rows = reader(short)
    torch.testing.assert_close(rows.sum(1), torch.ones(3, dtype=torch.float64))
    state = reader.model.begin(1)
    for word in stream.words[:31]:  # the whole text, word by word
        log_q, state = reader.model(word.view(1, 1), state)
    torch.testing.assert_close(rows[2], log_q[0, 0].exp())


def test_extended_contexts_stand_before_the_first_word(stream):
    contexts = FirstWord(stream.words, V)
    short = snippets.last_words(stream.words, torch.arange(10, 20), C)
    places = contexts.sample(short, 50, torch.Generator().manual_seed(0))
    assert (stream.words[places] == short[:, :1]).all()
    row, extended, log_w = contexts.support(short)
    assert (stream.words[extended] == short[row, 0]).all()
    torch.testing.assert_close(
        torch.zeros(10, dtype=torch.float64).index_add(0, row, log_w.exp()), torch.ones(10).double()
    )


def test_the_query_reads_a_snippet_after_another_past(stream):
    model = transformer(4)
    histories = snippets.Snippets(stream, V)
    histories.refresh(model)
    words = stream.words.view(4, -1)  # a transformer's columns begin with nothing before them
    short, place = torch.tensor([[1, 2, 3]]), torch.tensor([2 * words.shape[1] + 6])
    log_q = histories.query(model)(short, place)
    whole = torch.cat([words[2, 2:6], short[0]]).view(1, -1)
    torch.testing.assert_close(log_q[0], model(whole[:, 4:], whole[:, :4])[0][0, -1])


def test_a_moved_snippet_is_read_after_the_words_before_its_place(stream):
    """So many of them as are drawn, and the window before these."""
    model, histories = transformer(4), snippets.Snippets(stream, V, ahead=5)
    histories.refresh(model)
    words, short = stream.words.view(4, -1), torch.tensor([[1, 2, 3]])
    place = torch.tensor([2 * words.shape[1] + 11])
    drawn = set()
    for seed in range(12):
        histories.generator = torch.Generator().manual_seed(seed)
        ahead = int(torch.randint(6, (), generator=torch.Generator().manual_seed(seed)))
        log_q = histories.query(model)(short, place)
        whole = torch.cat([words[2, 7 - ahead : 11], short[0]]).view(1, -1)
        torch.testing.assert_close(log_q[0], model(whole[:, 4:], whole[:, :4])[0][0, -1])
        drawn.add(ahead)
    assert len(drawn) > 3


def test_the_term_is_the_mean_risk_over_places(stream):
    """Many draws against the exact risk of every snippet, with extended contexts enumerated."""
    model, reader = transformer(4), Reader(transformer(C - 1, seed=2))
    block = next(iter(stream))
    term = SampledSnippets(reader, 1.0, stream, V, k=400, places=400)
    term.begin_epoch(model, stream, True)
    (found,) = term.own(model, block)
    exact = imm.ExactIMM(reader, FirstWord(stream.words, V))
    short = snippets.last_words(stream.words, block.place.flatten(), C)
    assert found.item() == pytest.approx(exact(term.histories.query(model), short).item(), rel=0.02)
    found.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.blocks.parameters())


def test_reverse_distillation_from_snippets(stream):
    model, reader = transformer(4), Reader(transformer(C - 1, seed=2))
    term = UncorrectedSnippets(reader, 1.0)
    term.begin_epoch(model, stream, True)
    block = list(stream)[1]
    log_q, _ = model(block.words, model.begin(4))
    rows = reader(snippets.last_words(stream.words, block.place.flatten(), C))
    expected = -(rows * log_q.flatten(0, 1)).sum(1).mean()
    torch.testing.assert_close(term.shared(log_q, block), expected)
    some = UncorrectedSnippets(reader, 1.0, places=5000, seed=1)
    assert some.shared(log_q, block).item() == pytest.approx(expected.item(), rel=0.02)


def test_draws_are_part_of_the_state(stream):
    model, reader = transformer(4), Reader(transformer(C - 1, seed=2))
    term = SampledSnippets(reader, 1.0, stream, V, k=2, places=5, moved=True)
    term.begin_epoch(model, stream, True)
    state, block = copy.deepcopy(term.state_dict()), next(iter(stream))
    (first,) = term.own(model, block)
    term.load_state_dict(state)
    (second,) = term.own(model, block)
    assert first.item() == second.item()
