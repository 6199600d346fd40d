"""Object stores on this machine: a server that speaks S3, one that speaks Google's protocol, and memory."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import fsspec

from rookery.storage.location import RemotePath

BUCKET = "birds"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
# A machine without credentials must not go looking for those of a cloud.
OFFLINE = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A server with a bucket; the environment in which it is found."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {**KEYS, **OFFLINE, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        with store_environment("s3", environment):
            fsspec.filesystem("s3").makedirs(BUCKET, exist_ok=True)  # moto keeps buckets as long as the process
            yield environment
    finally:
        server.stop()
        server._server.server_close()


@contextmanager
def gcs_server() -> Iterator[dict[str, str]]:
    from gcp_storage_emulator.server import create_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        environment = {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "0",  # else gcsfs asks Google itself what kind of bucket it is
        }
        with store_environment("gs", environment):
            yield environment
    finally:
        server.stop()


@contextmanager
def store_environment(protocol: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment, read anew: file systems are kept by fsspec with those that they were made with."""
    absent = [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]
    with mock.patch.dict(os.environ):
        for name in absent:
            del os.environ[name]
        os.environ.update(environment)
        _forget(protocol)
        yield
    _forget(protocol)


def _forget(protocol: str) -> None:
    """Close the connections of a protocol; the next file system is made anew."""
    kind = fsspec.get_filesystem_class(protocol)
    for filesystem in list(kind._cache.values()):
        session = getattr(filesystem, "_s3creator" if protocol == "s3" else "_session", None)
        if session is not None:
            kind.close_session(filesystem.loop, session)
    kind.clear_instance_cache()
    gc.collect()


class Proxy:
    """Passes connections on to a server on this machine; some break after so many bytes of an answer."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.to_break, self.num_broken, self.after_bytes = 0, 0, 300
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listening.accept()[0]
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while block := source.recv(65_536):
                if is_answer and self.to_break > 0 and len(block) > self.after_bytes:
                    self.to_break -= 1
                    self.num_broken += 1
                    target.sendall(block[: self.after_bytes])
                    break
                target.sendall(block)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes the thread of the other direction, which ends, too
        source.close()


def upload(folder: Path, place: RemotePath) -> None:
    """All files of a folder."""
    filesystem = fsspec.filesystem(place.protocol)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            filesystem.pipe_file(f"{place.key}/{file.relative_to(folder).as_posix()}", file.read_bytes())
