"""``rookery twhin import-weights`` and ``export-weights``: tables and relations under the reference's names."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from reference_configs import TWHIN_YAML
from small_graph import NUM_ENTITIES, make_config, planted_splits, planted_triples, write_graph

from rookery.checkpoint.foreign import read_weights
from rookery.cli import main as command_line
from rookery.config.loader import parse_config
from rookery.errors import ConfigError, DataError
from rookery.twhin.config import TwhinConfig
from rookery.twhin.reference_weights import export_weights, import_weights
from rookery.twhin.train import load_run, train_twhin
from rookery.types import Side

DIM = 8
USERS, ITEMS = NUM_ENTITIES["user"], NUM_ENTITIES["item"]
TABLE = "model.large_embeddings.ebc.embedding_bags.{}.weight"


def state(seed: int = 0, prefix: str = "model.") -> dict[str, torch.Tensor]:
    """As the reference's model has it: random, two relations."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {TABLE.format("user"): USERS, TABLE.format("item"): ITEMS, "model.all_trans_embs": 2}
    return {
        name.replace("model.", prefix, 1): torch.randn(count, DIM, generator=generator)
        for name, count in shapes.items()
    }


def by_row_number(folder: Path, **model: object) -> TwhinConfig:
    """A run on bare row numbers, as the reference's."""
    edges = pa.table(dict(zip(("lhs", "rel", "rhs"), zip(*planted_triples(), strict=True), strict=True)))
    (folder / "edges").mkdir(parents=True)
    pq.write_table(edges, folder / "edges" / "part-0.parquet")
    optimizer = {"sgd": {"lr": 0.1}}
    table = {"embedding_dim": DIM, "optimizer": optimizer}
    data = {
        "runtime": {"device": "cpu"},
        "training": {"save_dir": str(folder / "run"), "num_train_steps": 2},
        "model": {
            "embeddings": {
                "tables": [{"name": name, "num_embeddings": count, **table} for name, count in NUM_ENTITIES.items()]
            },
            "relations": [
                {"name": "likes", "lhs": "user", "rhs": "item"},
                {"name": "follows", "lhs": "user", "rhs": "user"},
            ],
            "translation_optimizer": optimizer,
            "operator_side": "rhs",
            **model,
        },
        "train_data": {"data_root": str(folder / "edges"), "per_replica_batch_size": 64},
    }
    return parse_config(TwhinConfig, data, "by row number")


@pytest.mark.parametrize("prefix", ["model.", "", "module.model.", "_dmp_wrapped_module.model."])
def test_scores_are_those_of_the_reference(tmp_path: Path, prefix: str) -> None:
    """Its code adds the vector of a relation to the rhs: lhs · (rhs + r)."""
    torch.save(state(prefix=prefix), tmp_path / "weights.pt")
    taken = import_weights(by_row_number(tmp_path), tmp_path / "weights.pt")
    assert (taken.num_tensors, taken.missing, taken.surplus) == (3, (), ())
    loaded, given = load_run(tmp_path / "run"), state()
    users, items, r = (given[name] for name in given)
    assert loaded.step == 0
    for relation, (lhs, rhs) in enumerate(((users, items), (users, users))):
        expected = lhs.double() @ (rhs + r[relation]).double().T
        anchors, candidates = torch.arange(len(lhs)), torch.arange(len(rhs))
        found = loaded.model.score_candidates(Side.RHS, relation, anchors, candidates)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        found = loaded.model.score_candidates(Side.LHS, relation, candidates, anchors)
        torch.testing.assert_close(found.double(), expected.T, rtol=1e-5, atol=1e-5)


def test_there_and_back_and_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = by_row_number(tmp_path)
    torch.save(state(), tmp_path / "weights.pt")
    import_weights(config, tmp_path / "weights.pt")
    file = tmp_path / "back.safetensors"
    monkeypatch.setattr("sys.argv", ["rookery", "twhin", "export-weights", str(tmp_path / "run"), str(file), "--json"])
    with pytest.raises(SystemExit) as done:
        command_line.main()
    assert not done.value.code
    assert json.loads(capsys.readouterr().out) == {"out": str(file), "step": 0, "num_tensors": 3}
    back = read_weights(file)
    assert back.keys() == state().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state().items())
    assert train_twhin(config).step == 2
    moved = load_run(tmp_path / "run").model
    assert not torch.equal(moved.entity_rows("user"), state()[TABLE.format("user")])
    assert (moved.entity_rows("user") - state()[TABLE.format("user")]).abs().max() < 1


