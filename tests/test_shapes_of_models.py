"""The shapes in docstrings and margins of blocks and systems are true: each is held against calls.

`CALLS` has one line for each public function with a tensor in or out, and tests say whether one is
missing, or one that runs a line with a margin. The sizes all differ, so that a wrong letter shows.
"""

import inspect

import pytest
import torch
from helpers.margins import Margins, functions_of, read_function
from helpers.shape_check import check_shapes, documentation, shapes_in
from helpers.tiny import (
    WORDS,
    generator,
    integers,
    make_caption,
    make_clip,
    make_dalle,
    make_painter,
    make_prior,
    make_transformer,
    make_unclip,
    make_upsampler,
    make_vqgan,
    noise,
    pictures,
    units,
)
from PIL import Image

from minimodal import clip, dalle, vqgan, vqgan_prior
from minimodal.blocks import (
    attention,
    codebook,
    contrastive,
    contrastive_rows,
    conv,
    diffusion,
    discriminator,
    factor_head,
    factors,
    given,
    nearest,
    packed,
    painter,
    perceptual,
    pixel_attention,
    pixels,
    quantizer,
    quantizer_variants,
    resnet,
    rotary,
    sampling,
    sliding_window,
    sparse,
    transformer,
    unet,
)
from minimodal.data import preprocessing
from minimodal.data.tokenizer import Tokenizer
from minimodal.evaluation import metrics
from minimodal.shapes.source import ShapesSource
from minimodal.training.tasks import clip as clip_task
from minimodal.training.tasks import common, unseen
from minimodal.unclip import decoder, embeddings, upsampler
from minimodal.uses import embedding, reading, zero_shot
from minimodal.uses import unclip as tools

MODULES = (
    factors,
    attention,
    packed,
    rotary,
    sparse,
    factor_head,
    given,
    painter,
    sliding_window,
    reading,
    transformer,
    contrastive,
    contrastive_rows,
    resnet,
    conv,
    discriminator,
    perceptual,
    pixel_attention,
    pixels,
    quantizer,
    codebook,
    quantizer_variants,
    sampling,
    preprocessing,
    clip,
    embedding,
    vqgan,
    vqgan_prior,
    dalle,
    common,
    metrics,
    diffusion,
    unet,
    embeddings,
    decoder,
    upsampler,
    tools,
)

STACK = make_transformer(causal=True)  # D = 16
Q, K, V = noise(2, 4, 3, 6), noise(2, 4, 5, 6, seed=1), noise(2, 4, 5, 6, seed=2)
CACHE = STACK.new_cache(2, 9, device=Q.device, dtype=Q.dtype)
MAP = noise(2, 8, 4, 6)
BOOK = quantizer.Codebook(7, 4, decay=0.9)
QUANTIZER = quantizer.Quantizer((7, 5), 4)
LATENTS, Z = noise(2, 8, 3, 5), noise(30, 4)
LOGITS = noise(2, 9)
CLIP = make_clip(vocab_size=Tokenizer().vocab_size)
CLIP.tokenizer = Tokenizer()
PHOTOS, TOKENS = noise(2, 3, 8, 8), integers(30, 3, 7)
ROWS = dict(image=noise(2, 10), text=noise(2, 10, seed=1), scale=torch.ones(1))
NUMBERS = dict(own=torch.arange(2), others=torch.arange(6))
PAIRS = dict(queries=noise(2, 10), keys=noise(6, 10), scale=torch.ones(1))
STEMMED = make_clip(stem=(6,), stem_depth=1)
SQUARE = dict(**PAIRS, **NUMBERS) | dict(queries=noise(6, 10), own=torch.arange(6))
RESNET = make_clip(resnet=(1, 1, 1, 1), image_size=64, vision_width=4, vision_heads=2)
EVERYONE = contrastive_rows.Everyone(noise(6, 10), noise(6, 10), torch.arange(6))
JOINT, PAIR = make_vqgan(), make_vqgan(patch=4, multipliers=(1,), codes=(7, 5))
IMAGES = pictures(2, 3, 16, 24)
VERDICT = noise(2, 1, 3, 5)
ONE, TWO = make_dalle(), make_dalle(codes=(5, 4))
TEXT, CODES = integers(20, 2, 5), integers(11, 2, 3, 3)
BEGIN = torch.tensor([3, 4])
PARTS = [integers(5, 2, 4), integers(4, 2, 4)]
PAINTER = make_painter()
PRIOR = make_prior()
GRID = dict(codes=integers(12, 2, 3, 3), labels=torch.tensor([1, -1]))
PRIOR_SIZES = {"N": 9, "K": 12}
PATTERN = sparse.SparsePattern("row", 4, 3)
TURNED = dict(x=noise(2, 3, 16), attention=lambda q, k, v: v, angles=noise(3, 4))
BYTES = integers(256, 6, 3, 4, 5).to(torch.uint8)
SIX = integers(256, 3, 3, 6, 6).to(torch.uint8)
KEPT = given.Kept(integers(11, 3, 3, 3), torch.ones(3, 3, dtype=torch.bool), SIX[0])
TWICE = painter.Request(2, generator())
STREAMS = dict(painter=PAINTER.painter, grid=3, prompts=2, n=2, device=torch.device("cpu"))
SEVEN = integers(256, 2, 3, 8, 9).byte()
SET, OTHER = noise(9, 4), noise(7, 4, seed=1)
W = torch.ones(2, 3, requires_grad=True)
DECODED = W[:, :, None, None] * pictures(2, 3, 4, 5)
GRADIENT = quantizer_variants.GradientQuantizer(35, 8)
GUMBEL = quantizer_variants.GumbelQuantizer(35, 8)
MAPS = [noise(2, 4, 3, 5), noise(2, 6, 2, 2)]
VGG = perceptual.VGG16()
HEADS = {
    f"lin{n}.model.1.weight": torch.ones(1, width, 1, 1)
    for n, width in enumerate((64, 128, 256, 512, 512))
}
DISTANCE = perceptual.PerceptualDistance(VGG, features=VGG, size=16)


