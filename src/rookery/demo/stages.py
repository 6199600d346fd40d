"""The stages of the demo, each of which goes on where an earlier start left it.

What a stage makes is there whole or not at all, so a stage is done when its last file exists; a training that was
interrupted goes on from its newest checkpoint by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rookery.checkpoint.files import write_atomically
from rookery.config.loader import load_config
from rookery.data.engagements import ENGAGEMENTS
from rookery.data.ingest import ingest
from rookery.data.ingest_config import IngestConfig
from rookery.demo.layout import RANKERS, Layout
from rookery.ranker.config import RankerConfig
from rookery.ranker.export import RankerExport
from rookery.ranker.export import export_run as export_ranker
from rookery.ranker.init import InitRequest
from rookery.ranker.init import initial_config as ranker_config
from rookery.ranker.init_columns import Roles
from rookery.ranker.run_evaluation import evaluate_run
from rookery.ranker.train import train_ranker
from rookery.timeline.bundle import MANIFEST as BUNDLE
from rookery.timeline.bundle import Bundle, build_bundle
from rookery.timeline.config import WEIGHT_PRESETS, TimelineConfig
from rookery.timeline.evaluation import evaluate_timelines
from rookery.timeline.timeline import Timeline
from rookery.train.loop import TrainingResult
from rookery.twhin.config import TwhinConfig
from rookery.twhin.init import initial_config as twhin_config
from rookery.twhin.source import export_run as export_twhin
from rookery.twhin.train import train_twhin
from rookery.world.config import WorldConfig
from rookery.world.generate import generate_world
from rookery.world.manifest import MANIFEST as WORLD
from rookery.world.manifest import verify_world
from rookery.world.world import World

Notify: TypeAlias = Callable[[int, int], None]
"""Told how much of how much is done."""

HISTORY, ALL = "history", "edges"
SPLIT = "test"
"""The last day of the log."""
NUM_USERS, NUM_PLACES = 500, 20
"""Of how many users timelines are measured, and how many posts of each."""


@dataclass(frozen=True)
class Stage:
    """A title, and what is done under it."""

    title: str
    run: Callable[[Notify], None]


def stages(layout: Layout, world: WorldConfig) -> Iterator[Stage]:
    """All stages, in their order."""
    yield Stage("a society, and what it did in two weeks", lambda notify: _world(layout, world, notify))
    yield Stage("TwHIN on what was before the log: vectors that the ranker may see", lambda _: _twhin(layout, HISTORY))
    yield Stage("TwHIN on all there is: vectors to search posts by", lambda _: _twhin(layout, ALL))
    without, with_vectors = RANKERS
    yield Stage("the ranker without TwHIN's vectors", lambda _: _ranker(layout, without, ()))
    export = layout.vectors(HISTORY)
    embeddings = (f"{export}:user:user_id", f"{export}:user:author_id")
    yield Stage("the ranker with them", lambda _: _ranker(layout, with_vectors, embeddings))
    yield Stage("both measured on the last day", lambda notify: _evaluate(layout, notify))
    yield Stage("all that a timeline is served from", lambda _: _bundle(layout))
    yield Stage("timelines against the truth", lambda notify: _timelines(layout, notify))


def _world(layout: Layout, config: WorldConfig, notify: Notify) -> None:
    if (layout.world / WORLD).exists():
        verify_world(layout.world)
    else:
        generate_world(layout.world, config, notify=notify)


def _twhin(layout: Layout, edges: str) -> None:
    graph, config, export = layout.graph(edges), layout.config(f"twhin-{edges}"), layout.vectors(edges)
    raw = layout.world / edges
    if not graph.exists():
        ingest(load_config(IngestConfig, raw / "ingest.yaml"), raw, graph)
    if not config.exists():
        write_atomically(config, twhin_config(graph, layout.twhin(edges)))
    if not export.exists():
        _finished(train_twhin(load_config(TwhinConfig, config)))
        export_twhin(layout.twhin(edges), export)


def _ranker(layout: Layout, name: str, embeddings: tuple[str, ...]) -> None:
    config, export = layout.config(name), layout.export(name)
    if not config.exists():
        roles = Roles(tasks_of(layout), user="user_id", item="post_id", time="time")
        request = InitRequest((layout.impressions,), roles, embeddings, layout.run(name))
        write_atomically(config, ranker_config(request, lambda line: None))
    if not export.exists():
        weights = [f"score.weights.{task}={weight}" for task, weight in weights_of(layout).items()]
        _finished(train_ranker(load_config(RankerConfig, config, weights)))
        export_ranker(layout.run(name), export, "torch")


def tasks_of(layout: Layout) -> tuple[str, ...]:
    """The engagements that happened at all before the last two days: in a tiny world nobody may report a post."""
    files = sorted(layout.impressions.glob("*.parquet"))[:-2]
    labels = pa.concat_tables([pq.read_table(file, columns=list(ENGAGEMENTS)) for file in files])
    return tuple(task for task in ENGAGEMENTS if pc.max(labels[task]).as_py() == 1)


def weights_of(layout: Layout) -> dict[str, float]:
    """The weights of 2023 of these."""
    return {task: WEIGHT_PRESETS["2023"][task] for task in tasks_of(layout)}


def _finished(result: TrainingResult) -> None:
    """An interrupted training ends the demo behind its checkpoint."""
    if result.reason == "interrupted":
        raise KeyboardInterrupt


def _evaluate(layout: Layout, notify: Notify) -> None:
    for number, name in enumerate(RANKERS):
        notify(number, len(RANKERS))
        evaluate_run(layout.run(name), SPLIT)
    notify(len(RANKERS), len(RANKERS))


def _bundle(layout: Layout) -> None:
    if not (layout.bundle / BUNDLE).exists():
        build_bundle(
            layout.bundle,
            catalog=layout.world / "catalog",
            ranker=layout.export(RANKERS[1]),
            twhin=layout.vectors(ALL),
            config=TimelineConfig(weights=weights_of(layout)),
        )


def _timelines(layout: Layout, notify: Notify) -> None:
    if layout.timeline_evaluation.exists():
        return
    bundle, world = Bundle.open(layout.bundle), World.open(layout.world)
    num_users = len(bundle.catalog.user_ids)
    users = np.random.default_rng(0).choice(num_users, min(NUM_USERS, num_users), replace=False)
    found = evaluate_timelines(
        Timeline(bundle),
        world.true_probabilities,
        users,
        NUM_PLACES,
        without_twhin=Timeline(bundle, RankerExport.open(layout.export(RANKERS[0]))),
        notify=lambda done: notify(done, len(users)),
    )
    write_atomically(layout.timeline_evaluation, json.dumps(asdict(found), indent=1) + "\n")
