"""A job whose answer is known: least squares with a dense weight and a table of offsets, on rows without noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from rookery.data.stream import Columns, ParquetStream, StreamPosition
from rookery.optim.config import LearningRateConfig, LinearRampToCosine, OptimizerConfig, RowwiseAdagrad
from rookery.optim.schedules import make_schedule
from rookery.tables.local import LocalTables
from rookery.tables.protocol import TableSpec
from rookery.train.config import RuntimeConfig, TrainingConfig
from rookery.train.job import Job, LearningRate, learning_rate_of
from rookery.train.loop import TrainingResult, train
from rookery.train.run import open_run
from rookery.train.state import ModuleState, OptimizerState, StateGroup, TableOptimizerState, TableWeights

NUM_ROWS = 90
NUM_GROUPS = 7


class LeastSquares(nn.Module):
    """``y ≈ x · weight + offset[group]``; ``jitter`` scales the noise of the batch, on x."""

    def __init__(self, jitter: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float32))
        optimizer = OptimizerConfig(rowwise_adagrad=RowwiseAdagrad(lr=0.1))
        self.tables = LocalTables([TableSpec("group", NUM_GROUPS, 1, torch.float32, optimizer, 0.1)], seed=1)
        self.jitter = jitter
        self.num_forwards = 0
        self.fail_at: dict[int, Exception] = {}
        self.steps_told: list[tuple[int, int, int]] = []

    def begin_step(self, step: int, micro_step: int, num_micro_steps: int) -> None:
        self.steps_told.append((step, micro_step, num_micro_steps))
        self.tables.set_accumulating(micro_step + 1 < num_micro_steps)

    def expect(self, batch: Columns) -> None:
        self.tables.expect(batch)

    def forward(self, batch: Columns) -> tuple[Tensor, dict[str, Tensor | float]]:
        self.num_forwards += 1
        if self.num_forwards in self.fail_at:
            raise self.fail_at[self.num_forwards]
        x = batch["x"] + self.jitter * batch["noise"] if self.jitter else batch["x"]
        offset = self.tables.lookup({"group": batch["group"]})["group"].squeeze(1)
        error = x @ self.weight + offset - batch["y"]
        return error.square().mean(), {"mean_error": error.mean().detach(), "rows": float(len(error)), "error": error}


class Toy:
    """The job, its parts, and a way to run it in a directory."""

    def __init__(
        self, files: list[Path], *, batch_size: int = 20, jitter: float = 0.01, buffer_rows: int = 40, **job: Any
    ) -> None:
        self.model = LeastSquares(jitter)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)
        self.stream = ParquetStream(
            files, ["x", "y", "group"], batch_size, seed=3, shuffle=True, buffer_rows=buffer_rows
        )
        ramp = LinearRampToCosine(learning_rate=0.05, final_learning_rate=0.001, num_ramp_steps=5, final_num_steps=60)
        self.schedule = make_schedule(LearningRateConfig(linear_ramp_to_cosine=ramp))
        self.job = replace(
            Job(
                model=self.model,
                stream=self.stream,
                transform=_mirror_some,
                state={
                    "model": StateGroup({"dense": ModuleState(self.model), "tables": TableWeights(self.model.tables)}),
                    "optimizer": StateGroup(
                        {
                            "dense": OptimizerState(self.optimizer, dict(self.model.named_parameters())),
                            "tables": TableOptimizerState(self.model.tables),
                        }
                    ),
                },
                learning_rates=[LearningRate("dense", self.schedule, learning_rate_of(self.optimizer))],
                optimizers=[self.optimizer],
                unit="rows",
            ),
            **job,
        )

    def train(self, save_dir: Path, *, debug: bool = False, **config: Any) -> TrainingResult:
        torch.manual_seed(11)
        training = TrainingConfig(save_dir=save_dir, **config)
        with open_run(training, "toy: true\n") as run:
            return train(self.job, run, training, RuntimeConfig(device="cpu"), debug=debug)

    def parameters(self) -> dict[str, Tensor]:
        return {
            **self.job.state["model"].tensors(),
            **self.job.state["optimizer"].tensors(),
        }


def _mirror_some(columns: Columns, position: StreamPosition) -> Columns:
    """Negate some rows of x and y, and draw noise, by a generator seeded by the position: wrong batches after a resume
    would show.
    """
    generator = torch.Generator().manual_seed(1000 * position.epoch + position.num_batches)
    sign = 1.0 - 2.0 * torch.randint(0, 2, columns["y"].shape, generator=generator)
    offset = _offsets()[columns["group"]]
    noise = torch.randn(columns["x"].shape, generator=generator)
    return {**columns, "noise": noise, "x": columns["x"] * sign[:, None], "y": (columns["y"] - offset) * sign + offset}


def _offsets() -> Tensor:
    return torch.linspace(-1, 1, NUM_GROUPS)


TRUE_WEIGHT = torch.tensor([1.0, -2.0, 0.5])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost a small model more than they bring, above all on a machine that is busy."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(NUM_ROWS, 3)).astype(np.float32)
    group = generator.integers(0, NUM_GROUPS, NUM_ROWS)
    y = x @ TRUE_WEIGHT.numpy() + _offsets().numpy()[group]
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 3), "y": y, "group": group})
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(table, file, row_group_size=10)
    return file


@pytest.fixture
def make_toy(rows_file: Path) -> Callable[..., Toy]:
    return lambda **options: Toy([rows_file], **options)


@pytest.fixture
def true_weight() -> Tensor:
    return TRUE_WEIGHT


@pytest.fixture
def true_offsets() -> Tensor:
    return _offsets()
