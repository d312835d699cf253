// What both backends of multiscale_roi_align check and allocate.
#pragma once

#include <optional>
#include <vector>

#include "common/allocate.h"
#include "common/tensor.h"
#include "multiscale_roi_align/multiscale_roi_align_math.h"

namespace libra {

// How a map [B, C, H, W] lies, strides in elements: kernels read and write those whose columns or channels are
// neighbours.
struct RoiLayout {
  int64_t height, width, image, channel, row, column;

  template <class S>
  RoiMap<S> map(S* data) const {
    return {data, static_cast<int>(height), static_cast<int>(width), image, channel, row, column};
  }
};

// What both directions take.
struct RoiAlignArguments {
  Tensor boxes;                 // [B, S, 4] contiguous, float32, or float64 for features of that type
  std::optional<Tensor> valid;  // [B, S] bool, contiguous
  RoiRules rules;
  int64_t batch, slots;

  // like: of the features' dtype and device.
  static RoiAlignArguments check(const Tensor& like, const char* name, int64_t levels, const Tensor& boxes,
                                 const std::optional<Tensor>& valid, const std::vector<double>& strides,
                                 int64_t output_size, int64_t sampling_ratio, double finest_scale) {
    STD_TORCH_CHECK(static_cast<int64_t>(strides.size()) == levels, "strides: expected ", levels, " numbers, got ",
                    strides.size());
    STD_TORCH_CHECK(output_size >= 1 && output_size <= 64, "output_size: expected 1 to 64, got ", output_size);
    STD_TORCH_CHECK(sampling_ratio >= 0 && sampling_ratio <= 64, "sampling_ratio: expected 0 to 64, got ",
                    sampling_ratio);
    STD_TORCH_CHECK(finest_scale > 0, "finest_scale: expected a number > 0, got ", finest_scale);
    check_dim(boxes, 3, "boxes");
    check_size(boxes, 2, 4, "boxes");
    const ScalarType dtype = like.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                        dtype == ScalarType::BFloat16,
                    name, ": expected a floating dtype, got ", dtype);
    check_dtype(boxes, dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float, "boxes");
    check_same_device(boxes, like, "boxes");
    RoiAlignArguments result{make_contiguous(boxes), std::nullopt, {}, boxes.size(0), boxes.size(1)};
    if (valid) {
      check_dtype(*valid, ScalarType::Bool, "valid");
      check_same_device(*valid, boxes, "valid");
      check_dim(*valid, 2, "valid");
      check_size(*valid, 0, result.batch, "valid");
      check_size(*valid, 1, result.slots, "valid");
      result.valid = make_contiguous(*valid, 1);
    }
    for (int64_t level = 0; level < levels; ++level) {
      STD_TORCH_CHECK(strides[level] > 0, "strides: expected numbers > 0, got ", strides[level]);
      result.rules.scale[level] = 1 / strides[level];
    }
    result.rules.levels = static_cast<int>(levels);
    result.rules.output_size = static_cast<int>(output_size);
    result.rules.sampling_ratio = static_cast<int>(sampling_ratio);
    result.rules.finest_scale = finest_scale;
    return result;
  }

  static void check_levels(int64_t levels, const char* name) {
    STD_TORCH_CHECK(levels >= 1 && levels <= kRoiLevels, name, ": expected 1 to ", kRoiLevels, " maps, got ", levels);
  }
  static void check_sides(int64_t height, int64_t width, const char* name) {
    STD_TORCH_CHECK(height >= 1 && width >= 1 && height < kRoiMostCells && width < kRoiMostCells, name,
                    ": expected maps of 1 to ", kRoiMostCells - 1, " cells a side, got ", height, " x ", width);
  }

  // Bytes: foreign memory may have a true of any bits.
  const uint8_t* valid_data() const { return valid ? read<uint8_t>(*valid) : nullptr; }
};

struct RoiAlignForward : RoiAlignArguments {
  std::vector<Tensor> features;  // that kernels can read
  std::vector<RoiLayout> layouts;
  int64_t channels;

  static RoiAlignForward check(const std::vector<Tensor>& features, const Tensor& boxes,
                               const std::optional<Tensor>& valid, const std::vector<double>& strides,
                               int64_t output_size, int64_t sampling_ratio, double finest_scale) {
    const int64_t levels = static_cast<int64_t>(features.size());
    check_levels(levels, "features");
    RoiAlignForward result{RoiAlignArguments::check(features[0], "features", levels, boxes, valid, strides, output_size,
                                                    sampling_ratio, finest_scale),
                           {},
                           {},
                           0};
    for (const Tensor& map : features) {
      check_dim(map, 4, "features");
      check_dtype(map, features[0].scalar_type(), "features");
      check_same_device(map, features[0], "features");
      check_size(map, 0, result.batch, "features");
      check_size(map, 1, features[0].size(1), "features");
      check_sides(map.size(2), map.size(3), "features");
      result.features.push_back(readable(map));
      result.layouts.push_back(layout_of(result.features.back()));
    }
    result.channels = features[0].size(1);
    return result;
  }

