import pytest

from minimodal.training.pace import TOLERANCE, Pace


def run_clock(pace: Pace, seconds_of, *, first: int = 0, seconds: float = 0.0):
    """Steps until the end, each as long as `seconds_of` says; the last step and its time."""
    step = first
    while pace.progress(step) < 1:
        step += 1
        seconds += seconds_of(step, seconds)
        pace.revise(step, seconds)
    return step, seconds


def test_without_minutes_progress_is_the_share_of_the_steps():
    pace = Pace(200)
    assert [pace.progress(step) for step in (0, 50, 200)] == [0, 0.25, 1]
    assert run_clock(pace, lambda step, seconds: 100.0)[0] == 200
    assert len(pace.legs) == 1


@pytest.mark.parametrize("each, guess", [(0.05, 10), (0.05, 100_000), (7.0, 5000)])
def test_a_run_of_minutes_ends_in_time_however_wrong_the_first_guess(each, guess):
    pace = Pace(guess, 1.0)
    _, seconds = run_clock(pace, lambda step, seconds: each if step > 1 else 3 * each)
    assert abs(seconds - 60) <= max(TOLERANCE * 60 + 0.1, each)


def test_half_of_the_speed_from_the_middle_on_still_ends_in_time():
    pace = Pace(1200, 1.0)
    steps, seconds = run_clock(pace, lambda step, seconds: 0.05 if seconds < 30 else 0.1)
    assert abs(seconds - 60) <= TOLERANCE * 60 + 0.2
    assert steps == pytest.approx(900, rel=0.05)


def test_progress_never_jumps_or_falls_where_the_path_turns():
    pace = Pace(300, 1.0, most=5000)
    run_clock(pace, lambda step, seconds: 0.02 if seconds < 20 else 0.07)
    assert len(pace.legs) > 2
    for leg in pace.legs[1:]:
        before, here = pace.progress(leg.step - 1), pace.progress(leg.step)
        assert 0 <= here - before < 0.02


def test_a_small_miss_turns_nothing_so_that_the_plan_is_what_happens():
    pace = Pace(1000, 1.0)
    assert run_clock(pace, lambda step, seconds: 0.061)[0] == 1000
    assert len(pace.legs) == 1


def test_a_plan_is_not_turned_by_the_first_seconds_and_a_guess_is():
    plan, guess = Pace(600, 1.0, most=2000), Pace(600, 1.0)
    for step in range(1, 6):
        plan.revise(step, 0.4 * step)
        guess.revise(step, 0.4 * step)
    assert len(plan.legs) == 1 < len(guess.legs)


def test_a_run_takes_at_most_the_steps_that_it_may():
    pace = Pace(100, 1.0, most=150)
    assert run_clock(pace, lambda step, seconds: 0.1)[0] == 150


def test_a_kept_path_gives_the_same_progress_again():
    pace = Pace(300, 1.0)
    run_clock(pace, lambda step, seconds: 0.1)
    again = Pace(300, 1.0)
    again.restore(pace.state(), step=400, seconds=40.0)
    assert again.legs == pace.legs
    assert [again.progress(s) for s in range(700)] == [pace.progress(s) for s in range(700)]


def test_more_minutes_for_a_finished_run_let_it_go_on():
    pace = Pace(1000, 1.0)
    run_clock(pace, lambda step, seconds: 0.06)
    longer = Pace(1000, 2.0)
    longer.restore(pace.state(), step=1000, seconds=60.0)
    assert longer.progress(1000) == pytest.approx(0.5)
    step, seconds = run_clock(longer, lambda step, s: 0.06, first=1000, seconds=60.0)
    assert seconds == pytest.approx(120, rel=TOLERANCE)


def test_more_steps_for_a_finished_run_let_it_go_on():
    longer = Pace(400)
    longer.restore(Pace(100).state(), step=100, seconds=5.0)
    assert longer.progress(100) == 0.25


def test_in_a_run_of_steps_events_come_at_their_steps():
    pace = Pace(3000)
    assert [pace.when(step) for step in (0, 1499, 1500)] == [0, 1499, 1500]


@pytest.mark.parametrize("each", [1.2, 0.05])
def test_on_the_clock_events_come_at_their_places_of_the_run(each):
    pace = Pace(3000, 10.0)
    last, _ = run_clock(pace, lambda step, seconds: each)
    assert last == pytest.approx(600 / each, rel=TOLERANCE)
    first = next(step for step in range(last) if pace.when(step) >= 1500)
    assert first == pytest.approx(last / 2, rel=TOLERANCE)
    assert pace.when(last - 1) > 2900


def test_what_has_begun_does_not_end_when_more_minutes_are_given():
    pace = Pace(3000, 1.0)
    run_clock(pace, lambda step, seconds: 0.5)
    longer = Pace(3000, 10.0)
    longer.restore(pace.state(), step=120, seconds=60.0)
    assert longer.progress(120) == pytest.approx(0.1) and longer.when(120) == 3000


def test_a_kept_path_has_its_events_at_the_same_steps_whatever_steps_are_asked_for():
    pace = Pace(3000, 1.0)
    run_clock(pace, lambda step, seconds: 0.4)
    again = Pace(500, 1.0)
    again.restore(pace.state(), step=80, seconds=32.0)
    assert [again.when(s) for s in range(80, 160)] == [pace.when(s) for s in range(80, 160)]


def test_events_of_a_run_of_steps_go_on_from_its_place_when_it_gets_minutes():
    steps, clock = Pace(1000), Pace(3000, 10.0)
    clock.restore(steps.state(), step=400, seconds=60.0)
    assert clock.when(400) == 400 and clock.when(4000) == 1000
