"""Linear probe: how well a linear classifier reads classes off frozen features.

Multinomial logistic regression with an L2 penalty, by L-BFGS, as in the CLIP paper (Radford et al.
2021, section 3.2 and appendix A.3), which chooses the penalty on held-out training data.

Features (N, E) and labels (N,) in, an accuracy out. Read nothing before.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodal.errors import UserError

PENALTIES = tuple(10.0**k for k in range(-6, 2))
STEPS = 300  # of L-BFGS at most


class Probe(NamedTuple):
    """A linear classifier.

    weight: (K, E) one row per class
    bias: (K,) not penalised
    """

    weight: Tensor
    bias: Tensor

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """How often the largest logit is the label's.

        features: (N, E) as the probe was fitted on
        labels: (N,) int64
        """
        logits = features.to(self.weight) @ self.weight.T + self.bias  # (N, K)
        return float((logits.argmax(dim=1) == labels).float().mean())


def fit(features: Tensor, labels: Tensor, *, classes: int, penalty: float) -> Probe:
    """The minimum of a convex function, so no step size and no randomness.

        L(W, b) = mean_i CE(W xᵢ + b, yᵢ) + λ/2 |W|²

    features: (N, E) frozen features
    labels: (N,) int64 below `classes`
    """
    x, y = features.detach().double(), labels
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, tolerance_grad=1e-7, tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, y) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return Probe(weight.detach(), bias.detach())


def linear_probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, classes: int
) -> tuple[float, float]:
    """The accuracy on one set of a fit on the other, and the penalty, which is chosen on every
    fifth training row.

    train: (N, E) features
    train_labels: (N,) int64
    test: (M, E) features
    test_labels: (M,) int64
    """
    if len(train) < 5:
        raise UserError(f"a linear probe needs 5 training pictures or more, there are {len(train)}")
    held = torch.arange(len(train)) % 5 == 4
    best = max(
        PENALTIES,
        key=lambda penalty: fit(
            train[~held], train_labels[~held], classes=classes, penalty=penalty
        ).accuracy(train[held], train_labels[held]),
    )
    probe = fit(train, train_labels, classes=classes, penalty=best)
    return probe.accuracy(test, test_labels), best
