"""One reader as a trainer sees it: connected to, asked who it is, asked for tickets, and what it sends proved."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import flight

from rookery.data.flight_digests import BatchDigests
from rookery.data.flight_discovery import Address
from rookery.data.flight_identity import Description, differences, identity_of
from rookery.data.flight_memory import BEGIN, Handover, Mapped, NotShared, machine, take_out
from rookery.data.flight_server import DESCRIBE
from rookery.data.flight_wire import (
    MAX_MESSAGE_BYTES,
    Garbage,
    Header,
    Order,
    TensorTypes,
    Ticket,
    checksum,
    decode,
    schema_of,
)
from rookery.data.lanes import BatchLayout
from rookery.data.stream import LaneRows
from rookery.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_LONGEST_HANDSHAKE_S = 10.0


class Failed(Exception):
    """A reader did not give what it was asked for; another one may."""


class Mismatch(Failed):
    """A reader serves something else than this trainer trains on, or does not let it in."""


@dataclass(frozen=True)
class Expected:
    """What a trainer knows of its batches before it has them.

    ``whole``: a batch has all rows that were read, none is left out by preprocessing.
    """

    description: Description
    types: TensorTypes
    layout: BatchLayout
    digests: BatchDigests
    whole: bool

    @property
    def order(self) -> Order:
        return Order(batch_size=self.description["batch_size"], num_lanes=self.description["num_lanes"])


@dataclass(frozen=True)
class Access:
    """How readers are reached: the token's header, certificates (PEM) of their authorities, the deadline of a call."""

    headers: tuple[tuple[bytes, bytes], ...]
    authorities: bytes | None
    deadline_s: float


