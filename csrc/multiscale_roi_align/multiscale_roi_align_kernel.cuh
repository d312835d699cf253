// multiscale_roi_align on the GPU; no torch headers. B images, S slots, C channels, P output cells along a side.
//
// A block pools up to kRoiChunk channels of one box. First a few threads make the lists of the feature cells that the
// output cells read along each axis, with the weights of all points on a cell merged (multiscale_roi_align_math.h), in
// shared memory. Then a thread sums a few channels of one output cell at a time: where the channels are neighbours in
// memory with one 16-byte load for each feature cell, its warp side by side over channels; otherwise one load for each
// channel, its warp side by side over output cells. The sums go through shared memory to 64 output cells at a time of
// each channel, which lie side by side in the result.
#pragma once

#include "common/cuda_compat.cuh"
#include "common/half.cuh"
#include "multiscale_roi_align/multiscale_roi_align_math.h"

namespace libra {

constexpr int kRoiThreads = 256;
constexpr int kRoiChunk = 64;       // channels of a block
constexpr int kRoiPass = 64;        // output cells in shared memory at a time
constexpr int kRoiMostOutput = 64;  // P
template <class T>
constexpr int kRoiBlocks = sizeof(T) == 8 ? 1 : 3;  // of a multiprocessor
constexpr int kRoiTaps = 256;                       // feature cells in a list

// The build keeps the compiler from fusing; here nothing is compared with the CPU bit for bit.
__device__ __forceinline__ float roi_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double roi_fma(double a, double b, double c) { return fma(a, b, c); }

// The feature cells that the output cells read along one axis.
template <class T>
struct RoiList {
  int begin[kRoiMostOutput + 1], count[kRoiMostOutput];
  int cell[kRoiTaps];
  T weight[kRoiTaps];
};

// At most as many feature cells does an output cell read.
template <class T>
__device__ __forceinline__ int roi_most_taps(const RoiAxis<T>& axis, int cell) {
  const RoiPoints points = roi_points(axis, cell, T(-1), static_cast<T>(axis.size));
  const int span = static_cast<int>(axis.bin < T(0) ? -axis.bin : axis.bin) + 3;
  int most = 2 * (points.end - points.begin);
  most = most < span ? most : span;
  most = most < axis.size ? most : axis.size;
  return most > 0 ? most : 0;
}

template <class T>
__device__ __forceinline__ void roi_fill_list(RoiList<T>& list, const RoiAxis<T>& axis, int cell) {
  const int begin = list.begin[cell];
  int end = begin;
  const RoiPoints points = roi_points(axis, cell, T(-1), static_cast<T>(axis.size));
  for (int i = points.begin; i < points.end; ++i) {
    // From low to high, also in an inverted box: the order that the merging below, and so the room, relies on.
    const int point = axis.bin < T(0) ? points.begin + points.end - 1 - i : i;
    RoiTap<T> tap;
    if (!roi_tap(axis, cell, point, tap)) continue;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int at = side ? tap.high : tap.low;
      const T weight = side ? tap.high_weight : tap.low_weight;
      // The cells of rising points rise: one that is there already is among the last two.
      if (end > begin && list.cell[end - 1] == at) {
        list.weight[end - 1] += weight;
      } else if (end > begin + 1 && list.cell[end - 2] == at) {
        list.weight[end - 2] += weight;
      } else {
        list.cell[end] = at;
        list.weight[end++] = weight;
      }
    }
  }
  list.count[cell] = end - begin;
}

// All threads of a block call it. False where the lists have no room; they are not made then.
template <class T>
__device__ __forceinline__ bool roi_make_lists(RoiList<T> (&lists)[2], const RoiAxis<T> (&axes)[2], int cells) {
  for (int i = threadIdx.x; i < 2 * cells; i += kRoiThreads) {
    lists[i / cells].begin[i % cells + 1] = roi_most_taps(axes[i / cells], i % cells);
  }
  __syncthreads();
  if (threadIdx.x < 2) {
    RoiList<T>& list = lists[threadIdx.x];
    list.begin[0] = 0;
    for (int cell = 0; cell < cells && list.begin[cell] <= kRoiTaps; ++cell) list.begin[cell + 1] += list.begin[cell];
  }
  __syncthreads();
  bool room = true;  // the sums stop where one is too large
  for (int axis = 0; axis < 2; ++axis) {
    for (int cell = 0; cell < cells && room; ++cell) room = lists[axis].begin[cell + 1] <= kRoiTaps;
  }
  if (room) {
    for (int i = threadIdx.x; i < 2 * cells; i += kRoiThreads) {
      roi_fill_list(lists[i / cells], axes[i / cells], i % cells);
    }
  }
  __syncthreads();
  return room;
}

