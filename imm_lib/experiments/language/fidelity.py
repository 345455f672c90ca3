"""How true an estimator's gradient is: against the exact gradient of the IMM risk, at weights that
stand still.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from imm_lib.experiments.language.measures import induced
from imm_lib.experiments.language.models import LanguageModel
from imm_lib.experiments.language.terms import Term
from imm_lib.experiments.language.text import Block, Stream
from imm_lib.experiments.training import without_dropout
from imm_lib.targets import KneserNeyBigram


def _flat(model: LanguageModel, parts: Iterator[Tensor]) -> Tensor:
    """The gradient of the sum of ``parts`` by all parameters, one vector; each part's graph is
    freed after it.
    """
    model.zero_grad(set_to_none=True)
    for part in parts:
        part.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return torch.cat([g.flatten().double() for g in grads])


def exact_gradient(model: LanguageModel, stream: Stream, bigram: KneserNeyBigram) -> Tensor:
    """(P,) the gradient of the empirical IMM risk (eq. 9) of a text, without dropout.

    Every place of the text is an extended context of its word, and ``stream.unroll`` bounds how far
    back gradients go. By eq. 13 it is the gradient of a corrected cross-entropy, whose correction
    one sweep has made exact.
    """
    table = induced(model, stream, bigram)

    def parts() -> Iterator[Tensor]:
        with without_dropout(model):
            state = model.begin(stream.batch)
            for block in stream:
                log_q, state = model(block.words, state.detach())
                log_q = log_q.flatten(0, 1)
                yield table(log_q, block.words.flatten(), log_q.detach()) * (
                    block.words.numel() / len(stream.words)
                )

    return _flat(model, parts())


def _added(term: Term, model: LanguageModel, features: Tensor, block: Block) -> Tensor | None:
    """What a term adds at λ = 1 to the pass of the cross-entropy."""
    with_term = term.joint(model, features, block, 1.0)
    without = term.joint(model, features, block, 0.0)
    if with_term is None or without is None:
        return term.shared(model.log_probs(features), block)
    return with_term[0] - without[0]


def mean_gradient(model: LanguageModel, stream: Stream, term: Term, passes: int = 1) -> Tensor:
    """(P,) the mean over blocks of what a term adds at λ = 1, over whole passes; the model's
    dropout as it is set.
    """

    def parts() -> Iterator[Tensor]:
        for _ in range(passes):
            state = model.begin(stream.batch)
            for block in stream:
                features, state = model.hidden(block.words, state.detach())
                share = block.words.numel() / len(stream.words) / passes
                shared = _added(term, model, features, block)
                if shared is not None:
                    yield share * shared
                for part in term.own(model, block):
                    yield share * part

    return _flat(model, parts())


def compare(estimate: Tensor, exact: Tensor) -> dict[str, float]:
    """Cosine, relative error |estimate - exact| / |exact|, and ratio of the norms."""
    return {
        "cosine": torch.cosine_similarity(estimate, exact, dim=0).item(),
        "error": ((estimate - exact).norm() / exact.norm()).item(),
        "norm_ratio": (estimate.norm() / exact.norm()).item(),
    }
