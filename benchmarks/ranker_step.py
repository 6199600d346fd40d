"""How fast is the heavy ranker, against a plain torch version and as a share of what bare matrix products reach?

The reference's production size: 2,117 continuous and 59 binary features, three vectors of 200, four parallel mask
blocks of 1,024, an MLP of 2,048, ten towers 256-128-1, 48.1 M parameters; 13 labels of which 10 are modelled. Ours is
the model and the optimizer of ``rookery ranker train``, built from a configuration. The plain version is the same
network as one writes it from the formulas, a module for each block and each tower, a loss for each task,
``torch.optim.Adam`` and ``torch.autocast`` as they come; it starts from the same weights, and it is checked first that
both give the same logits. Both run in one process, made ready as training makes it (freed memory is kept, which the
plain version would not have by itself). A training step is forward, loss, backward and optimizer on a batch in memory;
scoring is probabilities from features. The yardstick is the model's products alone, by whichever of torch's two ways
(MKL, oneDNN) is faster in fp32, and as ``torch.mm`` in bf16. Everything is timed round by round, one variant after the
other; figures are medians over the rounds, ratios medians of the ratios within a round.

What bf16 does to probabilities is measured on a model that has learned something: 150 steps of 256 planted impressions,
whose tasks have rates from 0.2 to 10%, as those of a timeline. 40,960 probabilities of fresh rows are compared with
those of plain fp32.

    python benchmarks/ranker_step.py --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rookery.nn.mlp import pack_for_scoring
from rookery.ranker.batch import RankerBatch, RankerFeatures
from rookery.ranker.config import RankerConfig
from rookery.ranker.model import FeatureSizes, RankerModel
from rookery.ranker.optimizers import make_optimizer
from rookery.train.runtime import prepare_runtime

CONTINUOUS, BINARY, VECTOR = 2_117, 59, 200
VECTORS = ("user_embedding", "user_eng_embedding", "author_embedding")
BLOCKS, BLOCK, MLP, TOWER = 4, 1_024, 2_048, (256, 128, 1)
LABELS = (
    *("is_favorited", "is_retweeted", "is_replied", "is_good_clicked_v1", "is_good_clicked_v2"),
    *("is_profile_clicked_and_profile_engaged", "is_video_playback_50", "is_replied_reply_engaged_by_author"),
    *("is_negative_feedback_v2", "is_report_tweet_clicked", "is_shared", "is_bookmarked", "is_tweet_detail_dwelled"),
)
TASKS = LABELS[:10]
TASK_RATES = (0.05, 0.02, 0.01, 0.02, 0.01, 0.01, 0.1, 0.005, 0.002, 0.1)
LEARNING_RATE = 3e-4
LEARNED_STEPS, LEARNED_BATCH, COMPARED_ROWS = 150, 256, 4_096
SEED = 0


def configuration() -> RankerConfig:
    """The production model with a learning rate for each tower."""
    tower = {"mlp_config": {"layer_sizes": TOWER, "batch_norm": {"affine": False, "momentum": 0.1}}}
    block = {"output_size": BLOCK, "aggregation_size": BLOCK, "input_layer_norm": False}
    mlp = {"layer_sizes": [MLP], "final_layer_activation": True}
    rate = {"constant": LEARNING_RATE}
    return RankerConfig.model_validate(
        {
            "training": {"save_dir": Path("run"), "num_train_steps": 1},
            "runtime": {"device": "cpu", "seed": SEED},
            "labels": {label: {} for label in LABELS},
            "features": {
                "continuous": [{"name": "continuous", "width": CONTINUOUS}],
                "binary": [{"name": "binary", "width": BINARY}],
                "dense": [{"name": name, "width": VECTOR} for name in VECTORS],
            },
            "train_data": {"inputs": ("log.parquet",)},
            "model": {
                "tasks": dict.fromkeys(TASKS, tower),
                "backbone": {"mask_net_config": {"mask_blocks": [block] * BLOCKS, "mlp": mlp}},
                "featurization_config": {"double_norm_log_config": {}},
            },
            "optimizer": {
                "adam": {},
                "multi_task_learning_rates": {
                    "backbone_learning_rate": rate,
                    "tower_learning_rates": dict.fromkeys(TASKS, rate),
                },
            },
        }
    )


class PlainBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(nn.Linear(width, BLOCK), nn.ReLU(), nn.Linear(BLOCK, width))
        self.hidden = nn.Linear(width, BLOCK)
        self.norm = nn.LayerNorm(BLOCK)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.hidden(x * self.mask(x)))


class PlainRanker(nn.Module):
    """The same network, module by module."""

    def __init__(self) -> None:
        super().__init__()
        width = CONTINUOUS + BINARY + len(VECTORS) * VECTOR
        self.batch_norm = nn.BatchNorm1d(CONTINUOUS, affine=False)
        self.layer_norm = nn.LayerNorm(CONTINUOUS + BINARY)
        self.vector_norms = nn.ModuleList(nn.LayerNorm(VECTOR) for _ in VECTORS)
        self.blocks = nn.ModuleList(PlainBlock(width) for _ in range(BLOCKS))
        self.mlp = nn.Sequential(nn.Linear(BLOCKS * BLOCK, MLP), nn.ReLU())
        self.towers = nn.ModuleList(plain_tower() for _ in TASKS)

    def forward(self, continuous: Tensor, binary: Tensor, vectors: list[Tensor]) -> list[Tensor]:
        """A logit ``[batch]`` for each task."""
        continuous = torch.nan_to_num(continuous, posinf=0.0, neginf=0.0)
        continuous = self.batch_norm(torch.sign(continuous) * torch.log1p(torch.abs(continuous)))
        numbers = self.layer_norm(torch.cat([continuous.clamp(-5, 5), binary], dim=1))
        x = torch.cat([numbers, *(norm(vector) for norm, vector in zip(self.vector_norms, vectors, strict=True))], 1)
        x = self.mlp(torch.cat([block(x) for block in self.blocks], dim=1))
        return [tower(x).squeeze(1) for tower in self.towers]


def plain_tower() -> nn.Sequential:
    first, second, last = TOWER
    return nn.Sequential(
        *(nn.Linear(MLP, first), nn.BatchNorm1d(first, affine=False), nn.ReLU()),
        *(nn.Linear(first, second), nn.BatchNorm1d(second, affine=False), nn.ReLU()),
        nn.Linear(second, last),
    )


class Plain:
    """The plain version's training step and scoring."""

    def __init__(self) -> None:
        self.model = PlainRanker()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)

    def logits(self, batch: RankerBatch) -> list[Tensor]:
        features = batch.features
        return self.model(features.continuous, features.binary, list(features.dense.values()))

    def train_step(self, batch: RankerBatch, half: bool) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = [
                functional.binary_cross_entropy_with_logits(logit, batch.labels[:, task])
                for task, logit in enumerate(self.logits(batch))
            ]
            loss = torch.stack(losses).mean()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def score(self, batch: RankerBatch, half: bool) -> Tensor:
        self.model.eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return torch.sigmoid(torch.stack(self.logits(batch), dim=1).float())


