import pytest
import torch
from helpers.tiny import integers, noise

from minimodal.errors import UserError
from minimodal.evaluation.linear_probe import fit, linear_probe

X, Y = noise(60, 4), integers(3, 60)


def test_the_fit_is_where_the_equations_gradient_is_zero():
    penalty = 0.1
    probe = fit(X, Y, classes=3, penalty=penalty)
    x = X.double()
    error = torch.softmax(x @ probe.weight.T + probe.bias, dim=1)
    error[torch.arange(60), Y] -= 1  # p - y
    assert (error.T @ x / 60 + penalty * probe.weight).abs().max() < 1e-6
    assert error.mean(0).abs().max() < 1e-6


def test_a_large_penalty_leaves_only_how_frequent_the_classes_are():
    probe = fit(X, Y, classes=3, penalty=1e6)
    shares = torch.bincount(Y).double() / 60
    torch.testing.assert_close(torch.softmax(probe.bias, 0), shares, rtol=1e-3, atol=1e-3)


def test_classes_that_a_line_divides_are_told_apart():
    centres = torch.tensor([[4.0, 0], [0, 4], [-4, -4]])
    labels = integers(3, 200)
    x = centres[labels] + 0.3 * noise(200, 2)
    accuracy, _ = linear_probe(x[:150], labels[:150], x[150:], labels[150:], classes=3)
    assert accuracy == 1.0


def test_labels_without_a_relation_to_the_features_are_not_learnt():
    x, labels = noise(400, 8), integers(2, 400)
    accuracy, _ = linear_probe(x[:200], labels[:200], x[200:], labels[200:], classes=2)
    assert 0.35 < accuracy < 0.65


def test_the_fit_does_not_change_the_features_and_has_no_randomness():
    before = X.clone()
    first, second = (fit(X, Y, classes=3, penalty=0.01) for _ in range(2))
    assert torch.equal(X, before)
    assert torch.equal(first.weight, second.weight)


def test_too_few_pictures_are_refused():
    with pytest.raises(UserError, match="5 training pictures"):
        linear_probe(X[:4], Y[:4], X, Y, classes=3)
