"""``rookery timeline build``, ``show`` and ``evaluate``."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rookery.cli.output import JsonFlag, emit, progress_console
from rookery.cli.run_flags import OverwriteFlag
from rookery.errors import UserError

if TYPE_CHECKING:
    from rookery.ranker.export import RankerExport
    from rookery.timeline.bundle import Bundle, BundleManifest
    from rookery.timeline.evaluation import TimelineEvaluation
    from rookery.timeline.posts import TimelinePost

_JOINED = "features.embeddings"

BundleArgument = Annotated[Path, typer.Argument(help="What `rookery timeline build` wrote.", show_default=False)]


class Order(enum.Enum):
    """What a timeline is ordered by."""

    SCORE = "score"
    RECENCY = "recency"


class Weights(enum.Enum):
    """A published set of weights; what the ranker does not predict is left out of it."""

    Y2023 = "2023"
    Y2026 = "2026"


def register(app: typer.Typer) -> None:
    """Add the group ``timeline``."""
    group = typer.Typer(
        no_args_is_help=True, help="A user's timeline: from candidates to an order that explains itself."
    )
    group.command("build")(_build)
    group.command("show")(_show)
    group.command("evaluate")(_evaluate)
    app.add_typer(group, name="timeline")


def _build(
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    catalog: Annotated[Path, typer.Option(help="The catalog of users and posts.", show_default=False)],
    ranker: Annotated[Path, typer.Option(help="An export of the ranker.", show_default=False)],
    twhin: Annotated[Path, typer.Option(help="An export of TwHIN.", show_default=False)],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML as docs/timeline.md describes it; left out: the defaults.", show_default=False),
    ] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Put everything that a timeline is served from into one folder."""
    from rookery.config.loader import load_config
    from rookery.timeline.bundle import build_bundle
    from rookery.timeline.config import TimelineConfig

    settings = TimelineConfig() if config is None else load_config(TimelineConfig, config)
    with progress_console.status("building"):
        manifest = build_bundle(out, catalog=catalog, ranker=ranker, twhin=twhin, config=settings, overwrite=overwrite)
    facts = {"out": out, "version": manifest.version, **manifest.model_dump(exclude={"files", "kind"})}
    emit(facts, as_json, lambda: _facts(out, manifest))