def losses() -> dict[str, torch.Tensor]:
    """Two losses of what is decoded, each with a graph of its own, which a gradient takes apart."""
    return dict(
        reconstruction=DECODED.sum(), adversarial=(2 * DECODED).sum(), decoded=DECODED, last_layer=W
    )


# unCLIP: pictures of 8 pixels, and code vectors of 6 channels on a grid of 4.
DATA, T2 = noise(2, 3, 4, 5), torch.tensor([0.3, 0.7])
PATH, HALF = diffusion.Path("straight"), torch.tensor([0.2, 0.5])
WALK = dict(denoise=lambda x_t, t: 0.9 * x_t, path=PATH)
OUTSIDE = diffusion.Held(DATA, torch.ones(4, 5, dtype=torch.bool), DATA)
NET = dict(channels=8, multipliers=(1, 2), depth=1, attention=(False, True), width=6)
UNET = unet.UNet(3, 7, token_width=9, **NET)
BLOCK = unet.ConditionedBlock(8, 16, width=6, heads=2, token_width=9)
SPACE = embeddings.EmbeddingSpace(5)
UNCLIP, CODED = make_unclip(), make_unclip(latent=True)
TOLD = decoder.tell(units(2, 10), make_caption(2))
HOW = diffusion.Sampler("ddim", steps=2, eta=0.5)
UPSAMPLER = make_upsampler()
LARGE, SMALL = pictures(2, 3, 16, 16), pictures(2, 3, 8, 8)
EIGHT = integers(256, 2, 3, 8, 8).byte()
TOOL = dict(request=painter.Request(3, generator()), how=HOW)
CHUNK = painter.Chunk(painter.Request(2, generator()), slice(0, 2), 2, generator())


CLIP_SIZES = {"E": 10, "T": 7}
STREAM = {"T": 5, "N": 9, "V": 25, "K": 11, "D": 16}

OPTIONS = ("VQGANPrior.generate",)  # of drawing, which test_vqgan_prior.py goes through

