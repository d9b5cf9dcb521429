"""Exported SavedModels, in processes that have TensorFlow and not this package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.export import small_models
from tf_deformable import export
from tf_deformable.export import _portable

KINDS = pytest.mark.parametrize("kind", small_models.KINDS)
# Half precision: sums of other orders round to other numbers.
TOLERANCES = {"mixed_precision": 2e-3}


class Served:
    """What all kinds of models give, exported and served by one process without the package."""

    def __init__(self, folder: Path, *, portable: bool) -> None:
        self.expected, self.got, self.unchanged = {}, {}, {}
        folders = {}
        for kind, make in small_models.KINDS.items():
            tf.keras.utils.set_random_seed(20)
            case = make()
            self.expected[kind] = case.expected()
            folders[kind] = folder / kind
            export.saved_model(
                case.model,
                folders[kind] / "model",
                portable,
                input_signature=case.input_signature,
                measure=False,
            )
            self.unchanged[kind] = case.expected()
            request = small_models.by_name(case.inputs, _ranks(folders[kind] / "model"))
            np.savez(folders[kind] / "request.npz", **request)
        library = []
        if not portable:
            (path,) = (folders[kind] / "model/assets.extra").glob("libtf_deformable_tensorflow_*")
            library = ["--library", str(path)]
        # -I: neither the working directory nor PYTHONPATH lead to the package.
        script = Path(__file__).with_name("serve_folders.py")
        command = [sys.executable, "-I", str(script), *library, *map(str, folders.values())]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        for kind, path in folders.items():
            self.got[kind] = dict(np.load(path / "answer.npz"))
        self.folders = folders


def _ranks(model: Path) -> dict[str, int]:
    """How many axes the inputs of a signature have, by name."""
    signature = tf.saved_model.load(str(model)).signatures["serving_default"]
    _, specs = signature.structured_input_signature
    return {name: spec.shape.rank for name, spec in specs.items()}


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("portable"), portable=True)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("native"), portable=False)


@KINDS
def test_portable(portable, kind):
    assert not _portable.custom_operators(portable.folders[kind] / "model")
    tolerance = TOLERANCES.get(kind, 1e-5)
    small_models.assert_same(portable.got[kind], portable.expected[kind], tolerance)


@KINDS
def test_model_stays_as_it_is(portable, kind):
    small_models.assert_same(portable.unchanged[kind], portable.expected[kind], 0.0)


@KINDS
def test_native(native, kind):
    assert _portable.custom_operators(native.folders[kind] / "model")
    small_models.assert_same(native.got[kind], native.expected[kind], 1e-6)


def test_native_says_how_to_load_it(native):
    extra = native.folders["convolution"] / "model/assets.extra"
    library = Path(tf_deformable.get_library_path()).name
    names = {path.name for path in extra.iterdir()}
    assert {library, "README"} < names and len(names) == 3
    assert f'tf.load_op_library("assets.extra/{library}")' in (extra / "README").read_text()


def test_cost_is_measured_and_printed(tmp_path, capsys):
    case = small_models.convolution()

    cost = export.saved_model(case.model, tmp_path / "model", example_inputs=case.inputs[0])

    assert list(cost.shapes.values()) == [(2, 13, 10, 6)]
    assert 0 < cost.portable_seconds < 10 and 0 < cost.native_seconds < 10
    assert str(cost) in capsys.readouterr().out


def test_cost_with_made_up_inputs(tmp_path):
    case = small_models.convolution()
    assert list(export.saved_model(case.model, tmp_path / "model").shapes.values()) == [
        (1, 64, 64, 6)
    ]


def test_cost_is_not_measured_where_inputs_cannot_be_made_up(tmp_path, capsys):
    inputs = tf.keras.Input((None, 1))
    square = tf.keras.layers.Lambda(lambda x: tf.reshape(x, [-1, 5, 5, 1]), (5, 5, 1))(inputs)
    model = tf.keras.Model(inputs, tf_deformable.DeformableConv2D(2, 3)(square))

    assert export.saved_model(model, tmp_path / "model") is None

    assert "give example_inputs" in capsys.readouterr().out
    assert tf.saved_model.contains_saved_model(str(tmp_path / "model"))


def test_native_model_on_disk_becomes_portable(tmp_path):
    case = small_models.module()
    tf.saved_model.save(case.model, str(tmp_path / "native"))

    export.saved_model(tmp_path / "native", tmp_path / "portable", measure=False)

    assert _portable.custom_operators(tmp_path / "native") == {
        "TFDeformable>Conv2D",
        "TFDeformable>Conv2DGrad",
    }
    assert not _portable.custom_operators(tmp_path / "portable")
    exported = tf.saved_model.load(str(tmp_path / "portable"))
    expected = case.model.gradients(*case.inputs)
    for got, wanted in zip(exported.gradients(*case.inputs), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-3)


def test_portable_model_can_be_trained(tmp_path):
    case = small_models.pooling("DeformableRoIPool")
    native = export.saved_model(case.model, tmp_path / "native", portable=False)
    assert native is None
    export.saved_model(case.model, tmp_path / "portable", measure=False)
    gradients = []
    for name in ("native", "portable"):
        exported = tf.saved_model.load(str(tmp_path / name))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(exported.serve(case.inputs) ** 2)
        gradients.append(tape.gradient(loss, exported.trainable_variables))
    for got, wanted in zip(*gradients, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_what_is_there_is_replaced_if_it_is_a_saved_model(tmp_path):
    case = small_models.convolution()
    export.saved_model(case.model, tmp_path / "model", portable=False)

    export.saved_model(case.model, tmp_path / "model", measure=False)

    assert not (tmp_path / "model/assets.extra").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(FileExistsError, match="other is there and is no SavedModel"):
        export.saved_model(case.model, tmp_path / "other", measure=False)
    assert (tmp_path / "other/file").exists()


def test_errors(tmp_path):
    with pytest.raises(TypeError, match="tf.Module or the folder of a SavedModel, got int"):
        export.saved_model(3, tmp_path / "model")
    with pytest.raises(ValueError, match="is no folder of a SavedModel"):
        export.saved_model(tmp_path / "nothing", tmp_path / "model")
    with pytest.raises(ValueError, match="DeformableConv2D is a layer and not a model"):
        export.saved_model(tf_deformable.DeformableConv2D(2, 3), tmp_path / "model")
    case = small_models.convolution()
    with pytest.raises(ValueError, match=r"must be a dictionary with the keys .*, got \['x'\]"):
        export.saved_model(case.model, tmp_path / "model", example_inputs={"x": case.inputs[0]})
