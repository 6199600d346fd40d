"""Several ranks of one world on this machine, for tests: processes that meet over gloo on the loopback interface."""

from __future__ import annotations

import multiprocessing as mp
import os
import socket
import traceback
import warnings
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection, wait
from typing import Any

SERVER = mp.get_context("forkserver")
# Imported once by the server that the ranks are forked from.
SERVER.set_forkserver_preload(
    [
        "torch",
        "torch.distributed",
        "torch.distributed.checkpoint.state_dict_saver",
        "torch.utils.tensorboard",
        "pandas",  # where it is installed pyarrow loads it
        "rookery.tables.local",
        "rookery.parallel.world",
        "rookery.tables.torchrec",
        "rookery.checkpoint.collective",
        "rookery.cli.main",
        "rookery.twhin.train",
        "rookery.ranker.train",
    ]
)


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 120.0) -> list[Any]:
    """What ``function(*arguments)``, importable by name, returns on each rank of a world, by rank.

    Raises ``RankFailed`` with the first rank's traceback when one raises or dies, and when time is up.
    """
    port = free_port()
    pipes, processes = [], []
    for rank in range(world_size):
        ours, theirs = SERVER.Pipe(duplex=False)
        environment = rank_environment(rank, world_size, port)
        process = SERVER.Process(target=_run, args=(theirs, environment, function, arguments), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return _results(pipes, timeout_s)
    finally:
        for process in processes:
            process.kill()
            process.join()


class RankFailed(AssertionError):
    """A rank raised, died or did not end in time."""


def _results(pipes: list[Connection], timeout_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    waiting = {id(pipe): (rank, pipe) for rank, pipe in enumerate(pipes)}
    while waiting:
        ready = wait([pipe for _, pipe in waiting.values()], timeout_s)
        if not ready:
            raise RankFailed(f"ranks {sorted(rank for rank, _ in waiting.values())} did not end in {timeout_s:g} s")
        for pipe in ready:
            rank, _ = waiting.pop(id(pipe))
            try:
                failed, results[rank] = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                raise RankFailed(f"rank {rank} died") from None
            if failed:
                raise RankFailed(f"rank {rank}:\n{results[rank]}")
    return [results[rank] for rank in range(len(pipes))]


def _run(pipe: Connection, environment: dict[str, str], function: Callable[..., Any], arguments: Any) -> None:
    import torch

    from rookery.parallel.world import join_world, leave_world

    os.environ.update(environment)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    try:
        join_world(torch.device("cpu"), timeout_s=60.0)
        result = function(*arguments)
        leave_world()
        pipe.send((False, result))
    except BaseException:  # noqa: BLE001 - whatever it is, the other process is told
        pipe.send((True, traceback.format_exc()))
        os._exit(1)


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process of one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A port of the loopback interface that nobody listened at a moment ago."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
