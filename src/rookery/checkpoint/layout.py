"""Where the checkpoints of a run lie, which there are, and which of them are kept: here and where published."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from rookery.checkpoint.files import CHECKSUMS, DamagedCheckpoint
from rookery.storage.location import RemotePath

CHECKPOINTS = "checkpoints"
BEST = "best.json"
PREFIX = "step-"

P = TypeVar("P", Path, RemotePath)


def step_folder(run: P, step: int) -> P:
    """Where the checkpoint of ``step`` lies."""
    return run / CHECKPOINTS / f"{PREFIX}{step:09d}"


def checkpoint_steps(save_dir: Path) -> list[int]:
    """Steps of the stored checkpoints, ascending; damaged ones included."""
    return _steps(folder.name for folder in (save_dir / CHECKPOINTS).glob(f"{PREFIX}*"))


def steps_of(files: Iterable[str]) -> list[int]:
    """The same of the files of a run, by their paths inside it: also of checkpoints of which files are missing."""
    return _steps(name.split("/")[1] for name in files if name.startswith(f"{CHECKPOINTS}/"))


def whole_steps(files: Iterable[str]) -> list[int]:
    """Steps of the checkpoints whose sums, which are written last, are there."""
    return steps_of(name for name in files if name.endswith(f"/{CHECKSUMS}"))


def expired(steps: Sequence[int], newest: int, max_to_keep: int | None, best: int | None) -> list[int]:
    """Which of ``steps`` go once that of ``newest`` is written.

    Those of later steps do: they are damaged ones that the run fell back from.
    """
    earlier = [step for step in steps if step <= newest]
    kept = set(earlier if max_to_keep is None else earlier[-max_to_keep:])
    return [step for step in steps if step not in kept | {best} or step > newest]


def best_step(save_dir: Path) -> int | None:
    """The step of the best checkpoint so far, None when the run keeps no best one.

    Raises ``DamagedCheckpoint`` when ``best.json`` does not tell it.
    """
    pointer = save_dir / CHECKPOINTS / BEST
    if not pointer.exists():
        return None
    try:
        step = int(json.loads(pointer.read_text())["step"])
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedCheckpoint(
            f"{pointer}: does not tell the step of the best checkpoint ({error}); write the step there, as in "
            f'{{"step": N}}, one of {listed(checkpoint_steps(save_dir))}; or delete it to go on without a best one'
        ) from error
    return step if step_folder(save_dir, step).exists() else None


def listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))


def _steps(names: Iterable[str]) -> list[int]:
    found = {name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}
    return sorted(int(name) for name in found if name.isdecimal())
