"""Drawing step by step with what the caller sees of it, and captions to draw from."""

import torch

from helpers.tiny import generator
from minimodal import dalle as dalle_file
from minimodal.blocks.sampling import SamplingConfig

TEXT = torch.tensor([[3, 7, 9, 0, 0], [4, 5, 6, 8, 0], [12, 0, 0, 0, 0]])


class Numbered:
    """400 pictures whose captions are their numbers."""

    def __len__(self):
        return 400

    def captions(self, indices, rng):
        return [f"picture {i}" for i in indices]


def decode(model, text, monkeypatch, *, seed: int = 0, use_cache: bool = True, known=None,
           keep=None, negative=None, **settings):  # fmt: skip
    """Codes, and the logits that each was drawn from: one tensor (B, K) for each factor drawn."""
    logits, original = [], dalle_file.draw

    def watched(row, config, random):
        logits.append(row)
        return original(row, config, random)

    with monkeypatch.context() as patch:
        patch.setattr(dalle_file, "draw", watched)
        codes = model.generate_codes(
            text,
            generator=generator(seed),
            sampling=SamplingConfig(**settings),
            use_cache=use_cache,
            known=known,
            keep=keep,
            negative=negative,
        )
    return codes, logits
