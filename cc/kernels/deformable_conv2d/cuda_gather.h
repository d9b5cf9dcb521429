// CUDA kernels that gather the gradients of the inputs, of the offsets and of the mask from ds and
// the lists of samples (cuda_cell_lists.h).
#ifndef TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_GATHER_H_
#define TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_GATHER_H_

#include <cstdint>

#include "kernels/deformable_conv2d/cuda_cell_lists.h"
#include "kernels/deformable_conv2d/cuda_tiles.h"

namespace tf_deformable::deformable_conv2d::cuda {

// How a launch that gathers cuts the work, and where it reads and writes.
//
// A team of threads has a strip of kStripCells cells of a row, and a range of the channels of an
// offset group. It walks along the cells of its row and of the row above: the first have
// their upper corners in the team's row of pixels, the others their lower ones.
template <typename T>
struct GatherJob {
  using A = ComputeType<T>;
  const CellList* lists;
  const CellSample<A>* samples;
  const T* columns;  // ds [pixels, taps, C]; not used if depthwise
  // The launch has so many of the listed pixels, from that one on, of images from that one on.
  int64_t first_pixel, pixels;
  int32_t first_image;
  int32_t ranges, strips, row_blocks;  // of an offset group, of a row of cells, of a map
  // Where gradients are added up whose image is cut into steps, [H, W, C] of that image; null: they
  // come at once and go to grad_inputs.
  A* sums = nullptr;
  bool adds = false;  // the sums hold something already
  // Gradients for (dy, dx, mask): [ranges, pixels, offset groups, taps, 3]; null: there is one
  // range, which writes them itself.
  A* partials;
};

inline constexpr int kStripCells = 8;

template <typename T>
inline constexpr int kGatherChannels = sizeof(T) == 8 ? 4 : 8;  // so many a thread

// Loads the channels of a thread, 16 bytes at a time, kTeam threads next to each other, or one by
// one; zeros where there are none.
template <typename T, bool kVectors, int kTeam>
TF_DEFORMABLE_DEVICE void LoadChannels(const T* from, int member, bool present, int left,
                                       ComputeType<T> (&values)[kGatherChannels<T>]) {
  using A = ComputeType<T>;
  constexpr int kLanes = 16 / sizeof(T);
#pragma unroll
  for (int v = 0; v < kGatherChannels<T>; v += kLanes) {
    const int at = v * kTeam + member * kLanes;
    if constexpr (kVectors) {
      A lanes[kLanes];
      Widen<T>(present && at < left ? LoadGlobal16(from + at) : Vector16{{0, 0, 0, 0}}, lanes);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) values[v + i] = lanes[i];
    } else {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        values[v + i] = present && at + i < left ? ToCompute(from[at + i]) : A{0};
      }
    }
  }
}

// Adds three numbers over the threads of a team, whose size is a power of 2 from 8 on. The first of
// each quarter of the team gets a sum: 0, 1, 2, in this order (the last quarter none).
template <int kTeam, typename A>
TF_DEFORMABLE_DEVICE A AddThree(const A (&values)[3], int member) {
  const bool second_half = (member & kTeam / 2) != 0, odd_quarter = (member & kTeam / 4) != 0;
  A first = second_half ? values[2] : values[0], second = second_half ? A{0} : values[1];
  first += ShuffleXor(second_half ? values[0] : values[2], kTeam / 2);
  second += ShuffleXor(second_half ? values[1] : A{0}, kTeam / 2);
  A sum = odd_quarter ? second : first;
  sum += ShuffleXor(odd_quarter ? first : second, kTeam / 4);
#pragma unroll
  for (int lanes = kTeam / 8; lanes > 0; lanes /= 2) sum += ShuffleXor(sum, lanes);
  return sum;
}

// What a team has. Teams beyond the map go along, for a warp shuffles as a whole.
struct GatherTeam {
  int32_t range, offset_group;
  int64_t listed_image;  // counted from the first listed one
  int32_t y;             // row of cells, and of pixels; rows of cells begin at -1
  bool begins_row;       // the strip is the first one of the row
  int32_t first_x, last_x;
  int32_t channel, left;  // the first one; how many the offset group has from there on
};

