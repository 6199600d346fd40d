"""From the sources of an ingest to files whose every column is known: format, delimiter, header, roles of the columns.

Reads the first record of a text file and the footer of a Parquet file, nothing else.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rookery.config.suggest import did_you_mean
from rookery.data.ingest_config import Column, Format, SourceConfig
from rookery.errors import DataError

ROLES = ("lhs", "relation", "rhs", "weight", "time")

_SUFFIXES: Mapping[str, Format] = {".csv": "csv", ".tsv": "tsv", ".txt": "tsv", ".parquet": "parquet", ".pq": "parquet"}
_DEFAULT_DELIMITER: Mapping[Format, str] = {"csv": ",", "tsv": "\t"}
_HEADER_PAIRS = (
    {"lhs", "rhs"},
    {"source", "target"},
    {"src", "dst"},
    {"head", "tail"},
    {"from", "to"},
    {"user", "item"},
    {"user_id", "item_id"},
)
_BY_POSITION = {2: ("lhs", "rhs"), 3: ("lhs", "relation", "rhs")}


@dataclass(frozen=True)
class Source:
    """One file of edges. ``roles`` maps lhs, rhs and, where there is one, relation, weight, time to a column number."""

    file: Path
    split: str
    relation: str | None  # of every edge, where no column says
    format: Format
    delimiter: str
    header: bool
    columns: tuple[str, ...]
    types: tuple[pa.DataType, ...]  # text files hold strings
    roles: Mapping[str, int]

    @property
    def is_text(self) -> bool:
        return self.format != "parquet"

    def column_name(self, role: str) -> str:
        """The column as an error message names it."""
        name = self.columns[self.roles[role]]
        return f"column {name!r}" if self.header or not self.is_text else f"column {self.roles[role] + 1}"

    def column_type(self, role: str) -> pa.DataType:
        return self.types[self.roles[role]]

    def column_sql(self, role: str) -> str:
        number = self.roles[role]
        return f"c{number}" if self.is_text else identifier(self.columns[number])

    def table_sql(self, options: str = "") -> str:
        """A DuckDB table expression of the whole file; ``options`` are appended to those of ``read_csv``."""
        if not self.is_text:
            return parquet_sql([self.file])
        quote = literal('"' if self.format == "csv" else "")
        columns = ", ".join(f"'c{number}': 'VARCHAR'" for number in range(len(self.columns)))
        return (
            f"read_csv({_path_literal(self.file)}, auto_detect = false, hive_partitioning = false, "
            f"columns = {{{columns}}}, header = {self.header}, delim = {literal(self.delimiter)}, "
            f"quote = {quote}, escape = {quote}{options})"
        )


def literal(text: str) -> str:
    """``text`` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """``name`` as an SQL name."""
    return '"' + name.replace('"', '""') + '"'


def parquet_sql(files: Sequence[Path]) -> str:
    """A DuckDB table expression of the rows of Parquet files."""
    return f"read_parquet([{', '.join(map(_path_literal, files))}], hive_partitioning = false)"


def _path_literal(file: Path) -> str:
    return literal(re.sub(r"([\[*?])", r"[\1]", str(file)))  # DuckDB would take these as a glob


def resolve_sources(sources: Sequence[SourceConfig], folder: Path) -> list[Source]:
    """The files of ``sources`` in their order, globs and folders sorted by name; relative paths start at ``folder``.

    Raises ``DataError`` for files that are absent, unreadable or empty, and for columns that are not there.
    """
    resolved = [
        _open_source(config, file)
        for config in sources
        for pattern in config.patterns
        for file in _expand(pattern, folder)
    ]
    seen: set[tuple[Path, str | None]] = set()
    for source in resolved:
        key = (source.file.resolve(), source.relation)
        if key in seen:
            raise DataError(f"{source.file}: named twice; name each file once, its edges would count double")
        seen.add(key)
    return resolved


def _expand(pattern: str, folder: Path) -> list[Path]:
    path = folder / pattern
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _known_format(file))
        if not files:
            raise DataError(f"{path}: no .csv, .tsv, .txt or .parquet file in this folder; name the files")
        return files
    if path.exists():  # a pipe or a device: it is read more than once
        raise DataError(f"{path}: not a regular file; write the edges to a file first")
    root = Path(path.anchor)
    files = sorted(file for file in root.glob(str(path.relative_to(root))) if file.is_file())
    if not files:
        raise DataError(f"{path}: no such file, folder or glob match; correct the path")
    return files


