"""What the pictures show, read off Matplotlib's artists."""

import sys

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("matplotlib", reason="draws the pictures")

from matplotlib.colors import to_rgba

from tests.analysis import small_models as models
from tf_deformable import analysis
from tf_deformable.analysis import drawing


@pytest.fixture
def locations():
    inputs = tf.keras.Input((None, None, 1))
    model = tf.keras.Model(inputs, models.deformable("b")(models.deformable("a")(inputs)))
    images = models.integer_images(2, 12, 16)
    model(images)
    models.randomise_offsets(model, low=-2, high=3)
    return images, analysis.sampling_locations(model, images, unit=(5, 2))


def scattered(ax):
    """Returns {colour: points (y, x)} of what is scattered on axes."""
    found = {}
    for collection in ax.collections:
        edges = collection.get_edgecolors()
        face = collection.get_facecolors()
        color = face[0, :3] if len(face) else edges[0, :3]
        found[tuple(np.round(color, 3))] = np.asarray(collection.get_offsets())[:, ::-1]
    return found


def rgb(color):
    return tuple(np.round(to_rgba(color)[:3], 3))


def test_sampling_locations_are_drawn_x_to_the_right_and_y_down(locations):
    images, found = locations
    ax = analysis.draw_sampling_locations(images[1], found, 1)
    points = scattered(ax)
    np.testing.assert_allclose(points[rgb(drawing.ALL)], found.points(1))
    np.testing.assert_allclose(points[rgb(drawing.LAST)], found.points(1, level=0))
    np.testing.assert_allclose(points[rgb(drawing.UNIT)], [[5, 2]])
    assert ax.get_xlim() == (-0.5, 15.5) and ax.get_ylim() == (11.5, -0.5)
    assert ax.get_legend_handles_labels()[1] == [
        "samples through 2 layers",
        "samples of the last layer",
        "unit",
    ]


def test_further_units_go_on_the_same_axes_with_one_legend(locations):
    images, found = locations
    ax = analysis.draw_sampling_locations(images[0], found)
    assert analysis.draw_sampling_locations(None, found, 1, ax=ax) is ax
    assert len(ax.collections) == 6 and len(ax.images) == 1
    assert len(ax.get_legend_handles_labels()[1]) == 3


def test_samples_that_count_less_are_paler():
    inputs = tf.keras.Input((None, None, 1))
    model = tf.keras.Model(inputs, models.deformable("a", modulated=True)(inputs))
    images = models.integer_images(1, 8, 8)
    model(images)
    (layer,) = models.deformable_layers(model)
    layer.offset_bias.assign([0] * 18 + [9, -9] + [0] * 7)
    found = analysis.sampling_locations(model, images, unit=(3, 3))
    ax = analysis.draw_sampling_locations(images[0], found)
    alphas = ax.collections[0].get_facecolors()[:, 3]
    assert alphas[0] > 0.99 and alphas[1] < 0.26 and 0.6 < alphas[2] < 0.65
    assert ax.get_legend_handles_labels()[1] == ["samples", "unit"]


def test_fixed_and_adaptive_are_drawn_side_by_side(locations):
    images, found = locations
    figure = analysis.draw_fixed_and_adaptive(images[0], found)
    left, right = figure.axes
    np.testing.assert_allclose(scattered(left)[rgb(drawing.ALL)], found.points(regular=True))
    np.testing.assert_allclose(scattered(right)[rgb(drawing.ALL)], found.points())
    assert analysis.draw_fixed_and_adaptive(images[0], found, axes=(left, right)) is figure


def test_bins_are_drawn_where_they_are(tmp_path):
    regular = np.array([[[4, 6, 8, 12], [4, 12, 8, 18]]], float)
    moved = regular + [1, 2, 1, 2]
    ax = analysis.draw_bins(np.zeros((20, 30, 3)), regular, moved)
    boxes = [
        (
            p.get_y() + 0.5,
            p.get_x() + 0.5,
            p.get_y() + p.get_height() + 0.5,
            p.get_x() + p.get_width() + 0.5,
        )
        for p in ax.patches
    ]
    np.testing.assert_allclose(boxes, [regular[0, 0], moved[0, 0], regular[0, 1], moved[0, 1]])
    assert ax.get_xlim() == (12 - 9, 12 + 9) and ax.get_ylim() == (6 + 9, 6 - 9)
    assert ax.get_legend_handles_labels()[1] == ["regular bins", "moved bins"]
    whole = analysis.draw_bins(np.zeros((20, 30)), regular, moved, zoom=False)
    assert whole.get_xlim() == (-0.5, 29.5)
    ax.figure.savefig(tmp_path / "bins.png")


def test_ink_is_dark_and_paper_white():
    ax = analysis.draw_image(np.array([[0.0, 2.0], [0.5, 2.0]]))
    shown = ax.images[0].to_rgba(ax.images[0].get_array())
    np.testing.assert_allclose(shown[0, 0, :3], 1)
    assert shown[0, 1, 0] < 0.6
    analysis.draw_image(np.zeros((4, 4, 1)))  # nothing on it


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analysis.draw_image(np.zeros((4, 4, 2))), r"image must .* got \[4, 4, 2\]"),
        (lambda: analysis.draw_sampling_locations(None, None), "image or ax must be given"),
        (
            lambda: analysis.draw_bins(np.zeros((4, 4)), np.zeros((2, 2, 4)), np.zeros((2, 4))),
            r"same shape \[ph,pw,4\], got \[2, 2, 4\] and \[2, 4\]",
        ),
        (
            lambda: analysis.draw_bins(None, np.zeros((1, 1, 4)), np.zeros((1, 1, 4))),
            "image or ax must be given",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_to_install_is_said_where_matplotlib_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        analysis.draw_image(np.zeros((4, 4)))
