"""SIGKILL at random moments, hundreds of times: `make chaos`.

A run is started, killed, and started again until it ends; it must end where a run ends that nothing touched. Each run
draws where its tables are: local, or in torchrec with a kind of sharding for each. Each start draws the number of
processes (1, 2 or 3; in about every fourth run all have 1), whether checkpoints are written beside training, when it is
killed (uniform over the time that it would take) and who is (one process or all). A line of JSON a run goes to stdout,
the sum of each model behind its runs.

The draws of run K follow from --seed and K alone: ``--first K --points 1`` draws them again. What they hit does not:
how far a process is after so many seconds depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parents[1] / "numerics"))

from forked_commands import Command, end
from survived_runs import last_step, require_survived
from training_jobs import (
    TORCHREC_DIM,
    TORCHREC_TABLES,
    Job,
    ranker_job,
    torchrec_ranker_job,
    torchrec_twhin_job,
    twhin_job,
)

from rookery.checkpoint.layout import checkpoint_steps
from rookery.optim.config import OptimizerConfig
from rookery.parallel.config import ShardingKind
from rookery.tables.backends import require_torchrec
from rookery.tables.refusals import TableAsked, WorldShape, kind_refusals

JOBS = {"twhin": (twhin_job, torchrec_twhin_job), "ranker": (ranker_job, torchrec_ranker_job)}
"""By model, that with local tables and that with tables in torchrec."""
SIZES = (1, 2, 3)
ALWAYS_ALONE = 0.25
"""Share of the runs whose starts are all of one process: with local tables these are compared to the bit."""
MOST_KILLS_OF_A_RUN = 3
# What torchrun does for those that are left when one has died: SIGTERM, and SIGKILL after a time.
UNTIL_SIGTERM_S, UNTIL_SIGKILL_S = 5.0, 5.0


@dataclass(frozen=True)
class Draw:
    """One start of a run: ``moment`` is the share of its time after which it is killed, None where it is to end."""

    size: int
    is_async: bool
    moment: float | None
    kills_all: bool


@dataclass(frozen=True)
class Plan:
    """What a run draws: how each table in torchrec lies over the processes, None where all are local; its starts."""

    sharding: Mapping[str, str] | None
    starts: Sequence[Draw]


def draw_plan(seed: int, model: str, number: int) -> Plan:
    """That of run ``number``."""
    chance = random.Random(f"{seed} {model} {number}")
    sharding = _draw_sharding(chance, model) if chance.random() < 0.5 else None
    sizes = (1,) if chance.random() < ALWAYS_ALONE else SIZES
    moments = [chance.random() for _ in range(chance.randint(1, MOST_KILLS_OF_A_RUN))]
    starts = [Draw(chance.choice(sizes), chance.random() < 0.5, m, chance.random() < 0.5) for m in [*moments, None]]
    return Plan(sharding, starts)


def _draw_sharding(chance: random.Random, model: str) -> dict[str, str]:
    """A kind for each table, at least one of which is not whole in every process."""
    while True:
        kinds = {table: chance.choice(kinds_for(optimizer)) for table, optimizer in TORCHREC_TABLES[model].items()}
        if set(kinds.values()) != {"data_parallel"}:
            return kinds


def kinds_for(optimizer: Mapping[str, object]) -> list[str]:
    """The kinds of sharding that a table with this optimizer may have, whatever the number of processes."""
    table = TableAsked("table", "tables.table", OptimizerConfig.model_validate(optimizer), 100, TORCHREC_DIM)
    shapes = [WorldShape(size, size) for size in SIZES]
    return [kind for kind in get_args(ShardingKind) if not any(kind_refusals(table, kind, shape) for shape in shapes)]


@dataclass
class Hit:
    """Where a kill found the run: the ranks that it hit, and how each ended."""

    seconds: float
    step: int
    was_writing: bool
    victims: list[int]
    codes: list[int]


@dataclass
class Report:
    """One run. ``missed`` are starts that ended before they were to be killed."""

    model: str
    number: int
    plan: Plan
    hits: list[Hit] = field(default_factory=list)
    missed: int = 0
    tracebacks: list[str] = field(default_factory=list)
    to_the_bit: bool = False
    problem: str | None = None


class Durations:
    """How long a start takes to the end, by number of processes: of what was seen so far the latest counts most."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._whole_s: dict[int, float] = {}
        for size in SIZES:
            began = time.monotonic()
            job.run(folder / f"timed-{size}" / "run", size)
            self.learn(size, 1.0, time.monotonic() - began)

    def learn(self, size: int, share: float, seconds: float) -> None:
        """A start that had ``share`` of the steps to do took so long."""
        whole = seconds / max(share, 0.3)
        self._whole_s[size] = 0.7 * self._whole_s.get(size, whole) + 0.3 * whole

    def expect(self, size: int, share: float) -> float:
        return self._whole_s[size] * max(share, 0.3)


