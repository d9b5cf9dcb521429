"""The positions in the image that one unit of a network samples, through stacked layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tf_deformable.analysis import _calls
from tf_deformable.analysis._calls import Array, LayerSamples
from tf_deformable.analysis._paths import Paths
from tf_deformable.graphs.receptive_field import Mapping

_OPERATION = "sampling_locations"


@dataclasses.dataclass(frozen=True)
class SamplingLocations:
    """Where one unit of the last of `L` stacked layers samples each of `N` images.

    Positions are (y, x) in pixels of the image, (0, 0) the centre of its first pixel. `K` counts a
    layer's taps, those of all its offset groups: 9 for a 3x3 kernel. `K_1` is the last layer's:
    the axes go down from the unit to the image.

    Attributes:
        layers: names of the layers, first to last.
        unit: `[N, 2]`, (y, x) in cells of the last layer's output.
        center: `[N, 2]`, the middle of the unit's receptive field.
        levels: `L` arrays `[N, K_1, ..., K_l, 2]`, what the unit samples in the last layer, in the
            last two, ..., in all of them.
        weights: `L` arrays `[N, K_1, ..., K_l]`, the product of the modulation along each path (1
            where a layer is not modulated), 0 for what lies outside of a map.
        regular: as `levels`, if the layers had no offsets.
    """

    layers: tuple[str, ...]
    unit: NDArray[np.int64]
    center: Array
    levels: tuple[Array, ...]
    weights: tuple[Array, ...]
    regular: tuple[Array, ...]

    @property
    def positions(self) -> Array:
        """The positions through all layers: `levels[-1]`, `[N, K_1, ..., K_L, 2]`."""
        return self.levels[-1]

    def points(self, image: int = 0, level: int = -1, regular: bool = False) -> Array:
        """Returns the positions in one image as a list, without those that count for nothing.

        Args:
            image: which of the N images.
            level: which of the levels; the default is through all layers.
            regular: those of the layers without offsets, all of them.

        Returns:
            `[P, 2]`.
        """
        if regular:
            return self.regular[level][image].reshape(-1, 2)
        return self.levels[level][image][self.weights[level][image] > 0]


def sampling_locations(
    model: Any,
    images: Any,
    *,
    unit: Sequence[int] | Array | None = None,
    pixel: Sequence[float] | Array | None = None,
    layers: Sequence[Any] | None = None,
    depth: int = 3,
) -> SamplingLocations:
    """Follows a unit of a deformable layer to the positions in the image that it samples.

    A unit of a 3x3 layer has 9 samples. Where the map that the layer reads comes from another
    deformable layer, each of them is a position on that one's output and has 9 samples of its own,
    and so on: through three layers there are 729 (Figure 6 of the paper). A position between cells
    has the samples that lie, interpolated, between theirs.

    The layers may have others between them, which are followed by their strides, padding and
    sizes: a cell of a plain convolution or a pooling counts as the middle of its window, what works
    pixel by pixel moves nothing, and where branches join it is the middle of all that they see.
    Global pooling and attention are left out, they see everything. Deformable layers that are not
    among the chosen count as plain ones.

    Example:
        >>> layers = [
        ...     tf_deformable.DeformableConv2D(4, 3, padding="same") for _ in range(3)]
        >>> model = tf.keras.Sequential([tf.keras.Input((32, 32, 3)), *layers])
        >>> found = tf_deformable.analysis.sampling_locations(
        ...     model, tf.zeros([1, 32, 32, 3]), pixel=(12, 20), depth=3)
        >>> found.points(image=0).shape  # up to 729, in pixels of the image
        (729, 2)
        >>> found.points(image=0, regular=True).shape  # what a plain network samples
        (729, 2)

    Args:
        model: a Keras model of any kind (functional, Sequential, subclassed, nested), with an
            image among its inputs, or several of the same size; it runs in inference mode.
        images: a batch of N images, or all the model's inputs, the images being the largest tensors
            of rank 4.
        unit: (y, x) of a cell in the last layer's output, one or `[N, 2]`.
        pixel: in place of `unit`, (y, x) of a pixel in the image, one or `[N, 2]`: the unit whose
            middle is nearest.
        layers: the deformable layers, first to last, or their names (as `layer_samples` tells
            them). By default the last that the model calls, and those it depends on.
        depth: number of layers, if `layers` are not given; fewer, if the model has no more.

    Returns:
        Positions, weights, and the positions of the regular grid.

    Raises:
        TypeError: neither unit nor pixel is given, or both.
        ValueError: the model calls no deformable convolution, layers names none or none that
            depends on the one before it, unit lies outside of the map, or an operator on the way
            (a transformation of coordinates, say) lets no position pass.

    Sources:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, Figures 5 and 6.
    """
    if (unit is None) == (pixel is None):
        raise TypeError(
            f"{_OPERATION}: one of unit and pixel must be given, got unit={unit!r}, pixel={pixel!r}"
        )
    samples = _calls.layer_samples(model, images)
    paths = Paths(model, images)
    if [s.layer for s in samples] != [c.layer for c in paths.calls]:
        raise ValueError(
            f"{_OPERATION}: the model must call the same layers each time, got "
            f"{[s.name for s in samples]} and then {[c.name for c in paths.calls]}"
        )
    chain, mappings = _chain(paths, layers, depth)
    last = samples[chain[-1]]
    to_image = [paths.from_image(i) for i in chain]
    middles = to_image[-1](_middles(last))  # [Ho, Wo, 2]
    batch = last.positions.shape[0]
    if unit is not None:
        units = _units(unit, batch, last.output_size)
    else:
        distance = np.square(middles - _pairs("pixel", pixel, batch)[:, np.newaxis, np.newaxis])
        nearest = distance.sum(axis=-1).reshape(batch, -1).argmin(axis=-1)
        units = np.stack(np.unravel_index(nearest, last.output_size), axis=-1).astype(np.int64)

    stack = [samples[i] for i in chain]
    levels, weights = _follow(stack, mappings, to_image, units, deformed=True)
    regular, _ = _follow(stack, mappings, to_image, units, deformed=False)
    return SamplingLocations(
        layers=tuple(s.name for s in stack),
        unit=units,
        center=middles[units[:, 0], units[:, 1]],
        levels=levels,
        weights=weights,
        regular=regular,
    )


def unit_centers(model: Any, images: Any) -> dict[str, Array]:
    """Returns where the units of each deformable convolution are in the image.

    Args:
        model: as in `sampling_locations`.
        images: likewise.

    Returns:
        For the name of each layer `[Ho, Wo, 2]`, the middles of its units' receptive fields, (y, x)
        in pixels of the image, (0, 0) the centre of its first pixel.

    Raises:
        ValueError: as `sampling_locations`.
    """
    return centers(_calls.layer_samples(model, images), Paths(model, images))


def centers(samples: Sequence[LayerSamples], paths: Paths) -> dict[str, Array]:
    """`unit_centers` of a model that has run already."""
    return {s.name: paths.from_image(i)(_middles(s)) for i, s in enumerate(samples)}


def _middles(samples: LayerSamples) -> Array:
    """The middle of each unit's regular grid, in pixels of the map that the layer reads."""
    return samples.regular.astype(np.float64).mean(axis=(2, 3))


