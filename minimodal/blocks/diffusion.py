"""Diffusion: a path from data to noise, what a network may predict on it, and ways back.

One time axis for all: t = 0 is the data x, t = 1 is noise ε ~ N(0, I), and between them

    x_t = α(t) x + σ(t) ε

A `Path` says what α and σ are. A network may predict x, ε or the velocity v; each follows from any
other (`Path.estimate`). A sampler walks from 1 to 0 and asks `denoise(x_t, t)`, a function, for its
estimate of x at every step: DDPM (Ho et al. 2020), DDIM (Song et al. 2021), DPM-Solver++ 2M (Lu et
al. 2022). The same walk upwards inverts a picture; from the middle it changes one; with a part
held it fills the rest in. Tensors x are (B, …), whatever is diffused: pictures or embeddings.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minimodal.blocks.sampling import Generators, normal
from minimodal.errors import UserError, check_choice, check_range

PATHS = ("cosine", "linear", "straight")
TARGETS = ("x", "noise", "velocity")
SAMPLERS = ("ddpm", "ddim", "2m")
LEAST = 0.05  # σ and α are taken for no less where an estimate is divided by them

Denoise = Callable[[Tensor, Tensor], Tensor]  # x_t (B, …) and t (B,) to the estimate of x (B, …)


class Estimate(NamedTuple):
    """The same statement about x_t in three ways.

    x: (B, …) the data
    noise: (B, …) ε
    velocity: (B, …) v
    """

    x: Tensor
    noise: Tensor
    velocity: Tensor


class Path(NamedTuple):
    """How data becomes noise.

    cosine    α = cos(πt/2), σ = sin(πt/2)                          (Nichol & Dhariwal 2021)
    linear    α² = exp(-0.1 t - 9.95 t²), σ² = 1 - α²               (Ho et al. 2020, in the limit)
    straight  α = 1 - t, σ = t                                      (Liu et al. 2022)
    """

    name: str = "cosine"

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at times t.

        t: (B,) 0 to 1
        returns: (B,) α, (B,) σ
        """
        if self.name == "cosine":
            # differs from the paper: without its offset s = 0.008, which keeps 1,000 discrete
            # steps from beginning too small; time is continuous here.
            return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)
        if self.name == "linear":
            square = torch.exp(-0.1 * t - 9.95 * t.square())  # ᾱ with β from 0.1 to 20
            return square.sqrt(), (1 - square).clamp(min=0).sqrt()
        return 1 - t, t

    def direction(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of the velocity v = a x + b ε, chosen so that α b - σ a = 1: of the straight path
        ε - x, its derivative; of the others α ε - σ x (Salimans & Ho 2022).

        t: (B,)
        returns: (B,) a, (B,) b
        """
        if self.name == "straight":
            return -torch.ones_like(t), torch.ones_like(t)
        alpha, sigma = self.coefficients(t)
        return -sigma, alpha

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = α x + σ ε.

        x: (B, …) data
        noise: (B, …)
        t: (B,)
        returns: (B, …)
        """
        alpha, sigma = (along(c, x) for c in self.coefficients(t))
        return alpha * x + sigma * noise

    def estimate(self, x_t: Tensor, t: Tensor, found: Tensor, kind: str) -> Estimate:
        """All three predictions from one of them.

        With α b - σ a = 1 the two lines x_t = α x + σ ε and v = a x + b ε have the solution
        x = b x_t - σ v and ε = α v - a x_t.

        x_t: (B, …)
        t: (B,)
        found: (B, …) the prediction
        kind: what it is: x, noise or velocity
        """
        (alpha, sigma), (a, b) = self.coefficients(t), self.direction(t)
        alpha, sigma, a, b = (along(c, x_t) for c in (alpha, sigma, a, b))
        if kind == "velocity":
            return Estimate(b * x_t - sigma * found, alpha * found - a * x_t, found)
        if kind == "x":
            # Near the data all but nothing of x_t is noise: what it was cannot be told from x.
            divisor = sigma.clamp(min=LEAST)
            return Estimate(found, (x_t - alpha * found) / divisor, (b * x_t - found) / divisor)
        divisor = alpha.clamp(min=LEAST)
        return Estimate((x_t - sigma * found) / divisor, found, (found + a * x_t) / divisor)


def along(values: Tensor, like: Tensor) -> Tensor:
    """One number per row, shaped to multiply a batch.

    values: (B,)
    like: (B, …)
    returns: (B, …)
    """
    return values.view(-1, *(1,) * (like.ndim - 1)).to(like.dtype)


@dataclass(frozen=True)
class DiffusionConfig:
    """How a system diffuses: the path, what its network says, what its loss compares, when."""

    # differs from the paper: a straight path in continuous time instead of a cosine one of 1,000
    # steps; x is predicted and velocities are compared, since noise, which the paper's decoder
    # predicts, takes far longer to learn (docs/unclip.md).
    path: str = "straight"  # cosine, linear or straight
    predicts: str = "x"  # what the network gives: x, noise or velocity
    loss_on: str = "velocity"  # what the loss compares: x, noise or velocity
    time_mean: float = 0.0  # of the training's times, as ln(t / (1 - t)); above 0: more noise

    def __post_init__(self) -> None:
        check_choice("path", self.path, PATHS)
        check_choice("predicts", self.predicts, TARGETS)
        check_choice("loss_on", self.loss_on, TARGETS)


def training_times(uniform: Tensor, config: DiffusionConfig) -> Tensor:
    """Times to train at: t = sigmoid(m + n), n ~ N(0, 1) (Esser et al. 2024, equation 19).

    uniform: (B,) random numbers between 0 and 1
    returns: (B,) between 0 and 1
    """
    n = torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6)).to(uniform.dtype)
    return torch.sigmoid(config.time_mean + n)


