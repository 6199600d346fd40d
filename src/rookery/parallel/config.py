"""Configuration of runs over several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rookery.config.base import StrictModel

ShardingKind = Literal["auto", "row_wise", "table_wise", "column_wise", "table_row_wise", "data_parallel"]


class ShardingConfig(StrictModel):
    """How each embedding table lies over the processes.

    ``row_wise``: every process has a block of rows; ``table_wise``: one process has the whole table; ``column_wise``:
    every process has some numbers of each row; ``table_row_wise``: the processes of one machine have blocks of rows;
    ``data_parallel``: every process has the whole table; ``auto``: torchrec's planner chooses.

    ``tables`` names the kind of single tables, ``default`` that of the others. Without a default the back end
    ``torchrec`` takes row_wise; the back end ``local`` knows data_parallel alone.
    """

    default: ShardingKind | None = None
    tables: dict[str, ShardingKind] = Field(default_factory=dict)

    def kind_of(self, table: str) -> ShardingKind:
        """The kind of a table in the back end ``torchrec``."""
        return self.tables.get(table) or self.default or "row_wise"


class ReadersConfig(StrictModel):
    """Processes of ``rookery reader`` that read for the trainers; of several, each is asked and stands in for the rest.

    ``addresses`` are ``host:port``. In the environment ``kubernetes`` a host is the name of a headless service, and all
    addresses that it has are readers; in ``slurm`` it is the name of a variable with a list of nodes, such as
    ``SLURM_JOB_NODELIST``; else a host is one reader.
    """

    addresses: tuple[str, ...] = Field(min_length=1)
    environment: Literal["none", "kubernetes", "slurm"] = "none"
    deadline_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """A reader that takes longer for some batches is put aside."""
    wait_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    """How long training waits where no reader answers before it stops with a checkpoint."""
    token_file: Path | None = None
    """A file with one line: the token that readers want. Or the environment variable ``ROOKERY_TOKEN``."""
    tls_ca_file: Path | None = None
    """Certificates (PEM) of the authorities that readers are trusted by; without it nothing is encrypted."""

    @model_validator(mode="after")
    def _addresses_have_a_port(self) -> ReadersConfig:
        for address in self.addresses:
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
                raise ValueError(f"addresses: {address!r} is not host:port; write it as in reader-0:7070")
        return self


class ParallelConfig(StrictModel):
    """Several processes as one run.

    ``num_lanes`` is the number of shares that the training data are dealt into, at least one for each process; it stays
    the same over the life of a run. ``timeout_s`` is how long a process waits for the others before the run fails.
    """

    num_lanes: int | None = Field(default=None, ge=1)
    timeout_s: float = Field(default=600.0, gt=0)
    sharding: ShardingConfig = Field(default_factory=ShardingConfig)
    readers: ReadersConfig | None = None

    @model_validator(mode="after")
    def _others_outlast_the_readers(self) -> ParallelConfig:
        if self.readers is not None and self.readers.wait_s + self.readers.deadline_s >= self.timeout_s:
            raise ValueError(
                f"timeout_s={self.timeout_s:g}: the other processes give up while one waits for readers; make it more "
                f"than readers.wait_s + readers.deadline_s ({self.readers.wait_s + self.readers.deadline_s:g})"
            )
        return self


def lanes_refusal(batch_size: int, num_lanes: int, world_size: int) -> str | None:
    """Why so many lanes do not fit: a lane would have no row of a batch, or a process no lane. None where they do."""
    if world_size > num_lanes:
        return (
            f"num_lanes={num_lanes}: fewer than the {world_size} ranks that share them; use at most {num_lanes} "
            "processes, or start a new run with as many lanes as there will ever be processes, here at least "
            f"--set parallel.num_lanes={world_size}: lanes stay as a run begins, by default one for each process"
        )
    if batch_size < num_lanes:
        return (
            f"batch_size={batch_size}: fewer rows than the {num_lanes} lanes that each give some to every batch; "
            f"use a batch of at least {num_lanes} rows, or fewer lanes"
        )
    return None
