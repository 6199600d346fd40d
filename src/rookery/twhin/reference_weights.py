"""Tables and relation vectors under the names of twitter/the-algorithm-ml, as a run of ours, and back.

There row i of a table is entity i. In a run with a graph it is the entity whose id is i; ids are integers then.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import torch
from torch import Tensor

from rookery.checkpoint.foreign import (
    ForeignTensors,
    Taken,
    read_weights,
    renamed,
    take_over,
    without_wrappers,
    write_weights,
)
from rookery.data.graph import Graph
from rookery.errors import ConfigError, DataError
from rookery.storage.location import Location
from rookery.train.loop import save_start
from rookery.twhin.config import ModelConfig, TwhinConfig
from rookery.twhin.model import TwhinModel
from rookery.twhin.train import load_run, opened_job

logger = logging.getLogger(__name__)

_TABLE = "model.large_embeddings.ebc.embedding_bags.{}.weight"
_RELATIONS = "model.all_trans_embs"
_WRAPPERS = ("module", "_dmp_wrapped_module")
# A table has a row for each id up to the largest; more of them empty than this are a mistake, not a numbering.
_MAX_ROWS_AN_ENTITY = 8


def import_weights(config: TwhinConfig, file: Path, *, partial: bool = False) -> Taken:
    """Make ``training.save_dir`` a run at step 0 with the rows of ``file``; training goes on from there.

    ``partial``: entities, tables and relations that the file has not start as in any new run. Raises ``DataError``
    naming every tensor that does not fit, ``ConfigError`` for a model that the reference cannot have, ``UserError``
    where the run has a checkpoint already; then nothing is written.
    """
    _require_theirs(config.model)
    backend = config.model.embeddings.backend
    if backend != "local":
        raise ConfigError(
            f"model.embeddings.backend={backend}: weights are taken over by one process; import them with --set "
            "model.embeddings.backend=local, and start the sharded run by training.initial_checkpoint_dir"
        )
    stored = read_weights(file)
    stored = renamed(stored, {name: _plain(name) for name in stored}, file)
    taken: list[Taken] = []

    def fill(model: TwhinModel, graph: Graph | None) -> None:
        by_row = stored if graph is None else {**stored, **_joined(model, graph, stored, file, partial=partial)}
        taken.append(take_over(_named(model), by_row, file, partial=partial))

    with opened_job(config, fill) as (run, job):
        save_start(job, run, config.training, config.runtime)
    return taken[0]


def export_weights(
    run: Path,
    file: Path,
    checkpoint: Literal["auto", "latest", "best"] | int = "auto",
    *,
    graph: Location | None = None,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Write the weights of a run under the reference's names; the step, and how many tensors there are."""
    loaded = load_run(run, checkpoint, graph=graph)
    _require_theirs(loaded.config.model)
    foreign = _named(loaded.model)
    if loaded.graph is not None:
        placed = {_TABLE.format(name): _placed(loaded.model, loaded.graph, name) for name in loaded.model.table_names}
        foreign = ForeignTensors({**foreign.views, **placed})
    return loaded.step, write_weights(foreign, file, overwrite=overwrite)


def _plain(name: str) -> str:
    return name if name.startswith("rookery.") else without_wrappers(name, _WRAPPERS, "model")


def _named(model: TwhinModel) -> ForeignTensors:
    """Tables, and the vectors of relations in their order; what acts in the other direction has no name there."""
    theirs = {f"table.{name}": _TABLE.format(name) for name in model.table_names}
    theirs["relation.translation/forward"] = _RELATIONS
    return ForeignTensors({theirs.get(name, f"rookery.{name}"): tensor for name, tensor in model.tensors().items()})


def _require_theirs(model: ModelConfig) -> None:
    """Raise ``ConfigError`` for what has the same tensors there and another meaning."""
    for relation in model.relations:
        if relation.operator != "translation":
            raise ConfigError(
                f"model.relations.{relation.name}.operator={relation.operator}: the reference has translation alone; "
                "set it to translation"
            )
    if model.comparator != "dot":
        raise ConfigError(f"model.comparator={model.comparator}: the reference has dot alone; set it to dot")
    if model.operator_side != "rhs":
        logger.warning(
            "model.operator_side=%s: the reference's code adds the vector of a relation to the rhs; with --set "
            "model.operator_side=rhs the scores are its own",
            model.operator_side,
        )


def _joined(
    model: TwhinModel, graph: Graph, stored: Mapping[str, Tensor], file: Path, *, partial: bool
) -> dict[str, Tensor]:
    """The tables of ``stored`` in this run's rows; entities without a row keep theirs."""
    tables = {}
    for name in model.table_names:
        theirs, rows = stored.get(_TABLE.format(name)), model.entity_rows(name)
        if theirs is None or theirs.dim() != 2 or theirs.shape[1] != rows.shape[1]:
            continue  # told with all the others
        ids = _integer_ids(graph, name)
        known = torch.nonzero((ids >= 0) & (ids < len(theirs))).squeeze(1)
        if len(known) < len(ids) and not partial:
            absent = int(ids[(ids < 0) | (ids >= len(theirs))][0])
            raise DataError(
                f"{file}: {_TABLE.format(name)} has {len(theirs):,} rows, none for {len(ids) - len(known):,} entities "
                f"of {graph.path}, such as {absent}; ingest the edges that the table was trained on, or pass --partial"
            )
        mine = rows.detach().cpu().to(theirs.dtype)
        mine[known] = theirs[ids[known]]
        tables[_TABLE.format(name)] = mine
    return tables


def _placed(model: TwhinModel, graph: Graph, table: str) -> Tensor:
    """A table with the row of each entity at its id, zeros where there is none."""
    ids, rows = _integer_ids(graph, table), model.entity_rows(table).cpu()
    if int(ids.min()) < 0 or int(ids.max()) >= _MAX_ROWS_AN_ENTITY * len(ids):
        raise DataError(
            f"{graph.path}: ids of {table} go from {int(ids.min())} to {int(ids.max())} for {len(ids):,} entities, and "
            "there they are row numbers; number the entities from 0 and ingest again, or use rookery twhin export"
        )
    placed = rows.new_zeros(int(ids.max()) + 1, rows.shape[1])
    placed[ids] = rows
    return placed


def _integer_ids(graph: Graph, table: str) -> Tensor:
    vocabulary = graph.vocabulary(table)
    if not pa.types.is_integer(vocabulary.id_type):
        raise DataError(
            f"{graph.path}: ids of {table} are {vocabulary.id_type}, and the rows of the reference are numbers; use a "
            "graph of integer ids, or leave graph out with train_data.data_root"
        )
    return torch.from_numpy(vocabulary.table.column("id").to_numpy().copy())
