"""VQGAN+CLIP: follow CLIP's gradient to a picture (Crowson et al. 2022, "VQGAN-CLIP").

    picture = drawer(parameters)                       VQGAN's decoder, or another drawer
    loss    = mean over views of θ(CLIP(view), prompt)² / 2
    parameters ← Adam(∂loss / ∂parameters)

B pictures are optimised side by side, each for itself, and each keeps its best step. Nothing but
the generator of `Optimisation` is random; `state` and `restore` continue bit for bit. Read
`guide.py` and `blocks/drawers.py` before.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minimodal.blocks.cutouts import CAPTION_TRUE, Draws, Views, draw_views, see
from minimodal.blocks.drawers import Drawer
from minimodal.errors import UserError
from minimodal.vqgan_clip.guide import Guide, Wanted


@dataclass(frozen=True)
class OptimiseConfig:
    """How the gradient is followed."""

    steps: int = 200
    lr: float = 0.1
    drops: tuple[float, ...] = (0.75,)  # at these shares of the steps lr falls to a tenth
    views: int = 16  # of each picture, for each guide and region
    chunk: int = 0  # views in memory at a time; 0: all
    bfloat16: bool = False  # in the models; faster where the machine multiplies it natively

    def __post_init__(self) -> None:
        if min(self.steps, self.views) < 1 or self.chunk < 0:
            raise UserError("steps and views: expected 1 or more; chunk: 0 or more")
        if not 0 < self.lr < math.inf:
            raise UserError(f"lr {self.lr}: expected above 0")

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.lr * 0.1 ** sum(step >= at * self.steps for at in self.drops)


def pieces(n: int, size: int) -> list[tuple[int, int]]:
    """The ranges of n things in chunks of `size` (0: one chunk)."""
    size = size or n
    return [(first, min(first + size, n)) for first in range(0, n, size)]


def kept_for_gradient(forward: Callable[[], Tensor], models: Sequence[Tensor]) -> int:
    """Bytes that a forward pass keeps until its gradient is known.

    models: weights, which are there anyway
    """
    sizes, there = {}, {p.data_ptr() for p in models}

    def kept(x: Tensor) -> Tensor:
        if x.data_ptr() not in there:
            sizes[x.data_ptr()] = max(x.numel() * x.element_size(), sizes.get(x.data_ptr(), 0))
        return x

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x):
        result = forward()  # alive to here, so no address is used twice
    del result
    return sum(sizes.values())


class Optimisation:
    """Pictures on their way: parameters, optimiser, random numbers, and the best so far.

    best: (B, 3, H, W) the pictures of the best steps
    best_loss: (B,)
    """

    def __init__(
        self, drawer: Drawer, guides: Sequence[Guide], config: OptimiseConfig, *,
        views: Views = CAPTION_TRUE, seed: int = 0,
    ) -> None:  # fmt: skip
        self.drawer, self.guides, self.config, self.views = drawer, list(guides), config, views
        if not self.guides:
            raise UserError("no CLIP: expected at least one")
        self.generator = torch.Generator().manual_seed(seed)
        self.number = 0  # of steps done
        with torch.no_grad():
            self.best = drawer.pictures().clone()
        self.best_loss = torch.full((len(self.best),), math.inf, device=self.best.device)
        self.begin()

    def begin(self) -> None:
        """Start an optimiser at the drawer's parameters."""
        self.optimizer = torch.optim.Adam(self.drawer.parameters, lr=self.config.lr)

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.number >= self.config.steps

    def ask(self, guides: Sequence[Guide]) -> None:
        """Go on with other prompts, the next chapter of a story: old losses do not compare."""
        self.guides = list(guides)
        self.best_loss.fill_(math.inf)

    @torch.no_grad()
    def move(self, zoom: float, shift: tuple[float, float]) -> None:
        """Go on from the picture enlarged about its middle and moved, the next frame of a film:
        the drawer takes it for a start, and old losses do not compare.

        shift: pixels to the right and down
        """
        pictures = self.drawer.pictures()
        W, H = self.best.shape[:1:-1]
        x, y = -2 * shift[0] / W / zoom, -2 * shift[1] / H / zoom
        # From a pixel to its source.
        back = pictures.new_tensor([[1 / zoom, 0, x], [0, 1 / zoom, y]])
        grid = F.affine_grid(back.expand(len(pictures), 2, 3), pictures.shape, align_corners=False)
        how = {"padding_mode": "reflection", "align_corners": False}
        self.drawer.start(F.grid_sample(pictures, grid, **how))
        self.begin()
        self.best_loss.fill_(math.inf)

    def autocast(self) -> torch.autocast:
        """What the models compute in."""
        device = self.best.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.bfloat16)

    def view_losses(self, guide: Guide, wanted: Wanted, pictures: Tensor, draws: Draws) -> Tensor:
        """Losses of some views, one picture and one row of random numbers for each.

        pictures: (N, 3, H, W)
        returns: (N,)
        """
        seen = see(wanted.region.of(pictures), draws, guide.size, fill=self.views.fill)
        with self.autocast():
            return guide.losses(seen, wanted)

    def guided(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The guides' loss of pictures and its gradient, a chunk of views at a time.

        The mean over views is a sum over chunks, and so is its gradient: each chunk's graph is gone
        before the next is made, so memory grows with the chunk. All random numbers are drawn
        first, so chunks of any size see the same views.

        pictures: (B, 3, H, W)
        returns: (B,) losses, (B, 3, H, W) gradient of their sum
        """
        B, n = len(pictures), self.config.views
        leaf = pictures.detach().requires_grad_()
        losses = torch.zeros(B, device=leaf.device)
        owner = torch.arange(B, device=leaf.device).repeat_interleave(n)  # (N,), N = B n
        asked = [(guide, wanted) for guide in self.guides for wanted in guide.wanted]
        share = 1 / (n * len(asked))
        for guide, wanted in asked:
            draws = draw_views(self.views, B * n, self.generator)
            for first, stop in pieces(B * n, self.config.chunk):
                whose = owner[first:stop]
                views = leaf.index_select(0, whose)  # indexing has a slower gradient
                found = self.view_losses(guide, wanted, views, draws.part(first, stop))
                (found.sum() * share).backward()
                losses.index_add_(0, whose, found.detach() * share)
        return losses, leaf.grad

    def memory(self) -> int:
        """Bytes that a step will need for gradients: the drawer's, and those of a chunk of views as
        far as one view tells. No random numbers of the run are used."""
        drawn = kept_for_gradient(self.drawer.pictures, self.drawer.parameters)
        leaf, most = self.best[:1].clone().requires_grad_(), 0
        for guide in self.guides:
            for wanted in guide.wanted:
                draws = draw_views(self.views, 1, torch.Generator().manual_seed(0))

                def see_one(guide: Guide = guide, wanted: Wanted = wanted, draws=draws) -> Tensor:
                    return self.view_losses(guide, wanted, leaf, draws)

                most = max(most, kept_for_gradient(see_one, list(guide.clip.parameters())))
        views = len(self.best) * self.config.views
        return drawn + most * min(self.config.chunk or views, views)

    def step(self) -> Tensor:
        """One step of all pictures; what it started from is kept where it is the best.

        returns: (B,) losses before the step
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.number)
        with self.autocast():
            pictures = self.drawer.pictures(self.generator).float()
        losses, gradient = self.guided(pictures)
        self.optimizer.zero_grad()
        pictures.backward(gradient)
        self.keep(losses, pictures.detach())
        self.optimizer.step()
        self.drawer.settle()
        self.number += 1
        return losses

    def keep(self, losses: Tensor, pictures: Tensor) -> None:
        """Remember the pictures that are the best of their run.

        losses: (B,)
        pictures: (B, 3, H, W)
        """
        better = losses < self.best_loss
        self.best_loss = torch.where(better, losses, self.best_loss)
        self.best = torch.where(better[:, None, None, None], pictures, self.best)

    def run(self, on_step: Callable[["Optimisation", Tensor], None] | None = None) -> Tensor:
        """Step until done.

        on_step: called after each step, with the losses before it
        returns: (B, 3, H, W) the best pictures
        """
        while not self.done:
            losses = self.step()
            if on_step is not None:
                on_step(self, losses)
        return self.best

    # --- to a file and back ----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that changes: tensors and plain numbers, for torch.save."""
        return {
            "parameters": [p.detach().clone() for p in self.drawer.parameters],
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "number": self.number,
            "best": self.best,
            "best_loss": self.best_loss,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        shapes = [p.shape for p in state["parameters"]]
        if shapes != [p.shape for p in self.drawer.parameters]:
            raise UserError("this state is of another drawer or another size of picture")
        with torch.no_grad():
            for p, stored in zip(self.drawer.parameters, state["parameters"], strict=True):
                p.copy_(stored)
        self.begin()
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.number = state["number"]
        self.best, self.best_loss = state["best"].clone(), state["best_loss"].clone()
