"""Records what PyTorch and MXNet compute with weights that `tf_deformable.convert` reads.

    python tests/golden/record_weights.py torch     # needs torch, torchvision, safetensors
    python tests/golden/record_weights.py attention # needs transformers, torch
    python tests/golden/record_weights.py dcnv3     # needs torch, InternImage's ops_dcnv3
    python tests/golden/record_weights.py mxnet     # needs mxnet 1.9.1, numpy below 1.24

Each writes its files beside this one. TensorFlow is not needed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.named_weights import named_weights  # noqa: E402

FOLDER = Path(__file__).parent

# Names of the two or three parts, and the arguments of the deformable convolution.
LAYERS: dict[str, dict[str, Any]] = {
    "mmcv_v1": {
        "names": ("head.dcn", "head.dcn.conv_offset", None),
        "module": {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2, "bias": False},
        "offset_groups": 2,
        "modulated": False,
    },
    "mmcv_v2": {
        "names": ("head.dcn", "head.dcn.conv_offset", None),
        "module": {
            "kernel_size": (3, 2),
            "stride": (2, 1),
            "padding": (1, 2),
            "dilation": (2, 1),
        },
        "offset_groups": 2,
        "modulated": True,
    },
    "detectron2": {
        "names": (
            "backbone.bottom_up.res5.0.conv2",
            "backbone.bottom_up.res5.0.conv2_offset",
            None,
        ),
        "module": {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": False},
        "offset_groups": 1,
        "modulated": True,
    },
    "dcnv2": {
        "names": ("dcn", "dcn.conv_offset_mask", None),
        "module": {"kernel_size": 3, "stride": 2, "padding": 1},
        "offset_groups": 4,
        "modulated": True,
    },
    "torchvision": {
        "names": ("deform", "offsets", "modulator"),
        "module": {"kernel_size": 3, "stride": 1, "padding": 1},
        "offset_groups": 1,
        "modulated": True,
    },
}

DCNV3: dict[str, dict[str, Any]] = {
    "internimage_t": {"group": 2},
    "internimage_h": {
        "group": 3,
        "dw_kernel_size": 5,
        "center_feature_scale": True,
        "offset_scale": 2.0,
        "remove_center": True,
    },
    "batch_normalization": {"group": 4, "norm_layer": "BN", "act_layer": "SiLU"},
}


def record_torch() -> None:
    """Layers, and whole networks, of PyTorch and torchvision."""
    import safetensors.torch
    import torch
    import torchvision
    from torch import nn

    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    torch.manual_seed(0)

    class Deformable(nn.Module):
        """A deformable convolution with what predicts its offsets, as mmcv's packs are."""

        def __init__(self, channels, filters, *, offset_groups, modulated, own_mask, **arguments):
            super().__init__()
            self.modulated = modulated
            self.layer = torchvision.ops.DeformConv2d(channels, filters, **arguments)
            geometry = {
                n: arguments[n] for n in ("stride", "padding", "dilation") if n in arguments
            }
            taps = offset_groups * int(np.prod(self.layer.kernel_size))
            outputs = taps * (3 if modulated and not own_mask else 2)
            self.offset = nn.Conv2d(channels, outputs, arguments["kernel_size"], **geometry)
            self.mask = None
            if own_mask:
                self.mask = nn.Conv2d(channels, taps, arguments["kernel_size"], **geometry)

        def forward(self, maps):
            if not self.modulated:
                return self.layer(maps, self.offset(maps))
            if self.mask is not None:
                return self.layer(maps, self.offset(maps), torch.sigmoid(self.mask(maps)))
            # So it stands in mmcv, detectron2 and DCNv2.
            o1, o2, mask = torch.chunk(self.offset(maps), 3, dim=1)
            return self.layer(maps, torch.cat((o1, o2), dim=1), torch.sigmoid(mask))

    def renamed(module, names):
        parts = dict(zip(("layer", "offset", "mask"), names, strict=True))
        return {
            f"{parts[name.split('.')[0]]}.{name.split('.')[1]}": tensor.detach().clone()
            for name, tensor in module.state_dict().items()
        }

    arrays: dict[str, np.ndarray] = {}
    for case, spec in LAYERS.items():
        module = Deformable(
            4,
            6,
            offset_groups=spec["offset_groups"],
            modulated=spec["modulated"],
            own_mask=spec["names"][2] is not None,
            **spec["module"],
        )
        with torch.no_grad():
            module.layer.weight.normal_()
            for conv in filter(None, (module.offset, module.mask)):
                conv.weight.normal_(0, 0.2)
                conv.bias.normal_()
        maps = torch.randn(2, 4, 9, 8)
        state = renamed(module, spec["names"])
        outputs = module.double()(maps.double()).detach().float()
        arrays[f"{case}/inputs"], arrays[f"{case}/outputs"] = maps.numpy(), outputs.numpy()
        arrays |= {f"{case}/state/{name}": tensor.numpy() for name, tensor in state.items()}
        if case == "mmcv_v2":
            # As trained models lie in files: under another type, beside others' weights.
            state["head.fc.weight"] = torch.ones(2, 3, dtype=torch.bfloat16)
            safetensors.torch.save_file(state, FOLDER / "torch_layer.safetensors")
    meta = json.dumps({"versions": versions, "layers": LAYERS})
    np.savez_compressed(FOLDER / "torch_layers.npz", meta=meta, **arrays)

    def network(deformable_stages, strides, dilations, style, **arguments):
        """torchvision's ResNet-50, changed to what mmdetection's and detectron2's are."""
        model = torchvision.models.resnet50(weights=None)
        del model.fc
        for stage, stride, dilation in zip(range(1, 5), strides, dilations, strict=True):
            for index, block in enumerate(getattr(model, f"layer{stage}")):
                first = stride if index == 0 else 1
                in_first, in_second = (1, first) if style == "pytorch" else (first, 1)
                block.conv1.stride = (in_first,) * 2
                if index == 0:
                    block.downsample[0].stride = (first,) * 2
                width = block.conv2.in_channels
                geometry = {"stride": in_second, "padding": dilation, "dilation": dilation}
                if stage in deformable_stages:
                    block.conv2 = Deformable(
                        *(width, width),
                        kernel_size=3,
                        bias=False,
                        own_mask=False,
                        **geometry,
                        **arguments,
                    )
                else:
                    block.conv2 = nn.Conv2d(width, width, 3, bias=False, **geometry)
        return model.eval()

    def mmdet_name(name):
        return "backbone." + name.replace("conv2.layer", "conv2").replace(
            "conv2.offset", "conv2.conv_offset"
        )

    def detectron2_name(name):
        name = name.replace("conv2.layer", "conv2").replace("conv2.offset", "conv2_offset")
        for stage in range(1, 5):
            name = name.replace(f"layer{stage}.", f"res{stage + 1}.")
        for part in (1, 2, 3):
            name = name.replace(f"bn{part}.", f"conv{part}.norm.")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        return "backbone.bottom_up." + (f"stem.{name}" if name.startswith("conv1") else name)

    for case, rename, skipped, arguments in (
        (
            "mmdet",
            mmdet_name,
            (),
            {
                "deformable_stages": (2, 3, 4),
                "strides": (1, 2, 2, 2),
                "dilations": (1, 1, 1, 1),
                "style": "pytorch",
                "offset_groups": 1,
                "modulated": True,
            },
        ),
        (
            "detectron2",
            detectron2_name,
            ("num_batches_tracked",),  # its frozen normalization has none
            {
                "deformable_stages": (4,),
                "strides": (1, 2, 2, 1),
                "dilations": (1, 1, 1, 2),
                "style": "caffe",
                "offset_groups": 2,
                "modulated": False,
            },
        ),
    ):
        model = network(**arguments)
        names = {name: rename(name) for name in model.state_dict()}
        shapes = {
            names[name]: list(tensor.shape)
            for name, tensor in model.state_dict().items()
            if not name.endswith(skipped or "-")
        }
        weights = named_weights(shapes)
        state = {
            name: torch.from_numpy(weights[new]) for name, new in names.items() if new in weights
        }
        problems = model.load_state_dict(state, strict=False)
        assert all(name.endswith(skipped or "-") for name in problems.missing_keys), problems
        images = torch.randn(1, 3, 64, 90)
        features: dict[str, np.ndarray] = {}
        for precision in (torch.float64, torch.float32):
            with torch.no_grad():
                maps = images.to(precision)
                model = model.to(precision)
                maps = model.maxpool(model.relu(model.bn1(model.conv1(maps))))
                for stage in range(1, 5):
                    maps = getattr(model, f"layer{stage}")(maps)
                    every = maps.numpy()[:, :: 4 if stage == 4 else 16].astype(np.float32)
                    name = f"stage{stage}"
                    if precision is torch.float64:
                        features[name] = every
                    else:
                        error = np.abs(every - features[name]).max() / np.abs(every).max()
                        print(case, name, "float32 beside float64:", error)
        np.savez_compressed(
            FOLDER / f"torch_resnet50_{case}.npz",
            meta=json.dumps({"versions": versions, "arguments": arguments, "shapes": shapes}),
            images=images.numpy(),
            **features,
        )


