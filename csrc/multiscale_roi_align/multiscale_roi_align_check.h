// What both backends of multiscale_roi_align check and allocate.
#pragma once

#include <optional>
#include <vector>

#include "common/allocate.h"
#include "common/tensor.h"
#include "multiscale_roi_align/multiscale_roi_align_math.h"

namespace libra {

// The strides of a map [B, C, H, W] that kernels can read as they are: columns or channels are neighbours.
struct RoiLayout {
  int64_t image, channel, row, column;
};

struct RoiAlignArguments {
  std::vector<Tensor> features;
  std::vector<RoiLayout> layouts;
  Tensor boxes;                 // [B, S, 4] contiguous, float32, or float64 for features of that type
  std::optional<Tensor> valid;  // [B, S] bool, contiguous
  RoiRules rules;
  int64_t batch, slots, channels;

  static RoiAlignArguments check(const std::vector<Tensor>& features, const Tensor& boxes,
                                 const std::optional<Tensor>& valid, const std::vector<double>& strides,
                                 int64_t output_size, int64_t sampling_ratio, double finest_scale) {
    const int64_t levels = static_cast<int64_t>(features.size());
    STD_TORCH_CHECK(levels >= 1 && levels <= kRoiLevels, "features: expected 1 to ", kRoiLevels, " maps, got ", levels);
    STD_TORCH_CHECK(static_cast<int64_t>(strides.size()) == levels, "strides: expected ", levels, " numbers, got ",
                    strides.size());
    STD_TORCH_CHECK(output_size >= 1 && output_size <= 64, "output_size: expected 1 to 64, got ", output_size);
    STD_TORCH_CHECK(sampling_ratio >= 0 && sampling_ratio <= 64, "sampling_ratio: expected 0 to 64, got ",
                    sampling_ratio);
    STD_TORCH_CHECK(finest_scale > 0, "finest_scale: expected a number > 0, got ", finest_scale);
    check_dim(boxes, 3, "boxes");
    check_size(boxes, 2, 4, "boxes");
    const ScalarType dtype = features[0].scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                        dtype == ScalarType::BFloat16,
                    "features: expected a floating dtype, got ", dtype);
    check_dtype(boxes, dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float, "boxes");
    RoiAlignArguments result{{}, {}, make_contiguous(boxes), std::nullopt, {}, boxes.size(0), boxes.size(1), 0};
    check_same_device(boxes, features[0], "boxes");
    if (valid) {
      check_dtype(*valid, ScalarType::Bool, "valid");
      check_same_device(*valid, boxes, "valid");
      check_dim(*valid, 2, "valid");
      check_size(*valid, 0, result.batch, "valid");
      check_size(*valid, 1, result.slots, "valid");
      result.valid = make_contiguous(*valid, 1);
    }
    for (int64_t level = 0; level < levels; ++level) {
      const Tensor& map = features[level];
      check_dim(map, 4, "features");
      check_dtype(map, dtype, "features");
      check_same_device(map, features[0], "features");
      check_size(map, 0, result.batch, "features");
      if (level == 0) result.channels = map.size(1);
      check_size(map, 1, result.channels, "features");
      STD_TORCH_CHECK(
          map.size(2) >= 1 && map.size(3) >= 1 && map.size(2) < kRoiMostCells && map.size(3) < kRoiMostCells,
          "features: expected maps of 1 to ", kRoiMostCells, " cells a side");
      STD_TORCH_CHECK(strides[level] > 0, "strides: expected numbers > 0, got ", strides[level]);
      result.rules.scale[level] = 1 / strides[level];
    }
    result.features = features;
    result.rules.levels = static_cast<int>(levels);
    result.rules.output_size = static_cast<int>(output_size);
    result.rules.sampling_ratio = static_cast<int>(sampling_ratio);
    result.rules.finest_scale = finest_scale;
    return result;
  }

  // Finds out how the maps lie, and copies those that no kernel can read.
  void make_readable() {
    for (Tensor& map : features) {
      const RoiLayout layout = layout_of(map);
      const bool aligned = reinterpret_cast<uintptr_t>(map.const_data_ptr()) % map.element_size() == 0;
      if (!aligned) {
        map = torch::stable::clone(map);  // which keeps the order of dense maps
      } else if (layout.column != 1 && layout.channel != 1) {
        map = torch::stable::contiguous(map);
      }
      layouts.push_back(layout_of(map));
    }
  }

  // The maps as kernels see them, after make_readable().
  template <class S>
  RoiMaps<const S> maps() const {
    RoiMaps<const S> maps{};
    for (size_t level = 0; level < features.size(); ++level)
      maps.level[level] = map_at(level, read<S>(features[level]));
    return maps;
  }
  // Of what make_gradients() returned.
  template <class S>
  RoiMaps<S> gradient_maps(std::vector<Tensor>& gradients) const {
    RoiMaps<S> maps{};
    for (size_t level = 0; level < gradients.size(); ++level)
      maps.level[level] = map_at(level, write<S>(gradients[level]));
    return maps;
  }
  // Bytes: foreign memory may have a true of any bits.
  const uint8_t* valid_data() const { return valid ? read<uint8_t>(*valid) : nullptr; }

  Tensor make_pooled() const {
    const int64_t size = rules.output_size;
    return make_empty(features[0], {batch, slots, channels, size, size});
  }

  // [B, S, C, P, P] of d loss / d pooled
  Tensor check_gradient(const Tensor& gradient) const {
    check_dtype(gradient, features[0].scalar_type(), "grad");
    check_same_device(gradient, features[0], "grad");
    check_dim(gradient, 5, "grad");
    const int64_t sizes[] = {batch, slots, channels, rules.output_size, rules.output_size};
    for (int dim = 0; dim < 5; ++dim) check_size(gradient, dim, sizes[dim], "grad");
    return make_contiguous(gradient);
  }

  // A gradient for each map: channels-last where the map is, else contiguous.
  std::vector<Tensor> make_gradients() {
    std::vector<Tensor> gradients;
    for (const Tensor& map : features) {
      const int64_t rows = map.size(2), columns = map.size(3);
      RoiLayout layout{channels * rows * columns, rows * columns, columns, 1};
      if (is_channels_last(map)) layout = {channels * rows * columns, 1, columns * channels, channels};
      gradients.push_back(make_strided(map, {batch, channels, rows, columns},
                                       {layout.image, layout.channel, layout.row, layout.column}));
      layouts.push_back(layout);
    }
    return gradients;
  }

 private:
  template <class S>
  RoiMap<S> map_at(size_t level, S* data) const {
    const RoiLayout& layout = layouts[level];
    return {data,
            static_cast<int>(features[level].size(2)),
            static_cast<int>(features[level].size(3)),
            layout.image,
            layout.channel,
            layout.row,
            layout.column};
  }

  // Of a dimension with one place the stride is whatever suits.
  static RoiLayout layout_of(const Tensor& map) {
    RoiLayout layout{map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
    if (map.size(3) == 1 && layout.channel != 1) layout.column = 1;
    return layout;
  }

  // Contiguous in the order of channels_last, and not contiguous as it is.
  static bool is_channels_last(const Tensor& map) {
    if (map.is_contiguous()) return false;
    int64_t expected = 1;
    for (const int dim : {1, 3, 2, 0}) {
      if (map.size(dim) == 1) continue;
      if (map.stride(dim) != expected) return false;
      expected *= map.size(dim);
    }
    return true;
  }
};

}  // namespace libra
