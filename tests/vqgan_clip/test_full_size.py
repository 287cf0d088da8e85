"""VQGAN+CLIP at the originals' size: f16 with 16,384 codes, and ViT-B/32, with random weights."""

import resource
import time

import pytest
import torch
import torch.nn.functional as F
from helpers import script
from helpers.tiny import noise

from minimodal.blocks.cutouts import PHOTOGRAPHS
from minimodal.blocks.drawers import make_drawer
from minimodal.clip import CLIP, CLIPConfig
from minimodal.vqgan import VQGAN
from minimodal.vqgan_clip.guide import Guide, Region, Wanted
from minimodal.vqgan_clip.optimise import Optimisation, OptimiseConfig

F16 = script("guidance_step").F16  # taming's ImageNet model
B32 = CLIPConfig(
    image_size=224, patch_size=32, vision_width=768, vision_depth=12, vision_heads=12,
    text_width=512, text_depth=12, text_heads=8, vocab_size=49408, text_length=77, embed_width=512,
)  # fmt: skip


def most_memory() -> int:
    """MiB that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.slow
def test_the_originals_models_draw_a_picture_that_is_larger_than_their_own(capsys):
    vqgan, clip = (model.eval().requires_grad_(False) for model in (VQGAN(F16), CLIP(B32)))
    one = torch.ones(1)
    wanted = Wanted(Region(), F.normalize(noise(1, 512), dim=1), one, -torch.inf * one)
    drawer = make_drawer("vqgan", torch.zeros(1, 3, 256, 320), vqgan=vqgan)
    with capsys.disabled():
        print(f"\nboth models: {most_memory()} MiB")
        estimates = []
        for chunk in (2, 8):
            config = OptimiseConfig(steps=2, views=8, chunk=chunk)
            run = Optimisation(drawer, [Guide(clip, (wanted,))], config, views=PHOTOGRAPHS)
            estimates.append(run.memory())
            began = time.process_time()
            best = run.run()
            seconds = (time.process_time() - began) / 2
            print(
                f"320 x 256, 8 views, {chunk} at a time: {seconds:.1f} CPU s a step, about "
                f"{estimates[-1] >> 20} MiB for gradients, at most {most_memory()} MiB in all"
            )
    assert best.shape == (1, 3, 256, 320) and best.isfinite().all()
    assert estimates[0] < estimates[1]
