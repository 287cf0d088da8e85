"""Drawing step by step with what the caller sees of it, and captions to draw from."""

import torch

from helpers.tiny import generator
from minimodal.blocks import factor_head
from minimodal.blocks.given import Given
from minimodal.blocks.painter import Request
from minimodal.blocks.sampling import SamplingConfig
from minimodal.dalle import DALLE

TEXT = torch.tensor([[3, 7, 9, 0, 0], [4, 5, 6, 8, 0], [12, 0, 0, 0, 0]])


class Numbered:
    """400 pictures whose captions are their numbers."""

    def __len__(self):
        return 400

    def captions(self, indices, rng):
        return [f"picture {i}" for i in indices]


def decode(model, text, monkeypatch, *, seed: int = 0, use_cache: bool = True, known=None,
           keep=None, **settings):  # fmt: skip
    """Codes, and the logits that each was drawn from: one tensor (B, K) for each factor drawn."""
    logits, original = [], factor_head.sample_token

    def watched(row, config, random):
        logits.append(row)
        return original(row, config, random)

    with monkeypatch.context() as patch:
        patch.setattr(factor_head, "sample_token", watched)
        codes = model.generate_codes(
            text,
            generator=generator(seed),
            sampling=SamplingConfig(**settings),
            use_cache=use_cache,
            known=known,
            keep=keep,
        )
    return codes, logits


def ask(model, prompts, n: int = 1, **settings) -> torch.Tensor:
    """`model.draw` with all that one can ask for as keywords."""

    def taken(names) -> dict:
        return {name: settings.pop(name) for name in names if name in settings}

    request = Request(n, **taken(Request._fields))
    sampling = SamplingConfig(**taken(SamplingConfig.__dataclass_fields__))
    if isinstance(model, DALLE):
        settings["given"] = Given(**taken(Given._fields))
    return model.draw(prompts, request, sampling, **settings)
