"""How each system is trained, side by side: batches, losses, what follows a step, scores.

A task is what the engine needs to know of a system (see `contract.Task`). Pictures travel as
uint8 (B, 3, H, W) and become float on the device. Everything random is drawn in `batch`, for the
whole global batch, from (seed, step); a process then takes its own rows. So any number of
processes, and a resumed run, see what a single uninterrupted process would.

`vqgan.py`, `vqgan_prior.py`, `clip.py` and `dalle.py` have one task each; read the system of the
same name before.
"""

from minimodal.training.tasks.clip import CLIPTask, CLIPTraining
from minimodal.training.tasks.dalle import DALLETask, DALLETraining
from minimodal.training.tasks.vqgan import VQGANTask, VQGANTraining
from minimodal.training.tasks.vqgan_prior import VQGANPriorTask, VQGANPriorTraining

__all__ = [
    "CLIPTask",
    "CLIPTraining",
    "DALLETask",
    "DALLETraining",
    "VQGANPriorTask",
    "VQGANPriorTraining",
    "VQGANTask",
    "VQGANTraining",
]