def _chain(
    paths: Paths, layers: Sequence[Any] | None, depth: int
) -> tuple[list[int], list[Mapping]]:
    """Returns the calls, first to last, and the way from each (but the first) to the one before."""
    if layers is None:
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ValueError(f"{_OPERATION}: depth must be a positive integer, got {depth!r}")
        chain = [len(paths.calls) - 1]
        while len(chain) < depth:
            earlier = paths.before(chain[0])
            if earlier is None:
                break
            chain.insert(0, earlier)
    else:
        layers = [layers] if isinstance(layers, str) else list(layers)
        chain = _calls.select(paths.calls, layers, f"{_OPERATION}: layers")
        if not chain:
            raise ValueError(f"{_OPERATION}: layers must name a layer, got none")
    mappings = []
    for earlier, later in zip(chain, chain[1:], strict=False):
        mapping = paths.between(earlier, later) if earlier < later else None
        if mapping is None:
            first, second = paths.calls[earlier].name, paths.calls[later].name
            raise ValueError(
                f"{_OPERATION}: each of layers must depend on the one before it, got {first!r} and "
                f"then {second!r}, which does not (or through an operator that lets no position "
                "pass)"
            )
        mappings.append(mapping)
    return chain, mappings


def _follow(
    stack: Sequence[LayerSamples],
    mappings: Sequence[Mapping],
    to_image: Sequence[Mapping],
    units: NDArray[np.int64],
    *,
    deformed: bool,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Goes from the units of the last layer down to the image: levels and weights."""
    batch = len(units)
    points = units[:, np.newaxis].astype(np.float64)  # [N, P, 2], in cells of a layer's output
    weight = np.ones((batch, 1))
    shape: list[int] = [batch]
    levels, weights = [], []
    for index in reversed(range(len(stack))):
        samples = stack[index]
        groups, taps = samples.positions.shape[3], math.prod(samples.layer.kernel_size)
        shape.append(groups * taps)
        if deformed:
            positions = samples.positions
        else:
            regular = samples.regular[np.newaxis, :, :, np.newaxis]
            positions = np.broadcast_to(regular, samples.positions.shape)
        field = positions.reshape(*positions.shape[:3], -1, 2)
        weight = (weight * sees_map(points, samples.output_size))[..., np.newaxis]
        if samples.mask is not None and deformed:
            mask = samples.mask.reshape(*field.shape[:4], 1)
            weight = weight * interpolate(mask, points)[..., 0]
        read = interpolate(field, points)  # [N, P, K, 2], in pixels of the layer's input
        weight = weight * sees_map(read, samples.input_size)

        read, weight = read.reshape(batch, -1, 2), weight.reshape(batch, -1)
        levels.append(to_image[index](read).reshape(*shape, 2))
        weights.append(weight.reshape(shape))
        if index:
            points = mappings[index - 1](read)
    return tuple(levels), tuple(weights)


def sees_map(points: Array, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Returns which samples see something of a map: bilinear ones fade out around it.

    Args:
        points: `[..., 2]`, (y, x) in pixels of the map. What is not a number sees nothing.
        size: height and width of the map.

    Returns:
        `[...]`.
    """
    return np.all((points > -1) & (points < size), axis=-1)


def interpolate(field: Array, points: Array) -> Array:
    """Bilinear interpolation of `[N, H, W, K, D]` at `[N, P, 2]`: `[N, P, K, D]`.

    Positions outside have the values of the edge.
    """
    size = np.array(field.shape[1:3])
    clipped = np.nan_to_num(points).clip(0, size - 1)
    low = np.minimum(np.floor(clipped).astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    share = clipped - low
    image = np.arange(len(field))[:, np.newaxis]
    result = np.zeros((*points.shape[:2], *field.shape[3:]))
    for rows, along_y in ((low[..., 0], 1 - share[..., 0]), (high[..., 0], share[..., 0])):
        for columns, along_x in ((low[..., 1], 1 - share[..., 1]), (high[..., 1], share[..., 1])):
            weight = (along_y * along_x)[..., np.newaxis, np.newaxis]
            # A neighbour without weight may be infinite.
            result += np.where(weight > 0, field[image, rows, columns], 0) * weight
    return result


def _units(value: Any, batch: int, size: tuple[int, int]) -> NDArray[np.int64]:
    given = _pairs("unit", value, batch)
    units = given.astype(np.int64)
    if np.any(units != given) or np.any(units < 0) or np.any(units >= size):
        raise ValueError(
            f"{_OPERATION}: unit must be (y, x), integers from 0 to below {size}, the size of the "
            f"last layer's output, got {np.asarray(value).tolist()}"
        )
    return units


def _pairs(argument: str, value: Any, batch: int) -> Array:
    pairs = np.asarray(value, np.float64)
    if pairs.shape not in ((2,), (batch, 2)):
        raise ValueError(
            f"{_OPERATION}: {argument} must be (y, x) or have shape [{batch},2], one for each "
            f"image, got shape {list(pairs.shape)}"
        )
    return np.broadcast_to(pairs, (batch, 2))
