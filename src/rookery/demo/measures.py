"""What was reached on rows and timelines that nothing was trained on, beside what the truth itself reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rookery.data.engagements import ENGAGEMENTS
from rookery.data.parquet import open_parquet
from rookery.metrics.engagement import EngagementMeter, EngagementMetrics, MeasureOptions
from rookery.metrics.engagement_rows import EngagementRows
from rookery.ranker.config import RankerConfig
from rookery.ranker.files import partition_rows
from rookery.storage.location import Location

FEW_POSITIVES = 100
"""With fewer an AUROC is off by .03 or more."""


@dataclass(frozen=True)
class Measure:
    """One figure of both rankers beside its oracle and beside knowing nothing; higher is better."""

    name: str
    without_twhin: float
    with_twhin: float
    oracle: float
    chance: float
    positives: int | None = None
    """Rows behind the figure in which it happened, where that decides how much it says."""

    @property
    def title(self) -> str:
        """The name, with the positives where they are few."""
        return f"{self.name} ({self.positives} positives)" if self._is_noise else self.name

    @property
    def reached(self) -> float | None:
        """The way from chance to the oracle that was gone; None where too few positives tell."""
        return None if self._is_noise else (self.with_twhin - self.chance) / (self.oracle - self.chance)

    @property
    def _is_noise(self) -> bool:
        return self.positives is not None and self.positives < FEW_POSITIVES


@dataclass(frozen=True)
class Bounds:
    """The metrics of the true probabilities, and of an order by chance."""

    oracle: EngagementMetrics
    chance: EngagementMetrics


def measure_bounds(world: Path, config: RankerConfig, split: str) -> Bounds:
    """On the rows of a partition of the log."""
    weights = torch.tensor([config.score.weights.get(task, 0.0) for task in ENGAGEMENTS], dtype=torch.float32)
    chance = torch.Generator().manual_seed(0)
    meters = EngagementMeter(ENGAGEMENTS), EngagementMeter(ENGAGEMENTS)
    for rows in _partition_tables(world, config, split):
        truth, labels = _matrix(rows.truth, "probability."), _matrix(rows.log, "")
        for meter, probabilities in zip(meters, (truth, torch.rand(truth.shape, generator=chance)), strict=True):
            meter.update(
                EngagementRows(
                    probabilities=probabilities,
                    labels=labels > 0,
                    weights=torch.ones_like(probabilities),
                    scores=probabilities @ weights,
                    gains=(labels @ weights).clamp(min=0),
                    strata=torch.empty(len(labels), 0, dtype=torch.bool),
                    users=_numbers(rows.log["user_id"]),
                )
            )
    return Bounds(*(meter.compute(MeasureOptions())[0] for meter in meters))


@dataclass(frozen=True)
class _Tables:
    log: pa.Table
    truth: pa.Table


def _partition_tables(world: Path, config: RankerConfig, split: str) -> list[_Tables]:
    """The log of a partition by file, and the truth of the same rows."""
    columns = ["impression_id", "user_id", *ENGAGEMENTS]
    logs: dict[Location, list[pa.Table]] = {}
    for piece in partition_rows(config.validation_data[split]):
        with open_parquet(piece.parquet) as file:
            group = file.read_row_group(piece.row_group, columns)
        logs.setdefault(piece.parquet, []).append(piece.of(group))
    tables = []
    for place, parts in logs.items():
        log = pa.concat_tables(parts)
        truth = pq.read_table(world / "truth" / place.name)
        places = np.searchsorted(truth["impression_id"].to_numpy(), log["impression_id"].to_numpy())
        tables.append(_Tables(log, truth.take(pa.array(places))))
    return tables


def _matrix(table: pa.Table, prefix: str) -> torch.Tensor:
    columns = [table[f"{prefix}{task}"].to_numpy().astype(np.float32) for task in ENGAGEMENTS]
    return torch.from_numpy(np.stack(columns, axis=1))


def _numbers(ids: pa.ChunkedArray) -> torch.Tensor:
    """``user_17`` → 17."""
    return torch.tensor([int(each.rpartition("_")[2]) for each in ids.to_pylist()])


def ranker_measures(without: Mapping[str, Any], with_twhin: Mapping[str, Any], bounds: Bounds) -> list[Measure]:
    """AUROC of each task that has both labels, and NDCG of the score."""
    found = []
    for task in with_twhin["tasks"]:
        plain, helped = (each["tasks"][task]["auroc"] for each in (without, with_twhin))
        if plain is not None and helped is not None:
            oracle = bounds.oracle.tasks[task]
            found.append(
                Measure(f"AUROC of {task}", plain, helped, oracle.values["auroc"], 0.5, positives=oracle.positives)
            )
    ndcg = Measure(
        "NDCG of the score, by user", without["ndcg"], with_twhin["ndcg"], bounds.oracle.ndcg, bounds.chance.ndcg
    )
    return [*found, ndcg]


def timeline_measures(evaluation: Mapping[str, Any]) -> list[Measure]:
    """The true worth of timelines, as a share of the oracle's."""
    share = {each["policy"]: each["share"] for each in evaluation["policies"]}
    return [
        Measure(
            f"worth of the best {evaluation['k']} by score, over the oracle's",
            share["ranker_without_twhin"],
            share["ranker"],
            share["oracle"],
            share["random"],
        )
    ]
