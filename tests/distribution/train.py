"""Trains a small network under a strategy of tf.distribute, and writes down what came of it.

python -m tests.distribution.train STRATEGY FOLDER

Every process of a cluster runs this. STRATEGY is a name of `STRATEGIES`; where the work is done, a
file FOLDER/<job><index>.npz gets the weights of each way of training, and as `refused/<way>` what
Keras says where it cannot train any network in that way, a plain convolution included.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

import tf_deformable

IMAGES, BATCH, EPOCHS, BOXES, CLASSES = 16, 8, 2, 3, 5
TASK = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {"type": "local", "index": 0})


def network() -> tf.keras.Model:
    """Returns a network with every kind of layer; offsets are not whole numbers from the start."""
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    moved = {"offset_kernel_initializer": "he_normal", "offset_bias_initializer": "random_normal"}
    images, boxes = tf.keras.Input((16, 16, 3)), tf.keras.Input((BOXES, 4))
    features = tf_deformable.DeformableConv2D(6, 3, 2, "same", activation="relu", **moved)(images)
    features = tf_deformable.DeformableConv2D(8, 3, padding="same", modulated=True, **moved)(
        features
    )
    pooled = tf_deformable.DeformableRoIPool(2, spatial_scale=0.5, offset_units=(4,), **moved)(
        [features, boxes]
    )
    queries = layers.Dense(8)(layers.Reshape((BOXES, 2 * 2 * 8))(pooled))
    centers = layers.Reshape((BOXES, 1, 2))(
        layers.Dense(2, "sigmoid", name="centers")(layers.Rescaling(1 / 16)(boxes))
    )
    attention = tf_deformable.MultiScaleDeformableAttention(2, num_levels=1, num_points=2)
    seen = layers.Add()([queries, attention([queries, centers, features])])
    outputs = layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(seen))
    return tf.keras.Model([images, boxes], outputs)


def plain_network() -> tf.keras.Model:
    """Returns a network without any layer of this package, for the same data."""
    layers = tf.keras.layers
    images, boxes = tf.keras.Input((16, 16, 3)), tf.keras.Input((BOXES, 4))
    features = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(images))
    joined = layers.Concatenate()([features, layers.Flatten()(boxes)])
    return tf.keras.Model([images, boxes], layers.Dense(CLASSES)(joined))


def arrays() -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Returns images with boxes, and their classes."""
    random = np.random.default_rng(1)
    corners = random.uniform(0, 9, [IMAGES, BOXES, 2])
    boxes = np.concatenate([corners, corners + random.uniform(3, 7, corners.shape)], axis=-1)
    images = random.normal(size=[IMAGES, 16, 16, 3])
    return (images, boxes), random.integers(0, CLASSES, IMAGES)


def dataset() -> tf.data.Dataset:
    """Returns the batches of an epoch."""
    return tf.data.Dataset.from_tensor_slices(arrays()).batch(BATCH, drop_remainder=True)


def optimizer(model: tf.keras.Model | None = None) -> tf.keras.optimizers.Optimizer:
    """Returns an optimizer; with its variables, if it gets the model.

    A first step that makes them inside of a tf.function fails under MirroredStrategy in Keras 3,
    whatever the layers are.
    """
    adam = tf.keras.optimizers.Adam(0.01)
    if model is not None:
        adam.build(model.trainable_variables)
    return adam


def loss(**arguments: str) -> tf.keras.losses.Loss:
    return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, **arguments)


def gradients_of(
    model: tf.keras.Model, inputs: tuple[tf.Tensor, ...], labels: tf.Tensor
) -> list[tf.Tensor]:
    """Returns the part of some images in the gradients of a global batch."""
    with tf.GradientTape() as tape:
        losses = loss(reduction="none")(labels, model(inputs, training=True))
        part = tf.nn.compute_average_loss(losses, global_batch_size=BATCH)
    return tape.gradient(part, model.trainable_variables)


# --- Ways of training ----------------------------------------------------------------------------


def untrained(strategy: tf.distribute.Strategy) -> list[np.ndarray]:
    """Returns what training starts from."""
    return network().get_weights()


