"""A stream of numbered rows, and readers of it: sound ones, and ones that fail in a way of their own."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import flight

from rookery.data.flight_identity import Served
from rookery.data.flight_memory import Handover, Memory
from rookery.data.flight_server import ReaderServer, ServedStream
from rookery.data.flight_stream import FlightStream
from rookery.data.flight_wire import Header, Order, Ticket, types_of
from rookery.data.stream import ParquetStream
from rookery.parallel.config import ReadersConfig

ROW_GROUPS = [[10] * 7 + [3], [25, 1, 1, 1], [6, 40, 2, 9, 9, 5], [11, 8]]  # 191 rows in 20 row groups
BATCH = 26


def write_rows(folder: Path, row_groups: list[list[int]] = ROW_GROUPS) -> list[Path]:
    """Files of ``row``, which counts on over all of them, and ``pair``, which follows from it."""
    files, start = [], 0
    folder.mkdir(exist_ok=True)
    for number, sizes in enumerate(row_groups):
        files.append(folder / f"part-{number}.parquet")
        schema = pa.schema({"row": pa.int64(), "pair": pa.list_(pa.float32(), 2)})
        with pq.ParquetWriter(files[-1], schema) as writer:
            for size in sizes:
                row = np.arange(start, start + size)
                pair = pa.array(np.stack([row, -row], 1).ravel().astype(np.float32))
                writer.write_table(pa.table({"row": row, "pair": pa.FixedSizeListArray.from_arrays(pair, 2)}))
                start += size
    return files


@dataclass(frozen=True)
class Rows:
    """The rows of some files as a reader's source; ``options`` are those of the stream."""

    files: list[Path]
    options: dict[str, Any] = field(default_factory=dict)

    def local(self, num_lanes: int = 12, **options: Any) -> ParquetStream:
        defaults = {"seed": 3, "shuffle": True, "buffer_rows": 120, "batch_size": BATCH}
        return ParquetStream(
            self.files, ["row", "pair"], num_lanes=num_lanes, **{**defaults, **self.options, **options}
        )

    def served(self, rows: ParquetStream) -> Served:
        empty = {name: column.allocate(0) for name, column in rows.types.items()}
        return Served(types_of(empty), {"model": {"name": "rows"}}, whole=True)

    def open(self, order: Order) -> ServedStream:
        rows = self.local(order.num_lanes, batch_size=order.batch_size)
        return ServedStream(rows, lambda columns, position, lanes: columns, self.served(rows))

    def stamp(self) -> Hashable:
        return None

    def remote(
        self, *servers: ReaderServer, rank: int = 0, world_size: int = 1, num_lanes: int = 12, **options: Any
    ) -> FlightStream:
        """The rows from some readers; ``options`` are those of the configuration, or ``num_epochs``."""
        rows = self.local(num_lanes, num_epochs=options.pop("num_epochs", None))
        return FlightStream(rows, self.served(rows), readers(*servers, **options), rank=rank, world_size=world_size)


def readers(*servers: ReaderServer, **options: Any) -> ReadersConfig:
    addresses = options.pop("addresses", tuple(f"127.0.0.1:{server.port}" for server in servers))
    return ReadersConfig(addresses=addresses, **{"deadline_s": 5.0, "wait_s": 5.0, **options})


Batches = deque[tuple[pa.RecordBatch, bytes]]
Spoil = Callable[["Batches"], "Batches"]


class BadReader(ReaderServer):
    """Spoils what it sends of each ticket from ticket ``after`` on; counts tickets."""

    def __init__(self, source: Any, spoil: Spoil, *, after: int = 0, **options: Any) -> None:
        self._spoil, self._after = spoil, after
        self.num_tickets = 0
        super().__init__(source, "grpc://127.0.0.1:0", shares_memory=False, **options)

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        self.num_tickets += 1
        if self.num_tickets <= self._after:
            return super().do_get(context, ticket)
        served = self._stream(Ticket.from_bytes(ticket.ticket).order)
        spoiled = self._spoil(served.make(Ticket.from_bytes(ticket.ticket)))
        return flight.GeneratorStream(spoiled[0][0].schema if spoiled else served.schema, iter(spoiled))


def _changed(batches: Batches, **changes: Any) -> Batches:
    batch, header = batches[0]
    batches[0] = batch, Header.from_bytes(header).model_copy(update=changes).to_bytes()
    return batches


def _of_header(batches: Batches) -> Header:
    return Header.from_bytes(batches[0][1])


