// What a loss makes of its elements' values.
#pragma once

#include <cstdint>

namespace libra {

enum class Reduction : int64_t { kNone = 0, kSum = 1, kMean = 2 };

}  // namespace libra
