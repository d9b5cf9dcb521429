"""Conversions between what packages call the same tensors: layouts, orders of channels, boxes.

The functions only move and rename numbers, in any dtype. They take what TensorFlow can convert to a
tensor, return tensors, and are differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_deformable._geometry.sizes import Checks
from tf_deformable.ops import _arguments

# --- Maps and kernels ---


def nhwc_from_nchw(maps: Any) -> tf.Tensor:
    """Converts maps, convolution offsets or masks: `[N, C, H, W]` to `[N, H, W, C]`.

    It is all that offsets and masks of torchvision, mmcv, ONNX `DeformConv` and MXNet's
    `DeformableConvolution` need: the order within their channels is the one of this package.

    Raises:
        ValueError: another rank.
    """
    return _transposed("nhwc_from_nchw", "maps", "[N,C,H,W]", maps, (0, 2, 3, 1))


def nchw_from_nhwc(maps: Any) -> tf.Tensor:
    """Converts maps, convolution offsets or masks: `[N, H, W, C]` to `[N, C, H, W]`.

    Raises:
        ValueError: another rank.
    """
    return _transposed("nchw_from_nhwc", "maps", "[N,H,W,C]", maps, (0, 3, 1, 2))


def hwio_from_oihw(filters: Any) -> tf.Tensor:
    """Converts kernels: `[F, C/groups, kh, kw]` to `[kh, kw, C/groups, F]`.

    Raises:
        ValueError: another rank.
    """
    return _transposed("hwio_from_oihw", "filters", "[F,C/groups,kh,kw]", filters, (2, 3, 1, 0))


def oihw_from_hwio(filters: Any) -> tf.Tensor:
    """Converts kernels: `[kh, kw, C/groups, F]` to `[F, C/groups, kh, kw]`.

    Raises:
        ValueError: another rank.
    """
    return _transposed("oihw_from_hwio", "filters", "[kh,kw,C/groups,F]", filters, (3, 2, 0, 1))


# --- Convolution offsets of DCNv3 and DCNv4 ---


def offsets_from_dcnv3(
    offsets: Any, kernel_size: int | Sequence[int], *, remove_center: bool = False
) -> tf.Tensor:
    """Converts the order of convolution offsets from that of DCNv3 (InternImage) and DCNv4.

    There the last axis is (offset group, tap column, tap row, (dx, dy)), here it is (offset group,
    tap row, tap column, (dy, dx)). DCNv3 multiplies offsets, and the distance of its taps, by an
    `offset_scale`: `tf_deformable.dcnv3` does so too, for the convolution it is for the caller to
    do where it is not 1.

    Args:
        offsets: `[..., G*K*2]`: offsets, or the kernel or the bias of the layer that makes them.
            The last size must be known. K is kh*kw, one less without the center.
        kernel_size: an integer or (kh, kw).
        remove_center: whether the taps lack the one at the center.

    Returns:
        A tensor of the same shape.

    Raises:
        TypeError: kernel_size is of the wrong kind.
        ValueError: the last size is unknown, or not a multiple of K*2.
    """
    op = "offsets_from_dcnv3"
    kh, kw = _arguments.pair(op, "kernel_size", kernel_size)
    return _transposed_taps(op, "offsets", offsets, (kw, kh), 2, remove_center)


def dcnv3_from_offsets(
    offsets: Any, kernel_size: int | Sequence[int], *, remove_center: bool = False
) -> tf.Tensor:
    """Converts the order of convolution offsets to that of DCNv3; see `offsets_from_dcnv3`."""
    op = "dcnv3_from_offsets"
    kh, kw = _arguments.pair(op, "kernel_size", kernel_size)
    return _transposed_taps(op, "offsets", offsets, (kh, kw), 2, remove_center)


def mask_from_dcnv3(
    mask: Any, kernel_size: int | Sequence[int], *, remove_center: bool = False
) -> tf.Tensor:
    """Converts the order of a convolution's mask from that of DCNv3 and DCNv4.

    Args:
        mask: `[..., G*K]`: a mask, or the kernel or the bias of the layer that makes it. The last
            size must be known. K is kh*kw, one less without the center.
        kernel_size: an integer or (kh, kw).
        remove_center: whether the taps lack the one at the center.

    Returns:
        A tensor of the same shape.

    Raises:
        TypeError: kernel_size is of the wrong kind.
        ValueError: the last size is unknown, or not a multiple of K.
    """
    op = "mask_from_dcnv3"
    kh, kw = _arguments.pair(op, "kernel_size", kernel_size)
    return _transposed_taps(op, "mask", mask, (kw, kh), 1, remove_center)


def dcnv3_from_mask(
    mask: Any, kernel_size: int | Sequence[int], *, remove_center: bool = False
) -> tf.Tensor:
    """Converts the order of a convolution's mask to that of DCNv3; see `mask_from_dcnv3`."""
    op = "dcnv3_from_mask"
    kh, kw = _arguments.pair(op, "kernel_size", kernel_size)
    return _transposed_taps(op, "mask", mask, (kh, kw), 1, remove_center)