class Chaos:
    """The runs of one model."""

    def __init__(self, model: str, seed: int, folder: Path) -> None:
        self._model, self._seed, self._folder = model, seed, folder
        self._jobs = {}
        for make in JOBS[model]:
            (folder / make.__name__).mkdir(parents=True)
            job = make(folder / make.__name__)
            self._jobs[bool(job.settings)] = job, Durations(job, folder / make.__name__)

    def run(self, number: int) -> Report:
        """One run through all of its kills to its end; what is wrong with it is in the report."""
        report = Report(self._model, number, draw_plan(self._seed, self._model, number))
        sharding, folder = report.plan.sharding, self._folder / f"run-{number}"
        job, durations = self._jobs[sharding is not None]
        job = job.in_torchrec(sharding) if sharding else job
        try:
            for draw in report.plan.starts:
                self._start(job, durations, draw, folder / "run", report)
            report.to_the_bit = sharding is None and all(draw.size == 1 for draw in report.plan.starts)
            require_survived(folder / "run", job.whole, to_the_bit=report.to_the_bit)
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding, and the next run may have another
            report.problem = f"{folder}: {traceback.format_exc()}"
            return report
        shutil.rmtree(folder)
        return report

    def _start(self, job: Job, durations: Durations, draw: Draw, run: Path, report: Report) -> None:
        done = checkpoint_steps(run)[-1] if checkpoint_steps(run) else 0
        share = 1 - done / job.num_steps
        began = time.monotonic()
        commands = job.start(run, draw.size, training__checkpoint_async=draw.is_async)
        try:
            if draw.moment is None:
                codes = [command.wait() for command in commands]
                durations.learn(draw.size, share, time.monotonic() - began)
                assert codes == [0] * draw.size, _said(commands)
                return
            commands[0].process.join(draw.moment * durations.expect(draw.size, share))
            if not all(command.is_running for command in commands):
                assert [command.wait() for command in commands] == [0] * draw.size, _said(commands)
                durations.learn(draw.size, share, time.monotonic() - began)
                report.missed += 1
                return
            hit = self._kill(draw, commands, run, time.monotonic() - began)
            if -signal.SIGKILL not in hit.codes:  # it ended between the look and the kill
                report.missed += 1
                return
            report.hits.append(hit)
            report.tracebacks += [_traceback(command) for command in commands if _traceback(command)]
        finally:
            end(commands)

    def _kill(self, draw: Draw, commands: Sequence[Command], run: Path, seconds: float) -> Hit:
        chosen = random.Random(f"{self._seed} {draw.moment}").randrange(draw.size)
        ranks = list(range(draw.size)) if draw.kills_all else [chosen]
        victims = [commands[rank] for rank in ranks]
        for command in victims:
            command.send(signal.SIGKILL)
        for command in victims:
            command.wait()
        was_writing = any((run / "checkpoints").glob(".step-*.writing"))
        step = last_step(run)
        survivors = [command for command in commands if command not in victims]
        for number, after_s in ((signal.SIGTERM, UNTIL_SIGTERM_S), (signal.SIGKILL, UNTIL_SIGKILL_S)):
            for command in survivors:
                command.process.join(after_s)
                command.send(number)
        codes = [command.wait() for command in commands]
        assert all(code in {0, 1, -signal.SIGKILL, -signal.SIGTERM} for code in codes), _said(commands)
        return Hit(round(seconds, 2), step, was_writing, ranks, codes)


