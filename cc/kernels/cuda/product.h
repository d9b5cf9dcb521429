// Products of tiles in shared memory, of which each warp has a share: on the tensor cores
// (WarpProduct), or with plain multiply-adds (FmaProduct) where these would lose precision.
//
// Both have the same interface. A warp's share is kRows x kColumns. A depth step consumes kDepth
// elements of each row of a and each column of b: 32 bytes.
#ifndef TF_DEFORMABLE_CC_KERNELS_CUDA_PRODUCT_H_
#define TF_DEFORMABLE_CC_KERNELS_CUDA_PRODUCT_H_

#include <cstdint>

#include "kernels/cuda/primitives.h"

namespace tf_deformable {
namespace cuda {

// How a tile lies in shared memory: which of its axes is contiguous.
enum class Contiguous { kDepth, kOutput };  // kOutput: rows of a, columns of b

// The elements from one row of a tile of so many to the next, so that no two of a warp's accesses
// fall into one bank: 16 bytes more than the row has, or 32 where four-byte elements are read one
// by one across rows.
template <typename T>
constexpr int PaddedRow(int elements, bool read_across) {
  return elements + (read_across && sizeof(T) == 4 ? 32 : 16) / static_cast<int>(sizeof(T));
}

// A lane holds two neighbouring columns of every eight. To have it hold eight neighbours of each 32
// columns, which it can store at once, b's column `column` is put where column Interleaved(column)
// would be.
inline constexpr int kInterleavedColumns = 32, kInterleavedRun = 8;
TF_DEFORMABLE_DEVICE int Interleaved(int column) {
  return (column & ~31) | (column & 6) << 2 | (column & 24) >> 2 | (column & 1);
}

template <typename T, int kRows_, int kColumns_>
class WarpProduct {
 public:
  using Element = T;
  using Sum = float;
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kDepth = 32 / sizeof(T);
  static constexpr int kRun = 2;  // neighbouring columns that a lane holds

  TF_DEFORMABLE_DEVICE void Clear() {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) sums_[i][j][k] = 0;
      }
    }
  }

  // A depth step. a and b begin at the warp's first row and column, and at the step's first
  // element. kRoundedA, kRoundedB: these elements have been rounded to TF32 (irrelevant in 16
  // bits).
  template <Contiguous kA, Contiguous kB, bool kRoundedA, bool kRoundedB>
  TF_DEFORMABLE_DEVICE void Step(const T* a, int a_row, const T* b, int b_row, int lane) {
    uint32_t fb[kColumnTiles][2];
    LoadB<kB, kRoundedB>(b, b_row, lane, fb);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      uint32_t fa[4];
      LoadA<kA>(a + i * 16 * (kA == Contiguous::kDepth ? a_row : 1), a_row, lane, fa);
      if constexpr (sizeof(T) == 4 && !kRoundedA) {
#pragma unroll
        for (int k = 0; k < 4; ++k) fa[k] = ToTensorFloat32(BitsToFloat(fa[k]));
      }
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) MultiplyAdd<T>(sums_[i][j], fa, fb[j]);
    }
  }

  // Calls f(row, column, sums) for each run of kRun columns that the lane holds.
  template <typename F>
  TF_DEFORMABLE_DEVICE void ForEachRun(int lane, const F& f) const {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        const int row = i * 16 + lane / 4, column = j * 8 + lane % 4 * 2;
        f(row, column, &sums_[i][j][0]);
        f(row + 8, column, &sums_[i][j][2]);
      }
    }
  }

  // The same for a product whose columns are interleaved (see Interleaved): f gets runs of
  // kInterleavedRun columns that are neighbours outside of the tile, column by column.
  template <typename F>
  TF_DEFORMABLE_DEVICE void ForEachInterleavedRun(int lane, const F& f) const {
#pragma unroll
    for (int q = 0; q < kColumns / kInterleavedColumns; ++q) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float sums[kInterleavedRun];
#pragma unroll
          for (int k = 0; k < kInterleavedRun; ++k) {
            sums[k] = sums_[i][q * 4 + k / 2][half * 2 + k % 2];
          }
          f(i * 16 + half * 8 + lane / 4, q * kInterleavedColumns + lane % 4 * kInterleavedRun,
            sums);
        }
      }
    }
  }

 private:
  static constexpr int kRowTiles = kRows / 16, kColumnTiles = kColumns / 8;
  static_assert(kRows % 16 == 0 && kColumns % 16 == 0, "whole fragments");

  template <Contiguous kA>
  static TF_DEFORMABLE_DEVICE void LoadA(const T* a, int a_row, int lane, uint32_t (&fa)[4]) {
    if constexpr (kA == Contiguous::kDepth) {
      LoadMatrices(a + lane % 16 * a_row + lane / 16 * (16 / static_cast<int>(sizeof(T))), fa);
    } else if constexpr (sizeof(T) == 2) {
      LoadMatricesTransposed(a + (lane % 8 + lane / 16 * 8) * a_row + lane / 8 % 2 * 8, fa);
    } else {
      const T* const at = a + lane % 4 * a_row + lane / 4;
      fa[0] = FloatToBits(at[0]);
      fa[1] = FloatToBits(at[8]);
      fa[2] = FloatToBits(at[4 * a_row]);
      fa[3] = FloatToBits(at[4 * a_row + 8]);
    }
  }

  template <bool kRounded>
  static TF_DEFORMABLE_DEVICE uint32_t Rounded(uint32_t bits) {
    return sizeof(T) == 4 && !kRounded ? ToTensorFloat32(BitsToFloat(bits)) : bits;
  }

  template <Contiguous kB, bool kRounded>
  static TF_DEFORMABLE_DEVICE void LoadB(const T* b, int b_row, int lane,
                                         uint32_t (&fb)[kColumnTiles][2]) {
    if constexpr (kB == Contiguous::kOutput && sizeof(T) == 4) {
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        const T* const at = b + lane % 4 * b_row + j * 8 + lane / 4;
        fb[j][0] = Rounded<kRounded>(FloatToBits(at[0]));
        fb[j][1] = Rounded<kRounded>(FloatToBits(at[4 * b_row]));
      }
    } else {
#pragma unroll
      for (int j = 0; j < kColumnTiles; j += 2) {
        uint32_t r[4];
        if constexpr (kB == Contiguous::kOutput) {
          LoadMatricesTransposed(b + lane % 16 * b_row + j * 8 + lane / 16 * 8, r);
        } else {
          LoadMatrices(b + (j * 8 + lane / 16 * 8 + lane % 8) * b_row +
                           lane / 8 % 2 * (16 / static_cast<int>(sizeof(T))),
                       r);
        }
        fb[j][0] = Rounded<kRounded>(r[0]);
        fb[j][1] = Rounded<kRounded>(r[1]);
        fb[j + 1][0] = Rounded<kRounded>(r[2]);
        fb[j + 1][1] = Rounded<kRounded>(r[3]);
      }
    }
  }

  float sums_[kRowTiles][kColumnTiles][4];
};

