"""A reader: batches of a stream, ready for the model, to whoever brings a ticket, over Arrow Flight.

A ticket is made as a whole by the thread that has its lanes, then sent. What is made and not yet sent is bounded by the
number of tickets that are taken at a time; a trainer that asks for more is told to come back.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Protocol

import pyarrow as pa
from pyarrow import flight

from rookery.config.token import Token
from rookery.data.flight_identity import Description, Served, describe, identity_of
from rookery.data.flight_memory import Handover, Memories, Memory, machine
from rookery.data.flight_wire import Garbage, Header, Order, Ticket, checksum, encode, schema_of
from rookery.data.stream import Columns, ParquetStream, StreamPosition
from rookery.errors import RookeryError

logger = logging.getLogger(__name__)

DESCRIBE = "describe"
"""The action that tells what a stream is."""

Process = Callable[[Columns, StreamPosition, Mapping[int, int]], Columns]
"""From the columns of a batch, the position behind it and its rows by lane to what the trainer gets."""

# Streams in different orders that are kept open: that of a run, and that of a restart with more or fewer processes.
_MAX_STREAMS = 2
_TICKETS_PER_LANE = 4


class ServedStream:
    """A stream of all lanes in one order, and what its trainers get of it."""

    def __init__(self, stream: ParquetStream, process: Process, served: Served) -> None:
        self.description: Description = describe(stream, served.meaning)
        self.identity = identity_of(self.description)
        self.schema = schema_of(served.types, self.identity)
        self.num_lanes = stream.num_lanes
        self._stream, self._process, self._types = stream, process, served.types
        self._locks = [threading.Lock() for _ in range(stream.num_lanes)]

    def check(self, ticket: Ticket) -> None:
        """Raise ``Garbage`` for a ticket that names another stream, or batches and lanes that there are not."""
        if ticket.identity != self.identity:
            raise Garbage(f"the ticket is for stream {ticket.identity}, this is {self.identity}")
        if not ticket.start < ticket.stop <= self.num_lanes:
            raise Garbage(f"lanes {ticket.start} to {ticket.stop} of {self.num_lanes}")
        if ticket.batches.stop > self._stream.batches_per_epoch:
            raise Garbage(f"batches {ticket.batches} of {self._stream.batches_per_epoch} in an epoch")

    def make(self, ticket: Ticket) -> deque[tuple[pa.RecordBatch, bytes]]:
        """The batches of a ticket, each with its header."""
        with self._reading(ticket):
            made = (self._batch(ticket, batch, checksum) for batch in ticket.batches)
            return deque((encoded, header.to_bytes()) for encoded, header in made)

    def lay(self, ticket: Ticket, memory: Memory) -> tuple[Header, ...]:
        """Lay the batches of a ticket in memory of ``largest_bytes``. Returns their headers."""
        with self._reading(ticket):
            return tuple(self._batch(ticket, batch, memory.lay)[1] for batch in ticket.batches)

    def largest_bytes(self, ticket: Ticket) -> int:
        """What the batches of a ticket take if preprocessing leaves all their rows."""
        rows = sum(self._stream.layout.rows(lane, batch) for lane in ticket.lanes for batch in ticket.batches)
        return rows * sum(each.bytes_per_row for each in self._types.values())

    @contextmanager
    def _reading(self, ticket: Ticket) -> Iterator[None]:
        with ExitStack() as stack:
            for lane in ticket.lanes:
                stack.enter_context(self._locks[lane])
            yield

    def _batch(
        self, ticket: Ticket, batch: int, pack: Callable[[pa.RecordBatch], int]
    ) -> tuple[pa.RecordBatch, Header]:
        """A batch and its header; ``pack`` returns the checksum."""
        read = self._stream.read(ticket.lanes, ticket.epoch, batch)
        position = replace(self._stream.position(), epoch=ticket.epoch, num_batches=batch + 1)
        columns = self._process(read.columns, position, dict(zip(ticket.lanes, read.rows, strict=True)))
        encoded = encode(columns, self._types, self.schema)
        header = Header(
            batch=batch,
            rows=read.rows,
            num_rows=encoded.num_rows,
            digest=read.digest,
            skipped=read.skipped,
            checksum=pack(encoded),
        )
        return encoded, header


class Source(Protocol):
    """What a reader serves."""

    def open(self, order: Order) -> ServedStream:
        """The stream in the order that a trainer asks for."""
        ...

    def stamp(self) -> Hashable:
        """Another one where ``open`` would give something else than before."""
        ...


class ReaderServer(flight.FlightServerBase):  # type: ignore[misc]
    """Serves the streams of ``source`` at ``location``, to holders of ``token`` if there is one.

    ``certificate`` and its key (PEM) encrypt; ``num_threads`` make tickets ready, each for some of the lanes. Trainers
    on this machine get batches through memory that both see, if ``shares_memory``.
    """

    def __init__(
        self,
        source: Source,
        location: str,
        *,
        token: Token | None = None,
        certificate: tuple[bytes, bytes] | None = None,
        num_threads: int = 2,
        shares_memory: bool = True,
    ) -> None:
        super().__init__(
            location,
            middleware={"token": _Guard(token)},
            tls_certificates=None if certificate is None else [certificate],
        )
        self._source = source
        self._machine = machine() if shares_memory else None
        self._memories = Memories()
        self._streams: OrderedDict[Hashable, ServedStream] = OrderedDict()
        self._opening = threading.Lock()
        self._makers = [ThreadPoolExecutor(1, thread_name_prefix="reader") for _ in range(num_threads)]
        self._places = threading.Lock()
        self._num_taken = 0

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> Sequence[bytes]:
        """``describe`` with an ``Order``: the description of the stream, and the machine whose memory is shared."""
        with _told():
            if action.type != DESCRIBE:
                raise Garbage(f"no action {action.type!r}; there is {DESCRIBE!r}")
            served = self._stream(Order.from_bytes(action.body.to_pybytes()))
            return [json.dumps(served.description).encode(), self._machine or b""]

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        """The batches of a ticket."""
        with _told():
            asked = Ticket.from_bytes(ticket.ticket)
            served = self._stream(asked.order)
            served.check(asked)
            self._take_place(served.num_lanes)
            try:
                sending = _Sending(self._maker(served, asked).submit(served.make, asked), self._leave_place)
            except BaseException:
                self._leave_place()
                raise
            return flight.GeneratorStream(served.schema, sending)

    def do_exchange(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.MetadataRecordBatchWriter,
    ) -> None:
        """Lay the batches of the ticket that is the descriptor in memory, say where, and wait until they are taken."""
        with _told():
            asked = Ticket.from_bytes(descriptor.command or b"")
            if self._machine is None:
                raise Garbage("this reader shares no memory")
            served = self._stream(asked.order)
            served.check(asked)
            self._take_place(served.num_lanes)
            memory: Memory | None = None
            try:
                memory = self._memories.take(served.largest_bytes(asked))
                writer.write_metadata(self._lay(served, asked, memory).to_bytes())
                _wait_for_end(reader)
            finally:
                if memory is not None:
                    self._memories.give(memory)
                self._leave_place()

    def _lay(self, served: ServedStream, ticket: Ticket, memory: Memory) -> Handover:
        headers = self._maker(served, ticket).submit(served.lay, ticket, memory).result()
        return Handover(process=os.getpid(), descriptor=memory.descriptor, headers=headers)

    def _maker(self, served: ServedStream, ticket: Ticket) -> ThreadPoolExecutor:
        return self._makers[ticket.start * len(self._makers) // served.num_lanes]

    def _stream(self, order: Order) -> ServedStream:
        with self._opening:
            key = order, self._source.stamp()
            served = self._streams.pop(key, None) or self._source.open(order)
            self._streams[key] = served
            if len(self._streams) > _MAX_STREAMS:
                self._streams.popitem(last=False)
            return served

    def _take_place(self, num_lanes: int) -> None:
        with self._places:
            if self._num_taken >= _TICKETS_PER_LANE * num_lanes:
                raise flight.FlightUnavailableError(f"{self._num_taken} tickets are under way; come back later")
            self._num_taken += 1

    def _leave_place(self) -> None:
        with self._places:
            self._num_taken -= 1


class _Sending:
    """The batches of a ticket, each let go of as it is sent; frees the ticket's place when nobody asks any more."""

    def __init__(self, making: Future[deque[tuple[pa.RecordBatch, bytes]]], leave_place: Callable[[], None]) -> None:
        self._making, self._leave_place = making, leave_place

    def __iter__(self) -> Iterator[tuple[pa.RecordBatch, bytes]]:
        return self

    def __next__(self) -> tuple[pa.RecordBatch, bytes]:
        with _told():
            batches = self._making.result()
        if not batches:
            raise StopIteration
        return batches.popleft()

    def __del__(self) -> None:
        self._making.cancel()
        self._leave_place()


class _Guard(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Turns away calls without the token."""

    def __init__(self, token: Token | None) -> None:
        super().__init__()
        self._token = token

    def start_call(self, info: flight.CallInfo, headers: Mapping[str, Sequence[str]]) -> None:
        if self._token is None:
            return
        given = next((values[0] for name, values in headers.items() if name.lower() == "authorization"), "")
        if not self._token.admits(given.encode()):
            raise flight.FlightUnauthenticatedError("the token is missing or wrong")


def _wait_for_end(reader: flight.MetadataRecordBatchReader) -> None:
    """Until the other side says that it is done, or is gone, or its deadline is over."""
    with suppress(StopIteration, pa.ArrowException):
        while True:
            reader.read_chunk()


@contextmanager
def _told() -> Iterator[None]:
    """Errors that the other side can do something about, in a form that it reads: kind and message."""
    try:
        yield
    except Garbage as error:
        raise flight.FlightServerError(str(error), extra_info=_problem("Garbage", error)) from error
    except RookeryError as error:
        logger.warning("%s", error)
        raise flight.FlightServerError(str(error), extra_info=_problem(type(error).__name__, error)) from error


def _problem(kind: str, error: Exception) -> bytes:
    return json.dumps({"kind": kind, "message": str(error)}).encode()
