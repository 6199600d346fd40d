"""Metrics of binary predictions by plain loops over rows and pairs of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

EPSILON = 2.0**-24

Row = tuple[float, bool, float]
"""Probability, label, weight."""


def naive_metrics(rows: Sequence[Row], num_bins: int = 20) -> dict[str, float]:
    """All metrics that need no users."""
    weight = sum(w for _, _, w in rows)
    labels = sum(w * y for _, y, w in rows)
    predictions = sum(w * p for p, _, w in rows)
    loss = ratio(sum(w * cross_entropy(p, y) for p, y, w in rows), weight)
    scale = ratio(labels, predictions)
    scaled = ratio(sum(w * cross_entropy(scale * p, y) for p, y, w in rows), weight)
    return {
        "ctr": ratio(labels, weight),
        "mean_prediction": ratio(predictions, weight),
        "calibration": ratio(predictions, labels),
        "logloss": loss,
        "rce": relative(loss, ratio(labels, weight)),
        "nrce": relative(scaled, ratio(labels, weight)),
        "ece": naive_ece(rows, num_bins),
        "auroc": naive_auroc(rows),
        "prauc": naive_average_precision(rows),
    }


def naive_auroc(rows: Sequence[Row]) -> float:
    wins = pairs = 0.0
    for p, y, w in rows:
        for other, label, v in rows:
            if y and not label:
                pairs += w * v
                wins += w * v * ((p > other) + (p == other) / 2)
    return ratio(wins, pairs)


def naive_average_precision(rows: Sequence[Row]) -> float:
    """Precision at each threshold, times the recall that it adds."""
    positives = sum(w for _, y, w in rows if y)
    total = before = 0.0
    for threshold in sorted({p for p, _, _ in rows}, reverse=True):
        found = sum(w for p, y, w in rows if y and p >= threshold)
        taken = sum(w for p, _, w in rows if p >= threshold)
        if found > before:
            total += (found - before) * found / taken
            before = found
    return ratio(total, positives)


def naive_ece(rows: Sequence[Row], num_bins: int) -> float:
    total = 0.0
    for number in range(num_bins):
        inside = [row for row in rows if min(int(row[0] * num_bins), num_bins - 1) == number]
        weight = sum(w for _, _, w in inside)
        if weight:
            mean_label = sum(w * y for _, y, w in inside) / weight
            mean_prediction = sum(w * p for p, _, w in inside) / weight
            total += weight * abs(mean_prediction - mean_label)
    return ratio(total, sum(w for _, _, w in rows))


def naive_gauc(rows: Sequence[Row], users: Sequence[int]) -> float:
    total = counted = 0.0
    for user in set(users):
        own = [row for row, owner in zip(rows, users, strict=True) if owner == user]
        auc = naive_auroc(own)
        if not math.isnan(auc):
            weight = sum(w for _, _, w in own)
            total += weight * auc
            counted += weight
    return ratio(total, counted)


def naive_ndcg(scores: Sequence[float], gains: Sequence[float]) -> float:
    """Of one user; a tied group's gains are spread evenly over its places."""
    ideal = sum(gain / math.log2(place + 2) for place, gain in enumerate(sorted(gains, reverse=True)))
    place, found = 0, 0.0
    for level in sorted(set(scores), reverse=True):
        group = [gain for score, gain in zip(scores, gains, strict=True) if score == level]
        for _ in group:
            found += sum(group) / len(group) / math.log2(place + 2)
            place += 1
    return found / ideal if max(gains) > min(gains) else math.nan


def cross_entropy(p: float, y: bool) -> float:
    if math.isnan(p):
        return math.nan
    likelihood = p if y else 1 - p
    return -math.log(min(max(likelihood, EPSILON), 1 - EPSILON))


def relative(loss: float, ctr: float) -> float:
    if math.isnan(ctr) or ctr in {0.0, 1.0}:
        return math.nan
    return 100 * (1 - loss / -(ctr * math.log(ctr) + (1 - ctr) * math.log(1 - ctr)))


def ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
