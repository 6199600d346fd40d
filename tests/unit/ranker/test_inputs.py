from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from planted_impressions import NUM_ITEMS, item_id, planted_config, planted_log, write_log, write_vectors

from rookery.errors import ConfigError, DataError, RunNotFound
from rookery.ranker.config import RankerConfig
from rookery.ranker.inputs import Inputs
from rookery.ranker.partition import open_partition
from rookery.ranker.preprocess import Preprocessor

LOG = planted_log(800)


@pytest.fixture
def config(tmp_path: Path) -> RankerConfig:
    write_log(tmp_path / "log", LOG)
    (tmp_path / "mask.json").write_text("[true, false, true, true, true, true]")
    return planted_config(
        tmp_path / "log",
        tmp_path / "run",
        write_vectors(tmp_path / "vectors", LOG),
        preprocess__truncate_and_slice=[{"feature": "stats", "mask_path": str(tmp_path / "mask.json")}],
    )


def test_a_run_needs_neither_log_nor_export_nor_mask_again(config: RankerConfig, tmp_path: Path) -> None:
    built = Inputs.build(config)
    built.write(tmp_path / "run" / "inputs")
    elsewhere = config.validation_data["test"]
    columns = next(open_partition(config, elsewhere, Preprocessor(config, built), num_epochs=1))
    for name in ("vectors", "log"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "mask.json").unlink()
    opened = Inputs.open(tmp_path / "run" / "inputs")
    assert opened.id_types == built.id_types
    assert all(torch.equal(opened.vectors[name], built.vectors[name]) for name in built.vectors)
    before, after = (Preprocessor(config, inputs).batch(columns) for inputs in (built, opened))
    for one, other in ((before, after), (after, before)):
        assert torch.equal(one.features.continuous, other.features.continuous)
        for kind in ("discrete", "ragged", "joined"):
            found, expected = getattr(one.features, kind), getattr(other.features, kind)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in found)
    assert before.features.continuous.shape[1] == 6


def test_vocabularies_are_of_the_training_rows_alone(config: RankerConfig, tmp_path: Path) -> None:
    last = LOG.table.slice(LOG.num_rows - 1)
    place = last.column_names.index("country")
    late = pa.concat_tables([LOG.table] + [last.set_column(place, "country", pa.array(["xx"]))] * 5)
    pq.write_table(late, tmp_path / "log" / "part-9.parquet")
    assert "xx" not in Inputs.build(config).vocabularies["countries"].table.column("value").to_pylist()
    everything = config.model_copy(update={"train_data": config.train_data.model_copy(update={"rows": None})})
    assert "xx" in Inputs.build(everything).vocabularies["countries"].table.column("value").to_pylist()


def test_rows_of_an_earlier_run_keep_their_meaning(config: RankerConfig, tmp_path: Path) -> None:
    earlier = Inputs.build(config)
    changed = pa.array(np.resize(["zz", "zz", "jp"], LOG.num_rows))
    table = LOG.table.set_column(LOG.table.column_names.index("country"), "country", changed)
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "log").mkdir()
    pq.write_table(table, tmp_path / "log" / "new.parquet")
    shutil.rmtree(tmp_path / "vectors")
    write_vectors(tmp_path / "vectors", LOG, items=range(5, NUM_ITEMS))
    later = Inputs.build(config, earlier)
    assert later.vocabularies["countries"].table.equals(earlier.vocabularies["countries"].table)
    # Frozen vectors are those of the new export; trained ones are in the weights of the earlier run.
    assert later.joined["item_vector"].ids.tolist() == [item_id(item) for item in range(5, NUM_ITEMS)]
    assert later.joined["user_vector"] is earlier.joined["user_vector"]


def test_all_that_schemas_tell_is_told_at_once(config: RankerConfig, tmp_path: Path) -> None:
    table = LOG.table.drop_columns(["like"]).rename_columns(
        ["countrry" if name == "country" else name for name in LOG.table.column_names if name != "like"]
    )
    place = table.column_names.index("stats")
    table = table.set_column(place, "stats", pa.array([[1.0, 2.0]] * LOG.num_rows, pa.list_(pa.float32(), 2)))
    table = table.set_column(table.column_names.index("item_id"), "item_id", pa.array(["i1"] * LOG.num_rows))
    pq.write_table(table, tmp_path / "log" / "part-1.parquet")
    features = config.features.model_dump(mode="json")
    features["embeddings"][0]["table"] = "itm"
    wrong = RankerConfig.model_validate(
        {**config.model_dump(mode="json"), "features": features, "preprocess": {"downcast": {"sttats": "bool"}}}
    )
    with pytest.raises(ConfigError) as raised:
        Inputs.build(wrong)
    lines = str(raised.value).splitlines()
    for expected in (
        "preprocess.downcast.sttats: no numeric feature of this name; did you mean 'stats'?",
        "features.embeddings.item_vector.table=itm: ",
        "part-1.parquet: no column 'country'; did you mean 'countrry'? (features.discrete.country)",
        "part-1.parquet: no column 'like'; did you mean 'click'? (labels.like)",
        "part-1.parquet: column 'stats' is fixed_size_list",
        "part-1.parquet: column 'item_id' holds texts, and numbers before",
    ):
        assert sum(expected in line for line in lines) == 1, expected
    assert not (tmp_path / "run").exists()


def test_damage_is_found(config: RankerConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "inputs"
    Inputs.build(config).write(folder)
    file = next((folder / "vectors").iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"safetensors: .* bytes, .* were written; the run's inputs are damaged"):
        Inputs.open(folder)


def test_a_folder_without_inputs_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match=r"manifest.json.*save_dir"):
        Inputs.open(tmp_path / "inputs")


def test_writing_again_replaces(config: RankerConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "inputs"
    inputs = Inputs.build(config)
    inputs.write(folder)
    (folder / "vocabularies" / "stray.parquet").write_text("")
    inputs.write(folder)
    assert not (folder / "vocabularies" / "stray.parquet").exists()
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == {
        "vocabularies/countries.parquet",
        "vocabularies/categories.parquet",
        *(f"vectors/{name}.safetensors" for name in ("item_vector", "user_vector", "recent_vectors")),
    }
