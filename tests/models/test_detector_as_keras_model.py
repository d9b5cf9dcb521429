"""A Detector does what every Keras model does: steps, targets, files, exports, compositions."""

import copy
import json
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable.models import Detector, boxes, deeplab, detector, region_proposal_network

# Keras 3 calls np.array(tf.Variable), which NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

ROOT = pathlib.Path(__file__).parents[2]
TERMS = ["rpn_classes", "rpn_boxes", "classes", "boxes"]
ALL = 10**6  # so many anchors are sampled that nothing is left to chance
layers = tf.keras.layers


def backbone(normalized=False, **last):
    images = tf.keras.Input((None, None, 1))
    features = layers.Conv2D(4, 3, strides=4, padding="same", name="first")(images)
    if normalized:
        features = layers.BatchNormalization(name="norm")(features)
    features = layers.Conv2D(4, 3, strides=2, padding="same", name="last", **last)(features)
    return tf.keras.Model(images, features, name="backbone")


def small_detector(kind="faster_rcnn", parts=None, **arguments):
    heads = {"faster_rcnn": {"bins": 2, "units": (6,)}, "rfcn": {"bins": 2}, "rpn": None}
    sizes = {"rpn_units": 4, "proposals": 6, "detections": 5, "sampled_anchors": ALL}
    anchors = {"anchor_sizes": (14,), "aspect_ratios": (1.0,), "score_threshold": 0.0}
    parts = backbone() if parts is None else parts
    return detector(parts, 2, kind, head_arguments=heads[kind], **{**sizes, **anchors, **arguments})


def compiled(model=None, optimizer="sgd", **arguments):
    model = small_detector() if model is None else model
    model.compile(optimizer, **arguments)
    return model


def images(count=4):
    return np.random.default_rng(0).normal(size=[count, 32, 40, 1]).astype(np.float32)


def ragged_targets():
    """Two objects, one, none, one."""
    corners = [[[2.0, 3, 15, 18], [8, 20, 24, 36]], [[10, 8, 26, 22]], [], [[1, 22, 16, 39]]]
    return {
        "boxes": tf.ragged.constant(corners, ragged_rank=1, inner_shape=(4,)),
        "labels": tf.ragged.constant([[0, 1], [1], [], [0]]),
    }


def padded_targets(boxes_padding=0.0, rows=0):
    """The same, with a padding of boxes, and more rows of it."""
    targets = ragged_targets()
    extra = [[0, 0], [0, rows]]
    return {
        "boxes": np.pad(
            targets["boxes"].to_tensor(boxes_padding).numpy(),
            [*extra, [0, 0]],
            constant_values=boxes_padding,
        ),
        "labels": np.pad(targets["labels"].to_tensor(-1).numpy(), extra, constant_values=-1),
    }


def weights_after(fit, **arguments):
    """The weights of a fresh model, always the same, after training."""
    tf.keras.utils.set_random_seed(1)
    model = compiled(**arguments)
    fit(model)
    return model.get_weights()


def assert_all_close(some, others, **tolerances):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 1e-4, "atol": 1e-6, **tolerances})


def assert_same_detections(one, other):
    for name, value in one.predict(images(), verbose=0).items():
        np.testing.assert_allclose(other.predict(images(), verbose=0)[name], value, atol=1e-3)


# --- Steps ---------------------------------------------------------------------------------------

MIRRORED = """
import json
import numpy as np
import tensorflow as tf

(processor,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.models import test_detector_as_keras_model as here

seen = [value[[0, 1, 0, 1]] for value in (here.images(), *here.padded_targets().values())]
targets = dict(zip(("boxes", "labels"), seen[1:]))


def build():
    tf.keras.utils.set_random_seed(0)
    parts = here.backbone(kernel_regularizer=tf.keras.regularizers.L2(0.1))
    return here.compiled(here.small_detector(parts=parts), tf.keras.optimizers.SGD(0.1))


one = build()
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    two = build()
results = []
for model in (one, two):
    history = model.fit(seen[0], targets, batch_size=4, epochs=2, shuffle=False, verbose=0).history
    losses = model.evaluate(seen[0], targets, batch_size=4, verbose=0, return_dict=True)
    weights = [weight.tolist() for weight in model.get_weights()]
    results.append({"weights": weights, "history": history, "losses": losses})
print(json.dumps(results))
"""


