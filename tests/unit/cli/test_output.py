from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.table import Table

from rookery.cli.output import emit, run_command
from rookery.errors import ConfigError, RookeryError


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Pair:
    left: int
    right: float


def never() -> Table:
    raise AssertionError("rendered although JSON was asked for")


def test_json_is_one_object_on_stdout(capsys):
    result = {
        "nan": float("nan"),
        "inf": float("inf"),
        "path": Path("a/b"),
        "colour": Colour.RED,
        "pairs": [Pair(1, 0.5)],
        "tuple": (1, None, "é"),
        3: True,
    }
    emit(result, as_json=True, render=never)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "nan": None,
        "inf": None,
        "path": "a/b",
        "colour": "red",
        "pairs": [{"left": 1, "right": 0.5}],
        "tuple": [1, None, "é"],
        "3": True,
    }


def test_a_table_in_a_pipe_is_not_cut_at_80_columns(capsys):
    table = Table("cell")
    table.add_row("x" * 120)
    emit({}, as_json=False, render=lambda: table)
    assert "x" * 120 in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("lr=-1: must be positive"), 2), (RookeryError("disk full"), 1)]
)
def test_an_error_on_purpose_is_one_line_and_its_code(error, code, capsys):
    def command() -> None:
        raise error

    assert run_command(command) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {error}\n"


def test_a_finished_command_returns_zero_and_ctrl_c_130():
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run_command(lambda: None) == 0
    assert run_command(interrupted) == 130


def test_our_own_mistakes_keep_their_traceback():
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(broken)
