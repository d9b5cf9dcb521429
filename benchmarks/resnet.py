"""Times a ResNet50 as it is and with deformable layers, with and without XLA.

    python benchmarks/resnet.py

The deformable one is `tf_deformable.models.deformify(network)`: the three 3x3 convolutions of the
last stage, as the paper. Weights are random, and the same in both; offsets are those of an
untrained layer, so that both compute the same. A step has the gradients of all weights and of the
images. docs/benchmarks.md says how it is measured.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import frameworks
import harness
import numpy as np
from frameworks import Call, Data, Tensors


@dataclasses.dataclass(frozen=True)
class Case:
    """Images that a network sees."""

    name: str
    batch: int
    size: int = 224
    dtype: str = "float32"
    operations: int = 0  # not counted

    @property
    def warm_up(self) -> Case:
        """Returns a tiny case that runs the same code."""
        return dataclasses.replace(self, batch=1, size=64)

    @property
    def description(self) -> str:
        """Returns the shape in words."""
        return f"{self.batch} images, {self.size}x{self.size}"


SHAPES = [Case("ResNet50", 1), Case("ResNet50, 8 images", 8)]
BOUNDS: list[harness.Bound] = []


def make_data(case: Case, variant: str) -> Data:
    """Returns the data of `case`, the same in every process; there is one variant of it."""
    del variant
    shape = (case.batch, case.size, case.size, 3)
    return {"images": np.random.default_rng(0).normal(size=shape).astype(np.float32)}


def is_of_offsets(weight: Any) -> bool:
    """Whether a weight predicts offsets."""
    return "offset" in weight.name


class Plain(frameworks.TensorFlow):
    """The network of Keras."""

    modes = ("forward", "step")

    def model(self, case: Case) -> Any:
        """Returns the network."""
        keras = self.tf.keras
        keras.utils.set_random_seed(0)
        return keras.applications.ResNet50(
            weights=None, include_top=False, pooling="avg", input_shape=(case.size, case.size, 3)
        )

    def prepare(self, case: Case, mode: str, inputs: Tensors) -> Call:
        tf, model = self.tf, self.model(case)

        def forward(images: Any) -> Tensors:
            return {"output": model(images, training=False)}

        def step(images: Any) -> Tensors:
            with tf.GradientTape() as tape:
                tape.watch(images)
                output = model(images, training=False)
                loss = tf.reduce_mean(output**2)
            weights = model.trainable_weights
            of_images, *gradients = tape.gradient(loss, [images, *weights])
            of_offsets = [g for w, g in zip(weights, gradients, strict=True) if is_of_offsets(w)]
            of_others = [g for w, g in zip(weights, gradients, strict=True) if not is_of_offsets(w)]
            # Rectifiers whose input is rounding alone let gradients through or not: norms are what
            # can be compared. That of the offsets' has to be computed, and adds nothing.
            norm = tf.linalg.global_norm(of_others)
            norm += tf.minimum(tf.linalg.global_norm([tf.zeros([]), *of_offsets]), 0)
            return {"output": output, "grad_images": tf.norm(of_images), "grad_weights": norm}

        function = tf.function(
            step if mode == "step" else forward, jit_compile=self.jit_compile, autograph=False
        ).get_concrete_function(inputs["images"])
        return lambda: function(inputs["images"])


class PlainXla(Plain):
    """The same, compiled by XLA."""

    jit_compile = True


class Native(Plain):
    """The deformable network, with the compiled operators."""

    backend = "native"

    def model(self, case: Case) -> Any:
        import tf_deformable

        tf_deformable.config.set_backend(self.backend)
        return tf_deformable.models.deformify(super().model(case))


class NativeXla(Native):
    """The same, compiled by XLA."""

    jit_compile = True


class Reference(Native):
    """The deformable network, in plain TensorFlow."""

    backend = "reference"


class ReferenceXla(Reference):
    """The same, compiled by XLA."""

    jit_compile = True


FRAMEWORKS = {
    harness.OURS: Native,
    "tf_deformable, XLA": NativeXla,
    "plain": Plain,
    "plain, XLA": PlainXla,
    "reference": Reference,
    "reference, XLA": ReferenceXla,
}
SECTIONS = [harness.Section("networks", SHAPES, tuple(FRAMEWORKS), memory=True)]

if __name__ == "__main__":
    harness.main(sys.modules[__name__])
