"""``rookery reader``: training batches over Arrow Flight."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rookery.cli.output import progress_console
from rookery.errors import ConfigError, RookeryError

if TYPE_CHECKING:
    from rookery.data.flight_server import ReaderServer, Source


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reader")(_reader)


def _reader(
    config: Annotated[
        Path, typer.Argument(help="The configuration that the trainers train by, TwHIN's or a ranker's.")
    ],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen; only with a token other than 127.0.0.1.")
    ] = "127.0.0.1:8815",
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM): connections are encrypted.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that trainers carry; or set ROOKERY_TOKEN.")
    ] = None,
    shared_memory: Annotated[
        bool, typer.Option(help="Hand batches to trainers on this machine in memory (Linux); else send all.")
    ] = True,
    save_dir: Annotated[
        Path | None, typer.Option(help="The run, as the trainers have it; replaces training.save_dir.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Replace one field, as for the trainers."),
    ] = None,
) -> None:
    """Read, shuffle and preprocess for trainers that name this reader in parallel.readers, until SIGTERM or Ctrl-C."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own log says what the error says; read when it is loaded
    from rookery.config.token import find_token
    from rookery.data.flight_server import ReaderServer

    host, port = _host_and_port(listen)
    token = find_token(host, token_file, os.environ, given_as="--listen")
    certificate = _certificate(tls_cert, tls_key)
    source = _source(config, save_dir, overrides or [])
    scheme = "grpc" if certificate is None else "grpc+tls"
    location = f"{scheme}://{f'[{host}]' if ':' in host else host}"
    try:
        server = ReaderServer(
            source, f"{location}:{port}", token=token, certificate=certificate, shares_memory=shared_memory
        )
    except Exception as error:
        raise RookeryError(f"--listen {listen}: cannot be listened at ({error}); choose another address") from error
    _serve(server, f"reading {config} at {location}:{server.port}")


def _serve(server: ReaderServer, greeting: str) -> None:
    """Until SIGTERM or Ctrl-C; tickets that are under way then are finished."""
    import logging
    import signal
    import threading

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    progress_console.print(greeting, soft_wrap=True)
    stopped.wait()
    server.shutdown()


def _host_and_port(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"--listen {listen}: must be host:port, as in 127.0.0.1:8815 (port 0: any that is free)")
    return host.strip("[]"), int(port)


def _certificate(cert: Path | None, key: Path | None) -> tuple[bytes, bytes] | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ConfigError("--tls-cert and --tls-key: give both, or neither")
    pair = _read("--tls-cert", cert), _read("--tls-key", key)
    _require_pair(cert, key)
    return pair


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be read ({error.strerror}); name a file in PEM") from error


def _require_pair(cert: Path, key: Path) -> None:
    """Raise ``ConfigError`` for files that Arrow Flight would refuse without a word about them."""
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert)
    except ssl.SSLError as error:
        raise ConfigError(f"--tls-cert {cert}: no certificate in PEM ({error}); write one, or a chain") from error
    try:
        # Without a password it would be asked for at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"--tls-key {key}: not the key of --tls-cert {cert}; give the one made with it"
            ) from error
        raise ConfigError(f"--tls-key {key}: no key in PEM without a password ({error}); write one") from error


def _source(path: Path, save_dir: Path | None, overrides: list[str]) -> Source:
    """What the configuration trains on."""
    import json

    from rookery.cli.jobs import Job, job_of
    from rookery.train.runtime import keep_freed_memory

    keep_freed_memory()
    flags = [] if save_dir is None else [f"training.save_dir={json.dumps(str(save_dir))}"]
    if job_of(path) is Job.TWHIN:
        from rookery.twhin.from_reference import load_twhin_config
        from rookery.twhin.reading import EdgeSource

        return EdgeSource(load_twhin_config(path, overrides, flags))
    from rookery.ranker.from_reference import load_ranker_config
    from rookery.ranker.reading import BatchSource

    source = BatchSource(load_ranker_config(path, overrides, flags))
    source.wait_for_inputs(lambda message: progress_console.print(message, soft_wrap=True))
    return source
