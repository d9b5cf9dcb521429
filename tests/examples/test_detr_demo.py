"""The pieces of the Deformable DETR demo, and the whole of it once, quickly."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("sklearn", reason="the demo's data")
pytest.importorskip("matplotlib", reason="the demo's picture")
if not hasattr(tf.keras, "ops"):
    pytest.skip("the Deformable DETR demo needs Keras 3", allow_module_level=True)
EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import detr_demo  # noqa: E402
from matplotlib.image import imread  # noqa: E402

CORNERS = np.array([[[10, 20, 30, 50], [60, 5, 80, 15], [0, 0, 0, 0]]], np.float32)
LABELS = np.array([[7, 2, -1]])


def test_boxes_are_converted_there_and_back():
    found = detr_demo.from_corners(CORNERS)
    np.testing.assert_allclose(found[0, 0] * detr_demo.CANVAS, [20, 35, 20, 30], rtol=1e-6)
    np.testing.assert_allclose(detr_demo.to_corners(found), CORNERS, atol=1e-5)


def test_each_digit_is_assigned_to_the_query_that_fits_it_best():
    costs = np.array([[[0.1, 0.2, 9], [0.0, 5, 0], [7, 7, 0]]])  # [1, Q, M]
    pairs = detr_demo.match(costs, LABELS >= 0)
    np.testing.assert_array_equal(pairs, [[[0, 1, 0], [1, 0, 0], [0, 0, 0]]])


def test_the_loss_is_least_for_the_digits_that_are_there():
    right = np.tile(detr_demo.from_corners(CORNERS[:, :1]), [1, 5, 1])
    right[:, 1:3] = detr_demo.from_corners(CORNERS[:, [1, 0]])
    logits = np.full([1, 5, 10], -9, np.float32)
    logits[0, 0, 7] = logits[0, 1, 2] = 9

    def loss(found, logits):
        return float(detr_demo.loss(tf.constant(found), tf.constant(logits), CORNERS, LABELS))

    best = loss(right, logits)
    assert best < 0.01
    assert loss(right[:, ::-1], logits[:, ::-1]) == pytest.approx(best, abs=1e-5)
    assert loss(right + 0.05, logits) > best + 0.5
    missing, double, another = (logits.copy() for _ in range(3))
    missing[0, 0, 7], double[0, 2, 7] = -9, 9
    another[0, 0] = another[0, 0, ::-1]
    for worse in (missing, double, another):
        assert loss(right, worse) > best + 0.5


def test_untrained_queries_begin_on_a_grid_and_see_nothing():
    tf.keras.utils.set_random_seed(0)
    model = detr_demo.Detr()
    found = model(np.zeros([2, 96, 96, 1], np.float32))
    shape = (detr_demo.LAYERS, 2, detr_demo.GRID**2)
    assert found["boxes"].shape == (*shape, 4) and found["logits"].shape == (*shape, 10)
    centers = (np.arange(detr_demo.GRID) + 0.5) / detr_demo.GRID
    for boxes in found["boxes"][:, 0]:
        grid = np.reshape(boxes, [detr_demo.GRID, detr_demo.GRID, 4])
        np.testing.assert_allclose(grid[:, 0, 0], centers, atol=1e-5)
        np.testing.assert_allclose(grid[0, :, 1], centers, atol=1e-5)
    assert tf.sigmoid(found["logits"]).numpy().mean() < 0.2


def test_quick_demo_end_to_end(tmp_path):
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "detr_demo.py"), "--quick", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "mAP at 0.5" in run.stdout
    picture = imread(tmp_path / "queries.png")
    assert picture.std() > 0.05
