"""Models to export, of every kind, and inputs of sizes other than those they are traced with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

import tf_deformable


class Case(NamedTuple):
    """A model, inputs for it in the order of a call, and a signature if it has none of its own."""

    model: Any
    inputs: list[np.ndarray]
    input_signature: list[Any] | None = None

    def expected(self) -> dict[str, np.ndarray]:
        """What the model gives, under the names of a signature's outputs."""
        outputs = self.model(self.inputs if len(self.inputs) > 1 else self.inputs[0])
        if not isinstance(outputs, dict):
            flat = enumerate(tf.nest.flatten(outputs))
            outputs = {f"output_{number}": output for number, output in flat}
        return {name: np.asarray(output) for name, output in outputs.items()}


def by_name(inputs: list[np.ndarray], ranks: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Inputs of a model, which differ in rank, under the names that runtimes have for them."""
    by_rank = {array.ndim: array for array in inputs}
    assert sorted(by_rank) == sorted(ranks.values())
    return {name: by_rank[rank] for name, rank in ranks.items()}


def assert_same(
    got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], tolerance: float = 1e-5
) -> None:
    """Outputs have the same names, dtypes, shapes and, within the tolerance, values."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        scale = max(1.0, np.abs(array).max(initial=0))
        np.testing.assert_allclose(got[name], array, atol=tolerance * scale, err_msg=name)


def offset_kernel() -> Any:
    """Offsets of a pixel or so."""
    return tf.keras.initializers.RandomNormal(stddev=0.3, seed=1)


def images(*shape: int) -> np.ndarray:
    """Random images."""
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def boxes(batch: int, count: int, extent: float) -> np.ndarray:
    """Random boxes, some reach out of an image of that extent; the last of each is padding."""
    random = np.random.default_rng(6)
    corners = random.uniform(-2, extent * 0.6, [batch, count, 2])
    sizes = random.uniform(1, extent * 0.6, corners.shape)
    result = np.concatenate([corners, corners + sizes], axis=-1).astype(np.float32)
    result[:, -1] = 0
    return result


def convolution(size: tuple[int | None, int | None] = (None, None), **arguments: Any) -> Case:
    """One layer that is deformable, and a plain one after it."""
    channels_first = arguments.get("data_format") == "channels_first"
    shape = (6, *size) if channels_first else (*size, 6)
    layer = tf_deformable.DeformableConv2D(
        8, **{"kernel_size": 3, **arguments}, offset_kernel_initializer=offset_kernel()
    )
    inputs = tf.keras.Input(shape)
    model = tf.keras.Model(inputs, layer(inputs))
    return Case(model, [images(2, 6, 13, 10) if channels_first else images(2, 13, 10, 6)])


def pooling(kind: str, size: tuple[int | None, int | None] = (None, None), **geometry: Any) -> Case:
    """A map and boxes to one pooling layer of the package."""
    geometry = {"spatial_scale": 0.5, **geometry}
    channels = 3 * 3 * 2 if kind == "PSRoIPool" else 6
    layer_type = getattr(tf_deformable, kind)
    if kind == "PSRoIPool":
        layer = layer_type(3, 3, **geometry)
    elif kind == "DeformableRoIPool":
        layer = layer_type(
            (3, 2),
            offset_units=(5,),
            modulated=True,
            offset_kernel_initializer=offset_kernel(),
            **geometry,
        )
    elif kind == "DeformablePSRoIPool":
        layer = layer_type(
            3, 3, score_filters=4, offset_kernel_initializer=offset_kernel(), **geometry
        )
    else:
        layer = layer_type((3, 2), **geometry)
    inputs = [
        tf.keras.Input((*size, channels), name="features"),
        tf.keras.Input((None, 4), name="boxes"),
    ]
    return Case(
        tf.keras.Model(inputs, layer(inputs)), [images(2, 13, 10, channels), boxes(2, 4, 20)]
    )


class Subclassed(tf.keras.Model):
    """Two inputs, and a `tf.function` inside that keeps the trace of its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.convolve = tf_deformable.DeformableConv2D(
            6, 3, padding="same", modulated=True, offset_kernel_initializer=offset_kernel()
        )
        self.pool = tf_deformable.DeformableRoIPool(
            2, offset_kernel_initializer=offset_kernel(), gamma=0.5
        )
        self.classify = tf.keras.layers.Dense(4)

    @tf.function
    def features(self, pixels: tf.Tensor) -> tf.Tensor:
        """Has been traced once the model has been called."""
        return self.convolve(pixels)

    def call(self, inputs: Any) -> tf.Tensor:
        """Classifies boxes."""
        pixels, corners = inputs
        return self.classify(self.pool([self.features(pixels), corners]))


def subclassed() -> Case:
    """The model of two inputs, traced natively before it is exported."""
    model = Subclassed()
    inputs = [images(2, 12, 9, 3), boxes(2, 3, 12)]
    model(inputs)
    signature = [tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, None, 4])]
    return Case(model, inputs, [signature])


class PlainModule(tf.Module):
    """No Keras: a convolution and a step of its training."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(7)
        self.filters = tf.Variable(random.normal(size=[3, 3, 2, 6]).astype(np.float32))
        self.offsets = tf.Variable(random.normal(size=[1, 1, 1, 36]).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 4], name="pixels")])
    def __call__(self, pixels: tf.Tensor) -> tf.Tensor:
        """Convolves in two groups, and two of offsets."""
        batch, height, width, _ = tf.unstack(tf.shape(pixels), num=4)
        offsets = tf.broadcast_to(self.offsets, [batch, height, width, 36])
        return tf_deformable.deformable_conv2d(pixels, self.filters, offsets)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 4], name="pixels")])
    def gradients(self, pixels: tf.Tensor) -> list[tf.Tensor]:
        """The derivatives of the squared sum."""
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self(pixels) ** 2)
        return tape.gradient(loss, [self.filters, self.offsets])


