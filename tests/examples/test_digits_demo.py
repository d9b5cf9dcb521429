"""The pieces of the demo, and the whole of it once, quickly."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the demo's data")
pytest.importorskip("matplotlib", reason="the demo's picture")
EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import digits  # noqa: E402
import digits_demo  # noqa: E402
import digits_picture  # noqa: E402
from matplotlib.image import imread  # noqa: E402


@pytest.fixture(scope="module")
def splits():
    return digits.load(seed=3, copies=2, max_scans=200)


def test_same_seed_gives_the_same_data(splits):
    again = digits.load(seed=3, copies=2, max_scans=200)
    for part, other in zip(vars(splits).values(), vars(again).values(), strict=True):
        for array, repeated in zip(vars(part).values(), vars(other).values(), strict=True):
            np.testing.assert_array_equal(array, repeated)


def test_seed_changes_the_training_images_only(splits):
    other = digits.load(seed=4, copies=2, max_scans=200)
    assert np.any(splits.training.images != other.training.images)
    np.testing.assert_array_equal(splits.validation.images, other.validation.images)
    np.testing.assert_array_equal(splits.test.images, other.test.images)


def test_no_scan_is_in_two_splits():
    splits = digits.load(seed=0, copies=1)
    parts = [set(part.scans) for part in vars(splits).values()]
    assert set.union(*parts) == set(range(1797))
    assert sum(map(len, parts)) == 1797


def test_every_size_class_has_the_same_scans(splits):
    for part, copies in ((splits.training, 2), (splits.validation, 1), (splits.test, 1)):
        expected = np.sort(np.repeat(np.unique(part.scans), copies))
        for size in range(len(digits.SIZES)):
            np.testing.assert_array_equal(np.sort(part.scans[part.sizes == size]), expected)


def test_labels_are_those_of_the_scans(splits):
    _, labels = digits.load_scans()
    np.testing.assert_array_equal(splits.test.labels, labels[splits.test.scans])
    assert set(splits.training.labels) == set(range(10))


def test_images_are_in_range_and_hold_ink(splits):
    images = splits.training.images
    assert images.shape[1:] == (digits.CANVAS, digits.CANVAS, 1) and images.dtype == np.float32
    assert images.min() >= 0.0 and images.max() <= 1.0
    assert images.max(axis=(1, 2, 3)).min() > 0.5


def test_larger_classes_have_more_ink(splits):
    test = splits.test
    ink = [test.images[test.sizes == size].mean() for size in range(len(digits.SIZES))]
    assert ink[0] < ink[1] < ink[2]


def test_pose_puts_a_scan_where_it_says():
    scan = np.zeros((digits.SCAN, digits.SCAN))
    scan[3:5, 3:5] = 1.0  # the middle
    pose = digits.Pose(zoom=2.0, angle=0.4, slant=0.2, center=(12.0, 25.0))
    canvas = digits.render(scan, pose)
    y, x = np.indices(canvas.shape)
    assert np.average(y, weights=canvas) == pytest.approx(12.0, abs=0.1)
    assert np.average(x, weights=canvas) == pytest.approx(25.0, abs=0.1)


def test_unturned_pose_of_zoom_1_copies_the_scan():
    scan = digits.load_scans()[0][0]
    middle = (digits.CANVAS - 1) / 2
    canvas = digits.render(scan, digits.Pose(1.0, 0.0, 0.0, (middle, middle)))
    first = (digits.CANVAS - digits.SCAN) // 2
    inside = slice(first, first + digits.SCAN)
    np.testing.assert_allclose(canvas[inside, inside], scan, atol=1e-6)


def test_networks_have_about_as_many_parameters():
    plain = digits_demo.build_plain().count_params()
    deformable = digits_demo.build_deformable().count_params()
    assert 0.0 <= plain / deformable - 1.0 < 0.05  # the benefit of the doubt is the plain one's


def test_an_untrained_network_reaches_as_far_as_the_regular_grid(splits):
    model = digits_demo.build_deformable()
    classes, regular = digits_picture.reach(model, digits_demo.DEFORMABLE_LAYERS[-1], splits.test)
    # The mean distance from the middle of a 3x3 grid, between units of 4 pixels.
    assert regular == pytest.approx(4 * (4 + 4 * 2**0.5) / 9)
    np.testing.assert_allclose(classes, regular, rtol=1e-6)


@pytest.mark.slow
def test_quick_demo_end_to_end(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    result = subprocess.run(
        [sys.executable, EXAMPLES / "digits_demo.py", "--quick", "--output", tmp_path],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"^plain +[\d,]+ +\d+ s( +\d+\.\d){4}$", result.stdout, re.MULTILINE)
    assert re.search(r"^deformable +[\d,]+ +\d+ s( +\d+\.\d){4}$", result.stdout, re.MULTILINE)
    assert "tf_deformable not imported" in result.stdout
    assert "300 of 300 classes are those of this process" in result.stdout

    picture = imread(tmp_path / "sampling.png")[..., :3]
    assert picture.shape[0] > 500 and picture.shape[1] > 1000
    coloured = np.ptp(picture, axis=-1) > 0.2
    assert 0.005 < coloured.mean() < 0.5