# (function, arguments, letters that the arguments do not bind)
CALLS = [
    (CACHE.extend, dict(layer=0, k=noise(2, 2, 3, 8), v=noise(2, 2, 3, 8)), {"S": 3}),
    (transformer.quick_gelu, dict(x=noise(2, 3, 4)), {}),
    (attention.causal_mask, dict(queries=2, keys=5, device=Q.device), {}),
    (attention.attend, dict(q=Q, k=K, v=V, mask=torch.ones(3, 5, dtype=torch.bool)), {}),
    (attention.attend, dict(q=Q.bfloat16(), k=K.bfloat16(), v=V.bfloat16()), {}),
    (STACK.blocks[0].attention.forward, TURNED, {}),
    (STACK.blocks[0].forward, TURNED, {}),
    (STACK.forward, dict(x=noise(2, 3, 16), angles=noise(3, 4)), {"p": 4}),
    (rotary.rotate, dict(x=noise(2, 3, 4, 6), angles=noise(4, 3)), {}),
    (packed.packed_product, dict(layer=STACK.blocks[0].fc, packed=None, x=noise(2, 16)), {}),
    (rotary.rotary_angles, dict(places=BEGIN, ahead=4, grid=3, pairs=3), {"p": 6}),
    (PATTERN.allows, dict(queries=torch.arange(5)[:, None], keys=torch.arange(7)[None]), {}),
    (PATTERN.mask, dict(queries=4, keys=7, device=Q.device), {}),
    (PATTERN.visible, dict(place=9, device=Q.device), {"S": 8}),
    (PATTERN.blocked, dict(q=noise(2, 2, 12, 4), k=noise(2, 2, 12, 4), v=noise(2, 2, 12, 4)), {}),
    (
        sparse.SparsePattern("column", 4, 3).blocked,
        dict(q=noise(2, 2, 12, 4), k=noise(2, 2, 12, 4), v=noise(2, 2, 12, 4)),
        {},
    ),
    (PATTERN.windows, dict(x=noise(2, 2, 9, 4)), {"h": 3, "S": 6}),
    (conv.check_sides, dict(images=IMAGES, multiple=8), {}),
    (conv.PositionNorm(8).forward, dict(x=MAP), {}),
    (conv.ResidualBlock(8, 12).forward, dict(x=MAP), {"C'": 12}),
    (
        conv.ResidualBlock(8, 12).forward,
        dict(x=MAP, modulation=noise(2, 24)),
        {"C'": 12},
    ),
    (
        pixel_attention.at_positions,
        dict(conv=torch.nn.Conv2d(8, 12, 1), x=noise(2, 5, 8)),
        {"C'": 12},
    ),
    (pixel_attention.PixelAttention(8).forward, dict(x=MAP), {}),
    (
        pixel_attention.PixelAttention(8, heads=2, token_width=5).forward,
        dict(x=MAP, tokens=noise(2, 3, 5)),
        {},
    ),
    (conv.Downsample(8).forward, dict(x=MAP), {}),
    (conv.Upsample(8).forward, dict(x=MAP), {}),
    (metrics.usage, dict(indices=integers(7, 20), size=7), {}),
    (nearest.nearest, dict(z=Z, codebook=noise(7, 4)), {}),
    (codebook.draw_far, dict(distances=torch.ones(9), n=4, generator=generator()), {}),
    (BOOK.start, dict(z=Z, generator=generator()), {}),
    (BOOK.update, dict(z=Z, generator=generator()), {}),
    (QUANTIZER.forward, dict(z=LATENTS), {}),
    (QUANTIZER.pairs, dict(z=LATENTS), {}),
    (QUANTIZER.combined, dict(parts=[integers(7, 9), integers(5, 9)]), {}),
    (QUANTIZER.factors, dict(indices=integers(35, 2, 3, 5)), {}),
    (QUANTIZER.vectors, dict(indices=integers(35, 2, 3, 5)), {"C": 8}),
    (QUANTIZER.start, dict(z=LATENTS, generator=generator()), {}),
    (QUANTIZER.update, dict(z=LATENTS, generator=generator()), {}),
    (codebook.follow, dict(counts=torch.ones(7), indices=integers(7, 20), decay=0.9), {}),
    (metrics.perplexity, dict(counts=torch.ones(7)), {}),
    *(
        call
        for variant in (GRADIENT, GUMBEL)
        for call in (
            (variant.forward, dict(z=LATENTS), {}),
            (variant.factors, dict(indices=integers(35, 2, 3, 5)), {}),
            (variant.vectors, dict(indices=integers(35, 2, 3, 5)), {"C": 8}),
            (variant.update, dict(z=LATENTS, generator=generator()), {}),
        )
    ),
    (
        quantizer_variants.codebook_loss,
        dict(z=LATENTS, vectors=LATENTS, commitment=0.25, codebook=1.0),
        {},
    ),
    (GRADIENT.start, dict(z=noise(2, 8, 5, 7), generator=generator()), {}),
    (GUMBEL.forward, dict(z=LATENTS, noise=noise(2, 35, 3, 5)), {}),
    (VGG.forward, dict(images=noise(1, 3, 32, 16)), {}),
    (perceptual.unit, dict(x=LATENTS), {}),
    (
        perceptual.feature_distance,
        dict(first=MAPS, second=MAPS, heads=[torch.ones(4), torch.ones(6)]),
        {},
    ),
    (perceptual.lpips_heads, dict(tensors=HEADS, source=""), {}),
    (DISTANCE.__call__, dict(decoded=pictures(1, 3, 16, 16), images=pictures(1, 3, 16, 16)), {}),
    (pixels.resized, dict(pictures=IMAGES, size=16), {"S": 16}),
    (perceptual.tower_maps, dict(tower=STEMMED.image_encoder, images=PHOTOS), {}),
    (perceptual.tower_maps, dict(tower=RESNET.image_encoder, images=noise(2, 3, 64, 64)), {}),
    (RESNET.image_encoder.resnet.maps, dict(images=noise(2, 3, 64, 32)), {}),
    (sampling.guide, dict(conditional=LOGITS, unconditional=LOGITS, scale=2.0), {}),
    (sampling.normal, dict(like=MAP, generator=generator()), {}),
    (sampling.filter_logits, dict(logits=LOGITS, top_k=3, top_p=0.9), {}),
    (
        sampling.sample_token,
        dict(logits=LOGITS, config=sampling.SamplingConfig(), generator=generator()),
        {},
    ),
    (CLIP.image_encoder.forward, dict(images=PHOTOS), CLIP_SIZES),
    (STEMMED.image_encoder.forward, dict(images=PHOTOS), CLIP_SIZES),
    (CLIP.text_encoder.forward, dict(tokens=TOKENS), CLIP_SIZES),
    (CLIP.text_encoder.read, dict(tokens=TOKENS), CLIP_SIZES),
    (CLIP.text_encoder.summary, dict(x=CLIP.text_encoder.read(TOKENS), tokens=TOKENS), CLIP_SIZES),
    (CLIP.encode_image, dict(images=PHOTOS), CLIP_SIZES),
    (CLIP.encode_text, dict(tokens=TOKENS), CLIP_SIZES),
    (CLIP.forward, dict(images=PHOTOS, tokens=TOKENS), CLIP_SIZES),
    (CLIP.tokenize, dict(texts=["a", "b", "c"]), {"B": 3, "T": 7}),
    (CLIP.preprocess, dict(picture=Image.new("RGB", (9, 9))), {"H": 8, "W": 8}),
    (preprocessing.normalize, dict(images=BYTES), {}),
    (preprocessing.clip_preprocess, dict(picture=Image.new("RGB", (9, 9)), size=8), {"size": 8}),
    (RESNET.image_encoder.forward, dict(images=noise(2, 3, 64, 64)), {"E": 10}),
    (RESNET.image_encoder.pool.forward, dict(x=noise(2, 128, 2, 2)), {"E": 10}),
    (
        RESNET.image_encoder.resnet.forward,
        dict(images=noise(2, 3, 64, 32)),
        {"C": 128, "h": 2, "w": 1},
    ),
    (
        RESNET.image_encoder.resnet.stages[1][0].forward,
        dict(x=noise(2, 16, 6, 4)),
        {"C'": 32, "H'": 3, "W'": 2},
    ),
    (contrastive_rows.column_sums, dict(rows=1, **PAIRS), {}),
    (contrastive.unit, dict(x=noise(3, 4)), {}),
    (contrastive.both_ways, dict(logits=noise(3, 3), target=torch.eye(3)), {}),
    (contrastive_rows.rows_cross_entropy, dict(rows=1, **PAIRS, **NUMBERS), {}),
    (contrastive_rows.rows_cross_entropy, dict(rows=1, both=True, **SQUARE), {}),
    (contrastive_rows.rows_sigmoid, dict(rows=1, bias=torch.ones(1), **PAIRS, **NUMBERS), {}),
    (clip.contrastive_loss, dict(captions=torch.arange(2), **ROWS), {}),
    (contrastive.even_targets, dict(rows=torch.arange(2), columns=torch.arange(6)), {}),
    (contrastive_rows.gathered_loss, dict(captions=torch.arange(2), **ROWS, everyone=EVERYONE), {}),
    (
        contrastive_rows.gathered_loss,
        dict(captions=torch.arange(2), **ROWS, everyone=EVERYONE, rows=1),
        {},
    ),
    (
        contrastive_rows.gathered_loss,
        dict(captions=torch.arange(2), everyone=EVERYONE, bias=torch.ones(1), **ROWS),
        {},
    ),
    (
        embedding.embed_pictures,
        dict(clip=CLIP, images=integers(255, 2, 3, 8, 8).byte()),
        CLIP_SIZES,
    ),
    (embedding.embed_captions, dict(clip=CLIP, texts=["a", "b", "c"]), {"N": 3, "E": 10}),
    (
        embedding.embed_source,
        dict(clip=CLIP, source=ShapesSource(0, image_size=8), n=3, flip=True),
        {"N": 6, "E": 10},
    ),
    (
        metrics.zero_shot_accuracy,
        dict(similarities=noise(4, 3), labels=integers(3, 4)),
        {},
    ),
    (
        contrastive.difference_loss,
        dict(image=noise(4, 10), text=noise(4, 10), scale=torch.ones(1)),
        {},
    ),
    (
        zero_shot.class_embeddings,
        dict(clip=CLIP, names=["a", "b", "c"], templates=["{}", "x {}"]),
        {"N": 3, "E": 10},
    ),
    (conv.patches, dict(images=IMAGES, patch=4), {}),
    (JOINT.encoder.forward, dict(images=IMAGES), {"C": 6, "h": 8, "w": 12}),
    (PAIR.encoder.forward, dict(images=IMAGES), {"C": 6, "h": 4, "w": 6}),
    (PAIR.appearance.forward, dict(x=IMAGES), {"C": 6, "h": 4, "w": 6}),
    (factors.local_contrast, dict(images=IMAGES, patch=4), {"n": 36, "C": 3, "h": 4, "w": 6}),
    (factors.self_similarity, dict(images=IMAGES, patch=4), {"N": 1296, "h": 4, "w": 6}),
    (JOINT.decoder.forward, dict(z=noise(2, 6, 8, 12)), {"H": 16, "W": 24}),
    (PAIR.latents, dict(images=IMAGES), {"C": 12, "h": 4, "w": 6}),
    (PAIR.encode, dict(images=IMAGES), {"C": 12, "h": 4, "w": 6}),
    (PAIR.decode, dict(z=noise(2, 12, 4, 6)), {"H": 16, "W": 24}),
    (PAIR.paint, dict(z=noise(2, 12, 4, 6)), {"H": 16, "W": 24}),
    (PAIR.decode_unclamped, dict(z=noise(2, 12, 4, 6)), {"H": 16, "W": 24}),
    (PAIR.decode_indices, dict(indices=integers(35, 2, 4, 6)), {"H": 16, "W": 24}),
    (JOINT.forward, dict(images=IMAGES), {"h": 8, "w": 12}),
    (JOINT.forward, dict(images=IMAGES, quantize=False), {"h": 8, "w": 12}),
    (discriminator.PatchDiscriminator(channels=4).forward, dict(images=IMAGES), {"h": 3, "w": 5}),
    (discriminator.hinge_loss, dict(real=VERDICT, fake=VERDICT), {}),
    (discriminator.generator_loss, dict(fake=VERDICT), {}),
    (discriminator.pull, dict(loss=DECODED.sum(), decoded=DECODED, last_layer=W), {}),
    (discriminator.balance, dict(reconstruction=W, adversarial=2 * W), {}),
    (discriminator.weigh, losses(), {}),
    (discriminator.weigh, {**losses(), "weight": torch.ones(())}, {}),
    (TWO.image_heads[1].forward, dict(h=noise(2, 3, 16), previous=integers(5, 2, 3)), {"K": 4}),
    (ONE.with_padding, dict(text=TEXT), {}),
    (ONE.image_heads.forward, dict(h=noise(2, 9, 16), codes=integers(11, 2, 9)), {"K": 11}),
    (
        ONE.image_heads.sample,
        dict(
            h=noise(4, 1, 16), config=sampling.SamplingConfig(guidance=2.0), generator=generator()
        ),
        {"B": 2},
    ),
    (ONE.embed_text, dict(text=TEXT), STREAM),
    (TWO.embed_codes, dict(codes=integers(20, 2, 4), first=2), {"D": 16}),
    (ONE.forward, dict(text=TEXT, codes=CODES), STREAM),
    (ONE.angles, dict(first=0, n=4), STREAM),
    (PAINTER.painter.encode, dict(pictures=SIX), {"h": 3, "w": 3}),
    (PAINTER.painter.decode, dict(codes=CODES), {"H": 6, "W": 6}),
    (KEPT.paste, dict(drawn=SIX), {}),
    (given.what_stays, dict(given=given.Given(SIX[0]), **STREAMS), {"h": 3, "w": 3}),
    (given.what_stays, dict(given=given.Given(first=SIX[:2]), **STREAMS), {"h": 6, "w": 3}),
    (given.upper_rows, dict(picture=SIX[0], share=0.5, painter=PAINTER.painter, grid=(3, 3)), {}),
    (given.check_picture, dict(picture=SIX[0], size=(6, 6), what=""), {}),
    (given.outside, dict(box=None, grid=3, factor=2), {"h": 3, "w": 3}),
    (ONE.loss, dict(text=TEXT, codes=CODES), {}),
    (ONE.generate_codes, dict(text=TEXT, generator=generator()), {"h": 3, "w": 3}),
    (reading.log_p, dict(logits=noise(2, 4, 6), tokens=integers(6, 2, 4)), {}),
    (reading.log_likelihood, dict(dalle=ONE, text=TEXT, codes=CODES), {}),
    (reading.caption_scores, dict(dalle=PAINTER, codes=CODES, captions=WORDS), {"L": 4}),
    (reading.write_captions, dict(dalle=ONE, n=3, generator=generator(), begin=BEGIN), {"T": 5}),
    (reading.describe, dict(dalle=PAINTER, codes=CODES[0], generator=generator(), n=2), {"T": 20}),
    (PAINTER.tokenize, dict(prompts=WORDS), {"B": 4, "T": 20}),
    (perceptual.moved, dict(images=IMAGES, shift=(2, -1)), {}),
    (PAINTER.draw, dict(prompts=WORDS, request=TWICE), {"N": 8, "H": 6, "W": 6}),
    (PAINTER.generate, dict(prompts=WORDS, n=2, generator=generator()), {"N": 8, "H": 6, "W": 6}),
    (PRIOR.condition, dict(labels=torch.tensor([1, -1])), {}),
    (PRIOR.forward, dict(tokens=integers(12, 2, 5), ahead=noise(2, 3, 16)), {"S": 8, "V": 12}),
    (PRIOR.code_logits, GRID, PRIOR_SIZES),
    (PRIOR.loss, dict(**GRID, replaced=integers(12, 2, 3, 3, seed=1)), {}),
    (
        sliding_window.make_canvas,
        dict(start=integers(12, 2, 4), size=(2, 5), window=3, codes=12),
        {"H": 3, "W": 5},
    ),
    (
        PRIOR.generate_codes,
        dict(labels=torch.tensor([1, -1]), generator=generator(), size=(4, 5)),
        {"h": 4, "w": 5},
    ),
    (
        PRIOR.draw,
        dict(classes=["cat", "dog"], request=TWICE, size=(8, 6)),
        {"N": 4, "H": 6, "W": 8},
    ),
    (pixels.to_uint8, dict(images=IMAGES), {}),
    (pixels.to_float, dict(images=BYTES), {}),
    (given.pixels_of, dict(cells=torch.ones(2, 3).bool(), side=6), {"H": 4, "W": 6}),
    (common.flip_some, dict(images=BYTES.numpy(), flips=torch.arange(6).numpy() > 2), {}),
    (clip_task.shift_all, dict(images=BYTES.numpy(), shifts=integers(3, 6, 2).numpy()), {}),
    (unseen.all_pictures, dict(source=ShapesSource(), n=5), {"N": 5, "H": 32, "W": 32}),
    (unseen.tile, dict(pictures=BYTES, columns=2), {"rows": 3}),
    (metrics.psnr, dict(first=BYTES, second=BYTES), {}),
    (metrics.on_bytes_scale, dict(first=BYTES, second=BYTES), {}),
    (metrics.ssim, dict(first=SEVEN, second=SEVEN), {}),
    (
        metrics.frechet_gaussians,
        dict(mean1=SET[0], cov1=torch.eye(4), mean2=SET[1], cov2=torch.eye(4)),
        {},
    ),
    (metrics.frechet_distance, dict(first=SET, second=OTHER), {}),
    (metrics.best_columns, dict(scores=noise(2, 4), k=3), {}),
    (metrics.top_k, dict(embeddings=noise(9, 4), queries=noise(2, 4), k=3), {}),
    (metrics.recall_at_k, dict(image=noise(4, 3), text=noise(4, 3), k=1), {}),
    *(
        call
        for path in map(diffusion.Path, diffusion.PATHS)
        for call in (
            (path.coefficients, dict(t=T2), {}),
            (path.direction, dict(t=T2), {}),
            (path.noised, dict(x=DATA, noise=DATA, t=T2), {}),
        )
    ),
    *(
        (PATH.estimate, dict(x_t=DATA, t=T2, found=DATA, kind=kind), {})
        for kind in diffusion.TARGETS
    ),
    (diffusion.along, dict(values=T2, like=DATA), {}),
    (diffusion.training_times, dict(uniform=T2, config=diffusion.DiffusionConfig()), {}),
    (
        diffusion.diffusion_loss,
        dict(found=DATA, x=DATA, noise=DATA, t=T2, config=diffusion.DiffusionConfig()),
        {},
    ),
    (HOW.scale, dict(t=T2), {}),
    (diffusion.guided, dict(with_it=DATA, without=DATA, t=T2, how=HOW), {}),
    (
        diffusion.ddim_step,
        dict(path=PATH, x_t=DATA, t=T2, s=HALF, x=DATA, eta=0.5, fresh=DATA),
        {},
    ),
    *(
        (
            diffusion.walk,
            dict(x_t=DATA, how=how, held=OUTSIDE, generator=generator(), **WALK),
            {"n": 4},
        )
        for how in (HOW, diffusion.Sampler("2m", steps=3))
    ),
    (diffusion.invert, dict(x=DATA, steps=2, **WALK), {}),
    (diffusion.slerp, dict(a=DATA, b=noise(2, 3, 4, 5, seed=1), share=0.3), {}),
    (unet.time_features, dict(t=T2, width=6), {"D": 6}),
    (BLOCK.forward, dict(x=MAP, condition=noise(2, 6), tokens=noise(2, 5, 9)), {"C'": 16}),
    (
        UNET.forward,
        dict(x=DATA[..., :4], condition=noise(2, 6), tokens=noise(2, 5, 9)),
        {"O": 7},
    ),
    (SPACE.learn, dict(embeddings=noise(9, 5), scale="standard"), {}),
    (SPACE.standardize, dict(vectors=noise(2, 5, 3, 4)), {}),
    (SPACE.undo, dict(standard=noise(2, 5)), {}),
    (SPACE.restore, dict(standard=noise(2, 5)), {}),
    (SPACE.components, dict(embeddings=units(2, 5), dims=3), {}),
    (SPACE.composed, dict(components=noise(2, 3)), {"E": 5}),
    (embeddings.side, dict(values=noise(5), like=noise(2, 5, 3, 4)), {}),
    (
        decoder.read_captions,
        dict(clip=UNCLIP.clip, tokens=integers(30, 2, 20)),
        {"D'": 12, "F": 10},
    ),
    (decoder.tell, dict(embeddings=units(2, 10), caption=make_caption(2)), {}),
    (UNCLIP.decoder.condition, dict(t=T2, told=TOLD), {"D": 16, "n": 9}),
    (
        UNCLIP.decoder.forward,
        dict(x_t=SMALL, t=T2, told=TOLD),
        {"D": 16, "n": 9, "P": 12, "h": 4, "w": 4},
    ),
    (UNCLIP.decoder.loss, dict(x=SMALL, told=TOLD, noise=SMALL, t=T2), {}),
    *(
        (one.decoder.draw, dict(told=TOLD, how=HOW, generator=generator()), sizes)
        for one, sizes in ((UNCLIP, {"C": 3, "H": 8, "W": 8}), (CODED, {"C": 6, "H": 4, "W": 4}))
    ),
    (UNCLIP.decoder.encode, dict(pictures=EIGHT, painter=None), {"C": 3, "H": 8, "W": 8}),
    (
        CODED.decoder.encode,
        dict(pictures=EIGHT, painter=CODED.painter),
        {"C": 6, "H": 4, "W": 4},
    ),
    (UNCLIP.decoder.decode, dict(x=SMALL, painter=None), {"S": 8}),
    (CODED.decoder.decode, dict(x=noise(2, 6, 4, 4), painter=CODED.painter), {"S": 8}),
    (upsampler.shrink, dict(pictures=LARGE, size=8, blur=T2), {}),
    (
        UPSAMPLER.forward,
        dict(x_t=LARGE, t=T2, small=SMALL),
        {"P": 12, "H'": 8, "W'": 8},
    ),
    (UPSAMPLER.loss, dict(x=LARGE, small=SMALL, noise=LARGE, t=T2), {}),
    (UPSAMPLER.enlarge, dict(pictures=EIGHT, generator=generator()), {"H": 16, "W": 16}),
    (UNCLIP.embed, dict(pictures=EIGHT), {"E": 10}),
    (UNCLIP.latents, dict(pictures=EIGHT), {"C": 3, "H": 8, "W": 8}),
    (CODED.latents, dict(pictures=EIGHT), {"C": 6, "H": 4, "W": 4}),
    (UNCLIP.told, dict(embeddings=units(2, 10)), {"T": 20}),
    (UNCLIP.noise_of, dict(pictures=EIGHT, told=TOLD), {"C": 3, "H": 8, "W": 8}),
    (UNCLIP.embed_prompt, dict(prompt=WORDS[0], generator=generator()), {"E": 10}),
    (UNCLIP.noised, dict(x=SMALL, noise=SMALL, time=0.5), {}),
    (UNCLIP.paint, dict(told=TOLD, chunk=CHUNK, how=HOW), {"S": 8}),
    (UNCLIP.draw, dict(prompts=WORDS[:2], **TOOL), {"N": 6, "B": 6, "S": 8}),
    (
        UNCLIP.paint_all,
        dict(told=TOLD, noise=SMALL, **TOOL),
        {"N": 2, "S": 8},
    ),
    (UNCLIP.vary, dict(picture=EIGHT[0], **TOOL), {"n": 3}),
    (UNCLIP.interpolate, dict(a=EIGHT[0], b=EIGHT[1], **TOOL), {"n": 3}),
    (
        UNCLIP.edit,
        dict(pictures=EIGHT, before=WORDS[:2], after=WORDS[1:3], strengths=HALF, **TOOL),
        {},
    ),
    (UNCLIP.mix, dict(embeddings=units(2, 10), weights=HALF, **TOOL), {"n": 3, "S": 8}),
    (UNCLIP.strip, dict(picture=EIGHT[0], dims=[1, 2, 3], **TOOL), {"N": 3}),
]


