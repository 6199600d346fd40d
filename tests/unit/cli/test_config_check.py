"""``rookery config check`` in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from rookery.cli import main as command_line

TWHIN = """\
training: {save_dir: run, num_train_steps: 10}
model:
  embeddings: {tables: [{name: user, num_embeddings: 10, embedding_dim: 4, optimizer: {sgd: {lr: 0.1}}}]}
  relations: [{name: follow, lhs: user, rhs: user}]
  translation_optimizer: {sgd: {lr: 0.1}}
train_data: {data_root: edges}
"""

TORCHREC = ["--set", "model.embeddings.backend=torchrec"]
TABLE = "model.embeddings.tables.user"

FEW_EACH = ["--set", "train_data.per_replica_batch_size=4", "--set", "parallel.num_lanes=9"]
QUERIES = [
    *["--set", "train_data={data_root: edges, order: queries, global_negatives: all, in_batch_negatives: 0}"],
    *["--set", "model.loss={softmax: {log_q: false}}"],
]


def torchrec(**fields: str) -> list[str]:
    """Flags that set the back end and fields of the only table."""
    flags = (["--set", f"model.embeddings.tables.0.{name}={value}"] for name, value in fields.items())
    return [*TORCHREC, *(part for flag in flags for part in flag)]


@pytest.mark.parametrize(
    ("overrides", "code", "said"),
    [
        ([], 0, "a configuration for rookery twhin train"),
        (["--set", "training.num_train_steps=0"], 2, "training.num_train_steps=0"),
        (["--set", "training.save_dir=s3://bucket/run"], 2, "must be a path of this machine, not a URL"),
        (TORCHREC, 0, "a configuration for rookery twhin train"),
        (torchrec(optimizer="{adam: {}}"), 2, f"{TABLE}.optimizer.adam: fbgemm has no fused Adam for CPU"),
        (torchrec(max_norm="1"), 2, f"{TABLE}.max_norm=1.0: fbgemm limits no norms on CPU"),
        (torchrec(embedding_dim="6"), 2, f"{TABLE}.embedding_dim=6: fbgemm needs a multiple of 4; use 8"),
        ([*TORCHREC, "--set", "runtime.device=cuda:1"], 2, "runtime.device=cuda:1: the torchrec back end runs on CPU"),
        (
            [*torchrec(optimizer="{rowwise_adagrad: {}}"), "--set", "parallel.sharding.default=column_wise"],
            2,
            "parallel.sharding.default=column_wise: table user: row-wise Adagrad would keep a sum for each part",
        ),
        (
            ["--set", "parallel.sharding.tables={nosuch: data_parallel}"],
            2,
            "parallel.sharding.tables.nosuch: there is no such table; the tables are user",
        ),
        (["--processes", "4"], 0, "a configuration for rookery twhin train, for 4 processes"),
        (["--per-machine", "4"], 2, "--per-machine=4: of how many in all? give --processes too"),
        # A file for several processes is none for one, but as it stands it is in order.
        (FEW_EACH, 0, "a configuration for rookery twhin train\n"),
        ([*FEW_EACH, "--processes", "1"], 2, "batch_size=4: fewer rows than the 9 lanes"),
        ([*FEW_EACH, "--processes", "3"], 0, "train, for 3 processes"),
        ([*TORCHREC, "--processes", "5"], 0, "train, for 5 processes"),  # of 10 rows two each
        (
            [*TORCHREC, "--processes", "7"],
            2,
            "parallel.sharding.default=row_wise: table user: 10 rows in blocks of 2 are 5 blocks, too few for 7",
        ),
        (
            [*torchrec(embedding_dim="8"), "--set", "parallel.sharding.tables.user=column_wise", "--processes", "3"],
            2,
            "parallel.sharding.tables.user=column_wise: embedding_dim=8 does not divide into multiples of 4 over 3",
        ),
        (
            [*TORCHREC, "--set", "parallel.sharding.default=table_row_wise", "--processes", "14", "--per-machine", "7"],
            2,
            "10 rows in blocks of 2 are 5 blocks, too few for 7",
        ),
        (
            [*TORCHREC, "--set", "parallel.sharding.default=table_row_wise", "--processes", "4", "--per-machine", "3"],
            2,
            "machines need equally many processes, not 3 of 4",
        ),
        (
            [*QUERIES, "--processes", "2"],
            2,
            "train_data.order=queries: it holds all edges in one process, of which there are 2; set it to edges",
        ),
        (["--set", "parallel.num_lanes=3", "--processes", "4"], 2, "num_lanes=3: fewer than the 4 ranks that share"),
        (
            ["--set", "train_data.per_replica_batch_size=2", "--set", "parallel.num_lanes=9", "--processes", "4"],
            2,
            "batch_size=8: fewer rows than the 9 lanes",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(
    overrides: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "twhin.yaml").write_text(TWHIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rookery", "config", "check", "twhin.yaml", *overrides])
    with pytest.raises(SystemExit) as done:
        command_line.main()
    told = capsys.readouterr()
    assert (done.value.code or 0) == code
    assert said in (told.err if code else told.out)
    assert {path.name for path in tmp_path.iterdir()} == {"twhin.yaml"}


def test_a_flag_that_is_a_url_is_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path has lost one stroke of it by then."""
    (tmp_path / "twhin.yaml").write_text(TWHIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rookery", "twhin", "train", "twhin.yaml", "--save-dir", "s3://bucket/run"])
    with pytest.raises(SystemExit) as done:
        command_line.main()
    assert done.value.code == 2
    assert "--save-dir s3://bucket/run: must be a path of this machine" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"twhin.yaml"}
