"""Data-parallel training through `torchrun`: who am I, gather, mean, agree.

Each process (rank) trains on its own rows of the global batch. DistributedDataParallel averages
the gradients; what else has to be known globally goes through the few functions here, all of
which do nothing on a single process. Tensors on the CPU travel by gloo and those on CUDA by NCCL.
"""

import atexit
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from minimodal.errors import UserError, check_choice


@dataclass(frozen=True)
class Distributed:
    """This process among the others."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0


def pick_device(name: str) -> str:
    """`auto`, `cpu` or `cuda` as a device type that exists here."""
    check_choice("--device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def usable_cores() -> int:
    """The cores that this process may use; macOS cannot say which, so there all of them."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def share_threads(processes: int) -> None:
    """Give each of the processes on this machine its share of the cores."""
    # torchrun sets OMP_NUM_THREADS=1 where the user has not set it, so 1 is no one's wish.
    if processes > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, usable_cores() // processes))


def meeting_place() -> dist.Store:
    """Where the processes tell each other their addresses."""
    store, _, _ = next(rendezvous("env://"))
    # torchrun keeps it when it starts the processes again, with the addresses of the dead in it
    # (pytorch/pytorch#135712). Agents of several machines do not count their restarts alike.
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    return store


def start(device: str = "auto") -> Distributed:
    """Join the other processes if `torchrun` started several; may be called again."""
    kind = pick_device(device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Distributed(torch.device(kind))
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(kind)
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank} has no device: there are {torch.cuda.device_count()}; "
                "lower --nproc_per_node"
            )
        place = torch.device("cuda", local_rank)
        torch.cuda.set_device(place)
    else:
        share_threads(int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    if not dist.is_initialized():
        # Two backends in one group: small values about the run itself stay on the CPU, where
        # reading them does not wait for the device. The others wait while rank 0 evaluates,
        # hence the long timeout.
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=meeting_place(), rank=rank, world_size=world,
            timeout=timedelta(hours=4),
        )  # fmt: skip
        atexit.register(cleanup)
    return Distributed(place, rank, world)


def cleanup() -> None:
    """Leave the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
        # Gloo's threads outlive the group when DistributedDataParallel has used it, and letting go
        # of the last tensor takes the interpreter's lock: a thread that asks for it while the
        # interpreter shuts down ends the process with "terminate called". Let them have it first.
        time.sleep(0.2)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Every rank's loss depends on our rows, so our gradient is the sum over the ranks.
        # DistributedDataParallel then takes the mean over ranks: that of the mean loss.
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.rows
        return total[first : first + ctx.rows]


def gather(x: Tensor) -> Tensor:
    """The rows of all ranks in rank order, differentiable; x itself on a single process.

    x: (b, ...) this rank's rows, as many on each rank
    returns: (B, ...) the global batch's rows
    """
    if not dist.is_initialized():
        return x
    return _Gather.apply(x)


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of a tensor over the ranks; not differentiable.

    x: (...) of the same shape on each rank
    returns: (...)
    """
    if not dist.is_initialized():
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def agree(stop: bool, seconds: float) -> tuple[bool, float]:
    """Whether any rank wants to stop, and rank 0's clock: all ranks must take the same turn."""
    if not dist.is_initialized():
        return stop, seconds
    mine = seconds if dist.get_rank() == 0 else 0.0
    values = torch.tensor([float(stop), mine], dtype=torch.float64)
    dist.all_reduce(values)
    return bool(values[0] > 0), float(values[1])


def barrier() -> None:
    """Wait for all ranks."""
    agree(False, 0.0)


def from_main(value: Any) -> Any:
    """Rank 0's value of a small Python object."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]
