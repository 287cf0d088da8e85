"""The originals' checkpoints, tokenizer and preprocessing, into code that one can read.

Each loader takes a path or a state dict and gives one of our models back, which computes what the
original computes; `minimodal.load` finds out by itself which loader a checkpoint needs.
"""

from minimodal.data.preprocessing import clip_preprocess
from minimodal.pretrained.clip_tokenizer import load_clip_tokenizer
from minimodal.pretrained.huggingface_clip import load_huggingface_clip
from minimodal.pretrained.openai_clip import load_open_clip, load_openai_clip
from minimodal.pretrained.taming import load_taming_vqgan
from minimodal.pretrained.taming_transformer import load_taming_transformer

__all__ = [
    "clip_preprocess",
    "load_clip_tokenizer",
    "load_huggingface_clip",
    "load_open_clip",
    "load_openai_clip",
    "load_taming_transformer",
    "load_taming_vqgan",
]