def diffusion_loss(
    found: Tensor, x: Tensor, noise: Tensor, t: Tensor, config: DiffusionConfig
) -> Tensor:
    """Mean squared error of what the network says, as x, ε or v, whatever it predicts:

        L = E ‖estimate_loss_on(found) - estimate_loss_on(true)‖²

    On v this weighs an error of x by 1/σ², on ε by α²/σ². Divisors below 0.05 are taken for that.

    found: (B, …) the network's prediction at x_t
    x: (B, …) the data
    noise: (B, …)
    t: (B,)
    returns: ()
    """
    path = Path(config.path)
    x_t = path.noised(x, noise, t)
    a, b = (along(c, x) for c in path.direction(t))
    true = {"x": x, "noise": noise, "velocity": a * x + b * noise}[config.predicts]
    guess, truth = (
        getattr(path.estimate(x_t, t, some.float(), config.predicts), config.loss_on)
        for some in (found, true)
    )
    return (guess - truth).square().mean()


# --- sampling ------------------------------------------------------------------------------------


class Sampler(NamedTuple):
    """How to go from noise to data."""

    name: str = "2m"  # ddpm, ddim or 2m
    steps: int = 16
    eta: float = 0.0  # of DDIM: 0 adds no noise, 1 is DDPM
    guidance: float = 1.0  # 0: without the condition, 1: with it, above: away from without
    guide_from: float = 1.0  # guidance holds between these times, from noise …
    guide_to: float = 0.0  # … to data

    def check(self) -> None:
        """Refuse what no walk can be made of."""
        check_choice("sampler", self.name, SAMPLERS)
        if not 1 <= self.steps <= 1000:
            raise UserError(f"steps {self.steps}: expected from 1 to 1000")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise UserError(f"guidance {self.guidance}: expected 0 or more")
        check_range(self, 0, 1, "eta", "guide_from", "guide_to")
        if self.eta and self.name != "ddim":
            raise UserError(f"eta {self.eta} is DDIM's; {self.name} has none")

    def scale(self, t: Tensor) -> Tensor:
        """t: (B,); returns: (B,) guidance, 1 outside of its times (Kynkäänniemi et al. 2024)"""
        holds = (t <= self.guide_from) & (t >= self.guide_to)
        return torch.where(holds, self.guidance, 1.0)


def guided(with_it: Tensor, without: Tensor, t: Tensor, how: Sampler) -> Tensor:
    """x = x_∅ + s (x_c - x_∅) (Ho & Salimans 2022).

    with_it: (B, …) the estimate with the condition
    without: (B, …) the one without
    t: (B,)
    returns: (B, …)
    """
    return without + along(how.scale(t), with_it) * (with_it - without)


