"""A server in a process of its own, and raw connections to it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Of clients that come by the hundred: to read the authorities' certificates takes 36 ms each time."""


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], address: str, log: Path) -> None:
        self.process, self.address, self._log = process, address, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def memory_bytes(self) -> int:
        """Resident memory, from /proc."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024

    def num_sockets(self) -> int:
        """Open sockets, from /proc."""
        links = []
        for each in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                links.append(str(each.readlink()))
            except FileNotFoundError:  # closed meanwhile
                continue
        return sum(link.startswith("socket:") for link in links)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def connect(self) -> socket.socket:
        """A connection that nothing was sent on yet."""
        parts = urlsplit(self.address)
        return socket.create_connection((parts.hostname, parts.port), timeout=30)


@contextmanager
def served(bundle: Path, log: Path, config: Path | None = None, module: str = "served_fake") -> Iterator[Served]:
    """Serve ``bundle`` by ``module``: a fake one, or a real one by ``served_bundle``."""
    arguments = [sys.executable, "-m", module, str(bundle), *([str(config)] if config else [])]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_WAIT_POLICY": "passive"}
    with (
        log.open("w") as sink,
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=sink, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http"), log.read_text()
            yield Served(process, address, log)
        finally:
            process.kill()


def write_config(folder: Path, **limits: Any) -> Path:
    """A configuration file with any port and these limits."""
    fields = ("host", "drain_s", "stop_s", "reload_every_s", "batching")
    others = {name: limits.pop(name) for name in fields if name in limits}
    path = folder / "serve.yaml"
    path.write_text(json.dumps({"port": 0, "limits": limits, **others}))
    return path


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Fail when ``condition`` does not come about."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.05)


def received(connection: socket.socket, timeout_s: float) -> bytes:
    """All that comes until the server closes; fails if it does not in time."""
    parts, end = [], time.monotonic() + timeout_s
    while True:
        assert select.select([connection], [], [], max(end - time.monotonic(), 0))[0], "the server did not close"
        try:
            part = connection.recv(65_536)
        except ConnectionResetError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


def request_bytes(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A POST request."""
    lines = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def error_code(response: httpx.Response) -> str:
    """The code of an answer that is not a success; fails when its body is anything else."""
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message"}, body
    assert "Traceback" not in body["error"]["message"]
    return str(body["error"]["code"])
