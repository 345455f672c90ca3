"""Masked language models on GLUE: files, encoder, the causal view, the target, arms, training and
its checkpoints.
"""

import copy
import dataclasses
import importlib.util
import itertools
import math

import pytest
import torch

import imm_lib as imm
from imm_lib.__main__ import main
from imm_lib.experiments import masked
from imm_lib.experiments.masked import Example, Prefixes, Settings, encoder, target, tasks
from imm_lib.experiments.masked.terms import Causal

needs_glue = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="needs the extra: pip install 'imm_lib[glue]'",
)

WORDS = ["a", "b", "c", "d"]


def sentences(size, seed=0):
    """The label says whether the sentence begins with a or b."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(size):
        length = int(torch.randint(2, 7, (), generator=generator))
        text = " ".join(WORDS[i] for i in torch.randint(4, (length,), generator=generator).tolist())
        found.append(Example(text, None, int(text[0] in "ab")))
    return found


@pytest.fixture
def model():
    torch.manual_seed(0)
    return masked.tiny([e.first for e in sentences(20)], width=16, layers=2, heads=2, limit=16)


@pytest.fixture
def examples():
    return sentences(24)


@pytest.fixture
def bigrams(model, examples):
    ids = [ids for ids, _ in model.encode(examples)]
    large = imm.KneserNeyBigram.fit(
        torch.cat([ids for ids, _ in model.encode(sentences(50, 7))]), model.vocab_size
    )
    return target.fit(ids, large)


@needs_glue
def test_padding_changes_nothing(model, examples):
    model.eval()
    sequences = model.encode(examples[:6])
    together = model.features(model.batch(sequences))
    for row, sequence in zip(together, sequences, strict=True):
        alone = model.features(model.batch([sequence]))[0]
        torch.testing.assert_close(row[: len(sequence[0])], alone, atol=1e-5, rtol=1e-4)


@needs_glue
def test_a_classifier_reads_the_mean_or_the_first_piece(model, examples):
    tuned = model.for_task(2).eval()
    sequences = tuned.encode(examples[:4])
    for mean in (True, False):
        tuned.mean = mean
        found = tuned.classify(tuned.batch(sequences))  # padded
        for row, sequence in zip(found, sequences, strict=True):
            pieces = tuned.features(tuned.batch([sequence]))[0]
            whole = pieces.mean(0) if mean else pieces[0]
            torch.testing.assert_close(row, tuned.classifier(whole).log_softmax(-1))


@needs_glue
def test_the_head_begins_as_the_identity(model):
    features = torch.randn(3, 16)
    expected = (features @ model.body.get_input_embeddings().weight.T).log_softmax(-1)
    torch.testing.assert_close(model.log_probs(features), expected)
    copied = model.for_task(2)
    copied.body.get_input_embeddings().weight.data.zero_()
    torch.testing.assert_close(
        copied.log_probs(features), torch.full((3, 9), -math.log(9))
    )  # tied to its own
    torch.testing.assert_close(model.log_probs(features), expected)


@needs_glue
def test_a_sentence_that_is_too_long(model):
    with pytest.raises(ValueError, match=r"at most 16 word pieces, got 22: 'a a a"):
        model.encode([Example("a " * 20, None, 0)])


@needs_glue
@pytest.mark.parametrize("example", [Example(" ", None, 0), Example("a b", "", 1)])
def test_an_empty_sentence(model, example):
    with pytest.raises(ValueError, match="must have words in each of its sentences, got Example"):
        masked.fine_tune(model, "CoLA", [Example("a b", None, 0), example], [example])


@needs_glue
def test_a_tokenizer_without_a_mask(model):
    class Causal:
        mask_token_id = None

    with pytest.raises(ValueError, match="must have a mask token"):
        encoder.MaskedLM(model.body, model.head, Causal(), 16)


def saved(folder, kind):
    """An untrained model of ``transformers`` with the masked-LM head of its kind, as a hub's are
    stored.
    """
    import transformers

    known = tasks.load("CoLA", "train")[:200] if tasks.available("CoLA") else sentences(20)
    tokenizer = masked.tiny([e.first for e in known], width=16).tokenizer
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    special = {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}
    config = getattr(transformers, f"{kind}Config")(**sizes, **special)
    torch.manual_seed(0)
    getattr(transformers, f"{kind}ForMaskedLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@needs_glue
@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_a_model_of_transformers_keeps_its_own_head(tmp_path, kind):
    import transformers

    folder = saved(tmp_path, kind)
    model = masked.load(folder).eval()
    whole = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    batch = model.batch(model.encode(sentences(5)))
    with torch.no_grad():
        expected = whole(input_ids=batch.ids, attention_mask=batch.mask.long()).logits.log_softmax(
            -1
        )
        found = model.log_probs(model.features(batch)[batch.mask])
    torch.testing.assert_close(found, expected[batch.mask])
    assert (
        model.limit == {"Bert": 512, "Roberta": 512 - 1}[kind]
    )  # RoBERTa's positions begin behind its padding's
    longest = Example(" ".join(["a"] * (model.limit - 2)), None, 0)
    assert torch.isfinite(model.features(model.batch(model.encode([longest])))).all()
    with pytest.raises(ValueError, match=f"at most {model.limit} word pieces"):
        model.encode([longest._replace(first=longest.first + " a")])


def test_the_missing_extra(monkeypatch):
    import builtins

    real = builtins.__import__

    def fail(name, *args, **kwargs):
        if name in ("transformers", "tokenizers"):
            raise ImportError(name, name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    for build in (masked.load, lambda: masked.tiny(["a"])):
        with pytest.raises(ImportError, match=r"pip install 'imm_lib\[glue\]'"):
            build()


# the causal view


@needs_glue
def test_a_place_sees_its_past_and_nothing_else(model, examples):
    """Brute force: every place of every sentence, one by one, and changed futures."""
    model.eval()
    sequences = model.encode(examples[:5])
    prefixes = Prefixes(sequences, model)
    mask, place = model.tokenizer.mask_token_id, 0
    found = prefixes.log_q(model, torch.arange(len(prefixes.label)))
    for ids, segment in sequences:
        for position in range(1, len(ids) - 1):
            assert (
                prefixes.short[place] == ids[position - 1]
                and prefixes.label[place] == ids[position]
            )
            seen = torch.cat(
                [ids[:position], torch.full((len(ids) - 1 - position,), mask), ids[-1:]]
            )
            features = model.features(model.batch([(seen, segment)]))
            torch.testing.assert_close(
                found[place], model.log_probs(features[0, position : position + 1])[0]
            )
            place += 1
    changed = [(ids.clone(), segment) for ids, segment in sequences]
    for ids, _ in changed:
        ids[3:-1] = ids[3:-1].flip(0)
    again = Prefixes(changed, model)
    for number in range(5):  # the third piece's prefix ends before it
        torch.testing.assert_close(
            again.log_q(model, again.first[number].view(1)), found[prefixes.first[number]][None]
        )


@needs_glue
def test_places_of_sequences(model, examples):
    prefixes = Prefixes(model.encode(examples), model)
    places = prefixes.of(torch.tensor([3, 0]))
    wanted = [
        *range(int(prefixes.first[3]), int(prefixes.first[4])),
        *range(int(prefixes.first[1])),
    ]
    assert places.tolist() == wanted
    with pytest.raises(ValueError, match="sequences must hold"):
        Prefixes([(torch.tensor([2, 3]), torch.zeros(2))], model)


@needs_glue
def test_segments_do_not_tell_where_a_second_sentence_begins(model):
    """Pairs of one length that begin alike: their common places look alike, whatever stands
    behind.
    """
    model.eval()
    pairs = [Example("a b", "c d a", 0), Example("a b c", "d a", 0), Example("a b c d", "a", 0)]
    sequences = model.encode(pairs)
    assert (
        len({len(ids) for ids, _ in sequences}) == 1
        and len({tuple(s.tolist()) for _, s in sequences}) == 3
    )
    prefixes = Prefixes(sequences, model)
    log_q = prefixes.log_q(model, torch.arange(len(prefixes.label))).view(3, -1, model.vocab_size)
    for i in range(3):  # the places whose prefixes are [CLS], [CLS] a, [CLS] a b
        torch.testing.assert_close(log_q[:, i], log_q[:1, i].expand(3, -1))
    torch.testing.assert_close(log_q[1, 3], log_q[2, 3])  # [CLS] a b c
    _, segment, position = prefixes.masked(
        int(prefixes.first[1]) - 2
    )  # within the second sentence it is known
    assert (
        segment[position - 1 :].tolist() == [1] * (len(segment) - position + 1) and segment[0] == 0
    )


@needs_glue
def test_one_place_of_each_sequence(model, examples, bigrams, monkeypatch):
    prefixes = Prefixes(model.encode(examples), model)
    term = Causal(
        "MLM + IMM", bigrams, prefixes, k=2, places=0, generator=torch.Generator().manual_seed(0)
    )
    numbers, seen = torch.tensor([5, 0, 9]), []
    # the word before stands for the place here: all places of the text by their own number
    prefixes.short = torch.arange(len(prefixes.short))
    monkeypatch.setattr(
        type(term.estimator), "forward", lambda self, query, short: seen.append(short)
    )
    for _ in range(200):
        term(model, numbers)
    drawn = torch.stack(seen)
    for column, number in enumerate(numbers.tolist()):
        assert set(drawn[:, column].tolist()) == set(prefixes.of(torch.tensor([number])).tolist())


@needs_glue
@pytest.mark.parametrize("arm", ["MLM + IMM", "MLM + noising", "MLM + unigram"])
def test_a_causal_term_is_the_risk_by_brute_force(model, examples, arm):
    """With every place of a batch drawn often and many contexts of the whole text, against
    enumerated ones.
    """

    class Rows(torch.nn.Module):  # a target whose rows differ, so that the arms do
        vocab_size = model.vocab_size
        table = (4 * torch.randn(9, 9, generator=torch.Generator().manual_seed(2))).softmax(1)

        def forward(self, short):
            return self.table[short]

    bigrams = Rows()
    with torch.no_grad():
        model.head.map.weight.mul_(6)  # so that prefixes differ too
    prefixes = Prefixes(model.encode(examples[:12]), model)
    term = Causal(
        arm, bigrams, prefixes, k=300, places=300, generator=torch.Generator().manual_seed(0)
    )
    batch = torch.tensor([7, 2, 4])
    found = term(model.train(), batch).item()  # without dropout all the same
    assert model.training
    log_q = prefixes.log_q(model.eval(), torch.arange(len(prefixes.label)))
    row = target.unigram(bigrams, prefixes.short)
    risks = []
    for word in prefixes.short[prefixes.of(batch)]:
        own = log_q[prefixes.short == word]  # of all sentences
        rows = row, bigrams(word.view(1))[0]
        averages = own.mean(0), own.logsumexp(0) - math.log(len(own))
        risks.append(torch.stack([-(p * average).sum() for p in rows for average in averages]))
    arms = ["", "MLM + unigram", "MLM + noising", "MLM + IMM"]
    known = dict(zip(arms, torch.stack(risks).mean(0).tolist(), strict=True))
    assert found == pytest.approx(known[arm], rel=0.03)
    assert all(
        abs(value - known[arm]) > 0.06 * known[arm]
        for other, value in known.items()
        if other != arm
    ), known


# the target


@needs_glue
def test_the_mixture_is_a_distribution_and_its_weight_is_chosen_on_held_out_text(
    model, examples, bigrams
):
    short = torch.arange(model.vocab_size)
    rows = bigrams(short)
    torch.testing.assert_close(rows.sum(1), torch.ones(model.vocab_size))
    for word in short[:8]:  # by brute force, from the two bigrams' own rows
        rows_of = [part(word.view(1))[0] for part in (bigrams.task, bigrams.large)]
        expected = [
            bigrams.weight * a + (1 - bigrams.weight) * b for a, b in zip(*rows_of, strict=True)
        ]
        torch.testing.assert_close(rows[word], torch.stack(expected))
    label = torch.randint(
        model.vocab_size, (model.vocab_size,), generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(bigrams.log_prob(short, label).exp().float(), rows[short, label])
    assert bigrams.weight in target.WEIGHTS
    ids = [ids for ids, _ in model.encode(examples)]
    pairs = [(int(a), int(b)) for s in ids for a, b in itertools.pairwise(s[:-1])]
    short, label = torch.tensor(pairs).T
    large = imm.KneserNeyBigram.fit_pairs(short, label, model.vocab_size)
    assert target.fit(ids, large).weight == min(
        target.WEIGHTS
    )  # it knows the held-out text: it is trusted
    fitted = target.fit(ids, bigrams.large)
    torch.testing.assert_close(fitted.task.dense(), large.dense())
    task = [s for i, s in enumerate(ids) if i % 10]
    part = imm.KneserNeyBigram.fit_pairs(
        torch.cat([s[:-2] for s in task]), torch.cat([s[1:-1] for s in task]), 9
    )
    held_out = [(a, b) for s in ids[::10] for a, b in itertools.pairwise(s[:-1])]

    def mean_log(w):
        mixed = [
            w * part(a.view(1))[0, b] + (1 - w) * bigrams.large(a.view(1))[0, b]
            for a, b in held_out
        ]
        return torch.stack(mixed).log().mean().item()

    assert fitted.weight == max(target.WEIGHTS, key=mean_log)
    # no place has the first token, or a sequence's last one: neither is counted as a next word
    counted = fitted.task.keys % model.vocab_size
    assert not torch.isin(counted, torch.tensor(model.tokenizer.all_special_ids)).any()
    with pytest.raises(ValueError, match="sequences must be at least 2"):
        target.fit(ids[:1], large)


# training


SMALL = Settings(epochs=2, batch=6, lr=1e-3, places=3, k=2)


@needs_glue
def test_masked_words_are_masked_as_in_bert(model, examples, monkeypatch):
    """15 % of the words are chosen; of these 80 % are masked, 10 % replaced, 10 % kept; the loss is
    of the chosen.
    """
    batch, seen, asked = model.batch(model.encode(examples)), [], []
    features, log_probs = model.features, model.log_probs
    monkeypatch.setattr(model, "features", lambda b: seen.append(b.ids) or features(b))
    monkeypatch.setattr(model, "log_probs", lambda f: asked.append(f) or log_probs(f))
    generator, model = torch.Generator().manual_seed(1), model.eval()
    losses = [masked.masked_words(model, batch, generator).item() for _ in range(300)]
    special = torch.isin(batch.ids, torch.tensor(model.tokenizer.all_special_ids))
    ids = torch.stack(seen)
    assert torch.equal(ids[:, special], batch.ids[special].expand(300, -1))
    words, chosen = 300 * (~special).sum().item(), sum(len(f) for f in asked)
    assert chosen / words == pytest.approx(0.15, abs=0.01)
    masks = ids == model.tokenizer.mask_token_id
    assert masks.sum().item() / chosen == pytest.approx(0.8, abs=0.03)
    replaced = (ids != batch.ids) & ~masks  # one in nine times by itself
    assert replaced.sum().item() / chosen == pytest.approx(
        0.1 * (1 - 1 / model.vocab_size), abs=0.02
    )
    # once, by hand: where the mask alone shows what was chosen
    at = next(i for i in range(300) if masks[i].sum() == len(asked[i]))
    answers = log_probs(features(batch._replace(ids=ids[at]))[masks[at]])
    assert losses[at] == pytest.approx(
        -answers[range(len(answers)), batch.ids[masks[at]]].mean().item(), rel=1e-5
    )


@needs_glue
def test_at_least_one_word_is_chosen(model):
    one = model.batch(model.encode([Example("a", None, 0)]))
    assert all(
        math.isfinite(masked.masked_words(model, one, torch.Generator().manual_seed(i)).item())
        for i in range(9)
    )


@needs_glue
@pytest.mark.parametrize("arm", ["base", "MLM", "MLM + IMM"])
def test_a_step_is_the_clipped_sum_of_its_terms(model, examples, bigrams, arm):
    """By torch's own clipping of one backward pass each, where both limits bind."""
    settings = dataclasses.replace(SMALL, arm=arm, clip=0.05, mlm=0.7, lam=0.3)
    run = masked.training.Run(model, "CoLA", examples, bigrams, settings)
    run.model.eval()  # no dropout, so that both see the same
    numbers, batch = torch.arange(6), run.model.batch(run.sequences[:6])
    masks, draws = (torch.Generator(), torch.Generator())
    masks.set_state(run.masks.get_state())
    draws.set_state(run.draws.get_state())
    own = copy.deepcopy(run.model)
    own.head.embedding = (own.body.get_input_embeddings(),)

    def clipped(loss):
        own.zero_grad()
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(own.parameters(), settings.clip) > settings.clip
        return [None if p.grad is None else p.grad.clone() for p in own.parameters()]

    loss = torch.nn.functional.nll_loss(own.classify(batch), run.label[:6])
    if arm != "base":
        loss = loss + 0.7 * masked.masked_words(own, batch, masks)
    expected = clipped(loss)
    if arm == "MLM + IMM":
        term = Causal(arm, bigrams, run.causal.prefixes, settings.k, settings.places, draws)
        parts = clipped(term(own, numbers))
        pairs = zip(expected, parts, strict=True)
        expected = [a if b is None else 0.3 * b if a is None else a + 0.3 * b for a, b in pairs]
    run.step(numbers)
    for parameter, grad in zip(run.model.parameters(), expected, strict=True):
        assert (parameter.grad is None) == (grad is None)
        if grad is not None:
            torch.testing.assert_close(parameter.grad, grad)


