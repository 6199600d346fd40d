"""The process group that torchrec wants also of a process that trains alone."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed import ProcessGroup

_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


def default_process_group() -> ProcessGroup:
    """The default process group; where there is none yet, a gloo group of this process alone, closed at exit.

    Ranks meet in a store in memory, so no port has to be chosen. gloo opens a listening socket even for one
    rank: it is bound to the loopback interface, which no other machine reaches.
    """
    if not dist.is_initialized():
        with _loopback_only():
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        atexit.register(_close)
    group = dist.group.WORLD
    assert group is not None
    return group


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _loopback_only() -> Iterator[None]:
    """gloo reads its interface from the environment alone; the caller's setting is put back."""
    before = os.environ.get(_GLOO_INTERFACE)
    os.environ[_GLOO_INTERFACE] = "lo"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_GLOO_INTERFACE]
        else:
            os.environ[_GLOO_INTERFACE] = before
