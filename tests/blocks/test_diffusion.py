"""Diffusion: paths, predictions, samplers, each against an equation or a known answer."""

import math

import pytest
import torch
from helpers.tiny import generator, noise
from torch import Tensor

from minimodal.blocks import diffusion
from minimodal.blocks.diffusion import (
    PATHS,
    SAMPLERS,
    TARGETS,
    DiffusionConfig,
    Held,
    Path,
    Sampler,
    ddim_step,
    diffusion_loss,
    guided,
    invert,
    slerp,
    training_times,
    walk,
)
from minimodal.blocks.sampling import normal
from minimodal.errors import UserError

STEPS = {"ddpm": 400, "ddim": 100, "2m": 40}


def times(n: int) -> Tensor:
    """n times between the ends, where no divisor is clamped."""
    return torch.linspace(0.1, 0.9, n, dtype=torch.float64)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_leads_from_the_data_to_noise(name):
    alpha, sigma = Path(name).coefficients(torch.tensor([0.0, 1.0]))
    assert alpha[0] == 1 and sigma[0] == pytest.approx(0, abs=1e-6)
    assert alpha[1] < 0.01 and sigma[1] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", PATHS)
def test_noised_data_have_the_moments_of_their_time(name):
    t, x = torch.full((200_000,), 0.4), torch.full((200_000, 1), 2.0)
    x_t = Path(name).noised(x, noise(200_000, 1), t)
    alpha, sigma = Path(name).coefficients(t[:1])
    assert float(x_t.mean()) == pytest.approx(2 * float(alpha), abs=0.01)
    assert float(x_t.std()) == pytest.approx(float(sigma), abs=0.01)


def test_the_velocity_of_the_straight_path_is_its_derivative():
    x, e, t, h = noise(5, 3).double(), noise(5, 3, seed=1).double(), times(5), 1e-6
    path = Path("straight")
    a, b = path.direction(t)
    slope = (path.noised(x, e, t + h) - path.noised(x, e, t - h)) / (2 * h)
    assert torch.allclose(a[:, None] * x + b[:, None] * e, slope, atol=1e-8)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("wanted", TARGETS)
def test_every_prediction_follows_from_every_other(name, kind, wanted):
    x, e, t = noise(6, 4).double(), noise(6, 4, seed=1).double(), times(6)
    path = Path(name)
    x_t = path.noised(x, e, t)
    a, b = (c[:, None] for c in path.direction(t))
    true = {"x": x, "noise": e, "velocity": a * x + b * e}
    if name == "linear" and kind == "noise":
        t, keep = t, path.coefficients(t)[0] > diffusion.LEAST  # beyond, the divisor is clamped
    else:
        keep = torch.ones(6, dtype=torch.bool)
    found = getattr(path.estimate(x_t, t, true[kind], kind), wanted)
    assert torch.allclose(found[keep], true[wanted][keep], atol=1e-6)


@pytest.mark.parametrize("predicts", TARGETS)
def test_the_loss_on_v_weighs_an_error_of_x_by_one_over_sigma_squared(predicts):
    config = DiffusionConfig(path="straight", predicts=predicts, loss_on="velocity")
    x, e, t = noise(4, 3).double(), noise(4, 3, seed=1).double(), times(4)
    path, wrong = Path("straight"), noise(4, 3, seed=2).double()
    x_t = path.noised(x, e, t)
    given = getattr(path.estimate(x_t, t, wrong, "x"), predicts)  # what says that x is `wrong`
    expected = ((wrong - x).square() / t[:, None].square()).mean()
    assert float(diffusion_loss(given, x, e, t, config)) == pytest.approx(float(expected), rel=1e-5)


def test_a_right_prediction_has_no_loss_at_any_time():
    x, e, t = noise(50, 3), noise(50, 3, seed=1), torch.linspace(0, 1, 50)
    assert float(diffusion_loss(x, x, e, t, DiffusionConfig(predicts="x"))) == 0


def test_training_times_have_the_logit_normal_density():
    config = DiffusionConfig(time_mean=0.8)
    u = torch.rand(100_000, generator=generator(), dtype=torch.float64)
    logits = torch.logit(training_times(u, config))
    assert float(logits.mean()) == pytest.approx(0.8, abs=0.01)
    assert float(logits.std()) == pytest.approx(1.0, abs=0.01)


# --- samplers ------------------------------------------------------------------------------------