@needs_glue
@pytest.mark.parametrize("arm", masked.ARMS)
def test_a_resumed_run_is_the_whole_one(model, examples, bigrams, arm, tmp_path):
    settings = dataclasses.replace(SMALL, arm=arm)
    whole = masked.fine_tune(model, "CoLA", examples, examples[:8], bigrams, settings)
    file = tmp_path / "run.pt"

    class Stop(Exception):
        pass

    def stop(path, content, write=imm.results.write_bytes):
        write(path, content)
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(imm.results, "write_bytes", stop)
        masked.fine_tune(model, "CoLA", examples, examples[:8], bigrams, settings, file)
    torch.rand(3)
    resumed = masked.fine_tune(model, "CoLA", examples, examples[:8], bigrams, settings, file)
    for a, b in zip(whole["model"].parameters(), resumed["model"].parameters(), strict=True):
        assert torch.equal(a, b)
    keys = {"base": ["task"], "MLM": ["task", "MLM"]}.get(arm, ["task", "MLM", "causal"])
    assert all(entry[f"norm {key}"] > 0 for entry in resumed["history"] for key in keys)
    with pytest.raises(ValueError, match="checkpoint must be of"):
        masked.fine_tune(
            model, "CoLA", examples, examples, bigrams, dataclasses.replace(settings, lr=1e-4), file
        )
    for name, train, words in (
        ("RTE", examples, "another task"),
        ("CoLA", examples[::-1], "another train"),
    ):
        with pytest.raises(ValueError, match=words):
            masked.fine_tune(model, name, train, examples, bigrams, settings, file)


