from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rookery.checkpoint.files import (
    DamagedCheckpoint,
    StoredTensors,
    read_checkpoint,
    write_atomically,
)
from rookery.checkpoint.write import write_checkpoint
from rookery.errors import CheckpointError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def numbers(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)


def write(folder: Path, **groups: dict[str, Tensor]) -> Path:
    write_checkpoint(folder, 7, groups or {"model": {"weight": numbers(torch.float32, 4, 3)}}, {"stream": {"epoch": 2}})
    return folder


def test_every_type_and_shape_comes_back(tmp_path: Path) -> None:
    tensors = {str(dtype): numbers(dtype, 5, 2) for dtype in DTYPES}
    tensors |= {
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "transposed": numbers(torch.float32, 3, 2).T,
        "needs gradient": torch.ones(2, requires_grad=True),
    }
    checkpoint = read_checkpoint(write(tmp_path / "step-1", model=tensors, other={}))
    assert (checkpoint.step, checkpoint.state) == (7, {"stream": {"epoch": 2}})
    stored = checkpoint.tensors("model")
    assert set(stored) == set(tensors)
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor)
    assert dict(checkpoint.tensors("other")) == {}


def test_a_tensor_file_is_plain_safetensors(tmp_path: Path) -> None:
    """Read back by the format's own description: 8 bytes of header length, a JSON header, raw numbers."""
    weight = numbers(torch.float32, 4, 3)
    content = (write(tmp_path / "step-1", model={"weight": weight}) / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])["weight"]
    assert (header["dtype"], header["shape"]) == ("F32", [4, 3])
    start, stop = (8 + length + offset for offset in header["data_offsets"])
    np.testing.assert_array_equal(np.frombuffer(content[start:stop], "<f4").reshape(4, 3), weight.numpy())


def test_stored_tensors_are_mapped_not_read(tmp_path: Path) -> None:
    """128 MB are opened and one row of them read: the process grows by little."""
    file = write(tmp_path / "step-1", model={"table": torch.ones(1 << 20, 32)}) / "model.safetensors"

    def anonymous_bytes() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    before = anonymous_bytes()
    table = StoredTensors(file)["table"]
    assert table[77].sum() == 32
    assert anonymous_bytes() - before < 8e6


def test_an_unknown_group_names_the_known_ones(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write(tmp_path / "step-1", model={}, optimizer={}))
    with pytest.raises(CheckpointError, match="holds no tensors 'momentum'; it holds model, optimizer"):
        checkpoint.tensors("momentum")
    with pytest.raises(KeyError):
        checkpoint.tensors("model")["absent"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_every_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "step-1") / name
    whole = file.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        with pytest.raises(DamagedCheckpoint, match=rf"{name}: crc32 is [0-9a-f]{{8}}, [0-9a-f]{{8}} was written"):
            read_checkpoint(tmp_path / "step-1")


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_truncated_file_is_found_by_its_size(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "step-1") / name
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpoint, match=f"{name}: {size - 1:,} bytes, {size:,} were written"):
        read_checkpoint(tmp_path / "step-1")


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "checksums.json"])
def test_a_missing_file_is_found(tmp_path: Path, name: str) -> None:
    (write(tmp_path / "step-1") / name).unlink()
    with pytest.raises(DamagedCheckpoint, match=f"{name}: missing"):
        read_checkpoint(tmp_path / "step-1")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"model.safetensors": 3}', '{"state.json": {}}'])
def test_damaged_checksums_are_found(tmp_path: Path, text: str) -> None:
    (write(tmp_path / "step-1") / "checksums.json").write_text(text)
    with pytest.raises(DamagedCheckpoint, match=r"checksums\.json: not the JSON that was written"):
        read_checkpoint(tmp_path / "step-1")


def test_a_predecessor_is_replaced_and_leftovers_vanish(tmp_path: Path) -> None:
    (tmp_path / ".step-1.writing").mkdir()
    (tmp_path / ".step-1.writing" / "half").write_text("")
    write(tmp_path / "step-1", model={"old": torch.zeros(1)}, extra={})
    write(tmp_path / "step-1", model={"new": torch.zeros(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert list(read_checkpoint(tmp_path / "step-1").tensors("model")) == ["new"]
    assert not (tmp_path / "step-1" / "extra.safetensors").exists()


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "step-1")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rookery.checkpoint.draft.save_file", refuse)
    with pytest.raises(CheckpointError, match=r"step-2: .* step 7 could not be written \(.*No space left.*make room"):
        write(tmp_path / "step-2")
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    read_checkpoint(tmp_path / "step-1")


def test_a_disk_that_fills_up_ends_the_write(tmp_path: Path) -> None:
    """The file size that the system allows stands in for the room that is left; nothing is reserved ahead."""
    script = (
        "import resource, sys, torch; from pathlib import Path; from rookery.checkpoint.write import write_checkpoint\n"
        "folder = Path(sys.argv[1])\n"
        "write_checkpoint(folder / 'step-1', 1, {'model': {'a': torch.ones(10)}}, {})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "write_checkpoint(folder / 'step-2', 2, {'model': {'a': torch.ones(10), 'b': torch.ones(1000)}}, {})"
    )
    ended = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "CheckpointError" in ended.stderr and "step-2: the checkpoint of step 2 could not be written" in ended.stderr
    assert "File too large" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert read_checkpoint(tmp_path / "step-1").tensors("model")["a"].sum() == 10


def test_atomic_text_is_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "best.json"
    write_atomically(file, "old")

    def dies(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rookery.checkpoint.files.force_to_disk", dies)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, "new")
    assert file.read_text() == "old"


def test_two_processes_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from rookery.checkpoint.files import write_atomically\n"
        "for _ in range(200): write_atomically(Path(sys.argv[1]), sys.argv[2] * 5000)"
    )
    path = tmp_path / "file.json"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, path, letter], stderr=subprocess.PIPE) for letter in "ab"
    ]
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [(b"", 0)] * 2
    assert path.read_text() in {"a" * 5000, "b" * 5000}
    assert list(tmp_path.iterdir()) == [path]
