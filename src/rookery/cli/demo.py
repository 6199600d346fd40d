"""``rookery demo``: from nothing to a ranked timeline."""

from __future__ import annotations

import enum
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from typing_extensions import Self

from rookery.cli.output import JsonFlag, emit, progress_console

if TYPE_CHECKING:
    from rookery.demo.demo import DemoResult


class DemoSize(enum.Enum):
    """How large a world."""

    TINY = "tiny"
    SMALL = "small"
    MEDIUM = "medium"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(_demo)


def _demo(
    size: Annotated[DemoSize, typer.Option(help="300, 4 thousand or 100 thousand users.")] = DemoSize.SMALL,
    folder: Annotated[
        Path | None, typer.Option(help="Where everything goes; left out: demo-SIZE.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the world.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Simulate a society, train TwHIN and the ranker on what it did, and hold timelines against the truth.

    Started again after an interruption it goes on where it was.
    """
    from rookery.demo.demo import run_demo
    from rookery.world.config import WorldConfig

    started = time.monotonic()
    result = run_demo(folder or Path(f"demo-{size.value}"), WorldConfig.of_size(size.value, seed), _Stages())
    report = {**vars(result), "elapsed_s": round(time.monotonic() - started, 1)}
    emit(report, as_json, lambda: _render(result, report["elapsed_s"]))


class _Stages:
    """A line and a bar for each stage, on stderr."""

    @contextmanager
    def stage(self, number: int, total: int, title: str) -> Iterator[_StageBar]:
        progress_console.print(f"[bold]{number}/{total}[/] {title}", highlight=False)
        start = time.monotonic()
        with _StageBar() as bar:
            yield bar
        progress_console.print(f"    [dim]{time.monotonic() - start:.0f} s[/]", highlight=False)


class _StageBar:
    """How far a stage is: a bar in a terminal, a line a tenth elsewhere."""

    def __init__(self) -> None:
        self._is_live = progress_console.is_interactive
        columns = (TextColumn("   "), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=progress_console, transient=True, disable=not self._is_live)
        self._task = self._bar.add_task("", total=None)
        self._tenths = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, done: int, of: int) -> None:
        self._bar.update(self._task, completed=done, total=of)
        tenths = 10 * done // of
        if tenths > self._tenths and not self._is_live:
            progress_console.print(f"    {10 * tenths}%", highlight=False)
        self._tenths = tenths

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._bar.stop()
        yield
        self._bar.start()


def _render(result: DemoResult, elapsed_s: float) -> Group:
    measures = Table(
        Column("", overflow="fold"),
        "chance",
        "without TwHIN",
        "with TwHIN",
        "oracle",
        "reached",
        title="What was reached",
        caption=_not_predicted(result.not_predicted),
    )
    for each in result.measures:
        figures = (each.chance, each.without_twhin, each.with_twhin, each.oracle)
        reached = "–" if each.reached is None else f"{each.reached:.0%}"
        measures.add_row(each.title, *(f"{figure:.3f}" for figure in figures), reached)
    policies = Table("", "share of the oracle", "95%", title="What a timeline is worth")
    for policy in result.policies:
        low, high = policy["share_interval"]
        policies.add_row(policy["policy"].replace("_", " "), f"{policy['share']:.0%}", f"{low:.0%}–{high:.0%}")
    return Group(
        measures,
        policies,
        f"{elapsed_s:.0f} s; the page: {result.report}",
        f"next: {_program()} serve {_short(result.bundle)} --world {_short(result.world)}",
    )


def _not_predicted(tasks: Sequence[str]) -> str | None:
    return f"not predicted, so not weighed: {', '.join(tasks)}" if tasks else None


def _program() -> str:
    """What to type for this program: its name where the shell finds it, else its path."""
    return "rookery" if shutil.which("rookery") else _short(Path(sys.argv[0]))


def _short(path: Path) -> str:
    """The path from here if it lies below, quoted for a shell."""
    here, whole = Path.cwd(), path.absolute()
    return shlex.quote(str(whole.relative_to(here) if whole.is_relative_to(here) else whole))
