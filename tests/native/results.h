// What the kernels computed, checked against the scalar operators, kept in a file, or compared with
// what another instruction set, or one thread, has kept there.
#ifndef TF_DEFORMABLE_TESTS_NATIVE_RESULTS_H_
#define TF_DEFORMABLE_TESTS_NATIVE_RESULTS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "guarded_tensor.h"
#include "kernels/cpu/isa.h"
#include "scalar_operators.h"

namespace tf_deformable {

// Of sums in another order, for their sizes; and of a result's own rounding, for the result.
template <typename T>
inline constexpr double kSumTolerance = 2e-5;
template <>
inline constexpr double kSumTolerance<double> = 1e-13;
template <typename T>
inline constexpr double kRounding = 0;
template <>
inline constexpr double kRounding<Half> = 0x1p-10;
template <>
inline constexpr double kRounding<BFloat16> = 0x1p-7;
// What numbers near zero are rounded by.
template <typename T>
inline constexpr double kSmallest = 1e-37;
template <>
inline constexpr double kSmallest<Half> = 0x1p-24;
// Sums that may get beyond this, on the way or in the end, may be infinite or NaN.
template <typename T>
inline constexpr double kLargest = 1e37;
template <>
inline constexpr double kLargest<double> = 1e300;
template <>
inline constexpr double kLargest<Half> = 65000;

// For another instruction set or number of threads: relative to a tensor's largest number.
template <typename T>
inline constexpr double kTolerance = 2e-5;
template <>
inline constexpr double kTolerance<double> = 1e-13;
template <>
inline constexpr double kTolerance<Half> = 2e-3;
template <>
inline constexpr double kTolerance<BFloat16> = 1.6e-2;

class Results {
 public:
  // What begins the line about a wrong result.
  const char* case_name = "";

  void Open(const char* action, const char* path) {
    compares_ = std::strcmp(action, "compare") == 0;
    file_ = std::fopen(path, compares_ ? "rb" : "wb");
    if (file_ == nullptr) std::exit(2);
  }

  // Results that may hold NaN, or anything else. A tensor that is absent is null.
  template <typename T>
  void Check(const char* name, const T* data, const scalar::Sums& expected) {
    if (data == nullptr) return;
    for (size_t i = 0; i < expected.size(); ++i) {
      const double got = Get(data[i]);
      const scalar::Sum& sum = expected[i];
      if (sum.size > kLargest<T>) continue;
      const double allowed =
          kSumTolerance<T> * sum.size + kRounding<T> * std::fabs(sum.value) + kSmallest<T>;
      const bool right =
          std::isnan(sum.value) ? std::isnan(got) : std::fabs(got - sum.value) <= allowed;
      if (right) continue;
      ++wrong_;
      std::printf("%s: %s[%zu] is %.9g, expected %.9g (+- %.3g)\n", case_name, name, i, got,
                  sum.value, allowed);
      return;
    }
    ++checked_;
  }

  // Keeps results that are all finite, or compares them with those that are kept.
  template <typename T>
  void Take(const char* name, const T* data, int64_t size) {
    if (file_ == nullptr || data == nullptr) return;
    std::vector<double> got(size), expected(size);
    for (int64_t i = 0; i < size; ++i) got[i] = Get(data[i]);
    if (!compares_) {
      std::fwrite(got.data(), sizeof(double), size, file_);
      return;
    }
    if (std::fread(expected.data(), sizeof(double), size, file_) != static_cast<size_t>(size)) {
      std::exit(2);
    }
    double largest = 1e-30, difference = 0;
    for (int64_t i = 0; i < size; ++i) {
      largest = std::max(largest, std::fabs(expected[i]));
      const double d = std::fabs(got[i] - expected[i]);
      difference = std::max(difference, std::isnan(d) ? INFINITY : d);
    }
    ++compared_;
    worst_ = std::max(worst_, difference / largest / kTolerance<T>);
    if (difference / largest <= kTolerance<T>) return;
    ++wrong_;
    std::printf("%s: %s differs by %g of its largest number\n", case_name, name,
                difference / largest);
  }

  // Returns whether all were right, and says how many there were.
  bool Report() const {
    if (compares_) {
      std::printf("%d tensors of %s compared, %d differ, by at most %.2f of the tolerance\n",
                  compared_, ToString(SelectedCpuIsa()), wrong_, worst_);
    }
    return wrong_ == 0;
  }
  int checked() const { return checked_; }
  bool right() const { return wrong_ == 0; }

  // Returns whether what was kept is in the file.
  bool Close() { return file_ == nullptr || std::fclose(file_) == 0; }

 private:
  std::FILE* file_ = nullptr;
  bool compares_ = false;
  int checked_ = 0, compared_ = 0, wrong_ = 0;
  double worst_ = 0;
};

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_TESTS_NATIVE_RESULTS_H_
