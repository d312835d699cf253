// What both backends of topk_per_level check and allocate.
#pragma once

#include <cmath>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/allocate.h"
#include "common/float16.h"
#include "common/tensor.h"
#include "topk_per_level/topk_per_level_math.h"

namespace libra {

struct TopkArguments {
  Tensor scores;  // contiguous [B, N]
  int64_t images;
  Levels levels;
  std::optional<double> threshold;

  static TopkArguments check(const Tensor& scores, const std::vector<int64_t>& level_sizes, int64_t k,
                             std::optional<double> threshold) {
    const ScalarType type = scores.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
                    "scores: expected dtype float32, float16 or bfloat16, got ", type);
    check_dim(scores, 2, "scores");
    STD_TORCH_CHECK(scores.size(0) <= INT32_MAX, "scores: expected at most 2^31 - 1 images, got ", scores.size(0));
    STD_TORCH_CHECK(level_sizes.size() <= kMaxLevels, "level_sizes: expected at most ", kMaxLevels, " levels, got ",
                    level_sizes.size());
    STD_TORCH_CHECK(k >= 0 && k <= kMaxTake, "k: expected 0 to 2^30, got ", k);
    STD_TORCH_CHECK(!threshold || !std::isnan(*threshold), "threshold: expected a number, got NaN");
    int64_t sum = 0;
    for (const int64_t size : level_sizes) {
      STD_TORCH_CHECK(size >= 0 && size <= kMaxLevelSize, "level_sizes: expected 0 to 2^31 scores, got ", size);
      sum += size;
    }
    STD_TORCH_CHECK(sum == scores.size(1), "level_sizes: expected a sum of ", scores.size(1),
                    " (size of scores in dimension 1), got ", sum);
    return {make_contiguous(scores, type == ScalarType::Float ? 4 : 2), scores.size(0),
            Levels::make(level_sizes.data(), static_cast<int>(level_sizes.size()), k), threshold};
  }

  // values, index [B, T], not filled
  std::tuple<Tensor, Tensor> outputs() const {
    const int64_t slots = levels.slot[levels.count];
    return {make_empty(scores, {images, slots}), make_empty(scores, {images, slots}, ScalarType::Long)};
  }

  // The lowest key that a candidate may have: above that of the threshold, which is rounded as PyTorch rounds the
  // number of scores > number, by way of float32.
  template <class F>
  uint32_t lowest() const {
    if (!threshold) return 0;
    NumberOf<F> number;
    from_number(static_cast<float>(*threshold), number);
    return key_of<F>(bits_as<typename F::Bits>(number)) + 1;
  }

 private:
  template <class F>
  using NumberOf = std::conditional_t<std::is_same_v<F, Float32Format>, float,
                                      std::conditional_t<std::is_same_v<F, Float16Format>, Half, BFloat16>>;
};

// f(format) for the format of the scores.
template <class Function>
void with_format(ScalarType type, const Function& f) {
  if (type == ScalarType::Float) {
    f(Float32Format{});
  } else if (type == ScalarType::Half) {
    f(Float16Format{});
  } else {
    f(BFloat16Format{});
  }
}

}  // namespace libra
