"""The experiment on effective dilation in a tiny form."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("sklearn", reason="the experiments' data")
pytest.importorskip("matplotlib", reason="the experiments' plots")
if not hasattr(tf.keras, "ops"):
    pytest.skip("the experiments need Keras 3", allow_module_level=True)
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import effective_dilation  # noqa: E402
import segmentation  # noqa: E402


def test_it_measures_and_draws_a_network_of_the_segmentation_experiment(tmp_path):
    tiny = segmentation.Budget(scenes=16, test_scenes=6, epochs=1, max_scans=200)
    result = effective_dilation.measure("deformable3", 0, tiny, tmp_path)
    assert result["layers"] == list(segmentation.LAST_STAGE)
    assert (tmp_path / "deformable3-0.weights.h5").exists()
    np.testing.assert_array_equal(np.sum(result["count"], axis=1), 6 * 24 * 24)
    model = effective_dilation.load("deformable3", 0, tiny, tmp_path)
    _, test = segmentation.scenes_of(0, tiny)
    effective_dilation.draw(model, test, tmp_path / "levels.png")
    assert (tmp_path / "levels.png").stat().st_size > 20_000


def runs_of(*means):
    return [
        {"layers": ["a", "b"], "mean": m, "std": [[0.5] * 4] * 2, "count": [[5, 6, 7, 80]] * 2}
        for m in means
    ]


def test_the_report_says_what_comes_out():
    grows, falls = [1.0, 1.5, 2.0, 0.5], [2.0, 1.5, 1.0, 3.0]
    results = {
        "deformable3": runs_of([grows, grows], [grows, falls]),
        "atrous2-deformable3": runs_of([falls, grows], [falls, grows]),
    }
    text = effective_dilation.report(results)
    assert "| a | 1.00 ± 0.50 (0.00) | 1.50 ± 0.50 (0.00) | 2.00 ± 0.50 (0.00) |" in text
    assert "| 1.00 ± 0.00 | 2 of 2 |" in text and "| -1.00 ± 0.00 | 0 of 2 |" in text
    assert (
        "With dilation 1 at rest effective dilation grows from small to medium to large in all "
        "seeds in `a`; it grows in some seeds only in `b`. With dilation 2 at rest effective "
        "dilation grows from small to medium to large in all seeds in `b`; it does not grow in "
        "any seed in `a`."
    ) in text
    assert "The background has the smallest in 5 of 8 cases" in text
