"""``rookery config convert`` in this process: the same configuration, in our schema, commented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from reference_configs import SCHEMA, TWHIN_YAML, ranker_yaml, write_schema

from rookery.cli import main as command_line
from rookery.config.base import StrictModel
from rookery.config.loader import load_config
from rookery.ranker.config import RankerConfig
from rookery.ranker.from_reference import load_ranker_config
from rookery.twhin.config import TwhinConfig
from rookery.twhin.from_reference import load_twhin_config

Convert = Callable[..., tuple[int, str]]


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Convert:
    """Exit code and stderr of ``rookery config convert arguments``, where ``HOME`` and ``TML_BASE`` are set."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TML_BASE", str(tmp_path / "base"))
    write_schema(tmp_path / "base" / SCHEMA)
    (tmp_path / "twhin.yaml").write_text(TWHIN_YAML)
    (tmp_path / "ranker.yaml").write_text(ranker_yaml())

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["rookery", "config", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            command_line.main()
        return int(done.value.code or 0), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("name", "model", "load"), [("twhin", TwhinConfig, load_twhin_config), ("ranker", RankerConfig, load_ranker_config)]
)
def test_what_is_written_is_the_same_configuration(
    convert: Convert,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    model: type[StrictModel],
    load: Callable[..., StrictModel],
) -> None:
    old, new = tmp_path / f"{name}.yaml", tmp_path / "new" / "config.yaml"
    assert convert(old, new, "--set", "training.num_train_steps=7")[0] == 0
    written = load_config(model, new)
    assert written == load(old, ["training.num_train_steps=7"])
    text = new.read_text()
    assert "save_dir: ${HOME}/" in text  # another machine has another home
    monkeypatch.setenv("HOME", "/elsewhere")
    assert str(written.training.save_dir).startswith(str(tmp_path))  # type: ignore[attr-defined]
    assert str(load_config(model, new).training.save_dir).startswith("/elsewhere/")  # type: ignore[attr-defined]


def test_comments_stand_where_a_meaning_changed(convert: Convert, tmp_path: Path) -> None:
    convert(tmp_path / "twhin.yaml", tmp_path / "new.yaml")
    rows = (tmp_path / "new.yaml").read_text().splitlines()
    assert rows[:2] == ["# Written by `rookery config convert` from twhin.yaml.", "#"]
    assert any(row.startswith("# * training.eval_log_every_n: ") for row in rows[:15])
    place = rows.index("  num_epochs: 5")
    above = " ".join(row.strip("# ") for row in rows[place - 2 : place])
    assert above.startswith("training.num_epochs: is not used there; here training ends with it")
    assert max(map(len, rows)) <= 120


def test_a_file_that_is_there_is_replaced_only_when_told(convert: Convert, tmp_path: Path) -> None:
    new = tmp_path / "new.yaml"
    new.write_text("mine")
    code, err = convert(tmp_path / "twhin.yaml", new)
    assert code == 2
    assert err == f"error: {new}: exists already; name another file, or replace it with --overwrite\n"
    assert new.read_text() == "mine"
    assert convert(tmp_path / "twhin.yaml", new, "--overwrite")[0] == 0
    assert new.read_text().startswith("# Written by")
    assert sorted(path.name for path in tmp_path.glob("*new*")) == ["new.yaml"]


def test_a_file_of_ours_is_not_converted(convert: Convert, tmp_path: Path) -> None:
    convert(tmp_path / "ranker.yaml", tmp_path / "new.yaml")
    code, err = convert(tmp_path / "new.yaml", tmp_path / "newer.yaml")
    assert code == 2 and "is in Rookery's schema already" in err
    assert not (tmp_path / "newer.yaml").exists()


def test_nothing_is_written_of_a_file_that_is_wrong(convert: Convert, tmp_path: Path) -> None:
    (tmp_path / "base" / SCHEMA).unlink()
    code, err = convert(tmp_path / "ranker.yaml", tmp_path / "new.yaml")
    assert code == 2 and "--set train_data.records.schema_path=PATH" in err
    assert not (tmp_path / "new.yaml").exists()


def test_a_variable_that_stands_for_a_number_is_written_out(
    convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPS", "12")
    old = tmp_path / "twhin.yaml"
    old.write_text(TWHIN_YAML.replace("num_train_steps: 1_000", 'num_train_steps: "${STEPS}"'))
    assert convert(old, tmp_path / "new.yaml")[0] == 0
    assert load_config(TwhinConfig, tmp_path / "new.yaml").training.num_train_steps == 12
