"""Starting and resuming runs that do not fit: what the message says is to be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from evaluated_run import read_config

from rookery.errors import ConfigError
from rookery.ranker.memory import fits_memory
from rookery.ranker.train import train_ranker

WIDER = "model.backbone.mlp_config.layer_sizes=[24]"


def test_weights_of_another_shape_are_refused_with_what_mends_it(trained: Path, tmp_path: Path) -> None:
    overrides = (
        f"training.save_dir={tmp_path / 'run'}",
        f"training.initial_checkpoint_dir={trained / 'run'}",
        "training.num_train_steps=1",
    )
    with pytest.raises(ConfigError) as raised:
        train_ranker(read_config(trained / "config.yaml", *overrides, WIDER))
    message = str(raised.value)
    assert "float32[16, 2] there, float32[24, 2] in this configuration; configure the model as that run did" in message
    assert "or leave training.initial_checkpoint_dir out" in message
    assert train_ranker(read_config(trained / "config.yaml", *overrides)).step == 1


TOO_MANY = 10**13
TASK = {"mlp_config": {"layer_sizes": [TOO_MANY, 1]}}
TABLE = {"name": "countries", "embedding_dim": TOO_MANY, "vocabulary": {}}


@pytest.mark.parametrize(
    ("overrides", "part", "num_parameters"),
    [
        ([f"model.backbone.mlp_config.layer_sizes=[{TOO_MANY}]"], "model.backbone", 2 * TOO_MANY),
        ([f"model.tasks.like={json.dumps(TASK)}"], "model.tasks", 16 * TOO_MANY),
        (
            [
                f"features.tables={json.dumps([TABLE])}",
                'features.discrete=[{"name": "country", "table": "countries"}]',
            ],
            "features.tables",
            3 * TOO_MANY,  # two countries and the row of the unknown
        ),
    ],
)
def test_a_part_that_no_memory_holds_is_named(
    trained: Path, tmp_path: Path, overrides: list[str], part: str, num_parameters: int
) -> None:
    save_dir = tmp_path / "run"
    with pytest.raises(ConfigError, match=f"^{part}: a tensor of {num_parameters:,} parameters .* lower"):
        train_ranker(read_config(trained / "config.yaml", f"training.save_dir={save_dir}", *overrides))
    assert not save_dir.exists()


def test_the_size_is_taken_from_the_words_of_torch() -> None:
    cuda = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB"
    with pytest.raises(
        ConfigError, match=r"^model: a tensor of 5,368,709,120 parameters \(20\.0 GiB as float32\) .*; less$"
    ):
        run_out_of_memory(cuda)
    with pytest.raises(ConfigError, match=r"^model: a tensor of 1099511627776 × 1099511627776 parameters does not fit"):
        torch_empty(2**40, 2**40)
    with pytest.raises(RuntimeError, match="another fault"):
        run_out_of_memory("another fault")


def run_out_of_memory(words: str) -> None:
    with fits_memory("model", "less"):
        raise RuntimeError(words)


def torch_empty(*sizes: int) -> None:
    with fits_memory("model", "less"):
        torch.empty(*sizes)


def test_a_run_that_became_another_model_is_refused(trained: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"restore the configuration to resume, or train in another training\.save_dir"
    ):
        train_ranker(read_config(trained / "config.yaml", WIDER))
