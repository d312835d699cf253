// What both backends of sample_iou_balanced check and allocate.
#pragma once

#include <optional>
#include <tuple>

#include "common/allocate.h"
#include "common/tensor.h"
#include "sample_iou_balanced/sample_iou_balanced_math.h"

namespace libra {

struct SampleArguments {
  Tensor index, iou, state;  // contiguous [B, N]
  Tensor seed;               // [1]
  int64_t images, candidates;
  SampleOptions options;

  static SampleArguments check(const Tensor& index, const Tensor& iou, const Tensor& state, const Tensor& seed,
                               int64_t num_samples, int64_t max_positives, int64_t num_bins, double low, double high,
                               std::optional<double> max_negatives_per_positive, bool instance_balanced,
                               bool published) {
    check_dtype(index, ScalarType::Long, "index");
    check_dtype(iou, ScalarType::Float, "iou");
    check_dtype(state, ScalarType::Char, "state");
    check_dtype(seed, ScalarType::Long, "seed");
    check_dim(index, 2, "index");
    check_like(iou, index, "iou");
    check_like(state, index, "state");
    check_same_device(seed, index, "seed");
    STD_TORCH_CHECK(seed.numel() == 1, "seed: expected one element, got ", seed.numel());
    STD_TORCH_CHECK(index.size(1) <= kMaxCandidates, "index: expected at most 2^30 candidates, got ", index.size(1));
    STD_TORCH_CHECK(index.size(0) <= INT32_MAX, "index: expected at most 2^31 - 1 images, got ", index.size(0));
    STD_TORCH_CHECK(num_samples >= 0 && num_samples <= kMaxCandidates, "num_samples: expected 0 to 2^30, got ",
                    num_samples);
    STD_TORCH_CHECK(max_positives >= 0 && max_positives <= num_samples, "max_positives: expected 0 to num_samples (",
                    num_samples, "), got ", max_positives);
    STD_TORCH_CHECK(num_bins >= 1 && num_bins <= kMaxBins, "num_bins: expected 1 to ", kMaxBins, ", got ", num_bins);
    STD_TORCH_CHECK(low < high, "interval: expected low < high, got ", low, ", ", high);
    const double most = max_negatives_per_positive.value_or(-1);
    STD_TORCH_CHECK(!max_negatives_per_positive || most >= 0, "max_negatives_per_positive: expected at least 0, got ",
                    most);
    return {make_contiguous(index),
            make_contiguous(iou, 4),
            make_contiguous(state, 1),
            seed,
            index.size(0),
            index.size(1),
            {static_cast<int>(num_samples), static_cast<int>(max_positives), static_cast<int>(num_bins), low, high,
             most, instance_balanced, published}};
  }

  // index, valid, positive [B, S], not filled
  std::tuple<Tensor, Tensor, Tensor> outputs() const {
    const int64_t samples = options.num_samples;
    return {make_empty(index, {images, samples}), make_empty(index, {images, samples}, ScalarType::Bool),
            make_empty(index, {images, samples}, ScalarType::Bool)};
  }

 private:
  static void check_like(const Tensor& tensor, const Tensor& index, const char* name) {
    check_same_device(tensor, index, name);
    check_dim(tensor, 2, name);
    check_size(tensor, 0, index.size(0), name);
    check_size(tensor, 1, index.size(1), name);
  }
};

}  // namespace libra
