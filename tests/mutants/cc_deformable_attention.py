"""Mutants of deformable attention on the CPU."""

# ruff: noqa: E501  contexts are as long as the lines that they are of

from __future__ import annotations

from tests.mutants.mutant import File, file

FILES: tuple[File, ...] = (
    file(
        "cc/kernels/deformable_attention/geometry.cc",
        ["raw_operators", "shapes", "attention", "attention_native"],
        ("if («error.empty() && a.grad_output») {", "false"),
        ('error = RankError(kOp, "sampling_locations", "[N,Q,heads,levels,points,2]", «6»,', "5"),
        (
            "for (size_t i = 0; «i < expected.size()»; ++i) {\n    if (Differ",
            "i + 1 < expected.size()",
        ),
        ("if (Differ(shape.dim(i), expected[i])) «return true;»", "return i != 1;"),
        ("if (!AllInRange(sizes, sizes.size(), «0»)) {", "-1"),
        ("if (!AllInRange(sizes, sizes.size(), «0»)) {", "1"),
        ("g->maps.push_back({sizes[i], sizes[i + 1], «pixels»});", "int64_t{0}"),
        (
            "pixels = «std::min(pixels + sizes[i] * sizes[i + 1], kMostPixels)»;",
            "pixels + sizes[i] * sizes[i]",
        ),
        (
            "pixels = «std::min(pixels + sizes[i] * sizes[i + 1], kMostPixels)»;",
            "pixels + sizes[i] * sizes[i + 1]",
        ),
        ("if («Differ(g->pixels, pixels)») {", "Differ(g->pixels, pixels) && g->pixels < pixels"),
        ("if («Differ(g->pixels, pixels)») {", "Differ(g->pixels, pixels) && g->pixels > pixels"),
        ("  «g->pixels = pixels;»", ""),
        ("g.coordinates = «a.coordinates»;", "Coordinates::kNormalized"),
        ("if («g.depth == 0») {", "false"),
        (
            "if («ShapeDiffers(a.value, {g.batch, g.pixels, g.heads, g.depth})») {",
            "false",
            "all these are taken from value, where it has them",
        ),
        ("if («ShapeDiffers(a.spatial_shapes, {g.levels, 2})») {", "false"),
        ("if («ShapeDiffers(locations, coordinates)») {", "ShapeDiffers(locations, samples)"),
        ("if («ShapeDiffers(weights, samples)») {", "false"),
        ("if («a.grad_output && ShapeDiffers(grad_output, output)») {", "false"),
        ("  «error = OutputError(kOp, output);»", ""),
        ("g.heads = FirstKnown({a.value.dim(2), «locations.dim(2)»,", "locations.dim(1)"),
        ("g.points = FirstKnown({«locations.dim(4)», weights.dim(4)});", "kUnknown"),
        (
            'return «a.level_sizes ? FillMaps(*a.level_sizes, &g) : ""»;',
            'a.level_sizes && g.pixels != 0 ? FillMaps(*a.level_sizes, &g) : ""',
        ),
    ),
    file(
        "cc/kernels/deformable_attention/cpu_plan.cc",
        ["attention_quick", "fuzz", "attention", "attention_blocks", "attention_native"],
        (
            "const int64_t samples = «RoundUp(rows * g.samples(), lanes)»;\n  const int64_t at",
            "rows * g.samples()",
        ),
        ("const int64_t padded = «RoundUp(rows * samples, lanes)»;", "rows * samples"),
        ("const Level& level = levels[«i % samples / points»];", "i % samples % levels.size()"),
        ("first_pixels[i] = «level.first_pixel»;", "levels[0].first_pixel"),
        ("heights[i] = static_cast<Size>(«level.height»);", "level.width"),
        (
            "return «RoundUp(std::min(samples, kMostSamples), lanes)» * kSampleBytes",
            "std::min(samples, kMostSamples)",
        ),
        ("job.rows = «g.batch * job.image_rows»;", "job.image_rows"),
        (
            "job.samples = g.samples();\n  job.normalized = «g.coordinates == Coordinates::kNormalized»"
            ";\n  const int64_t row_products",
            "true",
        ),
        ("SamplesBytes<A>(«job.rows_together * g.samples()», kernels_.lanes));", "g.samples()"),
        (
            "job.sums_at = worker.Add(«std::min(g.depth, kMostBlockChannels)»);",
            "std::min(g.depth, kMostBlockChannels) / 2",
        ),
        (
            "ForEach(executor, «CeilDiv(job.rows, job.rows_per_unit)», 2 * kUnitProducts,",
            "job.rows / job.rows_per_unit",
        ),
        ("kernels_.forward(job, unit, space + worker_at_ + «worker * worker_size_»);", "0"),
        ("kernels_.backward(job, unit, space + worker_at_ + «worker * worker_size_»);", "0"),
        (
            "images_per_step_ = kRounds ? «std::min(images, CeilDiv(kUnitsWanted, image_units))» :",
            "images",
            "more images at a time, of which each has its own sums",
        ),
        (
            "job.blocks = std::max<int64_t>(«CeilDiv(g.depth, job.channels_per_block)», 1);",
            "g.depth / job.channels_per_block",
        ),
        (
            "job.gradients_at = worker.Add(«std::min(g.samples(), kMostSamples) * 3»);",
            "std::min(g.samples(), kMostSamples)",
        ),
        ("job.upstream_at = worker.Add(«kRounds ? block_channels : 0»);", "0"),
        ("partials_at_ = all.Add(«queries_per_step_ * query_partials»);", "query_partials"),
        (
            "job.last_image = «std::min(image + images_per_step_, images_)»;",
            "image + images_per_step_",
        ),
        ("job.grad_value = «tensors.grad_value + image * image_size»;", "tensors.grad_value"),
        ("«std::memset(job.grad_value + first, 0, count * sizeof(A));»", ""),
        (
            "job.last_query = «std::min(query + queries_per_step_, job.queries)»;",
            "query + queries_per_step_",
        ),
        ("job.first_query = «query»;", "0"),
        ("job.partials = «job.blocks > 1» ? space + partials_at_ : nullptr;", "job.blocks > 2"),
        ("ForEach(executor, «images * queries», job.heads", "images * queries - 1"),
        ("tensors.grad_value + «image * image_size + first»);", "first"),
    ),
    file(
        "cc/kernels/deformable_attention/cpu_kernels.inc",
        ["attention_quick", "fuzz", "attention", "attention_blocks", "attention_native"],
        (
            "const int64_t at = row * job.samples + «first»;\n  for (int64_t i = 0; i < count; i +=",
            "0",
        ),
        ("if («i + kLanes <= count && locations.wide != nullptr») {", "locations.wide != nullptr"),
        (
            "if («i + kLanes <= count && locations.wide != nullptr») {",
            "false",
            "the other branch does the same for any type and number",
        ),
        ("samples->fraction_x[lane] = pairs[«2 * lane + 1»];", "2 * lane"),
        ("samples->mask[lane] = weights.wide[at + «i + lane»];", "lane"),
        ("const int64_t sample = at + «Min(i + lane, count - 1)»;", "i + lane"),
        ("samples->fraction_x[lane] = LoadSampling(locations, «2 * sample + 1»);", "2 * sample"),
        ("const Size* heights = job.maps.heights + «first + i»;", "i"),
        ("const Size* widths = job.maps.widths + «first + i»;", "first"),
        ("if («job.normalized») {\n      y = Pos", "true"),
        ("x = PositionsOfLocations<A>(x, __builtin_convertvector(«width», Vector<A>));", "height"),
        ("job.maps.first_pixels + «first + i», height", "i"),
        ("const int64_t end = «Min(last, (i / kLanes + 1) * kLanes)»;", "last"),
        ("for (int64_t lane = «i % kLanes»; i < end; ++i, ++lane) {", "0"),
        (
            "chains[«j % kChains»][v] += weight * Load",
            "0",
            "to which of the sums a corner is added decides about time alone",
        ),
        ("Vector<A> sum = chains[0][v] + «chains[1][v]»;", "chains[0][v]"),
        ("sum += chains[2][v] + «chains[3][v]»;", "chains[2][v]"),
        ("if («accumulate») sum += Load(sums + v * kLanes);", "false"),
        (
            "for (; «c + 4 * kLanes <= width»; c += 4 * kLanes) {",
            "c + 4 * kLanes < width",
            "the loops after it do the same with fewer vectors",
        ),
        ("«if (c == width) return;»\n  A rest", "", "the loops after it have then no element"),
        ("CornerChannels(image, channels, s, lane, channel + «c», x);\n    for", "0"),
        ("for (int64_t i = «first»; i < last; ++i) {\n    const", "first + 1"),
        ("(«accumulate ? sums[c + k] : A{0}») + rest[k];", "A{0}"),
        (
            "const int64_t end = «Min(begin + job.rows_per_unit, job.rows)»;",
            "begin + job.rows_per_unit",
        ),
        ("if («together == 0» && job.samples > 0", "row == begin"),
        (
            "FillSamples<T>(job, row, 0, «Min(job.rows_together, end - row)» * job.samples, samples);",
            "job.rows_together",
        ),
        ("job.tensors.value + «row / job.image_rows» * job.pixels * channels;", "0"),
        ("const int64_t first_channel = «row % job.heads» * job.depth;", "0"),
        (
            "const int64_t width = «Min(job.depth - block, kMostBlockChannels)»;",
            "job.depth - block",
        ),
        ("const int64_t channel = first_channel + «block»;", "0"),
        ("const int64_t first = «together * job.samples»;", "0"),
        (
            "if («job.samples <= kMostSamples») {\n        const int64_t first",
            "job.samples < kMostSamples",
        ),
        (
            "SumChannels(image, channels, samples, 0, count, channel, width, «first > 0», sums);",
            "false",
        ),
        (
            "const int64_t count = «Min(job.samples - first, kMostSamples)»;\n"
            "          FillSamples",
            "kMostSamples",
        ),
        ("const int64_t at = row * job.samples + «first»;\n  const auto* heights", "0"),
        ("const auto* widths = job.maps.widths + «first»;", "0"),
        ("store(i, gradients[0] * static_cast<A>(«heights[i]»)", "widths[i]"),
        (
            "if («job.normalized») {\n    for (int64_t i = 0; i < count; ++i, gradients += 3) {\n"
            "      store(i, gradients[0] *",
            "true",
        ),
        ("StoreSampling(job.tensors.grad_locations, 2 * (at + i) + 1, «by_x»);", "by_y"),
        ("const int64_t head = «unit / job.blocks % job.heads»;", "unit % job.heads"),
        ("const int64_t image = job.first_image + «step_image»;", "0"),
        (
            "const int64_t width = «Min(job.channels_per_block, job.depth - first_channel)»;",
            "job.channels_per_block",
        ),
        ("A* grad_value = job.grad_value + «step_image» * job.pixels * channels;", "image"),
        ("(image * job.queries + «job.first_query + q») * job.heads + head;", "q"),
        ("job.tensors.grad_output + row * job.depth + «first_channel»;", "0"),
        ("job.partials + ((unit * queries + q) * job.samples + «first») * 3;", "0"),
        ("«Min(count - i, int64_t{kLanes})»,\n                        head", "int64_t{kLanes}"),
        ("head * job.depth + «first_channel», width, upstream", "0"),
        ("(job.first_image + step_image) * job.queries + «job.first_query» + q;", "0"),
        ("const int64_t q = unit % queries, step_image = «unit / queries»;", "0"),
        ("for (int64_t block = 0; «block < job.blocks»; ++block) {\n        for", "block < 1"),
        ("(step_image * job.heads + «head») * job.blocks * block_size +", "0"),
        ("StoreGradients(job, row, «i», 1, sums);", "0"),
    ),
)
