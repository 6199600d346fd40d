"""The processes that train together: who they are, and the few things that they tell each other outside of the model.

A process that torchrun did not start is a world of its own: every function works there and talks to nobody.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import takewhile
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rookery.errors import PeerFailed, RookeryError, UserError
from rookery.parallel.collectives import failed_collective
from rookery.parallel.meeting import is_store_kept, own_store

# In what gloo says of a broken message: the path of its source, but for two.
_BROKEN = ("gloo", "Gloo", "Connection closed by peer", "Application timeout caused pair closure")

S = TypeVar("S")
T = TypeVar("T")

CHIEF = 0
"""The rank that writes what one process alone may write."""


def join_world(device: torch.device, timeout_s: float) -> None:
    """Meet the other processes that torchrun started; a collective of theirs that takes longer than this is an error.

    gloo carries tensors of the CPU, NCCL those of CUDA devices. Nothing happens in a process that is alone, or that has
    joined. Raises ``UserError`` where the environment names a world that nobody can meet in.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if absent:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but {', '.join(absent)} not set: start the processes with "
            "torchrun, or unset WORLD_SIZE to train in this one alone"
        )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # None: that of the environment, new with every start.
    store = own_store(timeout_s) if is_store_kept() else None
    rank, world_size = (int(os.environ[name]) if store else -1 for name in ("RANK", "WORLD_SIZE"))
    dist.init_process_group(
        backend, timeout=timedelta(seconds=timeout_s), store=store, rank=rank, world_size=world_size
    )
    atexit.register(leave_world)


def own_group(backend: str | None = None) -> dist.ProcessGroup:
    """A group of all processes whose messages come in an order of their own, and are waited for as long as others.

    Every process calls it, a world of one has none; ``backend`` None is that of the world. torch by itself would wait
    for half an hour.
    """
    group: dist.ProcessGroup = dist.new_group(timeout=timedelta(seconds=patience_s()), backend=backend)
    return group


def patience_s() -> float:
    """How long a process waits for the others, of a world of several: what ``join_world`` was told."""
    world = dist.group.WORLD
    assert world is not None
    timeout: timedelta = world._get_backend(torch.device("cpu")).options._timeout  # noqa: SLF001
    return timeout.total_seconds()


def leave_world() -> None:
    """Let go of the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else CHIEF


def is_chief() -> bool:
    """Whether this process writes what one alone may write."""
    return rank() == CHIEF


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many processes train on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def differentiable_sum(tensor: Tensor) -> Tensor:
    """A new tensor, the sum over all processes, whose gradient is the sum of theirs."""
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_sum(gradients[0].clone())


def all_max(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The largest over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return tensor


def gather_objects(mine: T) -> list[T]:
    """What each process gives, by rank, on all of them. It is pickled: for processes of one run alone."""
    if world_size() == 1:
        return [mine]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, mine)
    return gathered


def gather_on_chief(mine: T) -> list[T] | None:
    """What each process gives, by rank, on the chief; None on the others. It is pickled: as ``gather_objects``."""
    if world_size() == 1:
        return [mine]
    gathered: list[Any] | None = [None] * world_size() if is_chief() else None
    dist.gather_object(mine, gathered, dst=CHIEF)
    return gathered


def share_object(mine: T, sender: int = CHIEF) -> T:
    """What one process gives, by default the chief, on all of them. It is pickled: for processes of one run alone."""
    if world_size() == 1:
        return mine
    shared: list[Any] = [mine]
    dist.broadcast_object_list(shared, src=sender)
    return shared[0]  # type: ignore[no-any-return]


class Abandoned(Exception):
    """Work that the processes share was given up, by all of them."""


IsUnwanted = Callable[[], bool]
"""Whether work may be given up, as far as this process knows: looked at again and again, and once true for good."""


def never() -> bool:
    """The work is wanted to its end."""
    return False


def gather_wanted(mine: T, is_unwanted: IsUnwanted) -> list[T]:
    """``gather_objects`` of shares of some work; ``Abandoned`` on all processes where one of them calls it unwanted."""
    shares = gather_objects((mine, is_unwanted()))
    if any(is_unwanted for _, is_unwanted in shares):
        raise Abandoned
    return [share for share, _ in shares]


def spread(items: Sequence[S], function: Callable[[S], T], is_unwanted: IsUnwanted = never) -> list[T]:
    """``function`` of every item, in order, on all processes; each computes its part of them.

    ``items`` and the order are the same everywhere. Results are pickled: for processes of one run alone. Raises
    ``Abandoned`` on all of them where one calls the work unwanted: it leaves its own items, the others finish theirs.
    """
    size = world_size()
    mine = takewhile(lambda _: not is_unwanted(), items[rank() :: size])
    parts = gather_wanted([function(item) for item in mine], is_unwanted)
    return [parts[place % size][place // size] for place in range(len(items))]


def on_all(work: Callable[[], T]) -> T:
    """What ``work`` returns here; where it fails on one process, all of them end by the same error.

    Raises the ``RookeryError`` of the lowest rank that has one, which that rank alone prints. Any other exception goes
    on where it was raised, and is ``PeerFailed`` on the others. All processes call it at once, none from within
    another's ``work``.
    """
    problem: RookeryError | None = None
    try:
        result = work()
    except BaseException as error:
        if _is_loss(error):  # nobody is there to be told
            raise
        if not isinstance(error, RookeryError):
            gather_objects(PeerFailed(f"ends because rank {rank()} cannot go on, as it says itself"))
            raise
        problem = error
    problems = gather_objects(problem)
    problems[rank()] = problem  # the very one, not what came back of it
    for teller, told in enumerate(problems):
        if told is not None:
            told.is_told_elsewhere = teller != rank()
            raise told
    return result


def on_chief(function: Callable[[], object]) -> None:
    """Let the chief alone do something that the others wait for; where it fails, all of them end as ``on_all``."""
    on_all(lambda: function() if is_chief() else None)


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, PeerFailed) or (isinstance(error, RuntimeError) and is_broken_message(error))


def is_broken_message(error: RuntimeError) -> bool:
    """Whether an error of torch's says that a message between processes timed out or lost its other end."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(sign in text for sign in _BROKEN)


@contextmanager
def losses_told() -> Iterator[None]:
    """Within, a message between processes that fails is ``PeerFailed``, which says what to do."""
    try:
        yield
    except RuntimeError as error:
        if os.environ.get("WORLD_SIZE", "1") == "1" or not is_broken_message(error):
            raise
        collective = failed_collective(error) or "a message"
        raise PeerFailed(
            f"rank {os.environ['RANK']}: another process is gone, or did not answer within parallel.timeout_s "
            f"({collective}: {str(error).splitlines()[0]}); see what the others said, and start all of them again: "
            "they go on from the newest checkpoint"
        ) from error


def all_gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Rows ``[n, …]`` of every process, one after another by rank ``[sum n, …]``; ``n`` may differ."""
    if world_size() == 1:
        return rows
    counts = gather_counts(rows.shape[0], rows.device, group)
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_counts(count: int, device: torch.device, group: dist.ProcessGroup | None = None) -> Sequence[int]:
    """The ``count`` of each process, by rank."""
    counts = torch.zeros(world_size(), dtype=torch.int64, device=device)
    counts[rank()] = count
    dist.all_reduce(counts, group=group)
    return counts.tolist()
