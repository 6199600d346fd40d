"""SIGKILL at random moments, hundreds of times: `make chaos`.

A run is started, killed, and started again until it ends; it must end where a run ends that nothing touched. Each start
draws the number of processes (1 or 2), whether checkpoints are written beside training, when it is killed (uniform over
the time that it would take) and who is (one process or all). A line of JSON a run goes to stdout, the sum last.

The draws of run K follow from --seed and K alone: ``--first K --points 1`` draws them again. What they hit does not:
how far a process is after so many seconds depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "numerics"))

from forked_commands import Command, end
from survived_runs import last_step, require_survived
from training_jobs import Job, ranker_job, twhin_job

from rookery.checkpoint.layout import checkpoint_steps

JOBS = {"twhin": twhin_job, "ranker": ranker_job}
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


def draws(seed: int, model: str, number: int) -> list[Draw]:
    """The starts of run ``number``."""
    chance = random.Random(f"{seed} {model} {number}")
    moments = [chance.random() for _ in range(chance.randint(1, MOST_KILLS_OF_A_RUN))]
    return [Draw(chance.randint(1, 2), chance.random() < 0.5, m, chance.random() < 0.5) for m in [*moments, None]]


@dataclass
class Hit:
    """Where a kill found the run."""

    seconds: float
    step: int
    was_writing: bool
    codes: list[int]


@dataclass
class Report:
    """One run. ``missed`` are starts that ended before they were to be killed."""

    model: str
    number: int
    draws: list[Draw]
    hits: list[Hit] = field(default_factory=list)
    missed: int = 0
    tracebacks: list[str] = field(default_factory=list)
    to_the_bit: bool = False
    problem: str | None = None


class Durations:
    """How long a start takes to the end, by number of processes: of what was seen so far the latest counts most."""

    def __init__(self) -> None:
        self._whole_s: dict[int, float] = {}

    def learn(self, size: int, share: float, seconds: float) -> None:
        """A start that had ``share`` of the steps to do took so long."""
        whole = seconds / max(share, 0.3)
        self._whole_s[size] = 0.7 * self._whole_s.get(size, whole) + 0.3 * whole

    def expect(self, size: int, share: float) -> float:
        return self._whole_s[size] * max(share, 0.3)


class Chaos:
    def __init__(self, job: Job, seed: int, folder: Path) -> None:
        self._job, self._seed, self._folder = job, seed, folder
        self._durations = Durations()
        for size in (1, 2):
            began = time.monotonic()
            job.run(folder / f"timed-{size}" / "run", size)
            self._durations.learn(size, 1.0, time.monotonic() - began)

    def run(self, number: int) -> Report:
        """One run through all of its kills to its end; what is wrong with it is in the report."""
        report = Report(self._job.model, number, draws(self._seed, self._job.model, number))
        folder = self._folder / f"run-{number}"
        try:
            for draw in report.draws:
                self._start(draw, folder / "run", report)
            report.to_the_bit = all(draw.size == 1 for draw in report.draws)
            require_survived(folder / "run", self._job.whole, to_the_bit=report.to_the_bit)
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding, and the next run may have another
            report.problem = f"{folder}: {traceback.format_exc()}"
            return report
        shutil.rmtree(folder)
        return report

    def _start(self, draw: Draw, run: Path, report: Report) -> None:
        done = checkpoint_steps(run)[-1] if checkpoint_steps(run) else 0
        share = 1 - done / self._job.num_steps
        began = time.monotonic()
        commands = self._job.start(run, draw.size, training__checkpoint_async=draw.is_async)
        try:
            if draw.moment is None:
                codes = [command.wait() for command in commands]
                self._durations.learn(draw.size, share, time.monotonic() - began)
                assert codes == [0] * draw.size, _said(commands)
                return
            commands[0].process.join(draw.moment * self._durations.expect(draw.size, share))
            if not all(command.is_running for command in commands):
                assert [command.wait() for command in commands] == [0] * draw.size, _said(commands)
                self._durations.learn(draw.size, share, time.monotonic() - began)
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
        victim = random.Random(f"{self._seed} {draw.moment}").randrange(draw.size)
        victims = commands if draw.kills_all else [commands[victim]]
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
        return Hit(round(seconds, 2), step, was_writing, codes)


def _traceback(command: Command) -> str:
    """What a process that was not killed said from its first traceback on: it should have said what to do instead."""
    return command.err.read_text().partition("Traceback")[2]


def _said(commands: Sequence[Command]) -> str:
    return "\n".join(command.err.read_text() for command in commands)


def summary(reports: Sequence[Report]) -> dict[str, object]:
    """The figures of some runs of one model."""
    hits = [hit for report in reports for hit in report.hits]
    return {
        "model": reports[0].model,
        "kill_points": len(hits),
        "runs": len(reports),
        "runs_to_the_bit": sum(report.to_the_bit for report in reports),
        "of_one_process": sum(len(hit.codes) == 1 for hit in hits),
        "of_both": sum(len(hit.codes) == 2 and set(hit.codes) == {-signal.SIGKILL} for hit in hits),
        "before_the_first_step": sum(hit.step == 0 for hit in hits),
        "in_a_checkpoint_write": sum(hit.was_writing for hit in hits),
        "one_of_several": sum(len(set(hit.codes)) > 1 for hit in hits),
        "others_ended_by_themselves": sum({-signal.SIGKILL, 1} == set(hit.codes) for hit in hits),
        "missed": sum(report.missed for report in reports),
        "tracebacks": sum(len(report.tracebacks) for report in reports),
        "failed_runs": [report.number for report in reports if report.problem],
    }


def _runs(chaos: Chaos, first: int, points: int) -> Iterator[Report]:
    """Runs until there were so many kills."""
    number, hits = first, 0
    while hits < points:
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
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="rookery-chaos-") as name:
        for model in JOBS if options.model == "both" else [options.model]:
            folder = Path(name) / model
            folder.mkdir()
            chaos = Chaos(JOBS[model](folder), options.seed, folder)
            reports = []
            for report in _runs(chaos, options.first, options.points):
                _print(asdict(report))
                reports.append(report)
            _print({"seed": options.seed, **summary(reports)})
            failed |= any(report.problem for report in reports)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
