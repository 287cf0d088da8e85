"""Small tasks that the training tests share, and a script that trains one in its own process.

`Line` fits an MLP to a fixed function; `Gan` has two phases and a buffer that follows the data, as
a codebook does. `python toys.py KIND OUT FIELD=VALUE ... [--resume]` runs one.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from minimodal.training import engine, probe
from minimodal.training.contract import Phase, Recipe, Task, TrainConfig

probe.PEAK_SECONDS = 0.01  # the tests do not look at the peak


def mlp(sizes: tuple[int, ...], seed: int) -> nn.Sequential:
    """Linear layers with a norm and a GELU between, drawn from a seed of their own."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in zip(sizes, sizes[1:], strict=False):
        layer = nn.Linear(n, m)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(m, n, generator=generator) * n**-0.5)
            layer.bias.zero_()
        layers += [layer, nn.LayerNorm(m), nn.GELU()]
    return nn.Sequential(*layers[:-2])


class Line(Task):
    """Regression by an MLP: one phase."""

    name = "line"

    def __init__(
        self, config: TrainConfig, *, width: int = 16, delay: float = 0.0, hang: int = -1
    ) -> None:
        super().__init__(Recipe(None, None, config), mlp((4, width, width, 1), config.seed))
        self.width, self.delay, self.hang = width, delay, hang

    def batch(self, step, rows):
        if step == self.hang:  # whoever started this will end it
            time.sleep(3600)
        rng = np.random.default_rng((self.seed, step))
        x = rng.standard_normal((self.batch_size, 4), dtype=np.float32)
        y = np.sin(x.sum(1, keepdims=True))
        return {"x": torch.from_numpy(x[rows]), "y": torch.from_numpy(y[rows])}

    def loss(self, batch, phase, step):
        time.sleep(self.delay)
        error = (self.model(batch["x"]) - batch["y"]).float().square().mean()
        return error, {"error": error.detach().sqrt()}

    def after_step(self, step, batches):
        return {"weight": self.model[0].weight.detach().abs().mean()}

    def evaluate(self, model):
        batch = self.batch(10**6, slice(0, None))
        return {"val_error": float((model(batch["x"]) - batch["y"]).square().mean())}

    def sample(self, model, step):
        return torch.full((3, 4, 4), step % 256, dtype=torch.uint8)

    def config(self):
        return {"width": self.width, "shape": (4, self.width)}

    def save_files(self, out: Path) -> None:
        (out / "words.txt").write_text("line\n")


class Gan(Line):
    """A generator and a discriminator that starts at step 2; a buffer follows the batches."""

    name = "gan"

    def __init__(
        self, config: TrainConfig, *, width: int = 16, delay: float = 0.0, hang: int = -1
    ) -> None:
        super().__init__(config, width=width, delay=delay, hang=hang)
        self.model.register_buffer("mean", torch.zeros(4))
        self.judge = mlp((5, 16, 1), config.seed + 1)
        self.extra = {"judge": self.judge}
        self.phases = (
            Phase("generator", (self.model,)),
            Phase("discriminator", (self.judge,), lr_scale=0.5, betas=(0.5, 0.9)),
        )

    def score(self, x, y):
        return self.judge(torch.cat([x, y.to(x.dtype)], 1)).float()

    def loss(self, batch, phase, step):
        x, y = batch["x"], batch["y"]
        if phase == "generator":
            made = self.model(x)
            batch["made"] = made.detach()
            error = (made - y).float().square().mean()
            loss = error - 0.1 * self.score(x, made).mean() if step >= 2 else error
            return loss, {"error": error.detach()}
        if step < 2:
            return torch.zeros(()), {}
        real, made = self.score(x, y), self.score(x, batch["made"])
        loss = (1 - real).relu().mean() + (1 + made).relu().mean()
        return loss, {"margin": (real - made).mean().detach()}

    def after_step(self, step, batches):
        x = self.gather(torch.cat([batch["x"] for batch in batches]))
        self.model.mean.lerp_(x.mean(0), 0.1)
        return {"mean": float(self.model.mean.sum())}


TASKS = {"line": Line, "gan": Gan}


def train(
    kind: str, out, *, resume: bool = False, delay: float = 0.0, width: int = 16, hang: int = -1,
    **fields,
):  # fmt: skip
    """Train a toy on the CPU in float32; gives the task and the summary."""
    settings = {"steps": 8, "batch_size": 8, "log_every": 2, "checkpoint_every": 3, "warmup": 3}
    config = TrainConfig(**{**settings, "precision": "float32", **fields})
    task = TASKS[kind](config, width=width, delay=delay, hang=hang)
    summary = engine.run(task, config, Path(out), data_spec="toy", resume=resume, device="cpu")
    return task, summary


if __name__ == "__main__":
    words = [word for word in sys.argv[3:] if word != "--resume"]
    values = {name: float(v) if "." in v else int(v) for name, v in (w.split("=") for w in words)}
    train(sys.argv[1], sys.argv[2], resume="--resume" in sys.argv, **values)
