"""Batches from readers: those of local files, whatever the readers do."""

from __future__ import annotations

import itertools
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from faulty_readers import (
    BATCH,
    GARBAGE,
    GARBAGE_IN_MEMORY,
    BadMemoryReader,
    BadReader,
    Rows,
    late,
    running,
    write_rows,
)
from pyarrow import flight

from rookery.config.token import Token
from rookery.data.flight_memory import BEGIN, Handover, machine
from rookery.data.flight_pool import Closed
from rookery.data.flight_server import ReaderServer
from rookery.data.flight_wire import Order, Ticket
from rookery.data.stream import Columns, LaneStream
from rookery.errors import ConfigError, DataError, ReadersGone

ANY_PORT = "grpc://127.0.0.1:0"
SECRET = "0123456789abcdef"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return Rows(write_rows(tmp_path_factory.mktemp("rows")))


@pytest.fixture(scope="module", params=["in memory", "sent"])
def reader(rows: Rows, request: pytest.FixtureRequest) -> Iterator[ReaderServer]:
    server = ReaderServer(rows, ANY_PORT, shares_memory=request.param == "in memory")
    with running(server):
        yield server


@pytest.fixture
def small_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch a ticket."""
    monkeypatch.setattr("rookery.data.flight_stream.TICKET_BYTES", BATCH * 16)


def assert_same(ours: Columns, theirs: Columns) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name


def assert_same_streams(ours: LaneStream, theirs: LaneStream, num_batches: int) -> None:
    """The same batches, and the same books at each of them."""
    for _ in range(num_batches):
        assert_same(next(ours), next(theirs))
        assert ours.position() == theirs.position()
        assert ours.ledger() == theirs.ledger()
        assert ours.lane_rows(ours.position()) == theirs.lane_rows(theirs.position())
        assert ours.total_rows(ours.position()) == theirs.total_rows(theirs.position())
    assert ours.finished() == theirs.finished()


def test_closing_ends_a_wait_for_a_reader_that_hangs(rows: Rows, small_tickets: None) -> None:
    gate = threading.Event()
    server = BadReader(rows, lambda batches: (gate.wait(20), batches)[1])
    with running(server):
        remote = rows.remote(server, deadline_s=30.0)
        threading.Timer(0.2, remote.close).start()
        began = time.monotonic()
        with pytest.raises(Closed):
            list(remote)
        assert time.monotonic() - began < 5
        gate.set()


class TestSameBatches:
    @pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 3), (1, 3), (2, 3), (11, 12)])
    def test_of_any_rank(self, rows: Rows, reader: ReaderServer, rank: int, world_size: int) -> None:
        local = rows.local(rank=rank, world_size=world_size)
        remote = rows.remote(reader, rank=rank, world_size=world_size)
        assert remote.lanes == local.lanes
        assert remote.batches_per_epoch == local.batches_per_epoch
        assert_same_streams(remote, local, 3 * local.batches_per_epoch + 2)
        assert remote.expected() == local.expected()
        remote.close()

    def test_of_one_lane_and_in_file_order(self, rows: Rows) -> None:
        for options in ({"shuffle": False}, {"shuffle": True}, {"limit": 70, "offset": 13}):
            source = Rows(rows.files, options)
            server = ReaderServer(source, ANY_PORT)
            with running(server):
                remote = source.remote(server, num_lanes=1)
                assert_same_streams(remote, source.local(1), 25)
                remote.close()

    def test_up_to_the_last_epoch(self, rows: Rows, reader: ReaderServer) -> None:
        remote = rows.remote(reader, num_epochs=2)
        batches = list(remote)
        assert len(batches) == 2 * remote.batches_per_epoch
        numbers = torch.cat([batch["row"] for batch in batches])
        assert numbers.bincount().tolist() == [2] * 191
        assert all(ledger.accounts_for(remote.expected()) for ledger in remote.finished())
        remote.close()

    def test_behind_any_position(self, rows: Rows, reader: ReaderServer) -> None:
        whole, local, remote = rows.local(), rows.local(), rows.remote(reader)
        positions = [whole.position() for _ in itertools.islice(whole, 20)]
        for place in (13, 2, 7, 8, 19):
            local.seek(positions[place])
            remote.seek(positions[place])
            remote.resume_ledger(remote.ledger())
            assert_same_streams(remote, local, 4)
        remote.close()

    def test_without_what_cannot_be_decoded(self, tmp_path: Path) -> None:
        files = write_rows(tmp_path)
        content = bytearray(files[1].read_bytes())
        content[40:60] = bytes(20)  # within the first row group's column
        files[1].write_bytes(content)
        source = Rows(files, {"on_corrupt": "skip"})
        server = ReaderServer(source, ANY_PORT)
        with running(server):
            remote = source.remote(server)
            assert_same_streams(remote, source.local(), 20)
            assert {ledger.skipped for ledger in remote.finished()} == {25}
            remote.close()

    @pytest.mark.parametrize("shares_memory", [True, False])
    def test_data_that_cannot_be_decoded_are_nobodys_fault(self, tmp_path: Path, shares_memory: bool) -> None:
        files = write_rows(tmp_path)
        content = bytearray(files[1].read_bytes())
        content[40:60] = bytes(20)
        files[1].write_bytes(content)
        source = Rows(files)
        server = ReaderServer(source, ANY_PORT, shares_memory=shares_memory)
        with running(server):
            remote = source.remote(server)
            for _ in range(2):  # and again: nothing is passed over
                with pytest.raises(DataError, match=r"part-1\.parquet: row group 0"):
                    list(itertools.islice(remote, 20))
            remote.close()


class TestReadersThatFail:
    @pytest.mark.parametrize("case", GARBAGE)
    def test_garbage_goes_to_others(self, rows: Rows, case: str, caplog: pytest.LogCaptureFixture) -> None:
        bad, good = BadReader(rows, GARBAGE[case], after=1), ReaderServer(rows, ANY_PORT)
        with running(bad, good), caplog.at_level(logging.WARNING, "rookery"):
            remote = rows.remote(bad, good)
            assert_same_streams(remote, rows.local(), 30)
            remote.close()
        assert bad.num_tickets >= 2
        assert f"reader 127.0.0.1:{bad.port}: " in caplog.text
        assert "its tickets go to the others" in caplog.text

    @pytest.mark.skipif(machine() is None, reason="this system has no memory to share")
    @pytest.mark.parametrize("case", GARBAGE_IN_MEMORY)
    def test_garbage_in_memory_goes_to_others(
        self, rows: Rows, case: str, caplog: pytest.LogCaptureFixture, small_tickets: None
    ) -> None:
        bad, good = BadMemoryReader(rows, GARBAGE_IN_MEMORY[case]), ReaderServer(rows, ANY_PORT)
        with running(bad, good), caplog.at_level(logging.WARNING, "rookery"):
            remote = rows.remote(bad, good)
            assert_same_streams(remote, rows.local(), 30)
            remote.close()
        assert bad.num_tickets >= 2
        assert f"reader 127.0.0.1:{bad.port}: it sent what was not asked for" in caplog.text
        assert "its tickets go to the others" in caplog.text

    @pytest.mark.skipif(machine() is None, reason="this system has no memory to share")
    def test_memory_that_cannot_be_opened_is_sent(self, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
        hidden = BadMemoryReader(rows, lambda memory, laid: laid.model_copy(update={"descriptor": 2**30}))
        with running(hidden), caplog.at_level(logging.INFO, "rookery"):
            remote = rows.remote(hidden)
            assert_same_streams(remote, rows.local(), 30)
            remote.close()
        assert "its memory cannot be seen here" in caplog.text
        assert hidden.num_tickets in (2, 3)  # two are asked for at a time
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING]

    @pytest.mark.skipif(machine() is None, reason="this system has no memory to share")
    def test_memory_that_is_late_for_its_deadline(self, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
        bad, good = BadMemoryReader(rows, lambda memory, laid: (time.sleep(3.0), laid)[1]), ReaderServer(rows, ANY_PORT)
        with running(bad, good):
            remote = rows.remote(bad, good, deadline_s=0.5)
            assert_same_streams(remote, rows.local(), 30)
            remote.close()
        assert "did not answer within the deadline" in caplog.text

    def test_one_that_does_not_answer_at_the_start_is_named(self, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
        gone, good = ReaderServer(rows, ANY_PORT), ReaderServer(rows, ANY_PORT)
        gone.shutdown()
        with running(good):
            remote = rows.remote(gone, good)
            assert_same_streams(remote, rows.local(), 10)
            remote.close()
        assert f"reader 127.0.0.1:{gone.port}: " in caplog.text
        assert "training begins with the others" in caplog.text

    def test_one_that_is_late_for_its_deadline(self, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
        bad, good = BadReader(rows, late), ReaderServer(rows, ANY_PORT)
        with running(bad, good):
            remote = rows.remote(bad, good, deadline_s=0.5)
            assert_same_streams(remote, rows.local(), 30)
            remote.close()
        assert "did not answer within the deadline" in caplog.text

    def test_one_that_is_slow_is_waited_for(self, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
        slow = BadReader(rows, lambda batches: (time.sleep(0.2), batches)[1])
        with running(slow):
            remote = rows.remote(slow)
            assert_same_streams(remote, rows.local(), 20)
            remote.close()
        assert caplog.text == ""

    def test_one_that_goes_away(self, rows: Rows) -> None:
        first, second = ReaderServer(rows, ANY_PORT), ReaderServer(rows, ANY_PORT)
        with running(first, second):
            remote, local = rows.remote(first, second), rows.local()
            assert_same_streams(remote, local, 10)
            first.shutdown()
            assert_same_streams(remote, local, 30)
            remote.close()

    def test_one_that_comes_back(self, rows: Rows, caplog: pytest.LogCaptureFixture, small_tickets: None) -> None:
        first = ReaderServer(rows, ANY_PORT)
        port = first.port
        remote, local = rows.remote(first, wait_s=30.0), rows.local()
        assert_same_streams(remote, local, 10)
        first.shutdown()
        second: list[ReaderServer] = []
        again = threading.Timer(1.0, lambda: second.append(ReaderServer(rows, f"grpc://127.0.0.1:{port}")))
        again.start()
        assert_same_streams(remote, local, 30)
        remote.close()
        again.join()
        with running(*second):
            assert caplog.text.count("no reader answers; training waits up to 30 s") == 1
            assert f"reader 127.0.0.1:{port} answers" in caplog.text

    def test_with_none_left_it_waits_and_then_says_so(self, rows: Rows, small_tickets: None) -> None:
        first = ReaderServer(rows, ANY_PORT)
        port = first.port
        remote, local = rows.remote(first, wait_s=1.5), rows.local()
        assert_same_streams(remote, local, 10)
        first.shutdown()
        start = time.monotonic()
        with pytest.raises(ReadersGone, match=rf"for 1\.5 s:\n  127\.0\.0\.1:{port}: .*\nstart readers"):
            assert_same_streams(remote, local, 1_000)  # what came ahead is still handed out
        assert 1.0 < time.monotonic() - start < 5.0
        with pytest.raises(ReadersGone):
            next(remote)
        second = ReaderServer(rows, f"grpc://127.0.0.1:{port}")
        with running(second):
            time.sleep(2.5)  # greeted again after a pause
            position = remote.position()
            for stream in (remote, local):
                stream.seek(position)
            assert_same_streams(remote, local, 20)
            remote.close()

    def test_none_from_the_beginning(self, rows: Rows) -> None:
        with pytest.raises(ReadersGone, match=r"127\.0\.0\.1:1: "):
            rows.remote(addresses=("127.0.0.1:1",), wait_s=0.5)


class TestRefusals:
    def test_other_data_and_other_settings_are_named(self, rows: Rows, tmp_path: Path) -> None:
        fewer = write_rows(tmp_path / "fewer", [[10] * 7 + [3], [25, 1, 1, 1], [6, 40, 2, 9, 9, 5], [11, 7]])
        (tmp_path / "same").mkdir()
        copies = [Path(shutil.copy(file, tmp_path / "same")) for file in rows.files]
        cases = {
            "seed: the reader has 4, this trainer 3": Rows(rows.files, {"seed": 4}),
            "rows: the reader has 190, this trainer 191": Rows(fewer),
            "buffer_rows: the reader has 60, this trainer 120": Rows(rows.files, {"buffer_rows": 60}),
            "selected rows: the reader has ": Rows(rows.files, {"offset": 1, "limit": 190}),
            "shuffle: the reader has False": Rows(rows.files, {"shuffle": False}),
            "files: the reader has 3, this trainer 4": Rows(rows.files[:3]),
        }
        for message, source in cases.items():
            server = ReaderServer(source, ANY_PORT)
            with running(server), pytest.raises(ConfigError, match=f"parallel.readers: reader .*\n(.*\n)*  {message}"):
                rows.remote(server)
        server = ReaderServer(Rows(copies), ANY_PORT)  # the same files elsewhere
        with running(server):
            remote = rows.remote(server)
            assert_same_streams(remote, rows.local(), 10)
            remote.close()

    def test_the_token(self, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        server = ReaderServer(rows, ANY_PORT, token=Token(SECRET))
        (tmp_path / "token").write_text(SECRET)
        (tmp_path / "wrong").write_text(SECRET.replace("0", "1"))
        with running(server):
            for options in ({}, {"token_file": tmp_path / "wrong"}):
                with pytest.raises(ConfigError, match="the token is missing or wrong"):
                    rows.remote(server, **options)
            for options in ({"token_file": tmp_path / "token"}, {}):
                remote = rows.remote(server, **options)
                assert_same_streams(remote, rows.local(), 10)
                remote.close()
                monkeypatch.setenv("ROOKERY_TOKEN", SECRET)

    def test_encryption(self, rows: Rows, tmp_path: Path) -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("openssl, which makes the certificate, is not there")
        key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
        request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run([openssl, *request, *names], check=True, capture_output=True)
        server = ReaderServer(rows, "grpc+tls://127.0.0.1:0", certificate=(certificate.read_bytes(), key.read_bytes()))
        with running(server):
            remote = rows.remote(server, tls_ca_file=certificate)
            assert_same_streams(remote, rows.local(), 10)
            remote.close()
            with pytest.raises(ReadersGone):  # neither unencrypted
                rows.remote(server, wait_s=0.3)
        with pytest.raises(ConfigError, match=r"tls_ca_file=.*absent: cannot be read"):
            rows.remote(server, tls_ca_file=tmp_path / "absent")


class TestBounds:
    def test_a_trainer_asks_a_few_tickets_ahead(self, rows: Rows, small_tickets: None) -> None:
        server = BadReader(rows, lambda batches: batches)
        with running(server):
            remote = rows.remote(server)
            for taken in range(1, 6):
                next(remote)
                time.sleep(0.3)
                assert taken < server.num_tickets <= taken + 2
            remote.close()

    def test_a_reader_takes_so_many_tickets(self, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
        """One that is asked for more says so, and the trainer comes back."""
        waiting = threading.Event()
        server = ReaderServer(rows, ANY_PORT)
        server._num_taken = 10_000
        threading.Timer(0.5, lambda: (setattr(server, "_num_taken", 0), waiting.set())).start()
        with running(server):
            remote = rows.remote(server, wait_s=20.0)
            assert_same_streams(remote, rows.local(), 10)
            assert waiting.is_set()
            assert "10000 tickets are under way; come back later" in caplog.text
            remote.close()
            deadline = time.monotonic() + 5
            while server._num_taken and time.monotonic() < deadline:
                time.sleep(0.02)
            assert server._num_taken == 0

    @pytest.mark.skipif(machine() is None, reason="this system has no memory to share")
    def test_memory_is_used_again(self, rows: Rows, small_tickets: None) -> None:
        server = ReaderServer(rows, ANY_PORT)
        with running(server):
            remote = rows.remote(server)
            open_files = []
            for _ in range(4):
                assert_same_streams(remote, rows.local(), 20)
                remote.seek(rows.local().position())
                open_files.append(len(list(Path("/proc/self/fd").iterdir())))
            remote.close()
        # Two tickets at a time, and those of the thread that closes the last ones.
        assert 1 <= len(server._memories._idle) <= 4
        assert open_files[-1] <= open_files[0] + 6

    @pytest.mark.skipif(machine() is None, reason="this system has no memory to share")
    def test_memory_is_not_used_again_before_it_was_read(self, rows: Rows) -> None:
        server = ReaderServer(rows, ANY_PORT)
        with running(server), flight.connect(f"grpc://127.0.0.1:{server.port}") as client:
            order = Order(batch_size=BATCH, num_lanes=12)
            identity = rows.open(order).identity
            ticket = Ticket(identity=identity, order=order, start=0, stop=12, epoch=0, first=0, count=2)
            writer, call = client.do_exchange(flight.FlightDescriptor.for_command(ticket.to_bytes()))
            writer.write_metadata(BEGIN)
            assert len(Handover.from_bytes(call.read_chunk().app_metadata.to_pybytes()).headers) == 2
            time.sleep(0.3)
            assert (len(server._memories._idle), server._num_taken) == (0, 1)
            writer.close()
            deadline = time.monotonic() + 5
            while server._num_taken and time.monotonic() < deadline:
                time.sleep(0.02)
            assert (len(server._memories._idle), server._num_taken) == (1, 0)

    def test_closing_leaves_no_thread(self, rows: Rows, reader: ReaderServer) -> None:
        def own() -> set[str]:
            return {thread.name for thread in threading.enumerate() if thread.name.startswith(("flight", "readers"))}

        before = own()
        remote = rows.remote(reader)
        next(remote)
        assert own() > before
        remote.close()
        time.sleep(0.5)
        assert own() == before


def settled_tickets(servers: Sequence[BadReader]) -> list[int]:
    """How many tickets each was asked for, once what was asked ahead has come in."""
    before, now = [-1], [server.num_tickets for server in servers]
    while now != before:
        time.sleep(0.5)
        before, now = now, [server.num_tickets for server in servers]
    return now


def test_several_ranks_prefer_readers_of_their_own(rows: Rows) -> None:
    servers = [BadReader(rows, lambda batches: batches) for _ in range(4)]
    with running(*servers):
        streams = [rows.remote(*servers, rank=rank, world_size=2) for rank in range(2)]
        asked = []
        for stream in streams:
            list(itertools.islice(stream, 30))
            stream.close()
            asked.append(settled_tickets(servers))
    assert asked[0][2:] == [0, 0] and min(asked[0][:2]) > 0
    assert asked[1][:2] == asked[0][:2] and min(asked[1][2:]) > 0