def by_loop(strategy: tf.distribute.Strategy) -> list[np.ndarray]:
    """A training loop of one's own: replicas in step."""
    with strategy.scope():
        model = network()
        updates = optimizer(model)

    def replica_step(inputs: tuple[tf.Tensor, ...], labels: tf.Tensor) -> None:
        gradients = gradients_of(model, inputs, labels)
        updates.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    step = tf.function(lambda batch: strategy.run(replica_step, args=batch))
    for _ in range(EPOCHS):
        for batch in strategy.experimental_distribute_dataset(dataset()):
            step(batch)
    return model.get_weights()


def by_coordinator(strategy: tf.distribute.ParameterServerStrategy) -> list[np.ndarray]:
    """A loop of one's own: each worker has a part of the batch, and the coordinator adds up."""
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        model = network()
        updates = optimizer(model)

    @tf.function
    def worker_step(inputs: tuple[tf.Tensor, ...], labels: tf.Tensor) -> list[tf.Tensor]:
        return gradients_of(model, inputs, labels)

    for _ in range(EPOCHS):
        for inputs, labels in dataset():
            parts = zip(*(tf.split(tensor, 2) for tensor in (*inputs, labels)), strict=True)
            scheduled = [
                coordinator.schedule(worker_step, args=((images, boxes), classes))
                for images, boxes, classes in parts
            ]
            gradients = map(tf.add_n, zip(*coordinator.fetch(scheduled), strict=True))
            updates.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return model.get_weights()


def by_fit(
    strategy: tf.distribute.Strategy, build: Callable[[], tf.keras.Model] = network
) -> list[np.ndarray]:
    """Keras' own loop."""
    with strategy.scope():
        model = build()
        model.compile(optimizer(), loss())
    model.fit(dataset(), epochs=EPOCHS, shuffle=False, verbose=0)
    return model.get_weights()


def by_asynchronous_fit(
    strategy: tf.distribute.Strategy, build: Callable[[], tf.keras.Model] = network
) -> list[float]:
    """Keras' own loop where every worker goes at its own pace; returns the losses of epochs."""
    with strategy.scope():
        model = build()
        model.compile(optimizer(), loss())
    batches = dataset().repeat()
    history = model.fit(batches, epochs=6, steps_per_epoch=4, shuffle=False, verbose=0)
    return history.history["loss"]


# --- Strategies ----------------------------------------------------------------------------------


def alone() -> tf.distribute.Strategy:
    return tf.distribute.get_strategy()


def mirrored() -> tf.distribute.Strategy:
    """Two replicas, on logical devices of one processor."""
    (processor,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        processor, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def data_parallel() -> tf.distribute.Strategy:
    """Keras 3's own distribution, for all that follows."""
    mirrored()
    distribution = tf.keras.distribution
    distribution.set_distribution(distribution.DataParallel(devices=["cpu:0", "cpu:1"]))
    return tf.distribute.get_strategy()


def parameter_server() -> tf.distribute.Strategy:
    """Returns the coordinator's strategy; workers and parameter servers do not come back."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type in ("worker", "ps"):
        tf.distribute.Server(
            resolver.cluster_spec(), resolver.task_type, resolver.task_id, protocol="grpc"
        ).join()
    return tf.distribute.ParameterServerStrategy(resolver)


STRATEGIES = {
    "alone": (alone, {"start": untrained, "loop": by_loop, "fit": by_fit}),
    "mirrored": (mirrored, {"loop": by_loop, "fit": by_fit}),
    "data_parallel": (data_parallel, {"fit": by_fit}),
    "multi_worker_mirrored": (
        tf.distribute.MultiWorkerMirroredStrategy,
        {"loop": by_loop, "fit": by_fit},
    ),
    "parameter_server": (
        parameter_server,
        {"coordinator": by_coordinator, "fit": by_asynchronous_fit},
    ),
}


def main() -> None:
    name, folder = sys.argv[1:]
    make_strategy, ways = STRATEGIES[name]
    tf.keras.backend.set_floatx("float64")
    strategy = make_strategy()
    results = {}
    for way, train in ways.items():
        if "fit" in way:
            try:
                train(strategy, plain_network)
            except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
                results[f"refused/{way}"] = np.array(str(error)[:200])
                continue
        for index, array in enumerate(train(strategy)):
            results[f"{way}/{index:02}"] = np.asarray(array)
    np.savez(Path(folder) / f"{TASK['type']}{TASK['index']}.npz", **results)


if __name__ == "__main__":
    main()