// How a thread reads kCount channels of a feature cell: neighbours at a multiple of 16 bytes, or one by one.
template <bool kVectors, class S>
struct RoiReader {
  static constexpr int kCount = kVectors ? 16 / sizeof(S) : 4;
  static constexpr int kAhead = kVectors ? 4 : 2;  // feature cells asked for before the first is there
  using T = typename RoiNumber<S>::type;
  struct alignas(16) Pack {
    S value[kCount];
  };

  const S* first;
  int64_t channel_stride;
  int channels;  // that there are, of kCount

  __device__ __forceinline__ void add(T weight, int64_t offset, T (&sum)[kCount]) const {
    if constexpr (kVectors) {
      const Pack pack = *reinterpret_cast<const Pack*>(first + offset);
#pragma unroll
      for (int k = 0; k < kCount; ++k) sum[k] = roi_fma(weight, widen(pack.value[k]), sum[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (k < channels) sum[k] = roi_fma(weight, widen(first[offset + k * channel_stride]), sum[k]);
      }
    }
  }
};

// Sums of one output cell from the lists.
template <class S, class Reader, class T = typename RoiNumber<S>::type>
__device__ __forceinline__ void roi_sum_lists(const RoiMap<const S>& map, const RoiList<T> (&lists)[2], int row,
                                              int column, const Reader& reader, T (&sum)[Reader::kCount]) {
  const int first_y = lists[0].begin[row], count_y = lists[0].count[row];
  const int first_x = lists[1].begin[column], count_x = lists[1].count[column];
  for (int y = first_y; y < first_y + count_y; ++y) {
    T of_row[Reader::kCount] = {};
    const int64_t start = lists[0].cell[y] * map.row_stride;
#pragma unroll(Reader::kAhead)
    for (int x = first_x; x < first_x + count_x; ++x) {
      reader.add(lists[1].weight[x], start + lists[1].cell[x] * map.column_stride, of_row);
    }
#pragma unroll
    for (int k = 0; k < Reader::kCount; ++k) sum[k] = roi_fma(lists[0].weight[y], of_row[k], sum[k]);
  }
}

// The same point by point, for boxes so long or with so many points that the lists have no room.
template <class S, class Reader, class T = typename RoiNumber<S>::type>
__device__ __forceinline__ void roi_sum_points(const RoiMap<const S>& map, const RoiAxis<T> (&axes)[2], int row,
                                               int column, const Reader& reader, T (&sum)[Reader::kCount]) {
  const RoiPoints ys = roi_points(axes[0], row, T(-1), static_cast<T>(axes[0].size));
  const RoiPoints xs = roi_points(axes[1], column, T(-1), static_cast<T>(axes[1].size));
  // Twice as many steps as points: first the lower cell of a point, then the higher.
#pragma unroll 1
  for (int i = 2 * ys.begin; i < 2 * ys.end; ++i) {
    RoiTap<T> y;
    if (!roi_tap(axes[0], row, i / 2, y)) continue;
    const T weight = i % 2 ? y.high_weight : y.low_weight;
    const int64_t start = (i % 2 ? y.high : y.low) * map.row_stride;
#pragma unroll 1
    for (int j = 2 * xs.begin; j < 2 * xs.end; ++j) {
      RoiTap<T> x;
      if (!roi_tap(axes[1], column, j / 2, x)) continue;
      reader.add(weight * (j % 2 ? x.high_weight : x.low_weight), start + (j % 2 ? x.high : x.low) * map.column_stride,
                 sum);
    }
  }
}

// grid [boxes, chunks of channels], block [kRoiThreads]. kVectors: the channels of every map are neighbours, and those
// of a thread begin at a multiple of 16 bytes.
template <bool kVectors, class S, class T = typename RoiNumber<S>::type>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks<T>)
    multiscale_roi_align_kernel(const __grid_constant__ RoiMaps<const S> maps, const T* __restrict__ boxes,
                                const uint8_t* __restrict__ valid, S* __restrict__ pooled, int64_t slots, int channels,
                                const __grid_constant__ RoiRules rules) {
  using Reader = RoiReader<kVectors, S>;
  SHARED(int, level);
  SHARED(RoiAxis<T>, axes, [2]);
  SHARED(RoiList<T>, lists, [2]);
  SHARED(T, staged, [kRoiChunk * (kRoiPass + 1)]);
  const int64_t number = blockIdx.x;
  const int first_channel = blockIdx.y * kRoiChunk, cells = rules.output_size, area = cells * cells;
  const int count = channels - first_channel < kRoiChunk ? channels - first_channel : kRoiChunk;
  S* result = pooled + (number * channels + first_channel) * area;
  if (valid && !valid[number]) {
    for (int i = threadIdx.x; i < count * area; i += kRoiThreads) narrow(T(0), result[i]);
    return;
  }
  if (threadIdx.x == 0) {
    const RoiBox<T> box = finite_roi(boxes + 4 * number);
    level = roi_level(box, rules);
    const T scale = static_cast<T>(rules.scale[level]);
    axes[0] = roi_axis(box.y1, box.y2, scale, maps.level[level].height, cells, rules.sampling_ratio);
    axes[1] = roi_axis(box.x1, box.x2, scale, maps.level[level].width, cells, rules.sampling_ratio);
  }
  __syncthreads();
  const RoiMap<const S>& map = maps.level[level];
  const bool listed = roi_make_lists(lists, axes, cells);
  const S* first = map.data + number / slots * map.image_stride + first_channel * map.channel_stride;
  const int lanes = (count + Reader::kCount - 1) / Reader::kCount;
  for (int begin = 0; begin < area; begin += kRoiPass) {
    const int pass = area - begin < kRoiPass ? area - begin : kRoiPass;
    for (int i = threadIdx.x; i < lanes * pass; i += kRoiThreads) {
      const int lane = kVectors ? i % lanes : i / pass, cell = kVectors ? i / lanes : i % pass;
      const int channel = lane * Reader::kCount, row = (begin + cell) / cells, column = (begin + cell) % cells;
      const Reader reader{first + channel * map.channel_stride, map.channel_stride, count - channel};
      T sum[Reader::kCount] = {};
      if (listed) {
        roi_sum_lists<S>(map, lists, row, column, reader, sum);
      } else {
        roi_sum_points<S>(map, axes, row, column, reader, sum);
      }
#pragma unroll
      for (int k = 0; k < Reader::kCount; ++k) staged[(channel + k) * (kRoiPass + 1) + cell] = sum[k];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * pass; i += kRoiThreads) {
      const int channel = i / pass, cell = i % pass;
      narrow(staged[channel * (kRoiPass + 1) + cell], result[channel * area + begin + cell]);
    }
    __syncthreads();
  }
}

