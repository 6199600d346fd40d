"""torchrun as a user runs it: agents, and the processes that they start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked_commands import TIMEOUT_S
from ranks import free_port


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

    def is_told_to_end(self, child: int) -> bool:
        """Whether the agent has sent SIGTERM to a process that is stopped and has not seen it yet."""
        (pending,) = re.findall(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{child}/status").read_text(), re.MULTILINE)
        return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)

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

    def start(
        self, launch: Sequence[str], arguments: Sequence[str], log: Path, variables: Mapping[str, str] | None = None
    ) -> Agent:
        """``VARIABLES torchrun LAUNCH -m rookery ARGUMENTS``."""
        command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "rookery", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(variables or {})
        with log.open("w") as stream:
            process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
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


class Machines:
    """Agents that meet, each with one process, as machines of a job do: ``nnodes`` as torchrun takes it."""

    def __init__(self, agents: Agents, nnodes: str, last_call_s: int = 2) -> None:
        conf = f"last_call_timeout={last_call_s},keep_alive_interval=1,keep_alive_max_attempt=3"
        self._agents, self._conf = agents, conf
        self._launch = [f"--nnodes={nnodes}", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"]
        self._launch += ["--rdzv-id=failing", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]

    def start(self, arguments: Sequence[str], log: Path, *, is_host: bool) -> Agent:
        """A machine; ``is_host`` is the one where they meet, which has to stay."""
        launch = [*self._launch, f"--rdzv-conf={self._conf},is_host={int(is_host)}"]
        return self._agents.start(launch, arguments, log, {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})


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
