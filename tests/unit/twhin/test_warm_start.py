"""Starting from another run or from a file of vectors: joined by id, weights yes, step no."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_graph import NUM_ENTITIES, log_lines, make_config, planted_splits, write_graph
from torch import Tensor

from rookery.checkpoint.checkpointer import load_checkpoint
from rookery.data.graph import Graph
from rookery.errors import ConfigError, DataError, RunNotFound
from rookery.twhin.build import build_job, build_model
from rookery.twhin.model import TwhinModel
from rookery.twhin.train import load_run, train_twhin
from rookery.twhin.warm_start import pull_to_earlier, start_from_elsewhere
from rookery.types import Side

CPU = torch.device("cpu")
# The second day: entities and relations in another order, some of each new, some users gone.
NEW_USERS = [f"user-{row}" for row in (19, 3, 100, 0, 101, 7, 102, 5, 103, 104, 2, *range(8, 18))]
NEW_ITEMS = [*(f"item-{row}" for row in range(100, 103)), *(f"item-{row}" for row in range(15))]
NEW_RELATIONS = (("follows", "user", "user"), ("shares", "user", "item"), ("likes", "user", "item"))


@pytest.fixture
def old_graph(tmp_path: Path) -> Graph:
    return write_graph(tmp_path / "old_graph", planted_splits())


@pytest.fixture
def new_graph(tmp_path: Path) -> Graph:
    rng = np.random.default_rng(1)
    triples = [(int(rng.integers(21)), rel, int(rng.integers(21 if rel == 0 else 18))) for rel in (0, 1, 2) * 30]
    return write_graph(
        tmp_path / "new_graph",
        {"train": triples},
        relations=NEW_RELATIONS,
        num_entities={"user": len(NEW_USERS), "item": len(NEW_ITEMS)},
        ids={"user": NEW_USERS, "item": NEW_ITEMS},
    )


@pytest.fixture
def old_run(old_graph: Graph, tmp_path: Path) -> Path:
    fields = {"model.operator_side": "both", "training.num_train_steps": 20, "training.checkpoint_every_n": 10}
    train_twhin(make_config(old_graph, tmp_path / "old_run", fields))
    return tmp_path / "old_run"


def warm(graph: Graph, source: Path, **fields: Any) -> TwhinModel:
    """A model as its training would start."""
    fields = {"model.operator_side": "both", "training.initial_checkpoint_dir": str(source), **fields}
    config = make_config(graph, source.parent / "new_run", fields)
    model = build_model(config, CPU)
    start_from_elsewhere(config, graph, model)
    return model


def fresh(graph: Graph, tmp_path: Path) -> TwhinModel:
    return build_model(make_config(graph, tmp_path / "new_run", {"model.operator_side": "both"}), CPU)


def test_entities_are_joined_by_id_and_new_ones_stay_random(
    old_run: Path, old_graph: Graph, new_graph: Graph, tmp_path: Path
) -> None:
    old, model, random = load_run(old_run).model, warm(new_graph, old_run), fresh(new_graph, tmp_path)
    for table, ids in (("user", NEW_USERS), ("item", NEW_ITEMS)):
        known = 0
        for row, name in enumerate(ids):
            number = int(name.split("-")[1])
            if number < NUM_ENTITIES[table]:
                assert torch.equal(model.entity_rows(table)[row], old.entity_rows(table)[number])
                known += 1
            else:
                assert torch.equal(model.entity_rows(table)[row], random.entity_rows(table)[row])
        assert known in (15, 16)


def test_relations_are_joined_by_name(old_run: Path, new_graph: Graph) -> None:
    old, model = load_run(old_run).model, warm(new_graph, old_run)
    for side in Side:
        assert torch.equal(model.relation_parameters(0, side), old.relation_parameters(1, side))
        assert torch.equal(model.relation_parameters(2, side), old.relation_parameters(0, side))
        assert model.relation_parameters(1, side).count_nonzero() == 0
    assert not torch.equal(old.relation_parameters(0, Side.LHS), old.relation_parameters(0, Side.RHS))


def test_a_relation_with_another_operator_starts_anew(old_run: Path, new_graph: Graph) -> None:
    model = warm(new_graph, old_run, **{"model.relations.2.operator": "diagonal"})
    assert model.relation_parameters(2, Side.RHS).tolist() == [1.0] * 8
    assert model.relation_parameters(0, Side.RHS).count_nonzero() > 0


def test_weights_yes_step_no(old_run: Path, new_graph: Graph, tmp_path: Path) -> None:
    """A warm start with a rate of 0 is the old run's weights at step 1, with the state of a first step."""
    optimizer = {"adam": {}, "learning_rate": {"constant": 0.0}}
    fields = {
        "model.operator_side": "both",
        "model.translation_optimizer": optimizer,
        "training.initial_checkpoint_dir": str(old_run),
        "training.num_train_steps": 1,
    }
    result = train_twhin(make_config(new_graph, tmp_path / "new_run", fields, optimizer=optimizer))
    assert (result.step, [line["step"] for line in log_lines(tmp_path / "new_run")]) == (1, [1])
    stored, start = load_checkpoint(tmp_path / "new_run"), warm(new_graph, old_run).tensors()
    for name, tensor in stored.tensors("model").items():
        assert torch.equal(tensor, start[name]), name
    assert int(stored.tensors("optimizer")["tables.user.step"]) == 1