class Reader:
    """A connection to one reader. Calls may come from several threads."""

    def __init__(self, address: Address, access: Access, expected: Expected) -> None:
        self.address = address
        self._access = access
        self._expected = expected
        self._schema = schema_of(expected.types, identity_of(expected.description))
        self._client: flight.FlightClient | None = None
        self._connecting = threading.Lock()
        self._calls: set[flight.FlightStreamReader] = set()
        self._is_near = False
        self._mapped = Mapped()

    def greet(self) -> None:
        """Connect anew and compare what the reader serves with what is expected.

        Raises ``Mismatch`` where it is something else, ``Failed`` where the reader does not answer.
        """
        self.close()
        deadline_s = min(self._access.deadline_s, _LONGEST_HANDSHAKE_S)
        action = flight.Action(DESCRIBE, self._expected.order.to_bytes())
        try:
            answers = list(self._connected().do_action(action, self._options(deadline_s)))
            theirs = json.loads(answers[0].body.to_pybytes())
            self._is_near = len(answers) > 1 and answers[1].body.to_pybytes() == machine()
        except (flight.FlightUnauthenticatedError, flight.FlightUnauthorizedError) as error:
            raise Mismatch(
                "it does not admit this trainer: the token is missing or wrong; give its own in "
                "parallel.readers.token_file, or set ROOKERY_TOKEN"
            ) from error
        except flight.FlightServerError as error:
            raise Mismatch(_message(error)) from error
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            raise Failed(_message(error)) from error
        if not isinstance(theirs, dict):
            raise Failed("its description is not one")
        unlike = differences(theirs, self._expected.description)
        if unlike:
            shown = "\n".join(f"  {line}" for line in unlike[:10])
            raise Mismatch(f"it serves other batches than this trainer trains on:\n{shown}")

    def fetch(self, ticket: Ticket) -> list[LaneRows]:
        """The batches of a ticket, proved to be those.

        Raises ``Failed`` where the reader does not answer in time or sends anything else, ``DataError`` where the data
        cannot be read, which no reader could.
        """
        try:
            if self._is_near:
                try:
                    return self._taken_over(ticket)
                except NotShared as problem:
                    self._is_near = False
                    logger.info("reader %s: its memory cannot be seen here (%s); it sends", self.address, problem)
            with self._under_way(
                self._connected().do_get(flight.Ticket(ticket.to_bytes()), self._options(self._access.deadline_s))
            ) as call:
                return self._received(call, ticket)
        except Garbage as error:
            raise Failed(f"it sent what was not asked for: {error}") from error
        except flight.FlightServerError as error:
            raise self._refusal(error) from error
        except (pa.ArrowException, OSError) as error:
            raise Failed(_message(error)) from error

    def close(self) -> None:
        """End calls that are under way, as far as they can be ended, and the connection."""
        for call in tuple(self._calls):
            call.cancel()
        with self._connecting:
            client, self._client = self._client, None
        if client is not None:
            with suppress(pa.ArrowException):
                client.close()

    @contextmanager
    def _under_way(self, call: flight.FlightStreamReader) -> Iterator[flight.FlightStreamReader]:
        self._calls.add(call)
        try:
            yield call
        finally:
            self._calls.discard(call)

    def _taken_over(self, ticket: Ticket) -> list[LaneRows]:
        """The batches of a ticket out of memory that the reader has laid them in."""
        descriptor = flight.FlightDescriptor.for_command(ticket.to_bytes())
        writer, call = self._connected().do_exchange(descriptor, self._options(self._access.deadline_s))
        with self._under_way(call):
            try:
                writer.write_metadata(BEGIN)  # the descriptor goes with it
                return self._out_of_memory(call, ticket)
            except BaseException:
                call.cancel()
                raise
            finally:
                with suppress(pa.ArrowException, OSError):
                    writer.close()  # the reader may use the memory again

    def _out_of_memory(self, call: flight.FlightStreamReader, ticket: Ticket) -> list[LaneRows]:
        chunk = _next_chunk(call)
        handover = Handover.from_bytes(b"" if chunk is None else _header_of(chunk))
        if len(handover.headers) != ticket.count:
            raise Garbage(f"{len(handover.headers)} batches, not {ticket.count}")
        batches, start, memory = [], 0, self._mapped.of(handover)
        for batch, header in zip(ticket.batches, handover.headers, strict=True):
            self._check(header, ticket, batch)
            columns, start = take_out(memory, start, header, self._expected.types)
            batches.append(LaneRows(columns, header.rows, header.digest, header.skipped))
        return batches

    def _received(self, call: flight.FlightStreamReader, ticket: Ticket) -> list[LaneRows]:
        if not call.schema.equals(self._schema, check_metadata=True):
            raise Garbage(f"columns {call.schema.to_string()} where {self._schema.to_string()} were expected")
        batches: list[LaneRows] = []
        while (chunk := _next_chunk(call)) is not None:
            if len(batches) == ticket.count:
                raise Garbage(f"more than {ticket.count} batches")
            batches.append(self._proved(chunk, ticket, ticket.first + len(batches)))
        if len(batches) < ticket.count:
            raise Garbage(f"{len(batches)} batches, not {ticket.count}")
        return batches

    def _proved(self, chunk: flight.FlightStreamChunk, ticket: Ticket, batch: int) -> LaneRows:
        """A batch that has as many rows of each lane as it must, with the numbers that it must have, unharmed."""
        if chunk.data is None:
            raise Garbage(f"batch {batch} without rows")
        header = Header.from_bytes(_header_of(chunk))
        self._check(header, ticket, batch)
        if chunk.data.num_rows != header.num_rows:
            raise Garbage(f"batch {batch} has {chunk.data.num_rows} rows where the header says {header.num_rows}")
        if header.checksum != checksum(chunk.data):
            raise Garbage(f"batch {batch} was changed on its way: its checksum differs")
        return LaneRows(decode(chunk.data, self._expected.types), header.rows, header.digest, header.skipped)

    def _check(self, header: Header, ticket: Ticket, batch: int) -> None:
        """Raise ``Garbage`` for a header of another batch, or of other rows, than those that were asked for."""
        nominal = tuple(self._expected.layout.rows(lane, batch) for lane in ticket.lanes)
        if header.batch != batch or len(header.rows) != len(nominal):
            raise Garbage(f"batch {header.batch} of {len(header.rows)} lanes, not batch {batch} of {len(nominal)}")
        fits = all(0 <= rows <= most for rows, most in zip(header.rows, nominal, strict=True))
        if not fits or sum(header.rows) + header.skipped != sum(nominal):
            raise Garbage(f"batch {batch} has {header.rows} rows and {header.skipped} skipped, not {nominal}")
        read, left = sum(header.rows), header.num_rows
        if left > read or (self._expected.whole and left != read):
            raise Garbage(f"batch {batch} has {left} rows where {read} were read")
        if header.digest != self._expected.digests.of(ticket.lanes, ticket.epoch, batch):
            raise Garbage(f"batch {batch} is made of other rows than those of its place")

    def _connected(self) -> flight.FlightClient:
        with self._connecting:
            if self._client is None:
                scheme = "grpc" if self._access.authorities is None else "grpc+tls"
                self._client = flight.FlightClient(
                    f"{scheme}://{self.address}",
                    tls_root_certs=self._access.authorities,
                    override_hostname=self.address.name if self.address.name != self.address.host else None,
                    generic_options=self._channel_options(),
                )
            return self._client

    def _channel_options(self) -> list[tuple[str, int | str]]:
        largest = max(self._expected.layout.rows_per_batch) * len(self._expected.layout.rows_per_batch)
        bytes_per_row = sum(each.bytes_per_row for each in self._expected.types.values())
        return [
            # Else a new connection would wait as long as a failed one to the same address is told to.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", largest * bytes_per_row + 64 * MAX_MESSAGE_BYTES),
        ]

    def _options(self, deadline_s: float) -> flight.FlightCallOptions:
        return flight.FlightCallOptions(timeout=deadline_s, headers=list(self._access.headers))

    def _refusal(self, error: flight.FlightServerError) -> Exception:
        """What a reader's own report of a problem amounts to."""
        problem = _problem(error)
        if problem.get("kind") in {"DataError", "CorruptRowGroup", "WrongValue"}:
            return DataError(f"reader {self.address}: {problem['message']}")
        return Failed(_message(error))


def refused(reader: Reader, problem: Mismatch) -> ConfigError:
    """A reader that will never do, as an error for the user."""
    return ConfigError(f"parallel.readers: reader {reader.address}: {problem}")


def _next_chunk(call: flight.FlightStreamReader) -> flight.FlightStreamChunk | None:
    try:
        return call.read_chunk()
    except StopIteration:
        return None


def _header_of(chunk: flight.FlightStreamChunk) -> bytes:
    """The message that goes with a chunk, empty where there is none."""
    message: bytes = b"" if chunk.app_metadata is None else chunk.app_metadata.to_pybytes()
    return message


def _problem(error: flight.FlightServerError) -> Mapping[str, str]:
    try:
        problem = json.loads(error.extra_info)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _message(error: BaseException) -> str:
    """The first line of what went wrong, without what gRPC appends."""
    if isinstance(error, flight.FlightServerError):
        message = _problem(error).get("message")
        if message:
            return message
    if isinstance(error, flight.FlightTimedOutError):
        return "it did not answer within the deadline"
    message = str(error).split(". gRPC client debug context")[0].splitlines()[0]
    if "WRONG_VERSION_NUMBER" in message.upper().replace(" ", "_"):
        return f"{message} (as by a reader without TLS: leave parallel.readers.tls_ca_file out)"
    if "Socket closed" in message:
        return f"{message} (as by a reader that wants TLS: give parallel.readers.tls_ca_file)"
    return message
