// The entry of a fuzzer that thinks of inputs by what code they reach: libFuzzer (`make fuzz`), or
// replay_inputs.cc, which repeats those that are kept in `corpus`.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "choices.h"
#include "geometry_cases.h"
#include "kernel_cases.h"
#include "results.h"

namespace {

// Ends the process, once what is wrong has been printed.
[[noreturn]] void Fail() {
  std::fflush(stdout);
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tf_deformable;
  ByteChoices choices(data, size);
  if (choices.Chance(4)) {
    if (!RunGeometryCase(&choices)) Fail();
    return 0;
  }
  Results results;
  results.case_name = "input";
  RunKernelCase(&choices, nullptr, &results);
  if (!results.right()) Fail();
  return 0;
}
