"""The tests that mutants are run against: small and fast ones, by the name that files give."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Suite:
    """Tests that run one after the other.

    Attributes:
        program: a native program and its arguments, for mutants of C++; or
        files: of pytest, from the root of the source tree.
        only: parts of names of tests, one of which a test must have; empty: all tests.
        without: parts of names of tests that are left out.
        environment: variables that are set.
    """

    program: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def takes(self, test: str) -> bool:
        """Whether a test, by its node id, is one of the suite."""
        file, _, name = test.partition("::")
        named = not self.only or any(part in name for part in self.only)
        return file in self.files and named and not any(part in name for part in self.without)


def _of_operators(*files: str, **arguments: tuple[str, ...]) -> Suite:
    """What runs the compiled operators; the reference is not what is mutated."""
    without = ("[reference", "-reference", *arguments.pop("without", ()))
    return Suite(
        files=tuple(f"tests/ops/test_{name}.py" for name in files), without=without, **arguments
    )


_QUICK = ("test_agrees_with_the_oracle[", "beyond_the_border", "nan_position_makes")
_SHAPES = ("infer", "whatever_they_know", "that_the_graph_does_not_know")

# Of C++.
OPERATORS = {
    "fuzz": Suite(program=("fuzz_kernels", "0", "400")),
    "more_fuzz": Suite(program=("fuzz_kernels", "400", "1500")),
    "corpus": Suite(program=("replay_inputs", "tests/native/corpus")),
    "threads": Suite(program=("fuzz_kernels", "0", "2000", "threads")),
    "calls": Suite(program=("calls",)),
    "parallel_loop": Suite(program=("parallel_loop",)),
    "sampling_rules": Suite(program=("sampling_rules_baseline",)),
    "raw_operators": _of_operators("raw_operators"),
    "shapes": _of_operators(
        "deformable_conv2d", "roi_pool", "deformable_attention", "conv2d_branch", only=_SHAPES
    ),
    "conv2d_quick": _of_operators("deformable_conv2d", only=_QUICK),
    "conv2d": _of_operators("deformable_conv2d"),
    "conv2d_blocks": _of_operators("deformable_conv2d_blocks"),
    "conv2d_native": _of_operators("deformable_conv2d_native"),
    "branch_quick": _of_operators("conv2d_branch", only=("equals_numpy",)),
    "branch": _of_operators("conv2d_branch"),
    "roi_pool_quick": _of_operators("roi_pool", only=_QUICK),
    "roi_pool": _of_operators("roi_pool"),
    "roi_pool_blocks": _of_operators("roi_pool_blocks"),
    "roi_pool_native": _of_operators("roi_pool_native"),
    "attention_quick": _of_operators("deformable_attention", only=_QUICK),
    "attention": _of_operators("deformable_attention"),
    "attention_blocks": _of_operators("deformable_attention_blocks"),
    "attention_native": _of_operators("deformable_attention_native"),
    "baseline": Suite(
        files=("tests/ops/test_deformable_conv2d.py",),
        only=("dtype", "half"),
        environment=(("TF_DEFORMABLE_CPU_ISA", "baseline"),),
    ),
}


def _files(*files: str, **arguments: tuple[str, ...]) -> Suite:
    return Suite(files=tuple(f"tests/{file}.py" for file in files), **arguments)


_REFERENCE = ("ops/test_deformable_conv2d_errors", "ops/test_roi_pool_errors")

# Of Python.
PACKAGE = {
    "py_analysis": _files(
        "analysis/test_effective_dilation",
        "analysis/test_sampling_locations",
        "analysis/test_offset_health",
        "analysis/test_roi_bins",
    ),
    "py_detection": _files("models/test_detection_parts", "models/test_detection"),
    "py_detector": _files(
        "models/test_pyramid",
        "models/test_detector_as_keras_model",
        without=("learn", "serves", "replicas", "files", "callbacks", "mixed_precision"),
    ),
    "py_surgery_parts": _files("models/test_surgery_parts"),
    "py_surgery_quick": _files(
        "models/test_surgery",
        only=(
            "trainable",
            "costs",
            "loss",
            "normalization",
            "share",
            "channels_first",
            "arguments",
        ),
    ),
    "py_surgery": _files("models/test_surgery", "models/test_segmentation"),
    "py_surgery_of_models": _files("models/test_custom_layers", "models/test_own_constructors"),
    "py_d_fine": _files("models/test_d_fine"),
    "py_layouts": _files("convert/test_layouts"),
    "py_convert": _files(
        "convert/test_matching",
        "convert/test_files",
        "convert/test_torch_layers",
        "convert/test_mxnet_layers",
    ),
    "py_convert_dcn": _files("convert/test_torch_dcnv3"),
    "py_reference": _files(
        *_REFERENCE,
        "reference/test_deformable_conv2d",
        "reference/test_roi_pool",
        without=("[native", "-native"),
    ),
    "py_reference_conv2d": _files(
        "reference/test_deformable_conv2d", "ops/test_deformable_conv2d", without=("[native",)
    ),
    "py_reference_roi_pool": _files(
        "reference/test_roi_pool", "ops/test_roi_pool", without=("[native",)
    ),
    "py_reference_attention": _files(
        "reference/test_deformable_attention",
        "ops/test_deformable_attention_errors",
        "ops/test_deformable_attention",
        without=("[native", "-native"),
    ),
    "py_reference_branch": _files(
        "reference/test_conv2d_branch",
        "ops/test_conv2d_branch",
        "layers/test_offset_branch",
        without=("[native", "-native"),
    ),
    "py_dcnv3": _files("ops/test_dcnv3"),
    "py_positions": _files("layers/test_sampling_positions", "layers/test_bin_boxes"),
    "py_layer_conv2d": _files(
        "layers/test_deformable_conv2d",
        "layers/test_offset_branch",
        "layers/test_offset_sources",
        "layers/test_mixed_precision",
    ),
    "py_layers": _files("layers/test_explicit_padding", "layers/test_roi_pool", "layers/test_dcn"),
    "py_branch_gradients": _files(
        "layers/test_deformable_conv2d_training",
        "layers/test_roi_pool_training",
    ),
    "py_layer_dcn": _files("layers/test_dcn"),
    "py_layer_roi_pool": _files("layers/test_roi_pool", "layers/test_roi_pool_saving"),
    "py_layer_attention": _files("layers/test_deformable_attention"),
    "py_config": _files("test_config"),
    "py_keras_graph": _files("graphs/test_keras_graph"),
    "py_graphs": _files("graphs/test_strides", "analysis/test_sampling_locations"),
}