def record_attention() -> None:
    """The attention of Deformable DETR, as the package transformers has it."""
    import torch
    import transformers
    from transformers.models.deformable_detr import modeling_deformable_detr as detr

    torch.manual_seed(0)
    heads, points, sizes = 4, 3, [(5, 7), (3, 4)]
    config = transformers.DeformableDetrConfig(
        d_model=24, num_feature_levels=len(sizes), disable_custom_kernels=True
    )
    module = detr.DeformableDetrMultiscaleDeformableAttention(config, heads, points)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            # Offsets of a pixel or two: some samples leave the maps, most do not.
            parameter.normal_(0, 0.5 if "bias" in name else 0.2)
    module = module.double().eval()
    query = torch.randn(2, 6, 24, dtype=torch.float64)
    value = torch.randn(2, sum(height * width for height, width in sizes), 24, dtype=torch.float64)
    first_pixels = [0, sizes[0][0] * sizes[0][1]]
    points_xy = torch.rand(2, 6, len(sizes), 2, dtype=torch.float64)
    boxes_xywh = torch.cat([points_xy, torch.rand_like(points_xy) / 2 + 0.1], dim=-1)
    arrays = {"query": query, "value": value, "points": points_xy, "boxes": boxes_xywh}
    with torch.no_grad():
        for references in ("points", "boxes"):
            arrays[f"outputs_of_{references}"] = module(
                hidden_states=query,
                encoder_hidden_states=value,
                reference_points=arrays[references],
                spatial_shapes=torch.tensor(sizes),
                spatial_shapes_list=sizes,
                level_start_index=torch.tensor(first_pixels),
            )[0]
    for name, parameter in module.state_dict().items():
        arrays[f"state/model.encoder.layers.0.self_attn.{name}"] = parameter
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    meta = {"versions": versions, "num_heads": heads, "num_points": points, "sizes": sizes}
    np.savez_compressed(
        FOLDER / "torch_attention.npz",
        meta=json.dumps(meta),
        **{name: tensor.float().numpy() for name, tensor in arrays.items()},
    )


