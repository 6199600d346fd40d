"""torchrun as a user runs it: agents, and the processes that they start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked_commands import TIMEOUT_S


@dataclass(frozen=True)
class Agent:
    """A process of torchrun; what it and its own processes say goes to ``log``."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        return self.log.read_text()

    def finish(self, code: int = 0, timeout_s: float = TIMEOUT_S) -> str:
        """Wait for the end; what was said."""
        assert self.process.wait(timeout_s) == code, self.said()
        return self.said()

    def children(self) -> list[int]:
        return _children_of(self.process.pid)

    def kill_machine(self) -> None:
        """SIGKILL for the agent and for all that it started, as when a machine is gone."""
        for pid in (self.process.pid, *self.children()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


class Agents:
    def __init__(self) -> None:
        self._started: list[Agent] = []

    def start(self, launch: Sequence[str], arguments: Sequence[str], log: Path) -> Agent:
        """``torchrun LAUNCH -m rookery ARGUMENTS``."""
        command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "rookery", *arguments]
        with log.open("w") as stream:
            process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=stream, stderr=stream)
        self._started.append(Agent(process, log))
        return self._started[-1]

    def wait_until(self, condition: Callable[[], Any]) -> None:
        """Return once something is so; fails when an agent ends before."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            said = "".join(agent.said() for agent in self._started)
            assert all(agent.process.poll() is None for agent in self._started) or condition(), said
            assert time.monotonic() < deadline, said
            time.sleep(0.005)

    def end(self) -> None:
        for agent in self._started:
            agent.kill_machine()


@contextmanager
def running_agents() -> Iterator[Agents]:
    """Agents that end with the test together with what they started."""
    agents = Agents()
    try:
        yield agents
    finally:
        agents.end()


def _children_of(pid: int) -> list[int]:
    children = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            children += [child, *_children_of(child)]
    return children
