"""What one does with unCLIP (Ramesh et al. 2022, sections 3 and 4).

A prompt becomes an embedding by the prior and a picture by the decoder. A picture, too, becomes an
embedding, by CLIP, and a noise x_T, by walking backwards; the two together are decoded to it again.
Change one of them, and the picture changes: other noise makes variations, a way between two
pictures' pairs an interpolation, a step along a difference of captions an edit.

Captions and pictures (3, S, S) uint8 in, pictures (N, 3, S, S) uint8 out. Read `unclip/prior.py`
and `unclip/decoder.py` before.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodal.blocks.diffusion import NOISE, Path, Sampler, Start, invert, slerp
from minimodal.blocks.painter import Chunk, Painter, Request
from minimodal.blocks.sampling import normal
from minimodal.clip import CLIP
from minimodal.data.images import resize_all
from minimodal.errors import UserError
from minimodal.unclip.decoder import Caption, Conditions, Decoder, read_captions, tell
from minimodal.unclip.prior import DiffusionPrior
from minimodal.unclip.prior_autoregressive import AutoregressivePrior
from minimodal.unclip.upsampler import Upsampler
from minimodal.uses.embedding import embed_captions, embed_pictures

LEVEL = 0.1  # noise that a prior's embedding is taken to have
INVERSION_STEPS, INVERSION_START = 32, 0.2
SAMPLER = Sampler()
Prior = DiffusionPrior | AutoregressivePrior


class UnCLIP:
    """The models of one CLIP: a decoder, a prior for prompts, an up-sampler if there is one."""

    def __init__(
        self, clip: CLIP, decoder: Decoder, *, prior: Prior | None = None,
        painter: Painter | None = None, upsampler: Upsampler | None = None, bfloat16: bool = False,
    ) -> None:  # fmt: skip
        """painter: the VQGAN of a decoder that draws code vectors
        bfloat16: whether the decoder multiplies in it
        """
        self.clip, self.decoder, self.prior = clip, decoder, prior
        self.painter, self.upsampler, self.bfloat16 = painter, upsampler, bfloat16
        size, width = decoder.config.image_size, clip.config.embed_width
        for name, part in (("decoder", decoder), ("prior", prior)):
            if part is not None and part.config.embed_width != width:
                raise UserError(
                    f"the {name} is for embeddings of {part.config.embed_width} numbers, and the "
                    f"CLIP's have {width}: it was trained with another CLIP"
                )
        if upsampler is not None and upsampler.config.small_size != size:
            raise UserError(
                f"the up-sampler enlarges pictures of {upsampler.config.small_size} pixels a side, "
                f"and the decoder draws {size}"
            )

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.decoder.no_embedding.device

    # --- what pictures are made of ---------------------------------------------------------------

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures to CLIP's unit vectors.

        pictures: (B, 3, S, S) uint8
        returns: (B, E)
        """
        return embed_pictures(self.clip, pictures.to(self.device))

    def latents(self, pictures: Tensor) -> Tensor:
        """Pictures as what the decoder draws.

        pictures: (B, 3, S, S) uint8, made smaller where it draws smaller ones
        returns: (B, C, H, W)
        """
        sized = resize_all(pictures.cpu().numpy(), self.decoder.config.image_size)
        return self.decoder.encode(torch.from_numpy(sized).to(self.device), self.painter)

    def caption_of(self, prompts: Sequence[str]) -> tuple[Tensor, Caption]:
        """Prompts as tokens, (B, T), and as what CLIP's text encoder says of them."""
        tokens = self.clip.tokenize(list(prompts), truncate=True).to(self.device)
        return tokens, read_captions(self.clip, tokens)

    def told(self, embeddings: Tensor, texts: Sequence[str] = ()) -> Conditions:
        """What the decoder is told of pictures.

        embeddings: (B, E) unit vectors
        texts: a caption of each, or one of all; none: captions are left out
        """
        _, caption = self.caption_of(texts or [""])  # what is left out has to be there
        B = len(embeddings)
        told = tell(embeddings, Caption(*(part.expand(B, *part.shape[1:]) for part in caption)))
        return told if texts else told._replace(captioned=~told.captioned)

    def noise_of(self, pictures: Tensor, told: Conditions) -> Tensor:
        """x_T: the noise from which DDIM's walk leads to the pictures again, all but exactly.

        pictures: (B, 3, S, S) uint8
        told: Conditions of them
        returns: (B, C, H, W)
        """
        # differs from the paper: begun with a little noise. Codes are points, and so are flat
        # colours: the noise that leads to a point is far from any that the decoder has seen (its
        # deviation is 3 to 20, not 1), and holds the picture so fast that an edit cannot move it.
        denoise, x = self.decoder.denoiser(told, SAMPLER), self.latents(pictures)
        noise = normal(x[:1], torch.Generator(self.device).manual_seed(0)).expand_as(x)
        begun = self.noised(x, noise, time=INVERSION_START).x_t
        path = Path(self.decoder.config.path)
        return invert(denoise, begun, path, steps=INVERSION_STEPS, start=INVERSION_START)

    def embed_prompt(self, prompt: str, generator: torch.Generator) -> Tensor:
        """A prompt as one of the embeddings that the prior draws for it.

        returns: (1, E) a unit vector
        """
        tokens, caption = self.caption_of([prompt])
        return self.need_prior().embed(tokens, caption.summary, generator=generator)

    def need_prior(self) -> Prior:
        """The prior, which prompts cannot do without."""
        if self.prior is None:
            raise UserError("for prompts unCLIP needs a prior: train.py prior makes one")
        return self.prior

    def noised(self, x: Tensor, noise: Tensor, *, time: float) -> Start:
        """A walk that begins in pictures with the noise of a time: at 0 they stay, at 1 go.

        x: (B, C, H, W)
        noise: (B, C, H, W)
        """
        t = torch.full_like(x[:, 0, 0, 0], time)
        return Start(Path(self.decoder.config.path).noised(x, noise, t), time)

    # --- from them to pictures -------------------------------------------------------------------

    def paint(self, told: Conditions, chunk: Chunk, how: Sampler, start: Start = NOISE) -> Tensor:
        """The pictures of a chunk.

        told: Conditions of its rows
        returns: (B, 3, S, S) uint8
        """

        def on_step(x: Tensor, done: int) -> None:
            chunk.tell(done / how.steps)
            if chunk.request.partial is not None:
                with torch.autocast(self.device.type, enabled=False):  # as the picture itself
                    shown = self.decoder.decode(x.float(), self.painter)
                chunk.request.partial(shown, chunk.rows.start)

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            x = self.decoder.draw(
                told, how, generator=chunk.generator, start=start, on_step=on_step
            )  # (B, C, H, W)
        pictures = self.decoder.decode(x, self.painter)
        if self.upsampler is None:
            return pictures
        return self.upsampler.enlarge(pictures, generator=chunk.generator)

    def draw(
        self, prompts: Sequence[str], request: Request, how: Sampler = SAMPLER,
        *, start: Start = NOISE, captioned: bool = True,
    ) -> Tensor:  # fmt: skip
        """Draw `request.n` pictures for each prompt; a prompt's pictures follow one another.

        start: of all pictures; its tensors have a single row
        captioned: whether the decoder reads the prompt beside its embedding
        returns: (N, 3, S, S) uint8
        """
        prior = self.need_prior()
        request.check(len(prompts))
        texts = [prompt for prompt in prompts for _ in range(request.n)]
        pictures, tokens = [], self.clip.tokenize(texts, truncate=True).to(self.device)
        for chunk in request.chunks(len(texts), self.device):
            some = tokens[chunk.rows]  # (B, T)
            caption = read_captions(self.clip, some)
            z = prior.embed(some, caption.summary, generator=chunk.generator)  # (B, E)
            told = tell(z, caption, level=LEVEL)
            told = told._replace(captioned=told.captioned & captioned)
            begin = start if start.x_t is None else start._replace(
                x_t=start.x_t.expand(len(z), -1, -1, -1)
            )  # fmt: skip
            pictures.append(self.paint(told, chunk, how, begin))
        return torch.cat(pictures)

    def paint_all(
        self, told: Conditions, noise: Tensor | None, request: Request, how: Sampler
    ) -> Tensor:
        """A picture for each of N conditions.

        noise: (N, C, H, W) x_T; None: fresh
        returns: (N, 3, S, S) uint8
        """
        pictures = []
        if noise is not None and how.name == "ddpm":
            how = how._replace(name="2m")  # fresh noise on the way would drown the chosen one
        for chunk in request.chunks(len(told.level), self.device):
            some = Conditions(*(part[chunk.rows] for part in told))
            start = NOISE if noise is None else Start(noise[chunk.rows])
            pictures.append(self.paint(some, chunk, how, start))
        return torch.cat(pictures)

    # --- the paper's toolbox ---------------------------------------------------------------------

    def vary(self, picture: Tensor, request: Request, how: Sampler) -> Tensor:
        """Variations: what the embedding says stays, all else is drawn anew (section 3.1).

        picture: (3, S, S) uint8
        returns: (n, 3, S, S) uint8
        """
        # differs from the paper: from fresh noise, not from the inverted x_T with η above 0: of a
        # small picture x_T keeps the places of all objects.
        z = self.embed(picture[None]).expand(request.n, -1)
        return self.paint_all(self.told(z), None, request, how)

    def interpolate(self, a: Tensor, b: Tensor, request: Request, how: Sampler) -> Tensor:
        """`request.n` pictures on the way from a to b: both z and x_T on great circles (3.2).

        a: (3, S, S) uint8
        b: (3, S, S) uint8
        returns: (n, 3, S, S) uint8
        """
        pair = torch.stack([a, b])
        z = self.embed(pair)  # (2, E)
        noise = self.noise_of(pair, self.told(z))  # (2, C, H, W)
        shares = torch.linspace(0, 1, request.n).tolist() if request.n > 1 else [0.5]
        between, noises = (
            torch.cat([slerp(x[:1], x[1:], share) for share in shares]) for x in (z, noise)
        )
        return self.paint_all(self.told(between), noises, request, how)

    def edit(
        self, pictures: Tensor, before: Sequence[str], after: Sequence[str], strengths: Tensor,
        *, request: Request, how: Sampler, captioned: bool = True,
    ) -> Tensor:  # fmt: skip
        """Text diffs (section 3.3): z_d = norm(z_after - z_before), and z moves towards it on the
        great circle by a share of the way; x_T stays.

        pictures: (B, 3, S, S) uint8, with a caption each of what is there and of what is wanted
        strengths: (N,) shares of the way, 0 to 1; of a single picture several
        captioned: whether the decoder reads the captions, too: the first one while it finds x_T
        returns: (N, 3, S, S) uint8
        """
        if not bool(((strengths >= 0) & (strengths <= 1)).all()):
            raise UserError(f"strength {strengths.tolist()}: expected from 0 to 1")
        # differs from the paper: the decoder is told the captions as well, if it is to be: twice as
        # many edits come out right.
        z = self.embed(pictures)  # (B, E)
        noise = self.noise_of(pictures, self.told(z, before if captioned else ()))
        old, new = (embed_captions(self.clip, list(texts)) for texts in (before, after))
        towards = F.normalize(new - old, dim=-1)  # (B, E)
        z, towards, noise = (x.expand(len(strengths), *x.shape[1:]) for x in (z, towards, noise))
        rows = zip(z.split(1), towards.split(1), strengths.tolist(), strict=True)
        moved = torch.cat([slerp(a, b, share) for a, b, share in rows])  # (N, E)
        return self.paint_all(self.told(moved, after if captioned else ()), noise, request, how)

    def mix(self, embeddings: Tensor, weights: Tensor, request: Request, how: Sampler) -> Tensor:
        """Pictures of a weighted sum of embeddings, of pictures and prompts.

        embeddings: (M, E) unit vectors
        weights: (M,)
        returns: (n, 3, S, S) uint8
        """
        z = (weights[:, None] * embeddings).sum(0, keepdim=True)  # (1, E)
        if not float(z.norm()) > 1e-3:
            raise UserError(f"weights {weights.tolist()}: they leave nothing of what is mixed")
        z = F.normalize(z, dim=-1)
        return self.paint_all(self.told(z.expand(request.n, -1)), None, request, how)

    def strip(self, picture: Tensor, dims: Sequence[int], request: Request, how: Sampler) -> Tensor:
        """What ever more principal directions of the embedding know of a picture (figure 7); all
        from one noise, so that only the embedding differs.

        picture: (3, S, S) uint8
        dims: numbers of directions
        returns: (N, 3, S, S) uint8, one for each of them
        """
        z = self.embed(picture[None])
        space = self.decoder.space
        known = torch.cat([space.composed(space.components(z, d)) for d in dims])  # (N, E)
        noise = self.noise_of(picture[None], self.told(z))
        noise = noise.expand(len(dims), -1, -1, -1)
        return self.paint_all(self.told(known), noise, request, how)
