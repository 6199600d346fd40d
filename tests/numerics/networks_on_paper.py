"""Networks as their papers write them: row by row, expert by expert, from the parameters of ours by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rookery.nn.config import (
    DcnConfig,
    DlrmConfig,
    MaskBlockConfig,
    MaskNetConfig,
    MlpConfig,
    MmoeConfig,
    PleConfig,
    TaskModelConfig,
)

Parameters = Callable[[str], Tensor]
Fields = tuple[tuple[int, int], ...]


def naive_network(
    config: TaskModelConfig, parameters: Mapping[str, Tensor], x: Tensor, fields: Fields, num_tasks: int
) -> Tensor:
    """What ``build_network`` makes of ``config``, in training, for ``x [batch, in]``."""
    p = parameters.__getitem__
    if config.mlp_config is not None:
        return naive_mlp(config.mlp_config, p, x)
    if config.mask_net_config is not None:
        return naive_mask_net(config.mask_net_config, p, x)
    if config.dcn_config is not None:
        return naive_dcn(config.dcn_config, p, x)
    if config.dlrm_config is not None:
        return naive_dlrm(config.dlrm_config, p, x, fields)
    if config.mmoe_config is not None:
        return naive_mmoe(config.mmoe_config, p, x, num_tasks)
    assert config.ple_config is not None
    return naive_ple(config.ple_config, p, x, num_tasks)


def under(p: Parameters, prefix: str, index: int | None = None) -> Parameters:
    """The parameters of a part; with ``index`` of one of the equal parts that are stacked there."""
    return lambda name: p(f"{prefix}.{name}") if index is None else p(f"{prefix}.{name}")[index]


def naive_linear(weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = [torch.stack([(unit * row).sum() for unit in weight]) for row in x]
    return torch.stack(rows) if bias is None else torch.stack([row + bias for row in rows])


def naive_mlp(config: MlpConfig, p: Parameters, x: Tensor) -> Tensor:
    place = itertools.count()
    for number in range(len(config.layer_sizes)):
        layer = under(p, f"layers.{next(place)}")
        x = naive_linear(layer("weight"), x, layer("bias"))
        if number < len(config.layer_sizes) - 1 or config.final_layer_activation:
            if config.batch_norm is not None:
                norm = under(p, f"layers.{next(place)}")
                x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
                if config.batch_norm.affine:
                    x = x * norm("weight") + norm("bias")
            next(place)
            x = x.clamp(min=0)
    return x


def naive_mask_net(config: MaskNetConfig, p: Parameters, x: Tensor) -> Tensor:
    """Blocks of equal configuration if they are side by side."""
    if config.use_parallel:
        parts = [naive_mask_block(c, under(p, "blocks.0"), i, x, x) for i, c in enumerate(config.mask_blocks)]
        out = torch.cat(parts, dim=1)
    else:
        out = x
        for number, block in enumerate(config.mask_blocks):
            out = naive_mask_block(block, under(p, f"blocks.{number}"), 0, out, x)
    return out if config.mlp is None else naive_mlp(config.mlp, under(p, "mlp"), out)


def naive_mask_block(config: MaskBlockConfig, p: Parameters, index: int, x: Tensor, m: Tensor) -> Tensor:
    def linear(name: str, inputs: Tensor) -> Tensor:
        part = under(p, name, index)
        return naive_linear(part("weight"), inputs, part("bias"))

    def norm(name: str, inputs: Tensor) -> Tensor:
        part = under(p, name, index)
        deviation = inputs - inputs.mean(1, keepdim=True)
        return deviation / (deviation.square().mean(1, keepdim=True) + 1e-5).sqrt() * part("weight") + part("bias")

    features = norm("input_norm", x) if config.input_layer_norm else x
    mask = linear("project", linear("aggregate", m).clamp(min=0))
    out = norm("norm", linear("hidden", features * mask))
    return out.clamp(min=0) if config.activation == "relu" else out


def naive_dcn(config: DcnConfig, p: Parameters, x: Tensor) -> Tensor:
    crossed = []
    for x0 in x:
        row = x0
        for number in range(config.poly_degree - 1):
            layer = under(p, f"cross.{number}")
            matrix = layer("up.weight")
            if config.projection_dim is not None:
                matrix = layer("up.weight") @ layer("down.weight")
            row = x0 * (matrix @ row + layer("up.bias")) + row
        crossed.append(row)
    out = torch.stack(crossed)
    if config.parallel_mlp is not None:
        out = torch.cat([out, naive_mlp(config.parallel_mlp, under(p, "parallel_mlp"), x)], dim=1)
    return out if config.output_mlp is None else naive_mlp(config.output_mlp, under(p, "output_mlp"), out)


def naive_dlrm(config: DlrmConfig, p: Parameters, x: Tensor, fields: Fields) -> Tensor:
    in_fields = {start + i for start, width in fields for i in range(width)}
    dense = [i for i in range(x.shape[1]) if i not in in_fields]
    own = [naive_mlp(config.bottom_mlp, under(p, "bottom_mlp"), x[:, dense])] if dense else []
    vectors = list(own)
    for number, (start, width) in enumerate(fields):
        field = x[:, start : start + width]
        if width != config.bottom_mlp.layer_sizes[-1]:
            field = naive_linear(p(f"projections.{number}.weight"), field)
        vectors.append(field)
    products = [(a * b).sum(1, keepdim=True) for a, b in itertools.combinations(vectors, 2)]
    return naive_mlp(config.top_mlp, under(p, "top_mlp"), torch.cat([*own, *products], dim=1))


def naive_mmoe(config: MmoeConfig, p: Parameters, x: Tensor, num_tasks: int) -> Tensor:
    experts = [naive_mlp(config.expert, under(p, "experts", e), x) for e in range(config.num_experts)]
    return torch.stack([naive_mixture(p("gates.weight")[task], x, experts) for task in range(num_tasks)])


def naive_mixture(gate: Tensor, x: Tensor, experts: list[Tensor]) -> Tensor:
    rows = []
    for number, row in enumerate(x):
        scores = [(unit * row).sum().exp() for unit in gate]
        rows.append(torch.stack([s / sum(scores) * e[number] for s, e in zip(scores, experts, strict=True)]).sum(0))
    return torch.stack(rows)


def naive_ple(config: PleConfig, p: Parameters, x: Tensor, num_tasks: int) -> Tensor:
    each, shared = config.num_task_experts, config.num_shared_experts
    states, common = [x] * num_tasks, x
    for number in range(config.num_levels):
        level = under(p, f"levels.{number}")

        def expert(index: int, state: Tensor, level: Parameters = level) -> Tensor:
            return naive_mlp(config.expert, under(level, "experts", index), state)

        own = [[expert(task * each + i, states[task]) for i in range(each)] for task in range(num_tasks)]
        both = [expert(num_tasks * each + i, common) for i in range(shared)]
        gates = level("gates.weight")
        mixed = [naive_mixture(gates[task], states[task], [*own[task], *both]) for task in range(num_tasks)]
        if number < config.num_levels - 1:
            every = [e for experts in own for e in experts] + both
            common = naive_mixture(level("shared_gate.weight")[0], common, every)
        states = mixed
    return torch.stack(states)
