"""Features of KuaiRand's impressions that know nothing of their own day: SQL over the tables of ``kuairand_files``.

What an impression of day d gets is counted over the impressions of days before d, and over the users' sequences, which
end before the first day. The tables made here, in order:

    impression  a row for each impression of a day that is split, with its day, its video's tag and length class
    past        a row for each user and video of the sequences, with what is known of it: long_view and is_like
    KEY_counts  a row for each key and day: log counts and lifts over earlier days; or, where the key's name starts
                with past_, a row for each key: log counts and lifts over the sequences
    lists       a row for each user and day: the last videos the user saw, viewed at length, liked, clicked

A lift is log(((s + a·p) / (n + a)) / p), where s of n earlier impressions had the label, p is the share of all earlier
impressions that had it and a = 20: 0 where nothing is known, and free of the drift of p from day to day.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from rookery.data.adapters.kuairand_files import LABELS

SMOOTHING = 20
"""Impressions at the mean rate that each count starts with."""
LIST_LENGTH = 50
_LISTS = {
    "watch": ("watch_seq", "true"),
    "long_watch": ("long_watch_seq", "long_view = 1"),
    "like": ("like_seq", "is_like = 1"),
    "click": ("[]::BIGINT[]", "is_click = 1"),
}
"""Name: what the sequences hold of it, and which impressions continue it."""
LIST_COLUMNS = tuple(f"{name}_list" for name in _LISTS)
FREQUENT_LABELS = LABELS[:4]
PAST_LABELS = ("long_view", "is_like")


@dataclass(frozen=True)
class Key:
    """Impressions, or entries of the past, that agree in ``columns`` are counted together.

    ``labels`` are those whose lifts are kept; ``table`` holds the result, one row a key, or a key and day.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def is_past(self) -> bool:
        return self.name.startswith("past_")

    @property
    def selected(self) -> str:
        return ", ".join(self.columns)

    @property
    def kept(self) -> str:
        """The features, as a select list of a query that has ``join``."""
        names = [f"{self.name}_impressions", *(f"{self.name}_{label}_lift" for label in self.labels)]
        if not self.is_past:
            names.append(f"{self.name}_log_play")
        return ", ".join(f"coalesce({self.name}_counts.{name}, 0) AS {name}" for name in names)

    @property
    def join(self) -> str:
        """The join of the features to ``impression i``."""
        same = [f"i.{name} IS NOT DISTINCT FROM {self.name}_counts.{name}" for name in self.columns]
        if not self.is_past:
            same.append(f"i.day = {self.name}_counts.day")
        return f"LEFT JOIN {self.name}_counts ON {' AND '.join(same)}"


_DAILY = {
    "user": ("user_id",),
    "video": ("video_id",),
    "author": ("author_id",),
    "tag": ("tag",),
    "tab": ("tab",),
    "user_tag": ("user_id", "tag"),
    "user_author": ("user_id", "author_id"),
    "user_tab": ("user_id", "tab"),
    "user_length": ("user_id", "length_class"),
    "user_video": ("user_id", "video_id"),
    "video_tab": ("video_id", "tab"),
    "tab_length": ("tab", "length_class"),
}
_WITHOUT_PAST = ("tab", "user_tab", "video_tab", "tab_length")
KEYS = (
    *(Key(name, key, LABELS if len(key) == 1 else FREQUENT_LABELS) for name, key in _DAILY.items()),
    *(Key(f"past_{name}", key, PAST_LABELS) for name, key in _DAILY.items() if name not in _WITHOUT_PAST),
)

_TIME_ZONE_MS = 8 * 3_600_000
_DAY_MS = 24 * 3_600_000
DAY = f"(DATE '1970-01-01' + ((time_ms + {_TIME_ZONE_MS}) // {_DAY_MS})::INTEGER)"
"""The day of an impression in China Standard Time, UTC+8."""

_LENGTH_CLASS = "CASE WHEN duration_ms > 0 THEN floor(2 * log2(duration_ms / 1000))::INTEGER END"


def build(db: duckdb.DuckDBPyConnection, first_day: str, last_day: str) -> None:
    """Make the tables for the impressions from ``first_day`` to ``last_day`` (inclusive, ISO dates)."""
    _impressions(db, first_day, last_day)
    _past(db)
    for key in KEYS:
        (_past_counts if key.is_past else _daily_counts)(db, key)
    _lists(db)


def _impressions(db: duckdb.DuckDBPyConnection, first_day: str, last_day: str) -> None:
    db.execute(f"""
        CREATE TEMP TABLE impression AS
        SELECT i.* EXCLUDE (profile_stay_time, comment_stay_time, play_time_ms), {DAY} AS day, v.tag,
            (time_ms + {_TIME_ZONE_MS}) // 3600000 % 24 AS hour,
            {_LENGTH_CLASS} AS length_class, ln(1 + greatest(play_time_ms, 0) / 1000) AS log_play,
            row_number() OVER (ORDER BY time_ms, i.rowid) AS place
        FROM raw_impression i LEFT JOIN raw_video v USING (video_id)
        WHERE {DAY} BETWEEN DATE '{first_day}' AND DATE '{last_day}'
    """)


