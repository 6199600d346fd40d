"""Vectors of features against a loop over rows, wherever their table lives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_ranker import NUM_VECTORS, small_batch, small_config, small_model, small_vectors
from torch import Tensor

from rookery.ranker.batch import RankerFeatures
from rookery.ranker.config import RankerConfig
from rookery.ranker.embeddings import FeatureEmbeddings

SGD = {"sgd": {"lr": 0.5}}


def _features(**changes: Any) -> dict[str, Any]:
    """The features of the small ranker with some fields replaced."""
    features = small_config().features.model_dump(exclude_none=True)
    for name, update in changes.items():
        for entry in features["tables"] + features["embeddings"] + features["ragged"]:
            if entry["name"] == name:
                entry.update(update)
    return features


def _config(**changes: Any) -> RankerConfig:
    return small_config(features=_features(**changes))


def _naive(embeddings: FeatureEmbeddings, features: RankerFeatures, row: int, pooling: str) -> list[Tensor]:
    """The vectors of one row, its tag list pooled by ``pooling``."""
    item, tag = embeddings.small["<item>"], embeddings.small["<tag>"]
    item_id = item[features.discrete["item_id"][row]]
    seen = [item[each] for each in features.ragged["seen"][row].tolist() if each >= 0]
    attention = embeddings.attention["<seen>"]
    if seen:
        whole = torch.ones(1, len(seen), dtype=torch.bool)
        attended = attention(item_id.unsqueeze(0), torch.stack(seen).unsqueeze(0), whole)[0]
    else:
        attended = torch.zeros(6)
    tags = [tag[each] for each in features.ragged["tags"][row].tolist() if each >= 0]
    reduced = {
        "mean": lambda stacked: stacked.mean(0),
        "sum": lambda stacked: stacked.sum(0),
        "max": lambda stacked: stacked.max(0).values,
    }
    pooled = reduced[pooling](torch.stack(tags)) if tags else torch.zeros(3)
    joined = embeddings.joined["<author>"]
    author = features.joined["author"][row].item()
    vector = joined.missing if author == NUM_VECTORS else joined.vectors[author]
    centred = vector - vector.mean()
    normed = centred / (centred.square().mean() + 1e-5).sqrt() * joined.norm.weight + joined.norm.bias
    return [item_id, tag[features.discrete["tag"][row]], attended, pooled, normed]


@pytest.mark.parametrize("pooling", ["mean", "sum", "max"])
def test_vectors_against_a_loop_over_rows(pooling: str) -> None:
    model = small_model(_config(tags={"pooling": pooling})).eval()
    embeddings, features = model.network.embeddings, small_batch().features
    with torch.no_grad():
        embeddings.joined["<author>"].missing.normal_()
    ours = embeddings(features)
    naive = [_naive(embeddings, features, row, pooling) for row in range(features.num_rows)]
    expected = [torch.stack(column) for column in zip(*naive, strict=True)]
    assert tuple(each.shape[1] for each in ours) == embeddings.widths
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    weights = [torch.randn(each.shape, generator=torch.Generator().manual_seed(1)) for each in ours]
    parameters = [each for each in embeddings.parameters() if each.requires_grad]
    ours_grads = torch.autograd.grad(sum((w * v).sum() for w, v in zip(weights, ours, strict=True)), parameters)
    wanted_grads = torch.autograd.grad(sum((w * v).sum() for w, v in zip(weights, expected, strict=True)), parameters)
    for got, wanted in zip(ours_grads, wanted_grads, strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def _objective(vectors: list[Tensor]) -> Tensor:
    return torch.stack([(each * torch.linspace(-1, 1, each.numel()).view_as(each)).sum() for each in vectors]).sum()


def test_a_table_that_moves_in_the_backward_pass_moves_as_a_parameter() -> None:
    large = small_model(_config(item={"optimizer": SGD})).train()
    small = small_model(_config()).train()
    tables = large.network.embeddings.tables
    assert tables is not None
    with torch.no_grad():
        small.network.embeddings.small["<item>"].copy_(tables.rows("item"))
        for name, parameter in large.network.embeddings.named_parameters():
            dict(small.network.embeddings.named_parameters())[name].copy_(parameter)
    features = small_batch(3).features
    _objective(small.network.embeddings(features)).backward()
    start = tables.rows("item").clone()
    large.begin_step(0, 0, 1)
    _objective(large.network.embeddings(features)).backward()
    gradient = small.network.embeddings.small["<item>"].grad
    assert gradient is not None and gradient.abs().max() > 0
    torch.testing.assert_close(tables.rows("item"), start - 0.5 * gradient, rtol=1e-4, atol=1e-5)


def test_a_table_is_collected_over_micro_batches() -> None:
    once, twice = (small_model(_config(item={"optimizer": SGD})) for _ in range(2))
    batches = [small_batch(seed).features for seed in (4, 5)]
    for micro_step, features in enumerate(batches):
        twice.begin_step(0, micro_step, 2)
        _objective(twice.network.embeddings(features)).backward()
    start = once.network.embeddings.tables.rows("item").clone()
    moved = twice.network.embeddings.tables.rows("item") - start
    total = torch.zeros_like(start)
    for features in batches:
        fresh = copy.deepcopy(once)
        fresh.begin_step(0, 0, 1)
        _objective(fresh.network.embeddings(features)).backward()
        total += fresh.network.embeddings.tables.rows("item") - start
    assert total.abs().max() > 0
    torch.testing.assert_close(moved, total, rtol=1e-4, atol=1e-5)


def test_without_gradients_a_large_table_is_read_alone() -> None:
    model = small_model(_config(item={"optimizer": SGD})).eval()
    features = small_batch(3).features
    before = model.network.embeddings.tables.rows("item").clone()
    with torch.no_grad():
        vectors = model.network.embeddings(features)
    torch.testing.assert_close(vectors[0], before[features.discrete["item_id"]], rtol=0, atol=0)
    assert torch.equal(before, model.network.embeddings.tables.rows("item"))


def test_dropped_values_become_the_unknown_in_training_alone() -> None:
    model = small_model(_config(item={"dropout": 0.5}))
    features = small_batch(0, 4000).features
    unknown = model.network.embeddings.small["<item>"][-1].detach()
    is_unknown = (features.discrete["item_id"] == 19).float().mean().item()
    torch.manual_seed(0)
    dropped = (model.train().network.embeddings(features)[0] == unknown).all(1).float().mean().item()
    assert dropped == pytest.approx(is_unknown + (1 - is_unknown) / 2, abs=0.03)
    kept = (model.eval().network.embeddings(features)[0] == unknown).all(1).float().mean().item()
    assert kept == pytest.approx(is_unknown)


@pytest.mark.parametrize("author", [{}, {"trainable": True}, {"trainable": True, "optimizer": SGD}])
def test_joined_vectors_start_as_exported_and_move_if_asked(author: dict[str, Any]) -> None:
    model = small_model(_config(author={**author, "layer_norm": False})).train()
    embeddings, features = model.network.embeddings, small_batch(6, 40).features
    rows = features.joined["author"]
    there = rows < NUM_VECTORS
    assert there.any() and not there.all()

    def read() -> Tensor:
        with torch.no_grad():
            return embeddings(features)[-1]

    start = read()
    torch.testing.assert_close(start[there], small_vectors()["author"][rows[there]])
    assert start[~there].abs().max() == 0
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    model.begin_step(0, 0, 1)
    _objective(embeddings(features)).backward()
    optimizer.step()
    moved = (read() - start).abs().amax(1)
    assert (moved[~there] > 0).all()
    assert (moved[there] > 0).all() if author else moved[there].max() == 0


def test_lists_of_joined_ids_are_means_of_those_that_are_there() -> None:
    model = small_model(_config(author={"max_length": 3, "layer_norm": False}))
    joined, vectors = model.network.embeddings.joined["<author>"], small_vectors()["author"]
    with torch.no_grad():
        joined.missing.fill_(7.0)
    rows = torch.tensor([[1, 4, -1], [2, NUM_VECTORS, 3], [NUM_VECTORS, -1, -1], [-1, -1, -1]])
    expected = torch.stack(
        [vectors[[1, 4]].mean(0), vectors[[2, 3]].mean(0), torch.full((7,), 7.0), torch.full((7,), 7.0)]
    )
    torch.testing.assert_close(joined(rows, None), expected)
