"""CIFAR archives of a few pictures."""

import pickle

import numpy as np

NAMES_10 = "airplane automobile bird cat deer dog frog horse ship truck".split()


def batch(rows: int, seed: int, *, key: str = "labels", classes: int = 10) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "batch_label": "testing batch 1 of 1",
        key: rng.integers(0, classes, rows).tolist(),
        "data": rng.integers(0, 256, (rows, 3072), np.uint8),
        "filenames": [f"{i}.png" for i in range(rows)],
    }


def write(path, content, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