def test_with_the_configuration_of_the_reference_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "local.yaml").write_text(TWHIN_YAML)
    (tmp_path / "edges").mkdir()
    pq.write_table(pa.table({"lhs": [0, 4240], "rel": [0, 2], "rhs": [724, 0]}), tmp_path / "edges" / "part-0.parquet")
    tables = {TABLE.format("user"): torch.randn(4241, 4), TABLE.format("tweet"): torch.randn(725, 4)}
    torch.save({**tables, "model.all_trans_embs": torch.rand(3, 4)}, tmp_path / "weights.pt")
    arguments = ["import-weights", tmp_path / "weights.pt", tmp_path / "local.yaml", "--save-dir", tmp_path / "run"]
    monkeypatch.setattr("sys.argv", ["rookery", "twhin", *map(str, arguments), "--json"])
    with pytest.raises(SystemExit) as done:
        command_line.main()
    out, err = capsys.readouterr()
    assert not done.value.code, err
    assert json.loads(out)["num_tensors"] == 3
    model = load_run(tmp_path / "run").model
    assert torch.equal(model.entity_rows("tweet"), tables[TABLE.format("tweet")])


def test_a_graph_joins_rows_by_id(tmp_path: Path) -> None:
    """Rows of a graph go by degree, those of the file by id."""
    ids = {"user": torch.randperm(USERS).tolist(), "item": torch.randperm(ITEMS).tolist()}
    graph = write_graph(tmp_path / "graph", planted_splits(), ids=ids)
    config = make_config(graph, tmp_path / "run", {"model.operator_side": "rhs"})
    torch.save(state(), tmp_path / "weights.pt")
    import_weights(config, tmp_path / "weights.pt")
    model = load_run(tmp_path / "run").model
    for name, order in ids.items():
        assert torch.equal(model.entity_rows(name), state()[TABLE.format(name)][order])
    export_weights(tmp_path / "run", tmp_path / "back.pt")
    back = read_weights(tmp_path / "back.pt")
    assert all(torch.equal(back[name], tensor) for name, tensor in state().items())


def test_entities_that_the_file_has_not(tmp_path: Path) -> None:
    ids = {"user": [row * 3 for row in range(USERS)], "item": list(range(ITEMS))}
    graph = write_graph(tmp_path / "graph", planted_splits(), ids=ids)
    config = make_config(graph, tmp_path / "run", {"model.operator_side": "rhs"})
    torch.save(state(), tmp_path / "weights.pt")
    with pytest.raises(DataError, match=r"user\.weight has 20 rows, none for 13 entities of .*, such as 21; ingest"):
        import_weights(config, tmp_path / "weights.pt")
    assert not (tmp_path / "run").exists()
    import_weights(config, tmp_path / "weights.pt", partial=True)
    rows = load_run(tmp_path / "run").model.entity_rows("user")
    assert torch.equal(rows[:7], state()[TABLE.format("user")][:21:3])
    assert rows[7:].abs().max() < 1  # drawn with a deviation of 0.1


def test_rows_need_numbers(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph", planted_splits())
    torch.save(state(), tmp_path / "weights.pt")
    with pytest.raises(DataError, match="ids of user are string, and the rows of the reference are numbers"):
        import_weights(make_config(graph, tmp_path / "run", {"model.operator_side": "rhs"}), tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"comparator": "cosine"}, "model.comparator=cosine: the reference has dot alone"),
        (
            {"relations": [{"name": "likes", "lhs": "user", "rhs": "item", "operator": "diagonal"}]},
            "model.relations.likes.operator=diagonal: the reference has translation alone",
        ),
    ],
)
def test_models_that_the_reference_cannot_have(tmp_path: Path, model: dict[str, object], message: str) -> None:
    torch.save(state(), tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match=message):
        import_weights(by_row_number(tmp_path, **model), tmp_path / "weights.pt")


def test_the_other_side_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(state(), tmp_path / "weights.pt")
    import_weights(by_row_number(tmp_path, operator_side="lhs"), tmp_path / "weights.pt")
    assert "model.operator_side=lhs: the reference's code adds the vector of a relation to the rhs" in caplog.text


def test_shapes_are_compared(tmp_path: Path) -> None:
    torch.save({**state(), "model.all_trans_embs": torch.zeros(3, DIM)}, tmp_path / "weights.pt")
    with pytest.raises(DataError, match=r"all_trans_embs is \[3, 8\] there, \[2, 8\] in this configuration"):
        import_weights(by_row_number(tmp_path), tmp_path / "weights.pt")
