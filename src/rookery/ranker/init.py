"""``rookery ranker init``: a commented configuration that fits an impression log and trains well as it stands.

Looks at a sample of rows for what columns are and whether they leak, and at all rows for labels, times and ids.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rookery.config.suggest import did_you_mean
from rookery.data.columns import is_id
from rookery.data.ids import NoId, encode_ids
from rookery.data.ingest import Resources, open_database
from rookery.errors import DataError
from rookery.ranker.init_columns import MAX_LIST, Roles, Schema, SchemaInference
from rookery.ranker.init_counts import PartCounts, RowCounter, require_labels
from rookery.ranker.init_facts import has_lists, percent
from rookery.ranker.init_log import Log, open_log, require_columns, sample_rows
from rookery.ranker.init_recipe import choose_recipe
from rookery.ranker.init_split import read_clock, split_log
from rookery.ranker.init_text import Findings, JoinedVectors, write_config
from rookery.train.vector_export import VectorExport

_FEW_POSITIVES = 100
"""Fewer in training and a tower learns little but the label's share; fewer in validation and its metrics are noise."""


@dataclass(frozen=True)
class InitRequest:
    """What the user says of a log. ``embeddings`` are ``EXPORT:TABLE:KEY``."""

    log: tuple[Path, ...]
    roles: Roles
    embeddings: tuple[str, ...] = ()
    save_dir: Path = Path("runs/ranker")


def initial_config(request: InitRequest, notify: Callable[[str], None]) -> str:
    """The configuration as commented YAML; ``notify`` gets a line for each thing that the user should know.

    Raises ``DataError`` for files, columns, labels or exports that cannot be used.
    """
    log = open_log(request.log)
    roles = request.roles
    _require_roles(log, roles)
    require_labels(log, roles.labels)
    sample = sample_rows(log)
    _require_ids(sample, roles)
    joined = tuple(_join(text, log, sample) for text in request.embeddings)
    with tempfile.TemporaryDirectory() as scratch, open_database(Path(scratch), Resources()) as db:
        clock = read_clock(db, log, roles.time) if roles.time is not None else None
        parts = split_log(db, log, clock)
        counter = RowCounter(db, clock, parts)
        counts = counter.labels(roles.labels)
        _require_both_outcomes(counts["train"])
        schema = SchemaInference(sample, roles, counter.ids).run()
    _require_features(log, schema, joined)
    remarks = tuple(_remarks(log, counts, schema))
    for remark in remarks:
        notify(remark)
    recipe = choose_recipe(counts["train"].num_rows)
    return write_config(
        Findings(log, roles, sample.num_rows, parts, counts, schema, joined, recipe, request.save_dir, remarks)
    )


def _require_roles(log: Log, roles: Roles) -> None:
    require_columns(log, "--label", roles.labels)
    for flag, column in {"--user": roles.user, "--item": roles.item, "--time": roles.time}.items():
        if column is None:
            continue
        require_columns(log, flag, [column])
        if column in roles.labels:
            raise DataError(f"{flag} {column}: is a label too; name another column")
    repeated = {name for name in roles.labels if roles.labels.count(name) > 1}
    if repeated:
        raise DataError(f"--label {min(repeated)}: named twice; name each label once")


def _require_ids(sample: pa.Table, roles: Roles) -> None:
    for flag, column in {"--user": roles.user, "--item": roles.item}.items():
        if column is None:
            continue
        if not is_id(sample[column].type):
            raise DataError(f"{flag} {column}: the column is {sample[column].type}; name a column of ids")
        try:
            encode_ids(sample[column])
        except NoId as error:
            raise DataError(f"{flag} {column}: the column has a value that {error}; name a column of ids") from error


def _require_both_outcomes(train: PartCounts) -> None:
    """Raise ``DataError`` for labels that training could learn nothing of, and would refuse or follow blindly."""
    spreads = {0: "never 1 in", train.num_rows: "1 in all of"}
    problems = [
        f"--label {label}: is {spreads[count]} the {train.num_rows:,} training rows, from which it cannot be learned; "
        f"leave out --label {label}, or name more of the log"
        for label, count in train.positives.items()
        if count in spreads
    ]
    if problems:
        raise DataError("\n".join(problems))


def _require_features(log: Log, schema: Schema, joined: Sequence[JoinedVectors]) -> None:
    if not schema.features and not joined:
        reasons = "; ".join(f"{each.column}: {each.reason}" for each in schema.left_out)
        raise DataError(f"{log.name}: no column is left to be a feature ({reasons}); add columns to the log")


def _remarks(log: Log, counts: Mapping[str, PartCounts], schema: Schema) -> list[str]:
    remarks = [f"{each.column} is left out as an outcome: {each.reason}" for each in schema.left_out if each.is_outcome]
    for label in counts["train"].positives:
        for name in ("train", "valid"):
            found = counts[name].positives[label]
            if found < _FEW_POSITIVES:
                what = "too few to learn much" if name == "train" else "its metrics there are noise"
                remarks.append(f"{label} is 1 in {found:,} rows of {name}: {what}")
    counted = sum(each.num_rows for each in counts.values())
    if not log.splits and counted < log.num_rows:
        remarks.append(f"{log.num_rows - counted:,} rows have no time and are in no partition")
    return remarks


def _join(text: str, log: Log, sample: pa.Table) -> JoinedVectors:
    """What ``EXPORT:TABLE:KEY`` names, with the share of sampled rows that have a vector."""
    parts = text.rsplit(":", 2)
    if len(parts) != 3 or not all(parts):
        raise DataError(f"--embedding {text}: write it as EXPORT:TABLE:KEY, as in exports/twhin:user:user_id")
    folder, table, key = parts
    export = VectorExport.open(Path(folder))
    types = export.manifest.entity_types
    if table not in types:
        raise DataError(f"--embedding {text}: the export has no table {table!r}; {did_you_mean(table, list(types))}")
    require_columns(log, f"--embedding {text}:", [key])
    is_list = has_lists(sample[key].type)
    values = pc.list_flatten(sample[key]) if is_list else sample[key]
    share = _known_share(values, export.ids(table)["id"], text)
    return JoinedVectors(
        name=f"{key}_vector",
        export=Path(folder).resolve(),
        table=table,
        key=key,
        max_length=MAX_LIST if is_list else None,
        evidence=f"{types[table]:,} vectors of {export.manifest.dim} numbers; {percent(share)} of the ids have one",
    )


def _known_share(values: pa.ChunkedArray, known: pa.ChunkedArray, text: str) -> float:
    if not is_id(values.type):
        raise DataError(f"--embedding {text}: the column is {values.type}; a key holds ids, or lists of them")
    try:
        found = np.isin(encode_ids(values), encode_ids(known))
    except NoId as error:
        raise DataError(f"--embedding {text}: the column has a value that {error}; name a column of ids") from error
    if not found.any():
        raise DataError(
            f"--embedding {text}: none of the column's ids ({values.type}) has a vector (ids are {known.type}); "
            "name the column whose ids the export was made of"
        )
    return float(found.mean())
