"""KuaiRand: one network for eight engagements against gradient-boosted trees, one model a label.

Fitted on days up to 3 May 2022, chosen on 4 May, reported on 5 May. Both see the same leak-free features of the same
rows; the network also looks its ids up and reads the lists of earlier videos. TwHIN's vectors come from the history
before the first impression. One day has few positives of most labels: differences come with intervals over users, and
``--rolling`` does the same on 1 to 4 May, each with a network and trees that know nothing of it.

    python benchmarks/kuairand.py --json
    python benchmarks/kuairand.py --variants ple,ple_alone --seeds 5
    python benchmarks/kuairand.py --rolling --json
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from engagements import METRICS, LabelledRows, ece_of_exact
from journey import Journey, main

LABELS = ("is_click", "long_view", "is_like", "is_profile_enter", "is_comment", "is_follow", "is_forward", "is_hate")
COMMON = LABELS[:4]
BEST = "ple"  # on 4 May

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
BATCH_SIZE, NUM_PASSES = 1024, 2
DAY_MS, CST_MS = 86_400_000, 8 * 3_600_000


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
    num_rows = sum(pq.read_metadata(path).num_rows for path in config["train_data"]["inputs"])
    steps = math.ceil(NUM_PASSES * num_rows / BATCH_SIZE)
    training |= {"num_train_steps": steps, "validate_every_n": steps, "checkpoint_every_n": steps}
    return config


def train(journey: Journey, config: Mapping[str, Any], variant: str, seed: int, name: str = "") -> Path:
    """Train a variant; one that is trained already is left as it is."""
    run = journey.folder / f"{name}{variant}-{seed}"
    path = journey.folder / f"{name}{variant}-{seed}.yaml"
    changed = recipe(copy.deepcopy(dict(config)), variant)
    changed["runtime"]["seed"] = seed
    path.write_text(yaml.safe_dump(changed, sort_keys=False))
    journey.rookery("ranker", "train", path, "--save-dir", run, "--json")
    return run


def predicted(journey: Journey, run: Path, rows: Path) -> np.ndarray:
    """Calibrated probabilities ``[rows, labels]``."""
    scored = journey.folder / f"{run.name}-{rows.stem}.parquet"
    journey.rookery("ranker", "score", run, rows, scored, "--overwrite", "--json")
    table = pq.read_table(scored)
    return np.stack([table[f"probability.{label}"].to_numpy() for label in LABELS], axis=1)


def labelled(rows: Path) -> LabelledRows:
    table = pq.read_table(rows, columns=["user_id", *LABELS])
    labels = np.stack([table[label].to_numpy() for label in LABELS], axis=1) > 0
    return LabelledRows(LABELS, labels, table["user_id"].to_numpy())


def vectors(journey: Journey, data: Path) -> Path:
    """TwHIN on what users watched, liked and watched at length before the first impression."""
    export = journey.folder / "vectors"
    if not export.exists():
        graph = journey.graph("kuairand-history", data, "history")
        overrides = ["training.num_epochs=8", "training.validate_every_n=2218", "training.checkpoint_every_n=2218"]
        journey.rookery("twhin", "export", journey.train(graph, "twhin", overrides=overrides), export, "--json")
    return export


def initial_config(journey: Journey, log: Path, export: Path) -> dict[str, Any]:
    labels = [part for label in LABELS for part in ("--label", label)]
    keys = ["--user", "user_id", "--item", "video_id", "--time", "time_ms"]
    joins = ["--embedding", f"{export}:user:user_id", "--embedding", f"{export}:video:video_id"]
    return dict(yaml.safe_load(journey.rookery("ranker", "init", log, *labels, *keys, *joins)))


def frames(log: Path, split: str) -> dict[str, pd.DataFrame]:
    """The rows as LightGBM takes them: every column that is no list, no label, no time; strings as categories."""
    tables = {name: pq.read_table(log / f"{name}.parquet") for name in ("train", split)}
    lists = [field.name for field in tables["train"].schema if pa.types.is_list(field.type)]
    made = {name: table.drop_columns(lists).to_pandas() for name, table in tables.items()}
    for name in made["train"].columns:
        if not pd.api.types.is_numeric_dtype(made["train"][name]):
            values = sorted(made["train"][name].dropna().unique())
            for frame in made.values():
                frame[name] = pd.Categorical(frame[name], categories=values)
    return made


def boosted_trees(journey: Journey, log: Path, split: str) -> np.ndarray:
    """Probabilities ``[rows, labels]`` of 150 trees a label, the rest as LightGBM has it but for the rate."""
    import lightgbm

    start = time.monotonic()
    made = frames(log, split)
    features = [name for name in made["train"].columns if name not in {*LABELS, "time_ms"}]
    categorical = [name for name in features if isinstance(made["train"][name].dtype, pd.CategoricalDtype)]
    columns = []
    for label in LABELS:
        model = lightgbm.LGBMClassifier(n_estimators=150, learning_rate=0.07, verbose=-1, n_jobs=2, random_state=0)
        model.fit(made["train"][features], made["train"][label], categorical_feature=[*categorical, "tab"])
        columns.append(model.predict_proba(made[split][features])[:, 1])
    journey.seconds["lightgbm"] = round(journey.seconds.get("lightgbm", 0.0) + time.monotonic() - start, 1)
    return np.stack(columns, axis=1)


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mean and deviation over seeds by label and metric."""
    return {
        label: {metric: spread([result[label][metric] for result in results]) for metric in METRICS} for label in LABELS
    }


