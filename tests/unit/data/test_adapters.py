from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from naive_ingest import digests, edges_of

from rookery.config.loader import load_config
from rookery.data.adapters import fb15k237, higgs, kuairand, kuairand_history, lightgcn
from rookery.data.graph import Graph
from rookery.data.ingest import ingest
from rookery.data.ingest_config import IngestConfig
from rookery.errors import DataError

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def ingest_prepared(folder: Path, out: Path) -> Graph:
    return ingest(load_config(IngestConfig, folder / "ingest.yaml"), folder, out)


def real(name: str) -> Path:
    folder = REAL / name
    if not folder.is_dir():
        pytest.skip(f"needs the data set in {folder}")
    return folder


TRIPLES = {
    "train": [("/m/1", "/a/b./c/d", "/m/2"), ("/m/2", "/e", "/m/1")],
    "valid": [("/m/1", "/e", "/m/3")],
    "test": [("/m/4", "/e", "/m/2")],
}


class TestFb15k237:
    @pytest.fixture
    def raw(self, tmp_path) -> Path:
        (tmp_path / "raw").mkdir()
        for split, triples in TRIPLES.items():
            text = "".join("\t".join(triple) + "\n" for triple in triples)
            if split == "valid":  # plain and gzip files may stand side by side
                (tmp_path / "raw" / "valid.txt").write_text(text)
            else:
                (tmp_path / "raw" / f"{split}.txt.gz").write_bytes(gzip.compress(text.encode()))
        return tmp_path / "raw"

    def test_triples_come_through(self, raw, tmp_path):
        prepared = fb15k237.prepare(raw, tmp_path / "prepared")
        assert prepared.num_edges == {"test": 1, "train": 2, "valid": 1}
        graph = ingest_prepared(prepared.path, tmp_path / "graph")
        assert {split: edges_of(graph, split) for split in graph.splits} == TRIPLES
        assert graph.entity_types["entity"].num_entities == 4

    def test_a_missing_file_says_where_to_get_it(self, raw, tmp_path):
        (raw / "test.txt.gz").unlink()
        with pytest.raises(DataError, match=r"holds neither test.txt nor test.txt.gz; download .*microsoft.com"):
            fb15k237.prepare(raw, tmp_path / "prepared")
        assert not (tmp_path / "prepared").exists()

    def test_bad_lines_are_named_in_the_raw_file(self, raw, tmp_path):
        (raw / "valid.txt").write_text("/m/1\t/e\t/m/3\n/m/1\t/e\n")
        with pytest.raises(DataError, match=r"valid.txt, line 2: 2 columns where line 1 has 3"):
            fb15k237.prepare(raw, tmp_path / "prepared")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]

    def test_the_real_set(self, tmp_path):
        prepared = fb15k237.prepare(real("fb15k237"), tmp_path / "prepared")
        graph = ingest_prepared(prepared.path, tmp_path / "graph")
        assert {split: graph.num_edges(split) for split in graph.splits} == {
            "train": 272_115,
            "valid": 17_535,
            "test": 20_466,
        }
        assert graph.entity_types["entity"].num_entities == 14_541
        assert len(graph.relations) == 237


class TestHiggs:
    LINES = "223789 213163 1341446399 MT\n223789 213163 1341446400 RE\n376989 50329 1341532800 RT\n1 2 1341100800 RT\n"

    @pytest.fixture
    def raw(self, tmp_path) -> Path:
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "higgs-activity_time.txt.gz").write_bytes(gzip.compress(self.LINES.encode()))
        return tmp_path / "raw"

    def test_relations_and_days(self, raw, tmp_path):
        prepared = higgs.prepare(raw, tmp_path / "prepared")
        assert prepared.num_edges == {"retweet": 2, "mention": 1, "reply": 1}
        assert pq.read_table(prepared.path / "retweet.parquet").to_pydict() == {
            "lhs": [376989, 1],
            "rhs": [50329, 2],
            "time": [1341532800, 1341100800],
        }
        graph = ingest_prepared(prepared.path, tmp_path / "graph")
        assert edges_of(graph, "train") == [(1, "retweet", 2), (223789, "mention", 213163)]
        assert edges_of(graph, "valid") == [(223789, "reply", 213163)]
        assert edges_of(graph, "test") == [(376989, "retweet", 50329)]

    def test_an_unknown_kind_is_named(self, raw, tmp_path):
        (raw / "higgs-activity_time.txt.gz").write_bytes(gzip.compress(b"1 2 1341100800 QT\n"))
        with pytest.raises(DataError, match=r"line 1, column 4 \(relation\): unknown relation 'QT'"):
            higgs.prepare(raw, tmp_path / "prepared")

    def test_the_real_set(self, tmp_path):
        prepared = higgs.prepare(real("higgs"), tmp_path / "prepared")
        assert prepared.num_edges == {"mention": 171_237, "reply": 36_902, "retweet": 354_930}
        graph = ingest_prepared(prepared.path, tmp_path / "graph")
        assert {split: graph.num_edges(split) for split in graph.splits} == {
            "train": 410_134,
            "valid": 98_642,
            "test": 54_293,
        }
        assert graph.entity_types["user"].num_entities == 304_691


