"""How long do answers of ``rookery serve`` take, one at a time and under load?

The server runs in a process of its own, the clients in this one, on the same machine. Requests arrive by a Poisson
clock that does not wait for answers (an open loop), and a latency counts from the moment at which the clock meant the
request to be sent: time that it waits for a connection, or behind others, is in it.

Two models are served. The demo's, whole, from its bundle (``--bundle``; made by ``rookery demo`` if none is named):
ranking 1,500 posts, timelines of 20 posts one at a time, and at rising rates for as long as 99% are answered within 250
ms. And the production-size ranker of ``ranker_step.py`` (48.1 M parameters, bf16), whose features no catalog has: 1,500
rows are taken from a table of 3,000 posts in memory, then all goes the same way, network, weighted sums, JSON.

    python benchmarks/serve.py --json
    python benchmarks/serve.py --bundle RUN --reloads 20    # memory, as bundles are exchanged
    python benchmarks/serve.py --bundle RUN --users 3000    # memory, as timelines of ever new users are asked for
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from ranker_step import TASKS, Impressions, Ours, configuration

from rookery.ranker.batch import RankerFeatures
from rookery.serve.bundle_timeline import open_bundle
from rookery.serve.config import Batching, Limits, ServeConfig
from rookery.serve.run import serve
from rookery.timeline.posts import Query, RankedPost, RankQuery
from rookery.train.runtime import keep_freed_memory

NUM_RANKED = 1_500
NUM_STORED = 3_000
NUM_WARM = 5
DEMO_P99_MS, PRODUCTION_P99_MS, LOADED_P99_MS = 100.0, 1_200.0, 250.0
RATES = (5, 10, 20, 40, 60, 80, 100, 120, 140, 160, 200, 240, 300, 400)
SEED = 0


class ProductionTimeline:
    """Ranks posts by the production-size network in bf16, over features that lie in memory."""

    version, tasks, weights = "production", TASKS, dict.fromkeys(TASKS, 1.0)

    def __init__(self) -> None:
        self._ours = Ours(configuration())
        self._ours.start_scoring()
        self._stored = Impressions().batch(NUM_STORED, SEED).features
        self.answer([RankQuery("user_0", [f"post_{row}" for row in range(NUM_RANKED)])])

    def num_rows(self, query: Query) -> int:
        assert isinstance(query, RankQuery)
        return len(query.post_ids)

    def answer(self, queries: Sequence[Query]) -> list[list[RankedPost]]:
        ids = [query.post_ids for query in queries if isinstance(query, RankQuery)]
        rows = torch.tensor([int(post.removeprefix("post_")) for posts in ids for post in posts])
        probabilities = self._score(rows)
        parts = probabilities.split([len(posts) for posts in ids])
        return [self._ranked(posts, part) for posts, part in zip(ids, parts, strict=True)]

    @torch.no_grad()
    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        stored = self._stored
        features = RankerFeatures(
            continuous=stored.continuous[rows],
            binary=stored.binary[rows],
            dense={name: vectors[rows] for name, vectors in stored.dense.items()},
            discrete={},
            ragged={},
            joined={},
            position=None,
        )
        with torch.autocast("cpu", torch.bfloat16):
            return self._ours.scorer.probabilities(features).double()

    def _ranked(self, posts: Sequence[str], probabilities: torch.Tensor) -> list[RankedPost]:
        scores = probabilities.sum(1)
        rows = probabilities.tolist()
        return [
            self._post(posts[place], rows[place]) for place in scores.argsort(descending=True, stable=True).tolist()
        ]

    def _post(self, post: str, chances: list[float]) -> RankedPost:
        by_task = dict(zip(self.tasks, chances, strict=True))
        return RankedPost(
            post_id=post,
            author_id="user_1",
            source="in_network",
            created_at="2026-01-15T00:00:00+00:00",
            topic="topic_1",
            media="none",
            probabilities=by_task,
            contributions=by_task,
            score=sum(chances),
        )


def run_server(kind: str, bundle: Path) -> None:
    """The other process: serve, and print the address."""
    keep_freed_memory()
    config = ServeConfig(port=0, limits=Limits(deadline_s=30.0), batching=Batching())

    def say(address: str) -> None:
        print(address, flush=True)

    openers: dict[str, Callable[[Path], Any]] = {"demo": open_bundle, "production": lambda _: ProductionTimeline()}
    serve(bundle, openers[kind], config, {}, say)


@contextmanager
def server(kind: str, bundle: Path) -> Iterator[str]:
    command = [sys.executable, __file__, "--server", kind, "--bundle", str(bundle)]
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}  # waiting threads must not take the cores from others
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().strip()
        if not address:
            sys.exit(process.stderr.read())
        try:
            yield address
        finally:
            process.terminate()
            process.communicate()


class Client:
    """Keeps connections open and reads whole answers; HTTP/1.1 with Content-Length, nothing more."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname, parts.port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body."""
        connection = reader, writer = await self._connected()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        writer.write(f"{head}\r\n\r\n".encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        answer = await reader.readexactly(int(headers["content-length"]))
        self._idle.append(connection)
        return int(lines[0].split()[1]), answer

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that is open: the server closes those that were idle for long."""
        while self._idle:
            connection = self._idle.pop()
            if not connection[0].at_eof():
                return connection
        limit = 2**24  # bytes: an answer of 1,500 posts is more than a stream holds by default
        return await asyncio.open_connection(self._host, self._port, limit=limit)

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()


@dataclass(frozen=True)
class Load:
    """``rate`` requests a second for ``seconds``, of the bodies in turn."""

    path: str
    bodies: Sequence[bytes]
    rate: float
    seconds: float


async def put_under(address: str, load: Load) -> dict[str, Any]:
    """Latencies in an open loop."""
    client, clock = Client(address), random.Random(SEED)
    statuses: Counter[int] = Counter()
    latencies_ms: list[float] = []
    start = time.perf_counter()

    async def send(intended: float, body: bytes) -> None:
        status, _ = await client.post(load.path, body)
        statuses[status] += 1
        latencies_ms.append((time.perf_counter() - intended) * 1e3)

    sent, intended = [], start
    while (intended := intended + clock.expovariate(load.rate)) < start + load.seconds:
        await asyncio.sleep(max(intended - time.perf_counter(), 0))
        sent.append(asyncio.create_task(send(intended, load.bodies[len(sent) % len(load.bodies)])))
    await asyncio.gather(*sent)
    elapsed_s = time.perf_counter() - start
    await client.close()
    return _summary(load, statuses, latencies_ms, elapsed_s)


def _summary(load: Load, statuses: Counter[int], latencies_ms: list[float], elapsed_s: float) -> dict[str, Any]:
    percentiles = statistics.quantiles(latencies_ms, n=100, method="inclusive")
    return {
        "rate": load.rate,
        "requests": len(latencies_ms),
        "statuses": dict(statuses),
        "per_s": round(len(latencies_ms) / elapsed_s, 1),
        "p50_ms": round(percentiles[49], 1),
        "p90_ms": round(percentiles[89], 1),
        "p99_ms": round(percentiles[98], 1),
        "max_ms": round(max(latencies_ms), 1),
    }


def measure(address: str, load: Load) -> dict[str, Any]:
    async def warmed() -> dict[str, Any]:
        client = Client(address)
        for body in load.bodies[:NUM_WARM]:
            await client.post(load.path, body)
        await client.close()
        before = cpu_seconds(address)
        found = await put_under(address, load)
        return {**found, "server_cpu_ms": round((cpu_seconds(address) - before) * 1e3 / found["requests"], 1)}

    return asyncio.run(warmed())


def cpu_seconds(address: str) -> float:
    """What the server has used of all cores; on a busy machine it says more than the latencies."""
    return counter(address, "process_cpu_seconds_total")


def counter(address: str, name: str) -> float:
    """A value of ``/metrics``; 0 while it is not there."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def measure_demo(bundle: Path, seconds: float) -> dict[str, Any]:
    timeline = open_bundle(bundle)
    users = [user["id"] for user in timeline.users("", 100)]
    posts = json.loads(timeline.map())["posts"]["id"]
    drawn = random.Random(SEED)
    ranks = [
        json.dumps({"user_id": user, "post_ids": [drawn.choice(posts) for _ in range(NUM_RANKED)]}).encode()
        for user in users
    ]
    timelines = [json.dumps({"user_id": user, "k": 20}).encode() for user in users]
    with server("demo", bundle) as address:
        return {
            "rank_1500": measure(address, Load("/v1/rank", ranks, 2.0, 10 * seconds)),
            "timeline": measure(address, Load("/v1/timeline", timelines, 4.0, 5 * seconds)),
            "timeline_under_load": list(_ladder(address, timelines, seconds)),
        }


def _ladder(address: str, bodies: Sequence[bytes], seconds: float) -> Iterator[dict[str, Any]]:
    """Rising rates up to the first that is too much."""
    for rate in RATES:
        found = measure(address, Load("/v1/timeline", bodies, rate, seconds))
        yield found
        if found["p99_ms"] > LOADED_P99_MS or set(found["statuses"]) != {200}:
            return


def measure_production(seconds: float) -> dict[str, Any]:
    drawn = random.Random(SEED)
    bodies = [
        json.dumps(
            {"user_id": "user_1", "post_ids": [f"post_{drawn.randrange(NUM_STORED)}" for _ in range(NUM_RANKED)]}
        )
        for _ in range(20)
    ]
    with tempfile.TemporaryDirectory() as folder, server("production", Path(folder)) as address:
        load = Load("/v1/rank", [body.encode() for body in bodies], 0.2, 15 * seconds)
        return {"rank_1500": measure(address, load)}


def measure_reloads(bundle: Path, num_reloads: int) -> dict[str, Any]:
    """Resident memory of a server whose bundle is exchanged, after ten timelines of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copies = [shutil.copytree(bundle, folder / copy) for copy in ("one", "other")]
        served = folder / "served"
        served.symlink_to(copies[0])
        users = [user["id"] for user in open_bundle(bundle).users("", 10)]
        load = Load("/v1/timeline", [json.dumps({"user_id": user, "k": 20}).encode() for user in users], 10.0, 1.0)
        with server("demo", served) as address:
            asyncio.run(put_under(address, load))
            memory_mb = [resident_mb(address)]
            for number in range(1, num_reloads + 1):
                (folder / "turning").symlink_to(copies[number % 2])
                (folder / "turning").replace(served)
                while counter(address, 'rookery_reloads_total{outcome="done"}') < number:
                    time.sleep(0.1)
                asyncio.run(put_under(address, load))
                memory_mb.append(resident_mb(address))
    return {"resident_mb": memory_mb}


def measure_users(bundle: Path, num_users: int) -> dict[str, Any]:
    """Resident memory of a server at first and after each tenth of the users, whose timelines three clients ask for."""
    users = [user["id"] for user in open_bundle(bundle).users("", num_users)]
    bodies = [json.dumps({"user_id": user, "k": 20}).encode() for user in users]
    tenth = -(-len(bodies) // 10)
    with server("demo", bundle) as address:
        memory_mb = [resident_mb(address)]
        for start in range(0, len(bodies), tenth):
            with ThreadPoolExecutor(3) as clients:
                list(clients.map(lambda body: post(address, body), bodies[start : start + tenth]))
            memory_mb.append(resident_mb(address))
    return {"users": len(users), "resident_mb": memory_mb}


def post(address: str, body: bytes) -> None:
    """Ask for a timeline; raises for any other answer than 200."""
    request = urllib.request.Request(f"{address}/v1/timeline", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        answer.read()


def resident_mb(address: str) -> int:
    return round(counter(address, "process_resident_memory_bytes") / 1e6)


def demo_bundle(folder: Path) -> Path:
    """The bundle of a small demo, made now; minutes."""
    subprocess.run([sys.executable, "-m", "rookery", "demo", "--folder", str(folder)], check=True, stdout=sys.stderr)
    return folder / "timeline"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--bundle", type=Path, help="a demo's bundle; made if left out")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each rate")
    parser.add_argument(
        "--reloads", type=int, default=0, help="exchange --bundle so often and tell the memory, no more"
    )
    parser.add_argument(
        "--users", type=int, default=0, help="ask for timelines of so many and tell the memory, no more"
    )
    parser.add_argument("--server", choices=["demo", "production"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.server:
        run_server(arguments.server, arguments.bundle)
        return
    if arguments.reloads:
        print(json.dumps(measure_reloads(arguments.bundle, arguments.reloads)))
        return
    if arguments.users:
        print(json.dumps(measure_users(arguments.bundle, arguments.users)))
        return
    with tempfile.TemporaryDirectory() as folder:
        demo = measure_demo(arguments.bundle or demo_bundle(Path(folder) / "demo"), arguments.seconds)
    production = measure_production(arguments.seconds)
    borne = [each for each in demo["timeline_under_load"] if each["p99_ms"] <= LOADED_P99_MS]
    result = {
        "demo_rank_1500_p99_ms": demo["rank_1500"]["p99_ms"],
        "demo_rank_1500_within": demo["rank_1500"]["p99_ms"] <= DEMO_P99_MS,
        "production_rank_1500_p99_ms": production["rank_1500"]["p99_ms"],
        "production_rank_1500_within": production["rank_1500"]["p99_ms"] <= PRODUCTION_P99_MS,
        "timelines_per_s": max((each["per_s"] for each in borne), default=0.0),
        "demo": demo,
        "production": production,
        "num_threads": torch.get_num_threads(),
    }
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
