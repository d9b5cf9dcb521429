"""Offsets as absolute positions, against numbers worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable._geometry.padding import same_padding
from tf_deformable.ops.sampling import sampling_positions


def zeros(height, width, groups=1, taps=9, batch=1, dtype=tf.float32):
    return tf.zeros([batch, height, width, groups * taps * 2], dtype)


def test_valid_padding_starts_at_the_first_pixel():
    positions = sampling_positions(
        zeros(2, 3), kernel_size=3, input_size=(5, 7), strides=2, padding="VALID"
    )
    assert positions.shape == (1, 2, 3, 1, 3, 3, 2)
    np.testing.assert_array_equal(positions[0, 0, 0, 0, 0, 0], [0, 0])
    np.testing.assert_array_equal(positions[0, 0, 0, 0, 2, 1], [2, 1])
    np.testing.assert_array_equal(positions[0, 1, 2, 0, 0, 2], [2, 6])


def test_same_padding_is_tensorflows_asymmetric_one():
    # Height 4, stride 2, kernel 3: a row of padding below. Width 5, stride 1: a column either side.
    positions = sampling_positions(
        zeros(2, 5), kernel_size=3, input_size=(4, 5), strides=(2, 1), padding="SAME"
    )
    np.testing.assert_array_equal(positions[0, 0, 0, 0, 0, 0], [0, -1])
    np.testing.assert_array_equal(positions[0, 1, 4, 0, 2, 2], [4, 5])


def test_explicit_padding_and_dilation():
    positions = sampling_positions(
        zeros(3, 2, taps=6),
        kernel_size=(3, 2),
        input_size=(6, 6),
        strides=(2, 3),
        dilations=(2, 1),
        padding=[[0, 0], [2, 1], [1, 0], [0, 0]],
    )
    np.testing.assert_array_equal(positions[0, 0, 0, 0, :, 0, 0], [-2, 0, 2])
    np.testing.assert_array_equal(positions[0, 0, 0, 0, 0, :, 1], [-1, 0])
    np.testing.assert_array_equal(positions[0, 2, 1, 0, 2, 1], [2 * 2 - 2 + 2 * 2, 3 - 1 + 1])


@pytest.mark.parametrize("known", [True, False])
def test_sums_beyond_32_bits(known: bool) -> None:
    largest = 2**31 - 1

    def positions(size: tf.Tensor | tuple[int, int]) -> tf.Tensor:
        return sampling_positions(
            zeros(2, 2, taps=5, dtype=tf.float64),
            kernel_size=(5, 1),
            input_size=size,
            dilations=largest,
            strides=(1, largest),
            padding=[[0, 0], [2 * largest, 2 * largest], [0, 0], [0, 0]],
        )

    got = positions((2, 2)) if known else tf.function(positions)(tf.constant([2, 2]))
    taps = largest * np.arange(-2, 3)
    np.testing.assert_array_equal(got[0, :, 0, 0, :, 0, 0], [taps, taps + 1])
    np.testing.assert_array_equal(got[0, 0, :, 0, 0, 0, 1], [0, largest])


def test_same_padding_beyond_32_bits() -> None:
    largest = 2**31 - 1
    positions = sampling_positions(
        zeros(1, 1, taps=7, dtype=tf.float64),
        kernel_size=(7, 1),
        input_size=(1, 1),
        dilations=largest,
    )
    np.testing.assert_array_equal(positions[0, 0, 0, 0, :, 0, 0], largest * np.arange(-3, 4))


@pytest.mark.parametrize("argument", ["strides", "dilations", "kernel_size"])
def test_attributes_beyond_32_bits_are_an_error(argument: str) -> None:
    arguments = {"kernel_size": 3, "input_size": (5, 7), argument: 2**31}
    with pytest.raises(ValueError, match=f"{argument} must be at most 2147483647, got"):
        sampling_positions(zeros(2, 3), **arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"offsets": None}, TypeError, "offsets must be convertible to a tensor, got None"),
        ({"offsets": "a"}, ValueError, "offsets must hold real numbers, got string"),
        ({"offsets": tf.zeros([1, 2, 3, 18], tf.complex64)}, ValueError, "got complex64"),
        ({"input_size": None}, TypeError, "input_size must be convertible to a tensor, got None"),
        ({"input_size": tf.constant(["a", "b"])}, ValueError, "must have an integer dtype, got"),
        ({"input_size": (5, 7, 3)}, ValueError, r"2 integers \(height, width\), got shape \[3\]"),
        ({"input_size": 5}, ValueError, r"2 integers \(height, width\), got shape \[\]"),
    ],
)
def test_arguments_of_the_wrong_kind(
    changes: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments = {"offsets": zeros(2, 3), "kernel_size": 3, "input_size": (5, 7), **changes}
    with pytest.raises(error, match=f"sampling_positions: .*{message}"):
        sampling_positions(**arguments)


def test_offsets_are_read_as_group_row_column_y_x():
    # Each offset is its own channel's number: dy is even, dx is odd.
    offsets = tf.reshape(tf.range(24, dtype=tf.float32), [1, 1, 1, 24])
    positions = sampling_positions(offsets, kernel_size=(2, 3), input_size=(2, 3), padding="VALID")
    group, row, column = 1, 0, 2
    channel = ((group * 2 + row) * 3 + column) * 2
    np.testing.assert_array_equal(
        positions[0, 0, 0, group, row, column], [row + channel, column + channel + 1]
    )


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_positions_are_never_half_precision(dtype, expected):
    # 2049 has no float16 of its own.
    positions = sampling_positions(
        zeros(1, 2050, taps=1, dtype=dtype), kernel_size=1, input_size=(1, 2050)
    )
    assert positions.dtype == expected
    assert float(positions[0, 0, 2049, 0, 0, 0, 1]) == 2049


def test_unknown_shapes_in_a_graph():
    @tf.function(input_signature=[tf.TensorSpec(None), tf.TensorSpec([2], tf.int32)])
    def graph(offsets, size):
        return sampling_positions(offsets, kernel_size=3, input_size=size, strides=2)

    offsets = tf.random.normal([2, 4, 3, 36])
    expected = sampling_positions(offsets, kernel_size=3, input_size=(8, 6), strides=2)
    np.testing.assert_array_equal(graph(offsets, [8, 6]), expected)


def test_static_shape_is_inferred_from_what_is_known():
    @tf.function(input_signature=[tf.TensorSpec([None, None, 7, 36])])
    def graph(offsets):
        positions = sampling_positions(offsets, kernel_size=3, input_size=(9, 9), padding="VALID")
        assert positions.shape.as_list() == [None, None, 7, 2, 3, 3, 2]
        return positions

    graph(tf.zeros([1, 7, 7, 36]))


def test_gradient_reaches_the_offsets():
    offsets = zeros(2, 2)
    with tf.GradientTape() as tape:
        tape.watch(offsets)
        loss = tf.reduce_sum(3 * sampling_positions(offsets, kernel_size=3, input_size=(2, 2)))
    np.testing.assert_array_equal(tape.gradient(loss, offsets), tf.fill(offsets.shape, 3.0))


@pytest.mark.parametrize("size", [(5, 8), (6, 7), (1, 1)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("dilations", [(1, 1), (2, 1)])
def test_same_padding_gives_the_output_of_same(size, strides, dilations):
    kernel = tf.random.normal([3, 2, 1, 1])
    image = tf.random.normal([1, *size, 1])
    pads = [[0, 0], *same_padding(size, (3, 2), strides, dilations).numpy().tolist(), [0, 0]]
    np.testing.assert_allclose(
        tf.nn.conv2d(tf.pad(image, pads), kernel, strides, "VALID", dilations=dilations),
        tf.nn.conv2d(image, kernel, strides, "SAME", dilations=dilations),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel_size": 0}, ValueError, r"kernel_size must be positive, got \[0,0\]"),
        ({"strides": (1, -2)}, ValueError, r"strides must be positive, got \[1,-2\]"),
        ({"dilations": (1, 2, 3)}, ValueError, r"dilations must be .* got \[1,2,3\]"),
        ({"strides": 1.5}, TypeError, r"strides must be .* got 1.5"),
        ({"padding": "FULL"}, ValueError, r"padding must be .* got .*FULL"),
        ({"kernel_size": 2}, ValueError, r"offsets channels must be .*kh\*kw\*2=8, got 18"),
        ({"offsets": tf.zeros([1, 2, 2, 0])}, ValueError, r"offsets channels must .*=18, got 0"),
        ({"offsets": tf.zeros([2, 2, 18])}, ValueError, r"offsets must have rank 4 .*\[2,2,18\]"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"offsets": zeros(2, 2), "kernel_size": 3, "input_size": (2, 2), **change}
    with pytest.raises(error, match="sampling_positions: " + message):
        sampling_positions(arguments.pop("offsets"), **arguments)