class TestKuaiRandHistory:
    @pytest.fixture
    def raw(self, tmp_path) -> Path:
        (tmp_path / "raw").mkdir()
        lists = pa.list_(pa.int64())
        columns = {
            "user_id": pa.array([3, 5], pa.int64()),
            "watch_seq": pa.array([[7, 7, 8], [9]], lists),
            "like_seq": pa.array([[], [9]], lists),
            "long_watch_seq": pa.array([[8], None], lists),
        }
        pq.write_table(pa.table(columns), tmp_path / "raw" / "user_sequences_before_20220425.parquet")
        return tmp_path / "raw"

    def test_an_edge_for_each_entry(self, raw, tmp_path):
        prepared = kuairand_history.prepare(raw, tmp_path / "prepared")
        found = {name: pq.read_table(prepared.path / f"{name}.parquet").to_pydict() for name in prepared.num_edges}
        assert found == {
            "watch": {"lhs": [3, 3, 3, 5], "rhs": [7, 7, 8, 9]},
            "like": {"lhs": [5], "rhs": [9]},
            "long_watch": {"lhs": [3], "rhs": [8]},
        }

    def test_files_that_will_not_do(self, raw, tmp_path):
        file = raw / "user_sequences_before_20220425.parquet"
        pq.write_table(pq.read_table(file).drop_columns("like_seq"), file)
        with pytest.raises(DataError, match=r"column 'like_seq' is absent; it must be list<"):
            kuairand_history.prepare(raw, tmp_path / "prepared")
        file.write_bytes(b"no parquet")
        with pytest.raises(DataError, match=r"not a Parquet file"):
            kuairand_history.prepare(raw, tmp_path / "prepared")
        file.unlink()
        with pytest.raises(DataError, match=r"raw: holds no user_sequences_before_20220425.parquet; see"):
            kuairand_history.prepare(raw, tmp_path / "prepared")
        assert not (tmp_path / "prepared").exists()

    def test_the_real_set(self, tmp_path):
        prepared = kuairand_history.prepare(real("kuairand"), tmp_path / "prepared")
        assert prepared.num_edges == {"watch": 817_187, "like": 22_534, "long_watch": 390_929}
        graph = ingest_prepared(prepared.path, tmp_path / "graph")
        assert graph.entity_types["user"].num_entities == 26_469
        parts = {}
        for split in graph.splits:
            edges = pq.read_table(graph.split_files(split)[0])
            parts[split] = np.unique(edges["lhs"].to_numpy() * graph.entity_types["video"].num_entities + edges["rhs"])
        assert len(parts["valid"]) / sum(map(len, parts.values())) == pytest.approx(0.05, abs=0.002)
        assert len(np.intersect1d(parts["train"], np.union1d(parts["valid"], parts["test"]))) == 0


