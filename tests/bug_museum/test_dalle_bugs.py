"""Bugs of DALL·E's reimplementations, as mutants that a claim about ours must expose.

Each exhibit is a sentence of history, a mutant, and a claim: ours passes it, the mutant does not.
The KL term that grew with the batch stands in `test_vqgan_bugs.py`.
"""

import torch
from helpers.mutants import exposes
from helpers.tiny import generator, make_dalle
from torch import Tensor

from minimodal.blocks.sampling import SamplingConfig, guide, sample_token
from minimodal.dalle import DALLE

TEXT = torch.tensor([[3, 7, 9, 0, 0], [4, 5, 6, 8, 0]])
GUIDED, PLAIN = SamplingConfig(guidance=2.0), SamplingConfig()

# --- guidance that zeroes the prompt -------------------------------------------------------------
# DALLE-pytorch made the empty caption by multiplying the prompt's own tensor with zero: from the
# second token on both halves of the guidance were unconditional, and so was the caller's next call.


class ZeroesThePrompt(DALLE):
    def generate_codes(self, text: Tensor, *, generator, sampling: SamplingConfig) -> Tensor:
        grid = self.config.grid
        codes = torch.zeros(len(text), grid**2, dtype=torch.int64)
        for n in range(grid**2):
            said = []
            for empty in (False, True):
                if empty:
                    text *= 0
                said.append(self(text, codes.view(-1, grid, grid)).image[0][:, n])
            codes[:, n] = sample_token(guide(*said, sampling.guidance), sampling, generator)
        return codes.view(-1, grid, grid)


def prompts_survive(model: DALLE) -> bool:
    text = TEXT.clone()
    model.generate_codes(text, generator=generator(), sampling=GUIDED)
    return torch.equal(text, TEXT)


def the_caption_guides_every_code(model: DALLE) -> bool:
    """Each code is the likeliest by the logits of the caption and of none."""
    sampling = SamplingConfig(temperature=0.0, guidance=2.0)
    drawn = model.generate_codes(TEXT.clone(), generator=generator(), sampling=sampling)
    said = [model(text, drawn).image[0] for text in (TEXT, torch.zeros_like(TEXT))]
    return torch.equal(guide(*said, 2.0).argmax(-1), drawn.flatten(1))


def mutant_of(kind: type[DALLE]) -> DALLE:
    model = kind(make_dalle().config).eval()
    model.load_state_dict(make_dalle().state_dict())
    return model


def test_guidance_leaves_the_prompt_as_it_was():
    exposes(prompts_survive, ours=make_dalle(), mutant=mutant_of(ZeroesThePrompt))


def test_guidance_compares_with_the_caption_from_the_first_code_to_the_last():
    mutant = mutant_of(ZeroesThePrompt)
    exposes(the_caption_guides_every_code, ours=make_dalle(), mutant=mutant)


# --- a cache that is dropped without a word -------------------------------------------------------
# DALLE-pytorch's step with guidance passes its cache on only where the scale is not 1, which is the
# default: every token ran the whole stream again, with the right picture and 30 times the work.


class DropsTheCache(DALLE):
    def generate_codes(self, text: Tensor, **settings) -> Tensor:
        use_cache = settings["sampling"].guidance != 1
        return super().generate_codes(text, **settings, use_cache=use_cache)


def every_token_is_computed_once(model: DALLE) -> bool:
    """However it is guided: the Transformer reads 1 + T tokens and then one for each code."""
    for sampling in (PLAIN, GUIDED):
        read: list[int] = []
        hook = model.transformer.register_forward_pre_hook(
            lambda _, inputs, read=read: read.append(inputs[0].shape[1])
        )
        model.generate_codes(TEXT, generator=generator(), sampling=sampling)
        hook.remove()
        if sum(read) > 1 + TEXT.shape[1] + model.config.image_length:
            return False
    return True


def test_the_cache_is_used_at_every_guidance():
    exposes(every_token_is_computed_once, ours=make_dalle(), mutant=mutant_of(DropsTheCache))
