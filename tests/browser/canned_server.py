"""A small server that answers as `rookery serve` does, from numbers drawn by seed: the page can be tested alone."""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = Path(__file__).parents[2] / "src/rookery/serve/page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NOW = datetime(2026, 3, 15, tzinfo=timezone.utc)
RATES = {
    "is_favorited": 0.15,
    "is_retweeted": 0.02,
    "is_replied": 0.03,
    "is_good_profile_clicked": 0.01,
    "is_video_playback_50": 0.1,
    "is_reply_engaged_by_author": 0.004,
    "is_good_clicked_v1": 0.02,
    "is_good_clicked_v2": 0.03,
    "is_negative_feedback": 0.003,
    "is_reported": 1e-4,
}
TASKS = list(RATES)
WEIGHTS = dict(zip(TASKS, [0.5, 1, 13.5, 12, 0.005, 75, 11, 10, -74, -369], strict=True))
SUCCESSOR = dict(zip(TASKS, [0.5, 1, 5, 0, 0, 0, 0.4, 0.4, -43.2, -234], strict=True))
CONFIG = {
    "tasks": TASKS,
    "presets": {"2023": WEIGHTS, "2026": SUCCESSOR},
    "weights": WEIGHTS,
    "author_diversity": {"decay": 0.5, "floor": 0.25},
    "out_of_network_factor": 0.75,
    "now": NOW.isoformat(),
    "version": "canned-1",
}
NUM_USERS, NUM_POSTS, NUM_TOPICS = 60, 1200, 12


@dataclass
class Canned:
    """What the server knows. ``token`` None: none is asked for; ``broken``: paths that answer 503."""

    token: str | None = None
    truth: bool = True
    measured: bool = True
    broken: set[str] = field(default_factory=set)

    def user(self, user_id: str) -> dict[str, Any]:
        draw = random.Random(user_id)
        return {
            "id": user_id,
            "favorites": draw.randrange(900),
            "following": draw.randrange(5, 200),
            "followers": draw.randrange(2000),
            "topics": [{"topic": f"topic_{n}", "favorites": 40 - n} for n in draw.sample(range(NUM_TOPICS), 4)],
        }

    def post(self, user_id: str, post_id: str) -> dict[str, Any]:
        """A candidate with probabilities about the base rates; a few are nearly sure to be disliked."""
        draw = random.Random(f"{user_id}/{post_id}")
        disliked = draw.random() < 0.08
        truth = {task: _near(rate, draw.gauss(0, 1)) for task, rate in RATES.items()}
        if disliked:
            truth["is_negative_feedback"] = 0.02 + draw.random() / 10
        post = {
            "post_id": post_id,
            "author_id": f"user_{draw.randrange(20)}",
            "source": draw.choice(["in_network", "out_of_network"]),
            "probabilities": {task: _near(p, draw.gauss(0, 0.35)) for task, p in truth.items()},
            "created_at": (NOW - timedelta(minutes=draw.randrange(1, 2880))).isoformat(),
            "topic": f"topic_{int(post_id.removeprefix('post_')) % NUM_TOPICS}",
            "media": draw.choice(["none", "image", "video"]),
        }
        return {**post, "true_probabilities": truth if self.truth else None}

    def candidates(self, user_id: str) -> list[str]:
        """None for the last user: the page has to say so."""
        if user_id == f"user_{NUM_USERS - 1}":
            return []
        return [f"post_{n}" for n in sorted(random.Random(user_id).sample(range(NUM_POSTS), 300))]

    def answer(self, path: str, query: dict[str, list[str]], body: dict[str, Any]) -> Any:
        """The JSON of one request; LookupError for what does not exist."""
        user_id = body.get("user_id", "")
        if path.startswith("/v1/users/"):
            return self.user(_known(unquote(path.removeprefix("/v1/users/"))))
        return {
            "/v1/config": lambda: CONFIG,
            "/v1/users": lambda: self._users(query.get("prefix", [""])[0], int(query["limit"][0])),
            "/v1/candidates": lambda: {"candidates": [{"post_id": each} for each in self.candidates(_known(user_id))]},
            "/v1/rank": lambda: {"posts": [self.post(user_id, each) for each in body["post_ids"]]},
            "/v1/neighbors": lambda: {
                "neighbors": [
                    {"id": f"user_{(int(_known(user_id)[5:]) + n) % NUM_USERS}", "score": 1 - n / 20}
                    for n in range(1, body["k"] + 1)
                ]
            },
            "/v1/map": embedding,
            "/v1/metrics": lambda: measurements() if self.measured else {},
        }[path]()

    def _users(self, prefix: str, limit: int) -> dict[str, Any]:
        ids = [f"user_{n}" for n in range(NUM_USERS)]
        return {"users": [self.user(each) for each in ids if each.startswith(prefix)][:limit]}