def record_dcnv3() -> None:
    """DCNv3 as InternImage's own module in PyTorch computes it."""
    import types

    import torch

    # The compiled operator and its version, which the module asks for and does not need.
    sys.modules["DCNv3"] = types.ModuleType("DCNv3")
    resources = types.ModuleType("pkg_resources")
    resources.get_distribution = lambda name: types.SimpleNamespace(version="1.1")
    sys.modules["pkg_resources"] = resources
    from ops_dcnv3.modules import DCNv3_pytorch

    torch.manual_seed(0)
    arrays: dict[str, np.ndarray] = {}
    for case, arguments in DCNV3.items():
        module = DCNv3_pytorch(channels=12, **arguments).double()
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if not name.endswith("num_batches_tracked"):
                    tensor.normal_(0, 0.4)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
            maps = torch.randn(2, 7, 9, 12, dtype=torch.float64)
            outputs = module.eval()(maps)
        state = {f"state/dcn.{name}": tensor for name, tensor in module.state_dict().items()}
        for name, tensor in {"inputs": maps, "outputs": outputs, **state}.items():
            arrays[f"{case}/{name}"] = (tensor.float() if tensor.ndim else tensor).numpy()
    meta = json.dumps({"versions": {"torch": torch.__version__}, "modules": DCNV3})
    np.savez_compressed(FOLDER / "torch_dcnv3.npz", meta=meta, **arrays)


