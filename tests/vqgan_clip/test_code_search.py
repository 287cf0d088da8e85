"""Search on codes: a toy world where the best picture is known, and the moves one by one."""

from dataclasses import replace

import pytest
import torch
from helpers.shape_check import check_shapes
from helpers.tiny import generator, integers

from minimodal.errors import UserError
from minimodal.vqgan_clip.search import (
    ALONE,
    MOVES,
    Dice,
    Parents,
    SearchConfig,
    rectangle_about,
    search,
)

SIZES = (4, 3)
WANTED = integers(12, 5, 6, seed=9)
POOL = integers(12, 20, 5, 6)
CONFIG = SearchConfig(evaluations=3000, members=8, children=4, enough=30.0)


def score(codes: torch.Tensor) -> torch.Tensor:
    """How many of 30 places are right."""
    return (codes == WANTED).float().sum(dim=(1, 2))


def even(codes: torch.Tensor) -> torch.Tensor:
    """A world in which all pictures are as likely."""
    return torch.zeros(len(codes))


def run(pool: torch.Tensor = POOL, *, likely=even, config: SearchConfig = CONFIG, seed=0, **more):
    rng = generator(seed)

    def redraw(codes: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return torch.where(keep, codes, torch.randint(12, codes.shape, generator=rng))

    return search(
        pool, score=score, log_likelihood=likely, redraw=redraw, sizes=SIZES, generator=rng,
        config=config, **more,
    )  # fmt: skip


def test_it_finds_what_is_far_better_than_the_pool():
    found = run(config=replace(CONFIG, sides=(1, 2), evaluations=12_000))
    assert float(score(POOL).max()) < 8
    assert float(found.scores[0]) > 25
    assert torch.equal(score(found.codes), found.scores)


def test_a_seed_gives_the_same_search_and_global_randomness_is_left_alone():
    before = torch.get_rng_state()
    first, again, other = run(), run(), run(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.codes, again.codes)
    assert not torch.equal(first.codes, other.codes)


def test_the_best_is_never_lost_and_only_gets_better():
    seen: list[float] = []
    found = run(on_round=lambda members, values: seen.append(float(values.max())))
    assert seen == sorted(seen)
    assert float(found.scores[0]) == seen[-1]


def test_warm_it_may_go_down_and_still_gives_its_best():
    seen: list[float] = []
    config = replace(CONFIG, temperature=3.0, renew=0)
    found = run(config=config, on_round=lambda members, values: seen.append(float(values.max())))
    assert seen != sorted(seen)
    assert float(found.scores[0]) == max(seen)


def test_what_the_prior_finds_strange_is_not_taken():
    """Code 0 is right nowhere in this world, however much the score likes it."""

    def never_zero(codes: torch.Tensor) -> torch.Tensor:
        return -100.0 * (codes == 0).float().sum(dim=(1, 2))

    pool = POOL.clamp(min=1)
    found = run(pool, likely=never_zero)
    assert not (found.codes == 0).any()
    assert float(found.scores[0]) > float(score(pool).max())


def test_an_ordinary_picture_loses_nothing_for_being_less_likely_than_another():
    """The pool's first half is much likelier; the second still counts as ordinary."""
    likely = torch.cat([torch.zeros(10), torch.full((10,), -50.0)])

    def by_place(codes: torch.Tensor) -> torch.Tensor:
        if codes is POOL:
            return likely
        return torch.full((len(codes),), -50.0)

    found = run(likely=by_place, config=replace(CONFIG, ordinary=0.1, evaluations=1))
    assert float(found.scores[0]) >= float(score(POOL).max())
    strict = run(likely=by_place, config=replace(CONFIG, ordinary=0.9, evaluations=1))
    assert float(strict.scores[0]) == float(score(POOL[:10]).max())


def test_the_likelihood_is_asked_only_where_the_score_leaves_it_open():
    asked = []

    def counting(codes: torch.Tensor) -> torch.Tensor:
        asked.append(len(codes))
        return even(codes)

    found = run(likely=counting)
    assert sum(asked[1:]) < found.evaluations / 4


def test_it_ends_when_it_is_enough_or_told_to():
    assert run(config=replace(CONFIG, enough=1.0)).evaluations == 0
    assert run(on_round=lambda members, values: True).evaluations == 32
    assert run(config=replace(CONFIG, evaluations=100)).evaluations == 128


@pytest.mark.parametrize("name", MOVES)
def test_each_move_works_alone(name):
    found = run(config=replace(CONFIG, moves=(name,), evaluations=200))
    assert float(found.scores[0]) > float(score(POOL).max())
    assert (
        found.codes.shape == (8, 5, 6)
        and 0 <= int(found.codes.min()) <= int(found.codes.max()) < 12
    )


OWN, DONOR = POOL[0], POOL[1]
PARENTS = Parents(OWN, DONOR, SIZES, (2, 3))


@pytest.mark.parametrize("seed", range(5))
def test_exchange_and_transplant_touch_the_last_factor_only(seed):
    for name in ("exchange", "transplant"):
        out = ALONE[name](PARENTS, Dice(generator(seed)))
        assert torch.equal(out // 3, OWN // 3)
        changed = out != OWN
        assert torch.isin(out[changed] % 3, DONOR % 3).all()


@pytest.mark.parametrize("seed", range(5))
def test_an_exchange_is_everywhere(seed):
    out = ALONE["exchange"](PARENTS, Dice(generator(seed)))
    for value in (OWN % 3).unique():
        assert len((out % 3)[OWN % 3 == value].unique()) == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_copy_is_a_rectangle_of_the_donor(seed):
    blank = torch.full_like(OWN, 99)
    out = ALONE["copy"](PARENTS._replace(codes=blank), Dice(generator(seed)))
    rows, columns = (out != 99).any(1), (out != 99).any(0)
    assert (out[rows][:, columns] != 99).all()
    part = out[rows][:, columns]
    tall, wide = part.shape
    windows = DONOR.unfold(0, tall, 1).unfold(1, wide, 1).flatten(0, 1)
    assert (windows == part).all(dim=2).all(dim=1).any()


def test_a_shift_repeats_the_edge():
    out = {tuple(ALONE["shift"](PARENTS, Dice(generator(s))).flatten().tolist()) for s in range(80)}
    left = torch.cat([OWN[:, 1:], OWN[:, -1:]], dim=1)
    assert tuple(left.flatten().tolist()) in out and len(out) == 9


def test_rectangles_lie_where_something_is():
    codes = torch.zeros(8, 8, dtype=torch.int64)
    codes[5:7, 5:7] = 3
    hits = 0
    for seed in range(200):
        keep = rectangle_about(codes, Dice(generator(seed)), (2, 3))
        hits += bool((~keep[5:7, 5:7]).any())
        assert 4 <= int((~keep).sum()) <= 9
    assert hits > 150
    flat = rectangle_about(torch.zeros(8, 8, dtype=torch.int64), Dice(generator()), (2, 3))
    assert not flat.all()


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match="move jump: expected redraw"):
        SearchConfig(moves=("jump",))
    for wrong in ({"evaluations": 0}, {"members": 0}, {"moves": ()}, {"sides": (0, 2)}):
        with pytest.raises(UserError):
            SearchConfig(**wrong)


@pytest.mark.parametrize("name", ALONE)
def test_shapes_of_moves_are_as_documented(name):
    check_shapes(ALONE[name], dict(p=PARENTS, dice=Dice(generator())), OWN, {"h": 5, "w": 6})


def test_shapes_are_as_documented():
    arguments = dict(codes=OWN, dice=Dice(generator()), sides=(2, 3))
    check_shapes(rectangle_about, arguments, rectangle_about(**arguments))
    more = dict(score=score, log_likelihood=even, redraw=lambda c, keep: c, sizes=SIZES)
    more |= dict(generator=generator(), config=replace(CONFIG, evaluations=64))
    check_shapes(search, dict(pool=POOL, **more), search(POOL, **more), {"M": 8})
    assert check_shapes(Dice(generator()).of, dict(values=OWN[0]), OWN[0, 0]) == {"N": 6}
