// The CUDA kernels of the deformable convolution, and the tiles in shared memory that they have in
// common.
//
// clang-format off: equations.
//   y[p,f]          = bias[f] + sum_k sum_c filters[k,c,f] * s[p,k,c]
//   s[p,k,c]        = mask[p,k] * sum_r G(r,q) x[r,c],  q = p*stride - pad + k*dilation + offset[p,k]
//   dfilters[k,c,f] = sum_p s[p,k,c] * dy[p,f]
//   ds[p,k,c]       = sum_f filters[k,c,f] * dy[p,f],  scattered to dx, dotted with x for doffset
// clang-format on
//
// s exists only as tiles in shared memory, between the sampling on one side and the product on the
// other; ds is written to the workspace, for some images at a time, and gathered from there.
// Channels are walked in chunks of 128 bytes and, within a chunk, all taps: these read nearly the
// same pixels, which are then in the first-level cache. While a chunk is multiplied, the loads of
// the next one are under way.
//
// Channels are cut into segments: the largest runs that lie in one group and in one offset group.
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_TILES_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_TILES_H_

#include <cstdint>
#include <type_traits>

#include "kernels/base/integers.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/primitives.h"
#include "kernels/cuda/product.h"
#include "kernels/deformable_conv2d/cuda_sampling.h"

namespace tf_deformable::deformable_conv2d::cuda {

inline constexpr int kWarps = kThreads / 32;
inline constexpr int kMostHeldTaps = 9;  // a block holds the corners of so many taps
inline constexpr int kChunkBytes = 128;  // a chunk: neighbouring channels of so many bytes
template <typename T>
inline constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));

// --- Copying tiles into shared memory ------------------------------------------------------------

// Starts to copy rows [0, rows) of columns [0, columns) of a matrix into a tile of kRows x
// kColumns, whose rows are `to_row` apart; the rest of the tile becomes 0. kInterleaved: the rows,
// which are columns of a product, are put where Interleaved says.
template <typename T, int kRows, int kColumns, bool kVectors, bool kInterleaved = false>
TF_DEFORMABLE_DEVICE void CopyTile(const T* from, int64_t from_row, int rows, int columns, T* to,
                                   int to_row) {
  constexpr int kLanes = 16 / sizeof(T);
  constexpr int kRowVectors = kColumns / kLanes;
  constexpr int kVectorsInAll = kRows * kRowVectors;
#pragma unroll
  for (int first = 0; first < kVectorsInAll; first += kThreads) {
    const int i = first + ThreadIndex();
    if (kVectorsInAll % kThreads != 0 && i >= kVectorsInAll) break;
    const int row = i / kRowVectors, column = i % kRowVectors * kLanes;
    T* const target = to + (kInterleaved ? Interleaved(row) : row) * to_row + column;
    if constexpr (kVectors) {
      const bool present = row < rows && column < columns;
      CopyAsync16(target, present ? from + row * from_row + column : from, present);
    } else {
#pragma unroll
      for (int k = 0; k < kLanes; ++k) {
        const bool present = row < rows && column + k < columns;
        target[k] = present ? from[row * from_row + column + k] : FromCompute<T>(0);
      }
    }
  }
}

// Adds the bias, if there is one, to the output's neighbours from `filter` on, of which `left`
// exist.
template <typename T, typename Sum, int kRun>
TF_DEFORMABLE_DEVICE void AddBias(const T* bias, int32_t filter, int left, Sum (&sums)[kRun]) {
  if (bias == nullptr) return;
#pragma unroll
  for (int k = 0; k < kRun; ++k) {
    if (k < left) sums[k] += ToCompute(bias[filter + k]);
  }
}

// Stores a run of neighbouring sums, those of columns [column, columns) only.
template <typename T, int kRun, bool kVectors, typename Sum>
TF_DEFORMABLE_DEVICE void StoreRun(const Sum (&sums)[kRun], int column, int columns, T* to) {
  if constexpr (kVectors) {
    if (column >= columns) return;
    StoreElements<T, kRun>(sums, to);
  } else {
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      if (column + k < columns) to[k] = FromCompute<T>(sums[k]);
    }
  }
}

