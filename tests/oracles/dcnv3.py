"""DCNv3 as loops in NumPy, in float64: where each tap of each pixel samples, and no more.

The samples at these positions are those of the oracle of deformable attention.
"""

from __future__ import annotations

import numpy as np

from tests.oracles import deformable_attention


def dcnv3(
    inputs: np.ndarray,
    offsets: np.ndarray,
    mask: np.ndarray,
    grad_output: np.ndarray,
    *,
    kernel_size: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    before: tuple[int, int],
    offset_scale: float,
    remove_center: bool,
) -> dict[str, np.ndarray]:
    """Output and gradients for the upstream gradient `grad_output`.

    Args:
        inputs: `[N, H, W, C]`.
        offsets: `[N, Ho, Wo, G*K*2]`.
        mask: `[N, Ho, Wo, G*K]`.
        grad_output: `[N, Ho, Wo, C]`.
        kernel_size: (kh, kw).
        strides: (y, x).
        dilations: (y, x).
        before: padding (top, left).
        offset_scale: factor of the window around its center.
        remove_center: whether the center is no tap.

    Returns:
        "output", and the gradients under the names of the arguments.
    """
    batch, height, width, channels = inputs.shape
    rows, columns = mask.shape[1:3]
    taps = [(i, j) for i in range(kernel_size[0]) for j in range(kernel_size[1])]
    if remove_center:
        taps.remove((kernel_size[0] // 2, kernel_size[1] // 2))
    groups = mask.shape[3] // len(taps)
    offsets_of = np.asarray(offsets, np.float64)
    offsets_of = offsets_of.reshape(batch, rows, columns, groups, len(taps), 2)
    positions = np.zeros(offsets_of.shape)
    for n, row, column, g, k in np.ndindex(*positions.shape[:5]):
        for axis, pixel in enumerate((row, column)):
            center = dilations[axis] * (kernel_size[axis] - 1) // 2
            from_center = taps[k][axis] * dilations[axis] - center
            from_center += offsets_of[n, row, column, g, k, axis]
            start = pixel * strides[axis] - before[axis]
            positions[n, row, column, g, k, axis] = start + center + from_center * offset_scale
    samples = [batch, rows * columns, groups, 1, len(taps)]
    got = deformable_attention.multi_scale_deformable_attention(
        np.reshape(inputs, [batch, height * width, groups, channels // groups]),
        [(height, width)],
        positions.reshape([*samples, 2]),
        np.reshape(mask, samples),
        np.reshape(grad_output, [batch, rows * columns, channels]),
        coordinates="pixels",
    )
    return {
        "output": got["output"].reshape(grad_output.shape),
        "inputs": got["value"].reshape(inputs.shape),
        "offsets": offset_scale * got["sampling_locations"].reshape(offsets.shape),
        "mask": got["attention_weights"].reshape(mask.shape),
    }
