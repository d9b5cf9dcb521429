"""Trains a small Deformable DETR to find handwritten digits, and draws where its queries look.

    python examples/detr_demo.py [--quick] [--seed 0] [--output build/detr]

Several digits of any size lie on a canvas. A few convolutions make two maps of it. A fixed number
of queries, each with a box that says where it begins to look, pass through decoder layers: in each
they look at one another, then at the maps around their boxes with `MultiScaleDeformableAttention`,
and move their boxes. Nothing else is needed, no proposals and no suppression of double detections:
training assigns each digit to one query, the others learn to say that there is none.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow: its notes on the machine

import numpy as np
import tensorflow as tf
from average_precision import DIGITS, Detections, mean_average_precision
from detr_picture import draw_looks
from digit_scenes import CANVAS, Scenes, compose
from digits import load
from scipy.optimize import linear_sum_assignment

import tf_deformable
from tf_deformable import MultiScaleDeformableAttention
from tf_deformable.models import boxes

GRID = 6  # queries along each side: their boxes begin as cells of a grid
WIDTH = 64  # channels of maps and queries
HEADS = 4
LEVELS = 2
LAYERS = 3
BATCH = 16
LEARNING_RATE = 1e-3
MOST_DETECTIONS = 10

layers = tf.keras.layers


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much data and training a run takes."""

    scenes: int
    test_scenes: int
    steps: int
    max_scans: int | None = None


FULL = Budget(scenes=1600, test_scenes=150, steps=2400)
QUICK = Budget(scenes=32, test_scenes=8, steps=4, max_scans=400)


class DecoderLayer(layers.Layer):
    """Queries look at one another, then at the maps."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.one_another = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)
        self.maps = MultiScaleDeformableAttention(HEADS, LEVELS, num_points=4)
        self.hidden = layers.Dense(2 * WIDTH, activation="relu")
        self.out = layers.Dense(WIDTH)
        self.norms = [layers.LayerNormalization() for _ in range(3)]

    def call(self, content: tf.Tensor, place: tf.Tensor, box: tf.Tensor, maps: Any) -> tf.Tensor:
        """Returns the content of the queries, `[B, Q, WIDTH]`, after they have looked."""
        content = self.after_one_another(content, place)
        looked = self.maps([content + place, box[:, :, tf.newaxis], *maps])
        content = self.norms[1](content + looked)
        return self.norms[2](content + self.out(self.hidden(content)))

    def after_one_another(self, content: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        """Returns the content of the queries after they have looked at one another."""
        query = content + place
        return self.norms[0](content + self.one_another(query, content, query))

    def look(
        self, content: tf.Tensor, place: tf.Tensor, box: tf.Tensor, maps: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns where the queries look, and how much each point counts."""
        query = self.after_one_another(content, place) + place
        return self.maps.sampling_locations([query, box[:, :, tf.newaxis], *maps])


