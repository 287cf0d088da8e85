"""How long a run is: how many steps it takes, and how far each of them is on the way.

A run of so many steps is simple: step s of N is at s / N. One that has so many minutes finds out
while it goes on how many steps they hold, and the learning rate has to know where it stands. So
progress is a path of straight legs, each from a step and a progress to the step where it reaches 1.
A new leg begins where the end would be missed by more than a little, at the progress reached. The
path is data: it is kept with the training state, and with it a run has the same learning rates
again, whatever the clock says.

What happens in the course of a run, such as the start of a GAN, is given in steps of a plan. A run
on the clock takes more or fewer of them; `when` says which step of the plan it has come to.

Seconds and steps in, progress between 0 and 1 out. Read nothing before this file.
"""

from collections import deque
from typing import NamedTuple

TOLERANCE = 0.05  # of the time: an end that is missed by less is kept
GUESS = 1000  # steps
WINDOW = 0.05  # of the time: over how much of it a step's seconds are averaged


class Leg(NamedTuple):
    """A straight piece of the path."""

    step: int  # where it begins
    progress: float  # there
    end: int  # the step at which it would reach 1


class Pace:
    """The path of a run, and in a run limited by time what keeps its end where it belongs."""

    def __init__(self, steps: int, minutes: float = 0.0, *, most: int | None = None) -> None:
        """steps: of the run, or the first guess where `minutes` limit it; most: they are planned,
        and there are no more than so many, whatever the minutes leave room for."""
        self.limit, self.most, self.planned = 60 * minutes, most, steps
        # The step of the plan that has been reached for good; None while steps are what counts.
        self.reached: float | None = 0.0 if minutes else None
        # From the second step on the clock knows better than a guess; one that is too short would
        # have used up the schedule by then.
        guess = max(steps, GUESS) if minutes and most is None else min(steps, most or steps)
        self.legs = [Leg(0, 0.0, guess)]
        self.marks: deque[tuple[int, float]] = deque()  # steps and the seconds of their ends

    @property
    def end(self) -> int:
        """The step at which the run ends, as far as it is known."""
        return self.legs[-1].end

    def progress(self, step: int) -> float:
        """How much of the run is done after so many steps, 0 to 1."""
        leg = next(leg for leg in reversed(self.legs) if leg.step <= step)
        if step >= leg.end:
            return 1.0
        return leg.progress + (1 - leg.progress) * (step - leg.step) / (leg.end - leg.step)

    def when(self, step: int) -> float:
        """The step of the plan that stands where this one does: itself, unless the run goes by the
        clock. What has begun does not end when more minutes are given."""
        if self.reached is None:
            return step
        return max(self.reached, self.progress(step) * self.planned)

    def revise(self, step: int, seconds: float) -> None:
        """After a step: begin a new leg if this one would end much too early or too late.

        The first step, which pays for what is done once, tells nothing of the others.

        seconds: of the whole run so far
        """
        if not self.limit:
            return
        self.marks.append((step, seconds))
        while len(self.marks) > 2 and seconds - self.marks[1][1] >= WINDOW * self.limit:
            self.marks.popleft()
        first, began = self.marks[0]
        # A guess is corrected at once, a plan only by what has lasted for a while.
        if step == first or (self.most is not None and seconds - began < WINDOW * self.limit):
            return
        each = max(1e-9, (seconds - began) / (step - first))
        wanted = step + max(0, round((self.limit - seconds) / each))
        wanted = wanted if self.most is None else min(wanted, self.most)
        if abs(wanted - self.end) * each > TOLERANCE * self.limit:
            self.turn(step, self.progress(step), wanted)

    def turn(self, step: int, progress: float, end: int) -> None:
        """Go on from here to another end."""
        self.legs.append(Leg(step, progress, max(end, step)))

    def state(self) -> dict:
        """What a checkpoint keeps."""
        legs = [list(leg) for leg in self.legs]
        return {"limit": self.limit, "legs": legs, "planned": self.planned, "reached": self.reached}

    def restore(self, state: dict, *, step: int, seconds: float) -> None:
        """Go on on a kept path, or on a new one if the run is to last longer or shorter."""
        new, self.legs = self.legs, [Leg(*leg) for leg in state["legs"]]
        self.planned, self.reached = state["planned"], state["reached"]
        if self.limit or self.reached is not None:
            self.reached = self.when(step)
        if self.limit and state["limit"] == self.limit:
            return
        self.legs = new
        if self.limit:
            done = min(1.0, seconds / self.limit)
            self.turn(step, done, step if done == 1 else round(step / max(done, 1e-9)))
