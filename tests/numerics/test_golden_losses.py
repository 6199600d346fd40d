"""Losses of the first 20 steps of three small configurations, at full precision: a refactor leaves every bit as it is.

Bits are those of one thread, one version of torch and one processor, named below; elsewhere sums run in another order
and the losses agree to 1e-5. When a change is meant to move them, say why in its commit and run

    python tests/numerics/test_golden_losses.py

which prints ``RECORDED_ON`` and ``LOSSES`` anew, to be pasted here.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from small_graph import log_lines, make_config, one_thread, planted_splits, write_graph

from rookery.train.environment import describe_environment
from rookery.twhin.train import train_twhin

CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "translation, dot, bce, drawn and in-batch negatives": ({"train_data.negative_alpha": 0.5}, {}),
    "complex diagonal on both sides, softmax over all by query, n3": (
        {
            "model.relations.0.operator": "complex_diagonal",
            "model.relations.1.operator": "complex_diagonal",
            "model.operator_side": "both",
            "model.relation_init_scale": 0.1,
            "model.loss": {"softmax": {"temperature": 0.5}},
            "model.regularizer": {"n3": 0.01},
            "train_data.global_negatives": "all",
            "train_data.in_batch_negatives": 0,
            "train_data.order": "queries",
        },
        {"optimizer": {"adagrad": {"lr": 0.1}}},
    ),
    "translation, l2, self-adversarial, linear, max norm, two batches a step": (
        {
            "model.relations.1.operator": "linear",
            "model.comparator": "l2",
            "model.loss": {"self_adversarial": {"margin": 1.0, "alpha": 0.5}},
            "training.gradient_accumulation": 2,
            "train_data.mask_known_positives": True,
        },
        {"optimizer": {"adam": {"lr": 0.02}}, "max_norm": 0.35},
    ),
}

RECORDED_ON = ["2.13.0+cpu", "AVX512", "AMD EPYC"]
LOSSES: dict[str, list[float]] = {
    "translation, dot, bce, drawn and in-batch negatives": [
        1.3294830322265625,
        1.324703574180603,
        1.3141658306121826,
        1.3267730474472046,
        1.297297477722168,
        1.2627307176589966,
        1.2103036642074585,
        1.2197580337524414,
        1.2611559629440308,
        1.1799205541610718,
        1.1660683155059814,
        1.1966478824615479,
        1.101636290550232,
        1.0852012634277344,
        1.1835765838623047,
        1.0918394327163696,
        1.1722403764724731,
        1.1120291948318481,
        1.1014885902404785,
        1.1305103302001953,
    ],
    "complex diagonal on both sides, softmax over all by query, n3": [
        2.945863962173462,
        2.8769407272338867,
        2.9085304737091064,
        2.9492225646972656,
        2.8990960121154785,
        2.8188278675079346,
        2.7994675636291504,
        2.7577922344207764,
        2.6669225692749023,
        2.677353858947754,
        2.661687135696411,
        2.5089502334594727,
        2.447303533554077,
        2.4942665100097656,
        2.4649808406829834,
        2.2273645401000977,
        2.4154751300811768,
        2.229163885116577,
        2.2671432495117188,
        2.199347734451294,
    ],
    "translation, l2, self-adversarial, linear, max norm, two batches a step": [
        1.4677520394325256,
        1.4361509084701538,
        1.4070847034454346,
        1.370848298072815,
        1.365207552909851,
        1.3712838292121887,
        1.3433272242546082,
        1.3410826325416565,
        1.3422192335128784,
        1.347636640071869,
        1.3132391571998596,
        1.3266226649284363,
        1.312379002571106,
        1.3064229488372803,
        1.326848566532135,
        1.3191574215888977,
        1.3073627948760986,
        1.2877538204193115,
        1.2925211787223816,
        1.291428029537201,
    ],
}


def here() -> list[str]:
    return [torch.__version__, torch.backends.cpu.get_cpu_capability(), describe_environment()["cpu"]]


def losses_of(name: str, folder: Path) -> list[float]:
    fields, table = CONFIGS[name]
    graph = write_graph(folder / "graph", planted_splits())
    train_twhin(make_config(graph, folder / "run", {"training.num_train_steps": 20, **fields}, **table))
    return [line["loss"] for line in log_lines(folder / "run")]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_losses_are_those_recorded(name: str, tmp_path: Path) -> None:
    found, recorded = losses_of(name, tmp_path), LOSSES[name]
    assert found == (recorded if here() == RECORDED_ON else pytest.approx(recorded, rel=1e-5))
    assert found[-1] < found[0]


def record() -> None:
    lines = [f"RECORDED_ON = {here()!r}", "LOSSES = {"]
    for name in CONFIGS:
        with one_thread(), tempfile.TemporaryDirectory() as folder:
            lines.append(f"    {name!r}: {losses_of(name, Path(folder))!r},")
    sys.stdout.write("\n".join([*lines, "}"]) + "\n")


if __name__ == "__main__":
    record()