def record_mxnet() -> None:
    """Layers of the authors' R-FCN and DeepLab, in a file that MXNet saves."""
    import mxnet as mx

    random = np.random.RandomState(0)
    shapes = {
        "res5a_branch2b_weight": (8, 8, 3, 3),
        "res5a_branch2b_offset_weight": (72, 8, 3, 3),
        "res5a_branch2b_offset_bias": (72,),
        "rfcn_cls_weight": (3 * 3 * 4, 8, 1, 1),
        "rfcn_cls_bias": (3 * 3 * 4,),
        "rfcn_cls_offset_t_weight": (3 * 3 * 4 * 2, 8, 1, 1),
        "rfcn_cls_offset_t_bias": (3 * 3 * 4 * 2,),
        "rfcn_bbox_weight": (3 * 3 * 2, 8, 1, 1),
        "rfcn_bbox_bias": (3 * 3 * 2,),
        "rfcn_bbox_offset_t_weight": (3 * 3 * 2, 8, 1, 1),
        "rfcn_bbox_offset_t_bias": (3 * 3 * 2,),
    }
    weights = {
        # Offsets of a pixel, so that there are samples that do not reach the border.
        name: mx.nd.array(
            (random.standard_normal(shape) * (0.1 if "b_offset" in name else 0.3)).astype("float32")
        )
        for name, shape in shapes.items()
    }
    state = {f"arg:{name}": array for name, array in weights.items()}
    state["aux:bn5a_branch2b_moving_mean"] = mx.nd.zeros((8,))
    state["arg:half"] = mx.nd.arange(6, dtype="float16").reshape((2, 3))
    state["arg:rfcn_bbox_weight_test"] = weights["rfcn_bbox_weight"] * 2
    mx.nd.save(str(FOLDER / "mxnet_layers.params"), state)

    maps = mx.nd.array(random.standard_normal((1, 8, 16, 18)).astype(np.float32))
    boxes = np.array([[0, 10, 20, 150, 120], [0, 40, 8, 100, 180], [0, 0, 0, 220, 190]], np.float32)
    rois = mx.nd.array(boxes)
    arrays = {"inputs": maps.asnumpy(), "rois": boxes}

    geometry = {"kernel": (3, 3), "pad": (2, 2), "dilate": (2, 2), "stride": (1, 1)}
    offsets = mx.nd.Convolution(
        maps,
        weights["res5a_branch2b_offset_weight"],
        weights["res5a_branch2b_offset_bias"],
        num_filter=72,
        **geometry,
    )
    arrays["res5a_branch2b"] = mx.nd.contrib.DeformableConvolution(
        maps,
        offsets,
        weights["res5a_branch2b_weight"],
        num_filter=8,
        num_deformable_group=4,
        no_bias=True,
        **geometry,
    ).asnumpy()
    for name, depth, classes in (("rfcn_cls", 4, 4), ("rfcn_bbox", 2, 1)):
        pooling = {"group_size": 3, "pooled_size": 3, "part_size": 3, "sample_per_part": 4}
        pooling["spatial_scale"] = 0.0625
        scores, fields = (
            mx.nd.Convolution(
                maps,
                weights[f"{part}_weight"],
                weights[f"{part}_bias"],
                kernel=(1, 1),
                num_filter=outputs,
            )
            for part, outputs in (
                (name, 9 * depth),
                (f"{name}_offset_t", 9 * 2 * classes),
            )
        )
        pool = mx.nd.contrib.DeformablePSROIPooling
        trans = pool(fields, rois, no_trans=True, output_dim=2 * classes, **pooling)
        pooled = pool(scores, rois, trans, trans_std=0.1, output_dim=depth, **pooling)
        arrays[name] = pooled.asnumpy()
    np.savez_compressed(
        FOLDER / "mxnet_layers.npz",
        meta=json.dumps({"versions": {"mxnet": mx.__version__}}),
        **arrays,
    )


if __name__ == "__main__":
    recorders = {
        "torch": record_torch,
        "attention": record_attention,
        "dcnv3": record_dcnv3,
        "mxnet": record_mxnet,
    }
    recorders[sys.argv[1]]()
