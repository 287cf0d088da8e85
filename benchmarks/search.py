"""Exact search among a million embeddings that lie in a file, against one plain product.

`evaluation/metrics.top_k` goes through the rows block by block and keeps the best k; what it adds
to the product itself (sorting keys, merging, small blocks) should be small beside the reading of
2 GB. The script writes the rows to a temporary folder, maps them as the index does, and times
both in turn from a warm page cache: medians, their ratio, and how much memory of its own (not of
the file) the process gained.

    python benchmarks/search.py [--rows 1000000] [--folder /tmp]
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from minimodal.evaluation.metrics import top_k
from minimodal.uses.search import FILE

WIDTH, K, CHUNK = 512, 10, 20_000


def write_rows(path: Path, rows: int) -> None:
    """A safetensors file of random unit rows, a chunk at a time."""
    size = 4 * rows * WIDTH
    entry = {"dtype": "F32", "shape": [rows, WIDTH], "data_offsets": [0, size]}
    head = json.dumps({"embeddings": entry}).encode()
    head += b" " * (-len(head) % 8)  # the format aligns the data to 8 bytes
    draw = torch.Generator().manual_seed(0)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for first in range(0, rows, CHUNK):
            part = torch.randn(min(CHUNK, rows - first), WIDTH, generator=draw)
            file.write((part / part.norm(dim=1, keepdim=True)).numpy().data)


def anonymous() -> float:
    """MB of memory that are the process's own and not a file's (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1e3


class Peak:
    """The largest `anonymous()` between start and stop, looked up every millisecond."""

    def __enter__(self) -> "Peak":
        self.before = self.most = anonymous()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.001):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def plain(embeddings: Tensor, query: Tensor) -> Tensor:
    """All scores at once, not sorted: the least that any exact search has to do."""
    return embeddings @ query[0]


def main() -> None:
    """Write, time, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="(default: 1000000)")
    parser.add_argument("--repeats", type=int, default=15, help="(default: 15)")
    parser.add_argument("--folder", type=Path, help="for the file (default: the system's)")
    given = parser.parse_args()
    query = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1))
    query = query / query.norm()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / FILE
        write_rows(path, given.rows)
        with safe_open(path, framework="pt") as file:
            embeddings = file.get_tensor("embeddings")
        top_k(embeddings[:CHUNK], query, K)  # threads and buffers exist from here on
        with Peak() as memory:
            began = time.perf_counter()
            hits = top_k(embeddings, query, K)
            first = time.perf_counter() - began
        times: dict[str, list[float]] = {"top_k": [], "plain": []}
        for _ in range(given.repeats):
            for name, call in (("top_k", lambda: top_k(embeddings, query, K)),
                               ("plain", lambda: plain(embeddings, query))):  # fmt: skip
                began = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - began)
        agree = torch.equal(hits.indices[0], plain(embeddings, query).topk(K).indices)
    a, b = (statistics.median(times[name]) for name in ("top_k", "plain"))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{given.rows} x {WIDTH} float32, k = {K}: top_k {a * 1e3:.0f} ms (the first "
          f"{first * 1e3:.0f} ms), plain product {b * 1e3:.0f} ms, ratio {a / b:.2f}")  # fmt: skip
    print(f"own memory of the first search: {memory.most - memory.before:+.1f} MB")
    print(f"same rows as the plain product's: {'yes' if agree else 'no'}")


if __name__ == "__main__":
    main()
