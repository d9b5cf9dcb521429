"""Times a whole D-FINE of KerasHub, as it is and with this package's attention.

    python benchmarks/d_fine.py --peers-python PYTHON

The interpreter must have TensorFlow, keras-hub and what this package needs. Weights are random, the
sizes those of D-FINE-S: 640x640 pixels, three levels, 300 queries, three decoder layers. A step has
the gradients of all weights and of the images. docs/benchmarks.md says how it is measured.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, ClassVar

import frameworks
import harness
import numpy as np
from frameworks import Call, Data, Tensors


@dataclasses.dataclass(frozen=True)
class Case:
    """Images that a model sees."""

    name: str
    batch: int
    size: int  # pixels, a multiple of 32
    queries: int = 300
    hidden: int = 256
    points: tuple[int, ...] = (3, 6, 3)
    dtype: str = "float32"
    operations: int = 0  # not counted

    @property
    def warm_up(self) -> Case:
        """Returns a tiny case that runs the same code."""
        return dataclasses.replace(self, batch=1, size=64, queries=10)

    @property
    def description(self) -> str:
        """Returns the shape in words."""
        return f"{self.batch} images, {self.size}x{self.size}, {self.queries} queries"


SHAPES = [Case("D-FINE-S", 1, 640), Case("D-FINE-S, 2 images", 2, 640)]
BOUNDS: list[harness.Bound] = []


def make_data(case: Case, variant: str) -> Data:
    """Returns the data of `case`, the same in every process; there is one variant of it."""
    del variant
    shape = (case.batch, case.size, case.size, 3)
    return {"images": np.random.default_rng(0).uniform(size=shape).astype(np.float32)}


class KerasHub(frameworks.TensorFlow):
    """KerasHub's model."""

    modes = ("forward", "step")
    is_tensorflow = False  # a peer: the interpreter that runs this need not have KerasHub
    environment: ClassVar[dict[str, str]] = {"KERAS_BACKEND": "tensorflow"}

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import keras_hub

        self.keras_hub = keras_hub

    def versions(self) -> dict[str, str]:
        return {"KerasHub": self.keras_hub.__version__}

    def model(self, case: Case) -> Any:
        """Returns the model, whose weights are such that features stay near 1."""
        levels = ["stage2", "stage3", "stage4"]
        backbone = self.keras_hub.models.HGNetV2Backbone(
            stem_channels=[3, 16, 16],
            stackwise_stage_filters=[
                [16, 16, 64, 1, 3, 3],
                [64, 32, 256, 1, 3, 3],
                [256, 64, 512, 2, 3, 5],
                [512, 128, 1024, 1, 3, 5],
            ],
            apply_downsample=[False, True, True, True],
            use_lightweight_conv_block=[False, False, True, True],
            depths=[1, 1, 2, 1],
            hidden_sizes=[64, 256, 512, 1024],
            embedding_size=16,
            use_learnable_affine_block=True,
            hidden_act="relu",
            image_shape=(None, None, 3),
            out_features=levels,
        )
        model = self.keras_hub.models.DFineBackbone(
            backbone=backbone,
            decoder_in_channels=[case.hidden] * 3,
            encoder_hidden_dim=case.hidden,
            num_denoising=0,
            num_labels=80,
            hidden_dim=case.hidden,
            learn_initial_query=False,
            num_queries=case.queries,
            anchor_image_size=(case.size, case.size),
            feat_strides=[8, 16, 32],
            num_feature_levels=3,
            encoder_in_channels=[256, 512, 1024],
            encode_proj_layers=[2],
            num_attention_heads=8,
            encoder_ffn_dim=1024,
            num_encoder_layers=1,
            hidden_expansion=0.5,
            depth_multiplier=0.34,
            eval_idx=-1,
            num_decoder_layers=3,
            decoder_attention_heads=8,
            decoder_ffn_dim=1024,
            decoder_n_points=list(case.points),
            lqe_hidden_dim=64,
            num_lqe_layers=2,
            out_features=levels,
            image_shape=(None, None, 3),
            seed=0,
        )
        random = np.random.default_rng(1)
        for weight in model.weights:
            shape = weight.shape
            if weight.dtype == "float32" and len(shape) >= 2 and "embedding" not in weight.path:
                inputs = shape[:1] if "encoder_attn" in weight.path else shape[:-1]
                weight.assign(random.normal(size=shape) / np.sqrt(np.prod(inputs)))
        return model

    def prepare(self, case: Case, mode: str, inputs: Tensors) -> Call:
        tf, model = self.tf, self.model(case)

        def forward(images: Any) -> Tensors:
            return {"output": model(images, training=False)["intermediate_logits"]}

        def step(images: Any) -> Tensors:
            with tf.GradientTape() as tape:
                tape.watch(images)
                output = forward(images)["output"]
                loss = tf.reduce_mean(output**2)
            weights = model.trainable_weights
            of_images, *gradients = tape.gradient(loss, [images, *weights])
            norm = tf.linalg.global_norm(gradients)  # All of them are computed for it.
            return {"output": output, "grad_images": of_images, "grad_norm": norm}

        function = tf.function(
            step if mode == "step" else forward, jit_compile=self.jit_compile, autograph=False
        ).get_concrete_function(inputs["images"])
        return lambda: function(inputs["images"])


class KerasHubXla(KerasHub):
    """The same, compiled by XLA."""

    jit_compile = True


class Accelerated(KerasHub):
    """The same after `tf_deformable.models.accelerate_d_fine`."""

    def model(self, case: Case) -> Any:
        import tf_deformable

        tf_deformable.config.set_backend("native")
        return tf_deformable.models.accelerate_d_fine(super().model(case))


FRAMEWORKS = {harness.OURS: Accelerated, "KerasHub, XLA": KerasHubXla, "KerasHub": KerasHub}
SECTIONS = [harness.Section("shapes", SHAPES, tuple(FRAMEWORKS), memory=True)]

if __name__ == "__main__":
    harness.main(sys.modules[__name__])