// --- Tiles ---------------------------------------------------------------------------------------

// What a block computes of a product, kRows x kColumns; each of its warps has kWarpRows x
// kWarpColumns of it.
template <typename T_, bool kFma_, int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_,
          bool kVectors_>
struct Tile {
  using T = T_;
  static constexpr bool kFma = kFma_;
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;
  static constexpr bool kVectors = kVectors_;
  static constexpr bool kRound = std::is_same_v<T, float> && !kFma;
  // Whether lanes can hold longer runs of the result.
  static constexpr bool kInterleaves = !kFma && kVectors && kWarpColumns % kInterleavedColumns == 0;
  using Product = std::conditional_t<kFma, FmaProduct<T, kWarpRows, kWarpColumns>,
                                     WarpProduct<T, kWarpRows, kWarpColumns>>;
  static constexpr int kLanes = 16 / sizeof(T);
  static constexpr int kDepthSteps = kChunkBytes / 32;  // of a chunk
  // How many tiles of an operand are in shared memory: the one in use, and those that are copied in
  // the background. The product of large ones takes so long that one ahead is enough, and two
  // blocks fit on a multiprocessor.
  static constexpr int kStages = kRows * kColumns >= 128 * 128 ? 2 : 3;
  static_assert(kRows / kWarpRows * (kColumns / kWarpColumns) == kWarps, "each warp has its share");

  static TF_DEFORMABLE_DEVICE int FirstRow(int warp) {
    return warp / (kColumns / kWarpColumns) * kWarpRows;
  }
  static TF_DEFORMABLE_DEVICE int FirstColumn(int warp) {
    return warp % (kColumns / kWarpColumns) * kWarpColumns;
  }
};

// Adds the product of two tiles of kChunkBytes of depth to what the warp has of a block's product:
// a [kRows, depth], b [depth, kColumns]. Calls before(k) and after(k) around each depth step, for
// what is to be done meanwhile.
template <typename Tile, Contiguous kA, Contiguous kB, bool kRoundedA, bool kRoundedB,
          typename Before, typename After>
TF_DEFORMABLE_DEVICE void MultiplyTiles(const typename Tile::T* a, int a_row,
                                        const typename Tile::T* b, int b_row, const Before& before,
                                        const After& after, typename Tile::Product* product) {
  constexpr int kDepth = Tile::Product::kDepth;
  const int warp = ThreadIndex() / 32, lane = ThreadIndex() % 32;
  constexpr bool kDepthOfA = kA == Contiguous::kDepth, kDepthOfB = kB == Contiguous::kDepth;
  a += Tile::FirstRow(warp) * (kDepthOfA ? a_row : 1);
  b += Tile::FirstColumn(warp) * (kDepthOfB ? b_row : 1);
#pragma unroll
  for (int k = 0; k < Tile::kDepthSteps; ++k) {
    before(k);
    product->template Step<kA, kB, kRoundedA, kRoundedB>(
        a + k * kDepth * (kDepthOfA ? 1 : a_row), a_row, b + k * kDepth * (kDepthOfB ? 1 : b_row),
        b_row, lane);
    after(k);
  }
}

// Lays out arrays in a block's shared memory, one after the other. The host does it too, from null,
// to learn how much to ask for.
class SharedLayout {
 public:
  TF_DEFORMABLE_HOST_DEVICE explicit SharedLayout(char* memory) : memory_(memory) {}
  template <typename Element>
  TF_DEFORMABLE_HOST_DEVICE Element* Take(int64_t elements) {
    char* const taken = memory_ + size_;
    size_ += RoundUp(elements * static_cast<int64_t>(sizeof(Element)), 128);
    return reinterpret_cast<Element*>(taken);
  }
  TF_DEFORMABLE_HOST_DEVICE int64_t size() const { return size_; }

 private:
  char* memory_;
  int64_t size_ = 0;
};

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_TILES_H_
