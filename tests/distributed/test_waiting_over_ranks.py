"""What a process says that waits in vain: in which collective, and where the others are."""

from __future__ import annotations

import importlib.util
import re
import time

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from rookery.optim.config import OptimizerConfig, Sgd
from rookery.parallel import heartbeat as heartbeats
from rookery.parallel.collectives import failed_collective
from rookery.parallel.config import ShardingConfig
from rookery.parallel.gradients import SummedGradients
from rookery.parallel.heartbeat import Heartbeat
from rookery.parallel.world import all_max, leave_world, rank
from rookery.tables.backends import make_tables
from rookery.tables.protocol import TableSpec

BEAT_S = 0.2


def one_silent_one_ended() -> tuple[str, float]:
    """Rank 1 says nothing any more, rank 2 ends, rank 3 goes on; rank 0 asks 12 beats later."""
    heartbeats._BEAT_S = BEAT_S
    heartbeat = Heartbeat("training")
    with heartbeat:
        heartbeat.enter(40 + rank(), "forward")
        time.sleep(3 * BEAT_S)
        if rank() == 1:
            heartbeat._tell = lambda **_: None  # type: ignore[method-assign]
        silent_since = time.monotonic()
        if rank() == 2:
            heartbeat._stop.set()
        time.sleep(12 * BEAT_S)
        if rank() == 0:
            heartbeat.enter(44, "agreement")
            said = heartbeat.whereabouts(), (time.monotonic() - silent_since) / BEAT_S
        dist.barrier()
        return said if rank() == 0 else ("", 0.0)


def test_the_silent_the_ended_and_the_living_are_told_apart() -> None:
    said, _ = run_ranks(4, one_silent_one_ended)[0]
    here, silent, ended, living = said.splitlines()
    assert re.fullmatch(r"rank 0: in agreement of step 44 for [01] s", here)
    assert (match := re.fullmatch(r"rank 1: silent for (\d+) s, last heard of in forward of step 41", silent)), said
    assert 2 <= int(match[1]) <= 4  # 15 beats of .2 s, less the one that it was told in
    assert ended == "rank 2: has ended, in forward of step 42"
    assert re.fullmatch(r"rank 3: in forward of step 43 for [2-5] s", living), said


def left_in(part: str, kind: str | None) -> str | None:
    """Rank 1 leaves before a part of the second step; what the others say that they waited in."""
    spec = TableSpec("user", 20, 16, torch.float32, OptimizerConfig(sgd=Sgd()), 1.0)
    sharding = ShardingConfig.model_validate({"default": kind})
    tables = make_tables("local" if kind is None else "torchrec", [spec], seed=0, sharding=sharding)
    dense = SummedGradients(torch.nn.Linear(16, 1))

    def step(last: str | None = None) -> None:
        all_max(torch.tensor([1]))
        if last == "lookup":
            return
        if last == "rows":
            tables._exchange.take({"user": torch.arange(7)})  # type: ignore[union-attr]
            return
        # Of dense parameters alone: nothing of a table is in the backward pass.
        rows = torch.ones(7, 16) if part == "gradients" else tables.lookup({"user": torch.arange(7)})["user"]
        loss = dense(rows).sum()
        if last is None:
            loss.backward()

    step()
    step()
    if rank() == 1:
        step(part)
        leave_world()
        return None
    try:
        step()
    except RuntimeError as error:
        return failed_collective(error)
    raise AssertionError("nobody was missed")


WAITS = [
    ("gradients", None, "all_reduce of gradients"),
    ("backward", None, "all_reduce"),
    ("lookup", "row_wise", "all_reduce"),
    ("rows", "row_wise", "ReduceScatterBase"),
    ("rows", "column_wise", "alltoall"),
    ("backward", "row_wise", "allgather"),
    ("backward", "column_wise", "alltoall"),
]


@pytest.mark.parametrize(("part", "kind", "collective"), WAITS)
def test_the_collective_is_named(part: str, kind: str | None, collective: str) -> None:
    if kind is not None and importlib.util.find_spec("fbgemm_gpu") is None:
        pytest.skip("needs the cluster extra")
    assert run_ranks(2, left_in, part, kind)[0] == collective
