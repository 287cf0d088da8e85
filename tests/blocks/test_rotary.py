"""Rotary positions: angles of rows and columns, and scores that depend on distances alone."""

import pytest
import torch
from helpers.tiny import noise

from minimodal.blocks.rotary import rotary_angles, rotate


def test_rotary_angles_are_of_rows_and_of_columns():
    """Ahead of a picture of 3 x 3 codes stand 4 tokens on a diagonal; then rows and columns."""
    angles = rotary_angles(torch.arange(13), ahead=4, grid=3, pairs=2)
    rows = [0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6]
    columns = [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 4, 5, 6]
    expected = [[r, r / 10, c, c / 10] for r, c in zip(rows, columns, strict=True)]
    torch.testing.assert_close(angles, torch.tensor(expected))


@pytest.mark.parametrize("moved", [(1, 0), (0, 1), (2, 3)])
def test_rotary_scores_depend_on_the_distance_in_rows_and_columns_alone(moved):
    down, right = moved
    q, k = noise(1, 1, 1, 8).double(), noise(1, 1, 1, 8, seed=1).double()

    def score(row: int, column: int, other_row: int, other_column: int) -> torch.Tensor:
        places = torch.tensor([5 * row + column, 5 * other_row + other_column])
        a, b = rotary_angles(places, ahead=0, grid=5, pairs=2).double().split(1)
        return (rotate(q, a) * rotate(k, b)).sum()

    same = score(1, 1, 0, 0), score(1 + down, 1 + right, down, right)
    torch.testing.assert_close(*same, rtol=0, atol=1e-6)
    assert not torch.isclose(same[0], score(1 + down, 1 + right, 0, 0), atol=1e-3)
