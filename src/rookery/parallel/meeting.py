"""Where the processes of torchrun meet: in a part of its store that is theirs alone.

torchrun keeps one store through all of its restarts (but with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1), and in it the
addresses of processes that are gone. Whoever starts again would call those and fail.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from uuid import uuid4

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from rookery.errors import PeerFailed

_LOOK_S = 0.01


def is_store_kept() -> bool:
    """Whether torchrun keeps its store through restarts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def own_store(timeout_s: float) -> Store:
    """A part of torchrun's store that no process of an earlier start has seen.

    The chief draws its name and answers each process that greets it; a greeting is new with every start, so that none
    takes an answer for its own that was given to one before it. Raises ``PeerFailed`` when not all come in time.
    """
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    name = _answered(store, rank, timeout) if rank else _drawn(store, world_size, timeout_s)
    return PrefixStore(f"rookery/{name}", store)


def _drawn(store: Store, world_size: int, timeout_s: float) -> str:
    name, answered = uuid4().hex, dict[int, bytes]()
    deadline = time.monotonic() + timeout_s
    while (met := store.add(_met(name), 0)) < world_size - 1:
        for rank in range(1, world_size):
            if store.check([_greeting(rank)]) and (greeting := store.get(_greeting(rank))) != answered.get(rank):
                store.set(_answer(greeting.decode()), name)
                answered[rank] = greeting
        if time.monotonic() > deadline:
            raise PeerFailed(
                f"rank 0: {world_size - 1 - met} of {world_size} processes did not come within parallel.timeout_s="
                f"{timeout_s:g}; see what became of them, and start all of them again"
            )
        time.sleep(_LOOK_S)
    return name


def _answered(store: Store, rank: int, timeout: timedelta) -> str:
    greeting = uuid4().hex
    store.set(_greeting(rank), greeting)
    store.wait([_answer(greeting)], timeout)
    name: str = store.get(_answer(greeting)).decode()
    store.add(_met(name), 1)
    return name


def _greeting(rank: int) -> str:
    return f"rookery/greeting/{rank}"


def _answer(greeting: str) -> str:
    return f"rookery/answer/{greeting}"


def _met(name: str) -> str:
    return f"rookery/met/{name}"
