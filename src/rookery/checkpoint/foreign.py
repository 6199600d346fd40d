"""Weights under names of another program: reading its file without running anything in it, matching, writing one.

A file is safetensors, or the archive that ``torch.save`` writes of a state dict. Of the latter only tensors are
rebuilt (``weights_only``), from the mapped file: nothing in it is run, and a tensor that nobody wants is never copied.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rookery.checkpoint.files import TENSORS, DamagedCheckpoint, StoredTensors
from rookery.errors import DataError, UserError
from rookery.storage.disk import force_to_disk

SUFFIXES = (TENSORS, ".pt", ".pth")
"""Of files that can be written: safetensors, or what ``torch.load`` reads."""

_ARCHIVE = b"PK\x03\x04"
# A state dict of 100,000 tensors has a pickle of some 15 MB.
_MAX_PICKLE_BYTES = 64 << 20
# Where trainers put the state dict among other things.
_STATE_DICTS = ("model", "state_dict", "module")
_SAVE_AGAIN = "write the state dict alone again, tensors by name, as safetensors or with torch.save"
_NAMES_SHOWN = 12


@dataclass(frozen=True)
class Fixed:
    """A tensor of the file that is no weight: what a configuration says there, and which field says it.

    ``field`` None: it is written, and not compared when it is read.
    """

    value: Tensor
    field: str | None = None


@dataclass(frozen=True)
class ForeignTensors:
    """All tensors of a model under the other program's names.

    ``views`` share memory with the model's own, in the shapes of the other; ``fixed`` is what it keeps besides.
    """

    views: Mapping[str, Tensor]
    fixed: Mapping[str, Fixed] = field(default_factory=dict)


@dataclass(frozen=True)
class Taken:
    """What was read of a file: ``missing`` tensors keep their values, ``surplus`` ones were left in the file."""

    num_tensors: int
    missing: tuple[str, ...]
    surplus: tuple[str, ...]


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of ``file`` by name, mapped from disk. Raises ``DataError`` for what holds more, or none."""
    if file.is_dir():
        raise DataError(f"{file}: is a folder; name a file of weights, and of a sharded checkpoint {_SAVE_AGAIN}")
    try:
        with file.open("rb") as opened:
            is_archive = opened.read(len(_ARCHIVE)) == _ARCHIVE
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); name a file of weights") from error
    if is_archive:
        return dict(_state_dict(file, _load_archive(file)))
    try:
        return dict(StoredTensors(file))
    except DamagedCheckpoint as error:
        raise DataError(f"{error}, nor an archive of torch.save; {_SAVE_AGAIN}") from error


def take_over(foreign: ForeignTensors, stored: Mapping[str, Tensor], file: Path, *, partial: bool) -> Taken:
    """Copy the tensors of ``stored`` into the views of the same names; all or nothing.

    Raises ``DataError`` with a line for each tensor of another shape, that is no number or not finite, or says other
    than the configuration; unless ``partial`` also for tensors that are missing or surplus.
    """
    views, fixed = foreign.views, foreign.fixed
    found = [name for name in views if name in stored]
    missing = tuple(name for name in views if name not in stored)
    surplus = tuple(name for name in stored if name not in views and name not in fixed)
    problems = [problem for name in found if (problem := _misfit(name, stored[name], views[name]))]
    problems += [problem for name in fixed if name in stored and (problem := _differs(name, stored[name], fixed[name]))]
    if not partial:
        problems += _listed(missing, "missing", "configure the model as the one that was saved, or pass --partial")
        problems += _listed(surplus, "not in this configuration", "add what they belong to, or pass --partial")
    if not found:
        problems = [
            f"none of its {len(stored)} tensors is one of this model; the first is {next(iter(stored), 'none')}"
        ]
    if problems:
        raise DataError("\n".join(f"{file}: {problem}" for problem in problems))
    with torch.no_grad():
        for name in found:
            views[name].copy_(stored[name])
    return Taken(len(found), missing, surplus)


def write_weights(foreign: ForeignTensors, file: Path, *, overwrite: bool) -> int:
    """Write all tensors, whole or not at all, and return how many. ``UserError`` where that cannot be."""
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file}: the suffix says how it is written: one of {', '.join(SUFFIXES)}")
    if file.exists() and not overwrite:
        raise UserError(f"{file}: exists; name another file, or pass --overwrite")
    # A slice is copied: a file holds what a tensor lies in, and of safetensors no two may lie in one place.
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in foreign.views.items()}
    tensors |= {name: each.value for name, each in foreign.fixed.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(tensors, file)
    # The archive writer of torch has no error of its own for a disk that refuses.
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{file}: cannot be written ({reason}); make room or permission, or name another place"
        ) from error
    return len(tensors)