class Ours:
    """What the training loop and a loaded run do with one batch."""

    def __init__(self, config: RankerConfig) -> None:
        sizes = FeatureSizes(CONTINUOUS, BINARY, dict.fromkeys(VECTORS, VECTOR), {})
        self.model = RankerModel(config, sizes, {}, torch.device("cpu"))
        optimizer = make_optimizer(config.optimizer, self.model)
        self.optimizer, self.rates = optimizer.optimizer, optimizer.learning_rates
        # As a run is loaded for scoring: its own model, that does not change any more.
        self.scorer = RankerModel(config, sizes, {}, torch.device("cpu")).eval()

    def start_scoring(self) -> None:
        """Score with the weights of now."""
        self.scorer.load_state_dict(self.model.state_dict())
        pack_for_scoring(self.scorer)

    def train_step(self, batch: RankerBatch, half: bool) -> None:
        self.model.train()
        for rate in self.rates:
            rate.apply(rate.schedule(0))
        self.model.begin_step(0, 0, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, _ = self.model(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def score(self, batch: RankerBatch, half: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return self.scorer.probabilities(batch.features)


@torch.no_grad()
def give_same_weights(ours: RankerModel, plain: PlainRanker) -> None:
    network = ours.network
    theirs = {
        network.featurizer.layer_norm: plain.layer_norm,
        network.backbone.mlp.layers[0]: plain.mlp[0],
        **dict(zip(network.dense_norms.values(), plain.vector_norms, strict=True)),
    }
    for module, other in theirs.items():
        other.load_state_dict(module.state_dict())
    _give(network.featurizer.continuous.batch_norm, None, plain.batch_norm)
    (blocks,), (towers,) = network.backbone.blocks, network.towers.towers
    for index, block in enumerate(plain.blocks):
        parts = {blocks.aggregate: block.mask[0], blocks.project: block.mask[2], blocks.hidden: block.hidden}
        for stacked, other in {**parts, blocks.norm: block.norm}.items():
            _give(stacked, index, other)
    for index, tower in enumerate(plain.towers):
        for stacked, other in zip(towers.mlp.layers, tower, strict=True):
            _give(stacked, index, other)


def _give(module: nn.Module, index: int | None, other: nn.Module) -> None:
    """Parameters and buffers of ``module``, of those stacked the ``index``-th, to ``other``."""
    for name, tensor in module.state_dict().items():
        other.state_dict()[name].copy_(tensor if index is None else tensor[index])


class Impressions:
    """Heavy-tailed counts, flags and vectors, with labels that some of them bring about."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.effects = torch.randn(CONTINUOUS, len(TASKS), generator=generator) * 0.5 / CONTINUOUS**0.5
        self.vector_effects = torch.randn(VECTOR, len(TASKS), generator=generator) / VECTOR**0.5
        self.bias = torch.logit(torch.tensor(TASK_RATES))

    def batch(self, num_rows: int, seed: int) -> RankerBatch:
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(num_rows, CONTINUOUS, generator=generator)
        features = RankerFeatures(
            continuous=normal.sign() * normal.mul(3).abs().exp(),
            binary=torch.randint(0, 2, (num_rows, BINARY), generator=generator).float(),
            dense={name: torch.randn(num_rows, VECTOR, generator=generator) for name in VECTORS},
            discrete={},
            ragged={},
            joined={},
            position=None,
        )
        logits = normal @ self.effects + features.dense[VECTORS[0]] @ self.vector_effects + self.bias
        labels = (torch.rand(num_rows, len(TASKS), generator=generator) < torch.sigmoid(logits)).float()
        ones = torch.ones(num_rows)
        return RankerBatch(features, labels, ones, ones.unsqueeze(1).expand_as(labels), torch.arange(num_rows), {})


def products(num_rows: int) -> list[tuple[int, int, int, int]]:
    """``(times, rows, in, out)`` of the products of a forward pass, as ours batches them."""
    width = CONTINUOUS + BINARY + len(VECTORS) * VECTOR
    first, second, last = TOWER
    return [
        (1, num_rows, width, BLOCKS * BLOCK),
        (BLOCKS, num_rows, BLOCK, width),
        (BLOCKS, num_rows, width, BLOCK),
        (1, num_rows, BLOCKS * BLOCK, MLP),
        (1, num_rows, MLP, len(TASKS) * first),
        (len(TASKS), num_rows, first, second),
        (len(TASKS), num_rows, second, last),
    ]


def bare_products(num_rows: int, dtype: torch.dtype, onednn: bool) -> Callable[[], None]:
    """The products of a forward pass alone."""
    operands = [
        (times, torch.randn(rows, size, dtype=dtype), torch.randn(out, size, dtype=dtype))
        for times, rows, size, out in products(num_rows)
    ]

    def run() -> None:
        for times, x, weight in operands:
            for _ in range(times):
                if onednn:
                    torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # noqa: SLF001
                else:
                    torch.mm(x, weight.T)

    return run


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Comparison:
    """Both versions and their batches, timed round by round."""

    def __init__(self, num_rounds: int) -> None:
        self.config = configuration()
        prepare_runtime(self.config.runtime)
        self.ours, self.plain = Ours(self.config), Plain()
        self.impressions = Impressions()
        with torch.no_grad():  # a tower starts at the rate of its task
            self.ours.model.network.towers.towers[0].mlp.layers[-1].bias.copy_(self.impressions.bias.unsqueeze(1))
        give_same_weights(self.ours.model, self.plain.model)
        self.num_rounds = num_rounds

    def require_same_logits(self) -> None:
        batch = self.impressions.batch(256, seed=1)
        self.plain.model.train()
        self.ours.model.train()
        with torch.no_grad():
            expected = torch.stack(self.plain.logits(batch), dim=1)
            torch.testing.assert_close(self.ours.model.logits(batch.features), expected, rtol=0, atol=1e-4)

    def learn(self) -> dict[str, Any]:
        """Train ours, score with both, and compare their probabilities."""
        for step in range(LEARNED_STEPS):
            self.ours.train_step(self.impressions.batch(LEARNED_BATCH, seed=100 + step), half=True)
        give_same_weights(self.ours.model, self.plain.model)
        self.ours.start_scoring()
        batch = self.impressions.batch(COMPARED_ROWS, seed=2)
        exact, rates = self.plain.score(batch, half=False), batch.labels.mean(0).expand_as(batch.labels)
        found = {
            "fp32": self.ours.score(batch, half=False),
            "bf16": self.ours.score(batch, half=True),
            "plain_bf16": self.plain.score(batch, half=True),
        }
        return {
            "largest_difference": {kind: float((each - exact).abs().max()) for kind, each in found.items()},
            "root_mean_square": {kind: float((each - exact).square().mean().sqrt()) for kind, each in found.items()},
            "loss": float(functional.binary_cross_entropy(exact, batch.labels)),
            "loss_of_the_rates": float(functional.binary_cross_entropy(rates, batch.labels)),
            "largest_probability": float(exact.max()),
        }

    def train(self, batch_size: int) -> dict[str, Any]:
        return self._measure(batch_size, 3, lambda version, batch, half: version.train_step(batch, half))

    def score(self, batch_size: int) -> dict[str, Any]:
        return self._measure(batch_size, 1, lambda version, batch, half: version.score(batch, half))

    def _measure(
        self, batch_size: int, num_passes: int, step: Callable[[Any, RankerBatch, bool], object]
    ) -> dict[str, Any]:
        """``num_passes``: products for each one of a forward pass."""
        batch = self.impressions.batch(batch_size, seed=3)
        runs: dict[str, Callable[[], object]] = {
            "plain_fp32": lambda: step(self.plain, batch, False),
            "fp32": lambda: step(self.ours, batch, False),
            "plain_bf16": lambda: step(self.plain, batch, True),
            "bf16": lambda: step(self.ours, batch, True),
            "mkl_fp32": bare_products(batch_size, torch.float32, onednn=False),
            "onednn_fp32": bare_products(batch_size, torch.float32, onednn=True),
            "products_bf16": bare_products(batch_size, torch.bfloat16, onednn=False),
        }
        rounds = [{name: _seconds(run) for name, run in runs.items()} for _ in range(self.num_rounds + 3)][3:]
        flop = 2 * sum(times * rows * size * out for times, rows, size, out in products(batch_size))
        return _summary(rounds, batch_size, num_passes, flop)


def _summary(rounds: list[dict[str, float]], batch_size: int, num_passes: int, flop: int) -> dict[str, Any]:
    for each in rounds:
        each["products_fp32"] = min(each["mkl_fp32"], each["onednn_fp32"])

    def ratio(over: str, under: str, times: float = 1.0) -> float:
        return round(statistics.median(times * each[over] / each[under] for each in rounds), 3)

    def gain(over: str, under: str) -> dict[str, float]:
        quartiles = statistics.quantiles([each[over] / each[under] for each in rounds], n=4)
        return {"gain": round(quartiles[1], 3), "gain_quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)]}

    median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    versions = ("plain_fp32", "fp32", "plain_bf16", "bf16")
    return {
        "examples_per_s": {name: round(batch_size / median[name], 1) for name in versions},
        "milliseconds": {name: round(median[name] * 1e3, 2) for name in versions},
        "share_of_matmul": {
            name: ratio(f"products_{name.removeprefix('plain_')}", name, num_passes) for name in versions
        },
        "matmul_gflops": {
            name: round(flop / median[name] / 1e9, 1) for name in ("mkl_fp32", "onednn_fp32", "products_bf16")
        },
        "fp32_vs_plain": gain("plain_fp32", "fp32"),
        "bf16_vs_plain": gain("plain_fp32", "bf16"),
        "bf16_vs_plain_bf16": gain("plain_bf16", "bf16"),
    }


def measure(num_rounds: int) -> dict[str, Any]:
    comparison = Comparison(num_rounds)
    comparison.require_same_logits()
    differences = comparison.learn()
    assert differences["largest_difference"]["fp32"] < 1e-5, differences
    scoring = {f"score_{size}": comparison.score(size) for size in (1, 128, 1_024)}
    training = {f"train_{size}": comparison.train(size) for size in (128, 1_024)}
    parts = {**training, **scoring}
    return {
        **{f"{name}_vs_plain": part["fp32_vs_plain"]["gain"] for name, part in parts.items()},
        **{f"{name}_bf16_vs_plain": part["bf16_vs_plain"]["gain"] for name, part in parts.items()},
        "probabilities": differences,
        **parts,
        "num_parameters": sum(each.numel() for each in comparison.ours.model.parameters()),
        "num_threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    print(json.dumps(result) if arguments.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
