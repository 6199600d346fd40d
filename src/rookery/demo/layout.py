"""Where the demo keeps what its stages make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rookery.checkpoint.files import write_atomically
from rookery.config.loader import dump_config, load_config
from rookery.errors import UserError
from rookery.world.config import WorldConfig

RANKERS = ("ranker-without-twhin", "ranker")
"""Runs of the two rankers: the same but for TwHIN's vectors. The second is the one that serves."""


@dataclass(frozen=True)
class Layout:
    """The folders and files of a demo."""

    folder: Path

    @property
    def world(self) -> Path:
        return self.folder / "world"

    @property
    def impressions(self) -> Path:
        return self.world / "impressions"

    def graph(self, edges: str) -> Path:
        """The graph of the edges ``history`` (before the log) or ``edges`` (all that there are)."""
        return self.folder / f"graph-{edges}"

    def twhin(self, edges: str) -> Path:
        """The run of TwHIN on that graph."""
        return self.folder / f"twhin-{edges}"

    def vectors(self, edges: str) -> Path:
        """The export of that run."""
        return self.folder / f"vectors-{edges}"

    def config(self, name: str) -> Path:
        """The configuration of a run."""
        return self.folder / f"{name}.yaml"

    def run(self, name: str) -> Path:
        return self.folder / name

    def export(self, name: str) -> Path:
        """The export of a ranker."""
        return self.folder / f"{name}-export"

    @property
    def bundle(self) -> Path:
        """What is served."""
        return self.folder / "timeline"

    @property
    def timeline_evaluation(self) -> Path:
        return self.folder / "timeline-evaluation.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def claim(self, config: WorldConfig) -> None:
        """Note what this folder is for, or raise ``UserError`` if it is for something else."""
        note = self.folder / "demo.yaml"
        if not note.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise UserError(f"--folder {self.folder}: holds files that are not of a demo; name an empty folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(note, dump_config(config))
            return
        found = load_config(WorldConfig, note)
        if found != config:
            raise UserError(
                f"--folder {self.folder}: a demo of another size or seed is there ({found.num_users:,} users, seed "
                f"{found.seed}); name another folder or remove this one"
            )