def _write_whole(tensors: Mapping[str, Tensor], file: Path) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}.writing")
    try:
        if file.suffix == TENSORS:
            save_file(dict(tensors), beside)
        else:
            torch.save(dict(tensors), beside)
        force_to_disk(beside)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def without_wrappers(name: str, wrappers: Collection[str], first: str) -> str:
    """``name`` as the bare model has it: without the parts ``wrappers``, and behind one ``first`` however many."""
    parts = [part for part in name.split(".") if part not in wrappers]
    while parts[:1] == [first]:
        del parts[0]
    return ".".join([first, *parts])


def renamed(stored: Mapping[str, Tensor], names: Mapping[str, str], file: Path) -> dict[str, Tensor]:
    """``stored`` under ``names[old]``. Raises ``DataError`` where two become one."""
    old_names: dict[str, str] = {}
    for old in stored:
        other = old_names.setdefault(names[old], old)
        if other != old:
            raise DataError(f"{file}: {other} and {old} are the same tensor; leave one of them out")
    return {new: stored[old] for new, old in old_names.items()}


# What malformed archives raise in the readers of zip and of torch has no common base.
_MALFORMED = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
)


def _load_archive(file: Path) -> object:
    try:
        _require_plain(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except _MALFORMED as error:
        raise DataError(f"{file}: holds more than tensors, or is damaged ({_reason(error)}); {_SAVE_AGAIN}") from error


def _reason(error: Exception) -> str:
    """The first sentence of what is amiss: those around it are advice to load the file without looking into it."""
    said = " ".join(str(error).split())
    return said.rpartition("WeightsUnpickler error: ")[2].partition(". ")[0][:200]


def _require_plain(file: Path) -> None:
    """Raise ``DataError`` for what would take more memory than the file has bytes."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise DataError(f"{file}: {entry.filename} is compressed, as torch.save never does; {_SAVE_AGAIN}")
            if entry.filename.endswith("/data.pkl") and entry.file_size > _MAX_PICKLE_BYTES:
                raise DataError(
                    f"{file}: {entry.filename} has {entry.file_size:,} bytes of names, at most {_MAX_PICKLE_BYTES:,} "
                    f"are read; {_SAVE_AGAIN}"
                )


def _state_dict(file: Path, content: object) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of what was saved, or of the state dict in it."""
    if isinstance(content, Mapping):
        inner = next((content[name] for name in _STATE_DICTS if isinstance(content.get(name), Mapping)), content)
        for name, value in inner.items():
            if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout is not torch.strided:
                raise DataError(f"{file}: {name!r} is a {type(value).__name__}, not a dense tensor; {_SAVE_AGAIN}")
            yield name, value
    else:
        raise DataError(f"{file}: is a {type(content).__name__}, not tensors by name; {_SAVE_AGAIN}")


def _misfit(name: str, found: Tensor, wanted: Tensor) -> str | None:
    if found.shape != wanted.shape:
        return (
            f"{name} is {list(found.shape)} there, {list(wanted.shape)} in this configuration; set the sizes of the "
            "saved model"
        )
    if found.is_floating_point() != wanted.is_floating_point():
        there, here = (str(each.dtype).removeprefix("torch.") for each in (found, wanted))
        kind = "floating-point" if wanted.is_floating_point() else "whole"
        return (
            f"{name} is {there} there, {here} in this configuration; take a model whose {name} has {kind} numbers, or "
            f"write it as {here}"
        )
    num_wrong = found.numel() - int(torch.isfinite(found).sum())
    if num_wrong and torch.isfinite(wanted).all():  # some of ours say by NaN that nothing was measured yet
        return f"{name} has {num_wrong:,} numbers that are not finite; take an earlier checkpoint of that model"
    # Where the file's type is wider, its largest numbers may have no place here.
    if (
        found.dtype.itemsize > wanted.dtype.itemsize
        and found.numel()
        and not torch.isfinite(found.to(wanted.dtype)).all()
    ):
        return f"{name} has numbers beyond {wanted.dtype}; configure a wider data type"
    return None


def _differs(name: str, found: Tensor, fixed: Fixed) -> str | None:
    if fixed.field is None:
        return None
    if found.numel() == 1 and torch.isclose(found.double().reshape(()), fixed.value.double(), rtol=1e-5):
        return None
    value = f"{found.item():g}" if found.numel() == 1 else f"of shape {list(found.shape)}"
    return f"{name} is {value} there, {fixed.value.item():g} in this configuration; change {fixed.field}"


def _listed(names: Collection[str], what: str, remedy: str) -> list[str]:
    if not names:
        return []
    shown = ", ".join(list(names)[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return [f"{len(names)} {what}: {shown}{more}; {remedy}"]
