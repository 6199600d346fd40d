from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rookery.errors import DataError
from rookery.train.sinks import JsonLines, TensorBoard


def test_lines_are_strict_json(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.start(0)
    sink.log(5, {"loss": 0.25, "broken": math.nan, "endless": math.inf})
    # Read before the file is closed: each line is with the system as soon as it is logged.
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 5, "loss": 0.25, "broken": null, "endless": null}\n'
    sink.close()


@pytest.mark.parametrize(("step", "kept"), [(0, []), (4, [2, 4]), (5, [2, 4]), (9, [2, 4, 6])])
def test_a_resumed_run_cuts_what_it_will_log_again(tmp_path: Path, step: int, kept: list[int]) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"step": {number}}}\n' for number in (2, 4, 6)) + '{"step": 2, "lo')
    sink = JsonLines(file)
    sink.start(step)
    sink.log(10, {})
    sink.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [*kept, 10]


@pytest.mark.parametrize("damage", [b"{", b"[1]", b"{}", b"5", b'{"step": null}', b"\xff\x00"])
def test_a_damaged_line_is_told_and_nothing_cut(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "metrics.jsonl"
    content = b'{"step": 2}\n' + damage + b'\n{"step": 6}\n'
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 is no metrics of a step .*; remove it"):
        JsonLines(file).start(4)
    assert file.read_bytes() == content


def test_a_resumed_run_hides_the_events_that_it_will_log_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        sink = TensorBoard(tmp_path)
        sink.start(start)
        for step in steps:
            sink.log(step, {"loss": 10.0 * start + step})
        sink.close()
    shown = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in shown] == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0), (5, 25.0)]
