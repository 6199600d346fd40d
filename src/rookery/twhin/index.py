"""A faiss index over the vectors of one entity type, on disk beside its ids.

INDEX/index.faiss     rows in table order; divided by their norms where the metric is cosine
INDEX/ids.parquet     id of each row
INDEX/manifest.json   kind, metric, parameters, source, recall against exact search, and the sum of each file

faiss reads an index file only after its sum was compared with the manifest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from rookery.checkpoint.files import DamagedCheckpoint, file_sum, require_sum
from rookery.data.staging import staged
from rookery.errors import DataError, UserError
from rookery.twhin.comparators import COMPARATORS
from rookery.twhin.config import ComparatorName
from rookery.twhin.embeddings import Embeddings
from rookery.twhin.index_config import KINDS, ExactConfig, HnswConfig, IndexConfig, IndexKind, IvfPqConfig
from rookery.twhin.search import Hits, fingerprint, search_rows, similarity_metric
from rookery.twhin.source import Source
from rookery.types import Side

MANIFEST = "manifest.json"
_INDEX = "index.faiss"
_IDS = "ids.parquet"
_CHUNK_ROWS = 65_536
_NUM_CODES = 256  # a byte of a product quantizer names one of 256 centroids
_TRAIN_ROWS_PER_CENTROID = 256  # faiss uses no more
_RECALL_QUERIES = 1000
_SEED = 0
_METRICS: dict[str, int] = {
    "dot": faiss.METRIC_INNER_PRODUCT,
    "cosine": faiss.METRIC_INNER_PRODUCT,
    "l2": faiss.METRIC_L2,
    "l1": faiss.METRIC_L1,
}


class IndexManifest(BaseModel):
    """``manifest.json``. ``fingerprint`` is that of the rows, ``recall`` the share of the exact top k that the index
    finds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    content: Literal["rookery twhin index"] = "rookery twhin index"
    kind: IndexKind
    metric: ComparatorName
    entity_type: str
    num_entities: int
    dim: int
    parameters: dict[str, int]
    source: str
    step: int
    fingerprint: str
    recall: dict[str, float | None]
    """By what is asked: ``similarity`` of entities of the type, ``relations``; null where the index cannot be asked
    it.
    """
    recall_k: int
    files: dict[str, dict[str, int | str]]


@dataclass(frozen=True)
class RowIndex:
    """An index in memory: the best rows for query vectors, under one metric."""

    metric: ComparatorName
    faiss_index: Any

    def search(self, queries: Tensor, k: int) -> Hits:
        """The best rows for ``queries [Q, D]``; scores as the comparator gives them (l2 and l1: negative distances)."""
        prepared = COMPARATORS[self.metric].prepare(queries.float()).cpu().contiguous().numpy()
        _share_threads()
        if isinstance(self.faiss_index, faiss.IndexHNSW):  # its search must hold at least the rows that it returns
            self.faiss_index.hnsw.efSearch = max(k, self.faiss_index.hnsw.efSearch)
        distances, rows = self.faiss_index.search(prepared, k)
        scores = torch.from_numpy(distances)
        if self.metric == "l2":
            scores = scores.clamp_(min=0).sqrt_().neg_()  # faiss gives squares
        elif self.metric == "l1":
            scores = scores.neg_()
        return Hits(scores, torch.from_numpy(rows))


@dataclass(frozen=True)
class StoredIndex:
    """An index on disk, opened."""

    path: Path
    manifest: IndexManifest
    index: RowIndex

    @classmethod
    def open(cls, path: Path) -> StoredIndex:
        """Raises ``DataError`` if ``path`` is no index, one of another format, or damaged."""
        manifest = _read_manifest(path / MANIFEST)
        for name, expected in manifest.files.items():
            try:
                require_sum(path / name, expected)
            except (OSError, DamagedCheckpoint) as error:
                raise DataError(f"{error}; the index is damaged: build it again") from error
        return cls(path, manifest, RowIndex(manifest.metric, faiss.read_index(str(path / _INDEX))))

    def require_rows(self, rows: Tensor) -> None:
        """Raise ``UserError`` unless the index was built from these rows."""
        if (
            rows.shape != (self.manifest.num_entities, self.manifest.dim)
            or fingerprint(rows) != self.manifest.fingerprint
        ):
            raise UserError(
                f"--index {self.path}: built from other vectors ({self.manifest.source}, step {self.manifest.step}); "
                "build it again, or name the checkpoint that it was built from"
            )