def _flipped(batches: Batches) -> Batches:
    """One bit of one number is another one."""
    batch, header = batches[0]
    row = batch.column("row").to_numpy().copy()
    row[0] ^= 4
    batches[0] = pa.RecordBatch.from_arrays([pa.array(row), batch.column("pair")], schema=batch.schema), header
    return batches


def _other_schema(batches: Batches) -> Batches:
    return deque((batch.rename_columns(["row", "pear"]), header) for batch, header in batches)


def _other_stream(batches: Batches) -> Batches:
    return deque((batch.replace_schema_metadata({"stream": "another"}), header) for batch, header in batches)


def _shorter(batches: Batches) -> Batches:
    return deque((batch.slice(0, batch.num_rows - 1), header) for batch, header in batches)


def _dead(batches: Batches) -> Batches:
    raise RuntimeError("this reader has a bug")


def _late(batches: Batches) -> Batches:
    time.sleep(3.0)
    return batches


GARBAGE: dict[str, Spoil] = {
    "a flipped bit": _flipped,
    "another checksum": lambda batches: _changed(batches, checksum=1),
    "another digest": lambda batches: _changed(batches, digest=_of_header(batches).digest + 1),
    "another batch": lambda batches: _changed(batches, batch=99),
    "fewer rows by the header": lambda batches: _changed(batches, rows=(0,) * len(_of_header(batches).rows)),
    "rows said to be skipped": lambda batches: _changed(batches, skipped=1),
    "fewer rows than the header says": _shorter,
    "no header": lambda batches: deque((batch, b"") for batch, _ in batches),
    "a header that is none": lambda batches: deque((batch, b"[1]") for batch, _ in batches),
    "other columns": _other_schema,
    "another stream": _other_stream,
    "a batch less": lambda batches: deque(list(batches)[:-1]),
    "a batch more": lambda batches: deque([*batches, batches[-1]]),
    "nothing": lambda batches: deque(),
    "an exception": _dead,
}


SpoilMemory = Callable[[Memory, Handover], Handover]


class BadMemoryReader(ReaderServer):
    """Spoils what it lays in memory for each ticket but the first; counts tickets."""

    def __init__(self, source: Any, spoil: SpoilMemory) -> None:
        self._spoil = spoil
        self.num_tickets = 0
        super().__init__(source, "grpc://127.0.0.1:0")

    def _lay(self, served: ServedStream, ticket: Ticket, memory: Memory) -> Handover:
        self.num_tickets += 1
        laid = super()._lay(served, ticket, memory)
        return laid if self.num_tickets == 1 else self._spoil(memory, laid)


def _flipped_in_memory(memory: Memory, laid: Handover) -> Handover:
    memory._bytes[5] ^= 4
    return laid


def _first_changed(laid: Handover, **changes: Any) -> Handover:
    return laid.model_copy(update={"headers": (laid.headers[0].model_copy(update=changes), *laid.headers[1:])})


def _unsealed(memory: Memory, laid: Handover) -> Handover:
    """A file that could become shorter while it is read; it is left open."""
    descriptor = os.memfd_create("unsealed")
    os.ftruncate(descriptor, memory.num_bytes)
    return laid.model_copy(update={"descriptor": descriptor})


def _small(memory: Memory, laid: Handover) -> Handover:
    """It is left open."""
    return laid.model_copy(update={"descriptor": Memory(16).descriptor})


GARBAGE_IN_MEMORY: dict[str, SpoilMemory] = {
    "a flipped bit": _flipped_in_memory,
    "another checksum": lambda memory, laid: _first_changed(laid, checksum=1),
    "another digest": lambda memory, laid: _first_changed(laid, digest=laid.headers[0].digest + 1),
    "another batch": lambda memory, laid: _first_changed(laid, batch=99),
    "more rows than were read": lambda memory, laid: _first_changed(laid, num_rows=2**60),
    "a batch less": lambda memory, laid: laid.model_copy(update={"headers": laid.headers[1:]}),
    "a batch more": lambda memory, laid: laid.model_copy(update={"headers": (*laid.headers, laid.headers[-1])}),
    "memory that may shrink": _unsealed,
    "too little memory": _small,
    "a pipe": lambda memory, laid: laid.model_copy(update={"descriptor": os.pipe()[0]}),
    "a folder": lambda memory, laid: laid.model_copy(update={"descriptor": os.open("/", os.O_RDONLY)}),
}


@contextmanager
def running(*servers: ReaderServer) -> Iterator[None]:
    """Shut the servers down at the end; none of them waits for calls that nobody ends."""
    try:
        yield
    finally:
        stopping = [threading.Thread(target=server.shutdown, daemon=True) for server in servers]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join(10.0)


late = _late
