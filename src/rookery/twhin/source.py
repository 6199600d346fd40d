"""Where vectors come from: a run or an export, opened alike for evaluation, indexes and neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from rookery.config.suggest import did_you_mean
from rookery.data.graph import MANIFEST, Graph, Vocabulary
from rookery.data.parquet import read_parquet
from rookery.errors import DataError, RunNotFound, UserError
from rookery.storage.location import Location
from rookery.train.vector_export import ExportManifest
from rookery.twhin.build import check_graph
from rookery.twhin.config import TwhinConfig
from rookery.twhin.embeddings import Embeddings
from rookery.twhin.export import Export, LazyMapping, write_export
from rookery.twhin.train import LoadedRun, load_run

CheckpointName = Literal["auto", "latest", "best"] | int


@dataclass(frozen=True)
class Source:
    """Vectors and ids of a run or an export; ``graph`` None where its edges are not at hand."""

    path: Path
    step: int
    embeddings: Embeddings
    vocabularies: Mapping[str, Vocabulary]
    graph: Graph | None

    @property
    def entity_types(self) -> tuple[str, ...]:
        return tuple(self.embeddings.rows)

    def require_type(self, entity_type: str) -> str:
        """``entity_type``, or ``UserError`` if there is none such."""
        if entity_type not in self.entity_types:
            hint = did_you_mean(entity_type, self.entity_types)
            raise UserError(f"--type {entity_type}: {self.path} has no such entity type; {hint}")
        return entity_type

    def relation_number(self, name: str) -> int:
        """The number of a relation, or ``UserError`` if there is none such."""
        names = [relation.name for relation in self.embeddings.relations]
        if name not in names:
            raise UserError(f"--relation {name}: {self.path} has no such relation; {did_you_mean(name, names)}")
        return names.index(name)

    def require_graph(self, purpose: str) -> Graph:
        """The graph, or ``UserError`` if its edges are not at hand."""
        if self.graph is None:
            raise UserError(f"{self.path}: {purpose} needs edges, and there is no graph here; pass --graph GRAPH")
        return self.graph


def open_source(path: Path, checkpoint: CheckpointName = "auto", graph: Location | None = None) -> Source:
    """A run (at ``checkpoint``) or an export; ``graph`` is where the run's own lies now, or gives an export one.

    Raises ``RunNotFound`` or ``DataError`` for a folder that is neither.
    """
    if Export.lies_at(path):
        edges = None if graph is None else Graph.open(graph)
        export = Export.open(path)
        vocabularies = LazyMapping(tuple(export.manifest.entity_types), export.vocabulary)
        return Source(path, export.manifest.step, export.embeddings(), vocabularies, edges)
    run = open_run(path, checkpoint, graph)
    return Source(path, run.step, run.model.embeddings().cpu(), _vocabularies(run), run.graph)


def open_run(path: Path, checkpoint: CheckpointName = "auto", graph: Location | None = None) -> LoadedRun:
    """``load_run``, with a word for folders of another kind and a check that ``graph`` fits the run.

    Raises ``RunNotFound``, ``DataError`` and ``ConfigError`` accordingly.
    """
    if Export.lies_at(path):
        raise RunNotFound(f"{path}: this is an export, which has no edges to measure; name the save_dir of its run")
    if (path / MANIFEST).is_file() and (path / "relations.parquet").is_file():
        raise RunNotFound(f"{path}: this is a graph, not a run or an export; name the save_dir of a run trained on it")
    run = load_run(path, checkpoint, graph=graph)
    if graph is not None and run.graph is not None:
        check_graph(run.config, run.graph)
    return run


def export_run(
    run: Path, out: Path, checkpoint: CheckpointName = "auto", graph: Location | None = None, *, overwrite: bool = False
) -> ExportManifest:
    """Export a run's vectors and relations to the folder ``out``; ``graph`` is where the run's graph lies now.

    Raises ``RunNotFound`` for a folder without a checkpoint, ``DataError`` if ``out`` exists and is not to be replaced.
    """
    source = open_source(run, checkpoint, graph)
    return write_export(
        source.embeddings, source.vocabularies, out, run=str(run), step=source.step, overwrite=overwrite
    )


def _vocabularies(run: LoadedRun) -> Mapping[str, Vocabulary]:
    def load(name: str) -> Vocabulary:
        return run.graph.vocabulary(name) if run.graph is not None else _vocabulary_without_graph(run.config, name)

    return LazyMapping(run.model.table_names, load)


def _vocabulary_without_graph(config: TwhinConfig, name: str) -> Vocabulary:
    """The file that the table names, or row numbers as ids."""
    table = next(table for table in config.model.embeddings.tables if table.name == name)
    if table.vocab is None:
        return Vocabulary(name, pa.table({"id": pa.array(np.arange(table.num_embeddings))}))
    try:
        stored = read_parquet(table.vocab, ["row", "id"]).sort_by("row")
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{table.vocab}: not a vocabulary with columns row, id ({error})") from error
    if stored.num_rows != table.num_embeddings:
        raise DataError(f"{table.vocab}: {stored.num_rows} rows, table {name} has {table.num_embeddings}")
    return Vocabulary(name, stored.select(["id"]))
