"""Mutants of what all operators of the CPU share: base, sampling, cpu."""

# ruff: noqa: E501  contexts are as long as the lines that they are of

from __future__ import annotations

from tests.mutants.mutant import File, file

_UNREAD_COLUMNS = "nobody reads the sums of the columns that are not used"
_TAIL = "the loop after it does the same, an element at a time"

FILES: tuple[File, ...] = (
    file(
        "cc/kernels/base/integers.h",
        [
            "conv2d_quick",
            "roi_pool_quick",
            "attention_quick",
            "fuzz",
            "conv2d",
            "roi_pool",
            "attention",
        ],
        ("return «(a + b - 1)» / b;", "(a + b)"),
        ("return «CeilDiv(a, b) * b»;", "a / b * b"),
        ("int64_t Min(int64_t a, int64_t b) { return «a < b» ? a : b; }", "a + 1 < b"),
        ("int64_t Max(int64_t a, int64_t b) { return «a > b» ? a : b; }", "a < b"),
        in_constants=True,
    ),
    file(
        "cc/kernels/base/shape.cc",
        ["raw_operators"],
        ('«if (i > 0) text += ",";»', 'text += ",";'),
        ('text += «values[i] == kUnknown» ? "?"', "values[i] <= 0"),
        (
            "return «shape.known_rank» ? ToString(shape.dims)",
            "true",
            "a tensor whose rank is not known breaks no rule, and no message has its shape",
        ),
    ),
    file(
        "cc/kernels/base/validation.h",
        ["raw_operators", "shapes"],
        ("return «Known(a) && Known(b)» && a != b;", "Known(a)"),
        ("return «Known(a) && Known(b) && a != b»;", "Known(a) && Known(b) && a > b"),
    ),
    file(
        "cc/kernels/base/validation.cc",
        ["raw_operators", "shapes"],
        ("if («!Known(a) || !Known(b)») return kUnknown;", "!Known(a)"),
        (
            "return «__builtin_mul_overflow(a, b, &product)»"
            " ? std::numeric_limits<int64_t>::max() : product;",
            "__builtin_mul_overflow(a, b, &product) && false",
        ),
        ("if («Known(value)») return value;", "value > 0"),
        ("return «values.size() == count» && std::all_of", "values.size() >= count"),
        ("return «v >= lowest» && v <= kLargestAttribute;", "v > lowest"),
        ("return v >= lowest && «v <= kLargestAttribute»;", "v < kLargestAttribute"),
        (
            '«static_cast<int>(shape.dims.size()) == rank») return "";',
            "static_cast<int>(shape.dims.size()) >= rank",
        ),
        ("«!shape.known_rank» || static_cast<int>", "shape.known_rank"),
        ("Product(elements, «std::max<int64_t>(dim, 1)»);", "dim"),
        ('if («elements <= kMostElements») return "";', "elements < kMostElements"),
        ('if («elements <= kMostElements») return "";', "elements <= kMostElements + 1"),
        ("DimensionToString(int64_t size) { return «Known(size)» ?", "size > 0"),
        ('text += («text.empty()» ? "" : ",") + std::to_string(value);', "!text.empty()"),
    ),
    file(
        "cc/kernels/base/parallel_loop.cc",
        ["parallel_loop"],
        ("while («last - first > 1» && next_ < units_) {", "last - first > 2"),
        (
            "while (last - first > 1 && «next_ < units_») {",
            "true",
            "a thread that is asked for without need finds no unit and goes",
        ),
        (
            "const int middle = «first + (last - first + 1) / 2»;",
            "first + (last - first) / 2",
            "which thread wakes which others decides about time alone",
        ),
        ("        «Work(middle, last);»\n", "Work(middle - 1, last);"),
        ("        «Work(middle, last);»\n", "Work(middle, middle + 1);"),
        ("if («finished_ == units_») pthread_cond_signal", "finished_ > units_"),
        ("while («finished_ != units_») pthread_cond_wait", "finished_ + 1 < units_"),
        ("for (; «unit < units_»; unit = next_++, ++done)", "unit + 1 < units_"),
        ("loop->Work(0, «workers»);", "1"),
        ("«finished_ += done;»", "finished_ += done + 1;"),
    ),
    file(
        "cc/kernels/sampling/bilinear.h",
        ["conv2d_quick", "attention_quick", "sampling_rules", "conv2d", "attention"],
        ("const bool inside = «y >= -1» && y", "y > -1"),
        ("y < static_cast<A>(height) && «x >= -1»", "x >= 0"),
        ("«x < static_cast<A>(width)»;", "x <= static_cast<A>(width)"),
        ("const A nothing = («y != y || x != x») ? y + x", "y != y"),
        ("y0 -= «y < static_cast<A>(y0)»;", "y <= static_cast<A>(y0)"),
        ("x0 -= «x < static_cast<A>(x0)»;", "false"),
        ("(y0 >= 0 ? 0x3u : 0u) | («y0 + 1 < height» ? 0xcu : 0u);", "y0 < height"),
        ("(«x0 >= 0» ? 0x5u : 0u)", "x0 >= -1"),
        (
            "return {y - static_cast<A>(y0), x - static_cast<A>(x0), «y0 * row + x0», rows",
            "y0 * row + y0",
        ),
        (
            "weights[1] = «(1 - fraction_y) * fraction_x * mask»;",
            "fraction_y * (1 - fraction_x) * mask",
        ),
        ("weights[3] = «fraction_y * fraction_x * mask»;", "fraction_y * fraction_x"),
        ("return {mask * ((d2 - d0) * (1 - fx) + «(d3 - d1) * fx»),", "(d3 - d1) * fy"),
        (
            "return {«mask * ((d2 - d0) * (1 - fx) + (d3 - d1) * fx)»,",
            "((d2 - d0) * (1 - fx) + (d3 - d1) * fx)",
        ),
        ("mask * («(d1 - d0) * (1 - fy)» + (d3 - d2) * fy),", "(d1 - d0) * (1 - fx)"),
        ("(d2 * (1 - fx) + «d3 * fx») * fy};", "d3 * fy"),
        ("return Rounded(location * size) - «A(0.5)»;", "A(0)"),
    ),
    file(
        "cc/kernels/sampling/bilinear_simd.inc",
        ["conv2d_quick", "attention_quick", "fuzz", "conv2d", "attention", "sampling_rules"],
        ("return «Rounded(location * size)» - A(0.5);", "(location * size)"),
        ("return Rounded(location * size) - «A(0.5)»;", "A(0)"),
        ("const Integers<A> inside = «(y >= -1)» &", "(y > -1)"),
        (
            "«(x < __builtin_convertvector(width, Vector<A>))»;",
            "(x <= __builtin_convertvector(width, Vector<A>))",
        ),
        ("const Vector<A> nothing = «(y != y) | (x != x)» ? y + x : zero;", "(y != y)"),
        ("const Vector<A> nothing = «(y != y) | (x != x)» ? y + x : zero;", "(x != x)"),
        (
            "y0 += «kept_y < __builtin_convertvector(y0, Vector<A>)»;",
            "kept_y <= __builtin_convertvector(y0, Vector<A>)",
        ),
        ("x0 += «kept_x < __builtin_convertvector(x0, Vector<A>)»;", "Integers<A>{}"),
        ("inside & (y0 >= 0), inside & «(y0 < height - 1)»};", "(y0 < height)"),
        ("columns[2] = {«x0 >= 0», x0 < width - 1};", "x0 >= -1"),
        ("columns[2] = {x0 >= 0, «x0 < width - 1»};", "x0 < width - 2"),
        (
            "«(inside ? weights_y[j / 2] * weights_x[j % 2] : nothing) * mask»);",
            "(inside ? weights_y[j / 2] * weights_x[j % 2] : nothing)",
        ),
        ("«weights_y[j / 2] * weights_x[j % 2]»", "weights_y[j % 2] * weights_x[j / 2]"),
        ("(corner + («j / 2 * row + j % 2»)) | ~on_map;", "j / 2 * row + j / 2"),
        ("if («(first | last) >= 0») {", "first >= 0"),
        ("if («(first | last) >= 0») {", "last >= 0"),
        ("x[2] = «x[3] - channels»;", "x[0] + channels"),
        ("x[j] = «pixel < 0» ? off_map : channels_of(pixel);", "pixel <= 0"),
        (
            "for (; «c + kLanes <= width»; c += kLanes) {\n      Store(out + c,",
            "c + kLanes < width",
            _TAIL,
        ),
        ("w2 * Load(x[2] + c) + «w3 * Load(x[3] + c)»);", "w3 * Load(x[2] + c)"),
        (
            "a2 * ToCompute(x[2][c]) +\n               «a3 * ToCompute(x[3][c])»;",
            "a2 * ToCompute(x[3][c])",
        ),
        ("«products[j] += d * Load(x[j] + c);»", "products[j] = d * Load(x[j] + c);"),
        ("Store(dx[j] + c, «Load(dx[j] + c) + weight[j] * d»);", "(weight[j] * d)"),
        ("«dots[j] += ds[c] * ToCompute(x[j][c]);»", "dots[j] = ds[c] * ToCompute(x[j][c]);"),
        ("«dx[j][c] += samples.weight[j][i] * ds[c];»", "dx[j][c] = samples.weight[j][i] * ds[c];"),
        ("«dots[j] += sums[j];»", "dots[j] = sums[j];"),
        (
            "MakePointGradients(samples.fraction_y[i], samples.fraction_x[i], «samples.mask[i]», dots",
            "A{1}",
        ),
        ("gradients[2] = «of_point.mask»;", "of_point.mask * samples.mask[i]"),
    ),
    file(
        "cc/kernels/cpu/driver.h",
        [
            "conv2d_quick",
            "roi_pool_quick",
            "attention_quick",
            "fuzz",
            "conv2d",
            "roi_pool",
            "attention",
            "attention_blocks",
        ],
        ("function(first, «Min(size - first, kPieceElements)»);", "kPieceElements"),
        (
            "ForEach(executor, «CeilDiv(size, kPieceElements)», kPieceElements,",
            "size / kPieceElements",
        ),
        ("const int64_t first = «unit * kPieceElements»;", "unit * (kPieceElements + 1)"),
        ("size_ += «RoundUp(bytes, kWorkspaceAlignment)» /", "bytes / 2"),
    ),
    file(
        "cc/kernels/cpu/simd.inc",
        [
            "conv2d_quick",
            "roi_pool_quick",
            "attention_quick",
            "branch_quick",
            "fuzz",
            "conv2d",
            "roi_pool",
            "attention",
            "branch",
            "conv2d_blocks",
        ],
        ("if («v != v») return BFloat16", "false"),
        ("static_cast<uint16_t>(«(bits + 0x7fff + ((bits >> 16) & 1))» >> 16)}", "(bits + 0x8000)"),
        ("static_cast<uint16_t>(«(bits + 0x7fff + ((bits >> 16) & 1))» >> 16)}", "(bits + 0x7fff)"),
        ("static_cast<uint16_t>(«(bits + 0x7fff + ((bits >> 16) & 1))» >> 16)}", "(bits)"),
        (
            "return Half{static_cast<uint16_t>(«_cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT)»)};",
            "_cvtss_sh(v, _MM_FROUND_TO_ZERO)",
        ),
        (
            "return «from.wide != nullptr ? from.wide[i] : ToCompute(from.narrow[i])»;",
            "ToCompute(from.narrow[i])",
        ),
        ("  } else if («to.wide != nullptr») {", "false"),
        ("for (; «i < size»; ++i) to[i] = ToCompute(from[i]);", "i + 1 < size"),
        ("for (int64_t i = 0; «i < size»; ++i) to[i] = FromCompute<T>(from[i]);", "i + 1 < size"),
        ("{_mm256_hadd_ps(Halved(v[0]), «Halved(v[1])»),", "Halved(v[0])"),
        ("{_mm256_hadd_pd(Halved(v[0]), «Halved(v[1])»),", "Halved(v[0])"),
        (
            "_mm_storeu_ps(sums, «_mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1)»);",
            "_mm256_castps256_ps128(all)",
        ),
    ),
    file(
        "cc/kernels/cpu/gemm.inc",
        ["conv2d_quick", "branch_quick", "fuzz", "conv2d", "branch", "conv2d_blocks"],
        ("sum[i][v] = «accumulate» ? Load(c + i * c_row + v * kLanes) : Vector<A>{};", "false"),
        ("    if («i < rows») {\n      MultiplyPanel", "i + 1 < rows"),
        ("const A* rows_of_a = a + «k * a_depth»;", "0"),
        ("const A* panel = b + column * panel_depth + «(first_depth + k)» * width;", "first_depth"),
        (
            "PackedRow<kPanelColumns<A>>(), c + column, c_row,\n"
            "                                        «accumulate || k > 0», prefetch);",
            "accumulate",
        ),
        (
            "PackedRow<kPanelColumns<A> / 2>(), c + column, c_row,\n"
            "                                        «accumulate || k > 0», prefetch);",
            "accumulate",
        ),
        (
            "const int64_t next_column = «last ? 0 : column + width»;",
            "column",
            "it is what is prefetched",
        ),
        ("if («columns - column >= kPanelColumns<A>») {", "columns - column > kPanelColumns<A>"),
        ("to = «accumulate ? to + sums[j] : sums[j]»;", "sums[j]"),
        (
            "for (; «i + kDotRows <= rows»; i += kDotRows) {",
            "i + kDotRows < rows",
            "the loop after it does the same, a row at a time",
        ),
        ("«columns - j >= 4»   ? DotRows<A, 4>", "columns - j > 4"),
        (
            "columns - j >= 4   ? DotRows<A, 4>\n                      : «columns - j == 3» ?",
            "columns - j == 2",
        ),
        (
            "Store(out + j, Load(in + j));\n"
            "      for (; j < used; ++j) out[j] = ToCompute(in[j]);\n"
            "      «for (; j < width; ++j) out[j] = 0;»",
            "",
            _UNREAD_COLUMNS,
        ),
        ("      for (; «j < used»; ++j) out[j] = ToCompute(in[j]);", "j + 1 < used"),
        ("out[row * width + j] = «j < used ? ToCompute(in[row]) : A{0}»;", "ToCompute(in[row])"),
        ("const T* in = source + «(first + j)» * row_stride;", "(first + j / 2)"),
    ),
)

# What processors with AVX2 do not run. (Only the instructions differ: the suites run the baseline.)
BASELINE: tuple[File, ...] = (
    file(
        "cc/kernels/cpu/simd.inc",
        ["baseline"],
        ("if («bits > 0x7f800000») return Half", "false"),
        ("if («bits >= 0x477ff000») return Half", "bits > 0x48000000"),
        ("if («bits < 0x38800000») {", "bits < 0x38000000"),
        ("bits += «0xc8000fff + ((bits >> 13) & 1)»;", "0xc8001000"),
        ("bits += «0xc8000fff + ((bits >> 13) & 1)»;", "0xc8000fff"),
        ("return «v.bits & 0x8000» ? -f : f;", "false"),
        ("f = static_cast<float>(mantissa) * «0x1p-24f»;", "0x1p-25f"),
        ("«exponent == 0x1f» ? 0x7f800000", "false"),
    ),
)
