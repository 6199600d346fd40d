"""KuaiRand: one network for eight engagements against gradient-boosted trees, one model a label.

Fitted on days up to 3 May 2022, chosen on 4 May, reported on 5 May. Both see the same leak-free features of the same
rows; the network also looks its ids up and reads the lists of earlier videos. TwHIN's vectors come from the history
before the first impression.

    python benchmarks/kuairand.py --json
    python benchmarks/kuairand.py --variants mask_net,mask_net_alone --seeds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from journey import Journey, main

from rookery.metrics.engagement import EngagementMeter, MeasureOptions
from rookery.metrics.engagement_rows import EngagementRows

LABELS = ("is_click", "long_view", "is_like", "is_profile_enter", "is_comment", "is_follow", "is_forward", "is_hate")
COMMON = LABELS[:4]
METRICS = ("auroc", "gauc", "rce", "calibration", "ece")

# What the network leaves out: values so many that in two passes they are learned by heart. Found on 4 May.
LEARNED_BY_HEART = ("user_id", "music_id", "onehot_feat3", "onehot_feat8")
DROPOUT = {"rate": 0.1}
HEAD = {"layer_sizes": [128], "dropout": DROPOUT, "final_layer_activation": True}
BLOCK = {"output_size": 128, "aggregation_size": 64, "activation": "relu"}
EXPERT = {"layer_sizes": [128, 128], "dropout": DROPOUT, "final_layer_activation": True}
MLP = {"layer_sizes": [256, 128], "dropout": DROPOUT, "final_layer_activation": True}
BACKBONES: dict[str, dict[str, Any]] = {
    "mask_net": {"mask_net_config": {"mask_blocks": [BLOCK] * 4, "mlp": HEAD}},
    "dcn": {"dcn_config": {"poly_degree": 3, "projection_dim": 64, "parallel_mlp": MLP, "output_mlp": HEAD}},
    "mmoe": {"mmoe_config": {"num_experts": 4, "expert": EXPERT}},
    "ple": {"ple_config": {"num_shared_experts": 2, "num_task_experts": 1, "expert": EXPERT}},
    "mlp": {"mlp_config": MLP},
}
TOWER = {"mlp_config": {"layer_sizes": [64, 1], "dropout": DROPOUT}}
BATCH_SIZE, NUM_STEPS = 1024, 301  # two passes


def recipe(config: dict[str, Any], variant: str) -> dict[str, Any]:
    """What was found on 4 May, in place of what `rookery ranker init` chose. ``<backbone>_alone``: without TwHIN."""
    features = config["features"]
    kept = [table for table in features["tables"] if table["name"] not in LEARNED_BY_HEART]
    features["discrete"] = [one for one in features["discrete"] if one["name"] not in LEARNED_BY_HEART]
    features["tables"] = [{**table, "dropout": 0.0, "vocabulary": {"min_count": 1}} for table in kept]
    features["ragged"] = [
        {"name": one["name"], "table": one["table"], "max_length": 50, "pooling": "mean"} for one in features["ragged"]
    ]
    backbone = variant.removesuffix("_alone")
    if backbone != variant:
        features["embeddings"] = []
    model = config["model"]
    model["featurization_config"] = {"piecewise_linear_config": {"num_bins": 8}}
    model["backbone"] = BACKBONES[backbone]
    model["tasks"] = dict.fromkeys(LABELS, TOWER)
    config["loss"] = {"fixed": {"weights": {"is_like": 3.0, "is_profile_enter": 3.0}}}
    config["train_data"]["batch_size"] = BATCH_SIZE
    config["optimizer"] = {
        "adamw": {"weight_decay": 1.0},
        "single_task_learning_rate": {"linear_ramp_to_constant": {"learning_rate": 0.002, "num_ramp_steps": 50}},
        "average": {"decay": 0.99},
    }
    training = config["training"]
    training.pop("num_epochs")
    training.pop("early_stopping")
    training |= {"num_train_steps": NUM_STEPS, "validate_every_n": NUM_STEPS, "checkpoint_every_n": NUM_STEPS}
    return config


def train(journey: Journey, config: str, variant: str, seed: int) -> Path:
    """Train a variant; one that is trained already is left as it is."""
    run = journey.folder / f"{variant}-{seed}"
    path = journey.folder / f"{variant}-{seed}.yaml"
    changed = recipe(yaml.safe_load(config), variant)
    changed["runtime"]["seed"] = seed
    path.write_text(yaml.safe_dump(changed, sort_keys=False))
    journey.rookery("ranker", "train", path, "--save-dir", run, "--json")
    return run


def evaluate(journey: Journey, run: Path, split: str, num_bootstrap: int) -> dict[str, Any]:
    bootstrap = f"evaluation.num_bootstrap={num_bootstrap}"
    printed = journey.rookery("ranker", "evaluate", run, "--split", split, "--set", bootstrap, "--json")
    return dict(json.loads(printed)["tasks"])


def vectors(journey: Journey, data: Path) -> Path:
    """TwHIN on what users watched, liked and watched at length before the first impression."""
    export = journey.folder / "vectors"
    if not export.exists():
        graph = journey.graph("kuairand-history", data, "history")
        overrides = ["training.num_epochs=8", "training.validate_every_n=2218", "training.checkpoint_every_n=2218"]
        journey.rookery("twhin", "export", journey.train(graph, "twhin", overrides=overrides), export, "--json")
    return export


def initial_config(journey: Journey, log: Path, export: Path) -> str:
    labels = [part for label in LABELS for part in ("--label", label)]
    keys = ["--user", "user_id", "--item", "video_id", "--time", "time_ms"]
    joins = ["--embedding", f"{export}:user:user_id", "--embedding", f"{export}:video:video_id"]
    return journey.rookery("ranker", "init", log, *labels, *keys, *joins)


def frames(log: Path) -> dict[str, pd.DataFrame]:
    """The rows as LightGBM takes them: every column that is no list, no label, no time; strings as categories."""
    tables = {split: pq.read_table(log / f"{split}.parquet") for split in ("train", "test")}
    lists = [field.name for field in tables["train"].schema if pa.types.is_list(field.type)]
    made = {split: table.drop_columns(lists).to_pandas() for split, table in tables.items()}
    for name in made["train"].columns:
        if not pd.api.types.is_numeric_dtype(made["train"][name]):
            values = sorted(made["train"][name].dropna().unique())
            for frame in made.values():
                frame[name] = pd.Categorical(frame[name], categories=values)
    return made


def boosted_trees(log: Path, num_bootstrap: int) -> tuple[dict[str, Any], float]:
    """150 trees a label, the rest as LightGBM has it but for the rate; metrics on 5 May and seconds of fitting."""
    import lightgbm

    made = frames(log)
    features = [name for name in made["train"].columns if name not in {*LABELS, "time_ms"}]
    categorical = [name for name in features if isinstance(made["train"][name].dtype, pd.CategoricalDtype)]
    start = time.monotonic()
    predicted = []
    for label in LABELS:
        model = lightgbm.LGBMClassifier(n_estimators=150, learning_rate=0.07, verbose=-1, n_jobs=2, random_state=0)
        model.fit(made["train"][features], made["train"][label], categorical_feature=[*categorical, "tab"])
        predicted.append(model.predict_proba(made["test"][features])[:, 1])
    return measured(np.stack(predicted, 1), made["test"], num_bootstrap), time.monotonic() - start


def measured(probabilities: np.ndarray, rows: pd.DataFrame, num_bootstrap: int) -> dict[str, Any]:
    """Metrics by label as `rookery ranker evaluate` has them."""
    meter = EngagementMeter(LABELS)
    labels = torch.from_numpy(rows[list(LABELS)].to_numpy()).bool()
    num_rows = len(rows)
    meter.update(
        EngagementRows(
            probabilities=torch.from_numpy(probabilities).float(),
            labels=labels,
            weights=torch.ones(labels.shape),
            scores=torch.zeros(num_rows),
            gains=torch.zeros(num_rows),
            strata=torch.empty(num_rows, 0, dtype=torch.bool),
            users=torch.from_numpy(rows["user_id"].to_numpy()),
        )
    )
    whole, _ = meter.compute(MeasureOptions(num_replicates=num_bootstrap))
    return {
        label: {**task.values, "intervals": task.intervals}  # noqa: PD011 (no frame)
        for label, task in whole.tasks.items()
    }


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mean and deviation over seeds by label and metric."""
    return {
        label: {metric: spread([result[label][metric] for result in results]) for metric in METRICS} for label in LABELS
    }


