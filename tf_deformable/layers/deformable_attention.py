"""Keras layer: multi-scale deformable attention with its projections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_deformable.layers._base import as_output_shape
from tf_deformable.layers._projections import ProjectingLayer
from tf_deformable.ops._symbolic import accepts_keras_tensors
from tf_deformable.ops.deformable_attention import multi_scale_deformable_attention


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class MultiScaleDeformableAttention(ProjectingLayer):
    """Attention of queries to a few points of several maps, as in Deformable DETR.

    Every head of every query looks at `num_points` points of each level. Where they lie, relative
    to the query's reference point, and how much each of them counts, are linear functions of the
    query; the weights of all points of a head pass through a softmax. What is read there is a
    linear projection of the maps, and the heads' sums are projected once more.

    An untrained layer does not look at the query: head h reads at distances of 1, 2, ...
    `num_points` pixels in a direction of its own, all with the same weight.

    Example:
        >>> maps = [tf.random.normal([2, 32, 40, 64]), tf.random.normal([2, 16, 20, 64])]
        >>> query = tf.random.normal([2, 100, 64])
        >>> reference_points = tf.random.uniform([2, 100, 1, 2])
        >>> layer = tf_deformable.layers.MultiScaleDeformableAttention(num_heads=8, num_levels=2)
        >>> layer([query, reference_points, *maps]).shape
        TensorShape([2, 100, 64])

    Args:
        num_heads: int, number of heads.
        num_levels: int, number of maps.
        num_points: int, points of each level that a head of a query reads; or a list with those of
            each level, as D-FINE has them.
        head_dim: int, channels of a head, or None for the query's channels divided by `num_heads`.
        output_dim: int, channels of the output, or None for the query's.
        use_bias: bool, whether the projections of the value and of the output have biases. (Offsets
            and attention weights always have them.)
        kernel_initializer: initializer of the kernels of the projections.
        bias_initializer: initializer of the biases of the projections.
        kernel_regularizer: regularizer of the kernels of the projections.
        bias_regularizer: regularizer of the biases of the projections.
        **kwargs: what every Keras layer takes: `name`, `dtype`, `trainable`.

    Weights:
        In this order:
        value_kernel, value_bias: `[C, heads*head_dim]` and `[heads*head_dim]`.
        offset_kernel, offset_bias: `[Cq, heads*P*2]` and its last axis, P the points of all levels,
            ordered (head, level, point, (dy, dx)), in pixels of the level. The kernel starts at
            zero, the bias as above.
        attention_kernel, attention_bias: `[Cq, heads*P]` and its last axis, ordered (head, level,
            point). They start at zero.
        output_kernel, output_bias: `[heads*head_dim, output_dim]` and `[output_dim]`.

        Those of other packages are the same but for the pairs, (dx, dy) there:
        `tf_deformable.convert.yx_from_xy` exchanges those of offset_kernel and offset_bias.
        (PyTorch's kernels are transposed.)

    Call arguments:
        inputs: a list `[query, reference_points, value]` or `[query, reference_points, *maps]`:
            query: `[B, Q, Cq]`, with what is to say where it stands already added.
            reference_points: `[B, Q, levels, 2]`, (y, x), or boxes `[B, Q, levels, 4]`, (y, x,
                height, width) with (y, x) their centers; 0 and 1 are the outer edges of the map.
                The third axis may be 1, for all levels. In float32 (or float64, as the layer):
                half precision would round them. Offsets from points are in pixels of the level;
                offsets from boxes are such that `num_points` pixels become half of the box.
            value: `[B, S, C]`, the pixels of the levels one after the other, each row by row.
            maps: instead of value, `num_levels` tensors `[B, H, W, C]`.
        spatial_shapes: `[levels, 2]`, height and width of each level, integers or a tensor; for
            value alone.
        value_mask: `[B, S]`, bool: False for pixels that are padding, whose projection is then 0.

        Batch, queries and sizes of maps may be unknown; channels must be known.

    Output shape:
        `[B, Q, output_dim]`, in the compute dtype. Offsets, locations and attention weights are
        computed in float32 (float64) under every policy.

    Raises:
        ValueError: an argument breaks its rule, or shapes do not fit.
        RuntimeError: Keras runs on another backend than TensorFlow.

    Sources:
        Zhu et al., Deformable DETR, ICLR 2021, equation 3 and appendix A.4 (initialisation).
    """

    def __init__(
        self,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int | Sequence[int] = 4,
        *,
        head_dim: int | None = None,
        output_dim: int | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            **kwargs,
        )
        self.num_heads = self._positive_integer("num_heads", num_heads)
        self.num_levels = self._positive_integer("num_levels", num_levels)
        self.num_points = self._points(num_points)
        for argument, value in (("head_dim", head_dim), ("output_dim", output_dim)):
            if value is not None:
                value = self._positive_integer(argument, value)
            setattr(self, argument, value)

    def build(self, input_shape: Any) -> None:
        """Creates the weights for inputs of these shapes."""
        query, _, *values = self._shapes(input_shape)
        channels = values[0][-1]
        if query[-1] is None or channels is None:
            raise self._error("inputs", "must have known channels", [query, *values])
        self._heads_dim = self._head_dim(query[-1]) * self.num_heads
        self._add_projection("value", channels, self._heads_dim)
        samples = self.num_heads * sum(self._points_of_levels)
        self._add_prediction("offset", query[-1], 2 * samples, self._ring)
        self._add_prediction("attention", query[-1], samples)
        self._add_projection("output", self._heads_dim, self.output_dim or query[-1])
        super().build(input_shape)

    def call(self, inputs: Any, spatial_shapes: Any = None, value_mask: Any = None) -> tf.Tensor:
        """Returns what the queries have read."""
        query, reference_points, value, sizes = self._normalised(inputs, spatial_shapes)
        locations, weights = self._locations(query, reference_points, sizes)
        projected = self._project("value", self._cast(value))
        if value_mask is not None:
            keep = tf.cast(value_mask, tf.bool)[:, :, None]
            projected = tf.where(keep, projected, tf.zeros([], projected.dtype))
        batch, pixels = tf.unstack(tf.shape(projected)[:2], num=2)
        head_dim = self._heads_dim // self.num_heads
        attended = multi_scale_deformable_attention(
            tf.reshape(projected, [batch, pixels, self.num_heads, head_dim]),
            sizes,
            locations,
            weights,
            num_points=self._points_of_levels,
        )
        return self._project("output", attended)

    @accepts_keras_tensors
    def sampling_locations(
        self, inputs: Any, spatial_shapes: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns where the queries look, and how much each point counts, for pictures.

        Args:
            inputs: as the layer is called with, a list.
            spatial_shapes: as the layer is called with.

        Returns:
            Locations `[B, Q, heads, levels, points, 2]`, (y, x), 0 and 1 being the outer edges of
            the map, and weights `[B, Q, heads, levels, points]`. float32, or float64. Where levels
            differ in their points, those that are missing have the weight 0.

        Raises:
            ValueError: the layer has not been built (called) yet.
        """
        self._check_is_built()
        query, reference_points, _, sizes = self._normalised(inputs, spatial_shapes)
        locations, weights = self._locations(query, reference_points, sizes)
        points = self._points_of_levels
        # The points that are missing lie outside of the map.
        return _levels_apart(locations, points, -9.0), _levels_apart(weights, points, 0.0)

    def compute_output_shape(self, input_shape: Any, **unused: Any) -> Any:
        """Returns `(B, Q, output_dim)` for inputs of these shapes."""
        query = self._shapes(input_shape)[0]
        return as_output_shape((*query[:2], self.output_dim or query[-1]))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_levels": self.num_levels,
            "num_points": self.num_points,
            "head_dim": self.head_dim,
            "output_dim": self.output_dim,
        }

    @property
    def names_of_inputs(self) -> tuple[str, ...]:
        """What the layer is called with, in the order of its list."""
        return "query", "reference_points", "value"

    def gather_inputs(self, inputs: Any, others: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the inputs as a flat list: a dictionary may hold the maps as a list."""
        gathered = super().gather_inputs(inputs, others, kwargs)
        if isinstance(gathered, (list, tuple)) and len(gathered) == 3:
            query, reference_points, value = gathered
            if isinstance(value, (list, tuple)):
                return [query, reference_points, *value]
        return gathered

    @property
    def _points_of_levels(self) -> list[int]:
        points = self.num_points
        return [points] * self.num_levels if isinstance(points, int) else list(points)

    def _points(self, value: Any) -> int | list[int]:
        if not isinstance(value, (list, tuple)):
            return self._positive_integer("num_points", value)
        if len(value) != self.num_levels:
            rule = f"must be an integer or a list of {self.num_levels}, one for each level"
            raise self._error("num_points", rule, value)
        return [self._positive_integer("num_points", points) for points in value]

    def _head_dim(self, channels: int) -> int:
        if self.head_dim is not None:
            return int(self.head_dim)
        if channels % self.num_heads:
            rule = f"must divide the channels of the query ({channels}), or head_dim be given"
            raise self._error("num_heads", rule, self.num_heads)
        return channels // self.num_heads

    def _ring(self, shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
        """Offsets of an untrained layer: 1, 2, ... pixels along a direction of each head."""
        angles = np.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
        directions /= np.abs(directions).max(axis=-1, keepdims=True)
        distances = [np.arange(1, points + 1) for points in self._points_of_levels]
        ring = directions[:, None] * np.concatenate(distances)[:, None]
        return tf.constant(ring.reshape(shape), dtype or self._sampling_dtype)

    def _normalised(
        self, inputs: Any, spatial_shapes: Any
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Query, reference points, value `[B, S, C]` and its sizes, an int32 tensor."""
        inputs = [tf.convert_to_tensor(tensor) for tensor in inputs]
        self._shapes([tensor.shape for tensor in inputs])
        query, reference_points, *values = inputs
        if values[0].shape.rank == 3:
            if spatial_shapes is None:
                raise self._error("spatial_shapes", "must be given with a flat value", None)
            return query, reference_points, values[0], tf.cast(spatial_shapes, tf.int32)
        if spatial_shapes is not None:
            raise self._error("spatial_shapes", "must not be given with maps", spatial_shapes)
        sizes = [_size(level) for level in values]
        flat = []
        for level in values:
            batch, height, width, _ = tf.unstack(tf.shape(level), num=4)
            flat.append(tf.reshape(level, [batch, height * width, level.shape[-1]]))
        return query, reference_points, tf.concat(flat, axis=1), tf.stack(sizes)

    def _locations(
        self, query: tf.Tensor, reference_points: tf.Tensor, sizes: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Locations `[B, Q, heads, points of all levels, 2]`, and weights without the last."""
        query = self._cast_sampling(query)
        batch, queries = tf.unstack(tf.shape(query)[:2], num=2)
        points = self._points_of_levels
        level = np.repeat(np.arange(self.num_levels), points)  # of each point
        samples = [batch, queries, self.num_heads, len(level)]
        offsets = tf.reshape(self._predict("offset", query), [*samples, 2])
        weights = tf.nn.softmax(tf.reshape(self._predict("attention", query), samples))
        references = self._cast_sampling(reference_points)
        if references.shape[2] is None:  # It may be 1, too.
            references += tf.zeros([self.num_levels, 1], references.dtype)
        if references.shape[2] != 1:
            references = tf.gather(references, level, axis=2)
        references = references[:, :, None]  # [B, Q, 1, points of all levels or 1, 2 or 4]
        if references.shape[-1] == 4:
            share = 0.5 / np.repeat(points, points)[:, None]
            scale = references[..., 2:] * self._cast_sampling(share)
        else:
            scale = tf.gather(1 / self._cast_sampling(sizes), level)
        return references[..., :2] + offsets * scale, weights

    def _shapes(self, input_shape: Any) -> list[tuple[int | None, ...]]:
        """The shapes of the inputs, checked as far as they are known."""
        rule = "must be [query, reference_points, value] or [query, reference_points, *maps]"
        if not isinstance(input_shape, (list, tuple)) or len(input_shape) < 3:
            raise self._error("inputs", rule, input_shape)
        shapes = [tuple(tf.TensorShape(shape).as_list()) for shape in input_shape]
        query, references, *values = shapes
        ranks = [len(shape) for shape in values]
        if len(query) != 3 or len(references) != 4:
            rule = "must begin with query [B,Q,C] and reference_points [B,Q,levels,2 or 4]"
            raise self._error("inputs", rule, shapes)
        if ranks != [3] and ranks != [4] * self.num_levels:
            rule = f"must end with one value [B,S,C] or {self.num_levels} maps [B,H,W,C]"
            raise self._error("inputs", rule, shapes)
        if references[2] not in (None, 1, self.num_levels) or references[3] not in (2, 4):
            rule = f"must be [B,Q,levels,2 or 4] for {self.num_levels} levels or 1"
            raise self._error("reference_points", rule, references)
        if len({shape[-1] for shape in values}) > 1:
            raise self._error("maps", "must have the same number of channels", values)
        return shapes


def _size(level: tf.Tensor) -> Any:
    """Height and width of a map, constant where they can be."""
    static = level.shape[1:3]
    return list(static) if static.is_fully_defined() else tf.shape(level)[1:3]


def _levels_apart(tensor: tf.Tensor, num_points: Sequence[int], missing: float) -> tf.Tensor:
    """Gives levels, whose points are the fourth axis, an axis, and all as many points."""
    trailing = [[0, 0]] * (tensor.shape.rank - 4)
    levels = [
        tf.pad(
            level,
            [[0, 0], [0, 0], [0, 0], [0, max(num_points) - points], *trailing],
            constant_values=tf.cast(missing, tensor.dtype),
        )
        for level, points in zip(tf.split(tensor, num_points, axis=3), num_points, strict=True)
    ]
    return tf.stack(levels, axis=3)
