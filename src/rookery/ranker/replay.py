"""A step of the ranker that was not taken, computed once more: which task, row or input is not finite."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rookery.config.loader import load_config
from rookery.ranker.batch import RankerBatch
from rookery.ranker.build import build_model, build_preprocessor
from rookery.ranker.config import RankerConfig
from rookery.ranker.draws import with_draws
from rookery.ranker.inputs import INPUTS, Inputs
from rookery.ranker.labels import downsample_lanes
from rookery.ranker.loss import row_losses
from rookery.ranker.model import RankerModel, RankerNetwork
from rookery.ranker.preprocess import Preprocessor
from rookery.ranker.reading import to_batch
from rookery.ranker.train import fill_new
from rookery.train.replay import (
    Finding,
    KeptBatch,
    Replay,
    ReplayedBatch,
    checkpoint_before,
    find_in_columns,
    find_in_weights,
    find_rows,
    largest_weight,
    read_kept,
)
from rookery.train.runtime import prepare_runtime


def replay_step(run: Path, step: int | None = None) -> Replay:
    """Compute the loss of the rows kept of ``step`` (the latest) with the newest weights from before it.

    Raises ``RunNotFound`` where nothing is kept,
    ``DataError`` for what cannot be read; without a checkpoint the training rows are read for their statistics.
    """
    kept = read_kept(run, step)
    config = load_config(RankerConfig, kept.config)
    device = prepare_runtime(config.runtime)
    inputs = Inputs.open(run / INPUTS)
    preprocessor = build_preprocessor(config, inputs)
    model = build_model(_uncompiled(config), preprocessor, inputs, device)
    checkpoint = checkpoint_before(run, kept.step)
    if checkpoint is None:
        fill_new(config, preprocessor, model)
    else:
        model.load_tensors(checkpoint.tensors("model"))
    weights = model.tensors()
    return Replay(
        kept.step,
        0 if checkpoint is None else checkpoint.step,
        find_in_weights(weights),
        largest_weight(weights),
        tuple(_replayed(config, preprocessor, model, each) for each in kept.batches),
    )


def _uncompiled(config: RankerConfig) -> RankerConfig:
    """The parts of a compiled network are not looked into one by one."""
    return config.model_copy(update={"model": config.model.model_copy(update={"compile": False})})


@torch.no_grad()
def _replayed(config: RankerConfig, preprocessor: Preprocessor, model: RankerModel, kept: KeptBatch) -> ReplayedBatch:
    batch, rows = _batch(config, preprocessor, kept)
    batch = with_draws(batch, kept.position).to(model.device)
    features = [feature.name for feature in (*config.features.looked_up, *config.features.embeddings)]
    watch = _Watch(model.train().network, features, rows, kept)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=config.runtime.enable_amp), watch.watching():
        loss, _ = model(batch)
    of_tasks = _of_tasks(model, batch, watch.logits, rows, kept)
    return ReplayedBatch(float(loss), kept.num_rows, (*find_in_columns(kept), *watch.findings, *of_tasks))


def _batch(config: RankerConfig, preprocessor: Preprocessor, kept: KeptBatch) -> tuple[RankerBatch, Sequence[int]]:
    """The batch that the step had, and the kept row behind each of its rows."""
    if config.parallel.readers is not None:  # they preprocess: what is kept is a batch
        return to_batch(kept.columns, preprocessor), range(kept.num_rows)
    batch = preprocessor.batch(kept.columns, training=True, position=kept.position, lanes=kept.lanes)
    downsample = config.preprocess.downsample_negatives
    if downsample is None:
        return batch, range(kept.num_rows)
    labels = preprocessor.check(kept.columns).labels
    return batch, downsample_lanes(downsample, labels, kept.position, kept.lanes).rows.tolist()


class _Watch:
    """Sees what the network computes of a batch: ``logits``, and ``findings``, what goes wrong first.

    That is vectors by feature, in the order of ``features``, and the first layer; ``rows`` are the kept ones.
    """

    def __init__(self, network: RankerNetwork, features: Sequence[str], rows: Sequence[int], kept: KeptBatch) -> None:
        self.logits = torch.empty(0)
        self.findings: list[Finding] = []
        self._network, self._features, self._rows, self._kept = network, features, rows, kept

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in self._network.named_modules():
                hook = module.register_forward_hook(functools.partial(self._see, name))
                stack.callback(hook.remove)
            yield

    def _see(self, name: str, module: nn.Module, _: object, output: Any) -> None:
        if module is self._network:
            self.logits = output.cpu()
        elif module is self._network.embeddings:
            self._add(self._find("feature", *each) for each in zip(self._features, output, strict=True))
        elif isinstance(output, Tensor) and not any(found.kind == "layer" for found in self.findings):
            self._add([self._find("layer", name, output)])

    def _add(self, findings: Iterable[Finding | None]) -> None:
        self.findings += [each for each in findings if each is not None]

    def _find(self, kind: str, name: str, output: Tensor) -> Finding | None:
        output = output.cpu()
        if output.dim() > 0 and len(output) == len(self._rows):
            return find_rows(kind, name, output, self._rows, self._kept)
        count = int(torch.count_nonzero(~output.isfinite()))  # [tasks, batch, width], or of no row at all
        return Finding(kind, name, count, output.numel()) if count else None


def _of_tasks(
    model: RankerModel, batch: RankerBatch, logits: Tensor, rows: Sequence[int], kept: KeptBatch
) -> list[Finding]:
    """Rows without a finite loss, by task."""
    losses = row_losses(logits, batch.labels.cpu(), batch.loss_weights.cpu(), model.loss.pos_weight.cpu())
    found = (find_rows("task", task, losses[:, place], rows, kept) for place, task in enumerate(model.tasks))
    return [each for each in found if each is not None]
