// The backward of multiscale_roi_align on the GPU; no torch headers. S slots, C channels, P output cells along a side.
//
// Every element of the gradients has one owner, which sums over the boxes in their order: no atomic addition, nothing
// to be cleared before, and the same bits in every run. A block owns 8 x 8 cells of one map for kRoiChunk channels, a
// thread one column of them and two channels. The block looks at all boxes of its image, a box for each thread; those
// that reach its cells get into a list in shared memory, in order. For each of them the weights of the rows and columns
// of the tile are made, the incoming gradient of the channels is fetched, and a thread adds, for each row of output
// cells, its sum over output columns to its eight rows.
#pragma once

#include "common/block_scan.cuh"
#include "multiscale_roi_align/multiscale_roi_align_kernel.cuh"

namespace libra {

constexpr int kRoiTile = 8;    // cells along a side
constexpr int kRoiEach = 2;    // channels of a thread
constexpr int kRoiBatch = 32;  // boxes made ready at a time
static_assert(kRoiTile * kRoiChunk / kRoiEach == kRoiThreads, "a thread for each column and two channels");

// The tiles of all maps are numbered level by level, image by image.
struct RoiTiles {
  int64_t begin[kRoiLevels + 1];
};

// The output cells [begin, end) of an axis that may reach the feature cells [first, first + kRoiTile).
template <class T>
__device__ __forceinline__ RoiPoints roi_cells_near(const RoiAxis<T>& axis, int first, int cells) {
  if (axis.points <= 0) return {0, 0};
  if (!(axis.bin > T(0))) return {0, cells};
  constexpr T kSpare = T(1) / T(64);  // for roundings
  const T low = (static_cast<T>(first - 1) - kSpare - axis.start) / axis.bin;
  const T high = (static_cast<T>(first + kRoiTile) + kSpare - axis.start) / axis.bin;
  const T most = static_cast<T>(cells);
  return {low > T(0) ? static_cast<int>(low < most ? low : most) : 0,
          high >= T(0) ? static_cast<int>(high < most - T(1) ? high : most - T(1)) + 1 : 0};
}

// The weight of feature cell `at` in an output cell.
template <class T>
__device__ __forceinline__ T roi_weight(const RoiAxis<T>& axis, int cell, int at) {
  const RoiPoints points = roi_points(axis, cell, static_cast<T>(at - 1), static_cast<T>(at + 1));
  T weight = T(0);
  for (int point = points.begin; point < points.end; ++point) {
    RoiTap<T> tap;
    if (!roi_tap(axis, cell, point, tap)) continue;
    if (tap.low == at) weight += tap.low_weight;
    if (tap.high == at) weight += tap.high_weight;
  }
  return weight;
}

// Which box of a slot reaches a tile, and with which output cells.
template <class T>
struct RoiReach {
  RoiAxis<T> y, x;
  RoiPoints rows, columns;

