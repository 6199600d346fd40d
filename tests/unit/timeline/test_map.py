"""t-SNE against its definition, its gradient against autograd, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.manifold import TSNE, trustworthiness

from rookery.timeline.map import joint_affinities, place, tsne, tsne_gradient


def clusters(num_rows, num_clusters=4, dim=12):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(num_clusters, dim, generator=generator) * 4
    labels = torch.arange(num_rows) % num_clusters
    return centres[labels] + torch.randn(num_rows, dim, generator=generator), labels


def divergence(affinities, points):
    """KL(p ‖ q) with q by Student's t with one degree of freedom."""
    kernel = 1 / (1 + (points.unsqueeze(1) - points.unsqueeze(0)).square().sum(2))
    kernel = kernel * (1 - torch.eye(len(points)))
    q = kernel / kernel.sum()
    kept = affinities > 0
    return (affinities[kept] * (affinities[kept] / q[kept]).log()).sum()


def test_each_row_has_the_perplexity():
    rows, _ = clusters(80)
    affinities = joint_affinities(rows, 15.0)
    assert affinities.sum() == pytest.approx(1.0)
    assert torch.equal(affinities, affinities.T)
    expected = np.zeros((80, 80))
    distances = torch.cdist(rows.double(), rows.double()).square().numpy()
    for row in range(80):  # bisection of one precision at a time, as the definition has it
        others = np.delete(np.arange(80), row)
        nearest = distances[row, others].min()
        low, high = 1e-9, 1e3
        for _ in range(200):
            precision = math.sqrt(low * high)
            chances = np.exp((nearest - distances[row, others]) * precision)
            chances /= chances.sum()
            entropy = -sum(chance * math.log(chance) for chance in chances if chance > 0)
            low, high = (precision, high) if entropy > math.log(15.0) else (low, precision)
        expected[row, others] = chances
    np.testing.assert_allclose(affinities, (expected + expected.T) / 160, rtol=1e-4, atol=1e-9)


def test_the_gradient_is_that_of_the_divergence():
    rows, _ = clusters(30)
    affinities = joint_affinities(rows, 8.0)
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    divergence(affinities, points).backward()
    found = tsne_gradient(affinities, points.detach())
    assert points.grad.abs().min() > 1e-6
    torch.testing.assert_close(found, points.grad, rtol=1e-4, atol=1e-7)


def test_the_layout_is_as_good_as_scikit_learns():
    rows, _ = clusters(150)
    affinities = joint_affinities(rows, 20.0)
    own = tsne(rows, 20.0)
    other = TSNE(perplexity=20.0, init="pca", random_state=0, method="exact").fit_transform(rows.numpy())
    assert divergence(affinities, own) < 1.05 * divergence(affinities, torch.from_numpy(other))
    assert trustworthiness(rows.numpy(), own.numpy(), n_neighbors=10) > 0.9


def test_what_is_not_laid_out_lies_with_its_like():
    rows, labels = clusters(600)
    plane = place(rows, 150)
    assert plane.abs().max() <= 1.0
    centres = torch.stack([plane[labels == label].mean(0) for label in range(4)])
    assert (torch.cdist(plane, centres).argmin(1) == labels).double().mean() > 0.99
    assert torch.equal(plane, place(rows, 150))


@pytest.mark.parametrize("num_rows", [2, 3, 5])
def test_few_rows_have_finite_places(num_rows):
    rows, _ = clusters(num_rows)
    assert place(rows, 100).isfinite().all()
    assert place(torch.ones(num_rows, 4), 100).isfinite().all()