template <typename T, int kRows_, int kColumns_>
class FmaProduct {
 public:
  using Element = T;
  using Sum = T;
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kDepth = 32 / sizeof(T);
  static constexpr int kRun = 16 / sizeof(T);

  TF_DEFORMABLE_DEVICE void Clear() {
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) sums_[i][j] = 0;
    }
  }

  // As WarpProduct's. Lanes are 8 x 4.
  template <Contiguous kA, Contiguous kB, bool kRoundedA, bool kRoundedB>
  TF_DEFORMABLE_DEVICE void Step(const T* a, int a_row, const T* b, int b_row, int lane) {
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      T va[kLaneRows], vb[kLaneColumns];
#pragma unroll
      for (int i = 0; i < kLaneRows; ++i) {
        const int row = lane / 4 + i * 8;
        va[i] = kA == Contiguous::kDepth ? a[row * a_row + k] : a[k * a_row + row];
      }
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        const int column = (j / kRun * 4 + lane % 4) * kRun + j % kRun;
        vb[j] = kB == Contiguous::kOutput ? b[k * b_row + column] : b[column * b_row + k];
      }
#pragma unroll
      for (int i = 0; i < kLaneRows; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneColumns; ++j) sums_[i][j] += va[i] * vb[j];
      }
    }
  }

  template <typename F>
  TF_DEFORMABLE_DEVICE void ForEachRun(int lane, const F& f) const {
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
#pragma unroll
      for (int j = 0; j < kLaneColumns; j += kRun) {
        f(lane / 4 + i * 8, (j / kRun * 4 + lane % 4) * kRun, &sums_[i][j]);
      }
    }
  }

 private:
  static constexpr int kLaneRows = kRows / 8, kLaneColumns = kColumns / 4;
  static_assert(kRows % 8 == 0 && kColumns % (4 * kRun) == 0, "whole runs");

  T sums_[kLaneRows][kLaneColumns];
};

}  // namespace cuda
}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_KERNELS_CUDA_PRODUCT_H_
