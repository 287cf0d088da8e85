"""What the engine and a system agree on: a `Recipe`, a `Task` with its phases, a `System`.

The engine knows nothing of pictures or text; a task knows nothing of devices, processes, files
or precision. A task gives nets, batches and losses; `tasks/` has one for each system. Sizes: a
batch is a dict of tensors whose first dimension is this process's share of a micro-batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from minimodal.errors import UserError, check_choice, check_range


@dataclass(frozen=True)
class TrainConfig:
    """How a system is trained; every field is a flag of train.py."""

    steps: int = 1000  # of the whole run
    minutes: float = 0.0  # > 0: the run and its schedule last this long, whatever the steps
    batch_size: int = 32  # of the whole step: all micro-batches of all processes
    accumulate: int = 1  # micro-batches per step: less memory, the same step
    auto_batch: bool = False  # more of them where the memory does not hold one
    optimizer: str = "adamw"  # adamw, or muon for inner matrices (`optim.inner_matrices`)
    lr: float = 1e-3  # learning rate, at its highest
    min_lr_ratio: float = 0.05  # the cosine ends at this share of lr
    warmup: int = 50  # steps
    beta1: float = 0.9  # of AdamW: memory of the gradient
    beta2: float = 0.95  # of AdamW: memory of its square
    weight_decay: float = 0.01  # of linear maps and kernels
    clip_norm: float = 1.0  # longer gradients are shortened to this; 0 = no clipping
    skip_spikes: float = 0.0  # no step where a gradient is X times the median of 101; 0 = all
    ema_decay: float = 0.0  # 0 = no averaged weights
    precision: str = "auto"  # auto, float32 or bfloat16
    compile: bool = False  # torch.compile
    fsdp: bool = False  # each process keeps its share of weights, gradients and optimiser state
    deterministic: bool = False  # the same bits each time on CUDA, too, where an operator can
    seed: int = 0  # of weights and batches
    limit: int | None = None  # use at most N pictures
    log_every: int = 50  # steps
    evaluate_every: int = 0  # steps; 0 = at the end only
    sample_every: int = 0  # steps; 0 = at the end only
    checkpoint_every: int = 500  # steps; 0 = at the end only
    checkpoint_minutes: float = 0.0  # saves a state every so many minutes, too
    keep: int = 2  # newest states; a damaged one is passed over for the one before

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulate", "log_every", "keep")
        check_range(self, 1, inf, *counts, *(() if self.limit is None else ("limit",)))
        check_range(
            self, 0, inf, "minutes", "warmup", "weight_decay", "clip_norm", "min_lr_ratio",
            "evaluate_every", "sample_every", "checkpoint_every", "checkpoint_minutes",
        )  # fmt: skip
        check_range(self, 0, 2**32 - 1, "seed")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: expected from 0 to below 1")
        if not 0 < self.lr < inf:
            raise UserError(f"lr {self.lr}: expected a number above 0")
        if not (self.skip_spikes == 0 or self.skip_spikes > 1):
            raise UserError(f"skip_spikes {self.skip_spikes}: expected more than 1, or 0 for none")
        check_choice("optimizer", self.optimizer, ("adamw", "muon"))
        check_choice("precision", self.precision, ("auto", "float32", "bfloat16"))


@dataclass(frozen=True)
class Phase:
    """The nets that one optimiser moves; a GAN has two phases, others have one."""

    name: str
    nets: tuple[nn.Module, ...]
    lr_scale: float = 1.0
    betas: tuple[float, float] | None = None  # None: those of the TrainConfig


class Recipe(NamedTuple):
    """All settings of a training, as three frozen dataclasses; fields that only the data can tell,
    such as a vocabulary, are filled in by whoever builds the task."""

    model: Any  # the system's own configuration
    training: Any  # what its training has beyond the engine's settings
    engine: TrainConfig


class Task(ABC):
    """What a system says about its training; a subclass says what differs from the defaults.

    Randomness is made in `batch`, from (seed, step, row), so that N processes equal one. The engine
    sets `gather`, which joins the rows of all processes, `when`, the step of the plan that stands
    where this one does (`pace.py`), and `whole`, which calls what uses weights outside of `loss`:
    elsewhere a process may have its share of them only. Frozen helpers are the task's own business:
    neither `model` nor `extra` holds them.
    """

    name: str
    train: Any = None  # the data sources, where it has any
    val: Any = None
    made: Any = None  # what a frozen helper has made of them, for a task that trains on that

    def __init__(self, recipe: Recipe, model: nn.Module) -> None:
        """model: what is saved; the EMA covers its weights and copies its buffers"""
        self.training, self.model = recipe.training, model
        self.batch_size, self.seed = recipe.engine.batch_size, recipe.engine.seed
        self.phases = (Phase(self.name, (model,)),)
        self.extra: dict[str, nn.Module] = {}  # other nets that training changes: a discriminator
        self.events: dict[str, int] = {}  # words for them, and from which step of the plan on
        self.moves_weights = ""  # what changes weights beside the optimisers, as --fsdp forbids
        self.gather: Callable[[Tensor], Tensor] = lambda x: x
        self.when: Callable[[int], float] = float
        self.whole: Callable[[Callable[[], Any]], Any] = lambda call: call()

    @abstractmethod
    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Rows of the global batch of a step, on the CPU. Runs in a thread, ahead of time."""

    def before_step(self, step: int, batches: list[dict]) -> None:
        """Leave in the micro-batches of a step what their losses need to know of all of them.

        Called without gradients, in the step's precision, before the first loss. A task that turns
        them on finds those of the first phase.
        """
        return None

    @abstractmethod
    def loss(self, batch: dict, phase: str, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of the rows and detached metrics.

        It changes no weight and no buffer. Phases see the same `batch` dict one after another and
        may leave detached tensors there for the next. A loss without gradient skips the phase.
        """

    def after_step(self, step: int, batches: list[dict]) -> dict[str, Tensor | float]:
        """What follows the optimisers, without gradients: codebooks, clamps; metrics.

        It gets the step's micro-batches with what the phases left in them.
        """
        return {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Scores of a model (the averaged one where EMA is on, in eval mode), on rank 0 only."""
        return {}

    def sample(self, model: nn.Module, step: int) -> Tensor | None:
        """A picture of what the model does, uint8 (3, H, W), on rank 0 only."""
        return None

    def inputs(self) -> dict[str, Any]:
        """What a training depends on beside its settings: hashes of its data and helpers, so that
        resuming notices others."""
        if self.made is not None:
            return self.made.inputs()
        return {} if self.train is None else {"data": self.train.fingerprint()}

    def config(self) -> dict[str, Any]:
        """The model's configuration and what else shaped the training, for config.json."""
        training = {**asdict(self.training), **self.inputs()}
        return {**asdict(self.model.config), "training": training}

    def save_files(self, out: Path) -> None:
        """Write files that the model needs beside its weights, such as a tokenizer."""
        return None


class System(NamedTuple):
    """A system as the commands see it; `recipes.SYSTEMS` has one record of each."""

    about: str  # its line in --help
    recipes: dict[str, Callable[[], Recipe]]  # by the kind of data; "": of any other
    # Of a recipe, a data SPEC, the runs that the system needs and a device makes the task.
    build: Callable[[Recipe, str, dict[str, Path], str], Task]
    # Of the model's part of a config.json and the run's folder makes the model, without weights.
    restore: Callable[[dict[str, Any], Path], nn.Module]
    needs: tuple[str, ...] = ()  # systems of which it is given a trained run
    decided: tuple[str, ...] = ()  # fields of its model that the data or a run decides: no flags
    events: tuple[str, ...] = ()  # fields of its training that are steps, moved with their number
