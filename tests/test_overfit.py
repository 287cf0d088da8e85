"""Each system learns one batch by heart, by a plain training loop without the engine.

The shortest way to read how a system is trained: tensors, an optimiser, a loss, ten lines.
"""

import numpy as np
import torch
import torch.nn.functional as F
from helpers.tiny import generator, integers, make_caption, units

from minimodal.blocks.diffusion import Sampler, training_times
from minimodal.blocks.pixels import to_float
from minimodal.blocks.sampling import SamplingConfig
from minimodal.clip import CLIP, CLIPConfig, contrastive_loss
from minimodal.dalle import DALLE, DALLEConfig
from minimodal.shapes.source import ShapesSource
from minimodal.training.tasks.common import seeded
from minimodal.unclip.decoder import Decoder, DecoderConfig, tell
from minimodal.vqgan import VQGAN, VQGANConfig


def shapes(n: int) -> torch.Tensor:
    """Pictures of the Shapes world, (n, 3, 16, 16) in [-1, 1]."""
    return to_float(torch.from_numpy(ShapesSource(image_size=16).images(np.arange(n))))


def test_vqgan_paints_a_batch_from_its_codes():
    images, random = shapes(8), generator()
    config = VQGANConfig(
        image_size=16, patch=4, channels=32, multipliers=(1,), codes=(64,), code_width=8
    )
    vqgan = seeded(lambda: VQGAN(config), 0)
    vqgan.quantizer.start(vqgan.latents(images), random)
    optimizer = torch.optim.Adam(vqgan.parameters(), lr=3e-3)
    for _ in range(200):
        decoded, codes, latents = vqgan(images)
        loss = F.l1_loss(decoded, images) + codes.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        vqgan.quantizer.update(latents.detach(), random)
    vqgan.eval()
    assert F.l1_loss(vqgan.decode_indices(vqgan.encode(images).indices), images) < 0.02


def test_clip_tells_the_pairs_of_a_batch_apart():
    images = shapes(16)
    tokens = F.pad(integers(29, 16, 6) + 1, (0, 1), value=0)  # six words, then the end token
    config = CLIPConfig(
        image_size=16, vision_width=32, vision_depth=1, vision_heads=2, vocab_size=30,
        text_length=7, text_width=32, text_depth=1, text_heads=2, embed_width=32, end_id=0,
    )  # fmt: skip
    clip = seeded(lambda: CLIP(config), 0)
    optimizer = torch.optim.Adam(clip.parameters(), lr=3e-3)
    for _ in range(100):
        image, text = clip.encode_image(images), clip.encode_text(tokens)
        loss = contrastive_loss(image, text, clip.logit_scale.exp(), captions=torch.arange(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clip.clamp_temperature()
    assert loss < 0.01
    assert torch.equal(clip(images, tokens).per_image.argmax(1), torch.arange(16))


def test_dalle_draws_the_codes_of_a_batch():
    learn_by_heart((32,))


def test_dalle_draws_the_codes_of_a_batch_factor_by_factor():
    learn_by_heart((8, 4))


def learn_by_heart(sizes: tuple[int, ...]) -> None:
    text, codes = integers(19, 8, 5) + 1, integers(32, 8, 4, 4, seed=1)
    config = DALLEConfig(
        vocab_size=20, text_length=5, grid=4, codes=sizes, width=48, depth=2, heads=2
    )
    dalle = seeded(lambda: DALLE(config), 0)
    optimizer = torch.optim.Adam(dalle.parameters(), lr=3e-3)
    for _ in range(100):
        loss, parts = dalle.loss(text, codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert parts["image_loss"] < 0.05
    greedy = SamplingConfig(temperature=0.0)
    assert torch.equal(dalle.generate_codes(text, generator=generator(), sampling=greedy), codes)


def test_unclips_decoder_draws_a_batch_from_its_embeddings():
    images, embeddings, random = shapes(4), units(4, 10), generator()
    config = DecoderConfig(
        image_size=16, patch=4, channels=32, multipliers=(1,), depth=1, attention=(), width=32,
        captions=False, embed_width=10, time_mean=1.5,
    )  # fmt: skip
    decoder = seeded(lambda: Decoder(config), 0)
    decoder.space.learn(embeddings, "standard")
    told = tell(embeddings, make_caption(4))
    standard = told._replace(embedding=decoder.space.standardize(embeddings))
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    for _ in range(200):
        noise = torch.randn(images.shape, generator=random)
        t = training_times(torch.rand(4, generator=random), config)
        loss = decoder.loss(images, standard, noise=noise, t=t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    drawn = decoder.draw(told, Sampler("2m", steps=12), generator=random)
    assert F.l1_loss(drawn, images) < 0.06
