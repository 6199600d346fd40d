"""Search for the best configuration of the ranker: every trial is a run of its own, chosen by its validations alone.

STUDY/study.yaml       configuration and space that the study was started with
STUDY/journal.jsonl    every trial, as Optuna keeps it; its sum is beside it in journal.sum.json
STUDY/trials/00007/    the run of trial 7: configuration, log and metrics; all of a run for the best trial alone
STUDY/best.yaml        the configuration of the best trial
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rookery.checkpoint.checkpointer import run_lock
from rookery.checkpoint.files import write_atomically
from rookery.config.document import dump_document, read_document
from rookery.config.loader import dump_config
from rookery.errors import ConfigError, TrainingError
from rookery.ranker.config import RankerConfig
from rookery.ranker.tune_space import TrialConfigs
from rookery.ranker.tune_trials import Ending, Mode, Pruned, Trial, TrialLog, TrialReport
from rookery.train.loop import TrainingResult
from rookery.train.sinks import MetricSink

# What makes a run more than a record of it, and may be gigabytes.
_HEAVY = ("checkpoints", "inputs")


class Train(Protocol):
    """``train_ranker``: train a run to its end, its metrics also going to ``sinks``."""

    def __call__(self, config: RankerConfig, *, sinks: Sequence[MetricSink]) -> TrainingResult: ...


@dataclass(frozen=True)
class StudyReport:
    """All trials of a study, and the best of those that finished (None while there is none)."""

    study: Path
    metric: str
    mode: Mode
    trials: tuple[TrialReport, ...]
    best: TrialReport | None
    best_config: Path | None
    best_run: Path | None
    signal: str | None
    """What interrupted this start, None when it went to its end."""


def tune(
    configs: TrialConfigs,
    folder: Path,
    num_trials: int,
    train: Train,
    tell: Callable[[TrialReport], None] = lambda report: None,
) -> StudyReport:
    """Run trials until the study in ``folder`` has ``num_trials`` that ended, those of earlier starts counted.

    A study that was killed goes on in the middle of its trial, and draws the trials that it would have drawn.
    ``tell`` hears of each trial that ends. Raises ``MissingExtra`` without Optuna, ``ConfigError`` when the study was
    started with another configuration or space, ``DataError`` when its journal is damaged, ``UserError`` when another
    process tunes there.
    """
    with run_lock(folder, named="--study", chosen="with --study"):
        study = _Study(configs, folder, train)
        _note_what_is_searched(folder, configs)
        signal = None
        while signal is None and study.log.num_ended < num_trials:
            signal = study.run_trial(tell)
        return study.report(signal)


class _Study:
    def __init__(self, configs: TrialConfigs, folder: Path, train: Train) -> None:
        keep_best = configs.base.training.keep_best
        assert keep_best is not None, "TrialConfigs requires it"
        self._configs, self._folder, self._train = configs, folder, train
        self._metric, self._mode = keep_best.metric, keep_best.mode
        self.log = TrialLog(folder / "journal.jsonl", configs.space, keep_best.mode, configs.base.runtime.seed)

    def run_trial(self, tell: Callable[[TrialReport], None]) -> str | None:
        """Run a trial, or the rest of one; the signal that interrupted it, None when it ended."""
        trial = self.log.next_trial()
        start = time.perf_counter() - trial.elapsed_s
        try:
            config = self._configs.config(trial.values, self._run(trial.number))
            signal = self._train(config, sinks=[trial.watch(self._metric)]).signal
            ending = Ending("running" if signal else "finished", time.perf_counter() - start)
        except Pruned as verdict:
            signal, ending = None, Ending("pruned", time.perf_counter() - start, str(verdict))
        except (ConfigError, TrainingError) as error:  # values that do not go together, or a loss that is not finite
            signal, ending = None, Ending("failed", time.perf_counter() - start, str(error))
        if signal is not None:
            trial.note(ending)
            return signal
        report = self.log.end(trial, ending)
        self._keep_the_best(trial)
        tell(report)
        return None

    def report(self, signal: str | None) -> StudyReport:
        best = self.log.best()
        return StudyReport(
            study=self._folder,
            metric=self._metric,
            mode=self._mode,
            trials=self.log.reports(),
            best=best,
            best_config=None if best is None else self._folder / "best.yaml",
            best_run=None if best is None else self._run(best.number),
            signal=signal,
        )

    def _run(self, number: int) -> Path:
        return self._folder / "trials" / f"{number:05d}"

    def _keep_the_best(self, ended: Trial) -> None:
        """Write the best configuration anew where ``ended`` is the best, and leave other trials their records alone."""
        best = self.log.best()
        if best is not None and best.number == ended.number:
            config = self._configs.config(ended.values, self._configs.base.training.save_dir)
            write_atomically(self._folder / "best.yaml", dump_config(config))
        for report in self.log.reports():
            if best is None or report.number != best.number:
                for name in _HEAVY:
                    shutil.rmtree(self._run(report.number) / name, ignore_errors=True)


def _note_what_is_searched(folder: Path, configs: TrialConfigs) -> None:
    """Write ``study.yaml``. Raises ``ConfigError`` where it is there and says something else."""
    parts = {"configuration": dump_config(configs.base), "space": dump_config(configs.space)}
    path = folder / "study.yaml"
    if not path.exists():
        write_atomically(path, dump_document(parts))
        return
    earlier = read_document(path).data
    for part, text in parts.items():
        if earlier[part] != text:
            raise ConfigError(
                f"{path}: the study was started with another {part}, and its trials would not be comparable; "
                "go back to that one, or name another folder with --study"
            )
