"""How the service listens, what it lets a request cost, and how it stops. Loads neither torch nor the web framework."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from rookery.config.base import StrictModel


class Limits(StrictModel):
    """What one client may cost. Whatever is beyond is answered with an error and nothing else suffers."""

    body_bytes: int = Field(default=1_048_576, ge=1_024)
    """Larger requests are answered 413."""
    json_depth: int = Field(default=8, ge=2)
    """Lists and objects within each other; deeper ones are answered 422. The deepest valid request has 2."""
    deadline_s: float = Field(default=5.0, gt=0.0, allow_inf_nan=False)
    """From the end of the request to its answer; later ones are answered 504."""
    queued_requests: int = Field(default=64, ge=1)
    """Requests under way at a time; further ones are answered 503 with ``Retry-After``."""
    connections: int = Field(default=512, ge=1)
    """Beyond it requests are answered 503; beyond twice as many, connections are dropped."""
    client_s: float = Field(default=10.0, gt=0.0, allow_inf_nan=False)
    """A client has so long for its headers, as long for its body, and as long for taking the answer."""
    keep_alive_s: float = Field(default=20.0, gt=0.0, allow_inf_nan=False)
    """A connection without a request is closed after this."""


class Batching(StrictModel):
    """Requests that wait together go through the network together."""

    wait_ms: float = Field(default=2.0, ge=0.0, le=1_000.0, allow_inf_nan=False)
    """How long the first request of a batch waits for others while the network is idle."""
    rows: int = Field(default=4_096, ge=1)
    """Posts of a batch; a larger request is a batch of its own."""


class ServeConfig(StrictModel):
    """``rookery serve RUN --config FILE``; each flag of the command line is a field here."""

    host: str = "127.0.0.1"
    """An address; other than of this machine alone only with a token."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """0: any that is free."""
    token_file: Path | None = None
    """A file with one line: the token that requests carry. Or the environment variable ``ROOKERY_TOKEN``."""
    limits: Limits = Limits()
    batching: Batching = Batching()
    lookup_threads: int = Field(default=2, ge=1)
    """Threads for requests that need no network; ranking has one more to itself."""
    reload_every_s: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """How often the bundle is looked at for a newer one."""
    drain_s: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """After SIGTERM ``/readyz`` answers 503 for so long before new connections are refused."""
    stop_s: float = Field(default=30.0, gt=0.0, allow_inf_nan=False)
    """After that requests under way have so long to finish."""
