// multiscale_roi_align and its backward on the CPU.
//
// Separable: of each row of output cells, first the weighted sum of the rows of the map that it reads, over the columns
// that the box touches, then of that the weighted sums of columns. The points of an output cell that fall on the same
// feature cell are merged into one weight before, so that a cell is read once or twice instead of once for each point.
// Both sums are vector code over a block of channels. Where the columns are neighbours in memory (NCHW) the first sum
// runs over columns instead, and its result, which is small and in the first-level cache, is transposed; the maps never
// are. P: output cells along a side.
#include <algorithm>
#include <vector>

#include "common/vector_clones.h"
#include "multiscale_roi_align/multiscale_roi_align_cpu_kernel.h"
#include "multiscale_roi_align/multiscale_roi_align_cpu_sums.h"

namespace libra {
namespace {

// A box, ready to be pooled.
template <class T>
struct RoiPlan {
  int level = -1;  // none: the slot is empty
  RoiWeights<T> rows, columns;

  void make(const T* box, bool valid, const RoiRules& rules, const int* heights, const int* widths) {
    level = -1;
    if (!valid) return;
    const RoiBox<T> roi = finite_roi(box);
    level = roi_level(roi, rules);
    const T scale = static_cast<T>(rules.scale[level]);
    const int cells = rules.output_size, ratio = rules.sampling_ratio;
    rows.make(roi_axis(roi.y1, roi.y2, scale, heights[level], cells, ratio), cells);
    columns.make(roi_axis(roi.x1, roi.x2, scale, widths[level], cells, ratio), cells);
    if (rows.count == 0 || columns.count == 0) rows.count = columns.count = 0;
  }
};

struct RoiSizes {
  int heights[kRoiLevels], widths[kRoiLevels];