@needs_glue
def test_all_arms_begin_alike_and_part(model, examples, bigrams):
    runs = {
        arm: masked.fine_tune(
            model,
            "CoLA",
            examples,
            examples,
            bigrams,
            dataclasses.replace(SMALL, arm=arm, epochs=1),
        )
        for arm in masked.ARMS
    }
    begun = []
    for arm in masked.ARMS:
        torch.manual_seed(0)
        begun.append(
            masked.training.Run(
                model, "CoLA", examples, bigrams, dataclasses.replace(SMALL, arm=arm)
            ).model
        )
    for other in begun[1:]:
        for a, b in zip(begun[0].parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    ends = [torch.cat([p.flatten() for p in run["model"].parameters()]) for run in runs.values()]
    assert all(not torch.equal(ends[i], ends[j]) for i in range(5) for j in range(i))


@needs_glue
def test_all_arms_see_the_same_batches_in_every_epoch(model, examples, bigrams, monkeypatch):
    """Also those that draw neither masks nor contexts, and after others have."""
    seen, original = {}, masked.training.Run.step

    def step(run, numbers):
        seen.setdefault(run.settings.arm, []).append(numbers.tolist())
        return original(run, numbers)

    monkeypatch.setattr(masked.training.Run, "step", step)
    for arm in masked.ARMS:
        masked.fine_tune(
            model, "CoLA", examples, examples, bigrams, dataclasses.replace(SMALL, arm=arm)
        )
    assert all(batches == seen["base"] for batches in seen.values())
    half = len(seen["base"]) // 2
    assert seen["base"][:half] != seen["base"][half:]


@needs_glue
def test_a_task_is_learned(model):
    train, dev = sentences(300, 1), sentences(100, 2)
    torch.manual_seed(0)
    fitted = masked.fine_tune(
        model, "RTE", train, dev, settings=Settings(epochs=6, batch=30, lr=3e-3)
    )
    assert fitted["scores"]["accuracy"] > 0.9 > sum(e.label == 0 for e in dev) / 100


@needs_glue
def test_pretraining_learns_words_and_the_premise_sees_it(model):
    text = [Example("a b c d a b c d", None, 0)] * 30 + [Example("d c b a", None, 0)] * 10
    sequences = model.encode(text)
    bigram = imm.KneserNeyBigram.fit(torch.cat([ids for ids, _ in sequences]), model.vocab_size)
    prefixes = Prefixes(sequences, model)
    before = masked.premise(model, bigram, prefixes, prefixes, places=60, k=5)
    losses = masked.pretrain(model, sequences, Settings(epochs=40, batch=20, lr=3e-3))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    after = masked.premise(model, bigram, prefixes, prefixes, places=60, k=5)
    assert after["prefix"]["mean"] < before["prefix"]["mean"] - 0.5
    assert before["target"] == after["target"]
    assert after["target - prefix"]["mean"] == pytest.approx(
        after["target"]["mean"] - after["prefix"]["mean"]
    )


@needs_glue
def test_pretraining_goes_on_where_it_was_killed(model, tmp_path, monkeypatch):
    sequences = model.encode([Example("a b c d a b c d", None, 0)] * 30)
    settings, whole, part = (
        Settings(epochs=3, batch=10, lr=1e-3),
        copy.deepcopy(model),
        copy.deepcopy(model),
    )
    losses = masked.pretrain(whole, sequences, settings)
    original, steps = masked.training.masked_words, []

    def killed(*args):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return original(*args)

    file = tmp_path / "run.pt"
    monkeypatch.setattr(masked.training, "masked_words", killed)
    with pytest.raises(KeyboardInterrupt):
        masked.pretrain(part, sequences, settings, file, every=2)
    monkeypatch.setattr(masked.training, "masked_words", original)
    fresh = copy.deepcopy(model)
    assert masked.pretrain(fresh, sequences, settings, file, every=2) == losses and len(losses) == 9
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="checkpoint must be of"):
        masked.pretrain(fresh, sequences, dataclasses.replace(settings, lr=2e-3), file)


