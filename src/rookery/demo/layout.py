"""Where the demo keeps what its stages make."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rookery.checkpoint.files import write_atomically
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
        """Note what this folder is for, or raise ``UserError`` if it is for something else or was moved."""
        note = self.folder / "demo.json"
        wanted = {"folder": str(self.folder), "world": config.model_dump(mode="json")}
        if not note.exists():
            self._make()
            write_atomically(note, json.dumps(wanted, indent=1) + "\n")
            return
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
            world, folder = found["world"], found["folder"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{note}: damaged ({error}); remove {self.folder} and start anew") from error
        if world != wanted["world"]:
            raise UserError(
                f"--folder {self.folder}: a demo of another size or seed is there; name another folder or remove it"
            )
        if folder != wanted["folder"]:
            raise UserError(
                f"--folder {self.folder}: was made as {folder}, and its runs name that place; move it back, or name "
                "another folder"
            )

    def _make(self) -> None:
        try:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise UserError(f"--folder {self.folder}: holds files that are not of a demo; name an empty folder")
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--folder {self.folder}: cannot be a folder ({error.strerror}); name one that can be made and written"
            ) from error
