"""What a run that shares its tables out says before it trains: where they lie, and what that takes of each process."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from torch import nn

from rookery.parallel.world import is_chief, local_world_size, world_size
from rookery.tables.plan import TablePlan
from rookery.tables.refusals import WorldShape

_MIB = 1 << 20
_WIDTH = 140
"""Of a plan that goes to a file."""


def world_shape() -> WorldShape:
    """The processes of this run."""
    return WorldShape(world_size(), local_world_size())


def show_plan(plans: Sequence[TablePlan], num_dense_bytes: int, console: Console | None = None) -> None:
    """Print the plan of several processes on stderr, once; ``num_dense_bytes`` is what each has besides tables."""
    if not is_chief() or world_size() == 1:
        return
    console = console or Console(stderr=True)
    wide = console if console.is_terminal else Console(file=console.file, width=_WIDTH)
    wide.print(plan_table(plans, num_dense_bytes))


def dense_bytes(module: nn.Module) -> int:
    """Of the parameters outside of tables, their gradients, and two moments of each."""
    return 4 * sum(parameter.nbytes for parameter in module.parameters())


def plan_table(plans: Sequence[TablePlan], num_dense_bytes: int) -> Table:
    """A row for each table, and the sum of what each process holds."""
    table = Table(title="tables by process", title_justify="left")
    for name in ("table", "sharding", "kernel", "processes", "weights MiB", "optimizer MiB"):
        table.add_column(name, justify="right" if name.endswith("MiB") else "left")
    for plan in plans:
        weights, state = (_by_rank(each) for each in (plan.weight_bytes, plan.optimizer_bytes))
        table.add_row(plan.table, plan.kind, plan.kernel, _ranks(plan.ranks), weights, state)
    size = world_size()
    total = [
        num_dense_bytes + sum(plan.weight_bytes[rank] + plan.optimizer_bytes[rank] for plan in plans)
        for rank in range(size)
    ]
    table.add_row("network", "data_parallel", "dense", _ranks(range(size)), _by_rank([num_dense_bytes] * size), "")
    table.add_section()
    table.add_row("in all", "", "", "", _by_rank(total), "")
    return table


def _by_rank(num_bytes: Sequence[int]) -> str:
    if len(set(num_bytes)) == 1:
        return f"{num_bytes[0] / _MIB:,.1f} each"
    return " ".join(f"{each / _MIB:,.1f}" for each in num_bytes)


def _ranks(ranks: Sequence[int]) -> str:
    return "all" if len(ranks) == world_size() else " ".join(map(str, ranks))