@needs_glue
def test_a_loss_that_is_not_finite_stops(model, examples):
    broken = model.for_task(2)
    broken.head.bias.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="not finite in epoch 1"):
        masked.fine_tune(
            broken, "CoLA", examples, examples, settings=dataclasses.replace(SMALL, arm="MLM")
        )


@pytest.mark.parametrize(
    "change",
    [{"arm": "IMM"}, {"epochs": 0}, {"lr": 0.0}, {"mlm": -1.0}, {"lam": math.nan}, {"k": 0}],
)
def test_settings_refuse(change):
    with pytest.raises((ValueError, TypeError), match=next(iter(change))):
        Settings(**change)


# the experiments


def only_here(tmp_path, monkeypatch):
    """Nothing is written but below a folder, and nothing downloaded: skips without local copies of
    the files.
    """
    monkeypatch.setenv("IMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IMM_RESULTS", str(tmp_path))
    if not (
        imm.data.available("wikitext2")
        and all(tasks.available("CoLA", split) for split in tasks.SPLITS)
    ):
        pytest.skip(
            "needs local copies: set IMM_DATA to a folder that holds wikitext2 and glue/CoLA"
        )


@needs_glue
@pytest.mark.needs_data("wikitext2")
def test_a_task_runs_from_files_to_a_table_and_pretrains_once(tmp_path, monkeypatch):
    only_here(tmp_path, monkeypatch)
    experiment = imm.experiments.find("masked-cola")
    config = experiment.scales["ci"]
    config, arms = {**config, "premise": {"places": 4, "k": 2}}, ("base", "MLM + IMM")
    numbers = [
        experiment.run({"task": "CoLA", "arm": arm, "seed": 0}, config, torch.device("cpu"))
        for arm in arms
    ]
    assert numbers[0]["premise"]["target"] == numbers[1]["premise"]["target"]  # the same places
    assert numbers[0]["premise"]["induced"] != numbers[1]["premise"]["induced"]
    assert [len(n["history"]) for n in numbers] == [1, 1] and numbers[1]["weight"] is not None
    (weights,) = (tmp_path / "cache" / "masked").glob("*.safetensors")
    assert weights.stat().st_size > 1000
    units = [
        {"unit": {"task": "CoLA", "arm": arm, "seed": seed}, "numbers": n}
        for seed in (0, 1)
        for arm, n in zip(arms, numbers, strict=True)
    ]
    table = experiment.table({"units": units, "config": config})
    # no arm "MLM" to be compared with
    assert table[0] == ["task", "arm", "score, %", "AUC, %", "CPU s a step", "induced bigram, nats"]
    assert [row[1] for row in table] == ["arm", "base", "MLM + IMM"]
    assert table[1][-1].endswith(" ± 0.0000")
    assert not list((tmp_path / ".partial").glob("*.pt"))
    if all(tasks.available("RTE", split) for split in tasks.SPLITS):
        # another task's encoder has another vocabulary, and a file of its own
        other = imm.experiments.find("masked-rte")
        assert other.run(
            {"task": "RTE", "arm": "base", "seed": 0}, other.scales["ci"], torch.device("cpu")
        )["scores"]


