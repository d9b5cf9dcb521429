// What the device does in a second of the one thing that bounds the gradient of the inputs: adding
// to global memory, at addresses like those of its scatter. See benchmarks/gpu/kernels.py.

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/primitives.h"

namespace {

using namespace tf_deformable::cuda;

constexpr int kSize = 64, kChannels = 256;  // of a map: kSize x kSize x kChannels floats
constexpr int kTile = 8, kTaps = 9, kChunk = 64;
constexpr int kLanes = kChunk / 4;  // threads of a pixel, four channels each

// A number between 0 and 7 that hangs on `seed` without any pattern.
__device__ int Displacement(uint32_t seed) {
  seed = (seed ^ seed >> 16) * 0x7feb352du;
  seed = (seed ^ seed >> 15) * 0x846ca68bu;
  return static_cast<int>((seed ^ seed >> 16) >> 29);
}

// A block has a tile of 8x8 pixels and 64 channels. Each of its samples, one to a tap, is up to
// four pixels away and adds to the four corners of a cell.
template <bool kVectors>
__global__ __launch_bounds__(256) void ScatterKernel(float* to) {
  constexpr int kTilesAcross = kSize / kTile, kTiles = kTilesAcross * kTilesAcross;
  const int chunk = blockIdx.x / kTiles % (kChannels / kChunk);
  const int image = blockIdx.x / kTiles / (kChannels / kChunk);
  const int tile = blockIdx.x % kTiles, lane = threadIdx.x % kLanes;
  float* const map = to + static_cast<int64_t>(image) * kSize * kSize * kChannels + chunk * kChunk;
  for (int tap = 0; tap < kTaps; ++tap) {
    for (int i = threadIdx.x / kLanes; i < kTile * kTile; i += 256 / kLanes) {
      const uint32_t seed = (blockIdx.x * kTile * kTile + i) * kTaps + tap;
      const int y = tile / kTilesAcross * kTile + i / kTile + Displacement(2 * seed) - 4;
      const int x = tile % kTilesAcross * kTile + i % kTile + Displacement(2 * seed + 1) - 4;
      for (int corner = 0; corner < 4; ++corner) {
        const int row = min(max(y + corner / 2, 0), kSize - 1);
        const int column = min(max(x + corner % 2, 0), kSize - 1);
        float* const pixel = map + (row * kSize + column) * kChannels;
        if constexpr (kVectors) {
          AtomicAdd4(pixel + 4 * lane, {1, 1, 1, 1});
        } else {
          // Lanes are neighbours, as is best for single floats.
          for (int k = 0; k < 4; ++k) AtomicAdd(pixel + k * kLanes + lane, 1.f);
        }
      }
    }
  }
}

}  // namespace

extern "C" {

// Adds to `images` maps of 64x64x256 floats; returns how many bytes it adds, or -1.
__attribute__((visibility("default"))) int64_t tf_deformable_scatter(int vectors, float* to,
                                                                     int64_t images, void* stream) {
  const auto blocks =
      static_cast<unsigned>(images * kSize * kSize / (kTile * kTile) * (kChannels / kChunk));
  (vectors != 0 ? ScatterKernel<true>
                : ScatterKernel<false>)<<<blocks, 256, 0, static_cast<cudaStream_t>(stream)>>>(to);
  if (cudaGetLastError() != cudaSuccess) return -1;
  return images * kSize * kSize * kChannels * kTaps * 4 * static_cast<int64_t>(sizeof(float));
}

}  // extern "C"