def _known_format(file: Path) -> Format | None:
    name = file.name.lower()
    return _SUFFIXES.get(Path(name.removesuffix(".gz")).suffix)


def _open_source(config: SourceConfig, file: Path) -> Source:
    file_format = config.format or _known_format(file) or "tsv"
    if file_format == "parquet":
        return _open_parquet(config, file)
    return _open_text(config, file, file_format)


def _open_parquet(config: SourceConfig, file: Path) -> Source:
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a Parquet file that can be read; write it again or give its format") from error
    columns = tuple(schema.names)
    _require_distinct(file, columns)
    types = tuple(field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in schema)
    roles = _FileColumns(file, columns, named=True, positional=False).assign(config)
    source = Source(file, config.split, config.relation, "parquet", "", True, columns, types, roles)
    _require_types(source)
    return source


def _open_text(config: SourceConfig, file: Path, file_format: Format) -> Source:
    delimiter = config.delimiter or _DEFAULT_DELIMITER[file_format]
    first = _first_record(file, file_format, delimiter)
    if len(first) == 1:
        raise DataError(
            f"{file}: line 1 has 1 column with the delimiter {delimiter!r}: {shorten(first[0])!r}; "
            "pass the right --delimiter (in a mapping: delimiter)"
        )
    header = _has_header(config, first)
    if config.header is None and not header:
        _require_edge(file, first)
    columns = tuple(first) if header else tuple(f"column {number + 1}" for number in range(len(first)))
    roles = _FileColumns(file, columns, named=header, positional=True).assign(config)
    types = (pa.string(),) * len(first)
    return Source(file, config.split, config.relation, file_format, delimiter, header, columns, types, roles)


def _first_record(file: Path, file_format: Format, delimiter: str) -> list[str]:
    try:
        with open_text(file) as lines:
            for _, record in read_records(lines, file_format, delimiter):
                return record
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable_text(file, error) from error
    raise DataError(f"{file}: is empty; an edge file needs at least one line")


def open_text(file: Path) -> io.TextIOWrapper:
    """The lines of a text file, gzip or plain, as DuckDB sees them: UTF-8 without a byte order mark."""
    return io.TextIOWrapper(open_bytes(file), encoding="utf-8-sig", newline="")


def open_bytes(file: Path) -> gzip.GzipFile | io.BufferedReader:
    """The bytes of a text file, unpacked if it is gzip."""
    return gzip.GzipFile(file) if file.suffix.lower() == ".gz" else file.open("rb")


def read_records(lines: Iterable[str], file_format: Format, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line (from 1) and fields of each record. CSV quotes fields; in TSV a quotation mark is like any other character.

    Blank lines are no records, here as in DuckDB.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if file_format == "csv" else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting)
    for record in reader:
        if record:
            yield reader.line_num, record


def unreadable_text(file: Path, error: Exception) -> DataError:
    """What hinders reading ``file`` as text, with its remedy."""
    if isinstance(error, UnicodeDecodeError):
        return DataError(f"{file}: not UTF-8 text; convert it, for example with iconv -t utf-8")
    if isinstance(error, (gzip.BadGzipFile, EOFError)):
        return DataError(f"{file}: not a whole gzip file; fetch or compress it again, or drop .gz from a plain file")
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"{file}: cannot be read ({error.strerror}); correct the path or its permissions")
    return DataError(f"{file}: cannot be read as delimited text; check the delimiter, the quotes and the encoding")


def _has_header(config: SourceConfig, first: Sequence[str]) -> bool:
    if config.header is not None:
        return config.header
    return config.columns.uses_names or {"lhs", "rhs"} <= set(first)


def _require_edge(file: Path, first: Sequence[str]) -> None:
    """Refuse a first line that reads like a header and was not said to be an edge."""
    names = {name.strip().lower() for name in first}
    if any(pair <= names for pair in _HEADER_PAIRS):
        raise DataError(
            f"{file}: line 1 looks like a header: {shorten(', '.join(first))}; pass --header with --lhs-column and "
            "--rhs-column if it is one, --no-header if these are ids (in a mapping: header, columns)"
        )


