"""The reference's heavy ranker by its formulas, one after the other, on a state dict under its names.

A tensor is drawn when it is first asked for, with the name and the shape that the formula needs: what a model of the
configuration has is known without a model. Float64, as nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

VECTORS = ("user_embedding", "user_eng_embedding", "author_embedding")


@dataclass
class NaiveReference:
    """``model`` and ``labels`` are parts of a configuration, as YAML has them."""

    model: Mapping[str, Any]
    labels: Mapping[str, Mapping[str, float]]
    state: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, continuous: Tensor, binary: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
        """``[batch, tasks]``, outside of training."""
        there = [name for name in VECTORS if name in vectors]
        normed = [self.layer_norm(vectors[name].double(), f"_{name}_layer_norm") for name in there]
        x = torch.cat([self.features(continuous, binary), *normed], 1)
        sharing = self.model["multi_task_type"]
        shared = self.network(x, "_backbone", self.model["backbone"]) if sharing != "share_none" else None
        seen = {"share_none": [x], "share_all": [shared], "share_partial": [x, shared]}[sharing]
        return torch.cat([self.tower(torch.cat(seen, 1), task) for task in self.model["tasks"]], 1)

    def calibrated(self, logits: Tensor) -> Tensor:
        """Down-sampling undone: ``p r / (1 - p + p r)``."""
        p, columns = torch.sigmoid(logits), []
        for column, (task, rates) in enumerate(self.labels.items()):
            r = rates.get("neg_downsampling_rate", 1.0) / rates.get("pos_downsampling_rate", 1.0)
            self.keep(f"_calibrators.{safe(task)}.ratio", torch.tensor(r))
            columns.append(p[:, column] * r / (1 - p[:, column] + p[:, column] * r))
        return torch.stack(columns, 1)

    def tower(self, x: Tensor, task: str) -> Tensor:
        config = self.model["tasks"][task]
        logit = self.network(x, f"_towers.{safe(task)}", config)
        if config.get("affine_map") is not None:
            logit = logit * self.tensor(f"_affine_maps.{safe(task)}.weight", 1, 1)
            logit = logit + self.tensor(f"_affine_maps.{safe(task)}.bias", 1)
        return logit

    def features(self, continuous: Tensor, binary: Tensor) -> Tensor:
        kinds = self.model["featurization_config"].items()
        ((kind, config),) = ((name, each) for name, each in kinds if isinstance(each, Mapping))
        x = torch.where(torch.isfinite(continuous), continuous, 0.0).double()
        x = torch.sign(x) * torch.log1p(x.abs())
        if kind == "double_norm_log_config":
            before, number = "_preprocessor._before_concat_layers", 2
            if config.get("batch_norm_config") is not None:
                x = self.batch_norm(x, f"{before}.2.layer", config["batch_norm_config"].get("affine", True))
                number = 3
            clip = config["clip_magnitude"]
            self.keep(f"{before}.{number}.min_value", torch.tensor(-clip))
            self.keep(f"{before}.{number}.max_value", torch.tensor(clip))
            x = x.clamp(-clip, clip)
        x = torch.cat([x, binary.double()], 1)
        norm = config.get("layer_norm_config")
        if norm is None:
            return x
        learned = norm.get("center", True)
        return self.layer_norm(x, "_preprocessor.layer_norm.layer", norm["epsilon"], learned=learned)

    def network(self, x: Tensor, name: str, config: Mapping[str, Any]) -> Tensor:
        if config.get("mlp_config") is not None:
            return self.mlp(x, name, config["mlp_config"])
        mask_net = config["mask_net_config"]
        blocks = [(f"{name}._mask_blocks.{number}", block) for number, block in enumerate(mask_net["mask_blocks"])]
        if mask_net["use_parallel"]:
            out = torch.cat([self.mask_block(x, x, *block) for block in blocks], 1)
        else:
            out = x
            for block in blocks:
                out = self.mask_block(out, x, *block)
        return out if mask_net.get("mlp") is None else self.mlp(out, f"{name}._dense_layers", mask_net["mlp"])

    def mask_block(self, x: Tensor, m: Tensor, name: str, config: Mapping[str, Any]) -> Tensor:
        hidden = config.get("aggregation_size") or int(m.shape[1] * config["reduction_factor"])
        mask = self.linear(m, f"{name}._mask_layer.0", hidden).clamp(min=0)
        mask = self.linear(mask, f"{name}._mask_layer.2", x.shape[1])
        if config["input_layer_norm"]:
            x = self.layer_norm(x, f"{name}._input_layer_norm")
        return self.layer_norm(
            self.linear(x * mask, f"{name}._hidden_layer", config["output_size"]), f"{name}._layer_norm"
        )

    def mlp(self, x: Tensor, name: str, config: Mapping[str, Any]) -> Tensor:
        """Layers are numbered with their norms, activations and dropouts; the last is linear, or activated alone."""
        number, sizes = 0, config["layer_sizes"]
        for place, size in enumerate(sizes):
            x = self.linear(x, f"{name}.layers.{number}", size)
            number += 1
            if place == len(sizes) - 1:
                return x.clamp(min=0) if config.get("final_layer_activation") else x
            if config.get("batch_norm") is not None:
                x = self.batch_norm(x, f"{name}.layers.{number}", config["batch_norm"].get("affine", True))
                number += 1
            x = x.clamp(min=0)
            number += 1 + (config.get("dropout") is not None)
        raise AssertionError("no layers")

    def linear(self, x: Tensor, name: str, size: int) -> Tensor:
        return x @ self.tensor(f"{name}.weight", size, x.shape[1]).T + self.tensor(f"{name}.bias", size)

    def batch_norm(self, x: Tensor, name: str, affine: bool) -> Tensor:
        width = x.shape[1]
        mean, var = self.tensor(f"{name}.running_mean", width), self.tensor(f"{name}.running_var", width)
        self.keep(f"{name}.num_batches_tracked", torch.tensor(17))
        x = (x - mean) / torch.sqrt(var + 1e-5)
        return x * self.tensor(f"{name}.weight", width) + self.tensor(f"{name}.bias", width) if affine else x

    def layer_norm(self, x: Tensor, name: str, epsilon: float = 1e-5, *, learned: bool = True) -> Tensor:
        x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, correction=0, keepdim=True) + epsilon)
        if not learned:
            return x
        return x * self.tensor(f"{name}.weight", x.shape[1]) + self.tensor(f"{name}.bias", x.shape[1])

    def tensor(self, name: str, *shape: int) -> Tensor:
        full = f"model.{name}"
        if full not in self.state:
            generator = torch.Generator().manual_seed(len(self.state))
            drawn = torch.randn(shape, generator=generator)
            if len(shape) == 2:  # the rows stay as far apart as they were
                drawn = drawn * (2 / shape[1]) ** 0.5
            elif name.endswith("bias"):
                drawn = drawn * 0.3
            self.state[full] = drawn.abs() + 0.5 if name.endswith("running_var") else drawn
        assert self.state[full].shape == shape
        return self.state[full].double()

    def keep(self, name: str, value: Tensor) -> None:
        self.state[f"model.{name}"] = value


def safe(task: str) -> str:
    return task.replace(".", "__")
