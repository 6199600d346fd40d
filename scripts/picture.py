"""Draw docs/images/demo.svg: the vectors of the demo's run on a plane, coloured by community, beside its metrics.

    .venv/bin/python scripts/picture.py [--folder demo] [--out docs/images/demo.svg]

Runs the demo where it has not run yet. The plane is scikit-learn's t-SNE of the directions of the vectors, which sees
no community: the 20 spread over 19 equally wide directions, and two principal components would show a tenth of that.
"""

from __future__ import annotations

import argparse
import colorsys
from collections.abc import Sequence
from html import escape
from pathlib import Path

import pyarrow.parquet as pq
import torch
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn.functional import normalize

from rookery.data.graph import Graph
from rookery.data.planted import PlantedConfig
from rookery.twhin.demo import DemoResult, Metric, Truth, run_demo
from rookery.twhin.train import load_run

WIDTH, HEIGHT = 960, 470
PLANE, MARGIN = 420, 25
TABLE_X, BAR_WIDTH = 500, 200
INK, FAINT, LINE, CARD, BAR, TRUTH_BAR = "#1f2430", "#626b7a", "#d5d9e0", "#ffffff", "#3b6fb5", "#c9d8ec"
# Lines of a path that are too short to see leave their round or square ends.
SHAPES = {"user": ("round", 4.0), "item": ("square", 2.2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where the demo's graph and run are")
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.svg"))
    options = parser.parse_args()
    result = run_demo(options.folder, print)
    options.out.write_text(draw(result), encoding="utf-8")
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


def draw(result: DemoResult) -> str:
    """The whole picture as SVG; a card of its own colour, so that any page around it will do."""
    graph = Graph.open(result.folder / "graph")
    planted = PlantedConfig()
    truth = Truth(graph, planted, pq.read_table(result.folder / "edges" / "truth.parquet"))
    model = load_run(result.folder / "run").model
    rows = {name: model.entity_rows(name).float() for name in SHAPES}
    num_users, num_items = (len(rows[name]) for name in SHAPES)
    edges = sum(graph.num_edges(split) for split in graph.splits)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Helvetica, sans-serif">',
        f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10" fill="{CARD}" stroke="{LINE}"/>',
        *points(plane(rows), truth, planted.num_communities),
        text(TABLE_X, 62, "What TwHIN found in a planted graph", 19, bold=True),
        text(TABLE_X, 90, f"{num_users:,} users and {num_items:,} items in {planted.num_communities} communities,", 14),
        text(
            TABLE_X, 109, f"{edges:,} follows, likes and reposts, trained on {graph.num_edges('train'):,} of them.", 14
        ),
        *table(result.metrics),
        *legend(HEIGHT - 58),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def plane(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Positions ``[entities, 2]`` in the picture by table."""
    vectors = torch.cat(list(rows.values()))
    directions = normalize(vectors - vectors.mean(0))
    flat = torch.from_numpy(TSNE(init="pca", random_state=0).fit_transform(directions.numpy()))
    low, high = flat.min(0).values, flat.max(0).values
    scaled = MARGIN + (flat - low) / (high - low) * PLANE
    return dict(zip(rows, torch.split(scaled, [len(table) for table in rows.values()]), strict=True))


def points(positions: dict[str, Tensor], truth: Truth, num_communities: int) -> list[str]:
    """A path for each community and type: 10 bytes a point."""
    paths = []
    for name, (cap, width) in SHAPES.items():
        community = truth.community(name)
        for number in range(num_communities):
            own = positions[name][community == number].tolist()
            d = "".join(f"M{x:.1f} {y:.1f}h.1" for x, y in own)
            style = f'stroke="{color(number, num_communities)}" stroke-width="{width}" stroke-linecap="{cap}"'
            paths.append(f'<path d="{d}" fill="none" stroke-opacity=".75" {style}/>')
    return paths


def color(number: int, count: int) -> str:
    """Neighbouring numbers far apart on the wheel, in two lightnesses."""
    hue = (number * 7 % count) / count
    channels = colorsys.hls_to_rgb(hue, 0.42 if number % 2 else 0.56, 0.62)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


def table(metrics: Sequence[Metric]) -> list[str]:
    """A row a metric: its numbers, and how much of what the truth itself reaches."""
    parts, y = [], 148
    for metric in metrics:
        reached = BAR_WIDTH * min(1.0, metric.model / metric.truth)
        bar = f'x="{TABLE_X}" y="{y + 10}" height="14" rx="3"'
        bounds = f"truth {metric.truth:.3f}, chance {metric.chance:.3f}"
        parts += [
            text(TABLE_X, y, metric.name, 14, bold=True),
            f'<rect {bar} width="{BAR_WIDTH}" fill="{TRUTH_BAR}"/>',
            f'<rect {bar} width="{reached:.1f}" fill="{BAR}"/>',
            text(TABLE_X + BAR_WIDTH + 12, y + 22, f"{metric.model:.3f}", 15, bold=True),
            text(TABLE_X + BAR_WIDTH + 64, y + 22, bounds, 13, fill=FAINT),
        ]
        y += 66
    return parts


def legend(y: int) -> list[str]:
    marks = []
    for x, (name, (cap, width)) in zip((TABLE_X + 4, TABLE_X + 70), SHAPES.items(), strict=True):
        style = f'stroke="{FAINT}" stroke-width="{2 * width}" stroke-linecap="{cap}"'
        marks += [f'<path d="M{x} {y - 4}h.1" {style}/>', text(x + 10, y, f"{name}s", 13, fill=FAINT)]
    how = (
        "Left: t-SNE of the vectors. Colours are the planted communities, which",
        "training never saw. Bars: how much of what the true probabilities reach.",
    )
    return [*marks, *(text(TABLE_X, y + 20 + 16 * line, words, 12, fill=FAINT) for line, words in enumerate(how))]


def text(x: float, y: float, content: str, size: int, *, bold: bool = False, fill: str = INK) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}"{weight}>{escape(content)}</text>'


if __name__ == "__main__":
    main()