def _show(
    bundle: BundleArgument,
    user: Annotated[str, typer.Option(help="The user's id.", show_default=False)],
    num_posts: Annotated[int, typer.Option("-k", min=1, help="How many posts.")] = 20,
    order: Annotated[Order, typer.Option(help="By score, or the newest first.")] = Order.SCORE,
    weights: Annotated[
        Weights | None, typer.Option(help="A published set in place of the bundle's weights.", show_default=False)
    ] = None,
    diversity: Annotated[bool, typer.Option(help="Whether further posts of an author count less.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Print a user's timeline, and why each post stands where it does."""
    from rookery.timeline.scoring import weights_for
    from rookery.timeline.timeline import Timeline

    timeline = Timeline.open(bundle)
    chosen = None if weights is None else weights_for(weights.value, timeline.tasks)
    posts = timeline.timeline(user, num_posts, weights=chosen, diversity=diversity, order=order.value)
    result = {"user": timeline.user(user), "version": timeline.version, "posts": posts}
    emit(result, as_json, lambda: _posts_table(user, posts))


def _evaluate(
    bundle: BundleArgument,
    world: Annotated[
        Path, typer.Option(help="The world that the bundle is of: it knows the truth.", show_default=False)
    ],
    without_twhin: Annotated[
        Path | None, typer.Option(help="An export of a ranker without vectors, to compare with.", show_default=False)
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="How many users, drawn at random.")] = 500,
    num_posts: Annotated[int, typer.Option("-k", min=1, help="Posts of a timeline.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Draws the users.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Measure candidates and timelines against the true probabilities of a simulated world."""
    import numpy as np

    from rookery.timeline.bundle import Bundle
    from rookery.timeline.evaluation import evaluate_timelines
    from rookery.timeline.timeline import Timeline
    from rookery.world.world import World

    opened, truth = Bundle.open(bundle), World.open(world)
    opened.require_catalog_of(truth.catalog, world)
    other = None if without_twhin is None else Timeline(opened, _without_twhin(without_twhin, opened))
    num_users = len(opened.catalog.user_ids)
    drawn = np.random.default_rng(seed).choice(num_users, min(users, num_users), replace=False)
    columns = (TextColumn("user {task.completed} of {task.total}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=progress_console, transient=True) as progress:
        bar = progress.add_task("users", total=len(drawn))
        evaluation = evaluate_timelines(
            Timeline(opened),
            truth.true_probabilities,
            drawn,
            num_posts,
            without_twhin=other,
            seed=seed,
            notify=lambda done: progress.update(bar, completed=done),
        )
    result: dict[str, Any] = {"bundle": bundle, "version": opened.manifest.version, **vars(evaluation)}
    emit(result, as_json, lambda: _evaluation_tables(evaluation))


def _without_twhin(path: Path, bundle: Bundle) -> RankerExport:
    """The ranker to compare with. Raises ``UserError`` unless it differs from the bundle's by its vectors alone."""
    from rookery.ranker.export import RankerExport
    from rookery.ranker.export_manifest import RankerManifest

    manifest = RankerManifest.read(path)
    joined = [feature.input for feature in manifest.features if feature.field.startswith(_JOINED)]
    if joined:
        raise UserError(
            f"--without-twhin {path}: joins vectors by {', '.join(sorted(set(joined)))}; name the export of a ranker "
            "that was trained without features.embeddings"
        )
    tasks = bundle.manifest.tasks
    if set(manifest.task_names) != set(tasks):
        raise UserError(
            f"--without-twhin {path}: predicts {', '.join(sorted(manifest.task_names))}, the ranker of {bundle.path} "
            f"{', '.join(sorted(tasks))}; name the export of a ranker that was trained on the same tasks"
        )
    return RankerExport.open(path)


def _facts(out: Path, manifest: BundleManifest) -> Table:
    table = Table("", "", show_header=False)
    users = f"{manifest.num_users:,}, {manifest.num_users_with_vector:,} of them with a vector"
    recent = f"{manifest.num_recent_posts:,}, {manifest.num_recent_posts_with_vector:,} of them with a vector"
    for name, value in (
        ("written", str(out)),
        ("version", manifest.version),
        ("as of", manifest.now),
        ("users", users),
        ("posts", f"{manifest.num_posts:,}"),
        ("recent posts", recent),
    ):
        table.add_row(name, value)
    if manifest.weights_left_out:
        table.add_row("not predicted, so not weighed", ", ".join(manifest.weights_left_out))
    return table


def _posts_table(user: str, posts: list[TimelinePost]) -> Table:
    table = Table("", "post", "author", "source", "score", "× network", "× diversity", "because", title=f"For {user}")
    for post in posts:
        most = sorted(post.contributions.items(), key=lambda part: -abs(part[1]))[:3]
        because = ", ".join(f"{task.removeprefix('is_')} {added:+.3f}" for task, added in most)
        factors = (f"{post.network_factor:.2f}", f"{post.diversity_factor:.2f}")
        source = post.source.replace("_", " ")
        table.add_row(
            str(post.position + 1), post.post_id, post.author_id, source, f"{post.final_score:.3f}", *factors, because
        )
    return table


def _evaluation_tables(evaluation: TimelineEvaluation) -> Group:
    from rookery.timeline.evaluation import POLICIES

    title = f"True worth of {evaluation.k} posts, mean of {evaluation.num_users:,} users"
    policies = Table("policy", "shows", "worth", "of the oracle", "95%", title=title)
    for each in evaluation.policies:
        low, high = each.share_interval
        policies.add_row(
            each.policy, POLICIES[each.policy], f"{each.value:.3f}", f"{each.share:.1%}", f"{low:.1%} – {high:.1%}"
        )
    sizes = f"{evaluation.mean_candidates:.0f} candidates of {evaluation.mean_allowed:.0f} posts that may be shown"
    recall = Table("truly best", "found", "at random", title=f"Recall of candidates ({sizes})")
    outside = ("out of network, by TwHIN", "the most popular", "at random")
    for name in outside:
        recall.add_column(name)
    for row in evaluation.recall:
        shares = (row.all, row.all_chance, row.twhin, row.popular, row.out_of_network_chance)
        recall.add_row(str(row.best), *(f"{share:.1%}" for share in shares))
    return Group(policies, recall)
