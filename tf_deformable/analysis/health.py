"""How far offsets have gone: a report on a model, and a Keras callback that watches training."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_deformable.analysis import _calls, bins
from tf_deformable.analysis._calls import Array
from tf_deformable.analysis.locations import sees_map
from tf_deformable.graphs.layer_calls import LayerCall
from tf_deformable.layers.deformable_conv2d import DeformableConv2D
from tf_deformable.layers.psroi_pool import DeformablePSRoIPool
from tf_deformable.layers.roi_pool import DeformableRoIPool

_DEFORMABLE = (DeformableConv2D, DeformableRoIPool, DeformablePSRoIPool)


class OffsetWarning(UserWarning):
    """Offsets diverge."""


@dataclasses.dataclass(frozen=True)
class LayerOffsets:
    """How far one layer has moved its samples in a batch.

    Lengths are those of (dy, dx), in pixels of the map that the layer reads. In RoI pooling, what
    moves is bins, and lengths are in units of the box's height and width; padding is left out.

    Attributes:
        name: of the layer, with #0, #1, ... if it was called several times.
        unit: "px", or "box" for RoI pooling.
        map_size: height and width of the map, in its pixels.
        count: number of samples (or bins).
        mean: mean length of the offsets.
        maximum: their largest length.
        outside: share of samples that read nothing but zeros outside of the map (of bins: whose
            middle lies outside), 0 to 1.
        regular_outside: the same without offsets, which padding makes of "same" convolutions.
        not_finite: share of samples whose offset is infinite or not a number; they are left out of
            mean and maximum, and count as outside.
    """

    name: str
    unit: str
    map_size: tuple[int, int]
    count: int
    mean: float
    maximum: float
    outside: float
    regular_outside: float
    not_finite: float


@dataclasses.dataclass(frozen=True)
class OffsetReport:
    """The state of all deformable layers of a model. Printed, it is a table."""

    layers: tuple[LayerOffsets, ...]

    def __str__(self) -> str:
        width = max(len("layer"), *(len(layer.name) for layer in self.layers))
        lines = [
            f"{'layer':<{width}}{'map':>11}{'mean':>10}{'max':>10}     {'outside':>10}"
            f"{'(regular)':>11}{'not finite':>12}"
        ]
        for layer in self.layers:
            size = "x".join(map(str, layer.map_size))
            lines.append(
                f"{layer.name:<{width}}{size:>11}{layer.mean:>10.3g}{layer.maximum:>10.3g} "
                f"{layer.unit:<4}{layer.outside:>10.1%}{layer.regular_outside:>11.1%}"
                f"{layer.not_finite:>12.1%}"
            )
        return "\n".join(lines)


def offset_report(model: Any, inputs: Any) -> OffsetReport:
    """Runs a model and says how far its deformable layers move their samples.

    Example:
        >>> model = tf.keras.Sequential([tf_deformable.DeformableConv2D(4, 3, name="conv")])
        >>> images = tf.zeros([2, 8, 8, 3])
        >>> outputs = model(images)
        >>> print(tf_deformable.analysis.offset_report(model, images))
        layer ...
        conv ...

    Args:
        model: a Keras model of any kind, or any callable that calls deformable layers.
        inputs: a batch, as the model is called with. It runs in inference mode.

    Returns:
        One row for each call of a `DeformableConv2D`, `DeformableRoIPool` or
        `DeformablePSRoIPool`, in the order of execution.

    Raises:
        ValueError: the model called no such layer.
    """
    calls = [c for c in _calls.record(model, inputs) if isinstance(c.layer, _DEFORMABLE)]
    if not calls:
        raise ValueError(
            "offset_report: the model must call a deformable layer, got "
            f"{getattr(model, 'name', type(model).__name__)!r}"
        )
    return OffsetReport(tuple(_of_call(call) for call in calls))


class OffsetHealth(tf.keras.callbacks.Callback):
    """Watches the offsets of a model in training, and warns when they diverge.

    Offsets that diverge are the usual way in which training of deformable networks fails: samples
    leave the map, read zeros, and get no gradient that would bring them back. The callback runs the
    model on a batch of probes every epoch, or every so many batches, writes what `offset_report`
    measures to TensorBoard, and warns once per layer (and again if it had recovered in between).

    Example:
        >>> model = tf.keras.Sequential([tf_deformable.DeformableConv2D(4, 3, name="conv")])
        >>> images, labels = tf.zeros([16, 8, 8, 3]), tf.zeros([16, 6, 6, 4])
        >>> health = tf_deformable.analysis.OffsetHealth(images[:8])
        >>> model.compile("sgd", "mse")
        >>> history = model.fit(images, labels, callbacks=[health], verbose=0)
        >>> print(health.report)
        layer ...
        conv ...

    Summaries, for every layer: `offsets/LAYER/mean`, `maximum`, `outside` and `not_finite` (see
    `LayerOffsets`), by epoch (from 0, as the TensorBoard callback of Keras has it) or by batch.

    Args:
        inputs: a batch as the model is called with, the same each time; or a `tf.data.Dataset` of
            batches, as `fit` takes it, of which every check uses the next (and of (inputs, labels)
            the first): the batches of the training itself, say.
        log_dir: folder for summaries, None for none.
        every: "epoch", or a positive number of batches.
        max_mean: warn when the mean offset of a convolution exceeds this share of the map's
            shorter side, or, in RoI pooling, of the box.
        max_outside: warn when offsets take more than this share of all samples out of the map (on
            top of those that are there without offsets).
        stop_training: end training at the first warning.

    Attributes:
        report: the last `OffsetReport`.
        history: list of (epoch or batch, `OffsetReport`).

    Raises:
        ValueError: an argument breaks its rule; the model calls no deformable layer; the dataset
            is empty.
    """

    def __init__(
        self,
        inputs: Any,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        every: int | str = "epoch",
        max_mean: float = 0.25,
        max_outside: float = 0.25,
        stop_training: bool = False,
    ) -> None:
        super().__init__()
        is_number = isinstance(every, int) and not isinstance(every, bool) and every > 0
        if every != "epoch" and not is_number:
            raise ValueError(
                f'OffsetHealth: every must be "epoch" or a positive integer, got {every!r}'
            )
        for argument, value in (("max_mean", max_mean), ("max_outside", max_outside)):
            if not value > 0:
                raise ValueError(f"OffsetHealth: {argument} must be positive, got {value!r}")
        self.inputs = inputs
        self.log_dir = log_dir
        self.every = every
        self.max_mean = max_mean
        self.max_outside = max_outside
        self.stop_training = stop_training
        self.report: OffsetReport | None = None
        self.history: list[tuple[int, OffsetReport]] = []
        self._warned: set[str] = set()
        self._batches = 0
        self._next: Iterator[Any] = iter(())
        self._writer: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the summary file."""
        if self.log_dir is not None and self._writer is None:
            self._writer = tf.summary.create_file_writer(os.fspath(self.log_dir))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Checks every so many batches, if told so."""
        self._batches += 1
        if self.every != "epoch" and self._batches % int(self.every) == 0:
            self.check(self._batches)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Checks every epoch, unless told otherwise."""
        if self.every == "epoch":
            self.check(epoch)

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the summary file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def check(self, step: int) -> OffsetReport:
        """Measures, writes and warns; the callback's hooks call it.

        Args:
            step: what the measurement is filed under.

        Returns:
            The report.
        """
        report = offset_report(self.model, self._probe())
        self.report = report
        self.history.append((step, report))
        if self._writer is not None:
            with self._writer.as_default(step):
                for layer in report.layers:
                    for name in ("mean", "maximum", "outside", "not_finite"):
                        _write_scalar(f"offsets/{layer.name}/{name}", getattr(layer, name))
            self._writer.flush()
        for layer in report.layers:
            reason = self._diagnosis(layer)
            if reason is None:
                self._warned.discard(layer.name)
            elif layer.name not in self._warned:
                self._warned.add(layer.name)
                warnings.warn(self._advice(layer, reason, step), OffsetWarning, stacklevel=2)
                if self.stop_training:
                    self.model.stop_training = True
        return report

    def _probe(self) -> Any:
        if not isinstance(self.inputs, tf.data.Dataset):
            return self.inputs
        batch = next(self._next, None)
        if batch is None:
            self._next = iter(self.inputs)
            batch = next(self._next, None)
            if batch is None:
                raise ValueError("OffsetHealth: inputs must have a batch, got an empty dataset")
        return batch[0] if isinstance(batch, tuple) else batch

    def _diagnosis(self, layer: LayerOffsets) -> str | None:
        """What is wrong with a layer, None if nothing is."""
        if layer.not_finite:
            return f"{layer.not_finite:.1%} of the offsets are not finite"
        limit = self.max_mean * (min(layer.map_size) if layer.unit == "px" else 1)
        if layer.mean > limit:
            return f"their mean is {layer.mean:.3g} {layer.unit}, above {limit:.3g}"
        if layer.outside - layer.regular_outside > self.max_outside:
            return (
                f"they take {layer.outside - layer.regular_outside:.1%} of the samples out of the "
                f"map, above {self.max_outside:.1%}"
            )
        return None

    def _advice(self, layer: LayerOffsets, reason: str, step: int) -> str:
        when = f"epoch {step}" if self.every == "epoch" else f"batch {step}"
        size = "x".join(map(str, layer.map_size))
        return (
            f"the offsets of layer {layer.name!r} diverge at {when}: {reason} (mean "
            f"{layer.mean:.3g} {layer.unit}, maximum {layer.maximum:.3g} {layer.unit}, map {size}, "
            f"{layer.outside:.1%} of the samples outside). A lower learning rate or a warm-up, "
            "clipped gradients, or an offset_kernel_regularizer help; with SGD also an "
            "offset_learning_rate_multiplier below 1"
        )


