"""Sizes and rates of a heavy ranker by the amount of data; ``docs/ranker.md`` has the measurements behind them."""

from __future__ import annotations

from dataclasses import dataclass

_VALIDATIONS_PER_EPOCH = 2
_LOGS_PER_RUN = 100
_WARM_UP_SHARE = 0.05


@dataclass(frozen=True)
class Recipe:
    """A parallel MaskNet under towers, and how it is trained."""

    num_blocks: int
    block_size: int
    aggregation_size: int
    mlp_size: int
    tower_sizes: tuple[int, ...]
    dropout: float
    learning_rate: float
    weight_decay: float
    batch_size: int
    num_epochs: int
    num_steps: int

    @property
    def num_ramp_steps(self) -> int:
        return max(1, round(_WARM_UP_SHARE * self.num_steps))

    @property
    def validate_every_n(self) -> int:
        return -(-self.num_steps // (self.num_epochs * _VALIDATIONS_PER_EPOCH))

    @property
    def train_log_every_n(self) -> int:
        return max(1, self.num_steps // _LOGS_PER_RUN)


def choose_recipe(num_rows: int) -> Recipe:
    """The recipe for so many training rows."""
    size = 64 if num_rows < 30_000 else 128 if num_rows < 1_000_000 else 256 if num_rows < 10_000_000 else 512
    batch_size = 128
    while batch_size < 4096 and num_rows // batch_size > 200:
        batch_size *= 2
    num_epochs = 4 if num_rows < 50_000 else 2
    return Recipe(
        num_blocks=4,
        block_size=size,
        aggregation_size=size // 2,
        mlp_size=size,
        tower_sizes=(size // 2,),
        dropout=0.1,
        learning_rate=5e-3 if num_rows < 50_000 else 2e-3,
        weight_decay=0.3,
        batch_size=batch_size,
        num_epochs=num_epochs,
        num_steps=max(2, num_epochs * -(-num_rows // batch_size)),
    )
