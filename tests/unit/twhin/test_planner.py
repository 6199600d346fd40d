"""The planner against a loop over edges and candidates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rookery.twhin.batch import Group, QueryGroup, TrainBatch
from rookery.twhin.known import Edges, KnownEdges
from rookery.twhin.negatives import NegativeSampler
from rookery.twhin.planner import CODE_OF_SIDE, PREDICTS, BatchPlanner, NegativePlan, RelationPlan
from rookery.types import Side

Triple = tuple[int, int, int]

NUM_ENTITIES = {"user": 6, "item": 5}
# Number: tables, operator, row in its operator's parameters, weight. Two groups of two relations, two of one.
RELATIONS = [
    RelationPlan("user", "item", "translation", 0, 1.0, False),
    RelationPlan("user", "user", "translation", 1, 2.0, False),
    RelationPlan("user", "item", "linear", 0, 0.5, True),
    RelationPlan("user", "item", "translation", 2, 1.0, False),
    RelationPlan("user", "item", "linear", 1, 1.0, True),
]
BOTH = (Side.LHS, Side.RHS)


def edges_of(seed: int, count: int, relations: int = len(RELATIONS)) -> list[Triple]:
    generator = torch.Generator().manual_seed(seed)
    rel = torch.randint(relations, (count,), generator=generator).tolist()
    lhs = torch.randint(6, (count,), generator=generator).tolist()
    rhs = torch.randint(5, (count,), generator=generator).tolist()
    return list(zip(lhs, rel, rhs, strict=True))


def columns_of(edges: list[Triple], weights: list[float] | None = None) -> dict[str, Tensor]:
    lhs, rel, rhs = torch.tensor(edges, dtype=torch.int64).reshape(-1, 3).T.contiguous()
    weight = {} if weights is None else {"weight": torch.tensor(weights)}
    return {"lhs": lhs, "rel": rel, "rhs": rhs, **weight}


def make_planner(
    negatives: NegativePlan,
    known: list[Triple] | None = None,
    relations: list[RelationPlan] | None = None,
    seed: int = 3,
) -> BatchPlanner:
    degrees = {(table, side): torch.arange(1, size + 1) for table, size in NUM_ENTITIES.items() for side in Side}
    index = None if known is None else KnownEdges.build(Edges(*torch.tensor(known).T.contiguous()))
    return BatchPlanner(
        relations or RELATIONS, negatives, NegativeSampler(NUM_ENTITIES, degrees, alpha=0.5), seed=seed, known=index
    )


@dataclass
class NaiveGroup:
    """The edges of a group in order, by chunk."""

    chunks: list[list[Triple]]
    weights: list[float]


def naive_groups(edges: list[Triple], weights: list[float] | None, chunk_size: int) -> list[NaiveGroup]:
    groups = []
    for kind in sorted({(plan.lhs_table, plan.rhs_table, plan.operator) for plan in RELATIONS}):
        own = [
            (edge, (1.0 if weights is None else weights[place]) * RELATIONS[edge[1]].weight)
            for place, edge in enumerate(edges)
            if (RELATIONS[edge[1]].lhs_table, RELATIONS[edge[1]].rhs_table, RELATIONS[edge[1]].operator) == kind
        ]
        if not own:
            continue
        if kind[2] == "linear":  # one relation a chunk
            own.sort(key=lambda pair: pair[0][1])
        chunks: list[list[Triple]] = []
        for edge, _ in own:
            full = not chunks or len(chunks[-1]) == chunk_size
            if full or (kind[2] == "linear" and chunks[-1][-1][1] != edge[1]):
                chunks.append([])
            chunks[-1].append(edge)
        groups.append(NaiveGroup(chunks, [weight for _, weight in own]))
    return groups


def entity(edge: Triple, side: Side) -> int:
    return edge[0] if side is Side.LHS else edge[2]


def check_group(batch: TrainBatch, group: Group, naive: NaiveGroup, plan: NegativePlan, known: set[Triple]) -> None:
    edges = [edge for chunk in naive.chunks for edge in chunk]
    first = RELATIONS[edges[0][1]]
    assert (group.lhs_table, group.rhs_table, group.operator) == (first.lhs_table, first.rhs_table, first.operator)
    assert group.one_relation == first.one_relation
    assert group.relation.tolist() == [RELATIONS[rel].parameter_row for _, rel, _ in edges]
    assert group.weight is not None
    assert group.weight.tolist() == pytest.approx(naive.weights)
    bounds = [0]
    for chunk in naive.chunks:
        bounds.append(bounds[-1] + len(chunk))
    assert group.chunks == tuple(pairwise(bounds))
    assert tuple(group.candidates) == plan.sides
    for side in Side:
        rows = batch.ids[group.table(side)][group.start(side) : group.start(side) + len(edges)]
        assert rows.tolist() == [entity(edge, side) for edge in edges]
    for side in plan.sides:
        candidates = group.candidates[side]
        assert (candidates.table, candidates.num_in_batch) == (group.table(side), plan.num_in_batch)
        for number, chunk in enumerate(naive.chunks):
            start = candidates.start_of(number)
            drawn = batch.ids[candidates.table][start : start + candidates.num_global].tolist()
            if plan.num_global is None:
                assert drawn == list(range(NUM_ENTITIES[candidates.table]))
            rows = [entity(edge, side) for edge in chunk[: plan.num_in_batch]] + drawn
            masked = set(zip(*(part.tolist() for part in candidates.masked[number]), strict=True))
            assert masked == {
                (place, column)
                for place, edge in enumerate(chunk)
                for column, row in enumerate(rows)
                if row == entity(edge, side)
                or ((row, edge[1], edge[2]) if side is Side.LHS else (edge[0], edge[1], row)) in known
            }


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_edges=st.integers(1, 25),
    chunk_size=st.integers(1, 9),
    num_in_batch=st.integers(0, 6),
    num_global=st.none() | st.integers(0, 5),
    sides=st.sampled_from([BOTH, (Side.LHS,), (Side.RHS,)]),
    weighted=st.booleans(),
    mask_known=st.booleans(),
)
def test_a_batch_is_what_the_loop_makes(
    seed: int,
    num_edges: int,
    chunk_size: int,
    num_in_batch: int,
    num_global: int | None,
    sides: tuple[Side, ...],
    weighted: bool,
    mask_known: bool,
) -> None:
    if num_global is None or num_in_batch + num_global == 0:
        num_in_batch = int(num_global == 0)
    plan = NegativePlan(chunk_size, num_in_batch, num_global, sides, log_q=False)
    edges = edges_of(seed, num_edges)
    weights = [0.5 + place for place in range(num_edges)] if weighted else None
    known = edges + edges_of(seed + 1, 20) if mask_known else None
    batch = make_planner(plan, known)(columns_of(edges, weights), step=seed)
    naive = naive_groups(edges, weights, chunk_size)
    assert batch.num_edges == num_edges
    assert len(batch.groups) == len(naive)
    for group, expected in zip(batch.groups, naive, strict=True):
        check_group(batch, group, expected, plan, set(known or []))
    check_each_row_has_one_use(batch, plan)


def check_each_row_has_one_use(batch: TrainBatch, plan: NegativePlan) -> None:
    """The score writes the gradient of each looked-up row once and relies on it."""
    uses = {table: torch.zeros(len(ids), dtype=torch.int64) for table, ids in batch.ids.items()}
    for group in batch.groups:
        for side in Side:
            uses[group.table(side)][group.start(side) : group.start(side) + len(group.relation)] += 1
        for candidates in group.candidates.values():
            count = candidates.num_global * (1 if candidates.shared else len(group.chunks))
            uses[candidates.table][candidates.start : candidates.start + count] += 1
    assert all((used == 1).all() for used in uses.values())


SAMPLED = NegativePlan(chunk_size=4, num_in_batch=2, num_global=50, sides=BOTH, log_q=False)


def drawn_rows(batch: TrainBatch) -> list[int]:
    parts = [
        batch.ids[each.table][each.start : each.start + each.num_global * len(group.chunks)]
        for group in batch.groups
        for each in group.candidates.values()
    ]
    return torch.cat(parts).tolist()


def test_draws_are_a_function_of_seed_and_step() -> None:
    columns = columns_of(edges_of(0, 12))
    first, again = make_planner(SAMPLED), make_planner(SAMPLED)
    again(columns, step=4)
    assert drawn_rows(first(columns, step=7)) == drawn_rows(again(columns, step=7))
    others = [make_planner(SAMPLED)(columns, step=step) for step in range(5)]
    others.append(make_planner(SAMPLED, seed=4)(columns, step=0))
    assert len({tuple(drawn_rows(batch)) for batch in others}) == 6


def test_a_drawn_row_belongs_to_the_table_of_its_side() -> None:
    batch = make_planner(SAMPLED)(columns_of(edges_of(0, 40)), step=0)
    for group in batch.groups:
        for side, candidates in group.candidates.items():
            rows = batch.ids[candidates.table][candidates.start : candidates.start + candidates.num_global]
            assert candidates.table == group.table(side)
            assert set(rows.tolist()) == set(range(NUM_ENTITIES[candidates.table]))  # 50 draws of 5 or 6


def test_without_any_weight_there_is_none() -> None:
    relations = [replace(plan, weight=1.0) for plan in RELATIONS]
    batch = make_planner(SAMPLED, relations=relations)(columns_of(edges_of(0, 12)), step=0)
    assert [group.weight for group in batch.groups] == [None] * len(batch.groups)


def test_log_expected_is_the_log_of_the_mean_count() -> None:
    """Of 4,000 batches of edges drawn by degree, counted; degrees are 1, 2, … by row."""
    plan = NegativePlan(chunk_size=5, num_in_batch=3, num_global=4, sides=(Side.RHS,), log_q=True)
    planner = make_planner(plan, relations=RELATIONS[:1])
    degree = torch.arange(1, NUM_ENTITIES["item"] + 1).float()
    num_batches, counts, logs = 4000, torch.zeros(len(degree)), torch.zeros(len(degree))
    rhs = torch.multinomial(degree, 5 * num_batches, replacement=True, generator=torch.Generator().manual_seed(0))
    for step, own in enumerate(rhs.split(5)):
        batch = planner(
            {"lhs": torch.zeros(5, dtype=torch.int64), "rel": torch.zeros(5, dtype=torch.int64), "rhs": own}, step
        )
        candidates = batch.groups[0].candidates[Side.RHS]
        rows = torch.cat([own[:3], batch.ids["item"][candidates.start : candidates.start + 4]])
        counts += torch.bincount(rows, minlength=len(degree))
        logs[rows] = candidates.log_expected[0]
    share = degree / degree.sum()
    drawn = degree.sqrt() / degree.sqrt().sum()
    torch.testing.assert_close(logs, (3 * share + 4 * drawn).log())
    torch.testing.assert_close(counts / num_batches, logs.exp(), rtol=0.06, atol=0)


EVERY = NegativePlan(chunk_size=3, num_in_batch=0, num_global=None, sides=BOTH, log_q=False, group_queries=True)


def answered(batch: TrainBatch) -> list[tuple[Side, str, int, int, int, float]]:
    """(side, operator, parameter row, anchor, target, weight) of each edge of each group, and checks of its layout."""
    found = []
    for group in batch.groups:
        if isinstance(group, Group):
            for side in group.candidates:
                rows = {each: batch.ids[group.table(each)][group.start(each) :] for each in Side}
                for place, row in enumerate(group.relation.tolist()):
                    anchor, target = int(rows[side.other][place]), int(rows[side][place])
                    found.append((side, group.operator, row, anchor, target, 1.0))
            continue
        stop = group.candidate_start + group.num_candidates
        assert batch.ids[group.candidate_table][group.candidate_start : stop].tolist() == list(
            range(group.num_candidates)
        )
        anchors = batch.ids[group.anchor_table][group.anchor_start : group.anchor_start + len(group.relation)].tolist()
        assert len(set(zip(group.relation.tolist(), anchors, strict=True))) == len(anchors)
        check_query_chunks(group)
        for edge, query in enumerate(group.query_of_edge.tolist()):
            weight = 1.0 if group.weight is None else float(group.weight[edge])
            found.append(
                (
                    group.predicts,
                    group.operator,
                    int(group.relation[query]),
                    anchors[query],
                    int(group.target[edge]),
                    weight,
                )
            )
    return found


def check_query_chunks(group: QueryGroup) -> None:
    queries = [query for first, last, _, _ in group.chunks for query in range(first, last)]
    assert queries == list(range(len(group.relation)))
    for first, last, first_edge, last_edge in group.chunks:
        assert last - first <= EVERY.chunk_size
        assert set(group.query_of_edge[first_edge:last_edge].tolist()) == set(range(first, last))
    assert [group.chunks[0][2], group.chunks[-1][3]] == [0, len(group.target)]


def expected_answers(edges: list[Triple], side: Side, weighted: bool) -> list[tuple[Side, str, int, int, int, float]]:
    plans = [RELATIONS[rel] for _, rel, _ in edges]
    return [
        (
            side,
            plan.operator,
            plan.parameter_row,
            entity(edge, side.other),
            entity(edge, side),
            plan.weight if weighted else 1.0,
        )
        for edge, plan in zip(edges, plans, strict=True)
    ]


def test_grouped_queries_answer_each_edge_in_each_direction() -> None:
    edges = [edge for edge in edges_of(5, 60) if RELATIONS[edge[1]].operator == "translation"]
    batch = make_planner(EVERY)(columns_of(edges), step=0)
    expected = [answer for side in BOTH for answer in expected_answers(edges, side, weighted=True)]
    assert sorted(answered(batch), key=str) == sorted(expected, key=str)
    assert {group.share for group in batch.groups} == {1 / (2 * len(edges))}


@pytest.mark.parametrize("operator", ["translation", "linear"])
def test_directed_edges_are_answered_in_their_direction_alone(operator: str) -> None:
    """Batches ordered by query carry each direction as an edge of its own, also where queries cannot be grouped."""
    edges = [edge for edge in edges_of(6, 80) if RELATIONS[edge[1]].operator == operator]
    sides = [BOTH[place % 2] for place in range(len(edges))]
    codes = torch.tensor([CODE_OF_SIDE[side] for side in sides])
    batch = make_planner(EVERY)({**columns_of(edges), PREDICTS: codes}, step=0)
    expected = []
    for edge, side in zip(edges, sides, strict=True):
        expected += expected_answers([edge], side, weighted=operator == "translation")
    assert sorted(answered(batch), key=str) == sorted(expected, key=str)
    if operator == "translation":
        assert {group.share for group in batch.groups} == {1 / len(edges)}