def gaussian_mean(path: Path, mean: float, deviation: float):
    """E[x | x_t] where the data are N(mean, deviation²): all that a perfect network could say."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c.view(-1, 1) for c in path.coefficients(t))
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    return denoise


def ideal(path: Path, points: Tensor):
    """E[x | x_t] where the data are a few points, all as likely."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c.view(-1, 1) for c in path.coefficients(t))
        distances = torch.cdist(x_t / alpha.clamp(min=1e-6), points).square()
        weights = (-distances * alpha**2 / (2 * sigma**2).clamp(min=1e-12)).softmax(1)
        return weights @ points

    return denoise


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_gaussian_is_reproduced_in_mean_and_variance(name, path):
    path, how = Path(path), Sampler(name, steps=STEPS[name])
    start = noise(20_000, 1).double()
    x = walk(gaussian_mean(path, 1.5, 0.7), start, how, path, generator=generator(1))
    assert float(x.mean()) == pytest.approx(1.5, abs=0.03)
    assert float(x.std()) == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_mixture_of_two_is_reproduced(name):
    """0.3 of the mass at -2 and 0.7 at 1, each with a deviation of 0.2."""
    path, w = Path("cosine"), torch.tensor([0.3, 0.7])

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c.view(-1, 1) for c in path.coefficients(t))
        parts = torch.stack([gaussian_mean(path, m, 0.2)(x_t, t) for m in (-2.0, 1.0)])
        variance = alpha**2 * 0.04 + sigma**2
        logs = torch.stack([-((x_t - alpha * m) ** 2) / (2 * variance) for m in (-2.0, 1.0)])
        share = (logs + w.log().view(2, 1, 1)).softmax(0)
        return (share * parts).sum(0)

    how = Sampler(name, steps=STEPS[name])
    x = walk(denoise, noise(20_000, 1), how, path, generator=generator(1))[:, 0]
    left = x < -0.5
    assert float(left.float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(x[left].mean()) == pytest.approx(-2, abs=0.05)
    assert float(x[~left].std()) == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_ideal_denoiser_of_a_few_points_leads_to_them(name, path):
    points, path = noise(5, 8, seed=3), Path(path)
    how = Sampler(name, steps=30)
    x = walk(ideal(path, points), noise(40, 8), how, path, generator=generator(1))
    assert float(torch.cdist(x, points).min(dim=1).values.max()) < 1e-2


def test_ddim_takes_the_steps_of_its_equation():
    """Song et al. 2021, equation 12, in ᾱ and with the paper's σ, beside our step, at η = 0.5."""
    path, x_t, x, fresh = Path("cosine"), noise(1, 4), noise(1, 4, seed=1), noise(1, 4, seed=2)
    t, s = torch.tensor([0.6]), torch.tensor([0.35])
    a, b = (float(path.coefficients(time)[0]) ** 2 for time in (t, s))  # ᾱ_t, ᾱ_{t-1}
    sigma = 0.5 * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
    noise_t = (x_t - math.sqrt(a) * x) / math.sqrt(1 - a)
    wanted = math.sqrt(b) * x + math.sqrt(1 - b - sigma**2) * noise_t + sigma * fresh
    found = ddim_step(path, x_t, t, s, x, eta=0.5, fresh=fresh)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_2m_takes_the_steps_of_its_algorithm():
    """Lu et al. 2022, algorithm 2, written out in λ beside `walk`."""
    path, how = Path("cosine"), Sampler("2m", steps=6)
    denoise, x = gaussian_mean(path, 0.5, 0.6), noise(3, 1).double()
    ends = torch.linspace(1, 0, 7).double()
    alpha, sigma = path.coefficients(ends)
    lam = (alpha / sigma).log()
    lam[0] = -math.inf  # α is 0 there, but for rounding
    wanted, before = x, None
    for i in range(6):
        now = denoise(wanted, ends[i].expand(3))
        if before is None or i == 5:
            use = now
        else:
            r = (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i])
            use = (1 + 1 / (2 * r)) * now - before / (2 * r)
        h = lam[i + 1] - lam[i]
        wanted = sigma[i + 1] / sigma[i] * wanted - alpha[i + 1] * torch.expm1(-h) * use
        before = now
    assert torch.allclose(walk(denoise, x, how, path), wanted, atol=1e-5)


def test_2m_is_nearer_to_the_exact_solution_than_ddim_with_as_many_steps():
    path = Path("straight")
    denoise, start = gaussian_mean(path, 1.0, 0.5), noise(500, 1).double()
    exact = walk(denoise, start, Sampler("ddim", steps=1000), path)
    ends = [walk(denoise, start, Sampler(name, steps=12), path) for name in ("ddim", "2m")]
    errors = [float((end - exact).abs().mean()) for end in ends]
    assert errors[1] < errors[0] / 4