  template <class S>
  RoiMaps<const S> maps() const {
    RoiMaps<const S> maps{};
    for (size_t level = 0; level < features.size(); ++level)
      maps.level[level] = layouts[level].map(read<S>(features[level]));
    return maps;
  }

  Tensor make_pooled() const {
    const int64_t size = rules.output_size;
    return make_empty(features[0], {batch, slots, channels, size, size});
  }

 private:
  // As it lies, or a copy where no kernel can read that.
  static Tensor readable(const Tensor& map) {
    const RoiLayout layout = layout_of(map);
    const bool aligned = reinterpret_cast<uintptr_t>(map.const_data_ptr()) % map.element_size() == 0;
    if (!aligned) return torch::stable::clone(map);  // which keeps the order of dense maps
    return layout.column != 1 && layout.channel != 1 ? torch::stable::contiguous(map) : map;
  }

  // Of a dimension with one place the stride is whatever suits.
  static RoiLayout layout_of(const Tensor& map) {
    RoiLayout layout{map.size(2), map.size(3), map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
    if (layout.width == 1 && layout.channel != 1) layout.column = 1;
    return layout;
  }
};

// Nothing of the features but their sizes and how they lay.
struct RoiAlignBackward : RoiAlignArguments {
  Tensor gradient;                 // [B, S, C, P, P] of d loss / d pooled, contiguous
  std::vector<Tensor> gradients;   // of the maps that are wanted, not filled
  std::vector<RoiLayout> layouts;  // of all maps
  std::vector<int64_t> wanted;     // their numbers
  int64_t channels;

  static RoiAlignBackward check(const Tensor& grad, const Tensor& boxes, const std::optional<Tensor>& valid,
                                const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
                                const std::vector<bool>& channels_last, const std::vector<bool>& wanted,
                                const std::vector<double>& strides, int64_t output_size, int64_t sampling_ratio,
                                double finest_scale) {
    const int64_t levels = static_cast<int64_t>(heights.size());
    check_levels(levels, "heights");
    STD_TORCH_CHECK(widths.size() == heights.size(), "widths: expected ", levels, ", got ", widths.size());
    STD_TORCH_CHECK(channels_last.size() == heights.size(), "channels_last: expected ", levels, ", got ",
                    channels_last.size());
    STD_TORCH_CHECK(wanted.size() == heights.size(), "wanted: expected ", levels, ", got ", wanted.size());
    RoiAlignBackward result{RoiAlignArguments::check(grad, "grad", levels, boxes, valid, strides, output_size,
                                                     sampling_ratio, finest_scale),
                            grad,
                            {},
                            {},
                            {},
                            0};
    check_dim(grad, 5, "grad");
    check_size(grad, 0, result.batch, "grad");
    check_size(grad, 1, result.slots, "grad");
    check_size(grad, 3, output_size, "grad");
    check_size(grad, 4, output_size, "grad");
    result.gradient = make_contiguous(grad);
    result.channels = grad.size(2);
    for (int64_t level = 0; level < levels; ++level) {
      check_sides(heights[level], widths[level], "heights, widths");
      result.layouts.push_back(dense(result.channels, heights[level], widths[level], channels_last[level]));
      if (!wanted[level]) continue;
      const RoiLayout& layout = result.layouts.back();
      result.wanted.push_back(level);
      result.gradients.push_back(make_strided(grad, {result.batch, result.channels, layout.height, layout.width},
                                              {layout.image, layout.channel, layout.row, layout.column}));
    }
    return result;
  }

  // Null where the gradient is not wanted.
  template <class S>
  RoiMaps<S> maps() {
    RoiMaps<S> maps{};
    for (size_t level = 0; level < layouts.size(); ++level)
      maps.level[level] = layouts[level].map(static_cast<S*>(nullptr));
    for (size_t i = 0; i < wanted.size(); ++i) maps.level[wanted[i]].data = write<S>(gradients[i]);
    return maps;
  }

 private:
  static RoiLayout dense(int64_t channels, int64_t height, int64_t width, bool channels_last) {
    const int64_t image = channels * height * width;
    return channels_last ? RoiLayout{height, width, image, 1, width * channels, channels}
                         : RoiLayout{height, width, image, height * width, width, 1};
  }
};

}  // namespace libra