def _traceback(command: Command) -> str:
    """What a process that was not killed said from its first traceback on: it should have said what to do instead."""
    return command.err.read_text().partition("Traceback")[2]


def _said(commands: Sequence[Command]) -> str:
    return "\n".join(command.err.read_text() for command in commands)


def summary(model: str, reports: Sequence[Report]) -> dict[str, object]:
    """The figures of some runs of one model; all but those of runs count kills."""
    hits = [hit for report in reports for hit in report.hits]
    sharded = [report for report in reports if report.plan.sharding is not None]
    return {
        "model": model,
        "kill_points": len(hits),
        "runs": len(reports),
        "runs_in_torchrec": len(sharded),
        "runs_to_the_bit": sum(report.to_the_bit for report in reports),
        "local_by_processes": _by_processes(report for report in reports if report.plan.sharding is None),
        "torchrec_by_processes": _by_processes(sharded),
        "runs_by_kind": dict(
            Counter(kind for report in sharded for kind in set((report.plan.sharding or {}).values()))
        ),
        "all_of_several": sum(1 < len(hit.victims) == len(hit.codes) for hit in hits),
        "one_of_several": sum(len(hit.victims) < len(hit.codes) for hit in hits),
        "others_ended_by_themselves": sum({-signal.SIGKILL, 1} == set(hit.codes) for hit in hits),
        "before_the_first_step": sum(hit.step == 0 for hit in hits),
        "in_a_checkpoint_write": sum(hit.was_writing for hit in hits),
        "missed": sum(report.missed for report in reports),
        "tracebacks": sum(len(report.tracebacks) for report in reports),
        "failed_runs": [report.number for report in reports if report.problem],
    }


def _by_processes(reports: Iterable[Report]) -> dict[int, int]:
    """Kills by how many processes there were."""
    counted = Counter(len(hit.codes) for report in reports for hit in report.hits)
    return {size: counted[size] for size in SIZES}


def _runs(chaos: Chaos, first: int, points: int, until: float) -> Iterator[Report]:
    """Runs until there were so many kills, or the clock shows ``until``."""
    number, hits = first, 0
    while hits < points and time.monotonic() < until:
        report = chaos.run(number)
        yield report
        number, hits = number + 1, hits + len(report.hits)


def _print(line: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*JOBS, "both"], default="both")
    parser.add_argument("--points", type=int, default=200, help="kills of each model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run of a model after so long")
    options = parser.parse_args()
    require_torchrec()
    failed = False
    with tempfile.TemporaryDirectory(prefix="rookery-chaos-") as name:
        for model in JOBS if options.model == "both" else [options.model]:
            reports = _reported(model, options, Path(name) / model)
            failed |= any(report.problem for report in reports)
    return int(failed)


def _reported(model: str, options: argparse.Namespace, folder: Path) -> list[Report]:
    """The runs of a model, each with its line, and the line of their sum."""
    began, reports = time.monotonic(), []
    chaos = Chaos(model, options.seed, folder)
    for report in _runs(chaos, options.first, options.points, began + 60 * options.minutes):
        _print(asdict(report))
        reports.append(report)
    minutes = round((time.monotonic() - began) / 60, 1)
    asked = {"seed": options.seed, "first": options.first, "asked_kill_points": options.points, "minutes": minutes}
    _print({**asked, **summary(model, reports)})
    return reports


if __name__ == "__main__":
    sys.exit(main())