def ddim_step(
    path: Path, x_t: Tensor, t: Tensor, s: Tensor, x: Tensor, *, eta: float, fresh: Tensor | None
) -> Tensor:
    """From time t to s with the estimate x of the data (Song et al. 2021, equation 12):

        x_s = α_s x + sqrt(σ_s² - c²) ε + c z,   ε = (x_t - α_t x) / σ_t
        c = η σ_s sqrt(1 - (α_t σ_s / α_s σ_t)²)

    x_t: (B, …)
    t: (B,)
    s: (B,)
    x: (B, …)
    fresh: (B, …) the new noise z, where η is above 0
    returns: (B, …)
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = path.coefficients(t), path.coefficients(s)
    ratio = alpha_t * sigma_s / (alpha_s * sigma_t)
    c = eta * sigma_s * (1 - ratio.square()).clamp(min=0).sqrt()
    kept = (sigma_s.square() - c.square()).clamp(min=0).sqrt()
    noise = (x_t - along(alpha_t, x) * x) / along(sigma_t, x)
    moved = along(alpha_s, x) * x + along(kept, x) * noise
    return moved if fresh is None else moved + along(c, x) * fresh


class Held(NamedTuple):
    """A part of the data that is known and stays.

    x: (B, …) the data
    keep: (…) bool, True where it stays, of a shape that broadcasts to that of x
    noise: (B, …) with which it is noised on the way
    """

    x: Tensor
    keep: Tensor
    noise: Tensor


class Start(NamedTuple):
    """Where a walk begins, if not in fresh noise.

    x_t: (B, …) noise that was chosen, or data with noise of the time
    """

    x_t: Tensor | None = None
    time: float = 1.0
    held: Held | None = None  # what stays as it is


NOISE = Start()


@torch.no_grad()
def walk(
    denoise: Denoise,
    x_t: Tensor,
    how: Sampler,
    path: Path,
    *,
    time: float = 1.0,
    generator: Generators | None = None,
    held: Held | None = None,
    on_step: Callable[[Tensor, int], None] | None = None,
) -> Tensor:
    """Follow `denoise` from noise to data; the last step returns its last estimate.

    2M looks one step back (Lu et al. 2022, algorithm 2): with λ = ln(α/σ), h = λ_s - λ_t and
    r = h_before / h it takes D = (1 + 1/2r) x - 1/2r x_before for the estimate, and

        x_s = σ_s/σ_t x_t + α_s (1 - e^-h) D,   which is DDIM's step where D = x

    x_t: (B, …) where the walk begins: noise, or data with noise of the first time
    time: of x_t
    held: what stays as it is (Lugmayr et al. 2022, without their resampling)
    on_step: called after each step with the estimate of x and the number of steps done
    returns: (B, …)
    """
    how.check()
    if time == 0:  # there is no noise to take away
        if on_step is not None:
            on_step(x_t, how.steps)
        return x_t
    times = torch.linspace(time, 0, how.steps + 1, device=x_t.device)
    eta = {"ddpm": 1.0, "ddim": how.eta, "2m": 0.0}[how.name]
    # λ is -∞ where there is no data left, as at the start of most walks: 1/2r is 0 behind it.
    alphas, sigmas = path.coefficients(times)
    lam = torch.where(alphas < 1e-6, -torch.inf, (alphas / sigmas).log())  # (n,)
    before: Tensor | None = None
    for i in range(how.steps):
        t, s = (times[j].expand(len(x_t)) for j in (i, i + 1))  # (B,) each
        x = denoise(x_t, t)
        # The last step goes to an infinite λ, where a line through two estimates is no help.
        use = x
        if how.name == "2m" and before is not None and i + 1 < how.steps:
            half = (lam[i + 1] - lam[i]) / (lam[i] - lam[i - 1]) / 2  # 1/2r
            use = (1 + half) * x - half * before
        before = x
        fresh = normal(x_t, generator) if eta > 0 and i + 1 < how.steps else None
        x_t = ddim_step(path, x_t, t, s, use, eta=eta, fresh=fresh)
        if held is not None:
            x_t = torch.where(held.keep, path.noised(held.x, held.noise, s), x_t)
        if on_step is not None:
            on_step(x, i + 1)
    return x_t


@torch.no_grad()
def invert(denoise: Denoise, x: Tensor, path: Path, *, steps: int, start: float = 0.0) -> Tensor:
    """The noise from which DDIM's walk of as many steps leads to x, nearly: the walk backwards.

    The step from s down to t took the estimate at x_s, which is not known yet. It is found in two
    rounds: x_s is moved by as much as its step down misses x_t.

    x: (B, …) the data, or with noise of the time `start`
    returns: (B, …)
    """
    times, x_t = torch.linspace(start, 1, steps + 1, device=x.device), x
    for i in range(steps):
        t, s = (times[j].expand(len(x)) for j in (i, i + 1))
        x_s = x_t
        for _ in range(2):
            down = ddim_step(path, x_s, s, t, denoise(x_s, s), eta=0.0, fresh=None)
            x_s = x_s + x_t - down
        x_t = x_s
    return x_t


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """A point on the great circle from a to b: sin((1-s)θ)/sin θ a + sin(sθ)/sin θ b (Shoemake
    1985), of directions and lengths alike, which keeps both unit vectors and noise what they are.

    a: (B, …)
    b: (B, …)
    share: 0 is a, 1 is b
    returns: (B, …)
    """
    left, right = a.flatten(1), b.flatten(1)
    cosine = (left * right).sum(1) / (left.norm(dim=1) * right.norm(dim=1)).clamp(min=1e-12)
    angle = cosine.clamp(-1, 1).acos()  # (B,)
    near = angle.sin() < 1e-6  # the same direction, or opposite ones, between which no way is best
    sine = angle.sin().clamp(min=1e-6)
    w, v = (torch.where(near, n, (n * angle).sin() / sine) for n in (1 - share, share))
    return along(w, a) * a + along(v, b) * b
