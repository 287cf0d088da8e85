"""minimodal: CLIP, VQGAN and DALL·E from scratch, in files that one can read in a sitting.

`minimodal.load(path)` gives the model of a run folder, or of an original CLIP checkpoint. The
systems are `minimodal.clip`, `minimodal.vqgan` and `minimodal.dalle`; what they are built from is
in `minimodal.blocks`, and loaders for each kind of original in `minimodal.pretrained`.
"""

from minimodal.runs import load

__all__ = ["load"]
