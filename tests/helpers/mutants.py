"""A claim of the bug museum: ours keeps it, the mutant breaks it."""

from collections.abc import Callable


def exposes(claim: Callable[..., bool], *, ours, mutant) -> None:
    assert claim(ours), "ours has the bug"
    assert not claim(mutant), "the claim does not see the bug"
