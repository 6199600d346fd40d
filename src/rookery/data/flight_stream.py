"""A stream whose rows are read by other processes: the batches of local files, in their order."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from rookery.config.token import find_secret
from rookery.data.flight_digests import BatchDigests
from rookery.data.flight_discovery import find_readers
from rookery.data.flight_identity import Served, describe, identity_of
from rookery.data.flight_pool import Closed, ReaderPool
from rookery.data.flight_reader import Access, Expected
from rookery.data.flight_wire import MAX_BATCHES, TICKET_BYTES, TensorTypes, Ticket
from rookery.data.lanes import lanes_of_rank
from rookery.data.stream import LaneRows, LaneStream, ParquetStream, StreamPosition
from rookery.errors import ConfigError
from rookery.parallel.config import ReadersConfig

_JOIN_S = 2.0


class FlightStream(LaneStream):
    """The batches of ``rows``, a stream of all lanes of which nothing is read here but footers, as readers make them.

    Rank ``rank`` of ``world_size`` asks for its own lanes, some tickets ahead: for each of its readers two, of which
    each is at most 8 MB or one batch. ``next`` raises ``ReadersGone`` where no reader is left for ``config.wait_s``,
    and again until ``seek``; nothing is lost.

    Raises ``ConfigError`` for readers that serve something else or do not admit this trainer, and for unfit tokens and
    certificates; ``ReadersGone`` where none answers in time.
    """

    def __init__(
        self, rows: ParquetStream, served: Served, config: ReadersConfig, *, rank: int = 0, world_size: int = 1
    ) -> None:
        lanes = lanes_of_rank(rows.num_lanes, rank, world_size)
        super().__init__(rows.layout, lanes, rows.batch_size, rows.seed, rows.num_epochs)
        orders = [rows.orders[lane] for lane in lanes]
        description = describe(rows, served.meaning)
        self._expected = Expected(
            description, served.types, rows.layout, BatchDigests(orders, rows.layout), served.whole
        )
        self._identity = identity_of(description)
        self._batches_per_ticket = _batches_per_ticket(self, served.types)
        self._pool = ReaderPool(
            lambda: find_readers(config, os.environ),
            _access(config),
            self._expected,
            wait_s=config.wait_s,
            rank=rank,
            world_size=world_size,
        )
        self._pool.connect()
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._asked: deque[_Request] = deque()
        self._received: deque[LaneRows] = deque()
        self._next_ticket = (0, 0)
        self._failure: BaseException | None = None
        self._closing: Future[None] = Future()

    def seek(self, position: StreamPosition) -> None:
        """Go on behind ``position``, with an empty ledger. ``DataError`` when it is of a stream of another order."""
        super().seek(position)
        for request in self._asked:
            request.answer.cancel()
        self._asked.clear()
        self._received.clear()
        self._failure = None
        self._next_ticket = (position.epoch, position.num_batches)

    def close(self) -> None:
        """Let go of the readers and of the threads that ask them; whoever waits in ``next`` gets ``Closed``."""
        if self._closing.done():
            return
        self._closing.set_result(None)
        self._pool.close()
        self._expected.digests.close()
        for _ in self._threads:
            self._requests.put(None)
        ends = time.monotonic() + _JOIN_S
        for thread in self._threads:
            # A call to a reader that hangs cannot be ended; it ends with its deadline.
            thread.join(max(0.0, ends - time.monotonic()))

    def _read(self, epoch: int, batch: int) -> LaneRows:
        if self._failure is not None:
            raise self._failure
        self._ask_ahead()
        if not self._received:
            try:
                self._received.extend(self._answer())
            except BaseException as failure:
                self._failure = failure
                raise
            self._ask_ahead()
        return self._received.popleft()

    def _answer(self) -> list[LaneRows]:
        """What the request that was made first got. Raises ``Closed`` where ``close`` comes before."""
        answer = self._asked.popleft().answer
        either: tuple[Future[Any], ...] = (answer, self._closing)
        wait(either, return_when=FIRST_COMPLETED)
        if not answer.done():
            raise Closed
        return answer.result()

    def _ask_ahead(self) -> None:
        if not self._threads:
            self._start()
        while len(self._asked) < len(self._threads) and self._has_next():
            epoch, first = self._next_ticket
            if first == self.batches_per_epoch:
                epoch, first = epoch + 1, 0
            count = min(self._batches_per_ticket, self.batches_per_epoch - first)
            ticket = Ticket(
                identity=self._identity,
                order=self._expected.order,
                start=self.lanes[0],
                stop=self.lanes[-1] + 1,
                epoch=epoch,
                first=first,
                count=count,
            )
            number = epoch * -(-self.batches_per_epoch // self._batches_per_ticket) + first // self._batches_per_ticket
            self._asked.append(_Request(ticket, number, Future()))
            self._requests.put(self._asked[-1])
            self._next_ticket = (epoch, first + count)

    def _has_next(self) -> bool:
        epoch, first = self._next_ticket
        return self.num_epochs is None or epoch + (first == self.batches_per_epoch) < self.num_epochs

    def _start(self) -> None:
        self._pool.start()
        for number in range(2 * self._pool.num_own):
            # Daemons: a reader that hangs must not keep a process that wants to end.
            thread = threading.Thread(
                target=_fetch_all, args=(self._requests, self._pool), name=f"flight-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)


@dataclass(frozen=True)
class _Request:
    ticket: Ticket
    number: int
    answer: Future[list[LaneRows]]


def _fetch_all(requests: SimpleQueue[_Request | None], pool: ReaderPool) -> None:
    """Fetch what is asked for, until None is."""
    while (request := requests.get()) is not None:
        if not request.answer.set_running_or_notify_cancel():
            continue
        try:
            request.answer.set_result(pool.fetch(request.ticket, request.number))
        # Everything travels to the stream, where it is raised.
        except BaseException as cause:  # noqa: BLE001
            request.answer.set_exception(cause)


def _batches_per_ticket(stream: LaneStream, types: TensorTypes) -> int:
    rows = sum(stream.layout.rows_per_batch[lane] for lane in stream.lanes)
    bytes_per_batch = rows * sum(each.bytes_per_row for each in types.values())
    return max(1, min(MAX_BATCHES, TICKET_BYTES // max(1, bytes_per_batch)))


def _access(config: ReadersConfig) -> Access:
    secret = find_secret(config.token_file, os.environ)
    headers = () if secret is None else ((b"authorization", b"Bearer " + secret.encode()),)
    authorities = None
    if config.tls_ca_file is not None:
        try:
            authorities = config.tls_ca_file.read_bytes()
        except OSError as error:
            raise ConfigError(f"parallel.readers.tls_ca_file={config.tls_ca_file}: cannot be read ({error})") from error
    return Access(headers, authorities, config.deadline_s)
