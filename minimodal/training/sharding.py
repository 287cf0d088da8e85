"""Shares of weights: each process keeps an N-th part of every tensor (`--fsdp`).

By PyTorch's FSDP2 (`fully_shard`), after ZeRO (Rajbhandari et al. 2020). Weights, their averages,
gradients and the optimiser's state are DTensors: they look whole and hold a share, cut along the
first dimension. A block's weights are gathered while it computes and its gradients are scattered
behind it. States are kept whole (`joined`, `share`), so that a run may go on in any number of
processes, with shares or without. Read `distributed.py` before.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from minimodal.blocks.transformer import Block
from minimodal.blocks.unet import ConditionedBlock
from minimodal.training.distributed import Distributed


class Nets(nn.Module):
    """All nets of a training as one: what is called through it finds their weights whole."""

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, call: Callable[[], Any]) -> Any:
        """What the call gives."""
        return call()


def shard(module: nn.Module, here: Distributed) -> nn.Module:
    """Leave this process a share of each weight of a module, on its device."""
    # Here, since it takes half a second, which every training would pay.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(here.device.type, (here.world,))
    blocks = [m for m in module.modules() if isinstance(m, (Block, ConditionedBlock))]
    for part in (*blocks, module):
        # Also the outermost: what is called without a backward pass would leave it whole, and
        # what an optimiser then does to the shares would not be seen.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return module


def has_shares(value: Any) -> bool:
    """Whether each process has a share of this only: a DTensor, by what it can do."""
    return hasattr(value, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process has a share, put together on all of them; others as they are.

    tensor: (...) any
    returns: (...) the same, whole
    """
    return tensor.full_tensor() if has_shares(tensor) else tensor


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, where the tensor that it is for has shares.

    tensor: (...) whole
    like: (...) what it is for; of another shape than its weight is a count of steps, for one
    returns: (...)
    """
    if not has_shares(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def joined(state: Any) -> Any:
    """A state with whole tensors, on the CPU of rank 0 and nowhere else; all ranks must ask."""

    def join(value: Any) -> Any:
        if not has_shares(value):
            return value
        tensor = value.full_tensor()
        return tensor.cpu() if dist.get_rank() == 0 else None

    return tree_map(join, state)


def load_shares(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole weights into a net, which may have shares of its own."""
    own = net.state_dict()
    net.load_state_dict({name: share(t, own.get(name, t)) for name, t in state.items()})


def share_states(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Of an optimiser's whole state the shares of this process: a hook of load_state_dict."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    shares = {
        number: {name: share(t, weights[number]) for name, t in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": shares}