class Detr(tf.keras.Model):
    """Images to the boxes and the classes of a fixed number of queries."""

    def __init__(self) -> None:
        super().__init__(name="detr")
        self.convolutions = [
            tf.keras.Sequential(
                [
                    layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False),
                    layers.BatchNormalization(momentum=0.9),
                    layers.ReLU(),
                ]
            )
            for filters, strides in ((16, 2), (32, 2), (WIDTH, 1), (WIDTH, 2))
        ]
        self.decoder = [DecoderLayer(name=f"decoder{i}") for i in range(LAYERS)]
        self.place = tf.keras.Sequential(
            [layers.Dense(WIDTH, activation="relu"), layers.Dense(WIDTH)], name="place"
        )
        # At first no query sees a digit (with the probability 0.05), and no box moves.
        prior = tf.keras.initializers.Constant(-3.0)
        self.classes = [layers.Dense(DIGITS, bias_initializer=prior) for _ in range(LAYERS)]
        self.moves = [
            tf.keras.Sequential(
                [
                    layers.Dense(WIDTH, activation="relu"),
                    layers.Dense(4, kernel_initializer="zeros"),
                ]
            )
            for _ in range(LAYERS)
        ]

    def build(self, input_shape: Any) -> None:
        """Creates what the queries begin with: their content, and boxes (y, x, height, width)."""
        centers = (np.indices([GRID, GRID]).reshape(2, -1).T + 0.5) / GRID
        cells = np.concatenate([centers, np.full(centers.shape, 1 / GRID)], axis=1)
        self.content = self.add_weight(name="content", shape=(GRID**2, WIDTH))
        self.logits_of_boxes = self.add_weight(
            name="boxes",
            shape=cells.shape,
            initializer=lambda shape, dtype=None: tf.constant(np.log(cells / (1 - cells)), dtype),
        )
        super().build(input_shape)

    def call(self, images: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """Returns what every decoder layer has found.

        Returns:
            "boxes" `[LAYERS, B, Q, 4]`, (y, x, height, width) of (y, x) centers, in fractions of
            the canvas, and "logits" `[LAYERS, B, Q, DIGITS]`.
        """
        found = self.states(images, training)[1]
        return {name: tf.stack(of_layers) for name, of_layers in found.items()}

    def states(self, images: tf.Tensor, training: bool | None = None) -> tuple[list, dict]:
        """Returns what each decoder layer is called with, and what each has found."""
        maps = []
        for convolution in self.convolutions:
            images = convolution(images, training=training)
            maps.append(images)
        maps = maps[-LEVELS:]
        batch = tf.shape(images)[0]
        content = tf.tile(self.content[tf.newaxis], [batch, 1, 1])
        logits = tf.tile(self.logits_of_boxes[tf.newaxis], [batch, 1, 1])
        arguments, found = [], {"boxes": [], "logits": []}
        for decode, move, classify in zip(self.decoder, self.moves, self.classes, strict=True):
            box = tf.sigmoid(logits)
            arguments.append((content, self.place(box), box, maps))
            content = decode(*arguments[-1])
            # As in the paper, a layer learns to move the box that it is given, and not to give it.
            logits = tf.stop_gradient(logits) + move(content)
            found["boxes"].append(tf.sigmoid(logits))
            found["logits"].append(classify(content))
        return arguments, found


def main() -> None:
    """Runs the demo."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description="A small Deformable DETR on handwritten digits.")
    parser.add_argument("--quick", action="store_true", help="few scenes and steps: a smoke test")
    parser.add_argument("--seed", type=int, default=0, help="of weights and scenes")
    parser.add_argument("--output", type=Path, default=Path("build/detr"))
    arguments = parser.parse_args()
    budget = QUICK if arguments.quick else FULL

    splits = load(seed=arguments.seed, copies=3, max_scans=budget.max_scans)
    training = compose(splits.training, budget.scenes, np.random.default_rng(arguments.seed))
    test = compose(splits.test, budget.test_scenes, np.random.default_rng(0))
    print(
        f"{len(training):,} scenes to train on and {len(test):,} to test on, of other digits; "
        f"{CANVAS}x{CANVAS} pixels, {test.present.sum(axis=1).mean():.1f} digits each; "
        f"{tf_deformable.config.get_backend()} backend"
    )
    model = train(training, budget, arguments.seed)
    print(f"\n{'decoder layers':<16}{'mAP at 0.5':>12}{'mAP at 0.7':>12}")
    for count in range(1, LAYERS + 1):
        found, _ = detect(model, test, layer=count - 1)
        precisions = [mean_average_precision(found, test, iou) for iou in (0.5, 0.7)]
        print(f"{count:<16}", *(f"{100 * precision:>11.1f}" for precision in precisions))
    arguments.output.mkdir(parents=True, exist_ok=True)
    picture = arguments.output / "queries.png"
    shown = test.images[:3]
    found, queries = detect(model, dataclasses.replace(test, images=shown))
    locations, weights = model.decoder[-1].look(*model.states(tf.constant(shown))[0][-1])
    draw_looks(shown, found, queries, locations.numpy(), weights.numpy(), picture)
    print(f"Picture: {picture}\nThe demo took {time.perf_counter() - started:.0f} s.")


def train(scenes: Scenes, budget: Budget, seed: int) -> Detr:
    """Builds and trains a model."""
    tf.keras.utils.set_random_seed(seed)
    model = Detr()
    model(scenes.images[:1])
    print(f"\nTraining {model.count_params():,} parameters, {budget.steps} steps")
    schedule = tf.keras.optimizers.schedules.CosineDecay(
        0.0,
        budget.steps - budget.steps // 10,
        warmup_target=LEARNING_RATE,
        warmup_steps=max(budget.steps // 10, 1),
    )
    optimizer = tf.keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=1.0)
    optimizer.build(model.trainable_variables)
    data = tf.data.Dataset.from_tensor_slices((scenes.images, scenes.boxes, scenes.labels))
    data = data.shuffle(len(scenes), seed=seed).repeat().batch(BATCH).take(budget.steps)

    @tf.function(reduce_retracing=True)
    def step(images: tf.Tensor, corners: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            found = model(images, training=True)
            value = sum(
                loss(found["boxes"][i], found["logits"][i], corners, labels) for i in range(LAYERS)
            )
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return value

    losses = []
    for number, batch in enumerate(data, start=1):
        losses.append(float(step(*batch)))
        if number % (budget.steps // 4) == 0:
            print(f"step {number}: loss {np.mean(losses[-budget.steps // 8 :]):.2f}", flush=True)
    return model


def loss(found: tf.Tensor, logits: tf.Tensor, corners: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Loss of one decoder layer: each digit is the business of the query that fits it best.

    Args:
        found: `[B, Q, 4]`, (y, x, height, width).
        logits: `[B, Q, DIGITS]`.
        corners: `[B, M, 4]`, (y1, x1, y2, x2) in pixels.
        labels: `[B, M]`, -1 for padding.
    """
    present = labels >= 0
    wanted = tf.one_hot(labels, DIGITS)  # zeros for padding
    target = from_corners(corners)
    # Of every query to every digit, [B, Q, M].
    distance = tf.reduce_sum(tf.abs(found[:, :, tf.newaxis] - target[:, tf.newaxis]), axis=-1)
    overlap = boxes.iou(to_corners(found), corners)
    of_boxes = 5 * distance + 2 * (1 - overlap)
    probability = tf.einsum("bqc,bmc->bqm", tf.sigmoid(logits), wanted)
    pairs = tf.numpy_function(match, [of_boxes - 2 * probability, present], tf.float32)
    pairs.set_shape(of_boxes.shape)
    digits = tf.reduce_sum(tf.cast(present, tf.float32))
    of_classes = tf.keras.losses.BinaryFocalCrossentropy(
        apply_class_balancing=True, from_logits=True, reduction="sum"
    )(tf.einsum("bqm,bmc->bqc", pairs, wanted), logits)
    return (2 * DIGITS * of_classes + tf.reduce_sum(pairs * of_boxes)) / digits


def match(costs: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Returns 1 for each query and the digit that is assigned to it, `[B, Q, M]`."""
    pairs = np.zeros(costs.shape, np.float32)
    for image, digits in enumerate(present):
        queries, columns = linear_sum_assignment(costs[image][:, digits])
        pairs[image, queries, np.flatnonzero(digits)[columns]] = 1
    return pairs


def detect(model: Detr, scenes: Scenes, layer: int = -1) -> tuple[Detections, np.ndarray]:
    """Returns the best detections of a decoder layer, and the query of each `[N, K]`."""
    found = [model(scenes.images[i : i + BATCH]) for i in range(0, len(scenes.images), BATCH)]
    logits = np.concatenate([f["logits"][layer] for f in found])
    corners = np.concatenate([to_corners(f["boxes"][layer]) for f in found])
    scores = 1 / (1 + np.exp(-logits.reshape(len(logits), -1)))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :MOST_DETECTIONS]
    queries = best // DIGITS
    detections = Detections(
        boxes=np.take_along_axis(corners, queries[..., np.newaxis], axis=1),
        scores=np.take_along_axis(scores, best, axis=1),
        classes=best % DIGITS,
        counts=np.full(len(logits), MOST_DETECTIONS),
    )
    return detections, queries


def to_corners(found: Any) -> tf.Tensor:
    """Converts (y, x, height, width) in fractions of the canvas to (y1, x1, y2, x2) in pixels."""
    center, size = tf.split(found, 2, axis=-1)
    return CANVAS * tf.concat([center - size / 2, center + size / 2], axis=-1)


def from_corners(corners: tf.Tensor) -> tf.Tensor:
    """The inverse of `to_corners`."""
    first, last = tf.split(corners / CANVAS, 2, axis=-1)
    return tf.concat([(first + last) / 2, last - first], axis=-1)


if __name__ == "__main__":
    main()