def test_the_newest_checkpoint_counts_unless_one_is_named(old_run: Path, old_graph: Graph) -> None:
    for source, step in ((old_run, 20), (old_run / "checkpoints" / "step-000000010", 10)):
        model = warm(old_graph, source)
        assert torch.equal(model.entity_rows("user"), load_run(old_run, step).model.entity_rows("user"))
        assert torch.equal(
            model.relation_parameters(1, Side.LHS), load_run(old_run, step).model.relation_parameters(1, Side.LHS)
        )


def test_without_graphs_row_numbers_are_ids_and_new_entities_come_last(
    old_run: Path, old_graph: Graph, tmp_path: Path
) -> None:
    config = make_config(
        old_graph, tmp_path / "bare", {"graph": None, "train_data.data_root": str(old_graph.path / "edges" / "train")}
    )
    train_twhin(config)
    data = config.model_dump(mode="json")
    data["training"] |= {"initial_checkpoint_dir": str(tmp_path / "bare"), "save_dir": str(tmp_path / "new_run")}
    data["model"]["embeddings"]["tables"][0]["num_embeddings"] = 25
    longer = type(config).model_validate(data)
    model, random = build_model(longer, CPU), build_model(longer, CPU)
    start_from_elsewhere(longer, None, model)
    assert torch.equal(model.entity_rows("user")[:20], load_run(tmp_path / "bare").model.entity_rows("user"))
    assert torch.equal(model.entity_rows("user")[20:], random.entity_rows("user")[20:])


def test_a_resumed_run_does_not_start_over(old_run: Path, new_graph: Graph, tmp_path: Path) -> None:
    for name, stops in (("whole", [8]), ("cut", [3, 8])):
        for steps in stops:
            fields = {
                "model.operator_side": "both",
                "training.initial_checkpoint_dir": str(old_run),
                "training.num_train_steps": steps,
                "model.regularizer.pull": 0.3,
            }
            train_twhin(make_config(new_graph, tmp_path / name, fields))
    whole, cut = (load_checkpoint(tmp_path / name).tensors("model") for name in ("whole", "cut"))
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


