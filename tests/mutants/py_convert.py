"""Mutants of what reads and writes weights of other packages."""

# ruff: noqa: E501  contexts are as long as the lines that they are of

from __future__ import annotations

from tests.mutants.mutant import File, file

FILES: tuple[File, ...] = (
    file(
        "tf_deformable/convert/layouts.py",
        ["py_layouts"],
        ("if channels is None or «multiple < 1» or channels % multiple:", "multiple < 0"),
        ("return -(-3 * samples // 8) * «8»", "4"),
        ("order[:, numbers, «::-1»].ravel(), axis=-1)", ":"),
        (
            '    kh, kw = _arguments.pair(op, "kernel_size", kernel_size)\n    return _transposed_taps(op, "offsets", offsets, («kw, kh»), 2',
            "kh, kw",
        ),
        ("numbers = numbers - («numbers > center»)", "numbers > 0"),
        (
            "taps = kernel[0] * kernel[1] - remove_center\n    packed = tf.convert_to_tensor(packed)\n    size = «_packed_size(count * taps)»",
            "count * taps * 3",
        ),
        ("    if «count < 1»:", "count < 0"),
        ("numbers[:, «2 * taps :»].ravel(), axis=-1)", "taps : 2 * taps"),
        ("return tf.gather(pairs, np.arange(size) ^ «1», axis=-1)", "0"),
        ("last = tf.constant(«[0, 0, 1, 1] if inclusive else [0] * 4», boxes.dtype)", "[0] * 4"),
        (
            "tf.stack([«planes[:, 1::2], planes[:, 0::2]»], axis=-1)",
            "planes[:, 0::2], planes[:, 1::2]",
        ),
        ("return tf.stack([«y1, x1, y2, x2»], axis=1), tf.cast(image", "y1, x1, x2, y2"),
        ("order = np.arange(channels).reshape(«-1, k * k»).T", "k * k, -1"),
    ),
    file(
        "tf_deformable/convert/matching.py",
        ["py_convert"],
        ("rest = name[len(«max»(begins, key=len)) :]", "min"),
        ("return self._ignore is None or self._ignore.«fullmatch»(rest) is None", "match"),
        ('if array.dtype.kind in "«biu»":', "bu"),
        ('if len(shape) != layout.count(",") + 1« or 0 in shape»:', ""),
        ("if self._missing and not unused and «not self._found»:", "True"),
    ),
    file(
        "tf_deformable/convert/torch_dcnv3.py",
        ["py_convert_dcn"],
        ('"mask": («layouts.mask_from_dcnv3», layouts.dcnv3_from_mask)', "layouts.dcnv3_from_mask"),
        (
            '"offset": («layouts.offsets_from_dcnv3», layouts.dcnv3_from_offsets)',
            "layouts.dcnv3_from_offsets",
        ),
        ("depthwise_kernel_size=(«depthwise[2], depthwise[3]»),", "depthwise[3], depthwise[2]"),
        ("return array.transpose(«2, 3», 0, 1)", "3, 2"),
        ("if «mask[0] not in outputs»:", "False"),
        ('"running_mean": «variables.moving_mean»', "variables.moving_variance"),
        ('first = «layer.data_format == "channels_first"»', "False"),
        ("        not_needed=«DCNV3_COUNTERS»,", "()"),
        ("remove_center=«layer.remove_center»)\n    return np", "False"),
    ),
    file(
        "tf_deformable/convert/torch_layers.py",
        ["py_convert"],
        ("per_group = taps * (3 if «modulated and names.mask is None» else 2)", "modulated"),
        ("and «channels % groups == 0»\n", "True"),
        ("and «modulated >= (names.mask is not None)»\n", "True"),
        ('and «(modulated or not (names.branch or "").endswith("conv_offset_mask"))»\n', "True"),
        ("offsets = layer.offset_kernel.shape[3] «// 3 * 2»", "// 3"),
        ("return kernel.transpose(«2, 3», 1, 0)", "3, 2"),
        ("_array(variable).transpose(3, 2, «0, 1»)", "1, 0"),
        ("if «channels % depth»:", "False"),
        ("if kernel and branch and «branch[2:] != kernel[2:]»:", "False"),
        ("if «len(found) > 1»:", "False"),
        ("if «names.offset_use_bias»:", "True"),
        ("mask_prefix is not None« or not offset_use_bias»:", ""),
        ('channels = depth * «arguments.get("groups", 1)»', "1"),
        ("and not (layer.modulated« and has_branch»)", ""),
        ("if «not layer.built»:", "False"),
    ),
    file(
        "tf_deformable/convert/files.py",
        ["py_convert"],
        ("if key is None and «not any(is_array(value) for value in checkpoint.values())»:", "True"),
        ("_READERS.get(path.suffix«.lower()»)", ""),
        ('("state_dict", "model"«, "model_state_dict"»)', ""),
        ('array.dtype.kind in "«biuf»"', "biufSU"),
        ('array.dtype.kind in "biuf"« or array.dtype == tf.bfloat16.as_numpy_dtype»', ""),
        ("if «version < _OLDEST_TORCH»:", "version <= _OLDEST_TORCH"),
        ('"BF16": «tf.bfloat16.as_numpy_dtype»', '"<f2"'),
        ('"U8": "«u1»"', "i1"),
        ("if «not isinstance(checkpoint.get(key), Mapping)»:", "False"),
    ),
)