def _past(db: duckdb.DuckDBPyConnection) -> None:
    """A video that a user's long-watch or like list still holds may have left the watch list, which is cut at 50."""
    db.execute(f"""
        CREATE TEMP TABLE past AS
        WITH entry AS (
            SELECT user_id, unnest(watch_seq) AS video_id, 0 AS long_view, 0 AS is_like FROM raw_sequence
            UNION ALL SELECT user_id, unnest(long_watch_seq), 1, 0 FROM raw_sequence
            UNION ALL SELECT user_id, unnest(like_seq), 0, 1 FROM raw_sequence
        ), pair AS (
            SELECT user_id, video_id, max(long_view) AS long_view, max(is_like) AS is_like FROM entry GROUP BY ALL
        )
        SELECT pair.*, author_id, tag, {_LENGTH_CLASS} AS length_class
        FROM pair LEFT JOIN (SELECT *, video_duration AS duration_ms FROM raw_video) USING (video_id)
    """)


def _daily_counts(db: duckdb.DuckDBPyConnection, key: Key) -> None:
    """Counts by day, summed over the days before; a key that is seen first has n = 0 and lifts of 0."""
    sums = ", ".join(f"sum({label}) AS {label}" for label in (*key.labels, "log_play"))
    totals = ", ".join(f"sum({label}) OVER earlier AS {label}" for label in (*key.labels, "log_play"))
    shares = ", ".join(
        f"sum(sum({label})) OVER before / sum(count(*)) OVER before AS {label}" for label in (*key.labels, "log_play")
    )
    lifts = ", ".join(f"{_lift(f'c.{x}', 'c.n', f'p.{x}')} AS {key.name}_{x}_lift" for x in key.labels)
    log_play = f"coalesce((c.log_play - c.n * p.log_play) / (c.n + {SMOOTHING}), 0)::FLOAT AS {key.name}_log_play"
    window = "ORDER BY day ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING"
    db.execute(f"""
        CREATE TEMP TABLE {key.name}_counts AS
        WITH counted AS (SELECT {key.selected}, day, count(*) AS n, {sums} FROM impression GROUP BY ALL),
        summed AS (
            SELECT {key.selected}, day, sum(n) OVER earlier AS n, {totals} FROM counted
            WINDOW earlier AS (PARTITION BY {key.selected} {window})
        ),
        share AS (SELECT day, {shares} FROM impression GROUP BY day WINDOW before AS ({window}))
        SELECT {key.selected}, day, ln(1 + coalesce(n, 0))::FLOAT AS {key.name}_impressions, {lifts}, {log_play}
        FROM summed c JOIN share p USING (day)
    """)


def _past_counts(db: duckdb.DuckDBPyConnection, key: Key) -> None:
    sums = ", ".join(f"sum({label}) AS {label}" for label in PAST_LABELS)
    shares = ", ".join(f"avg({label}) AS {label}" for label in PAST_LABELS)
    lifts = ", ".join(f"{_lift(f'c.{x}', 'c.n', f'p.{x}')} AS {key.name}_{x}_lift" for x in PAST_LABELS)
    db.execute(f"""
        CREATE TEMP TABLE {key.name}_counts AS
        WITH counted AS (SELECT {key.selected}, count(*) AS n, {sums} FROM past GROUP BY ALL),
        share AS (SELECT {shares} FROM past)
        SELECT {key.selected}, ln(1 + n)::FLOAT AS {key.name}_impressions, {lifts} FROM counted c, share p
    """)


def _lift(positives: str, total: str, share: str) -> str:
    return f"coalesce(ln(({positives} / {share} + {SMOOTHING}) / ({total} + {SMOOTHING})), 0)::FLOAT"


def _lists(db: duckdb.DuckDBPyConnection) -> None:
    """The sequences, then the impressions of earlier days, oldest first, the last ``LIST_LENGTH`` of them."""
    by_day = ", ".join(
        f"coalesce(list(video_id ORDER BY place) FILTER ({condition}), []) AS {name}_list"
        for name, (_, condition) in _LISTS.items()
    )
    earlier = ", ".join(f"coalesce(flatten(list({name}) OVER earlier), []) AS {name}" for name in LIST_COLUMNS)
    whole = ", ".join(
        f"list_concat(coalesce({sequence}, []), {name}_list)[-{LIST_LENGTH}:] AS {name}_list"
        for name, (sequence, _) in _LISTS.items()
    )
    db.execute(f"""
        CREATE TEMP TABLE lists AS
        WITH daily AS (SELECT user_id, day, {by_day} FROM impression GROUP BY ALL),
        before AS (
            SELECT user_id, day, {earlier} FROM daily WINDOW earlier AS
            (PARTITION BY user_id ORDER BY day ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
        )
        SELECT user_id, day, {whole} FROM before LEFT JOIN raw_sequence USING (user_id)
    """)