@needs_glue
@pytest.mark.needs_data("wikitext2")
def test_another_model_is_tuned_by_one_command(tmp_path, monkeypatch):
    only_here(tmp_path, monkeypatch)
    folder, out = saved(tmp_path / "model", "Bert"), tmp_path / "mine"
    words = ["run", "masked-cola", "--scale", "ci", "--set", f"model={folder}", "--out", str(out)]
    assert main(words) == 0
    result = imm.results.load("masked-cola-ci", out)
    assert result["config"]["model"] == folder and len(result["units"]) == len(masked.ARMS)
    assert not list(
        (tmp_path / "cache").rglob("*.safetensors")
    )  # it has a head: nothing is pretrained


def test_held_out_examples_stand_apart_and_files_are_shuffled_alike(monkeypatch):
    lines = {
        "train": [Example(f"t{i}", None, 0) for i in range(40)],
        "dev": [Example("d", None, 1)] * 9,
    }
    monkeypatch.setattr(tasks, "load", lambda name, split: lines[split])
    config = {"examples": {"CoLA": {"train": 20, "dev": 5}}}
    seeds = [masked.runs.examples("CoLA", config, seed) for seed in (0, 1)]
    assert set(seeds[0]["train"]) != set(seeds[1]["train"]) and seeds[0]["dev"] == seeds[1]["dev"]
    found = masked.runs.examples("CoLA", config)
    apart = masked.runs.examples("CoLA", {**config, "held_out": [20, 40]})
    assert (
        found["train"] == apart["train"] != lines["train"][:20] and found["dev"] == lines["dev"][:5]
    )
    assert len(apart["dev"]) == 5 and not set(apart["dev"]) & set(apart["train"])


