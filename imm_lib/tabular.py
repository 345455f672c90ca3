"""Worlds small enough to be exact: a finite joint law, its induced model, the risks and their
minimisers.
"""

import torch
from torch import Tensor

from imm_lib import checks, distributions
from imm_lib.contexts import BeliefContexts
from imm_lib.induced import cross_entropy, imm_risk, induce, noising_risk


class TabularWorld:
    """A joint law of short context, extended context and label, with everything that eqs. 2 to 5
    and 14 define on it.

    All computations are in float64 and in nats. A full model is a (S, E, Y) tensor of
    log-probabilities.

    Args:
        joint: (S, E, Y) probabilities P(s, e, y) that sum to 1; every short context has positive
            probability.

    Attributes:
        pi: (S, E), π(s, e).
        pi_short: (S,), π(s).
        belief: (S, E), π(e|s).
        conditional: (S, E, Y), the true model P(y|s, e); uniform where π(s, e) = 0, where nothing
            depends on it.
        induced: (S, Y), the true induced model P̄(y|s) of eq. 3.

    Raises:
        TypeError: ``joint`` is not a floating-point tensor.
        ValueError: it is not 3-D, not a distribution, or leaves a short context without
            probability.

    >>> world = counterexample()
    >>> world.induced
    tensor([[0.5700, 0.4300],
            [0.5000, 0.5000]], dtype=torch.float64)
    """

    def __init__(self, joint: Tensor):
        checks.floating("joint", joint, "S", "E", "Y")
        distributions.probabilities("joint", joint.flatten())
        joint = joint.double()
        self.joint = joint / joint.sum()
        self.pi = self.joint.sum(2)
        self.pi_short = self.pi.sum(1)
        if (self.pi_short == 0).any():
            empty = (self.pi_short == 0).nonzero()[0].item()
            raise ValueError(
                f"joint must give every short context positive probability, got 0 for s = {empty}"
            )
        self.belief = self.pi / self.pi_short.unsqueeze(1)
        labels = self.joint.shape[2]
        self.conditional = torch.where(
            self.pi.unsqueeze(2) > 0,
            self.joint / self.pi.unsqueeze(2),
            torch.full_like(self.joint, 1 / labels),
        )
        self.induced = (self.belief.unsqueeze(2) * self.conditional).sum(1)

    def _model(self, log_q: Tensor) -> Tensor:
        return distributions.log_distributions("log_q", log_q, *self.joint.shape).double()

    def induce(self, log_q: Tensor) -> Tensor:
        """(S, E, Y) -> (S, Y) log-probabilities of the induced model under the true π (eq. 4)."""
        return induce(self._model(log_q), self.belief.log())

    def cross_entropy(self, log_q: Tensor) -> Tensor:
        """The risk of eq. 2 up to the entropy of P: sum π(s,e) H(P(·|s,e), Q(·|s,e)); a scalar."""
        return cross_entropy(self.joint, self._model(log_q)).sum()

    def kl(self, log_q: Tensor) -> Tensor:
        """The risk of eq. 2, the mean KL(P ‖ Q); a scalar, 0 only at Q = P."""
        return self.cross_entropy(log_q) - cross_entropy(self.joint, self.conditional.log()).sum()

    def imm_risk(self, log_q: Tensor) -> Tensor:
        """The idealised IMM risk sum π(s) H(P̄(·|s), Q̄(·|s)), eq. 5 up to the entropy of P̄; a
        scalar.
        """
        return self.pi_short @ imm_risk(self.induced, self._model(log_q), self.belief.log())

    def noising_risk(self, log_q: Tensor) -> Tensor:
        """The noising and reverse-distillation risk sum π(s,e) H(P̄(·|s), Q(·|s,e)) of eq. 14; a
        scalar.
        """
        return self.pi_short @ noising_risk(self.induced, self._model(log_q), self.belief.log())

    def g(self, log_q: Tensor) -> Tensor:
        """g(Q) of eq. 17: the noising risk of Q less that of the true model. Negative somewhere
        means inconsistency.
        """
        return self.noising_risk(log_q) - self.noising_risk(self.conditional.log())

    def noising_minimiser(self, lam: float) -> Tensor:
        """(S, E, Y) probabilities (P + λP̄)/(1 + λ), where cross-entropy plus λ times noising risk
        is least.

        For each (s, e) the objective is a cross-entropy against that mixture, up to a factor.
        Raises ValueError for λ < 0.
        """
        lam = checks.number("lam", lam, 0)
        return (self.conditional + lam * self.induced.unsqueeze(1)) / (1 + lam)

    def minimise(
        self, objective: str, lam: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """(S, E, Y) log-probabilities where cross-entropy plus λ times a risk is least, found by
        optimisation.

        Args:
            objective: "imm" or "noising".
            lam: λ, at least 0.
            generator: of the random start, standard normal logits.

        Raises:
            ValueError: for another objective or λ < 0.
        """
        risks = {"imm": self.imm_risk, "noising": self.noising_risk}
        if objective not in risks:
            raise ValueError(f"objective must be one of {sorted(risks)}, got {objective!r}")
        lam = checks.number("lam", lam, 0)
        logits = torch.randn(
            self.joint.shape, generator=generator, dtype=torch.float64
        ).requires_grad_()
        optimiser = torch.optim.LBFGS(
            [logits],
            max_iter=2000,
            tolerance_grad=1e-12,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            log_q = logits.log_softmax(-1)
            value = self.cross_entropy(log_q) + lam * risks[objective](log_q)
            value.backward()
            return value

        optimiser.step(closure)
        return logits.detach().log_softmax(-1)

    def contexts(self) -> BeliefContexts:
        """The extended contexts of this world: the true π(e|s)."""
        return BeliefContexts(self.belief)


def counterexample() -> TabularWorld:
    """The world of Proposition 6.1's proof (Appendix B.2): two short contexts, two extended ones,
    two labels.

    >>> world = counterexample()
    >>> flat = torch.full((2, 2, 2), 0.5).log()
    >>> round(world.g(flat).item(), 4)
    -1.098
    """
    # the paper prints P(y, x_-1, x_-2); here the label comes last
    paper = torch.tensor(
        [[[0.396, 0.003], [0.1, 0.05]], [[0.004, 0.297], [0.1, 0.05]]], dtype=torch.float64
    )
    return TabularWorld(paper.movedim(0, -1))