def build_index(
    source: Source,
    entity_type: str,
    config: IndexConfig,
    out: Path,
    *,
    metric: ComparatorName | None = None,
    recall_k: int = 20,
    overwrite: bool = False,
) -> IndexManifest:
    """Index the vectors of a type under the run's comparator, or under ``metric``, and measure the recall.

    Raises ``UserError`` for a metric or size that the kind of index cannot do, before anything is written.
    """
    embeddings = source.embeddings
    metric = embeddings.comparator if metric is None else metric
    rows = embeddings.rows[source.require_type(entity_type)]
    parameters = _resolve(config, metric, *rows.shape)
    index = RowIndex(metric, _build(config, parameters, metric, rows))
    kind = next(name for name, model in KINDS.items() if isinstance(config, model))
    with staged(out, overwrite=overwrite, marker=_INDEX) as staging:
        faiss.write_index(index.faiss_index, str(staging.folder / _INDEX))
        pq.write_table(source.vocabularies[entity_type].table.select(["id"]), staging.folder / _IDS)
        manifest = IndexManifest(
            kind=kind,
            metric=metric,
            entity_type=entity_type,
            num_entities=rows.shape[0],
            dim=rows.shape[1],
            parameters=parameters,
            source=str(source.path),
            step=source.step,
            fingerprint=fingerprint(rows),
            recall=measure_recall(index, embeddings, entity_type, recall_k),
            recall_k=recall_k,
            files={name: file_sum(staging.folder / name) for name in (_INDEX, _IDS)},
        )
        (staging.folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def measure_recall(index: RowIndex, embeddings: Embeddings, entity_type: str, k: int) -> dict[str, float | None]:
    """Share of the exact top ``k`` that the index finds, over up to 1,000 random entities a question."""
    generator = np.random.default_rng(_SEED)
    rows = embeddings.rows[entity_type]
    k = min(k, rows.shape[0])
    asked: dict[str, Tensor | None] = {"similarity": None, "relations": None}
    if index.metric == similarity_metric(embeddings.comparator):
        asked["similarity"] = rows[_sample(generator, rows.shape[0], _RECALL_QUERIES)].float()
    if index.metric == embeddings.comparator:
        asked["relations"] = _relation_queries(embeddings, entity_type, generator)
    return {name: None if queries is None else _recall(index, queries, rows, k) for name, queries in asked.items()}


def _recall(index: RowIndex, queries: Tensor, rows: Tensor, k: int) -> float:
    exact, found = search_rows(index.metric, queries, rows, k).rows, index.search(queries, k).rows
    shared = (found.unsqueeze(2) == exact.cpu().unsqueeze(1)).any(2)  # [queries, k]
    return float(shared.double().mean())


def _relation_queries(embeddings: Embeddings, entity_type: str, generator: np.random.Generator) -> Tensor | None:
    """Queries of random anchors, spread over the directions that end in the type and that an index can serve."""
    directions = [
        (number, side)
        for number, relation in enumerate(embeddings.relations)
        for side in Side
        if relation.table(side) == entity_type and embeddings.query_form(side, number)
    ]
    if not directions:
        return None
    chosen = _sample(generator, len(directions), min(len(directions), _RECALL_QUERIES)).tolist()
    queries = []
    for number, side in (directions[place] for place in chosen):
        num_anchors = embeddings.num_entities(embeddings.relations[number].table(side.other))
        anchors = _sample(generator, num_anchors, math.ceil(_RECALL_QUERIES / len(chosen)))
        queries.append(embeddings.queries(side, number, anchors))
    return torch.cat(queries)


def _sample(generator: np.random.Generator, population: int, size: int) -> Tensor:
    return torch.from_numpy(generator.choice(population, min(size, population), replace=False, shuffle=False))


def _resolve(config: IndexConfig, metric: ComparatorName, num_rows: int, dim: int) -> dict[str, int]:
    """The parameters that an index of this size gets. Raises ``UserError`` for what its kind cannot do."""
    if not isinstance(config, IvfPqConfig):
        return config.model_dump()
    if metric == "l1":
        raise UserError("--kind ivfpq: product quantization has no l1 distance; use --kind exact or hnsw")
    if num_rows < _NUM_CODES:
        raise UserError(f"--kind ivfpq: {num_rows} rows cannot train {_NUM_CODES} codes; use --kind exact or hnsw")
    num_lists = config.num_lists or max(1, min(4 * math.isqrt(num_rows), num_rows // 39))  # faiss wants 39 rows a list
    if num_lists > num_rows:
        raise UserError(f"num_lists={num_lists}: more than the {num_rows} rows; leave it out")
    bytes_per_row = config.bytes_per_row or next(n for n in range(max(1, dim // 4), dim + 1) if dim % n == 0)
    if dim % bytes_per_row:
        divisors = ", ".join(str(n) for n in range(1, dim + 1) if dim % n == 0)
        raise UserError(f"bytes_per_row={bytes_per_row}: must divide the dimension {dim}; one of {divisors}")
    num_probes = min(config.num_probes or math.ceil(num_lists / 8), num_lists)
    return {"num_lists": num_lists, "num_probes": num_probes, "bytes_per_row": bytes_per_row}


def _build(config: IndexConfig, parameters: dict[str, int], metric: ComparatorName, rows: Tensor) -> Any:
    _share_threads()
    dim, faiss_metric = rows.shape[1], _METRICS[metric]
    if isinstance(config, ExactConfig):
        index: Any = faiss.IndexFlat(dim, faiss_metric)
    elif isinstance(config, HnswConfig):
        index = faiss.IndexHNSWFlat(dim, config.num_links, faiss_metric)
        index.hnsw.efConstruction = config.ef_construction
        index.hnsw.efSearch = config.ef_search
    else:
        index = _trained_ivfpq(parameters, metric, rows)
    for start in range(0, rows.shape[0], _CHUNK_ROWS):
        index.add(_prepared(metric, rows[start : start + _CHUNK_ROWS]))
    return index


def _trained_ivfpq(parameters: dict[str, int], metric: ComparatorName, rows: Tensor) -> Any:
    # np: without polysemous codes, whose training takes seconds a byte and which no search here uses.
    factory = f"IVF{parameters['num_lists']},PQ{parameters['bytes_per_row']}x8np"
    index: Any = faiss.index_factory(rows.shape[1], factory, _METRICS[metric])
    index.nprobe = parameters["num_probes"]
    for clustering in (index.cp, index.pq.cp):
        clustering.seed = _SEED
        clustering.min_points_per_centroid = 1  # fewer than faiss likes is for the recall to judge, not for its stderr
    num_train = _TRAIN_ROWS_PER_CENTROID * max(parameters["num_lists"], _NUM_CODES)
    index.train(_prepared(metric, rows[_sample(np.random.default_rng(_SEED), rows.shape[0], num_train)]))
    return index


def _prepared(metric: ComparatorName, rows: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    prepared: np.ndarray[Any, np.dtype[np.float32]] = (
        COMPARATORS[metric].prepare(rows.float()).cpu().contiguous().numpy()
    )
    return prepared


def _share_threads() -> None:
    """faiss and torch each bring an OpenMP: they take the same number of threads, and never run at once."""
    faiss.omp_set_num_threads(torch.get_num_threads())


def _read_manifest(file: Path) -> IndexManifest:
    try:
        return IndexManifest.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise DataError(f"{file}: {reason}; name the folder that 'rookery twhin index' wrote") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{file}: {field}: {first['msg']}; not an index of format 1: build it again") from error
