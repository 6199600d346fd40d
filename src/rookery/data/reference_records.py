"""Random records in the form of the reference's data of 2022, drawn as its own generator draws them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from zlib_ng import zlib_ng

from rookery.data.segdense import RecordColumn
from rookery.data.staging import staged
from rookery.data.tf_example_forms import example
from rookery.data.tfrecord import GZIP_WBITS, framed

SCHEMA_FILE = "segdense.json"

_BLOCK = "home_recap_2022_{}__segdense_vals"
_ENGAGEMENT = "recap.engagement.is_{}"
_ENGAGEMENTS = (
    "bookmarked",
    "favorited",
    "good_clicked_convo_desc_favorited_or_replied",
    "good_clicked_convo_desc_v2",
    "negative_feedback_v2",
    "profile_clicked_and_profile_engaged",
    "replied",
    "replied_reply_engaged_by_author",
    "report_tweet_clicked",
    "retweeted",
    "shared",
    "tweet_detail_dwelled_15_sec",
    "video_playback_50",
)
_TWHIN = (
    ("user", "twhin_user_engagement_embeddings"),
    ("original_author", "twhin_author_follow_embeddings"),
    ("user", "twhin_user_follow_embeddings"),
)
_HIGHEST = 10
"""Integers are below it; those of engagements below 2."""


@dataclass(frozen=True)
class ReferenceFiles:
    """What was written: files of ``num_examples`` records in all, and their schema."""

    path: Path
    num_examples: int
    files: tuple[str, ...]
    schema: str = SCHEMA_FILE


def reference_columns() -> tuple[RecordColumn, ...]:
    """The features of 2022: 6,000 continuous, 512 binary and 320 discrete values, three vectors, 3 ids, 13 labels."""
    blocks = (_integers(_BLOCK.format("discrete"), 320), _floats(_BLOCK.format("cont"), 6000))
    return (
        *blocks,
        _integers(_BLOCK.format("binary"), 512),
        *(_integers(_ENGAGEMENT.format(name)) for name in _ENGAGEMENTS),
        *(_integers(f"meta.{name}_id") for name in ("author", "tweet", "user")),
        *(_floats(f"{owner}.timelines.{name}.{name}", 200) for owner, name in _TWHIN),
    )


def random_example(columns: Sequence[RecordColumn], random: np.random.Generator) -> bytes:
    """One record."""
    return example((column.feature, column.kind, _draw(column, random)) for column in columns)


def write_reference(
    out: Path, num_examples: int, *, num_files: int = 1, seed: int = 0, overwrite: bool = False
) -> ReferenceFiles:
    """Write ``random.tfrecord.gz``, or ``num_files`` of them with numbers, and the schema.

    Floats are uniform from 0 to 1, integers from 0 to 9, labels 0 or 1. The same seed gives the same records. ``out``
    appears whole or not at all. Raises ``DataError`` where it exists.
    """
    columns = reference_columns()
    random = np.random.default_rng(seed)
    names = ["random"] if num_files == 1 else [f"random-{number:05d}" for number in range(num_files)]
    bounds = [num_examples * number // num_files for number in range(num_files + 1)]
    with staged(out, overwrite=overwrite, marker=SCHEMA_FILE) as staging:
        for name, first, end in zip(names, bounds, bounds[1:], strict=False):
            with _zipped(staging.folder / f"{name}.tfrecord.gz") as write:
                for _ in range(first, end):
                    write(framed(random_example(columns, random)))
        schema = [{"dtype": each.kind, "feature_name": each.feature, "length": each.length} for each in columns]
        (staging.folder / SCHEMA_FILE).write_text(json.dumps({"schema": schema}, indent=2) + "\n")
    return ReferenceFiles(out, num_examples, tuple(f"{name}.tfrecord.gz" for name in names))


def _integers(name: str, length: int = 1) -> RecordColumn:
    return RecordColumn(name, name, "int64_list", length)


def _floats(name: str, length: int) -> RecordColumn:
    return RecordColumn(name, name, "float_list", length)


def _draw(column: RecordColumn, random: np.random.Generator) -> np.ndarray:
    if column.kind == "float_list":
        return random.random(column.length, dtype=np.float32)
    is_label = column.feature.startswith(_ENGAGEMENT.format(""))
    return random.integers(0, 2 if is_label else _HIGHEST, column.length)


@contextmanager
def _zipped(file: Path) -> Iterator[Callable[[bytes], object]]:
    """Give what takes the bytes of a gzip file."""
    member = zlib_ng.compressobj(wbits=GZIP_WBITS)
    with file.open("wb") as stream:
        yield lambda data: stream.write(member.compress(data))
        stream.write(member.flush())
