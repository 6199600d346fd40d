"""The application in this process, over a fake timeline."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from served_fake import FakeTimeline, open_fake, write_bundle
from serving import Served, served, write_config
from small_timeline import SmallParts, write_parts
from typing_extensions import Self

from rookery.config.token import Token
from rookery.serve.app import create_app
from rookery.serve.bundle import BundleHolder
from rookery.serve.config import ServeConfig
from rookery.serve.lifecycle import Lifecycle
from rookery.serve.served import Opener


class Client:
    """Asks an application that lives on an event loop of its own; within the context it runs."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._run(self._lifespan.__aenter__())
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._client.aclose())
        self._run(self._lifespan.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._run(self._client.request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def post_all(self, path: str, bodies: list[Any]) -> list[httpx.Response]:
        """All at the same time."""

        async def together() -> list[httpx.Response]:
            return await asyncio.gather(*(self._client.post(path, json=body) for body in bodies))

        return self._run(together())

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


class Application:
    """An application and who asks it."""

    def __init__(self, bundle: Path, opener: Opener, config: ServeConfig, token: str | None) -> None:
        self.holder: BundleHolder[Any] = BundleHolder(bundle, opener)
        self.lifecycle = Lifecycle()
        self.app = create_app(self.holder, config, None if token is None else Token(token), self.lifecycle)
        self.client = Client(self.app)

    @property
    def timeline(self) -> FakeTimeline:
        return self.holder.current


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SmallParts:
    """Of 50 users and 400 posts."""
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def bundle(parts: SmallParts) -> Path:
    """A real one."""
    return parts.build(parts.folder / "bundle")


@pytest.fixture(scope="module", params=["served_fake", "served_bundle"])
def module(request: pytest.FixtureRequest) -> str:
    """A fake timeline, which answers at once, and a real one."""
    return str(request.param)


@pytest.fixture(scope="module")
def start_server(
    module: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Served]]:
    """Starts a server process of either timeline; keywords are limits. In the end its log has no traceback."""
    folder = tmp_path_factory.mktemp("server")
    with ExitStack() as stack:

        def started(batch_s: float = 0.0, **limits: Any) -> Served:
            served_bundle = bundle
            if module == "served_fake":
                served_bundle = folder / "bundle"
                write_bundle(served_bundle, "v1", batch_s)
            server = stack.enter_context(
                served(served_bundle, folder / "log", write_config(folder, **limits), module=module)
            )
            stack.callback(lambda: require_no_traceback(server.log))
            return server

        yield started


def require_no_traceback(log: str) -> None:
    assert "Traceback" not in log, log


@pytest.fixture(autouse=True)
def _nothing_stays_aside() -> Iterator[None]:
    """An exchange of bundles sets aside what lives in this process."""
    yield
    gc.unfreeze()


@pytest.fixture
def serve_bundle() -> Iterator[Callable[..., Application]]:
    """Starts applications over a bundle; keywords are limits."""
    with ExitStack() as stack:

        def started(bundle: Path, opener: Opener, token: str | None = None, batching=None, **limits) -> Application:
            config = ServeConfig.model_validate({"limits": limits, "batching": batching or {}, "reload_every_s": 0.05})
            application = Application(bundle, opener, config, token)
            stack.enter_context(application.client)
            return application

        yield started


@pytest.fixture
def start(tmp_path: Path, serve_bundle) -> Callable[..., Application]:
    """Starts an application over a fake timeline."""

    def started(batch_s: float = 0.0, **options) -> Application:
        write_bundle(tmp_path / "bundle", "v1", batch_s)
        return serve_bundle(tmp_path / "bundle", open_fake, **options)

    return started


@pytest.fixture
def application(start) -> Application:
    return start()


@pytest.fixture
def client(application) -> Client:
    return application.client
