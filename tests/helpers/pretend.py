"""A pretend accelerator: what would go wrong on CUDA goes wrong here, on a machine without a GPU.

Its tensors hold real numbers, in memory of the CPU, but say `device(type="pretend")`. Within
`Pretend()` an operation that mixes devices raises, as CUDA would, and within `no_waiting()` so does
everything for which the host would have to wait for the device: `.item()`, `.cpu()`, a mask as an
index, a copy to the device that is not `non_blocking`. Autocast casts what CUDA's does. Forward and
backward passes, optimisers, drawing and saving all work, and give what the CPU gives.

PyTorch keeps a place for such devices (PrivateUse1); a process that has imported this file
knows the device from then on, its tensors only within `Pretend`.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from minimodal.training.distributed import Distributed

try:
    from torch.utils.backend_registration import (
        _DummyBackendModule,
        _setup_privateuseone_for_python_backend,
    )
except ImportError:  # an older torch
    pytest.skip("this torch has no devices written in Python", allow_module_level=True)

aten = torch.ops.aten

# The size of what they give, or a number that the host reads, depends on values on the device.
WAITS = {
    aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.bincount,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.multinomial, aten.histc,
    aten._linalg_eigh, aten._linalg_svd, aten._linalg_check_errors,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_}
JOINS = {aten.cat, aten.stack}  # take no number from the host among their tensors
# What CUDA's autocast computes in 16 bits, and what it computes in 32 bits.
LOWER = ("conv1d", "conv2d", "conv_transpose2d.input", "linear", "matmul", "mm", "bmm", "addmm",
         "baddbmm", "mv", "scaled_dot_product_attention", "prelu")  # fmt: skip
HIGHER = ("layer_norm", "group_norm", "softmax.int", "log_softmax.int", "exp", "log", "log1p",
          "rsqrt", "reciprocal", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "cumsum",
          "cumprod", "cosine_similarity", "sum", "sum.dim_IntList", "softplus", "norm.Scalar",
          "norm.ScalarOpt_dim", "pow.Tensor_Scalar")  # fmt: skip

# What torch.use_deterministic_algorithms refuses on CUDA, by its documentation (PyTorch 2.13).
REFUSED = {
    "adaptive_avg_pool2d_backward", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward",
    "avg_pool3d_backward", "fractional_max_pool2d_backward", "max_pool3d_with_indices_backward",
    "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward",
    "_upsample_bicubic2d_aa_backward", "reflection_pad1d_backward", "reflection_pad2d_backward",
    "replication_pad1d_backward", "replication_pad2d_backward", "nll_loss2d_forward",
    "_ctc_loss_backward", "_embedding_bag_dense_backward", "put_", "histc", "kthvalue", "median",
    "nanmedian", "grid_sampler_2d_backward", "cumsum", "bincount", "resize_", "_scatter_reduce_two",
    "scatter_reduce", "max_unpool2d",
}  # fmt: skip


class MixedDevices(Exception):
    """CUDA would have refused these tensors."""


class Waiting(Exception):
    """The host would have waited for the device."""


class PretendTensor(torch.Tensor):
    """A tensor on the pretend device; its numbers are in `inner`."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "PretendTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=torch.device("pretend", 0),
        )  # fmt: skip

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"pretend({self.inner})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise MixedDevices(f"{function} of a pretend tensor outside of the pretence")


REAL_GENERATOR = torch.Generator
THERE: set[int] = set()  # addresses of generators on the device


class PretendGenerator(REAL_GENERATOR):
    """torch.Generator, also for the pretend device; there it draws what it would on the CPU."""

    def __new__(cls, device: Any = "cpu") -> "PretendGenerator":
        self = super().__new__(cls, "cpu")
        self.place = torch.device(device)
        # Operations get another Python object for the same generator: known by its address.
        (THERE.add if self.place.type == "pretend" else THERE.discard)(self._cdata)
        return self

    @property
    def device(self) -> torch.device:
        return self.place


