"""The experiments in a tiny form: they run, keep their runs, and write what they found."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("sklearn", reason="the experiments' data")
pytest.importorskip("matplotlib", reason="the experiments' plots")
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import costs  # noqa: E402
import detection  # noqa: E402
import mixed_precision  # noqa: E402
import runs  # noqa: E402
import segmentation  # noqa: E402


def test_runs_are_kept(tmp_path):
    calls = []
    path = tmp_path / "folder" / "run.json"
    for _ in range(2):
        assert runs.kept(path, lambda: calls.append(0) or {"iou": 0.5}) == {"iou": 0.5}
    assert len(calls) == 1 and json.loads(path.read_text()) == {"iou": 0.5}


def test_sections_are_written_in_their_place(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n")
    runs.write_section(page, "a", "one")
    runs.write_section(page, "b", "two")
    page.write_text(page.read_text() + "by hand\n")
    runs.write_section(page, "a", "three")
    text = page.read_text()
    assert "one" not in text and text.startswith("# Title\n") and text.endswith("by hand\n")
    assert text.index("three") < text.index("two")


def test_means_spreads_and_differences():
    assert runs.mean_and_spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert runs.mean_and_spread([4.0]) == "4.0"
    # Each seed gains 3 but for 0.1: the seeds' own spread is not in the difference.
    assert (
        runs.paired({0: 13.1, 1: 22.9, 2: 33.0, 3: 9.0}, {0: 10, 1: 20, 2: 30}, 2) == "+3.00 ± 0.06"
    )


def test_segmentation_trains_tests_and_reports(tmp_path):
    tiny = segmentation.Budget(scenes=16, test_scenes=4, epochs=1, max_scans=200)
    result = segmentation.run("deformable2", 0, tiny, tmp_path)
    assert 0 <= result["iou"] <= 1 and len(result["right"]) == 3
    assert np.isfinite(result["loss"])
    twin = segmentation.build("deformable2")
    twin.load_weights(segmentation.weights_of(tmp_path / "deformable2-0.json"))
    again = segmentation.measure(twin, segmentation.scenes_of(0, tiny)[1])
    assert again["iou"] == pytest.approx(result["iou"], abs=1e-6)

    results = {name: {0: result, 1: result} for name in segmentation.VARIANTS}
    assert segmentation.report(results).count("\n") == 1 + len(results)
    segmentation.draw(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_a_perfect_segmentation_is_measured_as_such():
    _, test = segmentation.scenes_of(0, segmentation.Budget(4, 4, 1, 200))

    class Oracle:
        def predict(self, images, **_):
            return np.eye(segmentation.CLASSES)[segmentation.pixel_labels(test)]

    result = segmentation.measure(Oracle(), test)
    assert result["iou"] == 1.0 and np.nanmin(result["right"]) == 1.0


@pytest.mark.parametrize("name", segmentation.VARIANTS)
def test_segmentation_networks_are_what_they_are_called(name):
    variant = segmentation.VARIANTS[name]
    model = segmentation.build(name)
    kinds = [type(model.get_layer(layer)).__name__ for layer in segmentation.LAST_STAGE]
    assert kinds.count("DeformableConv2D") == variant.deformable
    assert kinds[len(kinds) - variant.deformable :] == ["DeformableConv2D"] * variant.deformable
    assert {model.get_layer(layer).dilation_rate for layer in segmentation.LAST_STAGE} == {
        (variant.dilation, variant.dilation)
    }


def test_the_wider_network_has_as_many_weights():
    wide, deformable = (segmentation.build(n).count_params() for n in ("wide", "deformable3"))
    assert 0 <= wide / deformable - 1 < 0.03


@pytest.mark.parametrize(("kind", "all_deformable"), [("rpn", "convolution"), ("rfcn", "both")])
def test_the_wider_detector_has_as_many_weights(kind, all_deformable):
    wide, deformable = (detection.build(kind, v).count_params() for v in ("wide", all_deformable))
    assert 0 <= wide / deformable - 1 < 0.03


def test_detection_trains_tests_and_reports(tmp_path):
    tiny = detection.Budget(scenes=8, test_scenes=2, epochs=1, max_scans=200)
    result = detection.run("rfcn", "both", 0, tiny, tmp_path)
    assert all(0 <= precision <= 100 for precision in result["precision"])
    results = {network: {0: result} for network in detection.NETWORKS}
    assert len(results) == 13
    assert "| R-FCN | plain, wider |" in detection.report(results)
    detection.draw(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_costs_are_measured_and_reported(monkeypatch):
    def small_network(**arguments):
        images = tf.keras.Input(arguments["input_shape"])
        features = tf.keras.layers.Conv2D(4, 3, strides=4, padding="same")(images)
        features = tf.keras.layers.Conv2D(4, 3, strides=2, padding="same")(features)
        return tf.keras.Model(images, tf.keras.layers.Conv2D(4, 3, padding="same")(features))

    monkeypatch.setattr(tf.keras.applications, "ResNet50", small_network)
    monkeypatch.setitem(costs.HEADS, "faster_rcnn", {"bins": 2, "units": (8,)})
    results = {kind: costs.measure(kind, (64, 64), 1) for kind in ("deeplab", "faster_rcnn")}
    for result in results.values():
        assert result["weights"][1] > result["weights"][0]
        assert min(*result["forward"], *result["step"]) > 0
    assert "Faster R-CNN" in costs.report(results)


def test_mixed_precision_is_measured_and_reported():
    result = mixed_precision.accuracy("mixed_bfloat16", 0, mixed_precision.QUICK)
    assert 0 <= result["accuracy"] <= 100 and result["images"] == 150
    assert tf.keras.mixed_precision.global_policy().name == "float32"
    results = {policy: {0: result, 1: result} for policy in mixed_precision.POLICIES}
    memory = dict.fromkeys(mixed_precision.POLICIES, [54_000_000, 45_000_000])
    text = mixed_precision.report(results, memory)
    assert text.count("\n") == 1 + len(results) and "| +0.0 ± 0.0 | 54 | 45 |" in text


def test_memory_of_a_step_is_counted():
    """The upstream gradient and that of the features are there at once."""
    size = 4 * np.prod(mixed_precision.FEATURES)
    assert 2 * size < mixed_precision.memory_of("float32", given=True) < 4 * size