def spread(values: Sequence[float]) -> list[float]:
    return [round(statistics.fmean(values), 4), round(statistics.stdev(values), 4) if len(values) > 1 else 0.0]


def rounded(result: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of one model by label; intervals of the rare labels."""
    return {
        label: {metric: round(result[label][metric], 4) for metric in METRICS}
        | (
            {}
            if label in COMMON or not result[label]["intervals"]
            else {"intervals": intervals(result[label]["intervals"])}
        )
        for label in LABELS
    }


def intervals(found: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {metric: [round(bound, 4) for bound in found[metric]] for metric in ("auroc", "gauc", "rce")}


def run(journey: Journey, arguments: argparse.Namespace) -> dict[str, Any]:
    data, log = arguments.data / "kuairand", journey.folder / "log"
    if not log.exists():
        journey.rookery("data", "prepare", "kuairand", data, log, "--json")
    config = initial_config(journey, log, vectors(journey, data))
    result: dict[str, Any] = {"split": arguments.split}
    if not arguments.skip_trees:
        found, seconds = boosted_trees(log, arguments.bootstrap)
        result["lightgbm"] = rounded(found)
        journey.seconds["lightgbm"] = round(seconds, 1)
    for variant in arguments.variants.split(","):
        start = time.monotonic()
        runs = [train(journey, config, variant, seed) for seed in range(arguments.seeds)]
        journey.seconds[variant] = round(time.monotonic() - start, 1)
        results = [evaluate(journey, each, arguments.split, arguments.bootstrap) for each in runs]
        result[variant] = summary(results)
        result[f"{variant}_first_seed"] = rounded(results[0])
    return result


if __name__ == "__main__":
    main(
        __doc__,
        run,
        variants={"default": "mask_net,mask_net_alone,dcn,mmoe,ple,mlp", "help": "backbones, comma between"},
        seeds={"type": int, "default": 5, "help": "runs of each variant"},
        bootstrap={"type": int, "default": 200, "help": "resamples of users behind intervals"},
        split={"default": "test", "help": "valid while choosing"},
        **{"skip-trees": {"action": "store_true", "help": "leave LightGBM out"}},
    )