def _write_scalar(tag: str, value: float) -> None:
    """`tf.summary.scalar`, which since TensorFlow 2.20 needs TensorBoard itself."""
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"), data_class=1
    )
    tf.summary.write(tag, tf.constant(value, tf.float32), metadata=metadata)


def _of_call(call: LayerCall) -> LayerOffsets:
    if isinstance(call.layer, DeformableConv2D):
        samples = _calls.samples_of(call)
        return _measured(
            call.name,
            "px",
            samples.input_size,
            samples.offsets,
            ~sees_map(samples.positions, samples.input_size),
            ~sees_map(samples.regular, samples.input_size),
        )
    (pooled,) = bins.layer_bins([call])
    regular = pooled.regular[pooled.present]  # [boxes, ph, pw, 4]
    moved = pooled.bins[pooled.present]
    if moved.ndim == 5:
        regular = regular[..., np.newaxis, :]
    bin_size = regular[..., 2:] - regular[..., :2]
    box_size = bin_size * np.array(pooled.layer.output_size)
    with np.errstate(invalid="ignore", divide="ignore"):
        offsets = (moved - regular)[..., :2] / np.where(box_size == 0, np.inf, box_size)
    size = np.array(pooled.map_size) / pooled.layer.spatial_scale
    return _measured(
        call.name,
        "box",
        pooled.map_size,
        offsets,
        _middle_outside(moved, size),
        _middle_outside(regular, size),
    )


def _measured(
    name: str,
    unit: str,
    map_size: tuple[int, int],
    offsets: Array,
    outside: NDArray[np.bool_],
    regular_outside: NDArray[np.bool_],
) -> LayerOffsets:
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.hypot(offsets[..., 0], offsets[..., 1], dtype=np.float64)
    finite = np.isfinite(lengths)
    count = lengths.size
    return LayerOffsets(
        name=name,
        unit=unit,
        map_size=map_size,
        count=count,
        mean=float(lengths[finite].mean()) if finite.any() else math.nan,
        maximum=float(lengths[finite].max()) if finite.any() else math.nan,
        outside=float(outside.mean()) if count else 0.0,
        regular_outside=float(regular_outside.mean()) if count else 0.0,
        not_finite=float(1 - finite.mean()) if count else 0.0,
    )


def _middle_outside(boxes: Array, size: Array) -> NDArray[np.bool_]:
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    return ~np.all((middle >= 0) & (middle <= size), axis=-1)
