"""What an active learner would ask next, against distances known by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances
from torch import nn

from sameguard.attacks.selection import deepfool_distances, entropies, farthest_first


class Linear(nn.Module):
    def __init__(self, weights, bias):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))

    def forward(self, inputs):
        return inputs.flatten(1) @ self.weights + self.bias


def test_entropy_by_hand():
    probs = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.25, 0.25, 0.5]], np.float32)
    np.testing.assert_allclose(entropies(probs), [np.log(2), 0.0, 1.5 * np.log(2)], rtol=1e-6)


def test_of_the_points_0_1_and_10_the_farthest_from_0_is_10():
    points, origin = np.array([[0.0], [1.0], [10.0]]), np.array([[0.0]])
    assert farthest_first(points, origin, 1).tolist() == [2]
    assert farthest_first(points, origin, 3).tolist() == [2, 1, 0]


def test_greedy_k_center_is_the_loop_that_defines_it():
    rng = np.random.default_rng(0)
    points, centres = rng.random((80, 4)).astype(np.float32), rng.random((7, 4)).astype(np.float32)
    chosen = farthest_first(points, centres, 20).tolist()
    known, expected = centres.tolist(), []
    for _ in range(20):
        nearest = pairwise_distances(points.astype(np.float64), np.array(known)).min(axis=1)
        nearest[expected] = -1
        expected.append(int(nearest.argmax()))
        known.append(points[expected[-1]].tolist())
    assert chosen == expected


def test_equal_points_are_each_chosen_once():
    assert sorted(farthest_first(np.zeros((5, 2)), np.zeros((1, 2)), 5).tolist()) == [0, 1, 2, 3, 4]


def test_the_margin_of_a_linear_binary_network_is_the_distance_to_its_boundary():
    rng = np.random.default_rng(0)
    weights, inputs = rng.standard_normal((12, 2)), rng.standard_normal((50, 12)).astype(np.float32)
    network = Linear(weights, [0.3, -0.1])
    w, b = weights[:, 0] - weights[:, 1], 0.4
    np.testing.assert_allclose(deepfool_distances(network, inputs), np.abs(inputs @ w + b) / np.linalg.norm(w), rtol=1e-3)


def test_with_more_classes_the_nearest_boundary_counts_and_images_keep_their_shape():
    rng = np.random.default_rng(1)
    weights, inputs = rng.standard_normal((16, 5)), rng.random((300, 1, 4, 4)).astype(np.float32)
    logits = inputs.reshape(300, -1) @ weights
    own = logits.argmax(axis=1)
    slopes = np.linalg.norm(weights[:, own].T[:, :, None] - weights[None], axis=1)  # 300, 5
    with np.errstate(invalid="ignore"):
        expected = np.nanmin((logits.max(axis=1)[:, None] - logits) / slopes, axis=1)
    np.testing.assert_allclose(deepfool_distances(Linear(weights, np.zeros(5)), inputs), expected, rtol=2e-3, atol=1e-6)


def test_a_curved_boundary_is_reached_in_several_steps():
    class Circle(nn.Module):
        def forward(self, inputs):
            radius = inputs.square().sum(1, keepdim=True)
            return torch.cat([1 - radius, radius - 1], dim=1)

    inputs = np.array([[0.0, 0.9], [3.0, 4.0]], np.float32)
    np.testing.assert_allclose(deepfool_distances(Circle(), inputs), [0.1, 4.0], atol=0.1)
    np.testing.assert_allclose(deepfool_distances(Circle(), inputs, steps=1), [0.19 / 1.8, 24 / 10], rtol=1e-4)  # Newton's first step


@pytest.mark.parametrize("classes", [2, 12])
def test_without_a_gradient_the_boundary_is_infinitely_far(classes):
    assert np.isinf(deepfool_distances(Linear(np.zeros((4, classes)), np.arange(classes)), np.ones((3, 4), np.float32))).all()
