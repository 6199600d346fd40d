"""Configuration of where files lie by day or hour, and of what files of records hold."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from rookery.config.base import StrictModel
from rookery.storage.location import LocationField, absolute

NonNegativeInt = Annotated[int, Field(ge=0)]
# Each is a folder that is looked into; a hundred years, and eleven of hours, are a slip of the pen.
NumDays = Annotated[int, Field(gt=0, le=36_525)]
NumHours = Annotated[int, Field(gt=0, le=100_000)]
MaskedBits = Annotated[int, Field(ge=0, le=23)]

_DAY_FOLDER = "%Y/%m/%d"
_HOUR_FOLDER = "%Y/%m/%d/%H"
_DAYS = (_DAY_FOLDER, "%Y-%m-%d")
_HOURS = (_HOUR_FOLDER, "%Y-%m-%dT%H")


class ExplicitDateInputs(StrictModel):
    """The files of ``data_root/YYYY/MM/DD`` for each of ``days`` days, ``end_date`` the last of them."""

    data_root: str
    """A folder, by path or URL."""
    end_date: str
    """As in 2022/05/04 or 2022-05-04."""
    days: NumDays
    num_missing_days_tol: NonNegativeInt = 0
    """So many days may have no files."""

    @field_validator("end_date")
    @classmethod
    def _is_a_day(cls, text: str) -> str:
        _parsed(text, _DAYS, "a day, as in 2022/05/04 or 2022-05-04")
        return text

    @model_validator(mode="after")
    def _begins_after_year_0(self) -> Self:
        _require_start(_parsed(self.end_date, _DAYS, "a day"), timedelta(days=self.days - 1), "end_date", "days")
        return self

    @property
    def folders(self) -> tuple[str, ...]:
        """Inside of ``data_root``, the earliest first."""
        last = _parsed(self.end_date, _DAYS, "a day")
        return tuple((last - timedelta(days=back)).strftime(_DAY_FOLDER) for back in reversed(range(self.days)))

    def with_whole_paths(self) -> Self:
        """The same with an absolute path."""
        return self.model_copy(update={"data_root": absolute(self.data_root)})


class ExplicitDatetimeInputs(StrictModel):
    """The files of ``data_root/YYYY/MM/DD/HH`` for each of ``hours`` hours, ``end_datetime`` the last of them."""

    data_root: str
    """A folder, by path or URL."""
    end_datetime: str
    """As in 2022/05/04/23 or 2022-05-04T23."""
    hours: NumHours
    num_missing_hours_tol: NonNegativeInt = 0
    """So many hours may have no files."""

    @field_validator("end_datetime")
    @classmethod
    def _is_an_hour(cls, text: str) -> str:
        _parsed(text, _HOURS, "an hour, as in 2022/05/04/23 or 2022-05-04T23")
        return text

    @model_validator(mode="after")
    def _begins_after_year_0(self) -> Self:
        last = _parsed(self.end_datetime, _HOURS, "an hour")
        _require_start(last, timedelta(hours=self.hours - 1), "end_datetime", "hours")
        return self

    @property
    def folders(self) -> tuple[str, ...]:
        """Inside of ``data_root``, the earliest first."""
        last = _parsed(self.end_datetime, _HOURS, "an hour")
        return tuple((last - timedelta(hours=back)).strftime(_HOUR_FOLDER) for back in reversed(range(self.hours)))

    def with_whole_paths(self) -> Self:
        """The same with an absolute path."""
        return self.model_copy(update={"data_root": absolute(self.data_root)})


class RecordsConfig(StrictModel):
    """Files of records: TFRecords, plain or gzip, of tf.Example with the features that a segdense schema lists.

    A feature of length 1 is a column of numbers, of another length a column of lists; names are those of the schema
    unless renamed.
    """

    schema_path: LocationField
    """JSON: ``{"schema": [{"dtype": "float_list", "feature_name": "continuous", "length": 6000}, …]}``."""
    renamed_features: dict[str, str] = Field(default_factory=dict)
    """Our name to that of the schema, which then is no column any more."""
    mask_mantissa_features: dict[str, MaskedBits] = Field(default_factory=dict)
    """Set so many of the lowest of 23 bits of the mantissa to 0 in float columns, by our name."""
    index_dir: Path | None = None
    """Where the numbers and places of records are kept, found in one pass; left out, a folder in the cache of this
    machine (``ROOKERY_CACHE``, else ``~/.cache/rookery``)."""

    @field_validator("renamed_features")
    @classmethod
    def _is_one_to_one(cls, names: dict[str, str]) -> dict[str, str]:
        sources = list(names.values())
        for source in sources:
            if sources.count(source) > 1:
                raise ValueError(f"{source!r} has two names; give each column one")
        return names

    def with_whole_paths(self) -> Self:
        """The same with absolute paths."""
        index_dir = None if self.index_dir is None else self.index_dir.absolute()
        return self.model_copy(update={"schema_path": self.schema_path.absolute(), "index_dir": index_dir})


def _require_start(last: datetime, before: timedelta, end: str, length: str) -> None:
    if last - datetime.min < before:  # noqa: DTZ901 - names of folders have no time zone
        raise ValueError(f"begins before the year 1; take a later {end} or fewer {length}")


def _parsed(text: str, formats: tuple[str, ...], wanted: str) -> datetime:
    for each in formats:
        try:
            return datetime.strptime(text, each)  # noqa: DTZ007 - names of folders have no time zone
        except ValueError:
            continue
    raise ValueError(f"must be {wanted}")