  template <class S>
  explicit RoiSizes(const RoiMaps<S>& maps, int levels) {
    for (int i = 0; i < levels; ++i) heights[i] = maps.level[i].height, widths[i] = maps.level[i].width;
  }
};

// A block of up to kRoiBlock channels of one box; map: of the image, at the block's first channel.
template <class S, class T = typename RoiNumber<S>::type>
LIBRA_VECTOR_CLONES void pool_block(const RoiMap<const S>& map, const RoiPlan<T>& plan, int cells, int channels,
                                    RoiScratch<T>& scratch, S* pooled) {
  for (int row = 0; row < cells; ++row) {
    sum_rows(map, plan.rows, row, plan.columns, channels, scratch);
    sum_columns(plan.columns, cells, scratch.sums.data(), scratch.cells.data() + row * cells * kRoiBlock);
  }
  transpose_out(scratch.cells.data(), cells * cells, channels, pooled);
}

template <class S, class T = typename RoiNumber<S>::type>
LIBRA_VECTOR_CLONES void spread_block(const S* gradient, const RoiPlan<T>& plan, int cells, int channels,
                                      RoiScratch<T>& scratch, const RoiMap<T>& map) {
  transpose_in(gradient, cells * cells, channels, scratch.cells.data());
  if (!map.channels_last()) {
    const RoiWindow window(plan.columns.first, plan.columns.count, map.width);
    std::fill_n(scratch.turned.data(), window.count * kRoiBlock, T(0));
  }
  for (int row = 0; row < cells; ++row) {
    if (plan.rows.begin[row] == plan.rows.begin[row + 1]) continue;
    spread_columns(plan.columns, cells, scratch.cells.data() + row * cells * kRoiBlock, scratch.sums.data());
    spread_rows(scratch, plan.rows, row, plan.columns, channels, map);
  }
}

template <class S>
RoiMap<S> block_of(const RoiMap<S>& map, int64_t image, int64_t channel) {
  RoiMap<S> block = map;
  block.data += image * map.image_stride + channel * map.channel_stride;
  return block;
}

template <class T>
void fill_block(const RoiMap<T>& map, int channels, T value) {
  for (int c = 0; c < (map.channels_last() ? 1 : channels); ++c) {
    for (int y = 0; y < map.height; ++y) {
      T* row = map.data + c * map.channel_stride + y * map.row_stride;
      if (!map.channels_last()) {
        std::fill_n(row, map.width, value);
        continue;
      }
      for (int x = 0; x < map.width; ++x) std::fill_n(row + x * map.column_stride, channels, value);
    }
  }
}

template <class S>
void round_block(const RoiMap<float>& sums, int channels, const RoiMap<S>& map) {
  for (int c = 0; c < channels; ++c) {
    for (int y = 0; y < map.height; ++y) {
      const float* from = sums.data + c * sums.channel_stride + y * sums.row_stride;
      S* to = map.data + c * map.channel_stride + y * map.row_stride;
      for (int x = 0; x < map.width; ++x) from_number(from[x * sums.column_stride], to[x * map.column_stride]);
    }
  }
}

// The gradients of a block of one map, from the boxes of its image in their order.
template <class S, class T = typename RoiNumber<S>::type>
void spread_boxes(const S* gradient, const RoiPlan<T>* plans, int level, int64_t slots, int64_t all_channels, int cells,
                  int channels, RoiScratch<T>& scratch, const RoiMap<T>& map) {
  fill_block(map, channels, T(0));
  for (int64_t slot = 0; slot < slots; ++slot) {
    const RoiPlan<T>& plan = plans[slot];
    if (plan.level != level || plan.rows.count == 0) continue;
    scratch.reserve(plan.columns.count, cells);
    spread_block(gradient + slot * all_channels * cells * cells, plan, cells, channels, scratch, map);
  }
}

}  // namespace

template <class S>
void multiscale_roi_align(const RoiMaps<const S>& maps, const typename RoiNumber<S>::type* boxes, const uint8_t* valid,
                          S* pooled, int64_t batch, int64_t slots, int64_t channels, const RoiRules& rules,
                          ParallelFor threads) {
  using T = typename RoiNumber<S>::type;
  const int cells = rules.output_size;
  const int64_t of_box = channels * cells * cells;
  const RoiSizes sizes(maps, rules.levels);
  parallel_for(threads, batch * slots, 1, [&](int64_t begin, int64_t end) {
    RoiPlan<T> plan;
    RoiScratch<T> scratch;
    for (int64_t i = begin; i < end; ++i) {
      plan.make(boxes + 4 * i, !valid || valid[i], rules, sizes.heights, sizes.widths);
      if (plan.level < 0 || plan.rows.count == 0) {
        std::fill_n(pooled + i * of_box, of_box, S{});
        continue;
      }
      scratch.reserve(plan.columns.count, cells);
      for (int64_t channel = 0; channel < channels; channel += kRoiBlock) {
        pool_block<S>(block_of(maps.level[plan.level], i / slots, channel), plan, cells,
                      static_cast<int>(std::min<int64_t>(kRoiBlock, channels - channel)), scratch,
                      pooled + i * of_box + channel * cells * cells);
      }
    }
  });
}

template <class S>
void multiscale_roi_align_backward(const S* gradient, const typename RoiNumber<S>::type* boxes, const uint8_t* valid,
                                   const RoiMaps<S>& grads, int64_t batch, int64_t slots, int64_t channels,
                                   const RoiRules& rules, ParallelFor threads) {
  using T = typename RoiNumber<S>::type;
  const int cells = rules.output_size;
  const RoiSizes sizes(grads, rules.levels);
  std::vector<RoiPlan<T>> plans(batch * slots);
  parallel_for(threads, batch * slots, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      plans[i].make(boxes + 4 * i, !valid || valid[i], rules, sizes.heights, sizes.widths);
    }
  });
  // A task is a block of channels of one map, so that each element has one owner, whatever the number of threads.
  const int64_t blocks = (channels + kRoiBlock - 1) / kRoiBlock;
  parallel_for(threads, batch * blocks * rules.levels, 1, [&](int64_t begin, int64_t end) {
    RoiScratch<T> scratch;
    for (int64_t task = begin; task < end; ++task) {
      const int level = static_cast<int>(task % rules.levels);
      if (!grads.level[level].data) continue;
      const int64_t image = task / rules.levels / blocks, channel = task / rules.levels % blocks * kRoiBlock;
      const int count = static_cast<int>(std::min<int64_t>(kRoiBlock, channels - channel));
      const RoiMap<S> map = block_of(grads.level[level], image, channel);
      const S* of_image = gradient + (image * slots * channels + channel) * cells * cells;
      const auto spread = [&](const RoiMap<T>& sums) {
        spread_boxes<S>(of_image, plans.data() + image * slots, level, slots, channels, cells, count, scratch, sums);
      };
      if constexpr (sizeof(S) == sizeof(T)) {
        spread(map);
      } else {
        const int64_t area = static_cast<int64_t>(map.height) * map.width;
        scratch.map.resize(area * kRoiBlock);
        const bool last = map.channels_last();
        const RoiMap<T> sums{scratch.map.data(),  map.height,
                             map.width,           0,
                             last ? 1 : area,     last ? static_cast<int64_t>(map.width) * kRoiBlock : map.width,
                             last ? kRoiBlock : 1};
        spread(sums);
        round_block(sums, count, map);
      }
    }
  });
}

#define LIBRA_ROI_ALIGN(S)                                                                                      \
  template void multiscale_roi_align<S>(const RoiMaps<const S>&, const RoiNumber<S>::type*, const uint8_t*, S*, \
                                        int64_t, int64_t, int64_t, const RoiRules&, ParallelFor);               \
  template void multiscale_roi_align_backward<S>(const S*, const RoiNumber<S>::type*, const uint8_t*,           \
                                                 const RoiMaps<S>&, int64_t, int64_t, int64_t, const RoiRules&, \
                                                 ParallelFor);
LIBRA_ROI_ALIGN(float)
LIBRA_ROI_ALIGN(double)
LIBRA_ROI_ALIGN(Half)
LIBRA_ROI_ALIGN(BFloat16)
#undef LIBRA_ROI_ALIGN

}  // namespace libra