def spread(values: Sequence[float]) -> list[float]:
    return [round(statistics.fmean(values), 4), round(statistics.stdev(values), 4) if len(values) > 1 else 0.0]


def rounded(result: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of one model by label, with intervals."""
    return {
        label: {metric: round(result[label][metric], 4) for metric in METRICS}
        | {"intervals": {metric: rounded_all(result[label]["intervals"][metric]) for metric in METRICS[:3]}}
        for label in LABELS
    }


def rounded_all(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


def gains(
    rows: LabelledRows, ours: Sequence[np.ndarray], theirs: np.ndarray, num_bootstrap: int
) -> dict[str, dict[str, list[float]]]:
    """By label and metric: the difference, and its interval."""
    found = {label: rows.gain(ours, theirs, label, num_bootstrap) for label in COMMON}
    return {label: {name: rounded_all(values) for name, values in each.items()} for label, each in found.items()}


def compare(journey: Journey, arguments: argparse.Namespace, log: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """All variants on the one split."""
    path = log / f"{arguments.split}.parquet"
    rows, predictions = labelled(path), {}
    result: dict[str, Any] = {"split": arguments.split}
    trees = None if arguments.skip_trees else boosted_trees(journey, log, arguments.split)
    if trees is not None:
        result["lightgbm"] = rounded(rows.measured(trees, arguments.bootstrap))
    for variant in arguments.variants.split(","):
        start = time.monotonic()
        runs = [train(journey, config, variant, seed) for seed in range(arguments.seeds)]
        journey.seconds[variant] = round(time.monotonic() - start, 1)
        predictions[variant] = [predicted(journey, run, path) for run in runs]
        measured = [rows.measured(each, 0) for each in predictions[variant]]
        result[variant] = summary(measured)
    best = predictions.get(BEST)
    if best is not None:
        result[f"{BEST}_first_seed"] = rounded(rows.measured(best[0], arguments.bootstrap))
        result["ece_of_exact"] = {
            label: round(ece_of_exact(best[0][:, number]), 4) for number, label in enumerate(COMMON)
        }
        if trees is not None:
            result[f"{BEST}_less_lightgbm"] = gains(rows, best, trees, arguments.bootstrap)
    return result


def fold(log: Path, out: Path, day: int) -> Path:
    """Rows of ``day`` as test, of the day before as valid, of all days before that as train; days counted from 1970."""
    out.mkdir(exist_ok=True)
    table = pa.concat_tables([pq.read_table(log / f"{name}.parquet") for name in ("train", "valid")])
    days = pa.array((table["time_ms"].to_numpy() + CST_MS) // DAY_MS)
    for name, chosen in {
        "train": pc.less(days, day - 1),
        "valid": pc.equal(days, day - 1),
        "test": pc.equal(days, day),
    }.items():
        pq.write_table(table.filter(chosen), out / f"{name}.parquet", row_group_size=16_384)
    return out


def roll(journey: Journey, log: Path, config: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """Each day from 1 to 4 May by what was fitted on the days before; means over the days."""
    last = int((pq.read_table(log / "valid.parquet", columns=["time_ms"])["time_ms"][0].as_py() + CST_MS) // DAY_MS)
    found: dict[str, list[Any]] = {"lightgbm": [], variant: []}
    for day in range(last - 3, last + 1):
        rows_of = fold(log, journey.folder / f"day-{day}", day)
        moved = copy.deepcopy(dict(config))
        for name, partition in {"train": moved["train_data"], **moved["validation_data"]}.items():
            partition["inputs"] = [str(rows_of / f"{name}.parquet")]
        rows = labelled(rows_of / "test.parquet")
        run = train(journey, moved, variant, 0, f"day-{day}-")
        found["lightgbm"].append(rows.measured(boosted_trees(journey, rows_of, "test"), 0))
        found[variant].append(rows.measured(predicted(journey, run, rows_of / "test.parquet"), 0))
    return {
        f"rolling_{name}": {
            label: {metric: rounded_all([day[label][metric] for day in days]) for metric in METRICS} for label in COMMON
        }
        | {"means": {label: {metric: summary(days)[label][metric][0] for metric in METRICS} for label in COMMON}}
        for name, days in found.items()
    }


def run(journey: Journey, arguments: argparse.Namespace) -> dict[str, Any]:
    data, log = arguments.data / "kuairand", journey.folder / "log"
    if not log.exists():
        journey.rookery("data", "prepare", "kuairand", data, log, "--json")
    config = initial_config(journey, log, vectors(journey, data))
    if arguments.rolling:
        return roll(journey, log, config, arguments.variants.split(",")[0])
    return compare(journey, arguments, log, config)


if __name__ == "__main__":
    main(
        __doc__,
        run,
        variants={"default": "ple,ple_alone,mask_net,mask_net_alone,dcn,mmoe,mlp", "help": "backbones, comma between"},
        seeds={"type": int, "default": 5, "help": "runs of each variant"},
        bootstrap={"type": int, "default": 200, "help": "resamples of users behind intervals"},
        split={"default": "test", "help": "valid while choosing"},
        rolling={"action": "store_true", "help": "1 to 4 May instead, the first variant alone"},
        **{"skip-trees": {"action": "store_true", "help": "leave LightGBM out"}},
    )
