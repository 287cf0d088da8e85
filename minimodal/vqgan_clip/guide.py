"""What a CLIP thinks of a picture, as a number whose gradient can be followed.

A `Guide` is a CLIP and the embeddings of all that is asked of it: captions, pictures, noise, each
with its weight, its stop and its region. Pictures (B, 3, H, W) in [-1, 1] in, a loss for each of
their views out. Several guides together are an ensemble, each with embeddings of its own. Read
`prompts.py`, `blocks/cutouts.py` and `blocks/guidance.py` before.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minimodal.blocks.guidance import great_circle, stopped
from minimodal.errors import UserError
from minimodal.vqgan_clip.prompts import Prompt

Box = tuple[float, float, float, float]


class Region(NamedTuple):
    """A part of the picture that prompts are about: a box in shares, or a mask, or all of it.

    mask: (H, W) float, 1 where the prompts look
    """

    box: Box | None = None
    mask: Tensor | None = None

    def of(self, pictures: Tensor) -> Tensor:
        """What the prompts see: the box cut out, or all outside the mask grey.

        pictures: (B, 3, H, W)
        returns: (B, 3, h, w)
        """
        if self.mask is not None:
            mask = F.interpolate(self.mask.to(pictures)[None, None], pictures.shape[-2:])
            return pictures * mask
        if self.box is None:
            return pictures
        H, W = pictures.shape[-2:]
        left, top, right, bottom = self.box
        x, y = min(round(left * W), W - 1), min(round(top * H), H - 1)
        return pictures[..., y : max(y + 1, round(bottom * H)), x : max(x + 1, round(right * W))]


class Wanted(NamedTuple):
    """Prompts of one region, for one CLIP.

    embeddings: (P, E) unit vectors
    weights, stops: (P,)
    """

    region: Region
    embeddings: Tensor
    weights: Tensor
    stops: Tensor


class Guide(NamedTuple):
    """A CLIP and what is asked of it.

    bank: (M, E) unit vectors of other captions, for the contrastive score; None: distances
    """

    clip: nn.Module
    wanted: tuple[Wanted, ...]
    bank: Tensor | None = None

    @property
    def size(self) -> int:
        """Pixels a side of what this CLIP reads."""
        return self.clip.config.image_size

    def embed(self, views: Tensor) -> Tensor:
        """Unit vectors of views.

        views: (N, 3, S, S) in [-1, 1]
        returns: (N, E)
        """
        how = self.clip.reading
        mean, std = (torch.tensor(n).to(views)[:, None, None] for n in (how.mean, how.std))
        return F.normalize(self.clip.encode_image(((views + 1) / 2 - mean) / std).float(), dim=-1)

    def losses(self, views: Tensor, wanted: Wanted) -> Tensor:
        """The loss of each view, the weighted mean over the prompts.

            Σ_p |w_p| stop( sign(w_p) θ²/2 ) / Σ_p |w_p|

        With a bank b of other captions minus the contrastive score, over CLIP's scale s, stands for
        θ²/2: it cannot fall by what makes every caption fit better.

            ( logsumexp_m s x·b_m  -  s x·y_p ) / s

        views: (N, 3, S, S) in [-1, 1]
        returns: (N,)
        """
        x = self.embed(views)
        distance = great_circle(x, wanted.embeddings)  # (N, P)
        if self.bank is not None:
            s = self.clip.logit_scale.exp()
            others = (s * x @ self.bank.T).logsumexp(dim=1, keepdim=True)  # (N, 1)
            distance = (others - s * x @ wanted.embeddings.T) / s
        size = wanted.weights.abs()
        signed = stopped(distance * wanted.weights.sign(), wanted.stops)
        return (signed * size).sum(dim=1) / size.sum()


def embed_prompt(clip: nn.Module, prompt: Prompt, read: Callable[[str], Image.Image]) -> Tensor:
    """The direction that a prompt pulls to.

    returns: (E,) a unit vector
    """
    weight = clip.logit_scale
    if prompt.kind == "text":
        found = clip.encode_text(clip.tokenize([prompt.content], truncate=True).to(weight.device))
    elif prompt.kind == "image":
        found = clip.encode_image(clip.preprocess(read(prompt.content))[None].to(weight.device))
    else:
        generator = torch.Generator().manual_seed(int(prompt.content))
        width = clip.config.embed_width
        found = torch.randn(1, width, generator=generator).to(weight.device)
    return F.normalize(found.float(), dim=-1)[0]


def region_of(prompt: Prompt, read: Callable[[str], Image.Image]) -> Region:
    """A prompt's region; a mask counts where it is lighter than grey."""
    if prompt.mask is None:
        return Region(prompt.box)
    grey = read(prompt.mask).convert("L")
    lit = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8) > 127
    if not lit.any():
        raise UserError(f"mask {prompt.mask} is dark everywhere: it asks for nothing")
    return Region(None, lit.view(grey.height, grey.width).float())


@torch.no_grad()
def make_guide(
    clip: nn.Module, prompts: Sequence[Prompt], *,
    read: Callable[[str], Image.Image] = Image.open, against: Sequence[str] = (),
) -> Guide:  # fmt: skip
    """Embed all prompts with one CLIP, those of one region together.

    read: from a path to a picture
    against: captions of the bank, of which those that are prompts do not count
    """
    if not prompts:
        raise UserError("no prompt: expected at least one, such as 'a red circle'")
    others = [text for text in against if text not in {p.content for p in prompts}]
    if against and not others:
        raise UserError(f"no caption to hold against '{prompts[0].content}' but itself")
    bank = None
    if others:
        tokens = clip.tokenize(others, truncate=True).to(clip.logit_scale.device)
        bank = torch.cat([clip.encode_text(some) for some in tokens.split(256)]).float()
        bank = F.normalize(bank, dim=-1)
    groups: dict[tuple, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.box, prompt.mask), []).append(prompt)
    wanted = []
    for group in groups.values():
        embeddings = torch.stack([embed_prompt(clip, prompt, read) for prompt in group])
        numbers = torch.tensor([(p.weight, p.stop) for p in group]).to(embeddings)
        if not numbers[:, 0].any():
            raise UserError(f"prompt '{group[0].content}': all weights are 0, which asks nothing")
        wanted.append(Wanted(region_of(group[0], read), embeddings, *numbers.unbind(1)))
    return Guide(clip, tuple(wanted), bank)