// boxes [batch, slots, 4]; valid [batch, slots] or null -> pooled [batch, slots, channels, P, P], written completely.
template <class S>
cudaError_t launch_multiscale_roi_align(const RoiMaps<const S>& maps, const typename RoiNumber<S>::type* boxes,
                                        const uint8_t* valid, S* pooled, int64_t batch, int64_t slots, int64_t channels,
                                        const RoiRules& rules, cudaStream_t stream) {
  if (batch * slots == 0 || channels == 0) return cudaSuccess;
  constexpr int kEach = 16 / sizeof(S);
  bool vectors = channels % kEach == 0;
  for (int level = 0; level < rules.levels; ++level) {
    const RoiMap<const S>& map = maps.level[level];
    vectors = vectors && map.channel_stride == 1 && map.image_stride % kEach == 0 && map.row_stride % kEach == 0 &&
              map.column_stride % kEach == 0 && reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
  }
  const dim3 grid(static_cast<unsigned>(batch * slots), static_cast<unsigned>((channels + kRoiChunk - 1) / kRoiChunk));
  const auto kernel = vectors ? multiscale_roi_align_kernel<true, S> : multiscale_roi_align_kernel<false, S>;
  return launch(kernel, grid, dim3(kRoiThreads), 0, stream, maps, boxes, valid, pooled, slots,
                static_cast<int>(channels), rules);
}

}  // namespace libra