@pytest.mark.slow
def test_replicas_train_as_one_device_does():
    """Where each sees the same, so that what one of them samples and counts is the same."""
    process = subprocess.run(
        [sys.executable, "-c", MIRRORED],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    one, two = json.loads(process.stdout.splitlines()[-1])
    assert_all_close(two["weights"], one["weights"])
    assert two["history"].keys() == one["history"].keys()
    for name in one["history"]:
        np.testing.assert_allclose(two["history"][name], one["history"][name], rtol=1e-4)
        np.testing.assert_allclose(two["losses"][name], one["losses"][name], rtol=1e-4)


def test_loss_has_its_terms_and_regularisation_in_training_and_evaluation():
    regularizers = {
        "kernel_regularizer": tf.keras.regularizers.L2(0.5),
        "activity_regularizer": tf.keras.regularizers.L2(0.01),
    }
    model = compiled(small_detector(parts=backbone(**regularizers)), tf.keras.optimizers.SGD(0.0))
    trained = model.fit(images(), padded_targets(), batch_size=4, verbose=0).history
    evaluated = model.evaluate(images(), padded_targets(), verbose=0, return_dict=True)
    assert set(trained) == set(evaluated) == {"loss", *TERMS}
    for name in trained:
        assert trained[name][0] == pytest.approx(evaluated[name], rel=1e-4)
    last = model.backbone.get_layer("last")
    features = model.backbone(images())
    expected = 0.5 * np.sum(last.get_weights()[0] ** 2) + 0.01 * np.sum(features**2) / 4
    assert evaluated["loss"] - sum(evaluated[name] for name in TERMS) == pytest.approx(
        expected, rel=1e-3
    )


def test_means_count_images():
    """With a batch of three and one of one, as Keras' means do."""
    model = compiled()
    targets = padded_targets()
    got = model.evaluate(images(), targets, batch_size=3, verbose=0, return_dict=True)
    parts = [
        model.test_on_batch(
            images()[rows], {k: v[rows] for k, v in targets.items()}, return_dict=True
        )
        for rows in (slice(3), slice(3, 4))
    ]
    for name, value in got.items():
        assert value == pytest.approx((3 * parts[0][name] + parts[1][name]) / 4, rel=1e-4)


def test_evaluation_is_not_random():
    model = compiled(small_detector(sampled_anchors=4))
    losses = [model.evaluate(images(), padded_targets(), verbose=0) for _ in range(2)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "arguments", [{"run_eagerly": True}, {"steps_per_execution": 2}], ids=lambda a: next(iter(a))
)
def test_ways_of_running_steps_agree(arguments):
    def fit(model):
        model.fit(images(), padded_targets(), batch_size=2, shuffle=False, verbose=0)

    assert_all_close(weights_after(fit, **arguments), weights_after(fit))


def test_gradients_are_accumulated(is_keras_3):
    if not is_keras_3:
        pytest.skip("the optimizers of tf-keras do not accumulate")

    def fit(model, steps):
        for _ in range(steps):
            model.train_on_batch(images(), padded_targets())

    sgd = tf.keras.optimizers.SGD
    accumulated = weights_after(
        lambda model: fit(model, 4), optimizer=sgd(0.1, gradient_accumulation_steps=2)
    )
    assert_all_close(accumulated, weights_after(lambda model: fit(model, 2), optimizer=sgd(0.1)))


def test_steps_return_what_those_of_keras_return():
    model = compiled()
    assert model.metrics_names[0] == "loss"
    for step in (model.train_on_batch, model.test_on_batch):
        values = step(images(), padded_targets())
        logs = step(images(), padded_targets(), return_dict=True)
        assert type(logs) is dict and set(logs) == {"loss", *TERMS}
        assert len(values) == 5 and all(isinstance(value, float) for value in values)
    model.reset_metrics()
    assert all(float(metric.result()) == 0 for metric in model.metrics)


def test_own_training_loops_have_the_loss():
    model = small_detector()
    terms = model.losses_of(images(), padded_targets(), training=True)
    loss = model.compute_loss(images(), padded_targets(), model(images()))
    assert float(loss) == pytest.approx(float(sum(terms.values())), rel=1e-5)


def test_frozen_parts_stay():
    model = small_detector(parts=backbone(normalized=True))
    model.backbone.trainable = False
    compiled(model, tf.keras.optimizers.SGD(0.1))
    before = model.get_weights()
    model.fit(images(), padded_targets(), verbose=0)
    frozen = [id(weight) for weight in model.backbone.weights]
    for weight, old, new in zip(model.weights, before, model.get_weights(), strict=True):
        assert np.array_equal(old, new) == (id(weight) in frozen), weight.name


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_with_nothing_to_train_there_are_losses_still():
    model = small_detector()
    model.trainable = False
    history = compiled(model).fit(images(), padded_targets(), verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_no_images_have_no_targets_and_no_detections():
    """What a replica gets when the last batch has less images than there are replicas.

    Not a whole detector: TensorFlow's own convolutions fail without images.
    """
    anchors = np.zeros([0, 7, 4], np.float32)
    labels, deltas = boxes.assign(anchors, anchors[:, :2], np.zeros([0, 2]), 3, keep_best=True)
    assert labels.shape == (0, 7) and deltas.shape == (0, 7, 4)
    assert boxes.sample(labels, 3, 4).shape == (0, 7)
    found = boxes.select(deltas, np.zeros([0, 7, 3]), count=5, iou_threshold=0.5)
    assert found["boxes"].shape == (0, 5, 4) and found["counts"].shape == (0,)


def test_mixed_precision_is_kept_in_files(tmp_path):
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = small_detector()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    compiled(model, tf.keras.optimizers.SGD(0.01))
    model.fit(images(), padded_targets(), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        assert "LossScale" in type(each.optimizer).__name__
        assert each.dtype_policy.name == "mixed_float16"
        assert each.predict(images(), verbose=0)["boxes"].dtype == np.float32
        assert np.isfinite(each.evaluate(images(), padded_targets(), verbose=0)).all()
    losses = model.losses_of(images(), padded_targets())
    assert {loss.dtype for loss in losses.values()} == {tf.float32}


# --- Targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rpn", "faster_rcnn"])
def test_all_padding_is_alike(kind):
    model = small_detector(kind)
    corners = ragged_targets()["boxes"]
    forms = [
        padded_targets(),
        padded_targets(-1.0),
        padded_targets(0.0, rows=3),
        padded_targets(-1.0, rows=3),
        {**padded_targets(-1.0), "labels": np.maximum(padded_targets()["labels"], 0)},
        ragged_targets(),
        {"boxes": tf.ragged.constant(corners.to_list()), "labels": ragged_targets()["labels"]},
        {"boxes": corners, "labels": padded_targets()["labels"]},
    ]
    expected = model.losses_of(images(), forms[0], training=False)
    for targets in forms[1:]:
        got = model.losses_of(images(), targets, training=False)
        for name, value in expected.items():
            assert float(got[name]) == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("kind", ["rpn", "faster_rcnn"])
def test_images_without_any_object_teach_the_background(kind):
    model = compiled(small_detector(kind), tf.keras.optimizers.Adam(0.01))
    none = {"boxes": np.zeros([4, 0, 4], np.float32), "labels": np.zeros([4, 0], np.int32)}
    one = {"boxes": np.zeros([4, 1, 4], np.float32), "labels": np.full([4, 1], -1)}
    losses = [model.evaluate(images(), t, verbose=0, return_dict=True) for t in (none, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0]["rpn_boxes"] == 0
    history = model.fit(images(), none, epochs=30, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def batches():
    return tf.data.Dataset.from_tensor_slices((images(), ragged_targets())).batch(2)


def ragged_batches():
    return tf.data.Dataset.from_tensor_slices((images(), ragged_targets())).ragged_batch(2)


def pairs():
    """A generator tells no shapes."""
    for rows in (slice(2), slice(2, 4)):
        yield images()[rows], {name: value[rows] for name, value in ragged_targets().items()}


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored")
@pytest.mark.parametrize(
    "data",
    [lambda: (images(), ragged_targets()), batches, ragged_batches, pairs],
    ids=["arrays", "batch", "ragged_batch", "generator"],
)
def test_ragged_targets_train_as_padded_ones(data):
    given = data()

    def fit(model):
        arguments = given if isinstance(given, tuple) else (given,)
        sizes = {"batch_size": 2} if isinstance(given, tuple) else {"steps_per_epoch": 2}
        model.fit(*arguments, **sizes, shuffle=False, verbose=0)

    def fit_padded(model):
        model.fit(images(), padded_targets(), batch_size=2, shuffle=False, verbose=0)

    assert_all_close(weights_after(fit), weights_after(fit_padded))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "labels must be a tensor or a RaggedTensor, got NoneType"),
        (
            {"labels": tf.sparse.from_dense(padded_targets()["labels"])},
            "labels must be a tensor or a RaggedTensor, got SparseTensor",
        ),
        ({"boxes": np.zeros([4, 2, 5])}, r"boxes must be \[B, M, 4\], got \(4, 2, 5\)"),
        ({"labels": np.zeros([4, 2, 1])}, r"labels must be \[B, M\], got \(4, 2, 1\)"),
        ({"labels": np.zeros([4, 3])}, "as many boxes as labels, got"),
    ],
)
def test_targets_of_another_form_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        small_detector().losses_of(images(), {**padded_targets(), **change})


def test_weights_of_samples_are_refused():
    with pytest.raises(ValueError, match="take no sample_weight"):
        compiled().fit(images(), padded_targets(), sample_weight=np.ones(4), verbose=0)
    with pytest.raises(ValueError, match="class_weight"):
        compiled().fit(images(), padded_targets(), class_weight={0: 1.0, 1: 2.0}, verbose=0)


@pytest.mark.parametrize("kind", ["rpn", "faster_rcnn", "rfcn"])
def test_without_equality_of_tensors(kind):
    tf.compat.v1.disable_tensor_equality()
    try:
        model = compiled(small_detector(kind))
        history = model.fit(images(), padded_targets(), verbose=0).history
        found = model.predict(images(), verbose=0)
        drawn = boxes.sample(np.array([[0, 2, 2, -1]]), 2, 2).numpy()
    finally:
        tf.compat.v1.enable_tensor_equality()
    assert np.isfinite(history["loss"]).all() and found["boxes"].shape == (4, 5, 4)
    assert drawn[0, 0] == 1 and drawn.sum() == 2


@pytest.mark.parametrize("kind", ["rpn", "faster_rcnn", "rfcn"])
def test_where_keras_is_set_to_channels_first(kind):
    before = tf.keras.backend.image_data_format()
    inputs = tf.keras.Input((None, None, 3))
    features = tf.keras.layers.Conv2D(8, 3, strides=8, padding="same")(inputs)
    backbone = tf.keras.Model(inputs, features)
    tf.keras.backend.set_image_data_format("channels_first")
    try:
        model = tf_deformable.models.detector(
            backbone, 2, kind, deformable_pooling=True, channels=6, anchor_sizes=(16,), detections=5
        )
    finally:
        tf.keras.backend.set_image_data_format(before)
    found = model.predict(np.zeros([1, 48, 48, 3], np.float32), verbose=0)
    assert found["boxes"].shape == (1, 5, 4)


# --- What is compiled ----------------------------------------------------------------------------


@tf.keras.utils.register_keras_serializable(package="tests")
class Count(tf.keras.metrics.Metric):
    """How many objects there are, and how many detections."""

    def __init__(self, name="count", **kwargs):
        super().__init__(name=name, **kwargs)
        self.total = self.add_weight(name="total", shape=(), initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        objects = tf.reduce_sum(tf.cast(y_true["labels"] >= 0, tf.float32))
        found = tf.reduce_sum(tf.cast(y_pred["counts"], tf.float32))
        self.total.assign_add(objects + 100 * found)

    def result(self):
        return tf.convert_to_tensor(self.total)

    def reset_state(self):
        self.total.assign(0.0)


@pytest.mark.parametrize("kind", ["rpn", "faster_rcnn"])
def test_metrics_see_targets_and_detections(kind):
    model = compiled(small_detector(kind), tf.keras.optimizers.SGD(0.0), metrics=Count())
    expected = 4 + 100 * model.predict(images(), verbose=0)["counts"].sum()
    logs = model.fit(images(), ragged_targets(), batch_size=3, verbose=0).history
    assert logs["count"] == [expected]
    assert model.evaluate(images(), padded_targets(), verbose=0, return_dict=True)[
        "count"
    ] == pytest.approx(expected)


def test_loss_weights():
    model = compiled(loss_weights={"boxes": 0.0, "rpn_boxes": 3.0})
    logs = model.evaluate(images(), padded_targets(), verbose=0, return_dict=True)
    parts = logs["rpn_classes"] + 3 * logs["rpn_boxes"] + logs["classes"]
    assert logs["loss"] == pytest.approx(parts, rel=1e-5) and logs["boxes"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "mse"}, "compile takes no loss"),
        ({"weighted_metrics": ["mse"]}, "compile takes no weighted_metrics"),
        ({"metrics": ["accuracy"]}, r"metrics must be Metric objects .* got \['accuracy'\]"),
        ({"loss_weights": {"mask": 1.0}}, "loss_weights must be a dictionary with keys among"),
    ],
)
def test_what_cannot_be_compiled_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_detector().compile("sgd", **arguments)


