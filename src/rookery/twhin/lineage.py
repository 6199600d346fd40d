"""What a run was trained on and as what: noted in the run directory, compared whenever the run is resumed or read.

RUN/graph.json   CRC-32 of the vocabularies and of the training edges
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rookery.checkpoint.files import write_atomically
from rookery.config.loader import load_config
from rookery.data.graph import Graph
from rookery.errors import DataError
from rookery.train.lineage import require_same_meaning
from rookery.twhin.config import TwhinConfig

GRAPH_NOTE = "graph.json"

# Fields that give the numbers of a checkpoint another meaning; the rest may change on the way, and is reported.
_MEANING = ("model.comparator", "model.operator_side", "model.relations", "train_data.order", "runtime.seed")
_FREE = ("training.", "runtime.device", "runtime.num_threads", "evaluation.", "validation_data", "graph")


def note_graph(run: Path, graph: Graph) -> None:
    """Note the graph of a new run."""
    note = {"entity_types": graph.entity_sums(), "train": graph.split_sum("train")}
    write_atomically(run / GRAPH_NOTE, json.dumps(note, indent=1) + "\n")


def require_same_entities(run: Path, graph: Graph) -> None:
    """Raise ``DataError`` when the graph's rows no longer stand for the ids that the run was trained with."""
    then, now = _noted(run).get("entity_types", {}), graph.entity_sums()
    for name, crc in then.items():
        if now.get(name) != crc:
            raise DataError(
                f"{graph.path}: the vocabulary of '{name}' is not the one that {run} was trained with, so its vectors "
                "belong to other ids; name that graph, or train again (training.initial_checkpoint_dir keeps what is "
                "known, joined by id)"
            )


def require_same_edges(run: Path, graph: Graph) -> None:
    """Raise ``DataError`` when the training edges are no longer those that the run began with."""
    require_same_entities(run, graph)
    if "train" in _noted(run) and _noted(run)["train"] != graph.split_sum("train"):
        raise DataError(
            f"{graph.path}: its training edges are not those that {run} began with, so its place in them is lost; "
            "restore them, or start another run from this one's weights with training.initial_checkpoint_dir"
        )


def require_same_model(run: Path, config: TwhinConfig) -> None:
    """Compare with the configuration that the run was started with, before it is replaced.

    Raises ``ConfigError`` for a change that gives its numbers another meaning; other changes that matter are warned of.
    """
    path = run / "config.yaml"
    if not path.exists():
        return
    then = load_config(TwhinConfig, path).model_dump(mode="json")
    require_same_meaning(run, then, config.model_dump(mode="json"), meaning=_MEANING, free=_FREE)


def _noted(run: Path) -> dict[str, Any]:
    path = run / GRAPH_NOTE
    return dict(json.loads(path.read_text())) if path.exists() else {}
