"""Weights of another program: what is read of a file, what is refused, and what the message says."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rookery.checkpoint.foreign import (
    Fixed,
    ForeignTensors,
    read_weights,
    renamed,
    take_over,
    without_wrappers,
    write_weights,
)
from rookery.errors import DataError, UserError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([0.5])}


def views() -> ForeignTensors:
    return ForeignTensors({name: torch.zeros_like(tensor) for name, tensor in WEIGHTS.items()})


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "weights.pt")
    return folder / "weights.pt"


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


class TestReading:
    def test_safetensors(self, tmp_path: Path) -> None:
        save_file(WEIGHTS, tmp_path / "weights.bin")
        assert_equal(read_weights(tmp_path / "weights.bin"), WEIGHTS)

    @pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
    def test_a_state_dict_alone_or_among_other_things(self, tmp_path: Path, wrapper: str | None) -> None:
        content = WEIGHTS if wrapper is None else {wrapper: WEIGHTS, "step": 7, "optimizer": {}}
        assert_equal(read_weights(saved(tmp_path, content)), WEIGHTS)

    def test_nothing_is_run(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "ran",)

        for content in ({"a": Bomb()}, {"model": WEIGHTS, "other": Bomb()}, Bomb()):
            with pytest.raises(
                DataError,
                match=r"holds more than tensors.* \(.*GLOBAL getattr was not an allowed.*\); write the state dict",
            ) as told:
                read_weights(saved(tmp_path, content))
            assert "weights_only" not in str(told.value)
            assert "safe_globals" not in str(told.value)
        (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(DataError, match=r"nor an archive of torch\.save"):
            read_weights(tmp_path / "bare.pkl")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([WEIGHTS["b"]], "is a list, not tensors by name"),
            ({"a": 3}, "'a' is a int, not a dense tensor"),
            ({3: WEIGHTS["b"]}, "3 is a Tensor, not a dense tensor"),
            ({"a": torch.eye(2).to_sparse()}, "'a' is a Tensor, not a dense tensor"),
        ],
    )
    def test_other_content(self, tmp_path: Path, content: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read_weights(saved(tmp_path, content))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\); name a file of weights"):
            read_weights(tmp_path / "absent.pt")
        with pytest.raises(DataError, match="is a folder; name a file of weights, and of a sharded checkpoint"):
            read_weights(tmp_path)

    def test_an_archive_that_would_unfold(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb/data/0", bytes(1 << 20))
        with pytest.raises(DataError, match=r"bomb/data/0 is compressed, as torch\.save never does"):
            read_weights(tmp_path / "bomb.pt")
        with zipfile.ZipFile(tmp_path / "names.pt", "w") as archive:
            archive.writestr("names/data.pkl", bytes((64 << 20) + 1))
        with pytest.raises(DataError, match=r"names/data\.pkl has 67,108,865 bytes of names"):
            read_weights(tmp_path / "names.pt")

    def test_a_truncated_file(self, tmp_path: Path) -> None:
        file = saved(tmp_path, WEIGHTS)
        file.write_bytes(file.read_bytes()[:-400])
        with pytest.raises(DataError, match=r"weights\.pt"):
            read_weights(file)

    # What is spoiled depends on the process: an archive has its number in it. One byte of it is the pickle's protocol.
    @pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_a_file_with_wrong_bytes_is_read_or_refused(self, tmp_path: Path, suffix: str) -> None:
        write_weights(ForeignTensors(WEIGHTS), tmp_path / f"good{suffix}", overwrite=False)
        good, file, random = (tmp_path / f"good{suffix}").read_bytes(), tmp_path / "bad", Random(0)
        messages = []
        for _ in range(300):
            bad = bytearray(good)
            for _ in range(random.choice([1, 2, 8])):
                bad[random.randrange(len(bad))] = random.randrange(256)
            file.write_bytes(bad[: random.randrange(len(bad))] if random.random() < 0.2 else bad)
            try:
                take_over(views(), read_weights(file), file, partial=True)
            except DataError as error:
                messages.append(str(error))
        assert 50 < len(messages) < 300
        assert [message for message in messages if str(file) not in message] == []


class TestTaking:
    def test_all(self) -> None:
        ours = views()
        found = take_over(ours, {name: tensor.double() for name, tensor in WEIGHTS.items()}, Path("w"), partial=False)
        assert (found.num_tensors, found.missing, found.surplus) == (2, (), ())
        assert_equal(dict(ours.views), WEIGHTS)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"a.weight": torch.zeros(3, 2)}, r"a\.weight is \[3, 2\] there, \[2, 3\] in this configuration; set the"),
            ({"b": torch.tensor([3])}, "b is int64 there, float32 in .* whose b has floating-point numbers, or write"),
            ({"b": torch.tensor([torch.nan])}, "b has 1 numbers that are not finite; take an earlier checkpoint"),
            ({"b": torch.tensor([1e300], dtype=torch.float64)}, r"b has numbers beyond torch\.float32"),
            ({"c": torch.zeros(1)}, "1 not in this configuration: c; add what they belong to, or pass --partial"),
        ],
    )
    def test_what_does_not_fit_changes_nothing(self, changed: dict[str, Tensor], message: str) -> None:
        ours = views()
        with pytest.raises(DataError, match=f"^w: {message}"):
            take_over(ours, {**WEIGHTS, **changed}, Path("w"), partial=False)
        assert not any(tensor.any() for tensor in ours.views.values())

    def test_all_problems_at_once(self) -> None:
        with pytest.raises(DataError) as raised:
            take_over(views(), {"a.weight": torch.zeros(1), "c": torch.zeros(1)}, Path("w"), partial=False)
        lines = str(raised.value).splitlines()
        assert [line.split(":")[1] for line in lines[1:]] == [" 1 missing", " 1 not in this configuration"]
        assert "a.weight is [1] there" in lines[0]

    def test_partial(self) -> None:
        ours = views()
        found = take_over(ours, {"b": WEIGHTS["b"], "c": torch.zeros(1)}, Path("w"), partial=True)
        assert (found.num_tensors, found.missing, found.surplus) == (1, ("a.weight",), ("c",))
        assert ours.views["b"].item() == 0.5
        assert not ours.views["a.weight"].any()

    def test_a_file_of_something_else(self) -> None:
        with pytest.raises(DataError, match="none of its 1 tensors is one of this model; the first is c"):
            take_over(views(), {"c": torch.zeros(1)}, Path("w"), partial=True)

    def test_what_the_configuration_says_too(self) -> None:
        fixed = {"ratio": Fixed(torch.tensor(0.1), "labels.a"), "counter": Fixed(torch.tensor(0))}
        ours = ForeignTensors(views().views, fixed)
        for ratio in (torch.tensor(0.1), torch.tensor([0.1], dtype=torch.float64)):
            found = take_over(ours, {**WEIGHTS, "ratio": ratio, "counter": torch.tensor(9)}, Path("w"), partial=False)
            assert found.surplus == ()
        with pytest.raises(DataError, match=r"ratio is 0\.2 there, 0\.1 in this configuration; change labels\.a"):
            take_over(ours, {**WEIGHTS, "ratio": torch.tensor(0.2)}, Path("w"), partial=True)


class TestWriting:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
    def test_slices_and_what_is_fixed(self, tmp_path: Path, suffix: str) -> None:
        whole = torch.arange(12.0).view(3, 4)
        foreign = ForeignTensors({"x": whole[1], "y": whole[1:]}, {"ratio": Fixed(torch.tensor(0.5))})
        file = tmp_path / "new" / f"weights{suffix}"
        assert write_weights(foreign, file, overwrite=False) == 3
        assert_equal(read_weights(file), {"x": whole[1], "y": whole[1:], "ratio": torch.tensor(0.5)})
        assert file.stat().st_size < 4096
        assert [each.name for each in file.parent.iterdir()] == [file.name]

    def test_places_that_cannot_be(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"the suffix says how it is written: one of \.safetensors, \.pt, \.pth"):
            write_weights(views(), tmp_path / "weights", overwrite=False)
        file = saved(tmp_path, WEIGHTS)
        with pytest.raises(UserError, match="exists; name another file, or pass --overwrite"):
            write_weights(views(), file, overwrite=False)
        assert write_weights(views(), file, overwrite=True) == 2
        with pytest.raises(UserError, match="cannot be written"):
            write_weights(views(), file / "below.pt", overwrite=False)


@pytest.mark.parametrize(
    "name", ["model._x.weight", "_x.weight", "module.model._x.weight", "module._x.weight", "model.model._x.weight"]
)
def test_wrappers_are_no_part_of_a_name(name: str) -> None:
    assert without_wrappers(name, ("module",), "model") == "model._x.weight"


def test_two_names_of_one_tensor() -> None:
    stored = {"x": torch.zeros(1), "module.x": torch.zeros(1)}
    with pytest.raises(DataError, match=r"w: x and module\.x are the same tensor"):
        renamed(stored, dict.fromkeys(stored, "model.x"), Path("w"))