def test_not_compiled_is_the_error_of_keras(is_keras_3):
    plain = tf.keras.Sequential([tf.keras.Input((1,)), layers.Dense(1)])
    messages = []
    for model, values in ((small_detector(), (images(), padded_targets())), (plain, [np.ones(2)])):
        with pytest.raises(ValueError if is_keras_3 else RuntimeError) as error:
            model.fit(*values, verbose=0)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


class FakeDevice:
    """Keras chooses XLA by itself where there is a device that is no CPU."""

    device_type, name = "GPU", "/physical_device:GPU:0"


@pytest.fixture
def with_device(is_keras_3, monkeypatch):
    if not is_keras_3:
        pytest.skip("tf-keras does not choose XLA by itself")
    devices = tf.config.list_physical_devices
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind=None: devices(kind) + ([FakeDevice()] if kind is None else []),
    )


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_xla_is_chosen_where_it_can_be(backend, with_device):
    is_compilable = backend == "reference" or tf_deformable.config.build_info()["xla"]
    with tf_deformable.config.use_backend(backend):
        model = compiled(small_detector("rfcn"))  # the non-maximum suppression is in all of them
        assert model.jit_compile is model.supports_jit is False
        assert compiled(model.rpn, loss="mse").jit_compile is True
        assert compiled(model.head, loss="mse").jit_compile is is_compilable
        for deformable, expected in ((False, True), (True, is_compilable)):
            network = deeplab(backbone(), 3, deformable=deformable)
            assert compiled(network, loss="mse").jit_compile is expected


