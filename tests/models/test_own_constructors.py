"""Functional models of classes with constructors of their own, as KerasHub's backbones are."""

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import analysis
from tf_deformable.layers import DeformableConv2D
from tf_deformable.models import compare, deeplab, deformify, detector
from tf_deformable.models.surgery.select import output_stride

layers = tf.keras.layers


class PyramidBackbone(tf.keras.Model):
    """Stages of stride 2, 4, 8; the maps of all of them are in `pyramid_outputs`, by name."""

    def __init__(self, widths, **kwargs):
        images = x = tf.keras.Input((None, None, 3), name="images")
        pyramid = {}
        for level, width in enumerate(widths, 1):
            stem = layers.Conv2D(width, 3, strides=2, padding="same", name=f"down_{level}")
            x = layers.BatchNormalization(name=f"norm_{level}")(stem(x))
            x = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"conv_{level}")(x)
            pyramid[f"P{level}"] = x
        super().__init__(inputs=images, outputs=x, **kwargs)
        self.pyramid_outputs = pyramid
        self.widths = widths

    def get_config(self):
        return {"widths": list(self.widths), "name": self.name, "trainable": self.trainable}


class Branches(tf.keras.Model):
    """Returns a dictionary of maps, of a backbone that is nested in it."""

    def __init__(self, backbone):
        images = tf.keras.Input((32, 32, 3))
        finer = tf.keras.Model(backbone.inputs, backbone.pyramid_outputs["P1"], name="finer")
        super().__init__(images, {"coarse": backbone(images), "fine": finer(images)})


class Regularized(tf.keras.Model):
    """Trains in its own way."""

    def __init__(self):
        images = tf.keras.Input((8, 8, 4))
        super().__init__(images, layers.Conv2D(3, 3, name="conv")(images))

    def train_step(self, data):
        return super().train_step(data)


def backbone(**kwargs):
    model = PyramidBackbone([4, 6, 8], **kwargs)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.uniform(0.1, 0.5, weight.shape))
    return model


def images(size=32):
    return np.random.default_rng(0).uniform(size=[2, size, size, 3]).astype(np.float32)


def names_of(model):
    return [layer.name for layer in model.layers]


def test_copy_is_a_plain_functional_model_with_names_weights_and_flags():
    model = backbone(name="backbone")
    model.get_layer("conv_2").trainable = False
    copy = deformify(model)
    assert type(copy) is type(tf.keras.Model(model.inputs, model.outputs))
    assert (copy.name, names_of(copy)) == (model.name, names_of(model))
    assert copy.output_names == model.output_names
    assert isinstance(copy.get_layer("conv_3"), DeformableConv2D)
    assert [layer.trainable for layer in copy.layers] == [layer.trainable for layer in model.layers]
    np.testing.assert_allclose(copy(images()), model(images()), rtol=1e-5)


def test_pyramid_keeps_its_names():
    model = backbone()
    copy = deformify(model)
    assert list(copy.pyramid_outputs) == ["P1", "P2", "P3"]
    expected, found = (
        tf.keras.Model(each.input, dict(each.pyramid_outputs))(images()) for each in (model, copy)
    )
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_outputs_keep_their_names_and_nested_models_are_copied():
    model = Branches(backbone(name="backbone"))
    copy = deformify(model, "conv_[13]")
    expected, found = model(images()), copy(images())
    assert list(found) == ["coarse", "fine"]
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    assert isinstance(copy.get_layer("backbone").get_layer("conv_3"), DeformableConv2D)
    # What two nested models share stays shared.
    assert copy.get_layer("finer").get_layer("conv_1") is copy.get_layer("backbone").get_layer(
        "conv_1"
    )


def test_copy_is_not_compiled_where_the_class_may_train_in_its_own_way():
    model = Regularized()
    model.compile("sgd", "mse")
    copy = deformify(model)
    with pytest.raises((RuntimeError, ValueError), match="compile"):
        copy.fit(np.zeros([2, 8, 8, 4]), np.zeros([2, 6, 6, 3]), verbose=0)


def test_what_a_class_computes_beside_its_graph_is_not_rewritten():
    class Doubled(PyramidBackbone):
        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs, training=training)

    with pytest.raises(ValueError, match=r"is subclassed \(Doubled\), and what its call does"):
        deformify(Doubled([4, 6]))
    with pytest.raises(ValueError, match="detector: backbone must be a functional .* got Doubled"):
        detector(Doubled([4, 6]), 2)


@pytest.mark.parametrize("level, stride", [(None, 8), ("P3", 8), ("P2", 4), ("P1", 2)])
@pytest.mark.parametrize("deformable", [False, True])
def test_detector_on_a_level(level, stride, deformable):
    model = detector(
        backbone(),
        2,
        "rpn",
        level=level,
        deformable=deformable,
        anchor_sizes=(8,),
        aspect_ratios=(1.0,),
        rpn_units=4,
    )
    assert model.stride == stride
    assert model(images())["boxes"].shape == (2, 100, 4)
    found = [layer.name for layer in model.backbone.layers if isinstance(layer, DeformableConv2D)]
    coarsest = f"conv_{level[1] if level else 3}"  # the level's, not the backbone's
    assert found == [coarsest] * deformable


def test_of_several_outputs_the_coarsest_is_the_default():
    one = backbone()
    dictionary = tf.keras.Model(
        one.inputs, {"b": one.pyramid_outputs["P3"], "a": one.layers[2].output}
    )
    assert detector(dictionary, 2, "rpn").stride == 8
    assert detector(dictionary, 2, "rpn", level="a").stride == 2
    with pytest.raises(
        ValueError, match=r"got 'P7'; there are .*'P1' \(stride 2\).*'P3' \(stride 8"
    ):
        detector(one, 2, level="P7")


def test_deeplab_compare_and_analysis():
    model = backbone()
    network = deeplab(model, 5, deformable=True, level="P2")
    assert network(images()).shape == (2, 32, 32, 5)
    assert isinstance(network.get_layer("conv_2"), DeformableConv2D)
    (change,) = compare(model, deformify(model), input_size=(32, 32)).changes
    assert change.before.path == "conv_3"
    (row,) = analysis.offset_report(deformify(model), images()).layers
    assert (row.name, row.maximum) == ("conv_3", 0.0)
    assert output_stride(model) == 8


def test_copy_is_saved_without_the_class(tmp_path):
    model = backbone()
    copy = deformify(model)
    copy.save(tmp_path / "copy.keras")
    loaded = tf.keras.models.load_model(tmp_path / "copy.keras")  # The class is not registered.
    np.testing.assert_allclose(loaded(images()), model(images()), rtol=1e-5)
