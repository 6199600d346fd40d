"""The trials of a study, as Optuna suggests and keeps them: a journal of JSON lines that outlives the process."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rookery.errors import MissingExtra
from rookery.ranker.tune_space import Choice, Dimension, SearchSpace, Values

if TYPE_CHECKING:
    import optuna

Mode = Literal["max", "min"]
State = Literal["finished", "pruned", "failed", "running"]

_NAME = "rookery"


@dataclass(frozen=True)
class TrialReport:
    """A trial: ``value`` is its best validation so far and ``step`` that of it (None: it never came to one)."""

    number: int
    state: State
    value: float | None
    step: int | None
    fields: Values
    elapsed_s: float
    reason: str | None
    """Why a trial did not run to its end."""


@dataclass(frozen=True)
class Ending:
    """How a trial came to its end, and after how long."""

    state: State
    elapsed_s: float
    reason: str | None = None


class Pruned(Exception):
    """Raised through the training loop, which closes its run: the trial is worse than the median of earlier ones."""


class TrialLog:
    """The journal of one study, in the hands of one process."""

    def __init__(self, journal: Path, space: SearchSpace, mode: Mode, seed: int) -> None:
        """Raises ``MissingExtra`` without Optuna, ``DataError`` for a damaged journal."""
        require_optuna()
        self._space, self._mode, self._seed = space, mode, seed
        self._study = _open_study(journal, space, mode)

    @property
    def num_ended(self) -> int:
        return sum(trial.state.is_finished() for trial in self._study.trials)

    def next_trial(self) -> Trial:
        """The trial that an earlier start did not end, else a new one."""
        import optuna

        study = self._study
        unfinished = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        number = unfinished[0].number if unfinished else len(study.trials)
        # Seeded by the trial, not by the start: a study that was killed draws what one that was not would have drawn.
        study.sampler = optuna.samplers.TPESampler(seed=(self._seed * 1_000_003 + number) % 2**32)
        trial = optuna.trial.Trial(study, unfinished[0]._trial_id) if unfinished else study.ask()  # noqa: SLF001
        return Trial(trial, self._space)

    def end(self, trial: Trial, ending: Ending) -> TrialReport:
        """Write down how ``trial`` ended. A ``finished`` one without a finite validation has ``failed``."""
        from optuna.trial import TrialState

        if ending.state == "finished" and self.report(trial.number).value is None:
            ending = Ending("failed", ending.elapsed_s, "no validation was finite")
        trial.note(ending)
        value = self.report(trial.number).value
        if ending.state == "finished":
            self._study.tell(trial.number, value)
        else:  # to the sampler they are all trials that are not worth coming back to
            self._study.tell(trial.number, state=TrialState.PRUNED)
        return self.report(trial.number)

    def reports(self) -> tuple[TrialReport, ...]:
        return tuple(self._report(trial) for trial in self._study.get_trials(deepcopy=False))

    def report(self, number: int) -> TrialReport:
        return self._report(self._study.get_trials(deepcopy=False)[number])

    def best(self) -> TrialReport | None:
        """The best of the trials that finished, the earliest of equal ones; None while there is none."""
        ended = [(report.value, report) for report in self.reports() if report.state == "finished"]
        sign = 1 if self._mode == "max" else -1
        return max(ended, key=lambda pair: sign * (pair[0] or 0.0), default=(None, None))[1]

    def _report(self, trial: optuna.trial.FrozenTrial) -> TrialReport:
        sign = 1 if self._mode == "max" else -1
        validations = [(value, step) for step, value in trial.intermediate_values.items() if math.isfinite(value)]
        value, step = max(validations, key=lambda pair: (sign * pair[0], -pair[1]), default=(None, None))
        ended = trial.state.is_finished()
        return TrialReport(
            number=trial.number,
            state=trial.user_attrs["state"] if ended else "running",
            value=value,
            step=step,
            fields={
                field: _chosen(each, trial.params[field])
                for field, each in self._space.fields.items()
                if field in trial.params
            },
            elapsed_s=float(trial.user_attrs.get("elapsed_s", 0.0)),
            reason=trial.user_attrs.get("reason") if ended else None,
        )


class Trial:
    """One trial that is running."""

    def __init__(self, trial: optuna.Trial, space: SearchSpace) -> None:
        self._trial = trial
        self.number = trial.number
        self.values: Values = {field: _suggest(trial, field, each) for field, each in space.fields.items()}

    @property
    def elapsed_s(self) -> float:
        """Seconds of earlier starts that were interrupted."""
        return float(self._trial.user_attrs.get("elapsed_s", 0.0))

    def note(self, ending: Ending) -> None:
        """Write down how, or so far, it went; it still counts as running."""
        for name, value in vars(ending).items():
            self._trial.set_user_attr(name, value)

    def watch(self, metric: str) -> Watch:
        """The sink that follows ``metric`` of the trial's run."""
        return Watch(self._trial, f"validation/{metric}")


class Watch:
    """A metric sink: hands each validation to the trial, and raises ``Pruned`` where it is not worth going on."""

    def __init__(self, trial: optuna.Trial, name: str) -> None:
        self._trial, self._name = trial, name
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self._reported = set(frozen.intermediate_values)  # by an earlier start of the same trial

    def start(self, step: int) -> None:
        """Nothing to open."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._name not in metrics:
            return
        if step not in self._reported:
            self._reported.add(step)
            self._trial.report(metrics[self._name], step)
        if self._trial.should_prune():
            raise Pruned(f"worse than the median of earlier trials at step {step:,}")

    def flush(self) -> None:
        """Nothing waits: a report is on disk when it is made."""

    def close(self) -> None:
        """Nothing to close."""


def require_optuna() -> None:
    """Raise ``MissingExtra`` with the command that brings Optuna, if it is absent."""
    if importlib.util.find_spec("optuna") is None:
        raise MissingExtra(
            "rookery ranker tune needs optuna, not installed here; install it with: pip install 'rookery[tune]'"
        )


def _open_study(journal: Path, space: SearchSpace, mode: Mode) -> optuna.Study:
    import optuna
    from optuna.storages.journal import JournalStorage

    from rookery.ranker.tune_journal import SummedJournal

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruning = space.pruning
    return optuna.create_study(
        storage=JournalStorage(SummedJournal(journal)),
        study_name=_NAME,
        direction="maximize" if mode == "max" else "minimize",
        pruner=optuna.pruners.NopPruner()
        if pruning is None
        else optuna.pruners.MedianPruner(pruning.num_startup_trials, pruning.num_warmup_steps),
        load_if_exists=True,
    )


def _suggest(trial: optuna.Trial, field: str, dimension: Dimension) -> Choice:
    if dimension.choices is not None:
        return _chosen(dimension, trial.suggest_categorical(field, [_label(choice) for choice in dimension.choices]))
    low, high, step = dimension.low, dimension.high, dimension.step
    assert low is not None, "a range has both ends"
    assert high is not None, "a range has both ends"
    if dimension.is_whole:
        return trial.suggest_int(field, int(low), int(high), step=int(step or 1), log=dimension.log)
    return trial.suggest_float(field, low, high, step=step, log=dimension.log)


def _chosen(dimension: Dimension, value: Any) -> Choice:
    """What a value of Optuna's stands for; it knows choices by their labels."""
    choices = {_label(choice): choice for choice in dimension.choices or ()}
    return choices[value] if choices else value


def _label(choice: Choice) -> str:
    """JSON: Optuna keeps no lists and mappings, and takes 1 and true for the same."""
    return json.dumps(choice)
