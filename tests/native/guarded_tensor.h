// Tensors between pages without access, filled with what a case wants, and numbers of all types.
#ifndef TF_DEFORMABLE_TESTS_NATIVE_GUARDED_TENSOR_H_
#define TF_DEFORMABLE_TESTS_NATIVE_GUARDED_TENSOR_H_

#include <sys/mman.h>
#include <unistd.h>
#if defined(TF_DEFORMABLE_MEMCHECK)
#include <valgrind/memcheck.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <vector>

#include "choices.h"
#include "kernels/base/float_types.h"
#include "kernels/base/integers.h"
#include "kernels/cpu/driver.h"

namespace tf_deformable {

// Memory of exactly so many bytes, with a page without access before and one behind it. It ends
// where the one begins, or begins where the other ends: one overrun in two ends the process at
// once.
class Guarded {
 public:
  Guarded(Choices* choices, int64_t bytes, int64_t alignment) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t inner = RoundUp(std::max<int64_t>(bytes, 1), page);
    size_ = inner + 2 * page;
    base_ = static_cast<char*>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::abort();
    mprotect(base_, page, PROT_NONE);
    mprotect(base_ + page + inner, page, PROT_NONE);
    data_ = base_ + page + (choices->Noise() % 2 == 0 ? inner - RoundUp(bytes, alignment) : 0);
  }
  ~Guarded() { munmap(base_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  char* data() const { return data_; }

 private:
  char* base_;
  char* data_;
  int64_t size_;
};

// --- Numbers -------------------------------------------------------------------------------------

inline double Get(float value) { return value; }
inline double Get(double value) { return value; }
inline double Get(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof(f));
  return f;
}
inline double Get(Half value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  const double sign = value.bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  return sign * std::ldexp(exponent > 0 ? 1024 + mantissa : mantissa, std::max(exponent, 1) - 25);
}

inline void Put(double value, float* to) { *to = static_cast<float>(value); }
inline void Put(double value, double* to) { *to = value; }
// Cut off, not rounded.
inline void Put(double value, BFloat16* to) {
  const float f = static_cast<float>(value);
  uint32_t bits;
  __builtin_memcpy(&bits, &f, sizeof(bits));
  to->bits = static_cast<uint16_t>(bits >> 16);
}
inline void Put(double value, Half* to) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(value);
  if (std::isnan(value)) {
    to->bits = sign | 0x7e01;
  } else if (size >= 65520) {
    to->bits = sign | 0x7c00;
  } else {
    // The last place is worth 2^(exponent - 25), subnormal numbers' as much as the smallest
    // others'. What is cut off there may carry into the exponent.
    int exponent = std::max(size > 0 ? std::ilogb(size) + 15 : 0, 1);
    const auto places = static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 25 - exponent)));
    to->bits = static_cast<uint16_t>(sign | (places + ((exponent - 1) << 10)));
  }
}

// --- Tensors -------------------------------------------------------------------------------------

// What the elements of a tensor are.
struct Values {
  float scale = 1;       // nearly normal, with this deviation
  bool hostile = false;  // some are NaN, infinite or huge
  float step = 0;        // not 0: as long as an input has bytes, they say which multiple of it
};

inline float MakeValue(Choices* choices, const Values& values) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kHostile[] = {NAN,     kInfinity, -kInfinity, 1e30f, -1e30f,
                                3.4e38f, 3e9f,      -1,         -0.5f};
  uint8_t byte;
  if (values.step != 0 && choices->Element(&byte)) {
    constexpr int kFirstHostile = 256 - static_cast<int>(std::size(kHostile));
    if (values.hostile && byte >= kFirstHostile) return kHostile[byte - kFirstHostile];
    return static_cast<float>(byte - 120) * values.step;
  }
  if (values.hostile && choices->Noise() % 6 == 0) {
    return kHostile[choices->Noise() % std::size(kHostile)];
  }
  // Nearly normal, and the same on every machine, which logarithms of float are not.
  const uint32_t bits = choices->Noise();
  double sum = -509.5 + choices->Noise() * 0x1p-32;
  for (int i = 0; i < 32; i += 8) sum += bits >> i & 255;
  return static_cast<float>(sum / 148 * values.scale);
}

template <typename T>
class Tensor {
 public:
  Tensor(Choices* choices, int64_t size, const Values& values = {})
      : size_(size), memory_(choices, size * sizeof(T), 1) {
    for (int64_t i = 0; i < size; ++i) Put(MakeValue(choices, values), data() + i);
  }
  int64_t size() const { return size_; }
  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  T* data_if(bool present) const { return present ? data() : nullptr; }

  std::vector<double> numbers() const {
    std::vector<double> all(size_);
    for (int64_t i = 0; i < size_; ++i) all[i] = Get(data()[i]);
    return all;
  }
  std::vector<double> numbers_if(bool present) const {
    return present ? numbers() : std::vector<double>();
  }

 private:
  int64_t size_;
  Guarded memory_;
};

// Calls work(workspace), with as much of it as the plan asks for. It is full of NaN: what is read
// there before it is written shows in the results, and Valgrind says where (CONTRIBUTING.md).
template <typename Plan, typename Work>
void RunPlan(Choices* choices, const Plan& plan, const Work& work) {
  const Guarded workspace(choices, plan.workspace_bytes(), kWorkspaceAlignment);
  std::memset(workspace.data(), 0xff, plan.workspace_bytes());
#if defined(TF_DEFORMABLE_MEMCHECK)
  VALGRIND_MAKE_MEM_UNDEFINED(workspace.data(), plan.workspace_bytes());
#endif
  work(workspace.data());
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_TESTS_NATIVE_GUARDED_TENSOR_H_
