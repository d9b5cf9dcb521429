"""The last stage of a network at the resolution of the one before."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_deformable.models.surgery.replace import CONVOLUTIONS, POOLS, kernel_size
from tf_deformable.models.surgery.select import Network, Site


def dilation(network: Network) -> dict[int, dict[str, Any]]:
    """Returns the arguments to change, by layer, for the last stage without its stride."""
    last = network.last_stage()
    stride = last[0].stride if last else None
    makers = [
        s
        for s in network.sites.values()
        if s.stride is not None and s.makes == stride and s.stride != stride
    ]
    if not makers or stride is None:
        raise ValueError(
            "deformify: dilate_last_stage: the network makes no map coarser than its input, "
            "so that there is no stride to remove"
        )
    factors = set()
    for maker in makers:
        if not isinstance(maker.layer, (*CONVOLUTIONS, *POOLS)):
            raise ValueError(
                f"deformify: dilate_last_stage: the stride of layer {maker.path!r} "
                f"({type(maker.layer).__name__}) cannot be removed, only those of 2D "
                "convolutions and pools can; build the network with another stride there"
            )
        factors.add(tuple(maker.layer.strides))
    if len(factors) > 1:
        raise ValueError(
            "deformify: dilate_last_stage: the last stage must begin with one stride, got "
            + ", ".join(f"{m.path}: {tuple(m.layer.strides)}" for m in makers)
        )
    (factor,) = factors

    changes: dict[int, dict[str, Any]] = {}
    for maker in makers:
        layer = maker.layer
        changes[maker.key] = {"strides": (1, 1)}
        sizes = kernel_size(layer)
        if (
            layer.padding == "valid"
            and max(sizes) > 1
            and all(size <= step for size, step in zip(sizes, factor, strict=True))
        ):  # Patches side by side: what the last ones lack is padded after the map.
            changes[maker.key]["padding"] = "same"
    for site in network.sites.values():
        layer = site.layer
        if isinstance(layer, CONVOLUTIONS) and site.stride == stride:
            if max(kernel_size(layer)) == 1:
                continue
            rates = tuple(rate * f for rate, f in zip(layer.dilation_rate, factor, strict=True))
            dilated = changes.setdefault(site.key, {})
            dilated["dilation_rate"] = rates
            if not isinstance(layer.padding, str):  # The map keeps its size.
                dilated["padding"] = tuple(
                    (before * f, after * f)
                    for (before, after), f in zip(layer.padding, factor, strict=True)
                )
    for site in network.sites.values():
        if isinstance(site.layer, tf.keras.layers.ZeroPadding2D):
            change = _padding(network, site, changes, factor)
            if change:
                changes[site.key] = {"padding": change}
    return changes


def _padding(
    network: Network, site: Site, changes: dict[int, dict[str, Any]], factor: tuple[int, ...]
) -> tuple[tuple[int, int], ...] | None:
    """The zeros of a padding layer before unpadded layers that `changes` changes.

    The map keeps its size. The zeros before it cover as many samples of the kernel as they did.
    """
    readers = [network.sites[key] for key in site.readers]
    readers = [r for r in readers if r.key in changes and r.layer.padding == "valid"]
    if not readers:
        return None
    extents, grows = set(), set()
    for reader in readers:
        change = changes[reader.key]
        rates = change.get("dilation_rate", getattr(reader.layer, "dilation_rate", (1, 1)))
        extents.add(
            tuple(
                (size - 1) * rate
                for size, rate in zip(kernel_size(reader.layer), rates, strict=True)
            )
        )
        grows.add("dilation_rate" in change)
    if len(extents) > 1 or len(grows) > 1 or len(readers) < len(site.readers):
        raise ValueError(
            f"deformify: dilate_last_stage: padding layer {site.path!r} is read by layers that "
            "need different padding; give each of them a padding layer of its own"
        )
    (extent,), (is_dilated,) = extents, grows
    before = [
        pads[0] * (step if is_dilated else 1)
        for pads, step in zip(site.layer.padding, factor, strict=True)
    ]
    return tuple(
        (start, max(total - start, 0)) for start, total in zip(before, extent, strict=True)
    )