  __device__ __forceinline__ bool find(const T* box_memory, int level, int height, int width, int row, int column,
                                       const RoiRules& rules) {
    const RoiBox<T> box = finite_roi(box_memory);
    if (roi_level(box, rules) != level) return false;
    const T scale = static_cast<T>(rules.scale[level]);
    y = roi_axis(box.y1, box.y2, scale, height, rules.output_size, rules.sampling_ratio);
    x = roi_axis(box.x1, box.x2, scale, width, rules.output_size, rules.sampling_ratio);
    rows = roi_cells_near(y, row, rules.output_size);
    columns = roi_cells_near(x, column, rules.output_size);
    return rows.begin < rows.end && columns.begin < columns.end;
  }
};

template <class T>
struct RoiTileShared {
  int list[kRoiThreads];  // of slots
  RoiReach<T> reach[kRoiBatch];
  T rows[kRoiMostOutput][kRoiTile], columns[kRoiMostOutput][kRoiTile];
  T gradient[kRoiChunk][kRoiPass + 1];
};

// grid [tiles, chunks of channels], block [kRoiThreads]. kChannelsLast: whether a warp stands side by side over
// channels or over columns. gradient [B, S, C, P, P].
template <bool kChannelsLast, class S, class T = typename RoiNumber<S>::type>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks<T>)
    multiscale_roi_align_backward_kernel(const S* __restrict__ gradient, const T* __restrict__ boxes,
                                         const uint8_t* __restrict__ valid, const __grid_constant__ RoiMaps<S> grads,
                                         const __grid_constant__ RoiTiles tiles, int64_t slots, int channels,
                                         const __grid_constant__ RoiRules rules) {
  SHARED(RoiTileShared<T>, shared);
  int level = 0;
  while (blockIdx.x >= tiles.begin[level + 1]) ++level;
  const RoiMap<S>& map = grads.level[level];
  const int across = (map.width + kRoiTile - 1) / kRoiTile, down = (map.height + kRoiTile - 1) / kRoiTile;
  const int64_t tile = blockIdx.x - tiles.begin[level], image = tile / (across * down);
  const int row = static_cast<int>(tile / across % down) * kRoiTile;
  const int column = static_cast<int>(tile % across) * kRoiTile;
  const int first_channel = blockIdx.y * kRoiChunk, cells = rules.output_size, area = cells * cells;
  const int count = channels - first_channel < kRoiChunk ? channels - first_channel : kRoiChunk;
  constexpr int kLanes = kRoiChunk / kRoiEach;
  const int own_column = kChannelsLast ? threadIdx.x / kLanes : threadIdx.x % kRoiTile;
  const int own_channel = kChannelsLast ? threadIdx.x % kLanes : threadIdx.x / kRoiTile;  // and kLanes further on
  const int rows_at_a_time = kRoiPass / cells;
  T sum[kRoiEach][kRoiTile] = {};
  for (int64_t begin = 0; begin < slots; begin += kRoiThreads) {
    const int64_t slot = begin + threadIdx.x, number = image * slots + slot;
    RoiReach<T> own;
    const bool reaches = slot < slots && (!valid || valid[number]) &&
                         own.find(boxes + 4 * number, level, map.height, map.width, row, column, rules);
    int listed;
    const int place = block_exclusive_sum<kRoiThreads>(reaches ? 1 : 0, listed);
    if (reaches) shared.list[place] = static_cast<int>(threadIdx.x);
    __syncthreads();
    for (int i = 0; i < listed; ++i) {
      if (i % kRoiBatch == 0) {  // all wait for the box before to be done
        const int other = i + static_cast<int>(threadIdx.x);
        if (threadIdx.x < kRoiBatch && other < listed) {
          shared.reach[threadIdx.x].find(boxes + 4 * (image * slots + begin + shared.list[other]), level, map.height,
                                         map.width, row, column, rules);
        }
        __syncthreads();
      }
      const RoiReach<T>& reach = shared.reach[i % kRoiBatch];  // not read after the last barrier of this box
      const RoiPoints near_rows = reach.rows, near_columns = reach.columns;
      const int64_t box = image * slots + begin + shared.list[i];
      const S* incoming = gradient + (box * channels + first_channel) * area;
      const int columns = near_columns.end - near_columns.begin;
      for (int first = near_rows.begin; first < near_rows.end; first += rows_at_a_time) {
        const int last = first + rows_at_a_time < near_rows.end ? first + rows_at_a_time : near_rows.end;
        for (int k = threadIdx.x; k < (last - first) * kRoiTile; k += kRoiThreads) {
          shared.rows[k / kRoiTile][k % kRoiTile] = roi_weight(reach.y, first + k / kRoiTile, row + k % kRoiTile);
        }
        // The last threads, so that both kinds of weights are made at a time.
        for (int k = kRoiThreads - 1 - threadIdx.x; k < columns * kRoiTile; k += kRoiThreads) {
          shared.columns[k / kRoiTile][k % kRoiTile] =
              roi_weight(reach.x, near_columns.begin + k / kRoiTile, column + k % kRoiTile);
        }
        const int each = (last - first) * cells;
        for (int k = threadIdx.x; k < count * each; k += kRoiThreads) {
          shared.gradient[k / each][k % each] = widen(incoming[k / each * area + first * cells + k % each]);
        }
        __syncthreads();
        for (int cell_row = 0; cell_row < last - first; ++cell_row) {
          T across_columns[kRoiEach] = {};
          for (int k = 0; k < columns; ++k) {
            const T weight = shared.columns[k][own_column];
            if (weight == T(0)) continue;
            const int at = cell_row * cells + near_columns.begin + k;
#pragma unroll
            for (int e = 0; e < kRoiEach; ++e) {
              if (own_channel + e * kLanes < count) {
                across_columns[e] = roi_fma(weight, shared.gradient[own_channel + e * kLanes][at], across_columns[e]);
              }
            }
          }
#pragma unroll
          for (int r = 0; r < kRoiTile; ++r) {
            const T weight = shared.rows[cell_row][r];
            if (weight == T(0)) continue;  // of a cell not read, which gets no NaN either
#pragma unroll
            for (int e = 0; e < kRoiEach; ++e) sum[e][r] = roi_fma(weight, across_columns[e], sum[e][r]);
          }
        }
        __syncthreads();  // before the next box's weights
      }
    }
    __syncthreads();  // before the next list
  }
  if (column + own_column >= map.width) return;
  S* to = map.data + image * map.image_stride + (column + own_column) * map.column_stride;
#pragma unroll
  for (int e = 0; e < kRoiEach; ++e) {
    const int channel = own_channel + e * kLanes;
    if (channel >= count) continue;
#pragma unroll
    for (int r = 0; r < kRoiTile; ++r) {
      if (row + r >= map.height) break;
      narrow(sum[e][r], to[(first_channel + channel) * map.channel_stride + (row + r) * map.row_stride]);
    }
  }
}

// gradient [batch, slots, channels, P, P] -> grads, written completely; null data where one is not wanted.
template <class S>
cudaError_t launch_multiscale_roi_align_backward(const S* gradient, const typename RoiNumber<S>::type* boxes,
                                                 const uint8_t* valid, const RoiMaps<S>& grads, int64_t batch,
                                                 int64_t slots, int64_t channels, const RoiRules& rules,
                                                 cudaStream_t stream) {
  if (batch == 0 || channels == 0) return cudaSuccess;
  RoiTiles tiles{};
  bool channels_last = true;
  for (int level = 0; level < rules.levels; ++level) {
    const RoiMap<S>& map = grads.level[level];
    tiles.begin[level + 1] = tiles.begin[level];
    if (!map.data) continue;
    const int64_t across = (map.width + kRoiTile - 1) / kRoiTile, down = (map.height + kRoiTile - 1) / kRoiTile;
    tiles.begin[level + 1] += batch * across * down;
    channels_last = channels_last && map.channel_stride == 1;
  }
  if (tiles.begin[rules.levels] == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(tiles.begin[rules.levels]),
                  static_cast<unsigned>((channels + kRoiChunk - 1) / kRoiChunk));
  const auto kernel =
      channels_last ? multiscale_roi_align_backward_kernel<true, S> : multiscale_roi_align_backward_kernel<false, S>;
  return launch(kernel, grid, dim3(kRoiThreads), 0, stream, gradient, boxes, valid, grads, tiles, slots,
                static_cast<int>(channels), rules);
}

}  // namespace libra