@contextmanager
def serving(canned: Canned) -> Iterator[str]:
    """The address of a server on a free port of the loopback, for as long as the block runs."""
    handler = type("Handler", (_Handler,), {"canned": canned})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    canned: Canned
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/" or path.startswith("/page/"):
            name = path.removeprefix("/page/").strip("/") or "index.html"
            self._send(200, KINDS[Path(name).suffix], (PAGE / name).read_bytes())
        else:
            self._api({})

    def do_POST(self) -> None:
        self._api(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _api(self, body: dict[str, Any]) -> None:
        parts = urlsplit(self.path)
        if self.canned.token and self.headers["Authorization"] != f"Bearer {self.canned.token}":
            self._json(401, {"error": {"code": "unauthorized", "message": "This token is not the server's."}})
        elif parts.path in self.canned.broken:
            self._json(503, {"error": {"code": "overloaded", "message": "Too many requests at once; try again."}})
        else:
            try:
                self._json(200, self.canned.answer(parts.path, parse_qs(parts.query), body))
            except LookupError as error:
                self._json(404, {"error": {"code": "unknown_id", "message": str(error.args[0])}})

    def _json(self, status: int, answer: Any) -> None:
        self._send(status, "application/json", json.dumps(answer).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Silence: the tests say what went wrong."""


def embedding() -> dict[str, Any]:
    """Posts about the middle of their topic, people anywhere between two topics."""
    draw = random.Random(5)
    middles = [(draw.gauss(0, 30), draw.gauss(0, 30)) for _ in range(NUM_TOPICS)]
    posts: dict[str, list[Any]] = {"id": [], "x": [], "y": [], "topic": []}
    users: dict[str, list[Any]] = {"id": [], "x": [], "y": []}
    for number in range(NUM_POSTS):
        topic = number % NUM_TOPICS
        _append(
            posts,
            id=f"post_{number}",
            x=draw.gauss(middles[topic][0], 5),
            y=draw.gauss(middles[topic][1], 5),
            topic=f"topic_{topic}",
        )
    for number in range(NUM_USERS):
        (ax, ay), (bx, by) = draw.sample(middles, 2)
        _append(users, id=f"user_{number}", x=(ax + bx) / 2 + draw.gauss(0, 4), y=(ay + by) / 2 + draw.gauss(0, 4))
    return {"method": "t-SNE", "users": users, "posts": posts}


def measurements() -> dict[str, Any]:
    """A table, two curves and a diagram for each task."""
    curves = [
        {"name": name, "points": [[step, low + 0.9 * math.exp(-step / 300)] for step in range(0, 2001, 50)]}
        for name, low in [("with TwHIN", 0.31), ("without TwHIN", 0.35)]
    ]
    return {
        "tables": [
            {
                "title": "What a timeline is worth",
                "lead": "True expected engagement of the first 20 posts.",
                "columns": ["policy", "worth", "share of oracle"],
                "rows": [["random", 2.1, 0.31], ["recency", 2.6, 0.38], ["ranker", 5.9, 0.87], ["oracle", 6.8, 1.0]],
                "percent": ["share of oracle"],
                "bar": "share of oracle",
            }
        ],
        "training": [{"title": "training loss", "log": False, "curves": curves}],
        "reliability": [_diagram(task, rate) for task, rate in RATES.items()],
    }


def _diagram(task: str, rate: float) -> dict[str, Any]:
    draw = random.Random(task)
    means = [_near(rate, n / 4 - 2) for n in range(16)]
    bins = [
        {"low": p, "high": p, "mean_prediction": p, "ctr": _near(p, draw.gauss(0, 0.15)), "count": 2000.0}
        for p in means
    ]
    return {"model": "with TwHIN", "task": task, "metrics": {"calibration": 1.01, "ece": 0.003}, "bins": bins}


def _known(user_id: str) -> str:
    if user_id not in {f"user_{n}" for n in range(NUM_USERS)}:
        raise LookupError(f"{user_id}: no such user")
    return user_id


def _near(rate: float, odds: float) -> float:
    """``rate`` moved by so much log-odds."""
    return 1 / (1 + math.exp(-(math.log(rate / (1 - rate)) + odds)))


def _append(columns: dict[str, list[Any]], **values: Any) -> None:
    for name, value in values.items():
        columns[name].append(value)
