"""Configuration of runs over several processes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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


class ParallelConfig(StrictModel):
    """Several processes as one run.

    ``num_lanes`` is the number of shares that the training data are dealt into, at least one for each process; it stays
    the same over the life of a run. ``timeout_s`` is how long a process waits for the others before the run fails.
    """

    num_lanes: int | None = Field(default=None, ge=1)
    timeout_s: float = Field(default=600.0, gt=0)
    sharding: ShardingConfig = Field(default_factory=ShardingConfig)
