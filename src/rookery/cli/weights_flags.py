"""Arguments, flags and tables of the commands that import and export weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Group
from rich.text import Text

WeightsArgument: TypeAlias = Annotated[
    Path, typer.Argument(help="A state dict as safetensors or as torch.save writes it.", show_default=False)
]
ConfigArgument: TypeAlias = Annotated[
    Path,
    typer.Argument(
        help="The configuration of the model that the weights are of, ours or the-algorithm-ml's.", show_default=False
    ),
]
OutArgument: TypeAlias = Annotated[
    Path, typer.Argument(help="The file to write: .safetensors, .pt or .pth.", show_default=False)
]
SaveDirFlag: TypeAlias = Annotated[
    Path | None, typer.Option(help="The run directory to make; replaces training.save_dir.")
]
OverridesFlag: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Replace one field of CONFIG.")
]
PartialFlag: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--partial", help="Take what there is: what is missing starts as in a new run, what is surplus stays."
    ),
]


def save_dir_override(save_dir: Path | None) -> list[str]:
    """What ``--save-dir`` sets; quoted: a folder named 2024 is no number."""
    return [] if save_dir is None else [f"training.save_dir={json.dumps(str(save_dir))}"]


def show_taken(result: Mapping[str, Any]) -> Group:
    """An import for people."""
    lines = [f"{result['save_dir']}: step 0 with {result['num_tensors']} tensors"]
    lines += [f"missing, started as in a new run: {name}" for name in result["missing"]]
    lines += [f"surplus, left in the file: {name}" for name in result["surplus"]]
    return Group(*map(Text, lines))


def show_written(result: Mapping[str, Any]) -> Text:
    """An export for people."""
    return Text(f"{result['out']}: {result['num_tensors']} tensors of step {result['step']:,}")