def test_trains_where_xla_would_be_chosen(with_device):
    model = compiled(small_detector("rpn"))
    model.fit(images(), padded_targets(), verbose=0)
    small_detector("rpn").predict(images(), verbose=0)  # not compiled: chosen at the first use
    network = deeplab(backbone(), 3)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(network, loss=loss).fit(images(), np.zeros([4, 32, 40]), verbose=0)
    assert network.jit_compile is True


# --- Configurations and files --------------------------------------------------------------------


def test_weights_are_those_of_the_parts():
    """Means of losses are none of them: they would be in files, and in the other Keras not."""
    model = compiled()
    model.fit(images(), padded_targets(), verbose=0)
    parts = [*model.backbone.weights, *model.rpn.weights, *model.head.weights]
    assert [id(weight) for weight in model.weights] == [id(weight) for weight in parts]
    assert model.count_params() == sum(weight.size for weight in model.get_weights())
    names = [getattr(weight, "path", weight.name) for weight in model.weights]
    assert len(set(names)) == len(names)


def test_configuration_has_all_arguments():
    model = small_detector(
        "rpn", name="mine", dtype="mixed_bfloat16", trainable=False, iou_threshold=0.4
    )
    json.dumps(model.get_config())
    twin = Detector.from_config(model.get_config())
    assert twin.get_config() == model.get_config()
    assert (twin.name, twin.trainable, twin.iou_threshold) == ("mine", False, 0.4)
    assert twin.dtype_policy.name == "mixed_bfloat16"
    partly = small_detector("rpn")
    partly.backbone.trainable = False
    twin = Detector.from_config(partly.get_config())
    assert twin.trainable and len(twin.trainable_weights) == len(partly.trainable_weights) == 6
    with pytest.raises(TypeError, match="unexpected keyword argument 'shape'"):
        small_detector("rpn", shape=3)


