"""Mutants of the Keras layers."""

# ruff: noqa: E501  contexts are as long as the lines that they are of

from __future__ import annotations

from tests.mutants.mutant import File, file

FILES: tuple[File, ...] = (
    file(
        "tf_deformable/layers/_base.py",
        ["py_layer_conv2d", "py_layers"],
        ("if number is None or «number < 1»:", "number < 0"),
        ("is_valid = math.isfinite(number)« and not isinstance(value, bool)»", ""),
        ("is_valid &= «number >= at_least»", "number > at_least"),
        ("is_valid &= «number > above»", "number >= above"),
        ("if n is not None and «1» <= n <= LARGEST_INTEGER]", "0"),
        ("if n is not None and 1 <= n« <= LARGEST_INTEGER»]", ""),
        (
            'return "float64" if self.compute_dtype == "float64" else «"float32"»',
            "self.compute_dtype",
        ),
    ),
    file(
        "tf_deformable/layers/_convolution.py",
        ["py_layer_conv2d", "py_layers"],
        ("if n is not None and «0 <= n <= LARGEST_INTEGER»\n", "0 <= n"),
        (
            "return [«None if pixels is None else axis.output» for pixels, axis in sized]",
            "axis.output if pixels else None",
        ),
    ),
    file(
        "tf_deformable/layers/_offset_branch.py",
        ["py_branch_gradients", "py_layer_conv2d"],
        (
            "if «self.offset_learning_rate_multiplier == 1.0»:",
            "self.offset_learning_rate_multiplier <= 1.0",
        ),
        ("shape=«kernel_shape[-1:]»,", "kernel_shape[:1]"),
        ("if mask_initial_value not in «(0.5, 1.0)»:", "(0.5,)"),
    ),
    file(
        "tf_deformable/layers/deformable_conv2d.py",
        ["py_layer_conv2d", "py_layers"],
        ("largest_mask=«2 * self.mask_initial_value»,", "self.mask_initial_value"),
        ("mask = None if mask is None else «self._scaled_gradient(mask)»", "mask"),
        ("offsets = «self.max_offset * tf.tanh(offsets)»", "tf.tanh(offsets)"),
        ("            offsets «+=» tf.tile(", "-="),
        ('"mask": with_channels(new_spatial, «self._taps»),', "2 * self._taps"),
        ('"flow": with_channels(new_spatial, «2»),', "None"),
        ("bias=self._cast(self.bias) if «self.use_bias» else None", "False"),
        ("return self.activation(«self._in_data_format(outputs)»)", "outputs"),
        ("return self.offset_groups * «math.prod(self.kernel_size)»", "self.kernel_size[0] ** 2"),
    ),
    file(
        "tf_deformable/layers/_dcn_base.py",
        ["py_layer_dcn"],
        ("if «channels % self.groups»:", "False"),
        ("return math.prod(self.kernel_size) «- self.remove_center»", ""),
        ("sums += self._of_groups(share, projected) * («projected - sums»)", "projected"),
        ("pads.append((axis.pad_before + «more // 2»,", "(more + 1) // 2"),
        ('if self.padding == "same" and «self.strides == (1, 1)»:', "True"),
        ("return features[:, :: self.strides[0], :: «self.strides[1]»]", "self.strides[0]"),
        ("features.shape[-1] // self.groups, axis=«-1»)", "-2"),
    ),
    file(
        "tf_deformable/layers/_roi_base.py",
        ["py_layer_roi_pool"],
        ("if «channels == 0 or channels % maps»:", "channels % maps"),
        ("is_padding = padding[0]« | padding[1]»", ""),
        ("images = tf.where(is_padding, «-1», tf.range(counts[0])[:, None])", "0"),
        ("if boxes.dtype in («tf.float16, tf.bfloat16»):", "tf.float16,"),
        ("if len(boxes) != 3 or boxes[2] not in («4, None»):", "4, 5, None"),
        ("if None not in (features[0], boxes[0]) and «features[0] != boxes[0]»:", "False"),
        (
            "if not tf.TensorShape(other[:3]).is_compatible_with(«features[:3]»):",
            "(None, *features[1:3])",
        ),
        (
            "return as_output_shape((batch, boxes[1], «channels, *self.output_size»))",
            "*self.output_size, channels",
        ),
    ),
    file(
        "tf_deformable/layers/psroi_pool.py",
        ["py_layer_roi_pool", "py_branch_gradients"],
        ("self._classes = «1 if self.class_agnostic else depth»", "depth"),
        (
            "offsets = «self._scaled_gradient(self._pool(fields, regions))»",
            "self._pool(fields, regions)",
        ),
        ("gamma=«self.gamma»,\n            **self._geometry()", "0.1"),
        ("scores = self._convolution(scores, self._cast(self.kernel), «bias»)", "None"),
        ("return maps if «bias is None» else", "True"),
        ('if «config["output_size"] is None»:', "False"),
        ('if «"filters" in config»:', "False"),
        ("regularizer=«self.bias_regularizer»,", "self.kernel_regularizer"),
        ("constraint=«self.bias_constraint»,", "None"),
        ('return (*names, "offset_features") if «self.offset_source == "features"» else', "False"),
    ),
    file(
        "tf_deformable/layers/roi_pool.py",
        ["py_layer_roi_pool", "py_branch_gradients"],
        (
            "initializer=«fresh(self.offset_hidden_kernel_initializer)»,",
            "self.offset_hidden_kernel_initializer",
        ),
        ("regularizer=«self.offset_bias_regularizer»,", "None"),
        ("outputs = tf.nn.«relu»(self._dense", "elu"),
        ("outputs = «self._scaled_gradient(outputs)»", "outputs"),
        ("mask_from_logits(logits, «2 * self.mask_initial_value»)", "self.mask_initial_value"),
        ("gamma=«self.gamma»,\n            **self._geometry()", "0.1"),
        ("tf.reshape(«self._cast_sampling(pooled)», [-1", "pooled"),
    ),
    file(
        "tf_deformable/layers/deformable_attention.py",
        ["py_layer_attention"],
        (
            "scale = tf.gather(«1 / self._cast_sampling(sizes)», level)",
            "1 / self._cast_sampling(sizes)[:, ::-1]",
        ),
        ("share = «0.5» / np.repeat", "1.0"),
        ("np.arange(«1, points + 1»)", "points"),
        ("np.stack([«np.sin(angles), np.cos(angles)»]", "np.cos(angles), np.sin(angles)"),
        (
            "directions /= «np.abs(directions).max(axis=-1, keepdims=True)»",
            "np.linalg.norm(directions, axis=-1, keepdims=True)",
        ),
        ("if «references.shape[2] is None»:", "False"),
        ("tf.where(«keep», projected, tf.zeros", "keep | (projected < 0)"),
        ("_levels_apart(locations, points, «-9.0»)", "0.0"),
        ("[«0, max(num_points) - points»], *trailing]", "max(num_points) - points, 0"),
        ("if «channels % self.num_heads»:", "False"),
        ("or references[3] not in («2, 4»):", "2, 3, 4"),
        ("references[2] not in (None, «1», self.num_levels)", "1, 0"),
        ("if «len({shape[-1] for shape in values}) > 1»:", "False"),
    ),
)