def test_every_number_is_chosen_in_the_simplest_arm_that_has_it():
    experiment = imm.experiments.find("masked-choice")
    config = experiment.scales["full"]
    units = experiment.units(config, 0)
    assert {(u["arm"], *(set(u) - {"task", "arm", "seed"})) for u in units} == {
        ("MLM", "mlm"),
        ("MLM + IMM", "lam"),
    }
    assert all(config[key] in values for key, values in config["grid"].items())
    for unit in units:
        assert masked.runs._settings(config, unit).arm == unit["arm"]


def test_the_course_of_the_arms():
    epochs = [
        {"cpu_s": 4.0, "steps": 2, "norm task": 1.0, "task": 0.6},
        {"cpu_s": 2.0, "steps": 2, "norm task": 3.0, "task": 0.4},
    ]
    more = [{**epoch, "norm MLM": 5.0, "task": 0.2} for epoch in epochs]
    units = [
        {"unit": {"task": "RTE", "arm": arm, "seed": seed}, "numbers": {"history": history}}
        for arm, seed, history in (("base", 0, epochs), ("base", 1, more), ("MLM", 0, more))
    ]
    found = masked.readings.course({"units": units})
    assert found["base"] == {"fitted": pytest.approx(0.3), "step": 1.5, "norms": {"task": 2.0}}
    assert found["MLM"]["norms"] == {"task": 2.0, "MLM": 5.0}