template <typename T, int kTeam>
TF_DEFORMABLE_DEVICE GatherTeam MakeGatherTeam(const Convolution& g, const GatherJob<T>& job) {
  constexpr int kRangeChannels = kGatherChannels<T> * kTeam, kTeams = kThreads / kTeam;
  GatherTeam team;
  int64_t block = BlockIndex();
  team.y = static_cast<int32_t>(block % job.row_blocks) * kTeams + ThreadIndex() / kTeam - 1;
  block /= job.row_blocks;
  const int32_t strip = static_cast<int32_t>(block % job.strips);
  block /= job.strips;
  team.range = static_cast<int32_t>(block % job.ranges);
  block /= job.ranges;
  team.offset_group = static_cast<int32_t>(block % g.offset_groups);
  team.listed_image = job.first_image + block / g.offset_groups;
  team.begins_row = strip == 0;
  team.first_x = strip * kStripCells;
  team.last_x = Min(team.first_x + kStripCells, g.width);
  team.channel = team.offset_group * g.offset_group_channels + team.range * kRangeChannels;
  team.left = g.offset_group_channels - team.range * kRangeChannels;
  return team;
}

// A thread of a team, which holds what its channels add to two pixels: the one at the cell, which
// is its upper left corner, and the next one of the row.
//
// kDepthwise: each channel is a group of its own, with one filter; then ds is worked out here.
template <typename T, bool kVectors, bool kDepthwise, int kTeam>
class Gatherer {
 public:
  using A = ComputeType<T>;

