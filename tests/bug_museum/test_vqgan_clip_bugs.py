"""Bugs of VQGAN+CLIP programs, as mutants that a claim about ours must expose."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from helpers.mutants import exposes
from helpers.tiny import generator, make_clip, noise
from torch import Tensor

from minimodal.blocks.cutouts import Views, cutout_sides
from minimodal.blocks.guidance import great_circle
from minimodal.data.tokenizer import Tokenizer
from minimodal.vqgan_clip.guide import Guide, make_guide
from minimodal.vqgan_clip.prompts import Prompt, read_prompts

# --- cut_pow is stored and never read ------------------------------------------------------------
# Both Pixray and the default class of VQGAN-CLIP take `cut_pow`, keep it, and draw sides without
# it; their users swept it for two years.


def without_the_power(views: Views, u: Tensor) -> Tensor:
    return views.smallest + (1 - views.smallest) * u


def a_higher_power_means_smaller_cutouts(sides: Callable[[Views, Tensor], Tensor]) -> bool:
    u, views = torch.rand(1000, generator=generator()), Views(smallest=0.2)
    one, three = sides(views, u), sides(replace(views, cut_pow=3.0), u)
    return bool(three.mean() < one.mean() - 0.1)


def test_cut_pow_is_used():
    exposes(a_higher_power_means_smaller_cutouts, ours=cutout_sides, mutant=without_the_power)


# --- noise prompts in the wrong table ------------------------------------------------------------
# Pixray appends them to whatever table the loop before it left in a variable: the last CLIP's only,
# or that of the spot prompts where there are any.

CLIPS = []
for width in (10, 6):
    CLIPS.append(make_clip(vocab_size=Tokenizer().vocab_size, embed_width=width))
    CLIPS[-1].tokenizer = Tokenizer()


def guides_of(prompts: Sequence[Prompt]) -> list[Guide]:
    return [make_guide(clip, prompts) for clip in CLIPS]


def into_the_table_that_is_left(prompts: Sequence[Prompt]) -> list[Guide]:
    guides = guides_of([prompt for prompt in prompts if prompt.kind != "noise"])
    lost = guides_of([prompt for prompt in prompts if prompt.kind == "noise"])[-1].wanted[0]
    last = guides[-1].wanted[-1]
    joined = [torch.cat(pair) for pair in zip(last[1:], lost[1:], strict=True)]
    wanted = (
        *guides[-1].wanted[:-1],
        last._replace(**dict(zip(last._fields[1:], joined, strict=True))),
    )
    return [*guides[:-1], guides[-1]._replace(wanted=wanted)]


def noise_is_asked_of_every_clip_and_of_the_whole_picture(make: Callable) -> bool:
    found = make(read_prompts("a circle | [0,0,.5,1] a star | noise=7:0.5"))
    tables = [{w.region.box: w.weights.tolist() for w in guide.wanted} for guide in found]
    return tables == [{None: [1.0, 0.5], (0, 0, 0.5, 1): [1.0]}] * 2


def test_noise_prompts_land_in_every_table():
    exposes(
        noise_is_asked_of_every_clip_and_of_the_whole_picture,
        ours=guides_of,
        mutant=into_the_table_that_is_left,
    )


# --- NaN at opposites ----------------------------------------------------------------------------
# 2 arcsin²(chord / 2): half the chord of two opposite unit vectors rounds above 1 now and then, and
# one NaN ends a run. Negative weights lead there.


def by_arcsin(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None] - y[None]).norm(dim=-1).div(2).arcsin().square() * 2


def opposites_have_a_distance_and_a_gradient(distance: Callable[[Tensor, Tensor], Tensor]) -> bool:
    x = F.normalize(noise(2000, 8), dim=1).requires_grad_()
    found = torch.stack([distance(row[None], -row[None].detach())[0, 0] for row in x])
    found.sum().backward()
    return bool(torch.isfinite(found).all() and torch.isfinite(x.grad).all())


def test_opposites_are_no_nan():
    exposes(opposites_have_a_distance_and_a_gradient, ours=great_circle, mutant=by_arcsin)
