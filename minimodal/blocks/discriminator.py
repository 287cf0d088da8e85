"""The patch discriminator and the game that it plays with VQGAN's decoder.

A convolutional net says of every overlapping part of a picture whether it looks real (Isola et al.
2017); the generator's share of that game is weighed against its reconstruction loss by λ (Esser et
al. 2021, equations 6 and 7).

Pictures (B, 3, H, W) in [-1, 1] in, logits (B, 1, h, w) out, and the losses of both sides. Read
`conv.py` before.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimodal.blocks.conv import group_norm
from minimodal.blocks.vqgan_checks import check_size


class PatchDiscriminator(nn.Module):
    """Judges overlapping parts of a picture, one logit a part (Isola et al. 2017, PatchGAN).

    With `depth` halvings the convolutions behind a logit see `receptive_field` pixels a side (the
    norms between them add a little of the whole picture's brightness and contrast). `refine` adds
    the original's layer at the last resolution, which widens a part without another halving.
    """

    def __init__(
        self, *, channels: int = 32, depth: int = 2, refine: bool = False, norm: str = "group"
    ) -> None:
        super().__init__()
        check_size(channels=channels, depth=depth)
        # differs from the paper: group instead of batch statistics ("batch" is for the original's
        # weights), so that a picture's verdict depends neither on its neighbours in the batch nor
        # on how the batch is sharded.
        make = nn.BatchNorm2d if norm == "batch" else group_norm
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1)]
        narrow = channels
        for level in range(1, depth + refine):
            wide, stride = channels * min(2**level, 8), 2 if level < depth else 1
            conv = nn.Conv2d(narrow, wide, 4, stride=stride, padding=1, bias=norm != "batch")
            layers += [nn.LeakyReLU(0.2), conv, make(wide)]
            narrow = wide
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(narrow, 1, 4, stride=1, padding=1)]
        self.layers = nn.Sequential(*layers)

    @property
    def receptive_field(self) -> int:
        """Pixels a side of the part that one logit judges."""
        field = 1
        for layer in reversed([m for m in self.layers if isinstance(m, nn.Conv2d)]):
            field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
        return field

    def forward(self, images: Tensor) -> Tensor:
        """High where a part looks real.

        images: (B, 3, H, W) in [-1, 1]
        returns: (B, 1, h, w) logits
        """
        return self.layers(images)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: ½ (E max(0, 1 - D(x)) + E max(0, 1 + D(x̂))).

    real: (B, 1, h, w) logits of true pictures
    fake: (B, 1, h, w) logits of decoded ones
    returns: ()
    """
    # differs from the paper: hinge losses, as in the original's code, instead of the logarithms of
    # equation 5.
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """The generator's side: -E D(x̂).

    fake: (B, 1, h, w) logits of decoded pictures, with gradient to them
    returns: ()
    """
    return -fake.mean()


def pull(loss: Tensor, decoded: Tensor, last_layer: Tensor) -> tuple[Tensor, Tensor]:
    """Where a loss pulls: its gradient at the decoded pictures and, from there, at the last layer.

    The chain rule is cut at the pictures, so that λ passes back through the discriminator once.

    loss: () of the decoded pictures
    decoded: (B, 3, H, W)
    last_layer: (…) weights that the decoded pictures depend on
    returns: (B, 3, H, W) and (…)
    """
    (at_pictures,) = torch.autograd.grad(loss, decoded, retain_graph=True)  # (B, 3, H, W)
    (at_last,) = torch.autograd.grad(decoded, last_layer, at_pictures, retain_graph=True)
    return at_pictures, at_last.float()


def balance(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """λ of L = L_rec + λ L_GAN (equations 6 and 7), at most 10⁴,

        λ = |∇ L_rec| / (|∇ L_GAN| + δ)   with gradients at the decoder's last layer, δ = 10⁻⁴

    so that neither loss moves the picture more than the other.

    reconstruction: (…) gradient at the last layer
    adversarial: (…) gradient at the last layer
    returns: ()
    """
    # differs from the paper: δ and the bound are those of the original's code; equation 7 has
    # δ = 10⁻⁶ and no bound.
    return (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(max=1e4).detach()


def weigh(
    reconstruction: Tensor, adversarial: Tensor, decoded: Tensor, last_layer: Tensor,
    *, average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The adversarial term of the generator's loss, and λ.

    reconstruction: () loss
    adversarial: () loss
    decoded: (B, 3, H, W) what both losses look at
    last_layer: (…) weights that the decoded pictures depend on
    average: mean of a gradient over the processes of a data-parallel run
    weight: () λ, where it is known already; None: that of these losses
    returns: () the term, whose gradient reaches the decoded pictures, and () λ
    """
    if weight is None:
        _, rec = pull(reconstruction, decoded, last_layer)
        at_pictures, gan = pull(adversarial, decoded, last_layer)
        weight = balance(average(rec), average(gan))
    else:
        (at_pictures,) = torch.autograd.grad(adversarial, decoded)  # (B, 3, H, W)
    # Of the same value and gradient as the adversarial loss, without its way through D.
    return adversarial.detach() + ((decoded - decoded.detach()) * at_pictures).sum(), weight


def adversarial_ramp(step: float, *, start: int, ramp: int) -> float:
    """The share of the generator's adversarial term at a step: 0, then rising to 1."""
    return min(max((step - start) / max(ramp, 1), 0.0), 1.0)
