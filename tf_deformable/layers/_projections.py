"""What layers share that project channels before and after they sample."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_deformable.layers._base import OperatorLayer, fresh


class ProjectingLayer(OperatorLayer):
    """A layer with linear projections of channels.

    Those of features are in the compute dtype and have initializers and regularizers. Those that
    predict where to look start at zero, and compute in the dtype of positions.
    """

    def __init__(
        self,
        *,
        use_bias: Any,
        kernel_initializer: Any,
        bias_initializer: Any,
        kernel_regularizer: Any,
        bias_regularizer: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.use_bias = self._boolean("use_bias", use_bias)
        self.kernel_initializer = tf.keras.initializers.get(kernel_initializer)
        self.bias_initializer = tf.keras.initializers.get(bias_initializer)
        self.kernel_regularizer = tf.keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = tf.keras.regularizers.get(bias_regularizer)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "use_bias": self.use_bias,
            "kernel_initializer": tf.keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": tf.keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": tf.keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": tf.keras.regularizers.serialize(self.bias_regularizer),
        }

    def _add_projection(
        self, name: str, inputs: int, outputs: int, *, use_bias: bool | None = None
    ) -> None:
        """Adds the weights `<name>_kernel` and `<name>_bias`, which is None where there is none."""
        kernel = self.add_weight(
            name=f"{name}_kernel",
            shape=(inputs, outputs),
            initializer=fresh(self.kernel_initializer),
            regularizer=self.kernel_regularizer,
        )
        setattr(self, f"{name}_kernel", kernel)
        bias = None
        if self.use_bias if use_bias is None else use_bias:
            bias = self.add_weight(
                name=f"{name}_bias",
                shape=(outputs,),
                initializer=fresh(self.bias_initializer),
                regularizer=self.bias_regularizer,
            )
        setattr(self, f"{name}_bias", bias)

    def _project(self, name: str, tensor: tf.Tensor) -> tf.Tensor:
        """Returns a projection of features."""
        result = tf.tensordot(tensor, self._cast(getattr(self, f"{name}_kernel")), 1)
        bias = getattr(self, f"{name}_bias")
        return result if bias is None else result + self._cast(bias)

    def _add_prediction(
        self, name: str, inputs: int, outputs: int, bias_initializer: Any = "zeros"
    ) -> None:
        """Adds the weights `<name>_kernel` and `<name>_bias`."""
        for kind, shape, initializer in (
            ("kernel", (inputs, outputs), "zeros"),
            ("bias", (outputs,), bias_initializer),
        ):
            weight = self._add_branch_weight(
                name=f"{name}_{kind}", shape=shape, initializer=initializer
            )
            setattr(self, f"{name}_{kind}", weight)

    def _predict(self, name: str, tensor: tf.Tensor) -> tf.Tensor:
        """Returns what a tensor in the dtype of positions predicts."""
        kernel, bias = (getattr(self, f"{name}_{kind}") for kind in ("kernel", "bias"))
        return tf.tensordot(tensor, self._cast_sampling(kernel), 1) + self._cast_sampling(bias)