def test_the_table_is_paired_by_seed_in_every_task():
    known = {
        ("base", 0): 7.0,
        ("MLM", 0): 6.0,
        ("MLM", 1): 6.2,
        ("MLM + IMM", 0): 5.5,
        ("MLM + IMM", 1): 5.9,
    }
    history = [{"cpu_s": 1.0, "steps": 1}]
    units = [
        {
            "unit": {"task": task, "arm": arm, "seed": seed},
            "numbers": {
                "scores": {"score": nats / 10 + (task == "RTE") * seed, "auc": 0.5},
                "history": history,
                "premise": {"induced": {"mean": nats}},
            },
        }
        for task in ("MRPC", "RTE")
        for (arm, seed), nats in known.items()
    ]
    heading, *rows = masked.readings.table({"units": units, "config": {"premise": {"k": 5}}})
    cells = {(row[0], row[1]): dict(zip(heading, row, strict=True)) for row in rows}
    name = "induced bigram, nats less MLM"
    assert [cells["MRPC", arm][name] for arm in ("base", "MLM", "MLM + IMM")] == [
        "+1.0",
        "",
        "-0.4 ± 1.3",  # 12.7 times .1, t of one degree of freedom
    ]
    assert cells["RTE", "MLM + IMM"]["score, % less MLM"] == "-4 ± 13"
    assert cells["RTE", "MLM"]["CPU s a step"] == "1.0000 ± 0.0000"