def test_pull_adds_the_squared_distance_to_earlier_vectors(old_run: Path, new_graph: Graph, tmp_path: Path) -> None:
    """Value and gradient of ``strength * |x - earlier|² / edges`` over looked-up rows; new entities are free."""
    gradients: list[dict[str, Tensor]] = []
    losses = []
    for strength in (0.0, 0.3):
        fields = {"training.initial_checkpoint_dir": str(old_run), "model.regularizer.pull": strength}
        config = make_config(new_graph, tmp_path / "new_run", fields)
        model = build_model(config, CPU)
        pull_to_earlier(config, new_graph, model)
        received: dict[str, Tensor] = {}
        for name, table in model.tables._tables.items():
            table.receive = lambda ids, gradient, name=name, received=received: received.update({name: gradient})
        job = build_job(config, new_graph, model, CPU)
        batch = job.transform(next(job.stream), job.stream.position())
        loss, _ = model(batch)
        loss.backward()
        gradients.append(received)
        losses.append(loss.item())
    old, expected = load_run(old_run).model, 0.0
    for table, ids in (("user", NEW_USERS), ("item", NEW_ITEMS)):
        pulled = gradients[1][table] - gradients[0][table]
        for position, row in enumerate(batch.ids[table].tolist()):
            number = int(ids[row].split("-")[1])
            away = torch.zeros(8)
            if number < NUM_ENTITIES[table]:
                away = model.entity_rows(table)[row] - old.entity_rows(table)[number]
            expected += 0.3 * away.square().sum().item() / batch.num_edges
            torch.testing.assert_close(pulled[position], 2 * 0.3 * away / batch.num_edges, rtol=1e-4, atol=1e-6)
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01


def test_a_strong_pull_keeps_known_entities_where_they_were(old_run: Path, new_graph: Graph, tmp_path: Path) -> None:
    distances = []
    for strength in (0.0, 30.0):
        fields = {
            "model.operator_side": "both",
            "training.initial_checkpoint_dir": str(old_run),
            "training.num_train_steps": 20,
            "model.regularizer.pull": strength,
        }
        train_twhin(make_config(new_graph, tmp_path / str(strength), fields))
        moved = load_run(tmp_path / str(strength)).model.entity_rows("item")[3:]
        distances.append((moved - load_run(old_run).model.entity_rows("item")).norm().item())
    assert distances[1] < 0.3 * distances[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.regularizer.pull": 0.1}, "pull=0.1: there is nothing to pull to; set training.initial_checkpoint_dir"),
        (
            {"training.initial_checkpoint_dir": "nowhere"},
            "nowhere: no such directory; name the save_dir of a training run",
        ),
    ],
)
def test_a_start_from_nothing_is_refused(
    old_graph: Graph, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, RunNotFound)) as raised:
        train_twhin(make_config(old_graph, tmp_path / "run", fields))
    assert message in str(raised.value)


def test_another_dimension_is_refused(old_run: Path, old_graph: Graph, tmp_path: Path) -> None:
    config = make_config(
        old_graph, tmp_path / "run", {"training.initial_checkpoint_dir": str(old_run)}, embedding_dim=4
    )
    with pytest.raises(
        ConfigError, match=r"user\.embedding_dim=4: the run to start from has 8; use the same dimension"
    ):
        train_twhin(config)


def write_vectors(path: Path, ids: list[Any], dim: int = 8, kind: pa.DataType | None = None) -> Tensor:
    vectors = torch.randn(len(ids), dim, generator=torch.Generator().manual_seed(5))
    kind = kind or pa.list_(pa.float32(), dim)
    pq.write_table(pa.table({"id": ids, "vector": pa.array(vectors.tolist(), kind)}), path)
    return vectors