class Module(_DummyBackendModule):
    """What torch.autocast asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def cast(function: Any, wanted: torch.dtype | None, *args: Any, **kwargs: Any) -> Any:
    """Call with the floats in `wanted`, or in the dtype of the autocast that is on."""
    dtype = wanted or torch.get_autocast_dtype("pretend")
    floats = (torch.float32, torch.bfloat16, torch.float16)
    with torch._C._ExcludeDispatchKeyGuard(
        torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    ):
        args, kwargs = tree_map_only(
            Tensor, lambda x: x.to(dtype) if x.dtype in floats else x, (args, kwargs)
        )
        return function(*args, **kwargs)


def register() -> list[torch.library.Library]:
    """Tell PyTorch of the device, and of the casts of its autocast."""
    _setup_privateuseone_for_python_backend("pretend", Module())
    everything = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel)
    casts = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for names, dtype in ((LOWER, None), (HIGHER, torch.float32)):
        for name in names:
            packet, _, overload = name.partition(".")
            function = getattr(getattr(aten, packet), overload or "default")
            casts.impl(name, partial(cast, function, dtype))
    return [everything, casts]


# Once, while tests are collected: autograd counts the devices when it first runs backward. What is
# returned is kept, or the casts would be forgotten.
REGISTERED = register()


class Pretend(TorchDispatchMode):
    """The device: runs each operation on what the tensors hold, and looks at where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.strict, self.waits = False, 0
        self.refused: set[str] = set()  # what would have been, under --deterministic

    def __enter__(self) -> "Pretend":
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(torch, "Generator", PretendGenerator)
        self.before = (
            torch._C._only_lift_cpu_tensors(),
            torch.__future__.get_swap_module_params_on_conversion(),
        )
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) as a visible copy
        torch.__future__.set_swap_module_params_on_conversion(True)  # weights stay who they are
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self.before[0])
        torch.__future__.set_swap_module_params_on_conversion(self.before[1])
        self.patch.undo()

    def wait(self, what: object) -> None:
        """Note that the host waits."""
        self.waits += 1
        if self.strict:
            raise Waiting(f"{what} waits for the device")

    def check(self, function: Any, args: tuple, kwargs: dict, *, on: bool) -> None:
        """Refuse tensors of different devices; tell where the host waits.

        on: the result is on the device
        """
        packet, tensors = function.overloadpacket, tree_leaves((args, kwargs))
        tensors = [x for x in tensors if isinstance(x, Tensor)]
        there = [isinstance(x, PretendTensor) for x in tensors]
        if packet in (aten._to_copy, aten.copy_):
            source = there[0] if packet is aten._to_copy else there[1]
            non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            # A copy from the device is of no use before it is complete.
            if source != on and not (on and non_blocking):
                self.wait(f"a copy {'to' if on else 'from'} the device")
            return
        strangers = [x for x, t in zip(tensors, there, strict=True) if not t]
        if packet not in JOINS:
            strangers = [x for x in strangers if x.dim() > 0]
        if packet in INDEXING and isinstance(args[0], PretendTensor):
            numbers = [x for x in args[1] if x is not None and not isinstance(x, PretendTensor)]
            strangers = [x for x in strangers if not any(x is n for n in numbers)]
            if numbers:  # which CUDA takes, and copies
                self.wait(f"{function} with numbers from the CPU")
        if any(there) and strangers:
            raise MixedDevices(
                f"{function}: {len(strangers)} of {len(tensors)} tensors are on the CPU, the first "
                f"of shape {tuple(strangers[0].shape)}"
            )
        generator = kwargs.get("generator")
        if generator is not None and (generator._cdata in THERE) != on:
            raise MixedDevices(f"{function}: the generator is not where the numbers are drawn")
        masks = packet in INDEXING and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        repeats = function is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        if any(there) and (packet in WAITS or masks or repeats):
            self.wait(function)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        some = any(isinstance(x, PretendTensor) for x in tree_leaves((args, kwargs)))
        device = kwargs.get("device")
        on = some if device is None else torch.device(device).type == "pretend"
        if packet_writes(function):  # into its first argument, wherever the others are
            on = isinstance(args[0], PretendTensor)
        self.check(function, args, kwargs, on=on)
        floats = any(isinstance(x, PretendTensor) and x.is_floating_point() for x in args)
        if floats and (name := function.overloadpacket.__name__) in REFUSED:
            self.refused.add(name)
        if some and function is aten._fused_sdp_choice.default:
            return 0  # the plain equation, which every device has
        inner = {**kwargs, "device": torch.device("cpu")} if device is not None else kwargs
        a, k = tree_map_only(PretendTensor, lambda x: x.inner, (args, inner))
        out = function(*a, **k)
        if function.overloadpacket is aten._to_copy and on and not some:
            out = out.clone()  # memory of its own
        if not on or not isinstance(out, (Tensor, tuple, list)):
            return out
        out = tree_map_only(Tensor, PretendTensor, out)
        return return_and_correct_aliasing(function, args, kwargs, out) if some else out


def packet_writes(function: Any) -> bool:
    """Whether an operation changes its first argument."""
    first = function._schema.arguments[:1]
    return bool(first and first[0].alias_info is not None and first[0].alias_info.is_write)


@contextlib.contextmanager
def no_waiting(pretend: Pretend) -> Iterator[None]:
    """Let nothing in the block wait for the device."""
    before, pretend.strict = pretend.strict, True
    try:
        yield
    finally:
        pretend.strict = before


def here() -> Distributed:
    """This process, training on the pretend device."""
    return Distributed(torch.device("pretend", 0))
