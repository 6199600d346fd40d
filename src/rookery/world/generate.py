"""``rookery world generate``: from a configuration to a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from rookery.data.adjacency import Adjacency
from rookery.data.engagements import ENGAGEMENTS
from rookery.data.staging import staged
from rookery.world.config import WorldConfig
from rookery.world.draws import Floats, Stream
from rookery.world.files import DayFiles, EdgeFolder
from rookery.world.laws import BASE_RATES, Causes, solve_intercepts
from rookery.world.manifest import MANIFEST, WorldManifest, describe_files
from rookery.world.service import FIRST_DAY_US, Service
from rookery.world.society import Society, draw_follows, draw_society, save_society

REHEARSAL_DAYS = 3
"""Days that are played once and forgotten: then the posts to show have counts, and the mix is the usual one."""

_SAMPLED_ROWS = 60_000


@dataclass(frozen=True)
class Generated:
    """What was written: rows of the log, and the mean of each label in it."""

    path: Path
    num_impressions: int
    num_posts: int
    num_edges: dict[str, int]
    base_rates: dict[str, float]


def generate_world(
    out: Path,
    config: WorldConfig,
    *,
    overwrite: bool = False,
    notify: Callable[[int, int], None] = lambda done, days: None,
) -> Generated:
    """Write a world to ``out``, whole or not at all; the same configuration gives the same bytes.

    ``notify`` is told after each day how many are done. Raises ``DataError`` where ``out`` cannot be written.
    """
    with staged(out, overwrite=overwrite, marker=MANIFEST) as staging:
        society = draw_society(config)
        follows = draw_follows(config, society)
        intercepts = rehearse(config, society, follows)
        service = Service(config, society, follows)
        writer = _Writer(staging.folder, config, service)
        for day in range(config.num_days):
            writer.write_day(day, intercepts)
            notify(day + 1, config.num_days)
        return writer.finish(society, intercepts, out)


def rehearse(config: WorldConfig, society: Society, follows: Adjacency) -> Floats:
    """The intercepts ``[events]`` that give the base rates under the mixed policy."""
    service = Service(config, society, follows)
    rates = np.array(list(BASE_RATES.values()))
    intercepts: Floats = np.log(rates / (1 - rates))
    for _ in range(REHEARSAL_DAYS):
        intercepts = solve_intercepts(_sampled_causes(config, service, intercepts))
    return intercepts


def _sampled_causes(config: WorldConfig, service: Service, intercepts: Floats) -> Causes:
    """Every n-th row of a day, up to about ``_SAMPLED_ROWS``."""
    step = -(-config.impressions_per_day // _SAMPLED_ROWS)
    parts = [chunk.causes for chunk in service.run_day(intercepts, Stream.REHEARSAL)]
    values = np.concatenate([part.values[::step] for part in parts])
    return Causes(values, np.concatenate([part.is_video[::step] for part in parts]))


class _Writer:
    """Writes the days of a service, and in the end what is known of it."""

    def __init__(self, folder: Path, config: WorldConfig, service: Service) -> None:
        self._folder, self._config, self._service = folder, config, service
        self._edges = EdgeFolder(folder / "edges", "Follows, and the engagements of all days.")
        self._history = EdgeFolder(folder / "history", "Follows, and the engagements of the days before the log.")
        for edges in (self._edges, self._history):
            edges.add_follows(service.snapshot)
        (folder / "impressions").mkdir()
        (folder / "truth").mkdir()
        self._num_impressions = 0
        self._num_positives = np.zeros(len(ENGAGEMENTS), np.int64)

    def write_day(self, day: int, intercepts: Floats) -> None:
        """Play the next day and write what it leaves."""
        chunks = self._service.run_day(intercepts, Stream.OUTCOMES)
        if day < self._config.history_days:
            for chunk in chunks:
                self._edges.add(self._service.snapshot, chunk)
                self._history.add(self._service.snapshot, chunk)
            return
        with DayFiles(self._folder, day, self._num_impressions) as files:
            for chunk in chunks:
                self._edges.add(self._service.snapshot, chunk)
                files.add(self._service.snapshot, chunk)
                self._num_impressions += len(chunk.labels)
                self._num_positives += chunk.labels.sum(0, dtype=np.int64)

    def finish(self, society: Society, intercepts: Floats, out: Path) -> Generated:
        """The catalog, the society and the manifest."""
        for edges in (self._edges, self._history):
            edges.close()
        catalog = self._service.catalog()
        catalog.write(self._folder / "catalog")
        latent: dict[str, np.ndarray] = {"post_qualities": self._service.drawn.qualities, "intercepts": intercepts}
        save_society(society, latent, self._folder / "society.safetensors")
        rates = self._num_positives / max(1, self._num_impressions)
        generated = Generated(
            path=out,
            num_impressions=self._num_impressions,
            num_posts=len(catalog.posts),
            num_edges=self._edges.num_edges,
            base_rates=dict(zip(ENGAGEMENTS, rates.tolist(), strict=True)),
        )
        manifest = WorldManifest(
            first_day=_iso(FIRST_DAY_US),
            now=_iso(catalog.now_us),
            num_days=self._config.num_days,
            config=self._config,
            num_impressions=generated.num_impressions,
            num_posts=generated.num_posts,
            num_edges=generated.num_edges,
            base_rates=generated.base_rates,
            files=describe_files(self._folder),
        )
        text = manifest.model_dump_json(indent=2, exclude_none=True)
        (self._folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        return generated


def _iso(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, timezone.utc).isoformat()
