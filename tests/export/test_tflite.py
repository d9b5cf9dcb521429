"""LiteRT (TensorFlow Lite) models, run by the interpreter beside Keras' numbers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests import litert
from tests.export import small_models
from tf_deformable import export

pytestmark = [
    litert.ignore_deprecation,
    # Keras 3 calls np.array(tf.Variable), which NumPy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

KINDS = {kind: make for kind, make in small_models.KINDS.items() if kind != "detector"}


def run(content, inputs):
    """Outputs by their names."""
    runner = tf.lite.Interpreter(model_content=content).get_signature_runner("serving_default")
    ranks = {name: len(one["shape"]) for name, one in runner.get_input_details().items()}
    return runner(**small_models.by_name(inputs, ranks))


def wide_convolution():
    """A layer of more than the 1024 weights from which on they are quantised."""
    inputs = tf.keras.Input((None, None, 16))
    layer = tf_deformable.DeformableConv2D(
        32, 3, modulated=True, offset_kernel_initializer=small_models.offset_kernel()
    )
    outputs = tf.keras.layers.Dense(64)(layer(inputs))
    return small_models.Case(tf.keras.Model(inputs, outputs), [small_models.images(2, 9, 8, 16)])


def wide_attention():
    """Likewise."""
    return small_models.attention(dim=96)


@pytest.mark.parametrize("kind", KINDS)
def test_models(kind, tmp_path):
    case = KINDS[kind]()

    content = export.tflite(
        case.model, tmp_path / "model.tflite", input_signature=case.input_signature
    )

    assert (tmp_path / "model.tflite").read_bytes() == content
    litert.assert_is_plain(content)
    tolerance = 2e-3 if kind == "mixed_precision" else 1e-5
    small_models.assert_same(run(content, case.inputs), case.expected(), tolerance)


@pytest.mark.parametrize("kind", ["PSRoIPool", "DeformablePSRoIPool"])
def test_pooling(kind, tmp_path):
    case = small_models.pooling(kind)
    content = export.tflite(case.model, tmp_path / "model.tflite")
    litert.assert_is_plain(content)
    small_models.assert_same(run(content, case.inputs), case.expected())


@pytest.mark.parametrize("make", [wide_convolution, wide_attention])
def test_weights(make, tmp_path):
    case = make()
    expected, sizes = case.expected(), {}
    spread = expected["output_0"].std()
    # float16 has 11 bits, int8 has 8, also for what weights are multiplied by. Offsets are made of
    # such products, and move what is read.
    for weights, tolerance in (("float32", 1e-5), ("float16", 5e-3), ("int8", 0.1)):
        content = export.tflite(case.model, tmp_path / "model.tflite", weights)
        litert.assert_is_plain(content)
        difference = run(content, case.inputs)["output_0"] - expected["output_0"]
        error = np.sqrt(np.mean(difference**2)) / spread
        assert error < tolerance
        assert (error < 1e-5) == (weights == "float32")
        sizes[weights] = len(content)
    number = case.model.count_params()
    assert sizes["float32"] - sizes["float16"] > 1.8 * number
    assert sizes["float32"] - sizes["int8"] > 2.5 * number


def test_the_interpreter_that_comes_next(tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    case = small_models.convolution(padding="same", modulated=True)
    content = export.tflite(case.model, tmp_path / "model.tflite")
    runner = interpreter.Interpreter(model_content=content).get_signature_runner()
    (name,) = runner.get_input_details()
    small_models.assert_same(runner(**{name: case.inputs[0]}), case.expected())


def test_what_litert_lacks_is_named(tmp_path):
    case = small_models.detector()
    with pytest.raises(ValueError, match="CombinedNonMaxSuppression"):
        export.tflite(case.model, tmp_path / "model.tflite")
    assert not (tmp_path / "model.tflite").exists()

    content = export.tflite(case.model, tmp_path / "model.tflite", allow_tensorflow_operators=True)
    # Of proposals, and of detections. TensorFlow's own interpreter does not have them either.
    assert litert.operators(content).count("CUSTOM") == 2


def test_errors(tmp_path):
    case = small_models.convolution()
    with pytest.raises(ValueError, match="weights must be one of 'float32', 'float16', 'int8'"):
        export.tflite(case.model, tmp_path / "model.tflite", "int4")
    with pytest.raises(ValueError, match="no signature 'train'"):
        export.tflite(case.model, tmp_path / "model.tflite", signature="train")
