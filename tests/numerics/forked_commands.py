"""``rookery …`` in processes of their own, as torchrun starts them, without the seconds that torch takes to load.

A process is forked from a server that has them loaded; from there on it is what ``python -m rookery`` is: its own
arguments, environment, standard streams (files), signals and exit code.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from faults import Fault
from ranks import SERVER, free_port, rank_environment

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Command:
    """A process of a command."""

    process: BaseProcess
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.is_alive()

    def send(self, number: signal.Signals) -> None:
        if self.is_running:
            os.kill(self.pid, number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Its exit code, or minus the number of the signal that ended it."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, f"still running after {timeout_s} s: {self.err.read_text()}"
        return self.process.exitcode


def start_commands(
    arguments: Sequence[str], folder: Path, size: int = 1, faults: Mapping[int, Fault] | None = None
) -> list[Command]:
    """``rookery ARGUMENTS`` as each rank of a world of ``size``; streams go to ``folder``. ``faults`` are by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    commands = []
    for rank in range(size):
        out, err = folder / f"out-{rank}", folder / f"err-{rank}"
        for stream in (out, err):
            stream.write_text("")
        environment = rank_environment(rank, size, port) if size > 1 else {}
        process = SERVER.Process(
            target=_run, args=(list(arguments), environment, out, err, (faults or {}).get(rank)), daemon=True
        )
        process.start()
        commands.append(Command(process, out, err))
    return commands


def end(commands: Sequence[Command]) -> None:
    """Kill what still runs."""
    for command in commands:
        command.process.kill()
        command.process.join()


def wait_for(condition: Callable[[], Any], commands: Sequence[Command], timeout_s: float = TIMEOUT_S) -> None:
    """Return once something is so; fails when the commands end before."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if any(not command.is_running for command in commands) and not condition():
            raise AssertionError("".join(command.err.read_text() for command in commands))
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _run(arguments: list[str], environment: dict[str, str], out: Path, err: Path, fault: Fault | None) -> None:
    import atexit

    import torch

    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    torch.set_num_threads(1)

    from rookery.cli.main import app
    from rookery.cli.output import run_command

    if fault is not None:
        fault.install()
    try:
        code = run_command(lambda: app(arguments))
    except SystemExit as end_of_command:
        code = int(end_of_command.code or 0)
    except BaseException:  # noqa: BLE001 - as Python ends
        import traceback

        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
