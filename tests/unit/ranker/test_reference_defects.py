"""Defects of twitter/the-algorithm-ml that the ranker must not have, each as a test of behaviour.

Those that TwHIN could have are in ``tests/unit/twhin/test_reference_defects.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from evaluated_run import TASKS, read_config, write_config
from sklearn.metrics import roc_auc_score

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.config.loader import parse_config
from rookery.errors import ConfigError
from rookery.nn.config import MaskBlockConfig, MlpConfig, TaskModelConfig
from rookery.nn.layout import InputLayout
from rookery.nn.mask_net import MaskBlocks
from rookery.nn.mlp import Mlp
from rookery.nn.network import build_network
from rookery.ranker.build import build_preprocessor
from rookery.ranker.config import FixedWeights, LossConfig, RankerConfig
from rookery.ranker.evaluation import evaluate
from rookery.ranker.inputs import INPUTS, Inputs
from rookery.ranker.loss import MultiTaskLoss
from rookery.ranker.preprocess import Preprocessor
from rookery.ranker.run import load_run
from rookery.ranker.train import train_ranker

MLP = {"layer_sizes": (4, 3)}
BLOCK = {"output_size": 5, "aggregation_size": 4}


# 7. Every network that the configuration can name exists, and runs forward and backward.
@pytest.mark.parametrize(
    "network",
    [
        {"mask_net_config": {"mask_blocks": [BLOCK, BLOCK], "use_parallel": False, "mlp": MLP}},
        {"dcn_config": {"poly_degree": 3, "parallel_mlp": MLP, "output_mlp": MLP}},
        {"dlrm_config": {"bottom_mlp": {"layer_sizes": (6, 4)}, "top_mlp": MLP}},
    ],
    ids=["serial mask net", "dcn", "dlrm"],
)
def test_07_networks_that_crash_there_learn(network: dict[str, object]) -> None:
    torch.manual_seed(0)
    module = build_network(TaskModelConfig.model_validate(network), InputLayout(12, ((4, 4), (8, 4))), 1)
    module(torch.randn(9, 12)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# 9. Metrics read probabilities of the down-sampled log there, not those that are served.
def test_09_metrics_are_of_the_probabilities_that_are_served(trained: Path) -> None:
    rate = 0.25
    config = read_config(trained / "config.yaml", f"labels.hide.neg_downsampling_rate={rate}")
    loaded, sampled = load_run(trained / "run"), load_run(trained / "run")
    sampled.model.sampling_offset[1] = np.log(rate)
    table = pq.read_table(trained / "test.parquet")
    columns = {name: torch.tensor(table.column(name).to_numpy()) for name in ("affinity", "annoyance")}
    p = loaded.predict(columns)[:, 1].double()
    served = p * rate / (1 - p + p * rate)
    hidden = torch.tensor(table.column("hide").to_numpy()).double()
    weights = hidden + (1 - hidden) / rate
    found = evaluate(config, "test", sampled.model, preprocessor_of(config, trained), num_bootstrap=0)
    values = found.whole.tasks["hide"].values
    assert values["mean_prediction"] == pytest.approx(float((weights * served).sum() / weights.sum()), rel=1e-5)
    loss = -(hidden * served.log() + (1 - hidden) * (1 - served).log())
    assert values["logloss"] == pytest.approx(float((weights * loss).sum() / weights.sum()), rel=1e-5)


def preprocessor_of(config: RankerConfig, folder: Path) -> Preprocessor:
    return build_preprocessor(config, Inputs.open(folder / "run" / INPUTS))


# 10. Tasks cannot be weighted there.
def test_10_a_task_counts_as_much_as_it_weighs() -> None:
    tower = TaskModelConfig(mlp_config=MlpConfig(layer_sizes=(1,)))
    towers = dict.fromkeys(TASKS, tower)
    logits, labels = torch.zeros(6, 2, requires_grad=True), torch.ones(6, 2)
    MultiTaskLoss(LossConfig(fixed=FixedWeights(weights={"like": 3.0, "hide": 0.5})), towers)(
        logits, labels, torch.ones(6)
    )[0].backward()
    assert logits.grad is not None
    ratio = logits.grad[:, 0] / logits.grad[:, 1]
    torch.testing.assert_close(ratio, torch.full((6,), 6.0))


# 14. Labels are paired with heads by their place there: with three tasks more in the data, each head has another's.
def test_14_labels_are_paired_by_name(tmp_path: Path) -> None:
    """Whatever else the data tell, in whatever order, it is the same training to the last bit."""
    plain = write_config(tmp_path, num_train_steps=60)
    train_ranker(read_config(plain))
    more = yaml.safe_load(plain.read_text())
    more["labels"] = {"is_german": {"column": "german"}, "hide": {}, "again": {"column": "like"}, "like": {}}
    for name in ("train", "valid", "test"):
        table = pq.read_table(tmp_path / f"{name}.parquet")
        german = np.asarray(table.column("country").to_numpy(zero_copy_only=False) == "de", dtype=np.int8)
        pq.write_table(table.append_column("german", [german]), tmp_path / f"{name}.parquet")
    more["training"]["save_dir"] = str(tmp_path / "more")
    train_ranker(parse_config(RankerConfig, more, "more"))
    tensors, others = (load_checkpoint(tmp_path / name).tensors("model") for name in ("run", "more"))
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []

    loaded, test = load_run(tmp_path / "more"), pq.read_table(tmp_path / "test.parquet")
    columns = {name: torch.tensor(test.column(name).to_numpy()) for name in ("affinity", "annoyance")}
    p = loaded.predict(columns).numpy()
    for place, task in enumerate(TASKS):  # each head ranks its own label best
        areas = {other: roc_auc_score(test.column(other).to_numpy(), p[:, place]) for other in (*TASKS, "german")}
        assert areas[task] > 0.65
        assert max(areas, key=lambda other: areas[other]) == task


def test_14_a_task_without_a_label_is_refused(trained: Path) -> None:
    raw = yaml.safe_load((trained / "config.yaml").read_text())
    raw["labels"] = {"like": {}, "hidden": {"column": "hide"}}
    with pytest.raises(
        ConfigError, match=r"model\.tasks\.hide: no label of this name in labels; did you mean 'hidden'"
    ):
        parse_config(RankerConfig, raw, "config.yaml")


# 17. An MLP of one layer crashes there.
def test_17_an_mlp_of_one_layer_is_a_linear_map() -> None:
    mlp = Mlp(MlpConfig(layer_sizes=(3,)), 4)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.linear(x, mlp.layers[0].weight, mlp.layers[0].bias)
    torch.testing.assert_close(mlp(x), expected)
    assert (expected < 0).any()


# 18. A mask block has no ReLU behind its layer norm there; the paper's has.
@pytest.mark.parametrize("activation", [None, "relu"])
def test_18_the_activation_of_a_block_is_chosen(activation: str | None) -> None:
    torch.manual_seed(0)
    config = MaskBlockConfig.model_validate({**BLOCK, "activation": activation})
    assert MaskBlockConfig.model_validate(BLOCK).activation is None
    block, x = MaskBlocks(config, 1, 6, 6), torch.randn(7, 6)
    weights = {name: tensor[0] for name, tensor in block.state_dict().items()}
    mask = (x @ weights["aggregate.weight"].T).relu() @ weights["project.weight"].T
    hidden = (x * mask) @ weights["hidden.weight"].T
    expected = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    if activation == "relu":
        expected = expected.clamp(min=0)
    torch.testing.assert_close(block(x, x)[:, 0], expected, rtol=1e-4, atol=1e-5)
