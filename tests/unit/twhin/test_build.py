"""From a configuration to a job: what is checked first, which edges are read, what is scheduled and measured."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_graph import Triple, make_config, planted_splits, write_graph
from torch import Tensor

from rookery.data.graph import Graph
from rookery.errors import ConfigError, DataError, MissingExtra
from rookery.parallel.world import never
from rookery.tables import backends
from rookery.tables.protocol import initial_weight
from rookery.train.job import Job
from rookery.twhin.batch import TrainBatch
from rookery.twhin.build import build_job, build_model, check_backend, check_graph
from rookery.twhin.config import TwhinConfig
from rookery.twhin.evaluation import Evaluator
from rookery.twhin.reading import train_files
from rookery.twhin.train import train_twhin
from rookery.types import Side

CPU = torch.device("cpu")


@pytest.fixture
def planted(tmp_path: Path) -> Graph:
    return write_graph(tmp_path / "planted", planted_splits())


def job_of(config: TwhinConfig, graph: Graph | None) -> Job[TrainBatch]:
    return build_job(config, graph, build_model(config, CPU), CPU)


def columns_of(job: Job[TrainBatch], num_batches: int) -> list[dict[str, Tensor]]:
    return [next(job.stream) for _ in range(num_batches)]


MISFITS = [
    (
        {"model.relations.0.name": "loves"},
        "model.relations.0=loves user item: the graph has likes user item in this place",
    ),
    (
        {"model.relations.0.rhs": "user"},
        "model.relations.0=likes user user: the graph has likes user item in this place",
    ),
    ({"model.embeddings.tables.1.num_embeddings": 16}, "tables.item.num_embeddings=16: the graph has 15"),
    (
        {"model.relations": [{"name": "likes", "lhs": "user", "rhs": "item"}]},
        "model.relations: 1 relations, the graph has 2",
    ),
]


@pytest.mark.parametrize(("fields", "message"), MISFITS, ids=[message for _, message in MISFITS])
def test_a_configuration_of_another_graph_is_refused(
    planted: Graph, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    config = make_config(planted, tmp_path / "run", fields)
    with pytest.raises(ConfigError) as raised:
        train_twhin(config)
    assert message in str(raised.value)
    assert f"`rookery twhin init {planted.path}` writes a configuration that fits" in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_table_that_the_graph_does_not_have_is_refused(planted: Graph, tmp_path: Path) -> None:
    config = make_config(planted, tmp_path / "run")
    other = write_graph(tmp_path / "other", {"train": [(0, 0, 0)]}, relations=(("a", "x", "x"),), num_entities={"x": 1})
    with pytest.raises(ConfigError) as raised:
        check_graph(config, other)
    lines = str(raised.value).splitlines()
    assert lines[0] == "model.relations.0=likes user item: the graph has a x x in this place"
    assert "model.embeddings.tables.user: the graph has no such entity type" in lines
    assert len(lines) == 5


def test_what_the_torchrec_back_end_cannot_do_is_refused_at_once(planted: Graph, tmp_path: Path) -> None:
    fields = {"model.embeddings.backend": "torchrec", "training.gradient_accumulation": 2}
    with pytest.raises(ConfigError) as raised:
        make_config(planted, tmp_path / "run", fields, optimizer={"adam": {}}, embedding_dim=6, max_norm=1.0)
    lines = str(raised.value).splitlines()
    assert len(lines) == 2 * 3 + 1  # optimizer, dimension and norm of each table; accumulation
    assert all("set model.embeddings.backend to local" in line for line in lines)


def test_a_back_end_that_is_absent_is_named_with_the_command_that_brings_it(
    planted: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    config = make_config(planted, tmp_path / "run", {"model.embeddings.backend": "torchrec"})
    with pytest.raises(MissingExtra, match=r"rookery\[cluster\]"):
        check_backend(config)


@pytest.mark.parametrize(
    ("data_type", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_tables_are_what_the_configuration_says(
    planted: Graph, tmp_path: Path, data_type: str, dtype: torch.dtype
) -> None:
    fields = {"runtime.seed": 7, "model.embeddings.tables.1.init_scale": 0.5}
    config = make_config(planted, tmp_path / "run", fields, data_type=data_type, max_norm=2.0)
    model = build_model(config, CPU)
    for spec, table in zip(model.tables.specs, config.model.embeddings.tables, strict=True):
        assert (spec.name, spec.init_scale, spec.max_norm) == (table.name, table.init_scale, 2.0)
        assert model.entity_rows(spec.name).dtype == dtype
        assert torch.equal(model.entity_rows(spec.name), initial_weight(spec, seed=7))


def test_edges_come_from_the_train_split_of_the_graph(planted: Graph, tmp_path: Path) -> None:
    job = job_of(make_config(planted, tmp_path / "run", {"train_data.shuffle": False}), planted)
    rows = [torch.stack([batch["lhs"], batch["rel"], batch["rhs"]], dim=1) for batch in columns_of(job, 6)]
    assert [tuple(row) for row in torch.cat(rows).tolist()] == planted_splits()["train"]


@pytest.mark.parametrize("root", ["", "/*.parquet", "/part-[01].parquet"])
def test_edges_come_from_a_directory_or_a_glob(planted: Graph, tmp_path: Path, root: str) -> None:
    splits = {"train": planted_splits()["train"]}
    graph = write_graph(tmp_path / "files", splits, num_files=2)
    fields = {"graph": None, "train_data.data_root": f"{graph.path}/edges/train{root}", "train_data.shuffle": False}
    config = make_config(graph, tmp_path / "run", {**fields, "train_data.offset": 3, "train_data.limit": 40})
    assert train_files(config, None) == graph.split_files("train")
    job = job_of(config, None)
    assert job.stream.batches_per_epoch == 2
    lhs = torch.cat([batch["lhs"] for batch in columns_of(job, 2)])
    assert lhs.tolist() == [edge[0] for edge in splits["train"][3:43]]


def test_no_file_is_an_error_that_names_the_field(planted: Graph, tmp_path: Path) -> None:
    fields = {"graph": None, "train_data.data_root": str(tmp_path / "nowhere")}
    with pytest.raises(DataError, match=r"train_data\.data_root=.*nowhere: no file matches; give a directory of Parq"):
        train_twhin(make_config(planted, tmp_path / "run", fields))


def test_a_place_that_cannot_be_looked_into_is_told_with_the_override(planted: Graph, tmp_path: Path) -> None:
    fields = {"graph": None, "train_data.data_root": "ftp://host/edges/*"}
    message = r"^train_data\.data_root=ftp://host/edges/\*: must be a path.*: --set train_data\.data_root=PATH$"
    with pytest.raises(DataError, match=message):
        train_twhin(make_config(planted, tmp_path / "run", fields))


def edge_file(folder: Path, triples: list[Triple], kind: pa.DataType | None = None) -> None:
    folder.mkdir()
    columns = zip(*triples, strict=True)
    table = {name: pa.array(column, kind) for name, column in zip(("lhs", "rel", "rhs"), columns, strict=True)}
    pq.write_table(pa.table(table), folder / "edges.parquet", row_group_size=2)


WRONG_ROWS = [
    ((0, 2, 0), "row group 1, row 1, column 'rel' is 2, and model.relations has 2"),
    ((0, -1, 0), "row group 1, row 1, column 'rel' is -1, and model.relations has 2"),
    ((20, 0, 0), "row group 1, row 1, column 'lhs' is 20, and the table of its relation has 20"),
    ((-5, 0, 0), "row group 1, row 1, column 'lhs' is -5, and the table of its relation has 20"),
    ((0, 0, 15), "row group 1, row 1, column 'rhs' is 15, and the table of its relation has 15"),
    ((0, 1, 20), "row group 1, row 1, column 'rhs' is 20, and the table of its relation has 20"),
]


@pytest.mark.parametrize(("edge", "message"), WRONG_ROWS)
def test_numbers_out_of_range_are_refused_with_their_place(
    planted: Graph, tmp_path: Path, edge: Triple, message: str
) -> None:
    edge_file(tmp_path / "edges", [(19, 0, 14), (0, 1, 19), (1, 1, 15), edge])
    fields = {"graph": None, "train_data.data_root": str(tmp_path / "edges")}
    with pytest.raises(DataError) as raised:
        train_twhin(make_config(planted, tmp_path / "run", fields))
    assert f"{tmp_path / 'edges' / 'edges.parquet'}: {message}" in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [pa.int32(), pa.int16(), pa.int8(), pa.uint8()], ids=str)
def test_integers_of_any_width_are_row_numbers(planted: Graph, tmp_path: Path, kind: pa.DataType) -> None:
    losses = []
    for each in (kind, pa.int64()):
        edge_file(tmp_path / str(each), [(19, 0, 14), (0, 1, 19), (1, 1, 15), (3, 0, 2)] * 5, each)
        fields = {"graph": None, "train_data.data_root": str(tmp_path / str(each)), "training.num_train_steps": 3}
        losses.append(train_twhin(make_config(planted, tmp_path / f"run-{each}", fields)).loss)
    assert losses[0] == losses[1]


def test_floats_are_no_row_numbers(planted: Graph, tmp_path: Path) -> None:
    edge_file(tmp_path / "edges", [(19, 0, 14)], pa.float64())
    fields = {"graph": None, "train_data.data_root": str(tmp_path / "edges")}
    with pytest.raises(DataError, match="column 'lhs' is float64; write row numbers as integers"):
        train_twhin(make_config(planted, tmp_path / "run", fields))


def test_weights_of_the_edges_are_read_where_there_are_any(tmp_path: Path) -> None:
    train = planted_splits()["train"]
    weights = [1.0 + place for place in range(len(train))]
    graph = write_graph(tmp_path / "weighted", {"train": train}, weights=weights)
    job = job_of(make_config(graph, tmp_path / "run", {"train_data.shuffle": False}), graph)
    batch = job.transform(next(job.stream), job.stream.position())
    found = torch.cat([group.weight for group in batch.groups]).sort().values
    assert found.tolist() == weights[:32]


def test_a_schedule_for_each_table_and_one_for_the_relations(planted: Graph, tmp_path: Path) -> None:
    fields = {
        "model.embeddings.tables.0.optimizer": {"adagrad": {}, "learning_rate": {"constant": 0.3}},
        "model.embeddings.tables.1.optimizer": {"sgd": {"lr": 0.2}},
        "model.translation_optimizer": {"adam": {"lr": 0.1}},
    }
    job = job_of(make_config(planted, tmp_path / "run", fields), planted)
    assert {rate.name: rate.schedule(5) for rate in job.learning_rates} == {"user": 0.3, "item": 0.2, "relations": 0.1}
    for number, rate in enumerate(job.learning_rates):
        rate.apply(float(number))
    model = job.model
    assert [table.learning_rate for table in model.tables._tables.values()] == [0.0, 1.0]
    assert job.optimizers[0].param_groups[0]["lr"] == 2.0


@pytest.mark.parametrize(("num_eval_steps", "num_edges"), [(-1, 20), (1, 8), (2, 16), (9, 20)])
def test_num_eval_steps_limits_a_validation(
    planted: Graph, tmp_path: Path, num_eval_steps: int, num_edges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    evaluate = Evaluator.evaluate

    def counting(self: Evaluator, *arguments: Any) -> Any:
        seen.append(self.edges.num_edges)
        return evaluate(self, *arguments)

    monkeypatch.setattr(Evaluator, "evaluate", counting)
    fields = {
        "validation_data": {"split": "valid"},
        "training.validate_every_n": 1,
        "training.num_eval_steps": num_eval_steps,
        "train_data.per_replica_batch_size": 8,
    }
    job = job_of(make_config(planted, tmp_path / "run", fields), planted)
    assert job.validate is not None
    assert "mrr" in job.validate(never)
    assert seen == [num_edges]


def test_without_a_cadence_nothing_is_validated(planted: Graph, tmp_path: Path) -> None:
    assert job_of(make_config(planted, tmp_path / "run", {"validation_data": {}}), planted).validate is None


def test_an_unknown_split_is_refused_before_training(planted: Graph, tmp_path: Path) -> None:
    fields = {"validation_data": {"split": "dev"}, "training.validate_every_n": 1}
    with pytest.raises(DataError, match="no split 'dev'; this graph has train, valid"):
        train_twhin(make_config(planted, tmp_path / "run", fields))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sides", [["lhs", "rhs"], ["rhs"]])
def test_edges_in_order_of_queries_are_the_same_edges(planted: Graph, tmp_path: Path, sides: list[str]) -> None:
    fields = {
        "model.loss": {"softmax": {}},
        "train_data.global_negatives": "all",
        "train_data.in_batch_negatives": 0,
        "train_data.negative_sides": sides,
        "train_data.order": "queries",
    }
    job = job_of(make_config(planted, tmp_path / "run", fields), planted)
    assert (job.unit, job.stream.batches_per_epoch) == ("directed_edges", 6)
    expected = sorted((side, *edge) for side in sides for edge in planted_splits()["train"])
    for _ in range(2):
        found = []
        for _ in range(6):
            columns = next(job.stream)
            names = ["rhs" if code == 0 else "lhs" for code in columns["predicts"].tolist()]
            found += zip(names, *(columns[name].tolist() for name in ("lhs", "rel", "rhs")), strict=True)
            queries = [(name, rel, lhs if name == "rhs" else rhs) for name, lhs, rel, rhs in found]
        assert sorted(found) == expected
        changes = sum(one != other for one, other in pairwise(queries))
        assert changes == len(set(queries)) - 1  # the edges of a query come together


def test_batches_are_a_function_of_their_position(planted: Graph, tmp_path: Path) -> None:
    config = make_config(planted, tmp_path / "run")
    first, second = job_of(config, planted), job_of(config, planted)
    for _ in range(8):
        expected = first.transform(next(first.stream), first.stream.position())
    place = first.stream.position()
    second.stream.seek(type(place)(place.epoch, place.num_batches - 1, place.batch_size, place.num_rows, place.seed))
    found = second.transform(next(second.stream), second.stream.position())
    assert all(torch.equal(found.ids[name], expected.ids[name]) for name in expected.ids)
    for ours, theirs in zip(found.groups, expected.groups, strict=True):
        for side in Side:
            masks = zip(ours.candidates[side].masked, theirs.candidates[side].masked, strict=True)
            assert all(torch.equal(a, b) for mine, yours in masks for a, b in zip(mine, yours, strict=True))


def test_each_step_of_each_epoch_draws_negatives_of_its_own(planted: Graph, tmp_path: Path) -> None:
    job = job_of(make_config(planted, tmp_path / "run", {"train_data.negative_sides": ["rhs"]}), planted)
    draws = set()
    for _ in range(3 * 6):
        batch = job.transform(next(job.stream), job.stream.position())
        drawn = batch.groups[0].candidates[Side.RHS]
        draws.add(tuple(batch.ids[drawn.table][drawn.start : drawn.start + drawn.num_global].tolist()))
    assert len(draws) == 3 * 6
