from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sharded import spread

from rookery.checkpoint.draft import Draft
from rookery.checkpoint.files import DamagedCheckpoint, StoredTensors, read_checkpoint
from rookery.checkpoint.shards import shards_of
from rookery.checkpoint.write import write_checkpoint
from rookery.parallel.process_group import default_process_group

WHOLE = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredTensors]:
    """The same tensor in one file, and in four files of a corner each."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_checkpoint(folder / "whole", 1, {"model": {"table": WHOLE, "scalar": torch.tensor(2.5)}}, {})
    draft = Draft(folder / "shards", 1, {})
    draft.begin()
    sums = {}
    for row, rows in ((0, 4), (4, 5)):
        for column, columns in ((0, 6), (6, 1)):
            about = {"DCP_SHARDING_INFO": f'{{"table": {{"saved_offsets": [{row}, {column}]}}}}'}
            corner = WHOLE[row : row + rows, column : column + columns]
            name = f"model/{row}-{column}.safetensors"
            sums[name] = draft.write(name, {"table": corner}, about)
    draft.publish(sums)
    return {name: read_checkpoint(folder / name).tensors("model") for name in ("whole", "shards")}


CUTS = st.tuples(st.integers(0, 9), st.integers(0, 9)), st.tuples(st.integers(0, 7), st.integers(0, 7))


@given(st.sampled_from(["whole", "shards"]), *CUTS)
@settings(deadline=None)
def test_every_part_is_that_of_the_whole(stored, layout, rows, columns):
    (top, bottom), (left, right) = sorted(rows), sorted(columns)
    part = stored[layout].part("table", [top, left], [bottom - top, right - left])
    assert torch.equal(part, WHOLE[top:bottom, left:right])


@pytest.mark.parametrize("layout", ["whole", "shards"])
def test_it_is_a_mapping_that_reads_nothing_to_answer(stored, layout):
    tensors = stored[layout]
    assert torch.equal(tensors["table"], WHOLE)
    assert (tensors.shape("table"), tensors.dtype("table")) == (WHOLE.shape, WHOLE.dtype)
    assert "table" in tensors and "absent" not in tensors
    for ask in (lambda: tensors["absent"], lambda: tensors.shape("absent"), lambda: tensors.part("absent", [0], [1])):
        with pytest.raises(KeyError):
            ask()


def test_a_scalar_is_a_part_of_itself(stored):
    assert stored["whole"].part("scalar", [], []).item() == 2.5


@pytest.mark.parametrize("layout", ["whole", "shards"])
def test_a_part_that_is_not_there_is_told(stored, layout):
    with pytest.raises(DamagedCheckpoint, match=r"of table, the part of \[3, 7\] from \[7, 0\] on is not stored whole"):
        stored[layout].part("table", [7, 0], [3, 7])


def test_shards_of_one_process_are_put_together(tmp_path: Path) -> None:
    """Of a back end that shards even in a world of one."""
    default_process_group()
    halves = spread(WHOLE, [[([0, 0], [9, 3]), ([0, 3], [9, 4])]])
    shards = shards_of(halves)
    assert set(shards.held) == {(0, 0), (0, 3)}
    assert torch.equal(shards.whole(), WHOLE)
    write_checkpoint(tmp_path / "step-1", 1, {"model": {"table": halves}}, {})
    assert torch.equal(StoredTensors(tmp_path / "step-1" / "model.safetensors")["table"], WHOLE)
    one = spread(WHOLE, [[([0, 0], [9, 7])]])
    assert shards_of(one).whole().data_ptr() == one.local_shards()[0].tensor.data_ptr()
