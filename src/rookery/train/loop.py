"""The one training loop.

Hot path: ``train`` → ``_Loop.run`` → ``_step`` (one optimizer step) → ``_after_step`` (log, validate, save).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Generic, Literal

import torch
from torch import Tensor

from rookery.checkpoint.files import State
from rookery.data.prefetch import Batches, Prefetcher, Prepared, Unprefetched, prepare
from rookery.data.stream import StreamPosition
from rookery.errors import PeerFailed, TrainingError, UserError
from rookery.parallel.gradients import SummedGradients
from rookery.parallel.heartbeat import Heartbeat
from rookery.parallel.world import (
    Abandoned,
    gather_objects,
    is_chief,
    rank,
    share_object,
    world_size,
)
from rookery.train.agreement import Supply, agree
from rookery.train.best import BestTracker
from rookery.train.books import Books
from rookery.train.config import RuntimeConfig, TrainingConfig
from rookery.train.debug import describe_step, gradient_norms
from rookery.train.interrupt import Interrupt
from rookery.train.job import B, Job, Outputs
from rookery.train.meter import MeanMeter, Stopwatch
from rookery.train.progress import Progress
from rookery.train.replay import keep_batches
from rookery.train.run import Run
from rookery.train.state import check_fit
from rookery.train.supply import Collection, Supplied
from rookery.train.waiting import told_of_others, waited_in_vain

Reason = Literal["finished", "early_stopping", "interrupted"]

# Batches made ready ahead of the model: enough to bridge the decoding of a row group, little memory.
PREFETCH_BATCHES = 4


@dataclass(frozen=True)
class TrainingResult:
    """Where training stopped, and why; ``loss`` is that of the last log (None when nothing was logged).

    ``signal`` is SIGINT or SIGTERM where ``reason`` is ``interrupted``, else None.
    """

    step: int
    num_steps: int
    reason: Reason
    loss: float | None
    best_step: int | None
    best_value: float | None
    signal: str | None


def train(
    job: Job[B], run: Run, config: TrainingConfig, runtime: RuntimeConfig, *, debug: bool = False
) -> TrainingResult:
    """Train ``job`` to its last step, from the run's newest checkpoint if it has one.

    ``debug`` takes the very same steps without making batches ahead, and logs each one in detail.
    Raises ``TrainingError`` when the loss stops being finite (no checkpoint is written of such a state) or the stream
    ends early, ``ConfigError`` or ``DataError`` when the checkpoint does not fit the job.
    """
    loop = _Loop(job, run, config, runtime, debug)
    loop.restore()
    return loop.run()


def save_start(job: Job[B], run: Run, config: TrainingConfig, runtime: RuntimeConfig) -> None:
    """Write the checkpoint of step 0, from which ``train`` goes on: a run that has weights and no step yet.

    Raises ``UserError`` for a run that has checkpoints, ``CheckpointError`` where it cannot be written.
    """
    if run.resume_from is not None:
        raise UserError(
            f"{run.save_dir}: has checkpoints already; name another run with --save-dir, and start others from it by "
            "training.initial_checkpoint_dir"
        )
    with run.recording(0):
        _Loop(job, run, config, runtime, debug=False).save_start()


class _Loop(Generic[B]):
    def __init__(self, job: Job[B], run: Run, config: TrainingConfig, runtime: RuntimeConfig, debug: bool) -> None:
        self._job, self._run, self._config, self._runtime, self._debug = job, run, config, runtime, debug
        self._num_steps = config.num_steps(job.stream.batches_per_epoch)
        self._model = SummedGradients(job.model)
        self._meter = MeanMeter()
        self._best = BestTracker(config.keep_best, config.early_stopping) if config.keep_best else None
        self._stopwatch = Stopwatch(job.device if debug else None)
        self._step_number = 0
        # A validation that a signal cut short belongs to the checkpoint's step and is not made yet.
        self._owes_validation = False
        self._saved = (0, False)  # the step of the newest checkpoint, and what it owes
        self._books = Books(job.stream)
        self._num_examples = 0
        self._loss: float | None = None
        self._interrupt = Interrupt()
        self._heartbeat = Heartbeat("training")
        self._under_way: list[StreamPosition] = []
        self._agreed_signal: str | None = None
        # Of the latest step, for the debug loop alone.
        self._details: dict[str, float] = {}
        self._outputs: Outputs = {}

    def restore(self) -> None:
        """Go back to where the run's newest checkpoint was taken."""
        checkpoint = self._run.resume_from
        if checkpoint is None:
            return
        check_fit(self._job.state, checkpoint, "restore the configuration to resume, or use another training.save_dir")
        self._step_number = checkpoint.step
        # An earlier version did not tell. One that the configuration no longer asks for is not owed.
        owes_validation = checkpoint.state.get("owes_validation", False)
        self._owes_validation = owes_validation and self._validates(checkpoint.step)
        self._saved = checkpoint.step, owes_validation
        if self._best is not None and checkpoint.state["best"] is not None:
            self._best.load_state(checkpoint.state["best"])
            # A kill between a checkpoint and its mark leaves the mark behind.
            self._mark_best()
        if self._reason() is not None:
            return
        self._books.restore(checkpoint.state)
        for group, state in self._job.state.items():
            state.load_tensors(checkpoint.tensors(group))
        means = checkpoint.state["means"]
        if not is_chief():  # the sums of all processes are taken over once
            means = {name: [0.0, weight] for name, (_, weight) in means.items()}
        self._meter.load_state(means, self._job.device)

    def run(self) -> TrainingResult:
        reason = self._reason()
        if reason is None:
            with told_of_others(self._heartbeat), self._replayable(), ExitStack() as stack:
                stack.enter_context(self._interrupt)
                stack.enter_context(self._run.recording(self._step_number))
                self._run.checkpointer.reserve(self._tensors())
                batches = self._batches(stack)
                progress = stack.enter_context(
                    Progress(self._step_number, self._num_steps, self._job.unit, is_shown=is_chief())
                )
                self._job.model.train()
                if self._owes_validation:
                    self._validate_and_save(progress)
                reason = self._take_steps(batches, progress)
                self._save()
                self._run.checkpointer.finish()
                if reason == "interrupted":
                    self._job.stream.close()  # else the thread that makes batches might wait for readers still
        best_step, best_value = (self._best.best_step, self._best.best_value) if self._best else (None, None)
        signal = self._received if reason == "interrupted" else None
        return TrainingResult(self._step_number, self._num_steps, reason, self._loss, best_step, best_value, signal)

    def _take_steps(self, batches: Batches[Prepared[B]], progress: Progress) -> Reason:
        """Take steps until there is a reason not to."""
        ahead: Supplied[B] | None = None
        while (reason := self._reason()) is None:
            supplied = ahead or self._supplied(batches)
            if supplied.supply is Supply.LATE:  # a signal came first, and is the reason
                continue
            micro_batches = self._granted(supplied)
            ahead = self._look_ahead(batches, len(micro_batches))
            self._step(micro_batches)
            self._after_step(progress, sum(prepared.num_rows for prepared in micro_batches))
        return reason

    @contextmanager
    def _replayable(self) -> Iterator[None]:
        """Where a loss is not finite, keep the rows that it is of once nothing else reads the stream any more."""
        try:
            yield
        except _NotFinite as error:
            self._run.checkpointer.wait()
            folder = keep_batches(self._job.stream, error.positions, self._step_number + 1, self._run)
            failure = TrainingError(
                f"{error} The rows of that step are in {folder}; `rookery replay {self._run.save_dir}` tells what is "
                "not finite."
            )
            failure.is_told_elsewhere = not is_chief()
            raise failure from error

    def save_start(self) -> None:
        """Write a checkpoint of what training begins with."""
        self._write_checkpoint()
        self._run.checkpointer.finish()

    def _reason(self) -> Reason | None:
        """Why no further step is taken, None while there is one to take, or the validation of the last one to make."""
        if self._owes_validation:
            return "interrupted" if self._received else None
        if self._step_number >= self._num_steps:
            return "finished"
        if self._best is not None and self._best.should_stop:
            return "early_stopping"
        return "interrupted" if self._received else None

    @property
    def _received(self) -> str | None:
        """The signal to stop at: of several processes, one that all know of."""
        return self._interrupt.received if world_size() == 1 else self._agreed_signal

    def _batches(self, stack: ExitStack) -> Batches[Prepared[B]]:
        batches = prepare(self._job.stream, self._job.transform)
        return Unprefetched(batches) if self._debug else stack.enter_context(Prefetcher(batches, PREFETCH_BATCHES))

    def _look_ahead(self, batches: Batches[Prepared[B]], num_under_way: int) -> Supplied[B] | None:
        """Of several processes, the batches of the next step before this one's, so that ids can travel meanwhile.

        What keeps them away is raised in its turn, when this step has been taken.
        """
        if world_size() == 1 or self._debug or self._step_number + 1 >= self._num_steps:
            return None
        ahead = self._supplied(batches, num_under_way)
        if ahead.supply is Supply.THERE:
            self._job.model.expect(ahead.micro_batches[0].batch)
        return ahead

    def _supplied(self, batches: Batches[Prepared[B]], num_under_way: int = 0) -> Supplied[B]:
        """The batches behind ``num_under_way`` that are not trained on yet, as all processes agree on them.

        ``LATE`` where a signal came while one of them was waiting: training then ends behind the step under way.
        """
        which = "next data" if num_under_way else "data"
        step = self._step_number + bool(num_under_way)
        collection = Collection(batches, self._num_wanted(num_under_way), lambda: self._lacking(step))
        supplied: Supplied[B] | None = None
        while supplied is None:
            self._heartbeat.enter(self._step_number + 1, which)
            with self._stopwatch.part("data"):
                mine = collection.take_turn()
            if mine is not Supply.LATE:
                which = f"agreement on {which.removeprefix('agreement on ')}"
                self._heartbeat.enter(self._step_number + 1, which)
            supplied = collection.agreed(mine, self._interrupt.received)
        if supplied.supply is Supply.LATE:
            self._agreed_signal = supplied.signal
        return supplied

    def _granted(self, supplied: Supplied[B]) -> list[Prepared[B]]:
        """The micro-batches; where one process gets none all end, with a checkpoint if its readers are gone."""
        if supplied.supply is Supply.OVERDUE:
            raise waited_in_vain(self._heartbeat, "some process's data do not come")
        if supplied.supply is Supply.CUT_OFF:
            self._save()
            self._run.checkpointer.wait()
        if supplied.problem is not None:
            raise supplied.problem
        if supplied.supply is not Supply.THERE:
            raise PeerFailed(f"rank {rank()}: ends because another process gets no data, as it says itself")
        return supplied.micro_batches

    def _num_wanted(self, num_under_way: int) -> int:
        """Micro-batches of one step; only the last step of the last epoch may have fewer than the others."""
        wanted = self._config.gradient_accumulation
        if self._config.num_epochs is None:
            return wanted
        total = self._config.num_epochs * self._job.stream.batches_per_epoch
        return min(wanted, total - self._books.batches_done - num_under_way)

    def _lacking(self, step: int) -> TrainingError:
        return TrainingError(
            f"the data ended after step {step:,} of {self._num_steps:,}; "
            "let the stream run without end (num_epochs=None) or set training.num_epochs"
        )

    def _step(self, micro_batches: Sequence[Prepared[B]]) -> None:
        """One optimizer step on the mean loss of some micro-batches."""
        job, step, num_micro_steps = self._job, self._step_number, len(micro_batches)
        for rate in job.learning_rates:
            rate.apply(rate.schedule(step))
        self._under_way = [prepared.position for prepared in micro_batches]
        for micro_step, prepared in enumerate(micro_batches):
            job.model.begin_step(step, micro_step, num_micro_steps)
            with self._model.collecting(micro_step + 1 < num_micro_steps):
                with self._part("forward"), self._autocast():
                    loss, outputs = self._model(prepared.batch)
                self._count(loss, outputs, 1 / num_micro_steps)
                # Before the backward pass: it moves the tables.
                self._agree(reads_loss=self._reads_every_loss or self._is_watched(step + 1))
                with self._part("backward"):
                    (loss / num_micro_steps).backward()
        if self._debug:
            self._details = gradient_norms(job.model)
            self._outputs = outputs
        with self._part("optimizer"):
            for optimizer in job.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        self._step_number += 1
        for prepared in micro_batches:
            self._books.keep(prepared)

    def _agree(self, *, reads_loss: bool) -> None:
        """Go on only if every process can; stop behind this step if one was told to."""
        self._heartbeat.enter(self._step_number + 1, "agreement")
        is_finite = not reads_loss or self._meter.is_finite("loss")
        verdict = agree(is_finite=is_finite, received=self._interrupt.received)
        self._agreed_signal = verdict.signal
        if not verdict.is_finite:
            raise self._not_finite()

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        self._heartbeat.enter(self._step_number + 1, name)
        with self._stopwatch.part(name):
            yield

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._job.device.type, torch.bfloat16, enabled=self._runtime.enable_amp)

    def _count(self, loss: Tensor, outputs: Outputs, weight: float) -> None:
        self._meter.add("loss", loss, weight)
        for name, value in outputs.items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                self._meter.add(name, value, weight)

    def _after_step(self, progress: Progress, num_examples: int) -> None:
        """Log, validate and save where their cadences say so."""
        step = self._step_number
        self._num_examples += num_examples
        progress.advance(step, num_examples)
        if self._logs(step):
            self._log(progress)
        self._owes_validation = self._validates(step)
        self._validate_and_save(progress)

    def _validate_and_save(self, progress: Progress) -> None:
        """Validate if that is owed; a signal leaves it owed, to the checkpoint with which training then ends."""
        step = self._step_number
        is_best = self._owes_validation and self._validate(progress)
        if self._owes_validation:
            return
        if is_best or self._run.checkpointer.due(step):
            self._save()
        if is_best:
            self._mark_best()

    def _logs(self, step: int) -> bool:
        return self._debug or step % self._config.train_log_every_n == 0 or step == self._num_steps

    def _validates(self, step: int) -> bool:
        every_n = self._config.validate_every_n
        return every_n is not None and (step % every_n == 0 or step == self._num_steps)

    @property
    def _reads_every_loss(self) -> bool:
        """On a CPU reading costs nothing. A GPU would be waited for: there it is only done before a log or a save."""
        return self._job.device.type == "cpu"

    def _is_watched(self, step: int) -> bool:
        return self._logs(step) or self._validates(step) or self._run.checkpointer.due(step)

    def _log(self, progress: Progress) -> None:
        self._heartbeat.enter(self._step_number, "log")
        means, num_examples = _total(self._meter.means(), self._num_examples)
        seconds = self._stopwatch.lap()
        # Validations and checkpoints have cadences of their own; the rate is that of training.
        training_s = seconds["total"] - seconds.get("validation", 0.0) - seconds.get("checkpoint", 0.0)
        metrics = {
            **means,
            f"{self._job.unit}_per_s": num_examples / training_s,
            "epoch": self._books.epochs,
            **{f"lr/{rate.name}": rate.schedule(self._step_number - 1) for rate in self._job.learning_rates},
            **{f"time/{part}_s": spent for part, spent in seconds.items()},
            **self._details,
        }
        self._loss = means["loss"]
        self._meter.clear()
        self._num_examples = 0
        self._to_sinks(metrics)
        progress.log(self._step_number, metrics)
        if self._debug:
            progress.note(describe_step(metrics, self._outputs))

    def _validate(self, progress: Progress) -> bool:
        """Measure the model; True when it is the best so far. Where a signal comes first, it remains owed."""
        assert self._job.validate is not None, "training.validate_every_n is set, but the job cannot validate"
        self._job.model.train(False)
        try:
            with self._part("validation"), torch.no_grad():
                metrics = share_object(dict(self._job.validate(lambda: self._interrupt.received is not None)))
        except Abandoned:
            self._agree(reads_loss=False)
            return False
        finally:
            self._job.model.train()
        self._owes_validation = False
        self._to_sinks({f"validation/{name}": value for name, value in metrics.items()})
        is_best = self._best is not None and self._best.update(self._step_number, metrics)
        progress.validation(self._step_number, metrics, is_best=is_best)
        return is_best

    def _to_sinks(self, metrics: dict[str, float]) -> None:
        for sink in self._run.sinks:
            sink.log(self._step_number, metrics)

    def _save(self) -> None:
        """Write a checkpoint of the current step unless there is one."""
        if self._saved == (self._step_number, self._owes_validation):
            return
        self._agree(reads_loss=True)
        self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        for sink in self._run.sinks:
            sink.flush()
        state: State = {
            **self._books.state(),
            "means": _summed_state(gather_objects(self._meter.state())),
            "best": self._best.state() if self._best else None,
            "owes_validation": self._owes_validation,
            "ends": {
                "num_steps": self._num_steps,
                "num_train_steps": self._config.num_train_steps,
                "num_epochs": self._config.num_epochs,
            },
            "world_size": world_size(),
        }
        with self._part("checkpoint"):
            self._run.checkpointer.save(self._step_number, self._tensors(), state)
        self._saved = self._step_number, self._owes_validation

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {group: each.tensors() for group, each in self._job.state.items()}

    def _mark_best(self) -> None:
        best = self._best
        if best is not None and best.best_step is not None and best.best_value is not None:
            self._run.checkpointer.mark_best(best.best_step, best.metric, best.best_value)

    def _not_finite(self) -> _NotFinite:
        return _NotFinite(
            self._under_way,
            f"the loss of step {self._step_number + 1:,} (or of one since the log before) is not finite; "
            f"the newest checkpoint is of step {self._saved[0]:,}. Lower the learning rate or look at the data "
            "of that step with --debug-loop.",
        )


class _NotFinite(Exception):
    """A loss is not finite; ``positions`` are those behind the batches of the step."""

    def __init__(self, positions: Sequence[StreamPosition], message: str) -> None:
        super().__init__(message)
        self.positions = positions


def _total(means: dict[str, float], num_examples: int) -> tuple[dict[str, float], int]:
    """Sums over the processes: what each reports is its part of the mean over the whole batch."""
    parts = gather_objects((means, num_examples))
    names = dict.fromkeys(name for part, _ in parts for name in part)
    total = {name: sum(part.get(name, 0.0) for part, _ in parts) for name in names}
    return total, sum(count for _, count in parts)


def _summed_state(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """States of meters that counted the same steps, as one."""
    names = dict.fromkeys(name for part in parts for name in part)
    counted = {name: [part[name] for part in parts if name in part] for name in names}
    return {
        name: [sum(total for total, _ in each), max(weight for _, weight in each)] for name, each in counted.items()
    }
