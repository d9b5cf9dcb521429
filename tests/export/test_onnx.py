"""ONNX models: their operators, and their numbers in ONNX Runtime and OpenVINO beside Keras'."""

from __future__ import annotations

import collections
import gc
import sys

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.export import small_models
from tf_deformable import export

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
onnxruntime = pytest.importorskip("onnxruntime")

OPSETS = pytest.mark.parametrize("opset", [19, 22])
# Half precision: sums of other orders round to other numbers.
TOLERANCES = {"mixed_precision": 2e-3}

pytestmark = [
    # NumPy 2 deprecates what Keras 3 and tf2onnx do.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tf2onnx"),
]


def run(path, inputs):
    """Outputs by their names, of inputs by theirs, or of a list of inputs that differ in rank."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if isinstance(inputs, list):
        ranks = {one.name: len(one.shape) for one in session.get_inputs()}
        inputs = small_models.by_name(inputs, ranks)
    outputs = session.run(None, inputs)
    return dict(zip([one.name for one in session.get_outputs()], outputs, strict=True))


def count_operators(model):
    """The operators of a model, by type."""
    assert {node.domain for node in model.graph.node} == {""}
    return collections.Counter(node.op_type for node in model.graph.node)


def check(case, path, *args, tolerance=1e-5, **kwargs):
    """Exports, compares, and returns how many operators there are of each type."""
    kwargs = {"input_signature": case.input_signature, **kwargs}
    model = export.onnx(case.model, path, *args, **kwargs)
    small_models.assert_same(run(path, case.inputs), case.expected(), tolerance)
    return count_operators(model)


@pytest.mark.parametrize("kind", small_models.KINDS)
def test_models(kind, tmp_path):
    case = small_models.KINDS[kind]()
    operators = check(case, tmp_path / "model.onnx", tolerance=TOLERANCES.get(kind, 1e-5))
    assert operators["DeformConv"] == (kind not in small_models.WITHOUT_FILTERS)


@pytest.mark.parametrize("kind", ["channels_first", "attention", "dcn_layers"])
def test_newest_operators(kind, tmp_path):
    operators = check(small_models.KINDS[kind](), tmp_path / "model.onnx", 22)
    assert operators["DeformConv"] == (kind not in small_models.WITHOUT_FILTERS)
    model = onnx.load(tmp_path / "model.onnx")
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 22)]


@pytest.mark.parametrize("size", [(13, 10), (None, None)], ids=["known", "unknown"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "same", "modulated": True, "offset_groups": 3, "groups": 2},
        {"padding": "same", "strides": 2, "modulated": True, "mask_initial_value": 1.0},
        {"kernel_size": (2, 4), "padding": "same", "strides": (1, 2), "use_bias": False},
        {"kernel_size": (1, 3), "padding": "same", "strides": 3, "dilation_rate": 2},
        {"padding": "same", "strides": (2, 1), "dilation_rate": (3, 2), "modulated": True},
        {"strides": 2, "dilation_rate": (1, 2), "activation": "relu"},
    ],
    ids=str,
)
def test_convolution(size, arguments, tmp_path):
    case = small_models.convolution(size, **arguments)
    operators = check(case, tmp_path / "model.onnx")
    assert operators["DeformConv"] == 1
    assert not {"GatherND", "Gather"} & set(operators) or None in size


@pytest.mark.parametrize("bias", [False, True])
def test_explicit_padding_and_all_else_at_once(bias, tmp_path):
    class Module(tf.Module):
        def __call__(self, inputs, offsets, mask):
            random = np.random.default_rng(3)
            return tf_deformable.deformable_conv2d(
                inputs,
                random.normal(size=[3, 2, 3, 4]).astype(np.float32),
                offsets,
                mask,
                bias=[1.0, 2.0, 3.0, 4.0] if bias else None,
                padding=[[0, 0], [2, 0], [1, 3], [0, 0]],
                strides=(1, 2),
                dilations=(2, 1),
            )

    random = np.random.default_rng(4)
    module, sizes = Module(), [(2, 9, 8, 6), (2, 7, 6, 3 * 6 * 2), (2, 7, 6, 3 * 6)]
    names = ("inputs", "offsets", "mask")
    arrays = [random.normal(size=size).astype(np.float32) for size in sizes]
    inputs = dict(zip(names, arrays, strict=True))
    signature = [
        tf.TensorSpec([None, None, None, size[3]], name=name)
        for size, name in zip(sizes, names, strict=True)
    ]

    model = export.onnx(module, tmp_path / "model.onnx", input_signature=signature)

    (node,) = (node for node in model.graph.node if node.op_type == "DeformConv")
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    assert attributes == {
        "kernel_shape": [3, 2],
        "strides": [1, 2],
        "dilations": [2, 1],
        "pads": [2, 1, 0, 3],
        "group": 2,
        "offset_group": 3,
    }
    expected = {"output_0": module(*map(tf.constant, inputs.values())).numpy()}
    small_models.assert_same(run(tmp_path / "model.onnx", inputs), expected)


@pytest.mark.parametrize("is_float16", [False, True])
def test_half_precision(is_float16, tmp_path):
    class Module(tf.Module):
        def __call__(self, inputs, offsets):
            filters = np.random.default_rng(3).normal(size=[3, 3, 4, 5]).astype(np.float16)
            return tf_deformable.deformable_conv2d(inputs, filters, offsets)

    random, module = np.random.default_rng(4), Module()
    inputs = {f"x{n}": random.normal(size=(1, 9, 8, n)).astype(np.float16) for n in (4, 18)}
    signature = [tf.TensorSpec([None, None, None, n], tf.float16, f"x{n}") for n in (4, 18)]

    model = export.onnx(
        module, tmp_path / "model.onnx", input_signature=signature, float16=is_float16
    )

    assert ("Cast" in count_operators(model)) != is_float16
    expected = {"output_0": module(*map(tf.constant, inputs.values())).numpy()}
    tolerance = 2e-2 if is_float16 else 2e-3  # positions are rounded, too
    small_models.assert_same(run(tmp_path / "model.onnx", inputs), expected, tolerance)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    "kind", ["RoIPool", "PSRoIPool", "DeformableRoIPool", "DeformablePSRoIPool"]
)
def test_pooling(kind, aligned, tmp_path):
    case = small_models.pooling(kind, aligned=aligned)
    operators = check(case, tmp_path / "model.onnx")
    # Plain pooling, which the layer with offsets begins with.
    is_roi_align = aligned and kind in ("RoIPool", "DeformableRoIPool")
    assert operators["RoiAlign"] == int(is_roi_align)


@OPSETS
@pytest.mark.parametrize("samples", [0, 2])
def test_pooling_of_odd_boxes(samples, opset, tmp_path):
    class Module(tf.Module):
        def __call__(self, inputs, boxes, box_indices, mask):
            return tf_deformable.deformable_roi_pool(
                inputs,
                boxes,
                box_indices,
                mask=mask,
                output_size=(3, 2),
                spatial_scale=0.5,
                samples_per_bin=samples,
            )

    random, module = np.random.default_rng(4), Module()
    boxes = small_models.boxes(1, 8, 16)[0]
    boxes[1] = boxes[0, [2, 3, 0, 1]]  # upside down
    boxes[2, 0], boxes[3, 3], boxes[4, 0] = np.nan, np.inf, np.nan
    boxes[5] += 1000
    box_indices = np.array([0, 1, 1, 0, -1, 1, -1, 1], np.int32)
    mask = random.normal(size=[8, 3, 2]).astype(np.float32)
    inputs = {
        "inputs": random.normal(size=(2, 9, 8, 4)).astype(np.float32),
        "boxes": boxes,
        "box_indices": box_indices,
        "mask": mask,
    }
    signature = [
        tf.TensorSpec([None, None, None, 4], name="inputs"),
        tf.TensorSpec([None, 4], name="boxes"),
        tf.TensorSpec([None], tf.int32, "box_indices"),
        tf.TensorSpec([None, 3, 2], name="mask"),
    ]

    model = export.onnx(module, tmp_path / "model.onnx", opset, input_signature=signature)

    assert count_operators(model)["RoiAlign"] == (opset < 22)
    got = run(tmp_path / "model.onnx", inputs)["output_0"]
    expected = module(*map(tf.constant, inputs.values())).numpy()
    assert np.isnan(expected[[2, 3]]).all() and not np.isnan(expected[[0, 1, 4, 5, 6, 7]]).any()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_all_sizes_are_open(tmp_path):
    case = small_models.pooling("DeformableRoIPool")
    export.onnx(case.model, tmp_path / "model.onnx")
    for batch, height, width, count in ((1, 7, 9, 1), (3, 20, 6, 5), (2, 13, 10, 0)):
        inputs = [small_models.images(batch, height, width, 6)]
        inputs.append(np.ones([batch, count, 4], np.float32) * [0, 1, 11, 9])
        inputs[1] = inputs[1].astype(np.float32)
        got = run(tmp_path / "model.onnx", inputs)
        small_models.assert_same(got, small_models.Case(case.model, inputs).expected())


def test_all_sizes_of_attention_are_open(tmp_path):
    case, random = small_models.attention(), np.random.default_rng(9)
    export.onnx(case.model, tmp_path / "model.onnx")
    for batch, queries, height, width in ((1, 1, 3, 20), (3, 40, 16, 7), (2, 0, 9, 12)):
        inputs = [random.normal(size=[batch, queries, 12]).astype(np.float32)]
        inputs.append(small_models.images(batch, height, width, 3))
        got = run(tmp_path / "model.onnx", inputs)
        small_models.assert_same(got, small_models.Case(case.model, inputs).expected())


@pytest.mark.slow
def test_rfcn(tmp_path):
    check(small_models.detector("rfcn", head_arguments={"bins": 3}), tmp_path / "model.onnx")


@pytest.mark.parametrize("kind", ["channels_first", "attention", "dcn_layers", "detector"])
def test_openvino(kind, tmp_path):
    openvino = pytest.importorskip("openvino")
    case, path = small_models.KINDS[kind](), tmp_path / "model.onnx"
    model = export.onnx(case.model, path, deform_conv=False)
    assert not count_operators(model)["DeformConv"]

    # It computes in bfloat16 by default where the processor does.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    ranks = {one.any_name: len(one.partial_shape) for one in compiled.inputs}
    answers = compiled(small_models.by_name(case.inputs, ranks))

    expected = case.expected()
    outputs = {name: out for out in compiled.outputs for name in out.names if name in expected}
    got = {name: answers[output] for name, output in outputs.items()}
    small_models.assert_same(got, expected)


def test_openvino_has_no_deform_conv(tmp_path):
    # What the documentation says; when this fails, openvino#34132 has been done.
    openvino = pytest.importorskip("openvino")
    export.onnx(small_models.convolution().model, tmp_path / "model.onnx")
    with pytest.raises(RuntimeError, match="DeformConv"):
        openvino.Core().compile_model(str(tmp_path / "model.onnx"), "CPU")


def test_division_of_negative_integers(tmp_path):
    class Module(tf.Module):
        def __call__(self, a, b):
            return {"quotient": a // b, "remainder": a % b}

    a, b = np.mgrid[-7:8, -3:4].astype(np.int32).reshape(2, -1)
    a, b = a[b != 0], b[b != 0]
    signature = [tf.TensorSpec([None], tf.int32, name) for name in "ab"]
    export.onnx(Module(), tmp_path / "model.onnx", input_signature=signature)
    got = run(tmp_path / "model.onnx", {"a": a, "b": b})
    np.testing.assert_array_equal(got["quotient"], a // b)
    np.testing.assert_array_equal(got["remainder"], a % b)


@pytest.mark.parametrize("size", [16, 19])
def test_convolution_with_strides_above_its_size(size, tmp_path):
    inputs = tf.keras.Input((None, None, 3))
    layers = tf.keras.layers
    sampled = [
        layers.Conv2D(4, 3, strides=8, padding="same")(inputs),
        layers.Conv2D(4, 1, strides=8, padding="same")(inputs),
        layers.DepthwiseConv2D(2, strides=8, padding="same")(inputs),
    ]
    case = small_models.Case(
        tf.keras.Model(inputs, layers.Concatenate()(sampled)),
        [small_models.images(1, size, size, 3)],
    )
    check(case, tmp_path / "model.onnx")


@pytest.mark.slow
def test_resnet(tmp_path):
    model = tf.keras.applications.ResNet50(
        weights=None, include_top=False, input_shape=(None, None, 3)
    )
    model = tf_deformable.models.deformify(
        model, "conv5", modulated=True, offset_kernel_initializer=small_models.offset_kernel()
    )
    case = small_models.Case(model, [small_models.images(1, 64, 48, 3)])
    operators = check(case, tmp_path / "model.onnx", tolerance=1e-4)
    assert operators["DeformConv"] == 3


def test_what_is_not_converted_is_named(tmp_path):
    class Module(tf.Module):
        def __call__(self, x):
            return tf.linalg.expm(x)

    signature = [tf.TensorSpec([2, 2], name="x")]
    with pytest.raises(ValueError, match="tf2onnx does not convert.*MatrixSolve"):
        export.onnx(Module(), tmp_path / "model.onnx", input_signature=signature)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("package", ["onnx", "tf2onnx"])
def test_missing_packages_are_named_with_the_extra(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'package {package},.*"tf_deformable\[onnx\]"'):
        export.onnx(small_models.convolution().model, tmp_path / "model.onnx")


def test_deform_conv_needs_the_library(tmp_path, monkeypatch):
    def missing():
        raise tf_deformable.NativeLibraryError("missing")

    case, path = small_models.convolution(), tmp_path / "model.onnx"
    expected = case.expected()
    monkeypatch.setattr("tf_deformable._native.load", missing)
    monkeypatch.setattr("tf_deformable._native.is_available", lambda: False)

    with pytest.raises(tf_deformable.NativeLibraryError):
        export.onnx(case.model, path)

    model = export.onnx(case.model, path, deform_conv=False)
    assert not count_operators(model)["DeformConv"]
    small_models.assert_same(run(path, case.inputs), expected)


def test_errors(tmp_path):
    case = small_models.convolution()
    with pytest.raises(ValueError, match="opset must be from 19 to 22, got 18"):
        export.onnx(case.model, tmp_path / "model.onnx", 18)
    with pytest.raises(ValueError, match=r"no signature 'train', but \['serve', 'serving_default"):
        export.onnx(case.model, tmp_path / "model.onnx", signature="train")


def test_what_the_conversion_drops_is_freed(tmp_path, monkeypatch):
    """Graphs of tf2onnx hold all weights, and themselves.

    Not even while it converts there are many of them. And the collector is as it was.
    """
    graph_class = pytest.importorskip("tf2onnx").graph.Graph
    optimizer = pytest.importorskip("tf2onnx.optimizer")
    most = 0

    def graphs():
        return sum(type(each) is graph_class for each in gc.get_objects())

    class Counting(optimizer.IdentityOptimizer):
        def optimize(self, graph, iteration):
            nonlocal most
            most = max(most, graphs())
            return super().optimize(graph, iteration)

    monkeypatch.setitem(optimizer._optimizers, "remove_identity", Counting)
    inputs = tf.keras.Input((16, 16, 3))
    outputs = inputs
    for number in range(40):
        outputs = tf.keras.layers.Conv2D(4, 3, padding="same", name=f"conv{number}")(outputs)
    gc.collect()  # What is left is what the errors of other tests hold.
    before = gc.get_threshold(), gc.get_freeze_count(), graphs()
    export.onnx(tf.keras.Model(inputs, outputs), tmp_path / "model.onnx")
    assert 0 < most < 12
    assert (gc.get_threshold(), gc.get_freeze_count(), graphs()) == before
