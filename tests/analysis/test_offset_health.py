"""The report on offsets, and the callback that writes it while a model trains."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.analysis import small_models as models
from tf_deformable import analysis

layers = tf.keras.layers


def network():
    model = tf.keras.Sequential(
        [
            tf.keras.Input((None, None, 1)),
            models.deformable("first", padding="valid"),
            tf_deformable.DeformableConv2D(2, 3, padding="same", name="second", modulated=True),
            layers.GlobalAveragePooling2D(),
        ]
    )
    model.compile(tf.keras.optimizers.SGD(0.0), "mse")
    return model


def shift(layer, dy, dx):
    """Lets all samples of a layer move by as much."""
    taps = layer.offset_groups * int(np.prod(layer.kernel_size))
    bias = layer.offset_bias.numpy()
    bias[: 2 * taps] = np.tile([dy, dx], taps)
    layer.offset_bias.assign(bias)


IMAGES = np.random.default_rng(0).uniform(size=(4, 10, 12, 1)).astype(np.float32)
LABELS = np.zeros((4, 2), np.float32)


def test_report_against_numbers_worked_out_by_hand():
    model = network()
    shift(model.layers[0], 3, 4)
    report = analysis.offset_report(model, IMAGES)
    first, second = report.layers
    assert (first.name, first.unit, first.map_size) == ("first", "px", (10, 12))
    assert first.count == 4 * 8 * 10 * 9
    assert first.mean == pytest.approx(5) and first.maximum == pytest.approx(5)
    # Rows 3 to 12 of 10 are read by taps (0 to 7) + (0 to 2) + 3; columns 4 to 15 of 12.
    rows = np.add.outer(np.arange(8), np.arange(3)) + 3
    columns = np.add.outer(np.arange(10), np.arange(3)) + 4
    assert first.outside == pytest.approx(1 - (rows < 10).mean() * (columns < 12).mean())
    assert first.regular_outside == first.not_finite == 0
    assert second.mean == second.maximum == 0 and second.map_size == (8, 10)
    # "same": the first and last row and column of the samples are padding.
    assert second.outside == second.regular_outside == pytest.approx(1 - 22 / 24 * 28 / 30)
    header, *rows = str(report).splitlines()
    assert "outside" in header and [row.split()[0] for row in rows] == ["first", "second"]
    assert rows[0].split()[1:5] == ["10x12", "5", "5", "px"]


def test_offsets_that_are_not_finite_are_counted_apart():
    model = network()
    bias = np.zeros(18)
    bias[0], bias[3], bias[4] = np.nan, np.inf, 2
    model.layers[0].offset_bias.assign(bias)
    first = analysis.offset_report(model, IMAGES).layers[0]
    assert first.not_finite == pytest.approx(2 / 9)
    assert first.mean == pytest.approx(2 / 7) and first.maximum == pytest.approx(2)


def test_bins_are_measured_in_boxes():
    images, boxes = tf.keras.Input((None, None, 1)), tf.keras.Input((None, 4))
    pooling = tf_deformable.DeformableRoIPool(2, spatial_scale=0.5, aligned=True, name="pool")
    features = layers.Conv2D(3, 3, strides=2, padding="same")(images)
    model = tf.keras.Model([images, boxes], pooling([features, boxes]))
    inputs = [
        np.ones((1, 32, 32, 1), np.float32),
        np.array([[[16, 16, 32, 24], [0, 0, 0, 0]]], np.float32),
    ]
    model(inputs)
    pooling.offset_bias.assign(np.tile([3.0, 4.0], 4))  # times gamma 0.1
    (found,) = analysis.offset_report(model, inputs).layers
    assert (found.name, found.unit, found.count) == ("pool", "box", 4)
    assert found.mean == pytest.approx(0.5, rel=1e-5)
    assert found.outside == 0.5  # the lower two middles, at 28, move by 0.3*16
    assert found.regular_outside == 0.0


def read_summaries(folder):
    """Returns {tag: [(step, value)]} of the event files, which are records of Event messages."""
    found = {}
    for path in sorted(folder.glob("events*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                number = tf.make_ndarray(value.tensor).item()
                found.setdefault(value.tag, []).append((event.step, number))
    return found


def test_callback_writes_summaries_every_epoch(tmp_path):
    model = network()
    shift(model.layers[0], 0.5, 0)
    health = analysis.OffsetHealth(IMAGES[:2], tmp_path)
    model.fit(IMAGES, LABELS, batch_size=2, epochs=3, verbose=0, callbacks=[health])
    summaries = read_summaries(tmp_path)
    assert set(summaries) == {
        f"offsets/{layer}/{name}"
        for layer in ("first", "second")
        for name in ("mean", "maximum", "outside", "not_finite")
    }
    assert summaries["offsets/first/mean"] == [(step, 0.5) for step in range(3)]
    assert summaries["offsets/second/outside"][2] == (
        2,
        pytest.approx(health.report.layers[1].outside),
    )
    assert [step for step, _ in health.history] == [0, 1, 2]
    assert health.report is health.history[-1][1]


def test_callback_checks_every_so_many_batches_of_a_dataset(tmp_path):
    model = network()
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(1)
    seen = []
    health = analysis.OffsetHealth(data.map(lambda x, y: (x, y)), tmp_path, every=2)
    original = health._probe
    health._probe = lambda: seen.append(original()) or seen[-1]
    model.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=[health])
    assert [step for step, _ in health.history] == [2, 4, 6, 8, 10, 12]
    assert [step for step, _ in read_summaries(tmp_path)["offsets/first/maximum"]][-1] == 12
    np.testing.assert_array_equal(np.concatenate(seen), np.concatenate([IMAGES, IMAGES[:2]]))


def test_diverging_offsets_are_warned_of_once_and_after_recovery():
    model = network()
    health = analysis.OffsetHealth(IMAGES)
    health.set_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        health.check(0)
    shift(model.layers[0], 2.6, 0)  # above a quarter of the 10 rows
    with pytest.warns(
        analysis.OffsetWarning,
        match="layer 'first' diverge at epoch 1: their mean is 2.6 px, above 2.5",
    ):
        health.check(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        health.check(2)
        shift(model.layers[0], 0, 0)
        health.check(3)
    shift(model.layers[0], 0, np.nan)
    with pytest.warns(analysis.OffsetWarning, match="epoch 4: 100.0% of the offsets are not fin"):
        health.check(4)


def test_samples_outside_are_warned_of_and_end_training():
    model = network()
    shift(model.layers[1], -4.0, 0.0)  # half of the rows of 8; 2 of 24 are padding anyway
    limits = {"max_mean": 1.0, "max_outside": 0.38}
    health = analysis.OffsetHealth(IMAGES, every=1, stop_training=True, **limits)
    with pytest.warns(analysis.OffsetWarning, match="'second' diverge at batch 1: they take 38.9%"):
        model.fit(IMAGES, LABELS, batch_size=2, epochs=5, verbose=0, callbacks=[health])
    assert len(health.history) <= 2
    calm = analysis.OffsetHealth(IMAGES, max_mean=1.0, max_outside=0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", analysis.OffsetWarning)
        model.fit(IMAGES, LABELS, verbose=0, callbacks=[calm])
    assert calm.report.layers[1].outside == pytest.approx(1 - 12 / 24 * 28 / 30)


def test_checking_changes_nothing_in_training():
    weights = []
    for callbacks in ([], [analysis.OffsetHealth(IMAGES, every=1, max_mean=9, max_outside=2)]):
        tf.keras.utils.set_random_seed(0)
        model = network()
        model.compile(tf.keras.optimizers.Adam(0.01), "mse")
        model.fit(IMAGES, LABELS, batch_size=2, epochs=2, verbose=0, callbacks=callbacks)
        weights.append(model.get_weights())
    for plain, watched in zip(*weights, strict=True):
        np.testing.assert_array_equal(plain, watched)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, 'every must be "epoch" or a positive integer, got 0'),
        ({"every": "batch"}, "every must be .* got 'batch'"),
        ({"every": True}, "every must be .* got True"),
        ({"max_mean": 0}, "max_mean must be positive, got 0"),
        ({"max_outside": -1.0}, "max_outside must be positive, got -1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        analysis.OffsetHealth(IMAGES, **arguments)


def test_an_empty_dataset_is_refused():
    health = analysis.OffsetHealth(tf.data.Dataset.from_tensor_slices(IMAGES).batch(2).take(0))
    with pytest.raises(ValueError, match="inputs must have a batch, got an empty dataset"):
        health.check(0)


def test_a_model_without_deformable_layers_is_refused():
    with pytest.raises(ValueError, match="offset_report: the model must call a deformable layer"):
        analysis.offset_report(tf.keras.Sequential([layers.ReLU()]), IMAGES)
