from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from rookery.errors import ConfigError, MissingExtra
from rookery.optim.config import Adagrad, Adam, OptimizerConfig, RowwiseAdagrad, Sgd
from rookery.parallel.config import ShardingConfig
from rookery.tables.backends import make_tables
from rookery.tables.local import LocalTables
from rookery.tables.plan import table_asked
from rookery.tables.refusals import TablesAsked, table_refusals

SGD = OptimizerConfig(sgd=Sgd())


def refusals(specs, **asked):
    fields = "model.embeddings"
    tables = [table_asked(spec, f"{fields}.tables.{spec.name}") for spec in specs]
    return table_refusals(TablesAsked(f"{fields}.backend", "torchrec", tables, ShardingConfig(), **asked))


def test_local_is_made_without_torchrec(make_spec, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tables = make_tables("local", [make_spec("user", SGD)], seed=0)
    assert isinstance(tables, LocalTables)


def test_absent_torchrec_is_named_with_the_command_that_brings_it(make_spec, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install --no-deps") as caught:
        make_tables("torchrec", [make_spec("user", SGD)], seed=0)
    assert "torchrec, fbgemm_gpu, tensordict" in str(caught.value)


def test_nothing_imports_torchrec_before_it_is_asked_for():
    script = "import sys, rookery.tables.backends; sys.exit('torchrec' in sys.modules or 'fbgemm_gpu' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    "optimizer",
    [SGD, OptimizerConfig(adagrad=Adagrad()), OptimizerConfig(rowwise_adagrad=RowwiseAdagrad())],
    ids=lambda optimizer: optimizer.kind,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_torchrec_can_do_is_not_refused(make_spec, optimizer, dtype):
    assert refusals([make_spec("user", optimizer, dtype=dtype)]) == []


@pytest.mark.parametrize(
    ("optimizer", "fields", "refused"),
    [
        (OptimizerConfig(adam=Adam()), {}, "optimizer.adam: "),
        (OptimizerConfig(sgd=Sgd(momentum=0.9)), {}, "optimizer.sgd.momentum=0.9: "),
        (OptimizerConfig(adagrad=Adagrad(eps=0)), {}, "optimizer.adagrad.eps=0: "),
        (OptimizerConfig(rowwise_adagrad=RowwiseAdagrad(eps=0)), {}, "optimizer.rowwise_adagrad.eps=0: "),
        (SGD, {"dtype": torch.bfloat16}, "data_type=bf16: "),
        (SGD, {"embedding_dim": 50}, "embedding_dim=50: fbgemm needs a multiple of 4; use 52"),
        (SGD, {"max_norm": 1.0}, "max_norm=1.0: "),
    ],
)
def test_refusal_names_field_value_and_remedy(make_spec, optimizer, fields, refused):
    (line,) = refusals([make_spec("user", optimizer, **fields)])
    assert line.startswith(f"model.embeddings.tables.user.{refused}")
    assert line.endswith(", or set model.embeddings.backend to local")


def test_other_devices_are_refused_before_a_process_group_exists(make_spec, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    with pytest.raises(ConfigError, match=r"runtime\.device=cuda: .*; set it to cpu"):
        make_tables("torchrec", [make_spec("user", SGD)], seed=0, device=torch.device("cuda:0"))


def test_every_problem_is_reported_at_once(make_spec, monkeypatch):
    specs = [make_spec("user", OptimizerConfig(adam=Adam())), make_spec("item", SGD, max_norm=1.0, embedding_dim=6)]
    lines = refusals(specs, gradient_accumulation=4)
    fields = [line.split(":")[0] for line in lines]
    assert fields == [
        "model.embeddings.tables.user.optimizer.adam",
        "model.embeddings.tables.item.embedding_dim=6",
        "model.embeddings.tables.item.max_norm=1.0",
        "training.gradient_accumulation=4",
    ]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    with pytest.raises(ConfigError, match=r"user\.optimizer\.adam(.|\n)*item\.max_norm"):
        make_tables("torchrec", specs, seed=0)