@pytest.mark.slow
def test_files_keep_the_model_and_its_training(tmp_path, is_keras_3):
    model = compiled(optimizer="adam", metrics=[Count()], loss_weights={"boxes": 2.0})
    model.fit(images(), padded_targets(), epochs=2, verbose=0)
    expected = model.evaluate(images(), padded_targets(), verbose=0, return_dict=True)
    paths = [tmp_path / "model.keras"] + [tmp_path / "folder"] * (not is_keras_3)
    for path in paths:
        model.save(path)
        loaded = tf.keras.models.load_model(path)
        assert type(loaded) is Detector
        assert_all_close(loaded.get_weights(), model.get_weights())
        assert_same_detections(loaded, model)
        if path.suffix:  # The older formats of tf-keras keep neither optimizer nor arguments.
            assert int(loaded.optimizer.iterations.numpy()) == 2
            got = loaded.evaluate(images(), padded_targets(), verbose=0, return_dict=True)
            assert got == pytest.approx(expected, rel=1e-4)
        got = loaded.fit(images(), padded_targets(), verbose=0).history
        assert got["loss"][0] > 0 and set(got) >= {"loss", *TERMS}
    model.save_weights(tmp_path / "model.weights.h5")
    twin = Detector.from_config(model.get_config())
    twin.load_weights(tmp_path / "model.weights.h5")
    assert_all_close(twin.get_weights(), model.get_weights())