def pretrained_user(graph: Graph | None, base: Graph, tmp_path: Path, **table: Any) -> tuple[TwhinModel, TwhinModel]:
    """The model before and after."""
    fields: dict[str, Any] = {f"model.embeddings.tables.0.{name}": str(value) for name, value in table.items()}
    if graph is None:
        fields |= {"graph": None, "train_data.data_root": "x"}
    config = make_config(base, tmp_path / "run", fields)
    before, after = build_model(config, CPU), build_model(config, CPU)
    start_from_elsewhere(config, graph, after)
    return before, after


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32(), 8), pa.list_(pa.float16(), 8), pa.list_(pa.float64(), 8)], ids=str
)
def test_pretrained_vectors_are_joined_by_id(old_graph: Graph, tmp_path: Path, kind: pa.DataType) -> None:
    vectors = write_vectors(tmp_path / "v.parquet", ["user-7", "nobody", "user-0"], kind=kind)
    before, after = pretrained_user(old_graph, old_graph, tmp_path, pretrained=tmp_path / "v.parquet")
    expected = before.entity_rows("user").clone()
    expected[7], expected[0] = vectors[0], vectors[2]
    torch.testing.assert_close(after.entity_rows("user"), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(after.entity_rows("item"), before.entity_rows("item"))


def test_pretrained_vectors_are_joined_through_the_vocabulary_of_the_table(old_graph: Graph, tmp_path: Path) -> None:
    vectors = write_vectors(tmp_path / "v.parquet", ["b", "z", "a"])
    pq.write_table(pa.table({"row": [4, 2], "id": ["a", "b"]}), tmp_path / "vocab.parquet")
    before, after = pretrained_user(
        None, old_graph, tmp_path, pretrained=tmp_path / "v.parquet", vocab=tmp_path / "vocab.parquet"
    )
    expected = before.entity_rows("user").clone()
    expected[2], expected[4] = vectors[0], vectors[2]
    assert torch.equal(after.entity_rows("user"), expected)


def test_without_graph_and_vocabulary_ids_are_row_numbers(old_graph: Graph, tmp_path: Path) -> None:
    vectors = write_vectors(tmp_path / "v.parquet", [3, 19])
    before, after = pretrained_user(None, old_graph, tmp_path, pretrained=tmp_path / "v.parquet")
    expected = before.entity_rows("user").clone()
    expected[[3, 19]] = vectors
    assert torch.equal(after.entity_rows("user"), expected)


def break_file(name: str, path: Path) -> None:
    if name == "no file":
        return
    if name == "no Parquet":
        path.write_text("id,vector")
    elif name == "no vector":
        pq.write_table(pa.table({"id": [1]}), path)
    elif name == "another dimension":
        write_vectors(path, [1], dim=4)
    elif name == "lists of any length":
        write_vectors(path, [1], kind=pa.list_(pa.float32()))
    elif name == "null":
        pq.write_table(pa.table({"id": [1, 2], "vector": pa.array([[0.5] * 8, None], pa.list_(pa.float32(), 8))}), path)
    elif name == "ids that are no numbers":
        write_vectors(path, ["user-1"])
    else:
        write_vectors(path, [3, 20])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no file", "cannot be read as Parquet with columns id, vector"),
        ("no Parquet", "cannot be read as Parquet with columns id, vector"),
        ("no vector", "cannot be read as Parquet with columns id, vector"),
        (
            "another dimension",
            "column vector is fixed_size_list<element: float>[4], model.embeddings.tables.user needs",
        ),
        ("lists of any length", "column vector is list<element: float>, model.embeddings.tables.user needs lists of 8"),
        ("null", "row 1 has no vector; leave it out"),
        ("ids that are no numbers", "column id is string, and without a graph or a vocab ids are row numbers"),
        (
            "out of range",
            "row 1 is for row 20 of user, which has 20; use the vocabulary that the file was written with",
        ),
    ],
)
def test_pretrained_files_that_do_not_fit_are_refused(
    old_graph: Graph, tmp_path: Path, name: str, message: str
) -> None:
    break_file(name, tmp_path / "v.parquet")
    with pytest.raises(DataError) as raised:
        pretrained_user(None, old_graph, tmp_path, pretrained=tmp_path / "v.parquet")
    assert message in str(raised.value)
    assert str(tmp_path / "v.parquet") in str(raised.value)


@pytest.mark.parametrize("content", [None, {"id": ["a"]}, {"row": [99], "id": ["a"]}])
def test_a_vocabulary_that_does_not_fit_is_refused(old_graph: Graph, tmp_path: Path, content: dict | None) -> None:
    write_vectors(tmp_path / "v.parquet", ["a"])
    if content is not None:
        pq.write_table(pa.table(content), tmp_path / "vocab.parquet")
    with pytest.raises(
        DataError, match=r"v(ocab)?\.parquet: (cannot be read as Parquet with columns row, id|row 0 is for)"
    ):
        pretrained_user(None, old_graph, tmp_path, pretrained=tmp_path / "v.parquet", vocab=tmp_path / "vocab.parquet")
