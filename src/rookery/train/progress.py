"""What a person sees on stderr while a model trains: a live bar in a terminal, a line a log elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.text import Text
from typing_extensions import Self

# In a line of text only; the sinks have them all.
_LEFT_OUT = ("time/", "lr/", "grad_norm/", "epoch", "unknown/")
_MAX_SHOWN = 12


class Progress:
    """Steps done of ``num_steps``, the rate of ``unit`` and the time that is left."""

    def __init__(
        self, step: int, num_steps: int, unit: str, console: Console | None = None, *, is_shown: bool = True
    ) -> None:
        self._console = console or Console(stderr=True, quiet=not is_shown)
        self._is_live = self._console.is_terminal
        self._first_step, self._num_steps, self._unit = step, num_steps, unit
        self._start = time.perf_counter()
        self._bar = RichProgress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._is_live,
        )
        self._task = self._bar.add_task("training", total=num_steps, completed=step, note="", num_examples=0)
        self._num_examples = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, step: int, num_examples: int) -> None:
        """``step`` steps are done, the last of them with ``num_examples`` examples."""
        self._num_examples += num_examples
        if self._is_live:
            self._bar.update(self._task, completed=step, num_examples=self._num_examples)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a log: behind the bar, or as a line."""
        shown = {name: value for name, value in metrics.items() if not name.startswith(_LEFT_OUT)}
        note = "  ".join(_format(name, value) for name, value in shown.items())
        if self._is_live:
            self._bar.update(self._task, note=_format("loss", metrics["loss"]))
        else:
            self._print(f"step {step:,}/{self._num_steps:,}  {note}  {self._remaining(step)} left")

    def validation(self, step: int, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Show the metrics of a validation; of many those that are means over the others."""
        means = {name: value for name, value in metrics.items() if "mean/" in name}
        shown = metrics if len(metrics) <= _MAX_SHOWN else means or metrics
        note = "  ".join(_format(name, value) for name, value in shown.items())
        self._print(f"step {step:,}: validation  {note}{'  (best so far)' if is_best else ''}")

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _remaining(self, step: int) -> timedelta:
        seconds_per_step = (time.perf_counter() - self._start) / max(step - self._first_step, 1)
        return timedelta(seconds=round(seconds_per_step * (self._num_steps - step)))


class _RateColumn(ProgressColumn):
    """Examples a second since the bar began."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: RichTask) -> Text:
        rate = task.fields["num_examples"] / task.elapsed if task.elapsed else 0.0
        return Text(f"{rate:,.0f} {self._unit}/s")


def _format(name: str, value: float) -> str:
    if name.endswith("_per_s"):
        return f"{value:,.0f} {name.removesuffix('_per_s')}/s"
    return f"{name} {value:.5g}"
