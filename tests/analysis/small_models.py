"""Small models whose positions can be worked out, and the pixels their units really depend on."""

import numpy as np
import tensorflow as tf

import tf_deformable

layers = tf.keras.layers


def small(values):
    """The remainder by 2, whole numbers stay whole: offsets stay small. The gradient is one."""
    remainder = tf.math.floormod(values, tf.constant(2, values.dtype))
    return values + tf.stop_gradient(remainder - values)


def deformable(name, **arguments):
    """A layer all of whose samples count, and whose offsets pass no gradient on."""
    return tf_deformable.DeformableConv2D(
        arguments.pop("filters", 1),
        arguments.pop("kernel_size", 3),
        name=name,
        kernel_initializer="ones",
        activation=small,
        offset_learning_rate_multiplier=0.0,
        **{"padding": "same", **arguments},
    )


def plain(kernel_size=1, **arguments):
    return layers.Conv2D(
        1,
        kernel_size,
        kernel_initializer="ones",
        activation=small,
        **{"padding": "same", **arguments},
    )


def randomise_offsets(model, seed=0, low=-3, high=4, integers=True):
    """Gives every layer offsets that differ from place to place: its input plus its bias.

    They are integers if the images are.
    """
    rng = np.random.default_rng(seed)
    for layer in deformable_layers(model):
        kernel = np.zeros(layer.offset_kernel.shape)
        kernel[kernel.shape[0] // 2, kernel.shape[1] // 2, 0] = rng.integers(
            -1, 2, kernel.shape[-1]
        )
        bias = rng.integers(low, high, layer.offset_bias.shape)
        if not integers:
            kernel *= rng.uniform(0.1, 0.4, kernel.shape)
            bias = bias + rng.uniform(0.1, 0.9, bias.shape)
        layer.offset_kernel.assign(kernel)
        layer.offset_bias.assign(bias)


def deformable_layers(model):
    found = []
    for layer in model.layers:
        if isinstance(layer, tf_deformable.DeformableConv2D):
            found.append(layer)
        elif hasattr(layer, "layers"):
            found += deformable_layers(layer)
    return found


def influence(model, images, unit, channels_first=False):
    """Which pixels of each image a unit of the model's output depends on: `[N, H, W]`."""
    images = tf.constant(images, tf.float32)
    y, x = unit
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = model(images)
        value = tf.reduce_sum(outputs[:, :, y, x] if channels_first else outputs[:, y, x])
    gradient = tape.gradient(value, images).numpy()
    return np.abs(gradient).sum(axis=1 if channels_first else 3) > 0


def pixels(points, size):
    """Marks the pixels next to positions `[P, 2]`, those that bilinear interpolation reads."""
    marked = np.zeros(size, bool)
    for y, x in points:
        for row in {int(np.floor(y)), int(np.ceil(y))}:
            for column in {int(np.floor(x)), int(np.ceil(x))}:
                if 0 <= row < size[0] and 0 <= column < size[1]:
                    marked[row, column] = True
    return marked


def integer_images(batch, height, width, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (batch, height, width, channels)).astype(np.float32)