@dataclass(frozen=True)
class _FileColumns:
    """The columns of one file: ``named`` if it has names for them, ``positional`` if places may mean something."""

    file: Path
    names: Sequence[str]
    named: bool
    positional: bool

    def assign(self, config: SourceConfig) -> dict[str, int]:
        """The column number of each role, by ``config.columns`` or by the defaults that it documents."""
        roles = {role: self._find(column, role) for role, column in self._wanted(config).items()}
        by_column: dict[int, str] = {}
        for role, number in roles.items():
            if number in by_column:
                raise DataError(
                    f"{self.file}: column {number + 1} is both {by_column[number]} and {role}; give each its own column"
                )
            by_column[number] = role
        return roles

    def _wanted(self, config: SourceConfig) -> dict[str, Column]:
        given = {role: getattr(config.columns, role) for role in ROLES if getattr(config.columns, role) is not None}
        if "lhs" in given:
            return given
        by_name: dict[str, Column] = {role: role for role in ROLES if self.named and role in self.names}
        if {"lhs", "rhs"} <= set(by_name):
            if config.relation is not None:
                by_name.pop("relation", None)
            return by_name | given
        by_position = _BY_POSITION.get(len(self.names) - len(given)) if self.positional else None
        if by_position is None or (config.relation is not None and "relation" in by_position):
            raise self._unclear()
        taken = {self._find(column, role) for role, column in given.items()}
        free = [number + 1 for number in range(len(self.names)) if number not in taken]
        return dict(zip(by_position, free, strict=True)) | given

    def _unclear(self) -> DataError:
        found = ", ".join(map(repr, self.names)) if self.named else f"{len(self.names)} columns"
        return DataError(
            f"{self.file}: has {found}, and which of them are lhs and rhs is not said; pass --lhs-column and "
            "--rhs-column (and --relation-column, --weight-column, --time-column where there is one), by name or by "
            "position from 1; in a mapping: columns"
        )

    def _find(self, column: Column, role: str) -> int:
        if isinstance(column, int):
            if column <= len(self.names):
                return column - 1
            raise DataError(f"{self.file}: no column {column} for {role}; the file has {len(self.names)} columns")
        if not self.named:
            raise DataError(f"{self.file}: no header to find the column {column!r} in; give the position of {role}")
        if column in self.names:
            return list(self.names).index(column)
        raise DataError(f"{self.file}: no column {column!r} for {role}; {did_you_mean(column, self.names)}")


def _require_types(source: Source) -> None:
    accepted = {
        "lhs": (_is_id, "integers or strings"),
        "rhs": (_is_id, "integers or strings"),
        "relation": (pa.types.is_string, "strings"),
        "weight": (_is_number, "numbers"),
        "time": (_is_time, "numbers, timestamps or ISO 8601 strings"),
    }
    for role in source.roles:
        accepts, wanted = accepted[role]
        found = source.column_type(role)
        if not accepts(pa.string() if pa.types.is_large_string(found) or pa.types.is_string_view(found) else found):
            raise DataError(f"{source.file}: {source.column_name(role)} ({role}) is {found}; write it as {wanted}")


def _require_distinct(file: Path, columns: Sequence[str]) -> None:
    """DuckDB knows no difference between ``ID`` and ``id``."""
    seen: dict[str, str] = {}
    for name in columns:
        if name.lower() in seen:
            raise DataError(f"{file}: columns {seen[name.lower()]!r} and {name!r} differ by case alone; rename one")
        seen[name.lower()] = name


def _is_id(found: pa.DataType) -> bool:
    return bool(pa.types.is_integer(found) or pa.types.is_string(found))


def _is_number(found: pa.DataType) -> bool:
    return bool(pa.types.is_integer(found) or pa.types.is_floating(found))


def _is_time(found: pa.DataType) -> bool:
    return bool(
        _is_number(found) or pa.types.is_timestamp(found) or pa.types.is_date(found) or pa.types.is_string(found)
    )


def shorten(text: str) -> str:
    """``text`` cut to what fits in a message."""
    return text if len(text) <= 80 else text[:77] + "..."
