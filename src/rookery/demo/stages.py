"""The stages of the demo, each of which goes on where an earlier start left it.

What a stage makes is there whole or not at all, so a stage is done when its last file exists; a training that was
interrupted goes on from its newest checkpoint by itself.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Protocol

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


class Progress(Protocol):
    """Shows how far a stage is."""

    def __call__(self, done: int, of: int) -> None:
        """So much of so much is done."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """Open while a training shows its own bar."""
        ...


_STEPS_OF_A_MODEL = 3
"""What it learns from, its training, its export."""

HISTORY, ALL = "history", "edges"
SPLIT = "test"
"""The last day of the log."""
NUM_USERS, NUM_PLACES = 500, 20
"""Of how many users timelines are measured, and how many posts of each."""


@dataclass(frozen=True)
class Stage:
    """A title, and what is done under it."""

    title: str
    run: Callable[[Progress], None]


def stages(layout: Layout, world: WorldConfig) -> Iterator[Stage]:
    """All stages, in their order."""
    yield Stage("a society, and what it did in two weeks", functools.partial(_world, layout, world))
    for edges, title in (
        (HISTORY, "TwHIN on what was before the log: vectors that the ranker may see"),
        (ALL, "TwHIN on all there is: vectors to search posts by"),
    ):
        yield Stage(title, functools.partial(_twhin, layout, edges))
    without, with_vectors = RANKERS
    yield Stage("the ranker without TwHIN's vectors", functools.partial(_ranker, layout, without, ()))
    export = layout.vectors(HISTORY)
    embeddings = (f"{export}:user:user_id", f"{export}:user:author_id")
    yield Stage("the ranker with them", functools.partial(_ranker, layout, with_vectors, embeddings))
    yield Stage("both measured on the last day", functools.partial(_evaluate, layout))
    yield Stage("all that a timeline is served from", functools.partial(_bundle, layout))
    yield Stage("timelines against the truth", functools.partial(_timelines, layout))


def _world(layout: Layout, config: WorldConfig, progress: Progress) -> None:
    if (layout.world / WORLD).exists():
        verify_world(layout.world)
    else:
        generate_world(layout.world, config, notify=progress)


def _twhin(layout: Layout, edges: str, progress: Progress) -> None:
    graph, config, export = layout.graph(edges), layout.config(f"twhin-{edges}"), layout.vectors(edges)
    raw = layout.world / edges
    if not graph.exists():
        ingest(load_config(IngestConfig, raw / "ingest.yaml"), raw, graph)
    if not config.exists():
        write_atomically(config, twhin_config(graph, layout.twhin(edges)))
    if not export.exists():
        _train(lambda: train_twhin(load_config(TwhinConfig, config)), progress)
        export_twhin(layout.twhin(edges), export)
    progress(_STEPS_OF_A_MODEL, _STEPS_OF_A_MODEL)


def _ranker(layout: Layout, name: str, embeddings: tuple[str, ...], progress: Progress) -> None:
    config, export = layout.config(name), layout.export(name)
    if not config.exists():
        roles = Roles(tasks_of(layout), user="user_id", item="post_id", time="time")
        request = InitRequest((layout.impressions,), roles, embeddings, layout.run(name))
        write_atomically(config, ranker_config(request, lambda line: None))
    if not export.exists():
        weights = [f"score.weights.{task}={weight}" for task, weight in weights_of(layout).items()]
        _train(lambda: train_ranker(load_config(RankerConfig, config, weights)), progress)
        export_ranker(layout.run(name), export, "torch")
    progress(_STEPS_OF_A_MODEL, _STEPS_OF_A_MODEL)


def tasks_of(layout: Layout) -> tuple[str, ...]:
    """The engagements that happened at all before the last two days: in a tiny world nobody may report a post."""
    files = sorted(layout.impressions.glob("*.parquet"))[:-2]
    labels = pa.concat_tables([pq.read_table(file, columns=list(ENGAGEMENTS)) for file in files])
    return tuple(task for task in ENGAGEMENTS if pc.max(labels[task]).as_py() == 1)


def weights_of(layout: Layout) -> dict[str, float]:
    """The weights of 2023 of these."""
    return {task: WEIGHT_PRESETS["2023"][task] for task in tasks_of(layout)}


def _train(train: Callable[[], TrainingResult], progress: Progress) -> None:
    """An interrupted training ends the demo behind its checkpoint."""
    progress(1, _STEPS_OF_A_MODEL)
    with progress.aside():
        if train().reason == "interrupted":
            raise KeyboardInterrupt
    progress(2, _STEPS_OF_A_MODEL)


def _evaluate(layout: Layout, progress: Progress) -> None:
    for number, name in enumerate(RANKERS):
        evaluate_run(layout.run(name), SPLIT)
        progress(number + 1, len(RANKERS))


def _bundle(layout: Layout, progress: Progress) -> None:
    if not (layout.bundle / BUNDLE).exists():
        build_bundle(
            layout.bundle,
            catalog=layout.world / "catalog",
            ranker=layout.export(RANKERS[1]),
            twhin=layout.vectors(ALL),
            config=TimelineConfig(weights="2023"),
            notify=progress,
        )


def _timelines(layout: Layout, progress: Progress) -> None:
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
        notify=lambda done: progress(done, len(users)),
    )
    write_atomically(layout.timeline_evaluation, json.dumps(asdict(found), indent=1) + "\n")
