"""A code's number and those of its factors, ((a K_2) + b) K_3 + c …: integers (…) in and
out. Read nothing before this file.
"""

import torch
from torch import Tensor


class Factored:
    """What has codes of several factors, whose numbers are combined into one."""

    sizes: tuple[int, ...]  # of the factors

    def combined(self, parts: list[Tensor]) -> Tensor:
        """A code's number from those of its factors.

        parts: (…) int64 for each factor
        returns: (…) int64
        """
        joint = torch.zeros_like(parts[0])
        for size, part in zip(self.sizes, parts, strict=True):
            joint = joint * size + part
        return joint

    def factors(self, indices: Tensor) -> list[Tensor]:
        """The inverse: a code's number as those of its factors.

        indices: (…) int64
        returns: (…) int64 for each factor
        """
        parts = []
        for size in reversed(self.sizes):
            parts.append(indices % size)
            indices = indices // size
        return parts[::-1]
