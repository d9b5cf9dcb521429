// How the CUDA kernels of the RoI pooling family are launched: what both passes share.
#ifndef TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_LAUNCH_H_
#define TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_LAUNCH_H_

#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/base/float_types.h"
#include "kernels/base/integers.h"
#include "kernels/base/status.h"
#include "kernels/cuda/device_limits.h"
#include "kernels/roi_pool/cuda_class_bins.h"
#include "kernels/roi_pool/cuda_plan.h"

namespace tf_deformable::roi_pool::cuda {

// More would leave a multiprocessor few blocks.
inline constexpr int64_t kLinesInSharedMemory = 40 << 10;
inline constexpr int64_t kMostClassBins = kThreads / 2;  // a thread to each axis
inline constexpr int64_t kBlocksWanted = 8;              // on each multiprocessor, to keep it busy

inline Status CheckFits(const Geometry& g) {
  if (g.height <= kExactAsFloat && g.width <= kExactAsFloat && g.batch <= kMostIndex &&
      g.channels <= kMostIndex && g.bins() <= kMostIndex && g.classes <= kMostIndex) {
    return Status();
  }
  return Status(Status::Code::kTooLarge,
                std::string(kOp) +
                    ": a GPU takes maps of at most 2^24 pixels along an axis, and 2^30 channels "
                    "and bins, got " +
                    ToString({g.batch, g.height, g.width, g.channels}));
}

// How many class bins a block takes at a time, and where their lines are.
struct Blocks {
  int64_t class_bins_per_block, blocks, shared_bytes, lines_bytes;
};

template <typename A>
Blocks ChooseBlocks(const Geometry& g, int multiprocessors) {
  const int64_t class_bin_bytes = ClassBinBytes<A>(AxisCapacity(g));
  const int64_t class_bins = g.boxes * g.bins() * g.classes;
  Blocks b;
  b.class_bins_per_block =
      std::clamp<int64_t>(kLinesInSharedMemory / class_bin_bytes, 1, kMostClassBins);
  // Few class bins are spread over all multiprocessors.
  b.class_bins_per_block = std::clamp<int64_t>(CeilDiv(class_bins, kBlocksWanted * multiprocessors),
                                               1, b.class_bins_per_block);
  b.blocks =
      std::min(CeilDiv(class_bins, b.class_bins_per_block), 4 * kBlocksWanted * multiprocessors);
  const bool shared = b.class_bins_per_block * class_bin_bytes <= kLinesInSharedMemory;
  b.shared_bytes = shared ? b.class_bins_per_block * class_bin_bytes : 0;
  if (!shared) b.blocks = std::min<int64_t>(b.blocks, multiprocessors);
  b.lines_bytes = shared ? 0 : RoundUp(b.blocks * b.class_bins_per_block * class_bin_bytes, 256);
  return b;
}

inline Job MakeJob(const Geometry& g, int64_t class_bins_per_block, int64_t blocks, char* lines) {
  Job job;
  job.geometry = g;
  job.first_class_bin = 0;
  job.last_class_bin = g.boxes * g.bins() * g.classes;
  job.blocks = blocks;
  job.class_bins_per_block = static_cast<int32_t>(class_bins_per_block);
  job.capacity = static_cast<int32_t>(AxisCapacity(g));
  job.first_image = 0;
  job.last_image = std::max<int64_t>(g.batch, 1);
  job.lines = lines;
  return job;
}

}  // namespace tf_deformable::roi_pool::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_ROI_POOL_CUDA_LAUNCH_H_