def offsets_and_mask_from_dcnv4(
    packed: Any, kernel_size: int | Sequence[int], groups: int, *, remove_center: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """Takes apart what DCNv4 (FlashInternImage) has in one tensor, and converts the order.

    There the last axis has, of one group after the other, the offsets and then the mask, each in
    the order of DCNv3 (see `offsets_from_dcnv3`), and zeros at its end up to a multiple of 8.

    Args:
        packed: `[..., P]`, P = G*K*3 rounded up to a multiple of 8: offsets and mask, or the kernel
            or the bias of the layer that makes them. The last size must be known. K is kh*kw, one
            less without the center.
        kernel_size: an integer or (kh, kw).
        groups: G.
        remove_center: whether the taps lack the one at the center.

    Returns:
        Offsets `[..., G*K*2]` and mask `[..., G*K]`, as `tf_deformable.dcnv4` takes them.

    Raises:
        TypeError: kernel_size or groups is of the wrong kind.
        ValueError: groups is not positive, or the last size is another one.
    """
    op = "offsets_and_mask_from_dcnv4"
    kernel = _arguments.pair(op, "kernel_size", kernel_size)
    count = _arguments.integer(op, "groups", groups)
    if count < 1:
        raise ValueError(f"{op}: groups must be positive, got {count}")
    taps = kernel[0] * kernel[1] - remove_center
    packed = tf.convert_to_tensor(packed)
    size = _packed_size(count * taps)
    if not packed.shape.rank or packed.shape[-1] != size:
        raise ValueError(
            f"{op}: the last size of packed must be G*K*3={count * taps * 3} rounded up to a "
            f"multiple of 8, {size}, got shape {_arguments.shape_text(packed)}"
        )
    numbers = np.arange(count * taps * 3).reshape(count, 3 * taps)
    offsets = tf.gather(packed, numbers[:, : 2 * taps].ravel(), axis=-1)
    mask = tf.gather(packed, numbers[:, 2 * taps :].ravel(), axis=-1)
    return (
        offsets_from_dcnv3(offsets, kernel, remove_center=remove_center),
        mask_from_dcnv3(mask, kernel, remove_center=remove_center),
    )


def dcnv4_from_offsets_and_mask(
    offsets: Any, mask: Any, kernel_size: int | Sequence[int], *, remove_center: bool = False
) -> tf.Tensor:
    """Packs offsets and mask as DCNv4 has them; the inverse of `offsets_and_mask_from_dcnv4`.

    Args:
        offsets: `[..., G*K*2]`, or the kernel or the bias of the layer that makes them. The last
            size must be known.
        mask: `[..., G*K]`, likewise.
        kernel_size: an integer or (kh, kw).
        remove_center: whether the taps lack the one at the center.

    Returns:
        `[..., P]`, P = G*K*3 rounded up to a multiple of 8; the last P - G*K*3 are zeros.

    Raises:
        TypeError: kernel_size is of the wrong kind.
        ValueError: a last size is unknown, not a multiple of K*2 or K, or one is not twice the
            other.
    """
    op = "dcnv4_from_offsets_and_mask"
    kernel = _arguments.pair(op, "kernel_size", kernel_size)
    offsets = dcnv3_from_offsets(offsets, kernel, remove_center=remove_center)
    mask = dcnv3_from_mask(mask, kernel, remove_center=remove_center)
    samples = mask.shape[-1]
    if offsets.shape[-1] != 2 * samples:
        raise ValueError(
            f"{op}: offsets must have twice the channels of mask, "
            f"got {offsets.shape[-1]} and {samples}"
        )
    taps = kernel[0] * kernel[1] - remove_center
    both = tf.concat([offsets, mask], axis=-1)
    numbers = np.concatenate(
        [
            np.arange(2 * samples).reshape(-1, 2 * taps),
            2 * samples + np.arange(samples).reshape(-1, taps),
        ],
        axis=1,
    )
    missing = _packed_size(samples) - 3 * samples
    return tf.pad(
        tf.gather(both, numbers.ravel(), axis=-1),
        [[0, 0]] * (len(both.shape) - 1) + [[0, missing]],
    )


# --- Pairs of coordinates ---


def yx_from_xy(pairs: Any) -> tf.Tensor:
    """Exchanges the coordinates of pairs (x, y), as of Deformable DETR's sampling locations.

    Locations of `tf_deformable.multi_scale_deformable_attention` are (y, x), those of Deformable
    DETR and its heirs (x, y); 0 and 1 are the edges of the map for both. It is its own inverse.

    Args:
        pairs: `[..., 2*M]`: locations (M is 1), or the kernel or the bias of the layer that makes
            M of them. The last size must be known.

    Returns:
        A tensor of the same shape.

    Raises:
        ValueError: the last size is unknown or odd.
    """
    pairs, size = _with_channels("yx_from_xy", "pairs", pairs, 2)
    return tf.gather(pairs, np.arange(size) ^ 1, axis=-1)


# --- Boxes ---


def boxes_from_rois(rois: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Converts the regions of torchvision, mmcv, ONNX and MXNet.

    Args:
        rois: `[R, 5]`, (index of the image, x1, y1, x2, y2).

    Returns:
        Boxes `[R, 4]`, (y1, x1, y2, x2) in the same unit and dtype, and box indices `[R]`, int32.

    Raises:
        ValueError: another shape.
    """
    rois = _rows("boxes_from_rois", "rois", "[R,5]", rois, 5)
    image, x1, y1, x2, y2 = tf.unstack(rois, num=5, axis=1)
    return tf.stack([y1, x1, y2, x2], axis=1), tf.cast(image, tf.int32)


def rois_from_boxes(boxes: Any, box_indices: Any) -> tf.Tensor:
    """Converts boxes to the regions of torchvision, mmcv, ONNX and MXNet.

    Args:
        boxes: `[R, 4]`, (y1, x1, y2, x2).
        box_indices: `[R]`, integers.

    Returns:
        `[R, 5]`, (index of the image, x1, y1, x2, y2), in the dtype of the boxes.

    Raises:
        ValueError: another shape.
    """
    boxes = _rows("rois_from_boxes", "boxes", "[R,4]", boxes, 4)
    box_indices = tf.convert_to_tensor(box_indices)
    Checks("rois_from_boxes", {"box_indices": "[R]"}).rank("box_indices", box_indices)
    y1, x1, y2, x2 = tf.unstack(boxes, num=4, axis=1)
    return tf.stack([tf.cast(box_indices, boxes.dtype), x1, y1, x2, y2], axis=1)


def boxes_from_normalized(boxes: Any, image_size: Any, *, inclusive: bool = False) -> tf.Tensor:
    """Converts boxes in fractions of the image to boxes in its pixels.

    The box (0, 0, 1, 1) is the whole image. For pooling with `aligned=True` that is (0, 0, H, W).
    The authors' geometry, `aligned=False`, takes the last pixel instead of the end, so that the
    whole image is (0, 0, H-1, W-1): `inclusive=True`. (`tf.image.crop_and_resize` normalises by
    H-1 and W-1: its boxes times that are boxes of the second kind.)

    Args:
        boxes: `[..., 4]`, (y1, x1, y2, x2) in fractions of the image's height and width.
        image_size: height and width, two numbers or a tensor `[2]`.
        inclusive: whether y2 and x2 of the result are the last pixels.

    Returns:
        `[..., 4]`, (y1, x1, y2, x2) in pixels, in the dtype of the boxes.

    Raises:
        ValueError: the last axis of boxes does not have 4 elements.
    """
    boxes = tf.convert_to_tensor(boxes)
    if boxes.shape.rank is not None and boxes.shape[-1:] != [4]:
        raise ValueError(
            "boxes_from_normalized: boxes must have shape [...,4], "
            f"got shape {_arguments.shape_text(boxes)}"
        )
    height, width = tf.unstack(tf.cast(image_size, boxes.dtype), num=2)
    last = tf.constant([0, 0, 1, 1] if inclusive else [0] * 4, boxes.dtype)
    return boxes * tf.stack([height, width, height, width]) - last


# --- RoI pooling ---


def roi_offsets_from_planes(planes: Any) -> tf.Tensor:
    """Converts the offsets of MXNet's `DeformablePSROIPooling` and mmcv's `deform_roi_pool`.

    Args:
        planes: `[R, 2*classes, part_h, part_w]`; of each class first the plane of dx, then that of
            dy. mmcv has one class.

    Returns:
        `[R, part_h, part_w, classes, 2]`, last axis (dy, dx), as
        `tf_deformable.deformable_psroi_pool` takes it; `deformable_roi_pool` takes `[..., 0, :]`.

    Raises:
        ValueError: another rank, or an odd number of planes.
    """
    planes = tf.convert_to_tensor(planes)
    axes = {"planes": "[R,2*classes,part_h,part_w]"}
    Checks("roi_offsets_from_planes", axes).rank("planes", planes)
    count = None if planes.shape.rank is None else planes.shape[1]
    if count is not None and count % 2:
        raise ValueError(
            "roi_offsets_from_planes: planes must be dx and dy of every class, "
            f"got an odd number: {count}"
        )
    return tf.transpose(tf.stack([planes[:, 1::2], planes[:, 0::2]], axis=-1), (0, 2, 3, 1, 4))


def planes_from_roi_offsets(offsets: Any) -> tf.Tensor:
    """Converts RoI offsets to those of MXNet and mmcv; the inverse of `roi_offsets_from_planes`.

    Args:
        offsets: `[R, part_h, part_w, classes, 2]` or `[R, part_h, part_w, 2]`.

    Returns:
        `[R, 2*classes, part_h, part_w]`.

    Raises:
        ValueError: another rank.
    """
    offsets = tf.convert_to_tensor(offsets)
    if offsets.shape.rank == 4:
        offsets = tf.expand_dims(offsets, 3)
    axes = {"offsets": "[R,part_h,part_w,classes,2]"}
    Checks("planes_from_roi_offsets", axes).rank("offsets", offsets)
    planes = tf.transpose(tf.reverse(offsets, axis=[-1]), (0, 3, 4, 1, 2))
    boxes, classes, _, part_height, part_width = tf.unstack(tf.shape(planes), num=5)
    return tf.reshape(planes, [boxes, 2 * classes, part_height, part_width])


def psroi_channels_from_depth_major(tensor: Any, group_size: int) -> tf.Tensor:
    """Converts the channels of position-sensitive maps: (D, row, column) to (row, column, D).

    The first is the order of MXNet, mmcv and OpenVINO, the second that of
    `tf_deformable.deformable_psroi_pool`.

    Args:
        tensor: `[..., D*k*k]`: maps, or the kernel (HWIO) or the bias of the convolution that makes
            them. The last size must be known.
        group_size: k.

    Returns:
        A tensor of the same shape.

    Raises:
        TypeError: group_size is not an integer.
        ValueError: the last size is unknown, or not a multiple of k*k.
    """
    op = "psroi_channels_from_depth_major"
    k = _arguments.integer(op, "group_size", group_size)
    tensor, channels = _with_channels(op, "tensor", tensor, k * k)
    order = np.arange(channels).reshape(-1, k * k).T
    return tf.gather(tensor, order.ravel(), axis=-1)


def depth_major_from_psroi_channels(tensor: Any, group_size: int) -> tf.Tensor:
    """Converts channels (row, column, D) to (D, row, column).

    The inverse of `psroi_channels_from_depth_major`, with the same arguments and errors.
    """
    op = "depth_major_from_psroi_channels"
    k = _arguments.integer(op, "group_size", group_size)
    tensor, channels = _with_channels(op, "tensor", tensor, k * k)
    order = np.arange(channels).reshape(k * k, -1).T
    return tf.gather(tensor, order.ravel(), axis=-1)


def _transposed(
    op: str, argument: str, layout: str, tensor: Any, axes: tuple[int, ...]
) -> tf.Tensor:
    tensor = tf.convert_to_tensor(tensor)
    Checks(op, {argument: layout}).rank(argument, tensor)
    return tf.transpose(tensor, axes)


def _transposed_taps(
    op: str,
    argument: str,
    tensor: Any,
    taps: tuple[int, int],
    coordinates: int,
    remove_center: bool,
) -> tf.Tensor:
    """Exchanges, on the last axis, the two axes of the taps, and reverses the coordinates."""
    numbers = np.arange(taps[0] * taps[1]).reshape(taps).T.ravel()
    if remove_center:  # the same tap in both orders: what comes after it moves up
        center = numbers.size // 2
        numbers = numbers[numbers != center]
        numbers = numbers - (numbers > center)
    tensor, channels = _with_channels(op, argument, tensor, numbers.size * coordinates)
    order = np.arange(channels).reshape(-1, numbers.size, coordinates)
    return tf.gather(tensor, order[:, numbers, ::-1].ravel(), axis=-1)


def _packed_size(samples: int) -> int:
    """Channels of DCNv4's tensor of offsets and mask."""
    return -(-3 * samples // 8) * 8


def _with_channels(op: str, argument: str, tensor: Any, multiple: int) -> tuple[tf.Tensor, int]:
    """The tensor and its last size, which must be a multiple of `multiple`."""
    tensor = tf.convert_to_tensor(tensor)
    channels = tensor.shape[-1] if tensor.shape.rank else None
    if channels is None or multiple < 1 or channels % multiple:
        raise ValueError(
            f"{op}: the last size of {argument} must be known and a multiple of {multiple}, "
            f"got shape {_arguments.shape_text(tensor)}"
        )
    return tensor, channels


def _rows(op: str, argument: str, layout: str, tensor: Any, columns: int) -> tf.Tensor:
    tensor = tf.convert_to_tensor(tensor)
    if not tensor.shape.is_compatible_with([None, columns]):
        raise ValueError(
            f"{op}: {argument} must have shape {layout}, got shape {_arguments.shape_text(tensor)}"
        )
    return tensor