STRICT = {"forward", "encode", "decode"}  # every new shape needs a margin
FOLLOWED = Margins(
    {f.__code__: read_function(f, strict=f.__name__ in STRICT)
     for module in MODULES for f in functions_of(module)}
)  # fmt: skip
DONE = set()  # of CALLS, in this process


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """The shapes are those of any number of steps."""
    monkeypatch.setattr(tools, "SAMPLER", tools.SAMPLER._replace(steps=2))


@pytest.mark.parametrize("call", range(len(CALLS)), ids=lambda n: CALLS[n][0].__qualname__)
def test_a_docstring_and_its_margin_tell_the_shapes(call):
    function, arguments, symbols = CALLS[call]
    with FOLLOWED:
        result = function(**arguments)
    check_shapes(function, arguments, result, symbols)
    DONE.add(call)


def test_every_margin_is_held_against_a_call():
    with FOLLOWED:
        for function, arguments, _ in (CALLS[n] for n in range(len(CALLS)) if n not in DONE):
            function(**arguments)
    left = {where for where in FOLLOWED.unchecked if not where[0].startswith(OPTIONS)}
    assert not left, f"no call of CALLS runs these lines: {sorted(left)}"


def public(owner) -> list:
    """Functions of a module or class that callers may use, methods included."""
    found = []
    for name, value in vars(owner).items():
        if name.startswith("_") or getattr(value, "__module__", None) != owner_module(owner):
            continue
        if inspect.isclass(value):
            found += public(value)
        elif inspect.isfunction(value):
            found.append(value)
    return found


def owner_module(owner) -> str:
    return owner.__name__ if inspect.ismodule(owner) else owner.__module__


def speaks_of_shapes(function) -> bool:
    return any(shapes_in(text) for text in documentation(function.__doc__).values())


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_no_function_with_shapes_is_missing_from_the_calls(module):
    called = {getattr(function, "__qualname__", "") for function, _, _ in CALLS}
    speaking = {f.__qualname__ for f in public(module) if speaks_of_shapes(f)}
    assert speaking, "the docstrings are not found"
    assert speaking <= called, f"not called in CALLS: {sorted(speaking - called)}"
