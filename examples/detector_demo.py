"""Trains two small detectors of handwritten digits: plain and deformable RoI pooling.

    python examples/detector_demo.py [--quick] [--seed 0] [--output build/detector]

Several digits of any size lie on a canvas. Both detectors have the same backbone, see the same
proposals, from the same seed; one pools them with `RoIPool`, the other with `DeformableRoIPool`,
and the plain one's head is wider, so that both have as many weights. There is no region proposal
network: proposals are, in training, jittered boxes of digits and random anchors; in the test they
are anchors alone, the same for all images, so that nothing about a test image is given away.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow: its notes on the machine

import numpy as np
import tensorflow as tf
from average_precision import DIGITS, Detections, mean_average_precision
from detector_picture import draw_detections
from digit_scenes import CANVAS, Scenes, compose
from digits import Array, load

import tf_deformable
from tf_deformable import analysis
from tf_deformable.models import boxes, faster_rcnn_head

STRIDE = 4  # pixels of the image per cell of the features
BINS = 5
HIDDEN = {"plain": 112, "deformable": 64}  # the deformable one's other weights predict offsets
ANCHOR_SIZES = (11, 16, 23)
ANCHOR_STEP = 6
BATCH = 16
LEARNING_RATE = 3e-3


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much data and training a run takes."""

    scenes: int
    test_scenes: int
    proposals: int  # per training scene, half of them near digits
    epochs: int
    max_scans: int | None = None


FULL = Budget(scenes=800, test_scenes=150, proposals=32, epochs=6)
QUICK = Budget(scenes=64, test_scenes=16, proposals=16, epochs=1, max_scans=400)


def main() -> None:
    """Runs the demo."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description="Deformable RoI pooling on handwritten digits.")
    parser.add_argument("--quick", action="store_true", help="few scenes, one epoch: a smoke test")
    parser.add_argument("--seed", type=int, default=0, help="of weights, scenes and proposals")
    parser.add_argument("--output", type=Path, default=Path("build/detector"))
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
    models = [train(name, training, budget, arguments.seed) for name in HIDDEN]
    detections = [detect(model, test) for model in models]

    print(f"\n{'':<12}{'parameters':>12}{'mAP at 0.5':>12}{'mAP at 0.7':>12}")
    for model, found in zip(models, detections, strict=True):
        precisions = [mean_average_precision(found, test, iou) for iou in (0.5, 0.7)]
        print(
            f"{model.name:<12}{model.count_params():>12,}",
            *(f"{100 * precision:>11.1f}" for precision in precisions),
        )
    deformable, found = models[-1], detections[-1]
    shown = slice(0, 3)
    top = found.boxes[shown, : found.counts[shown].max()]
    (bins,) = analysis.roi_bins(deformable, [test.images[shown], top])
    (offsets,) = analysis.offset_report(deformable, [test.images[shown], top]).layers
    print(f"\nDeformable bins move by {offsets.mean:.1%} of their box's size on average.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    picture = arguments.output / "bins.png"
    draw_detections(test.images[shown], found, bins, picture)
    print(f"Picture: {picture}\nThe demo took {time.perf_counter() - started:.0f} s.")


def build(name: str) -> tf.keras.Model:
    """Returns a detector: `[images, proposals]` to class logits and box deltas of each proposal."""
    layers = tf.keras.layers
    images = tf.keras.Input((None, None, 1), name="images")
    proposals = tf.keras.Input((None, 4), name="proposals")
    features = images
    for filters, strides in ((16, 2), (32, 2), (48, 1)):
        features = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(
            features
        )
        features = layers.BatchNormalization(momentum=0.9)(features)
        features = layers.ReLU()(features)
    head = faster_rcnn_head(
        48,
        DIGITS,
        STRIDE,
        deformable=name == "deformable",
        bins=BINS,
        units=(HIDDEN[name],),
        name="head",
    )
    return tf.keras.Model([images, proposals], head([features, proposals]), name=name)


def train(name: str, scenes: Scenes, budget: Budget, seed: int) -> tf.keras.Model:
    """Builds and trains a detector."""
    tf.keras.utils.set_random_seed(seed)
    proposals = training_proposals(scenes, budget.proposals, np.random.default_rng(seed))
    labels, deltas = assign(proposals, scenes)
    model = build(name)
    steps = budget.epochs * -(-len(scenes) // BATCH)
    schedule = tf.keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 5, warmup_target=LEARNING_RATE, warmup_steps=max(steps // 5, 1)
    )
    model.compile(
        optimizer=tf.keras.optimizers.Adam(schedule),
        loss=[
            tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            tf.keras.losses.Huber(),
        ],
        weighted_metrics=[["accuracy"], []],
    )
    print(f"\nTraining the {name} detector, {model.count_params():,} parameters")
    model.fit(
        [scenes.images, proposals],
        [labels, deltas],
        sample_weight=[
            np.ones_like(labels, np.float32),
            1.0 * (labels < DIGITS),
        ],  # no digit: no box
        batch_size=BATCH,
        epochs=budget.epochs,
    )
    return model


def anchors() -> Array:
    """Returns boxes of some sizes all over the canvas: [A, 4]."""
    everywhere = boxes.anchor_boxes((CANVAS // ANCHOR_STEP,) * 2, ANCHOR_STEP, ANCHOR_SIZES)
    return everywhere.numpy().clip(0, CANVAS)


def training_proposals(scenes: Scenes, count: int, rng: np.random.Generator) -> Array:
    """Returns proposals [N, count, 4]: jittered digits, then random anchors."""
    near = count // 2
    rows = np.stack([rng.choice(np.flatnonzero(p), near) for p in scenes.present])
    digits = np.take_along_axis(scenes.boxes, rows[..., np.newaxis], axis=1)
    sizes = np.tile(digits[..., 2:] - digits[..., :2], 2)
    jittered = digits + sizes * rng.uniform(-0.25, 0.25, digits.shape)
    far = anchors()[rng.integers(0, len(anchors()), (len(scenes), count - near))]
    return np.concatenate([jittered.clip(0, CANVAS), far], axis=1).astype(np.float32)


def assign(proposals: Array, scenes: Scenes) -> tuple[np.ndarray, Array]:
    """Returns the label of each proposal, [N, P], and the deltas to its digit, [N, P, 4]."""
    labels, deltas = boxes.assign(proposals, scenes.boxes, scenes.labels, DIGITS)
    return labels.numpy(), deltas.numpy()


def detect(model: tf.keras.Model, scenes: Scenes) -> Detections:
    """Classifies and refines all anchors and keeps the best boxes of each class."""
    proposals = np.tile(anchors(), (len(scenes), 1, 1))
    logits, deltas = model.predict([scenes.images, proposals], batch_size=BATCH, verbose=0)
    found = boxes.select(
        boxes.decode(proposals, deltas),
        tf.nn.softmax(logits)[..., :DIGITS],
        count=20,
        iou_threshold=0.3,
        score_threshold=0.05,
    )
    return Detections.of(found)


if __name__ == "__main__":
    main()