  TF_DEFORMABLE_DEVICE Gatherer(const Convolution& g, const BackwardTensors<T>& tensors,
                                const GatherJob<T>& job, const GatherTeam& team)
      : g_(g), tensors_(tensors), job_(job), team_(team), member_(ThreadIndex() % kTeam) {
    const int64_t map = team.listed_image * g.offset_groups + team.offset_group;
    lists_ = job.lists + map * CellLists<A>::Cells(g);
    const int64_t image = g.first_pixel / g.output_size() + team.listed_image;
    image_at_ = image * g.height * ImageRow() + team.channel;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      here_[i] = right_[i] = 0;
      x_[0][0][i] = x_[0][1][i] = x_[1][0][i] = x_[1][1][i] = 0;
    }
  }

  // Moves on to a cell, one pixel further than the last one.
  TF_DEFORMABLE_DEVICE void MoveTo(int32_t cell_x) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      here_[i] = right_[i];
      right_[i] = 0;
      x_[0][0][i] = x_[0][1][i];
      x_[1][0][i] = x_[1][1][i];
    }
    adds_here_ = adds_right_;
    adds_right_ = false;
    const T* const inputs = tensors_.inputs + image_at_;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int32_t y = team_.y + j;
      const bool present = y >= 0 && y < g_.height && cell_x + 1 < g_.width;
      LoadChannels<T, kVectors, kTeam>(inputs + y * ImageRow() + (cell_x + 1) * g_.channels,
                                       member_, present, team_.left, x_[j][1]);
    }
  }

  // Adds to the two pixels what the samples of a cell give to them: to its upper corners, or to its
  // lower ones. With kDots, which the cell that the team is at allows, the gradients for the
  // samples themselves are stored.
  template <bool kUpper, bool kDots>
  TF_DEFORMABLE_DEVICE void AddCell(int32_t cell_y, int32_t cell_x, bool is_there) {
    const CellList list =
        is_there ? lists_[(cell_y + 1) * (g_.width + 1) + cell_x + 1] : CellList{0, 0};
    adds_here_ |= list.count > 0;
    adds_right_ |= list.count > 0;
    const int32_t count = MostOfWarp(list.count);
#pragma unroll 2
    for (int32_t k = 0; k < count; ++k) {
      const bool present = k < list.count;
      CellSample<A> sample = {0, 0, 0, 0};
      if (present) sample = LoadCellSample(job_.samples + list.first + k);
      A ds[kChannels];
      LoadSampleGradient(sample.row, present, ds);
      if (present) AddSample<kUpper>(sample, ds);
      if constexpr (kDots) StorePointGradients(cell_y, cell_x, sample, present, ds);
    }
  }

  // Stores the pixel at the cell, which is complete.
  TF_DEFORMABLE_DEVICE void StorePixel(int32_t cell_x) const {
    if (job_.adds && !adds_here_) return;
    constexpr int kLanes = 16 / sizeof(T);
    const int64_t pixel = static_cast<int64_t>(team_.y) * g_.width + cell_x;
#pragma unroll
    for (int v = 0; v < kChannels; v += kLanes) {
      const int at = v * kTeam + member_ * kLanes;
      A values[kLanes];
#pragma unroll
      for (int i = 0; i < kLanes; ++i) values[i] = here_[v + i];
      if (job_.sums != nullptr) {
        A* const to = job_.sums + pixel * g_.channels + team_.channel + at;
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
          if (at + i < team_.left) to[i] = job_.adds ? to[i] + values[i] : values[i];
        }
      } else {
        StoreRun<T, kLanes, kVectors>(values, at, team_.left,
                                      tensors_.grad_inputs + image_at_ + pixel * g_.channels + at);
      }
    }
  }

 private:
  static constexpr int kChannels = kGatherChannels<T>;

  TF_DEFORMABLE_DEVICE int64_t ImageRow() const {
    return static_cast<int64_t>(g_.width) * g_.channels;
  }

  // The most that a team of the warp has.
  static TF_DEFORMABLE_DEVICE int32_t MostOfWarp(int32_t count) {
#pragma unroll
    for (int lanes = kTeam; lanes < 32; lanes *= 2) {
      const int32_t other = ShuffleXor(count, lanes);
      count = count > other ? count : other;
    }
    return count;
  }

  // ds of a sample.
  TF_DEFORMABLE_DEVICE void LoadSampleGradient(int32_t row, bool present,
                                               A (&ds)[kChannels]) const {
    if constexpr (kDepthwise) {
      const int32_t pixel = row / g_.taps, tap = row - pixel * g_.taps;
      A weights[kChannels];
      LoadChannels<T, kVectors, kTeam>(
          tensors_.grad_output + (g_.first_pixel + pixel) * g_.channels + team_.channel, member_,
          present, team_.left, ds);
      LoadChannels<T, kVectors, kTeam>(
          tensors_.filters + static_cast<int64_t>(tap) * g_.channels + team_.channel, member_,
          present, team_.left, weights);
#pragma unroll
      for (int i = 0; i < kChannels; ++i) ds[i] *= weights[i];
    } else {
      LoadChannels<T, kVectors, kTeam>(
          job_.columns + (row - job_.first_pixel * g_.taps) * g_.channels + team_.channel, member_,
          present, team_.left, ds);
    }
  }

  template <bool kUpper>
  TF_DEFORMABLE_DEVICE void AddSample(const CellSample<A>& sample, const A (&ds)[kChannels]) {
    const A weight = kUpper ? 1 - sample.fraction_y : sample.fraction_y;
    const A weight_here = weight * (1 - sample.fraction_x) * sample.mask;
    const A weight_right = weight * sample.fraction_x * sample.mask;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      here_[i] += weight_here * ds[i];
      right_[i] += weight_right * ds[i];
    }
  }

  // The gradients for (dy, dx, mask) of a sample of the cell that the team is at.
  TF_DEFORMABLE_DEVICE void StorePointGradients(int32_t cell_y, int32_t cell_x,
                                                const CellSample<A>& sample, bool present,
                                                const A (&ds)[kChannels]) const {
    const bool has_row[2] = {cell_y >= 0, cell_y + 1 < g_.height};
    const bool has_column[2] = {cell_x >= 0, cell_x + 1 < g_.width};
    A dots[2][2];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      A dot = 0;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) dot += ds[i] * x_[j / 2][j % 2][i];
      // Corners off the map count as 0, even if ds is infinite.
      dots[j / 2][j % 2] = has_row[j / 2] && has_column[j % 2] ? dot : 0;
    }
    const PointGradients<A> of_point =
        MakePointGradients(sample.fraction_y, sample.fraction_x, sample.mask, dots[0][0],
                           dots[0][1], dots[1][0], dots[1][1]);
    const A sums[3] = {of_point.y, of_point.x, of_point.mask};
    const A sum = AddThree<kTeam>(sums, member_);
    const int which = member_ / (kTeam / 4);
    if (!present || member_ % (kTeam / 4) != 0 || which == 3) return;
    int64_t number = sample.row;  // among the listed ones
    if (g_.offset_groups > 1) {
      const int32_t pixel = sample.row / g_.taps, tap = sample.row - pixel * g_.taps;
      number =
          (static_cast<int64_t>(pixel) * g_.offset_groups + team_.offset_group) * g_.taps + tap;
    }
    const int64_t pixel_samples = static_cast<int64_t>(g_.offset_groups) * g_.taps;
    if (job_.partials != nullptr) {
      const int64_t in_range = number - job_.first_pixel * pixel_samples;
      job_.partials[(team_.range * job_.pixels * pixel_samples + in_range) * 3 + which] = sum;
      return;
    }
    const int64_t at = g_.first_pixel * pixel_samples + number;
    if (which < 2) {
      StoreSampling(tensors_.grad_offsets, 2 * at + which, sum);
    } else if (tensors_.grad_mask) {
      StoreSampling(tensors_.grad_mask, at, sum);
    }
  }

  const Convolution& g_;
  const BackwardTensors<T>& tensors_;
  const GatherJob<T>& job_;
  const GatherTeam& team_;
  int member_;             // of the team
  const CellList* lists_;  // of the map: an image and an offset group
  int64_t image_at_;       // of the inputs: the image's first pixel, the team's first channel
  A here_[kChannels], right_[kChannels];
  bool adds_here_ = false, adds_right_ = false;  // whether there is anything in them
  A x_[2][2][kChannels];                         // inputs at the corners of the cell
};

