"""Mutants of what stands between the kernels and TensorFlow: calls, shape functions, threads."""

# ruff: noqa: E501  contexts are as long as the lines that they are of

from __future__ import annotations

from tests.mutants.mutant import File, file

FILES: tuple[File, ...] = (
    file(
        "cc/adapters/common/conv2d_attributes.cc",
        ["calls", "raw_operators", "conv2d"],
        ('  } else if («name == "VALID"») {', 'name == "VALI"'),
        ('if («name == "SAME"») {', 'name != "EXPLICIT"'),
    ),
    file(
        "cc/adapters/common/deformable_conv2d_call.cc",
        ["calls", "raw_operators", "conv2d", "conv2d_native"],
        ('if (status.ok()) «status = CheckZeroOrOne(kOp, "num_biases", num_biases_);»', ""),
        ("LastInput() + («is_gradient ? 1 : num_biases_»));", "num_biases_"),
        ("if («num_masks_ > 0») arguments.mask = inputs[3].shape;", "false"),
        ("«arguments.bias = inputs[LastInput()].shape;»", ""),
        ("«arguments.grad_output = inputs[LastInput()].shape;»", ""),
        ("if («input >= LastInput()») return is_gradient", "input > LastInput()"),
    ),
    file(
        "cc/adapters/common/conv2d_branch_call.cc",
        ["calls", "raw_operators", "branch"],
        ("if (status.ok() && !(«largest_mask_ > 0»)) {", "largest_mask_ >= 0"),
        ("gradient.grad_offsets = inputs[2 + «num_masks_»].shape;", "0"),
        ("gradient.grad_mask = inputs[«4»].shape;", "2"),
        ("Shape({g.batch, g.output_height, g.output_width, «Product(samples, 2)»})}};", "samples"),
        (
            "samples = «Product(g.offset_groups, Product(g.kernel_height, g.kernel_width))»;",
            "g.offset_groups * g.taps()",
        ),
    ),
    file(
        "cc/adapters/common/roi_pool_call.cc",
        ["calls", "raw_operators", "roi_pool", "roi_pool_native"],
        ('const Status status = «CheckZeroOrOne(kOp, "num_offsets", num_offsets_)»;', "Status()"),
        ('status.ok() ? «CheckZeroOrOne(kOp, "num_masks", num_masks_)» : status;', "Status()"),
        ("if («num_masks_ > 0») arguments.mask = inputs[MaskInput()].shape;", "false"),
        ("if («is_gradient») arguments.grad_output = inputs[GradOutputInput()].shape;", "false"),
        ("if («num_offsets_ > 0») arguments.offsets = inputs[3].shape;", "false"),
        ("for (size_t i = «3»; i < GradOutputInput(); ++i) sampling", "4"),
    ),
    file(
        "cc/adapters/common/deformable_attention_call.cc",
        ["calls", "raw_operators", "attention", "attention_native"],
        ("for (const int64_t dim : inputs[kHostInput].shape.dims) «size *= dim;»", "size = dim;"),
        ("if («is_gradient») arguments.grad_output = inputs[4].shape;", "false"),
        ('} else if («coordinates_ == "pixels"») {', "true"),
    ),
    file(
        "cc/adapters/common/rules.cc",
        ["calls", "raw_operators", "attention_native", "branch"],
        ("if («count == 0 || count == 1») return Status();", "count >= 0"),
        ("if («first.type != features.type && first.type != positions») {", "false"),
        (
            "if («first.type != features.type && first.type != positions») {",
            "first.type != positions",
        ),
        (
            "if («type == expected») return Status();\n"
            '  return Invalid(op, std::string(name) + " must have the dtype of',
            "true",
        ),
        (
            "if («got == expected») return Status();",
            "true",
        ),
    ),
    file(
        "cc/adapters/common/pool_executor.cc",
        ["raw_operators", "conv2d_native", "roi_pool_native", "attention_native"],
        (
            "std::min<int64_t>({threads_, «units», worth});",
            "units + 1",
            "a worker without a unit goes home",
        ),
        (
            "for (int64_t unit = 0; «unit < units»; ++unit) task(context, unit, 0);",
            "unit + 1 < units",
        ),
        (
            "std::max<int64_t>(«units * operations / kWorthAThread», 1);",
            "units * operations",
            "how many threads work decides about time alone",
        ),
    ),
    file(
        "cc/adapters/tensorflow/deformable_conv2d_op.cc",
        ["shapes", "raw_operators", "conv2d"],
        ("{g.kernel_height, g.kernel_width, «inputs[1].shape.dim(2)», g.filters},", "g.channels"),
        ("{g.batch, g.output_height, g.output_width, «Product(samples, 2)»},", "samples"),
        ("const int64_t samples = «Product(g.offset_groups, taps)»;", "taps"),
        (
            "c->Merge(c->input(i), ToHandle(c, Shape(«inferred[i]»)), &shape));",
            "inferred[i > 2 ? 2 : i]",
        ),
    ),
    file(
        "cc/adapters/tensorflow/conv2d_branch_op.cc",
        ["shapes", "raw_operators", "branch"],
        ("{g.kernel_height, g.kernel_width, «g.channels», g.filters}};", "g.filters"),
        ("c->set_output(2, ToHandle(c, Shape({«g.filters»})));", "g.channels"),
    ),
    file(
        "cc/adapters/tensorflow/call.h",
        ["shapes", "raw_operators", "attention", "roi_pool"],
        ("context->set_output(i, ToHandle(context, «outputs[i].shape»));", "outputs[0].shape"),
        ("for (size_t i = 0; «i < outputs.size()»; ++i) {", "i < 1"),
        ("    «(*inputs)[Call::kHostInput] = View(*constant);»", ""),
    ),
    file(
        "cc/adapters/tensorflow/tensors.h",
        ["shapes", "raw_operators", "conv2d", "attention"],
        ("if («!shape.known_rank») return c->UnknownShape();", "false"),
        (
            "dims[i] = «c->ValueKnown(dim)» ? c->Value(dim) : kUnknown;",
            "c->ValueKnown(dim) && c->Value(dim) > 0",
        ),
        ("handles.push_back(«dim == kUnknown» ? c->UnknownDim()", "dim <= 0"),
    ),
)
