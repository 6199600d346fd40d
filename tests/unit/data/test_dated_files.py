"""Files by day and hour, and what is said of those that are missing."""

from __future__ import annotations

import logging

import pytest
from pydantic import ValidationError

from rookery.data.dated_files import files_of_days, files_of_hours
from rookery.data.files_config import ExplicitDateInputs, ExplicitDatetimeInputs
from rookery.data.warn_once import warn_once
from rookery.errors import DataError
from rookery.storage.location import as_location
from rookery.storage.remote import put

ENDINGS = (".gz",)


@pytest.fixture(autouse=True)
def _warn_anew():
    warn_once.cache_clear()


def lay(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def days(root, **fields):
    return ExplicitDateInputs(data_root=str(root), **{"end_date": "2024/03/01", "days": 3, **fields})


def hours(root, **fields):
    return ExplicitDatetimeInputs(data_root=str(root), **{"end_datetime": "2024/01/01/01", "hours": 3, **fields})


def test_days_end_with_the_last_over_months_and_leap_years(tmp_path):
    lay(tmp_path, "2024/03/01/b.gz", "2024/03/01/a.gz", "2024/02/29/a.gz", "2024/02/28/a.gz", "2024/02/27/a.gz")
    lay(tmp_path, "2024/03/01/_SUCCESS", "2024/03/01/.c.gz", "2024/03/01/part.parquet")
    expected = ["2024/02/28/a.gz", "2024/02/29/a.gz", "2024/03/01/a.gz", "2024/03/01/b.gz"]
    assert files_of_days(days(tmp_path), ENDINGS) == [tmp_path / name for name in expected]
    assert files_of_days(days(f"{tmp_path}/", end_date="2024-03-01"), ENDINGS) == [tmp_path / n for n in expected]


def test_hours_end_with_the_last_over_years(tmp_path):
    names = ["2023/12/31/23/a.gz", "2024/01/01/00/a.gz", "2024/01/01/01/a.gz"]
    lay(tmp_path, *names, "2024/01/01/02/a.gz")
    assert files_of_hours(hours(tmp_path), ENDINGS) == [tmp_path / name for name in names]
    assert files_of_hours(hours(tmp_path, end_datetime="2024-01-01T01"), ENDINGS) == [tmp_path / n for n in names]


def test_days_that_are_missing_are_named_and_some_may_be(tmp_path, caplog):
    lay(tmp_path, "2024/02/29/a.gz", "2024/02/28/_SUCCESS")
    message = (
        r"explicit_date_inputs: .*: no files \(.gz\) for 2 of 3: 2024/02/28, 2024/03/01; bring them, correct the "
        r"dates, or raise num_missing_days_tol \(now 1\)"
    )
    with pytest.raises(DataError, match=message):
        files_of_days(days(tmp_path, num_missing_days_tol=1), ENDINGS)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert len(files_of_days(days(tmp_path, num_missing_days_tol=2), ENDINGS)) == 1
    assert [record.message.partition("for ")[2] for record in caplog.records] == [
        "2 of 3: 2024/02/28, 2024/03/01; num_missing_days_tol lets 2 be missing"
    ]


def test_all_may_not_be_missing(tmp_path):
    message = r"explicit_datetime_inputs: .* for 30 of 30: .* and 10 more; .* or raise num_missing_hours_tol \(now 30\)"
    with pytest.raises(DataError, match=message):
        files_of_hours(hours(tmp_path, hours=30, num_missing_hours_tol=30), ENDINGS)


def test_days_of_a_bucket_are_found(tmp_path):
    lay(tmp_path, "a.gz")
    place = as_location("memory://birds/dated/2024/03/01/a.gz")
    put(tmp_path / "a.gz", place)
    assert files_of_days(days("memory://birds/dated", num_missing_days_tol=2), ENDINGS) == [place]


@pytest.mark.parametrize("text", ["2024/13/01", "yesterday", "2024/03/01/05", "20240301"])
def test_what_is_no_day_is_refused(text):
    with pytest.raises(ValidationError, match="must be a day, as in 2022/05/04 or 2022-05-04"):
        days("x", end_date=text)


@pytest.mark.parametrize("text", ["2024/03/01", "2024/03/01/24", "2024-03-01 05"])
def test_what_is_no_hour_is_refused(text):
    with pytest.raises(ValidationError, match="must be an hour, as in 2022/05/04/23"):
        hours("x", end_datetime=text)


def test_spans_that_no_calendar_has_are_refused():
    for wrong in (0, 36_526, 100_000_000, 10**30):
        with pytest.raises(
            ValidationError, match=r"days\n  Input should be (greater than 0|less than or equal to 36525)"
        ):
            days("x", days=wrong)
        with pytest.raises(ValidationError, match="hours\n  Input should be"):
            hours("x", hours=100_001 if wrong else 0)
    assert len(days("x", end_date="0001/01/03").folders) == 3
    assert len(hours("x", end_datetime="0001/01/01/02").folders) == 3
    with pytest.raises(ValidationError, match="begins before the year 1; take a later end_date or fewer days"):
        days("x", end_date="0001/01/02")
    with pytest.raises(ValidationError, match="begins before the year 1; take a later end_datetime or fewer hours"):
        hours("x", end_datetime="0001/01/01/01")
