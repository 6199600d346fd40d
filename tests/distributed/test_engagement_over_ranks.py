"""Each of two processes measures its own rows; together they give what one process gives, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rookery.metrics.engagement import METRICS, EngagementMeter, MeasureOptions
from rookery.metrics.engagement_rows import EngagementRows

TASKS = ("like", "reply")
WORLD_SIZE = 2


def rows() -> EngagementRows:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(301, 2, generator=generator)
    labels = torch.rand(301, 2, generator=generator) < p
    weights = torch.rand(301, 2, generator=generator)
    strata = torch.empty(301, 0, dtype=torch.bool)
    return EngagementRows(
        p, labels, weights, p.sum(1), labels.sum(1).float(), strata, torch.randint(20, (301,), generator=generator)
    )


def measured(meter: EngagementMeter) -> dict[str, object]:
    whole, _ = meter.compute(MeasureOptions(num_replicates=8))
    tasks = {
        name: {"values": [task.values[m] for m in METRICS], "intervals": [task.intervals[m] for m in METRICS]}
        for name, task in whole.tasks.items()
    }
    return {"ndcg": whole.ndcg, "users": whole.num_users, **tasks}


def measure_my_share(rank: int, folder: Path) -> None:
    """Every other batch of ten rows, then the rows of all ranks."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD_SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE)
    meter = EngagementMeter(TASKS)
    for batch in torch.arange(301).split(10)[rank::WORLD_SIZE]:
        meter.update(rows().select(batch))
    gathered: list[EngagementRows] = [meter.rows()] * WORLD_SIZE
    dist.all_gather_object(gathered, meter.rows())
    together = EngagementMeter(TASKS)
    for part in reversed(gathered):
        together.update(part)
    (folder / f"rank-{rank}.json").write_text(json.dumps(measured(together)))
    dist.destroy_process_group()


def test_two_ranks_measure_what_one_measures(tmp_path: Path) -> None:
    mp.spawn(measure_my_share, (tmp_path,), WORLD_SIZE)
    alone = EngagementMeter(TASKS)
    alone.update(rows())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = json.loads(json.dumps(measured(alone)))
    torch.set_num_threads(threads)
    for rank in range(WORLD_SIZE):
        assert json.loads((tmp_path / f"rank-{rank}.json").read_text()) == expected