def test_copies():
    model = compiled()
    as_json = tf.keras.models.model_from_json(
        model.to_json(), custom_objects={"Detector": Detector}
    )
    assert type(as_json) is Detector and len(as_json.weights) == len(model.weights)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is Detector and twin.backbone is not model.backbone
        assert_all_close(twin.get_weights(), model.get_weights())
        assert_same_detections(twin, model)


def test_checkpoints(tmp_path):
    model = compiled(optimizer="adam")
    model.fit(images(), padded_targets(), verbose=0)
    saved = model.get_weights()
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    model.fit(images(), padded_targets(), verbose=0)
    checkpoint.restore(path).assert_existing_objects_matched()
    assert_all_close(model.get_weights(), saved)
    assert int(model.optimizer.iterations.numpy()) == 1


def test_callbacks(tmp_path):
    keras = tf.keras.callbacks
    callbacks = [
        keras.ModelCheckpoint(str(tmp_path / "best.keras"), "val_loss", save_best_only=True),
        keras.ModelCheckpoint(str(tmp_path / "model.weights.h5"), save_weights_only=True),
        keras.EarlyStopping("val_loss", patience=1, restore_best_weights=True),
        keras.ReduceLROnPlateau("loss", patience=1),
        keras.BackupAndRestore(str(tmp_path / "backup")),
        keras.CSVLogger(str(tmp_path / "log.csv")),
        keras.TerminateOnNaN(),
    ]
    model = compiled()
    values = images(), padded_targets()
    logs = model.fit(*values, epochs=2, validation_data=values, callbacks=callbacks, verbose=0)
    assert {f"val_{name}" for name in ("loss", *TERMS)} < set(logs.history)
    best = tf.keras.models.load_model(tmp_path / "best.keras")
    loss = best.evaluate(*values, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(min(logs.history["val_loss"]), rel=1e-4)


# --- Exports -------------------------------------------------------------------------------------

SERVE = """
import sys
import numpy as np
import tensorflow as tf

library, request, *folders = sys.argv[1:]
tf.load_op_library(library)
(inputs,) = np.load(request).values()
for folder in folders:
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    (name,) = serve.structured_input_signature[1]
    np.savez(folder + ".npz", **serve(**{name: tf.constant(inputs)}))
assert "tf_deformable" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rfcn", "deeplab"])
def test_a_process_with_the_library_alone_serves_it(kind, tmp_path):
    """Images of any size, from a model that has seen none, or some of one size."""
    if kind == "deeplab":
        model = deeplab(backbone(), 3, deformable=True, dilate_last_stage=True)
    else:
        model = compiled(small_detector(kind, deformable=True))
        model.fit(images(), padded_targets(), verbose=0)
    folders = [str(tmp_path / name) for name in ("exported", "saved")]
    model.export(folders[0])
    tf.saved_model.save(model, folders[1])
    request = images(3)[:, :24]
    np.savez(tmp_path / "request.npz", request)
    arguments = [tf_deformable.get_library_path(), str(tmp_path / "request.npz"), *folders]
    # -I: neither the working directory nor PYTHONPATH lead to the package.
    result = subprocess.run(
        [sys.executable, "-I", "-c", SERVE, *arguments], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    expected = model.predict(request, verbose=0)
    for folder in folders:
        answers = np.load(folder + ".npz")
        if kind == "deeplab":
            (logits,) = answers.values()
            np.testing.assert_allclose(logits, expected, atol=1e-4)
        else:
            assert set(answers) == {"boxes", "scores", "classes", "counts"}
            np.testing.assert_allclose(answers["boxes"], expected["boxes"], atol=1e-2)
            np.testing.assert_allclose(answers["scores"], expected["scores"], atol=1e-4)


# --- Compositions --------------------------------------------------------------------------------


def test_says_what_it_takes_and_returns(is_keras_3):
    model = small_detector()
    assert tuple(model.input_shape) == (None, None, None, 1)
    assert model.get_layer("backbone") is model.backbone and model.built
    shapes = model.compute_output_shape((2, 32, 40, 1))
    found = {name: tuple(shape) for name, shape in shapes.items()}
    assert found == {"boxes": (2, 5, 4), "scores": (2, 5), "classes": (2, 5), "counts": (2,)}
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert all(name in "\n".join(lines) for name in ("backbone", "rpn", "faster_rcnn"))


class Outer(tf.keras.Model):
    """A subclassed model of a detector."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs, training=None):
        return self.inner(inputs, training=training)


def test_inside_of_other_models(tmp_path):
    inner = small_detector()
    inputs = tf.keras.Input((32, 40, 1))
    found = inner(layers.Rescaling(1.0)(inputs))
    assert tuple(found["boxes"].shape) == (None, 5, 4)
    outer = tf.keras.Model(inputs, found)
    assert_same_detections(outer, inner)
    assert_same_detections(Outer(inner), inner)
    assert len(outer.weights) == len(inner.weights)
    outer.save(tmp_path / "outer.keras")
    assert_same_detections(tf.keras.models.load_model(tmp_path / "outer.keras"), inner)
    for training in (False, True):  # Calls return detections, whatever the phase.
        assert set(inner(images(), training=training)) == set(found)


def test_around_a_subclassed_backbone():
    class Network(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.convolution = layers.Conv2D(4, 3, strides=8, padding="same")

        def call(self, inputs):
            return self.convolution(inputs)

    network = Network()
    network(images())
    rpn = region_proposal_network(4, 2, 1, units=4)
    model = compiled(Detector(network, rpn, None, 2, 8, (14,), detections=5))
    model.fit(images(), padded_targets(), verbose=0)
    assert model.predict(images(), verbose=0)["boxes"].shape == (4, 5, 4)
