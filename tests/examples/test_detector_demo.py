"""The pieces of the detector demo, and the whole of it once, quickly."""

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
    pytest.skip("the detector demo needs Keras 3", allow_module_level=True)
EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import average_precision  # noqa: E402
import detector_demo  # noqa: E402
import digit_scenes  # noqa: E402
import digits  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from tf_deformable.models import boxes  # noqa: E402


@pytest.fixture(scope="module")
def scenes() -> digit_scenes.Scenes:
    data = digits.load(seed=0, copies=1, max_scans=200)
    return digit_scenes.compose(data.test, 12, np.random.default_rng(0))


def test_boxes_are_tight_and_apart(scenes):
    for image, corners, present in zip(scenes.images, scenes.boxes, scenes.present, strict=True):
        ink = image[..., 0] > digit_scenes.INK
        in_a_box = np.zeros_like(ink)
        for y1, x1, y2, x2 in corners[present].astype(int):
            digit = ink[y1:y2, x1:x2]
            assert digit[0].any() and digit[-1].any() and digit[:, 0].any() and digit[:, -1].any()
            assert not in_a_box[y1:y2, x1:x2].any()
            in_a_box[y1:y2, x1:x2] = True
        assert not (ink & ~in_a_box).any()
        assert not corners[~present].any()  # what the layers take for padding


def test_proposals_near_digits_are_theirs(scenes):
    proposals = detector_demo.training_proposals(scenes, 16, np.random.default_rng(0))
    labels, deltas = detector_demo.assign(proposals, scenes)
    positive = labels < detector_demo.DIGITS
    assert positive[:, :8].mean() > 0.3  # a jitter of a quarter leaves IoUs around one half
    decoded = boxes.decode(proposals, deltas)
    nearest = boxes.iou(decoded, scenes.boxes).numpy().max(axis=-1)
    np.testing.assert_allclose(nearest[positive], 1.0, atol=1e-4)


def test_the_average_precision_of_perfect_and_of_no_detections(scenes):
    perfect = average_precision.Detections(
        boxes=scenes.boxes,
        scores=np.where(scenes.present, 0.9, 0.0),
        classes=scenes.labels,
        counts=scenes.present.sum(axis=1),
    )
    assert average_precision.mean_average_precision(perfect, scenes, 0.7) == 1.0
    none = average_precision.Detections(
        perfect.boxes, perfect.scores, perfect.classes, np.zeros_like(perfect.counts)
    )
    assert average_precision.mean_average_precision(none, scenes, 0.5) == 0.0
    elsewhere = average_precision.Detections(
        perfect.boxes + 50.0, perfect.scores, perfect.classes, perfect.counts
    )
    assert average_precision.mean_average_precision(elsewhere, scenes, 0.5) < 0.2


def test_every_pixel_of_ink_has_the_class_of_its_digit(scenes):
    labels = digit_scenes.pixel_labels(scenes)
    np.testing.assert_array_equal(labels > 0, scenes.images[..., 0] > digit_scenes.INK)
    for scene, row in np.argwhere(scenes.present):
        top, left, bottom, right = scenes.boxes[scene, row].astype(int)
        found = set(np.unique(labels[scene, top:bottom, left:right])) - {0}
        assert found == {1 + scenes.labels[scene, row]}


def test_quick_demo_end_to_end(tmp_path):
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "detector_demo.py"), "--quick", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "mAP at 0.5" in run.stdout
    picture = imread(tmp_path / "bins.png")
    assert picture.std() > 0.05
