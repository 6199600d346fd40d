"""What a run was trained on and as what: noted in the run directory, compared whenever the run is resumed or read.

RUN/graph.json   CRC-32 of the vocabularies and of the training edges

Of several processes all call what is here for the graph: each reads a part of the files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from rookery.checkpoint.files import write_atomically
from rookery.config.loader import load_config
from rookery.data.file_sums import joined, sum_of_part
from rookery.data.graph import Graph
from rookery.errors import DataError
from rookery.parallel.world import gather_objects, is_chief, on_all, rank, world_size
from rookery.storage.location import Location
from rookery.train.lineage import require_same_meaning
from rookery.twhin.config import TwhinConfig

GRAPH_NOTE = "graph.json"

# Fields that give the numbers of a checkpoint another meaning; the rest may change on the way, and is reported.
_MEANING = ("model.comparator", "model.operator_side", "model.relations", "train_data.order", "runtime.seed")
_FREE = ("training.", "runtime.device", "runtime.num_threads", "evaluation.", "validation_data", "graph")


def note_graph(run: Path, graph: Graph) -> None:
    """Note the graph of a new run."""
    note = {"entity_types": entity_sums(graph), "train": edge_sum(graph)}
    if is_chief():
        write_atomically(run / GRAPH_NOTE, json.dumps(note, indent=1) + "\n")


def entity_sums(graph: Graph) -> dict[str, str]:
    """CRC-32 of each vocabulary file: equal sums mean that row numbers still stand for the same ids."""
    return {name: _sum([graph.vocabulary_file(name)]) for name in graph.entity_types}


def edge_sum(graph: Graph) -> str:
    """CRC-32 of the files of the training edges, one after another."""
    return _sum(graph.split_files("train"))


def require_same_entities(run: Path, graph: Graph) -> None:
    """Raise ``DataError`` when the graph's rows no longer stand for the ids that the run was trained with."""
    then, now = _noted(run).get("entity_types", {}), entity_sums(graph)

    def compare() -> None:
        for name, crc in then.items():
            if now.get(name) != crc:
                raise DataError(
                    f"{graph.path}: the vocabulary of '{name}' is not the one that {run} was trained with, so its "
                    "vectors belong to other ids; name that graph, or train again (training.initial_checkpoint_dir "
                    "keeps what is known, joined by id)"
                )

    on_all(compare)


def require_same_edges(run: Path, graph: Graph) -> None:
    """Raise ``DataError`` when the training edges are no longer those that the run began with."""
    require_same_entities(run, graph)
    then = _noted(run).get("train")
    if then is None:
        return
    now = edge_sum(graph)

    def compare() -> None:
        if now != then:
            raise DataError(
                f"{graph.path}: its training edges are not those that {run} began with, so its place in them is lost; "
                "restore them, or start another run from this one's weights with training.initial_checkpoint_dir"
            )

    on_all(compare)


def require_same_model(run: Path, config: TwhinConfig) -> None:
    """Compare with the configuration that the run was started with, before it is replaced.

    Raises ``ConfigError`` for a change that gives its numbers another meaning; other changes that matter are warned of.
    """
    path = run / "config.yaml"
    if not path.exists():
        return
    then = load_config(TwhinConfig, path).model_dump(mode="json")
    require_same_meaning(run, then, config.model_dump(mode="json"), meaning=_MEANING, free=_FREE)


def _sum(files: Sequence[Location]) -> str:
    parts = gather_objects(on_all(lambda: sum_of_part(files, rank(), world_size())))
    return f"{reduce(joined, parts).crc:08x}"


def _noted(run: Path) -> dict[str, Any]:
    path = run / GRAPH_NOTE
    return dict(json.loads(path.read_text())) if path.exists() else {}