class TestLightGcn:
    @pytest.fixture
    def raw(self, tmp_path) -> Path:
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "train.txt").write_text("0 5 3 4\n1 3\n\n2 \n7 1 2 3 4 5 6 8 9 10 11\n")
        (tmp_path / "raw" / "test.txt").write_text("0 6\n1 5 9")
        return tmp_path / "raw"

    def test_lines_become_edges(self, raw, tmp_path):
        prepared = lightgcn.prepare(raw, tmp_path / "prepared", valid_fraction=0)
        assert prepared.num_edges == {"train": 14, "test": 3}
        graph = ingest_prepared(prepared.path, tmp_path / "graph")
        train = [(0, 5), (0, 3), (0, 4), (1, 3)] + [(7, item) for item in (1, 2, 3, 4, 5, 6, 8, 9, 10, 11)]
        assert edges_of(graph, "train") == [(user, "interact", item) for user, item in train]
        assert edges_of(graph, "test") == [(0, "interact", 6), (1, "interact", 5), (1, "interact", 9)]
        assert list(graph.splits) == ["train", "test"]

    def test_a_share_of_each_user_is_held_out(self, raw, tmp_path):
        prepared = lightgcn.prepare(raw, tmp_path / "prepared", valid_fraction=0.3, seed=1)
        parts = {split: pq.read_table(prepared.path / f"{split}.parquet").to_pydict() for split in ("train", "valid")}
        edges = {split: list(zip(part["lhs"], part["rhs"], strict=True)) for split, part in parts.items()}
        whole = lightgcn.prepare(raw, tmp_path / "whole", valid_fraction=0)
        every = pq.read_table(whole.path / "train.parquet").to_pydict()
        assert sorted(edges["train"] + edges["valid"]) == sorted(zip(every["lhs"], every["rhs"], strict=True))
        # round(.3 * 3), round(.3 * 1) and round(.3 * 10) of users 0, 1 and 7
        assert Counter(parts["valid"]["lhs"]) == {0: 1, 7: 3}

    def test_nobody_is_left_without_a_train_edge(self, raw, tmp_path):
        prepared = lightgcn.prepare(raw, tmp_path / "prepared", valid_fraction=0.99)
        assert Counter(pq.read_table(prepared.path / "train.parquet")["lhs"].to_pylist()) == {0: 1, 1: 1, 7: 1}

    def test_the_seed_decides(self, raw, tmp_path):
        graphs = [
            ingest_prepared(
                lightgcn.prepare(raw, tmp_path / name, valid_fraction=0.4, seed=seed).path, tmp_path / f"{name}_g"
            )
            for name, seed in (("first", 1), ("again", 1), ("other", 5))
        ]
        assert digests(graphs[0]) == digests(graphs[1])
        assert edges_of(graphs[0], "valid") != edges_of(graphs[2], "valid")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("0 1\n1 x7\n", r"train.txt, line 2: 'x7' is not a row number"),
            ("0 1\n1 -7\n", r"train.txt, line 2: '-7' is not a row number"),
            ("0 1.5\n", r"train.txt, line 1: '1.5' is not a row number"),
            ("0 99999999999999999999\n", r"train.txt, line 1: '99999999999999999999' is not a row number"),
        ],
    )
    def test_bad_numbers(self, raw, text, message, tmp_path):
        (raw / "train.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            lightgcn.prepare(raw, tmp_path / "prepared")
        assert not (tmp_path / "prepared").exists()

    def test_fractions_that_cannot_be(self, raw, tmp_path):
        with pytest.raises(DataError, match=r"valid_fraction=1: must be at least 0 and below 1"):
            lightgcn.prepare(raw, tmp_path / "prepared", valid_fraction=1)

    def test_the_real_set(self, tmp_path):
        prepared = lightgcn.prepare(real("gowalla"), tmp_path / "prepared")
        assert prepared.num_edges["train"] + prepared.num_edges["valid"] == 810_128
        assert prepared.num_edges["valid"] / 810_128 == pytest.approx(0.1, abs=0.002)
        graph = ingest_prepared(prepared.path, tmp_path / "graph")
        assert graph.num_edges("test") == 217_242
        assert {name: info.num_entities for name, info in graph.entity_types.items()} == {
            "user": 29_858,
            "item": 40_981,
        }
        users = pq.read_table(prepared.path / "train.parquet").column("lhs").to_numpy()
        assert len(np.unique(users)) == 29_858


@pytest.mark.parametrize("adapter", [fb15k237, higgs, kuairand, kuairand_history, lightgcn])
def test_every_adapter_says_where_and_under_which_licence(adapter):
    assert "Download: https://" in adapter.__doc__
    assert "Licence: " in adapter.__doc__
    assert adapter.DOWNLOAD in adapter.__doc__