def test_the_numbers_of_full_runs_come_from_the_stored_choices():
    found = masked.readings.chosen(imm.results.load("masked-choice"))
    for name in ("masked-cola", "masked-rte", "masked-qnli-small"):
        config = imm.experiments.find(name).scales["full"]
        assert config["mlm"] == found["MLM"]
        # not the chosen λ: at it the term is not felt, as MRPC's run showed (see _FELT); the
        # largest that was tried
        assert config["lam"] == max(
            imm.experiments.find("masked-choice").scales["full"]["grid"]["lam"]
        )
    found, config = (
        masked.readings.chosen(imm.results.load("masked-choice-mrpc")),
        imm.experiments.find("masked-mrpc").scales["full"],
    )
    assert config["mlm"] == found["MLM"] and {config["lam"]} == {
        found["MLM + IMM"],
        found["MLM + noising"],
    }


def test_places_after_one_word_count_as_one():
    values, group = torch.tensor([1.0, 1.0, 3.0, 3.0]).double(), torch.tensor([7, 7, 2, 2])
    found = masked.scores._mean(values, group)
    apart = masked.scores._mean(values, torch.arange(4))
    assert (
        found["mean"] == 2.0
        and found["se"] == pytest.approx(8**0.5 / 4)
        and apart["se"] == pytest.approx(0.5)
    )


@needs_glue
def test_the_small_language_agrees_where_it_should():
    """Acceptable: exactly one of noun and verb ends in s. A model of equal words gives either
    number one half.
    """
    for example in masked.toy.agreement(40, 0):
        words = example.first.split()
        assert (words[1].endswith("s") != words[-1].endswith("s")) == bool(example.label)
    text = masked.toy.agreement(60, 1, only=1)
    assert {example.label for example in text} == {1}
    model = masked.tiny([e.first for e in text + masked.toy.agreement(100, 2)], width=16)
    model.body.get_input_embeddings().weight.data.zero_()
    assert masked.toy.right_number(model, Prefixes(model.encode(text), model)) == pytest.approx(0.5)
