"""FB15k-237: 310,116 triples of Freebase, the standard benchmark of link prediction.

Download: https://www.microsoft.com/en-us/download/details.aspx?id=52312 (Toutanova & Chen, "Observed versus latent
features for knowledge base and text inference", CVSC 2015): train.txt, valid.txt and test.txt, plain or as .gz.
Licence: none is stated; Freebase itself was published under CC BY.
"""

from __future__ import annotations

from pathlib import Path

from rookery.data.adapters.edge_lists import MAPPING, Prepared, find_raw, finish, write_query
from rookery.data.ingest import Resources, load, open_database
from rookery.data.ingest_config import SPLITS, IngestConfig, SourceConfig
from rookery.data.ingest_sources import resolve_sources
from rookery.data.staging import staged

DOWNLOAD = "https://www.microsoft.com/en-us/download/details.aspx?id=52312"

_MAPPING = """\
# FB15k-237, split as published. Entities that only valid or test has are part of the vocabulary: they count.
sources:
  - {files: train.parquet, split: train}
  - {files: valid.parquet, split: valid}
  - {files: test.parquet, split: test}
"""


def prepare(src: Path, out: Path, *, overwrite: bool = False) -> Prepared:
    """Turn the three files in ``src``, lines ``head<TAB>relation<TAB>tail``, into ``out``. Raises ``DataError``."""
    files = {split: find_raw(src, f"{split}.txt", DOWNLOAD) for split in SPLITS}
    config = IngestConfig(sources=tuple(SourceConfig(files=str(files[split]), split=split) for split in files))
    with (
        staged(out, overwrite=overwrite, marker=MAPPING) as staging,
        open_database(staging.scratch, Resources()) as db,
    ):
        load(db, config, resolve_sources(config.sources, Path()))
        for code, split in enumerate(SPLITS):
            relation = "enum_range(NULL::relation_name)[rel + 1]::VARCHAR AS relation"
            query = f"SELECT lhs, {relation}, rhs FROM edge WHERE split = {code} ORDER BY rowid"  # noqa: S608
            write_query(db, query, staging.folder / f"{split}.parquet")
        return finish(staging.folder, _MAPPING, out)
