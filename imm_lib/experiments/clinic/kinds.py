"""Labels of classes and of real values, by the same six functions.

An *answer* is what a model says of cases: (..., Y) log-probabilities, or (..., 1) means.
"""

import torch
from torch import Tensor


def _averaged(weight: Tensor, value: Tensor) -> Tensor:
    """(R, P, i, n) weights, (R, S, P, n, Y) values -> (R, S, P, i, Y), as one product per part."""
    settings, labels = value.shape[1], value.shape[-1]
    columns = value.permute(0, 2, 3, 1, 4).flatten(3)
    return (weight @ columns).unflatten(3, (settings, labels)).permute(0, 3, 1, 2, 4)


class Classes:
    """Labels are classes; losses are in nats."""

    @staticmethod
    def answer(output: Tensor) -> Tensor:
        """(..., Y) outputs -> (..., Y) log-probabilities."""
        return output.log_softmax(-1)

    @staticmethod
    def loss(answer: Tensor, label: Tensor) -> Tensor:
        """(..., Y), (...) -> (...) -log Q of the labels."""
        index = label.expand(answer.shape[:-1]).unsqueeze(-1)
        return -answer.gather(-1, index).squeeze(-1)

    @staticmethod
    def match(target: Tensor, answer: Tensor) -> Tensor:
        """(..., Y), (..., Y) -> (...) cross-entropy of the target and the answer."""
        return -(target * answer).sum(-1)

    @staticmethod
    def average(weight: Tensor, answer: Tensor) -> Tensor:
        """(R, P, i, n) weights, (R, S, P, n, Y) -> (R, S, P, i, Y) the answer of the induced
        model.
        """
        return _averaged(weight, answer.exp()).clamp(min=1e-30).log()

    @staticmethod
    def mix(answer: Tensor, target: Tensor, share: Tensor) -> Tensor:
        """(..., Y) the answer of a mixture that holds ``share`` of the target."""
        return torch.logaddexp((1 - share).log() + answer, share.log() + target.log())

    @staticmethod
    def offset(target: Tensor) -> Tensor:
        """(..., Y) what an offset adds to the outputs, times its share."""
        return target.clamp(min=1e-6).log()

    @staticmethod
    def hit(answer: Tensor, label: Tensor) -> Tensor:
        """(...) 1 where the likeliest class is the label."""
        return (answer.argmax(-1) == label).double()


class Values:
    """Labels are real values; losses are half the squared error, in squared units of the label."""

    @staticmethod
    def answer(output: Tensor) -> Tensor:
        """(..., 1) outputs are means already."""
        return output

    @staticmethod
    def loss(answer: Tensor, label: Tensor) -> Tensor:
        """(..., 1), (...) -> (...) half the squared error."""
        return (answer.squeeze(-1) - label).square() / 2

    @staticmethod
    def match(target: Tensor, answer: Tensor) -> Tensor:
        """(..., 1), (..., 1) -> (...) half the squared difference of two means."""
        return (target - answer).squeeze(-1).square() / 2

    @staticmethod
    def average(weight: Tensor, answer: Tensor) -> Tensor:
        """(R, P, i, n) weights, (R, S, P, n, 1) -> (R, S, P, i, 1) the induced mean."""
        return _averaged(weight, answer)

    @staticmethod
    def mix(answer: Tensor, target: Tensor, share: Tensor) -> Tensor:
        """(..., 1) a mean that holds ``share`` of the target's."""
        return (1 - share) * answer + share * target

    @staticmethod
    def offset(target: Tensor) -> Tensor:
        """(..., 1) what an offset adds to the outputs, times its share."""
        return target

    @staticmethod
    def hit(answer: Tensor, label: Tensor) -> Tensor:
        """(...) the squared error, for want of a share of hits."""
        return (answer.squeeze(-1) - label).square().double()


Kind = type[Classes] | type[Values]