def module() -> Case:
    """A module whose signature has to be given."""
    model = PlainModule()
    return Case(model, [images(2, 7, 8, 4)], [tf.TensorSpec([None, None, None, 4], name="pixels")])


def mixed_precision() -> Case:
    """float16 with offsets in float32, and boxes."""
    policy = "mixed_float16"
    inputs = [tf.keras.Input((None, None, 3)), tf.keras.Input((None, 4))]
    features = tf_deformable.DeformableConv2D(
        6,
        3,
        padding="same",
        strides=2,
        dtype=policy,
        modulated=True,
        offset_kernel_initializer=offset_kernel(),
    )(inputs[0])
    pooled = tf_deformable.RoIPool(2, spatial_scale=0.5, dtype=policy)([features, inputs[1]])
    return Case(tf.keras.Model(inputs, pooled), [images(2, 13, 12, 3), boxes(2, 3, 12)])


def channels_first() -> Case:
    """A convolution that TensorFlow cannot compute without transposing."""
    return convolution(data_format="channels_first", padding="same", strides=2)


def attention(dim: int = 12, size: tuple[int | None, int | None] = (None, None)) -> Case:
    """Queries that look at two maps of an image, around points that follow from the queries."""
    layers = tf.keras.layers
    query, pixels = tf.keras.Input((None, dim), name="query"), tf.keras.Input((*size, 3))
    maps = [layers.Conv2D(6, 3, strides=s, padding="same")(pixels) for s in (1, 2)]
    points = layers.Dense(2, activation="sigmoid")(query)
    points = layers.Reshape((-1, 1, 2))(points)
    attend = tf_deformable.MultiScaleDeformableAttention(3, num_levels=2, num_points=[1, 3])
    outputs = attend([query, points, *maps])
    attend.offset_kernel.assign(offset_kernel()(attend.offset_kernel.shape))
    attend.attention_kernel.assign(offset_kernel()(attend.attention_kernel.shape))
    random = np.random.default_rng(8)
    queries = random.normal(size=[2, 5, dim]).astype(np.float32)
    return Case(tf.keras.Model([query, pixels], outputs), [queries, images(2, 9, 12, 3)])


def dcnv3() -> Case:
    """The operator of InternImage in a functional model."""
    layers = tf.keras.layers
    maps = tf.keras.Input((None, None, 6))
    arguments = {"kernel_size": 3, "strides": 2, "padding": "same"}
    offsets = layers.Conv2D(2 * 9 * 2, **arguments, kernel_initializer=offset_kernel())(maps)
    mask = layers.Conv2D(2 * 9, **arguments, activation="sigmoid")(maps)
    outputs = tf_deformable.dcnv3(maps, offsets, mask, kernel_size=3, strides=2, offset_scale=1.5)
    return Case(tf.keras.Model(maps, outputs), [images(2, 9, 12, 6)])


def dcn_layers() -> Case:
    """The layers of InternImage and FlashInternImage, which have no filters either."""
    maps = tf.keras.Input((None, None, 6))
    first = tf_deformable.layers.DCNv3(2, center_feature_scale=True, normalization="batch")
    second = tf_deformable.layers.DCNv4(3, strides=2)
    outputs = second(first(maps))
    for layer in (first, second):
        for weight in (layer.offset_kernel, layer.mask_kernel):
            weight.assign(offset_kernel()(weight.shape))
    return Case(tf.keras.Model(maps, outputs), [images(2, 9, 12, 6)])


def detector(kind: str = "faster_rcnn", size: int | None = None, **arguments: Any) -> Case:
    """A whole detector, up to non-maximum suppression."""
    if kind == "faster_rcnn":
        arguments = {"head_arguments": {"bins": 3, "units": (16,)}, **arguments}
    backbone = tf.keras.Sequential(
        [
            tf.keras.Input((size, size, 3)),
            tf.keras.layers.Conv2D(8, 3, strides=8, padding="same", activation="relu"),
            tf.keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="conv5"),
        ]
    )
    model = tf_deformable.models.detector(
        backbone,
        4,
        kind,
        deformable=True,
        layers=["conv5"],
        anchor_sizes=(16, 32),
        proposals=40,  # Fewer than anchors: there is no padding, whose scores would tie.
        detections=20,
        rpn_units=8,
        **arguments,
    )
    model(images(1, 64, 64, 3))
    return Case(model, [images(2, 48, 64, 3)])


KINDS: dict[str, Callable[[], Case]] = {
    function.__name__: function
    for function in (
        convolution,
        channels_first,
        mixed_precision,
        subclassed,
        module,
        attention,
        dcnv3,
        dcn_layers,
        detector,
    )
}
# Kinds of models that hold no deformable convolution: sums of samples without filters.
WITHOUT_FILTERS = ("attention", "dcnv3", "dcn_layers")
