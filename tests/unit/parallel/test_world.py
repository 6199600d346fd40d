"""What processes of one world tell each other."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch
from ranks import RankFailed, run_ranks

from rookery.errors import DataError, PeerFailed, RookeryError, UserError
from rookery.parallel import world


def meet():
    mine = torch.arange(world.rank() * 2.0).reshape(world.rank(), 2)
    return {
        "rank": world.rank(),
        "is_chief": world.is_chief(),
        "sum": world.all_sum(torch.tensor([world.rank() + 1.0])).item(),
        "max": world.all_max(torch.tensor([world.rank()])).item(),
        "objects": world.gather_objects(f"rank {world.rank()}"),
        "shared": world.share_object({"from": world.rank()}),
        "rows": world.all_gather_rows(mine).tolist(),
    }


@pytest.mark.parametrize("size", [1, 3])
def test_ranks_tell_each_other(size):
    results = run_ranks(size, meet)
    assert [each["rank"] for each in results] == list(range(size))
    assert [each["is_chief"] for each in results] == [True] + [False] * (size - 1)
    for each in results:
        assert each["sum"] == sum(range(1, size + 1))
        assert each["max"] == size - 1
        assert each["objects"] == [f"rank {rank}" for rank in range(size)]
        assert each["shared"] == {"from": 0}
        assert each["rows"] == [[2.0 * row, 2.0 * row + 1] for rank in range(size) for row in range(rank)]


def test_one_process_is_a_world_of_its_own():
    assert (world.world_size(), world.rank(), world.is_chief()) == (1, 0, True)
    assert meet()["objects"] == ["rank 0"]


def waits_in_its_own_group():
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
    group = world.own_group()
    largest = world.all_max(torch.tensor([world.rank()]), group).item()
    began = time.monotonic()
    if world.rank() == 0:
        with pytest.raises(RuntimeError) as caught:
            world.all_max(torch.tensor([0]), group)
        assert world.is_broken_message(caught.value)
    else:
        time.sleep(2)
    return largest, time.monotonic() - began


def test_a_group_of_its_own_waits_as_long_as_the_world():
    for largest, waited_s in run_ranks(2, waits_in_its_own_group):
        assert largest == 1
        assert 0.9 < waited_s < 20


def fail_on_one():
    if world.rank() == 1:
        raise ValueError("no")


def test_a_rank_that_fails_is_named():
    with pytest.raises(RankFailed, match=r"(?s)rank 1:.*ValueError: no"):
        run_ranks(2, fail_on_one)


def test_a_world_that_nobody_can_meet_in_is_refused(monkeypatch):
    monkeypatch.setattr(
        world.dist, "is_initialized", lambda: False
    )  # other tests of this process may have met somebody
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"MASTER_ADDR.* not set: start the processes with torchrun"):
        world.join_world(torch.device("cpu"), 1.0)


def refuse():
    raise UserError("the chief refuses")


def fail(error):
    """On all ranks but the first."""
    if world.rank():
        raise error
    return "fine"


def ends(work):
    """What comes of ``work``, done together: the result, or the kind of error, what it says and whether here."""
    try:
        return world.on_all(work)
    except (RookeryError, ValueError) as error:
        return type(error), str(error), getattr(error, "is_told_elsewhere", False)


def spread_and_fail():
    squares = world.spread(range(7), lambda number: (number * number, world.rank()))
    try:
        world.on_chief(refuse)
    except UserError as error:
        refused = str(error), error.is_told_elsewhere
    damaged, mistaken = (ends(lambda error=error: fail(error)) for error in (DataError("row 3"), ValueError("ours")))
    return squares, refused, damaged, mistaken, ends(world.rank)


def fail_on_some(failing):
    def work():
        if world.rank() in failing:
            raise UserError(f"rank {world.rank()} refuses")
        return world.rank() * 2

    try:
        return world.on_all(work)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("failing", [[], [1], [1, 2], [0]])
def test_what_fails_on_one_process_ends_all(failing):
    expected = [f"rank {min(failing)} refuses" if failing else rank * 2 for rank in range(3)]
    assert run_ranks(3, fail_on_some, failing) == expected
    assert fail_on_some([]) == 0
    assert fail_on_some([0]) == "rank 0 refuses"


@pytest.mark.parametrize("size", [1, 3])
def test_work_is_spread_and_a_refusal_ends_all(size):
    results = run_ranks(size, spread_and_fail)
    for rank, (squares, refused, damaged, mistaken, fine) in enumerate(results):
        assert squares == [(number * number, number % size) for number in range(7)]
        assert refused == ("the chief refuses", rank > 0)
        if size == 1:
            assert (damaged, mistaken) == ("fine", "fine")
        else:
            assert damaged == (DataError, "row 3", rank != 1)
            here = (ValueError, "ours", False)
            told = (PeerFailed, "ends because rank 1 cannot go on, as it says itself", True)
            assert mistaken == (told if rank == 0 else here)
        assert fine == rank


@pytest.mark.parametrize(
    ("message", "is_broken"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711", True),
        ("Application timeout caused pair closure", True),
        ("[../gloo/transport/tcp/unbound_buffer.cc:82] Timed out waiting 8000ms for recv operation to complete", True),
        ("shape '[2, 3]' is invalid for input of size 5", False),
    ],
)
def test_messages_that_broke_are_told_from_errors_of_our_own(message: str, is_broken: bool) -> None:
    assert world.is_broken_message(RuntimeError(message)) == is_broken
