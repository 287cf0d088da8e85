"""The optimiser and its schedule.

AdamW (Loshchilov & Hutter 2019) in torch's fused form, weight decay on matrices and kernels only,
or Muon for the matrices of Transformers or the kernels of convolutions beside AdamW for the rest,
and a learning rate that is a pure function of where a run stands. Parameters go in, an optimiser
comes out; the engine sets `lr` before every step.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from minimodal.blocks.discriminator import PatchDiscriminator
from minimodal.blocks.transformer import Transformer
from minimodal.blocks.unet import UNet
from minimodal.training.contract import TrainConfig
from minimodal.training.sharding import share, share_states, whole


def parameter_groups(
    nets: Iterable[nn.Module], weight_decay: float, *, without: Iterable[Tensor] = ()
) -> list[dict]:
    """Split the trainable parameters into those that weight decay pulls to zero and the rest.

    Decayed are the weights of linear maps and convolutions. Embeddings, positions, norms, biases
    and scales are not: pulling a rarely used embedding to zero loses what it has learned.
    """
    decayed, kept, seen = [], [], {id(parameter) for parameter in without}
    for net in nets:
        for module in net.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in seen or not parameter.requires_grad:
                    continue
                seen.add(id(parameter))
                is_map = name.endswith("weight") and parameter.ndim >= 2
                is_map = is_map and not isinstance(module, (nn.Embedding, nn.EmbeddingBag))
                (decayed if is_map else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


# differs from the paper: AdamW as in the papers, or Muon (`--optimizer muon`; the Shapes world's
# recipes) for the matrices of Transformers or a VQGAN's kernels: it learns in fewer steps.
def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring every singular value near 1 and keep the directions: U Σ Vᵀ becomes about U Vᵀ.

    Five rounds of a Newton-Schulz iteration, X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X, with Jordan's
    coefficients: singular values end between 0.7 and 1.2, which is close enough, and fast.

    The products need few digits, so they are made in what the run's autocast says, and in float32
    without it: a CPU that has no bfloat16 instructions emulates them, fifty times slower.

    matrices: (n, rows, columns)
    returns: (n, rows, columns)
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT  # the smaller side in front: X Xᵀ is then small
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    device = matrices.device.type
    if torch.is_autocast_enabled(device):  # once; autocast itself would do it in every product
        x = x.to(torch.get_autocast_dtype(device))
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), for the matrices inside a network.

    A convolution's kernel is taken as the matrix that multiplies each window: (out, in · k · k).
    Adam follows the few directions of a matrix in which gradients are large; made orthogonal, an
    update moves all directions alike, so that what is rare in the data is learned in fewer steps.
    An update is scaled so that its entries have a root mean square of about lr, as Adam's do:
    both can share one learning rate.
    """

    def __init__(self, matrices: list[Tensor], *, lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every matrix; those of one shape are orthogonalised together."""
        spike = getattr(self, "found_inf", None)  # 1 where `Spikes` has found one
        taken = 1.0 if spike is None else 1 - spike
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            updates: list[tuple[Tensor, Tensor, int]] = []
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state, grad = self.state[weight], weight.grad
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                if spike is not None:  # what is left out may be infinite: times 0 it would be NaN
                    grad = torch.where(spike > 0, 0.0, grad)
                mean = state["mean"].lerp_(grad, (1 - group["momentum"]) * taken)
                # Nesterov's look ahead; where each process has a share, all make the whole.
                update = whole(grad.lerp(mean, group["momentum"])).flatten(1)
                # The fused projection to queries, keys and values is three matrices.
                fused = weight.ndim == 2 and weight.shape[0] == 3 * weight.shape[1]
                parts = update.chunk(3 if fused else 1)
                updates.append((weight, update, max(parts[0].shape)))
                shapes.setdefault(parts[0].shape, []).extend(parts)
            for parts in shapes.values():
                for part, even in zip(parts, orthogonalize(torch.stack(parts)), strict=True):
                    part.copy_(even)
            for weight, update, longest in updates:
                weight.mul_(1 - group["lr"] * group["weight_decay"] * taken)
                update = share(update.view(weight.shape), weight)
                if spike is not None:
                    update = update * taken
                weight.add_(update, alpha=-group["lr"] * longest**0.5)


SPIKE_WINDOW = 101  # steps, whose gradients' norms tell what is usual


class Spikes(nn.Module):
    """Lets an optimiser pass over gradients far longer than usual, and counts them.

    All of it stays on the device, so that nothing waits. What is no spike by then raises the
    median, so a training whose gradients grow for good goes on.
    """

    def __init__(self, factor: float) -> None:
        """factor: how many times the median of the last norms is a spike"""
        super().__init__()
        self.factor = factor
        # Infinite at first: none is a spike before half of them are known.
        self.register_buffer("norms", torch.full((SPIKE_WINDOW,), math.inf))
        self.register_buffer("skipped", torch.zeros(()))

    def watch(self, optimizer: "torch.optim.AdamW | Together", norm: Tensor, step: int) -> Tensor:
        """Tell the optimiser whether its next step is one to leave out.

        norm: () of the gradient
        returns: () how many steps have been left out
        """
        spike = (norm > self.factor * self.norms.sort().values[SPIKE_WINDOW // 2]).float()
        for part in getattr(optimizer, "optimizers", (optimizer,)):
            part.found_inf = spike  # PyTorch's fused optimisers look there, as for GradScaler
        self.norms[step % SPIKE_WINDOW] = norm
        self.skipped = self.skipped + spike
        return self.skipped


class Together:
    """Two optimisers as one: what the engine asks of an optimiser, asked of both."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict]:
        """The groups of both."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """One step of each."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def state_dict(self) -> dict:
        """The states of both."""
        return {str(i): optimizer.state_dict() for i, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        for i, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(i)])


def inner_matrices(net: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon moves: linear maps of Transformers; of a net without any, its kernels;
    of a U-Net both.

    Not both: with the kernels of its stem moved by Muon, too, a CLIP of 1,000 steps finds 79 % of
    the captions instead of 90 %. Nor a discriminator's: the game is balanced for Adam there.
    """
    if isinstance(net, PatchDiscriminator):
        return []
    inner = [module for module in net.modules() if isinstance(module, Transformer)]
    maps = [m for part in inner for m in part.modules() if isinstance(m, nn.Linear)]
    if not inner or any(isinstance(module, UNet) for module in net.modules()):
        maps += [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    return [module.weight for module in maps if module.weight.requires_grad]


def make_optimizer(
    nets: Sequence[nn.Module], *, lr: float, betas: tuple[float, float], weight_decay: float,
    muon: bool = False,
) -> torch.optim.AdamW | Together:  # fmt: skip
    """AdamW over the trainable parameters of `nets`; with `muon`, that for the inner matrices."""
    matrices = [weight for net in nets for weight in inner_matrices(net)] if muon else []
    groups = parameter_groups(nets, weight_decay, without=matrices)
    adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    adamw.register_load_state_dict_pre_hook(share_states)
    if not matrices:
        return adamw
    inner = Muon(matrices, lr=lr, weight_decay=weight_decay)
    inner.register_load_state_dict_pre_hook(share_states)
    return Together(adamw, inner)


def lr_at(step: int, progress: float, config: TrainConfig) -> float:
    """The learning rate of a step: linear warm-up times a cosine that ends at a share of the peak.

        lr(s, p) = lr · min(1, (s + 1) / warmup) · (r + (1 - r) · (1 + cos πp) / 2)

    The warm-up counts steps and the cosine counts `progress` (0 to 1), so that a run limited by
    time, which does not know its number of steps, follows the same formula.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return config.lr * warm * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)