template <typename T, bool kVectors, bool kDepthwise, int kTeam>
TF_DEFORMABLE_KERNEL(kThreads, 2)
void GatherKernel(Convolution g, BackwardTensors<T> tensors, GatherJob<T> job) {
  const GatherTeam team = MakeGatherTeam<T, kTeam>(g, job);
  Gatherer<T, kVectors, kDepthwise, kTeam> gatherer(g, tensors, job, team);
  const bool has_cells = team.y < g.height, has_pixels = has_cells && team.y >= 0;
  // The pixel at a strip's first cell also gets something from the cell before.
  for (int32_t cell_x = team.first_x - 1; cell_x < team.last_x; ++cell_x) {
    const bool is_before = cell_x < team.first_x;
    gatherer.MoveTo(cell_x);
    gatherer.template AddCell<false, false>(team.y - 1, cell_x, has_pixels);
    if (is_before && !team.begins_row) {  // of the strip before
      gatherer.template AddCell<true, false>(team.y, cell_x, has_cells);
      continue;
    }
    gatherer.template AddCell<true, true>(team.y, cell_x, has_cells);
    if (!is_before && has_pixels) gatherer.StorePixel(cell_x);
  }
}

// Adds up the ranges of each offset group, in their order. One thread to a sample of the launch's
// pixels; those off the map have their gradients already.
template <typename T>
TF_DEFORMABLE_KERNEL(kThreads, 1)
void ReducePartialsKernel(Convolution g, BackwardTensors<T> tensors, const ComputeType<T>* partials,
                          int32_t ranges) {
  using A = ComputeType<T>;
  const int64_t i = BlockIndex() * kThreads + ThreadIndex();
  const int64_t samples = CountListedSamples(g);
  if (i >= samples) return;
  const ListedSample sample = MakeListedSample(g, i);
  const Offset<A> offset =
      LoadOffset(g, tensors.offsets, tensors.mask, sample.pixel, sample.offset_group, sample.tap);
  if (CellOf(g, sample, offset).corners == 0) return;
  A sums[3] = {};
  for (int32_t r = 0; r < ranges; ++r) {
#pragma unroll
    for (int k = 0; k < 3; ++k) sums[k] += partials[(r * samples + i) * 3 + k];
  }
  const int64_t at = g.first_pixel * g.offset_groups * g.taps + i;
  StoreSampling(tensors.grad_offsets, 2 * at, sums[0]);
  StoreSampling(tensors.grad_offsets, 2 * at + 1, sums[1]);
  if (tensors.grad_mask) StoreSampling(tensors.grad_mask, at, sums[2]);
}

}  // namespace tf_deformable::deformable_conv2d::cuda

#endif  // TF_DEFORMABLE_CC_KERNELS_DEFORMABLE_CONV2D_CUDA_GATHER_H_
