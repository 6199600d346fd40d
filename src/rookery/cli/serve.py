"""``rookery serve``: timelines over HTTP."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rookery.cli.output import progress_console
from rookery.errors import MissingExtra
from rookery.storage.location import Location, parse_location

if TYPE_CHECKING:
    from rookery.serve.served import Opener


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(_serve)


def _serve(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="What 'rookery timeline build' wrote, a link to it, or the URL where it was uploaded; a newer one in "
            "its place is taken up.",
            show_default=False,
        ),
    ],
    host: Annotated[
        str | None, typer.Option(help="Address to listen at; only with a token other than 127.0.0.1.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen at; 0: any that is free. [default: 8000]")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that requests carry; or set ROOKERY_TOKEN.")
    ] = None,
    world: Annotated[
        Path | None, typer.Option(help="The simulated world that RUN is of: posts then carry their true probabilities.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with limits, batching and times.")] = None,
) -> None:
    """Serve the timelines of a bundle, with a page to look at them, until Ctrl-C or SIGTERM."""
    _require_packages()
    from rookery.config.loader import load_config, parse_config
    from rookery.serve.config import ServeConfig
    from rookery.serve.run import serve
    from rookery.train.runtime import keep_freed_memory

    flags = {"host": host, "port": port, "token_file": None if token_file is None else str(token_file)}
    given = {name: value for name, value in flags.items() if value is not None}
    if config is None:
        settings = parse_config(ServeConfig, given, "the command line")
    else:
        settings = load_config(ServeConfig, config, flags=[f"{name}={value}" for name, value in given.items()])
    keep_freed_memory()
    bundle, refresh = _bundle(parse_location(run, "RUN"))
    serve(
        bundle,
        _opener(world),
        settings,
        os.environ,
        lambda address: progress_console.print(f"serving {run} at {address}"),
        refresh,
    )


def _bundle(place: Location) -> tuple[Path, Callable[[], None]]:
    """The folder to serve, and what brings it up to date: of a URL the copy on this machine."""
    if isinstance(place, Path):
        return place, lambda: None
    from rookery.checkpoint.fetch import WatchedCopy

    copy = WatchedCopy(place)
    return copy.folder, copy.refresh


def _opener(folder: Path | None) -> Opener:
    """Opens bundles; of a simulated world, with its truth."""
    from rookery.serve.bundle_timeline import BundleTimeline, open_bundle, warmed_up
    from rookery.timeline.bundle import Bundle
    from rookery.timeline.timeline import Timeline

    if folder is None:
        return open_bundle
    from rookery.world.world import World

    world = World.open(folder)

    def open_with_truth(bundle: Path) -> BundleTimeline:
        opened = Bundle.open(bundle)
        opened.require_catalog_of(world.catalog, folder)
        return warmed_up(Timeline(opened, truth=world.true_probabilities))

    return open_with_truth


def _require_packages() -> None:
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"rookery serve needs {package}: pip install 'rookery[serve]'")