def test_the_last_estimate_is_what_is_returned():
    seen: list[Tensor] = []
    path = Path("straight")
    for name in SAMPLERS:
        x = walk(gaussian_mean(path, 0.0, 1.0), noise(2, 3), Sampler(name, steps=4), path,
                 generator=generator(), on_step=lambda x, _: seen.append(x))  # fmt: skip
        assert torch.allclose(x, seen[-1], atol=1e-6)


def test_a_walk_and_its_inversion_come_back():
    path = Path("straight")
    denoise, start = gaussian_mean(path, 1.0, 0.5), noise(50, 2).double()
    x = walk(denoise, start, Sampler("ddim", steps=100), path)
    back = invert(denoise, x, path, steps=100)
    again = walk(denoise, back, Sampler("ddim", steps=100), path)
    assert float((again - x).abs().max()) < 1e-2


def test_an_inversion_of_points_gives_noise_only_if_it_begins_in_some():
    """Where the data are points their exact inverse is anything; with a little noise in them it is
    what noise is, and leads back to them."""
    path, points = Path("straight"), 3 * noise(4, 64, seed=2)
    x, denoise = points.repeat(50, 1), ideal(path, points)
    exact = invert(denoise, x, path, steps=32)
    start = path.noised(x, noise(200, 64, seed=3), torch.full((200,), 0.2))
    begun = invert(denoise, start, path, steps=32, start=0.2)
    assert float(begun.std()) == pytest.approx(1, abs=0.1) and float(exact.std()) > 2
    again = walk(denoise, begun, Sampler("ddim", steps=32), path)
    assert float((again - x).abs().max()) < 1e-2


def test_what_is_held_stays_and_the_rest_goes_with_it():
    """Points of two numbers, one of which is held: the other is that of a point with it."""
    points = torch.tensor([[-2.0, 1.0], [2.0, -1.0]])
    path, keep = Path("straight"), torch.tensor([True, False])
    held = Held(torch.tensor([[2.0, 0.0]]), keep, noise(1, 2, seed=4))
    x = walk(ideal(path, points), noise(20, 2), Sampler("ddim", steps=50), path, held=held)
    assert torch.equal(x[:, 0], torch.full((20,), 2.0))
    assert float((x[:, 1] + 1).abs().max()) < 0.05


def test_guidance_1_is_the_condition_and_0_is_without():
    with_it, without, t = noise(3, 2), noise(3, 2, seed=1), torch.tensor([0.1, 0.5, 0.9])
    one, none = (guided(with_it, without, t, Sampler(guidance=s)) for s in (1.0, 0.0))
    assert torch.allclose(one, with_it) and torch.allclose(none, without)
    late = guided(with_it, without, t, Sampler(guidance=3.0, guide_from=0.6, guide_to=0.3))
    assert torch.allclose(late[[0, 2]], with_it[[0, 2]])
    assert torch.allclose(late[1], without[1] + 3 * (with_it[1] - without[1]))


def test_slerp_keeps_lengths_and_divides_the_angle():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    third = slerp(a, b, 1 / 3)
    wanted = torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]])
    assert torch.allclose(third, wanted, atol=1e-6)
    assert torch.equal(slerp(a, b, 0.0), a) and torch.allclose(slerp(a, a, 0.3), a)


def test_tensors_of_the_caller_are_not_changed():
    x, e, t = noise(4, 3), noise(4, 3, seed=1), torch.linspace(0.1, 0.9, 4)
    copies = [v.clone() for v in (x, e, t)]
    path = Path("straight")
    diffusion_loss(x, x, e, t, DiffusionConfig())
    walk(gaussian_mean(path, 0.0, 1.0), x, Sampler("ddpm", steps=3), path, generator=generator())
    invert(gaussian_mean(path, 0.0, 1.0), x, path, steps=3)
    slerp(x, e, 0.5)
    assert all(torch.equal(v, c) for v, c in zip((x, e, t), copies, strict=True))


def test_a_rows_own_generator_makes_its_noise_whatever_is_beside_it():
    pair = normal(torch.empty(2, 5), [generator(3), generator(7)])
    assert torch.equal(pair[1:], normal(torch.empty(1, 5), [generator(7)]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "euler"}, "sampler euler: expected ddpm, ddim or 2m"),
        ({"steps": 0}, "steps 0"),
        ({"steps": 1001}, "steps 1001: expected from 1 to 1000"),
        ({"guidance": math.nan}, "guidance nan"),
        ({"name": "ddim", "eta": 1.5}, "eta 1.5"),
        ({"eta": 0.5}, "eta 0.5 is DDIM's"),
    ],
)
def test_a_walk_that_cannot_be_made_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Sampler(**wrong).check()


@pytest.mark.parametrize("name", ["path", "predicts", "loss_on"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(UserError, match="nothing: expected"):
        DiffusionConfig(**{name: "nothing"})
