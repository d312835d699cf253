// How scores are compared, and which places the best of each level get.
//
// A score becomes a 32-bit key that ascends with it: 0 for NaN, the same for both zeros. Nothing is computed with the
// score itself, so the 16-bit floats are compared as they lie in memory. A candidate is one 64-bit number, which
// ascends from the best to the worst: the key's complement above, the position in the level below.
#pragma once

#include <cstdint>

#include "common/cuda_compat.cuh"

namespace libra {

constexpr int kMaxLevels = 16;
constexpr int64_t kMaxLevelSize = int64_t(1) << 31;
constexpr int64_t kMaxTake = int64_t(1) << 30;

// Floats of one format by their bits: an unsigned integer of their width, and the bits of their infinity.
template <class Bits_, uint32_t kInfinityBits>
struct Format {
  using Bits = Bits_;
  static constexpr int kShift = 32 - 8 * static_cast<int>(sizeof(Bits));
  static constexpr uint32_t kInfinity = kInfinityBits << kShift;
};
using Float32Format = Format<uint32_t, 0x7f800000u>;
using Float16Format = Format<uint16_t, 0x7c00u>;
using BFloat16Format = Format<uint16_t, 0x7f80u>;

constexpr uint32_t kSign = 0x80000000u;

// Of bits that stand at the upper end of the word. Only a NaN has a key of 0.
template <class F>
LIBRA_HOST_DEVICE uint32_t key_of(typename F::Bits score) {
  uint32_t bits = static_cast<uint32_t>(score) << F::kShift;
  if ((bits & ~kSign) > F::kInfinity) return 0;
  bits = bits == kSign ? 0 : bits;
  return bits ^ (bits & kSign ? ~0u : kSign);
}

template <class F>
constexpr typename F::Bits kMinusInfinity = static_cast<typename F::Bits>((F::kInfinity | kSign) >> F::kShift);

LIBRA_HOST_DEVICE uint64_t candidate_of(uint32_t key, uint32_t position) { return uint64_t(~key) << 32 | position; }
LIBRA_HOST_DEVICE uint32_t key_in(uint64_t candidate) { return ~static_cast<uint32_t>(candidate >> 32); }
LIBRA_HOST_DEVICE uint32_t position_in(uint64_t candidate) { return static_cast<uint32_t>(candidate); }

// Where each level begins in the scores [N] and in the results [T] of an image; one more entry for the end.
struct Levels {
  int count;
  int64_t first[kMaxLevels + 1], slot[kMaxLevels + 1];

  static Levels make(const int64_t* sizes, int count, int64_t k) {
    Levels levels{count, {}, {}};
    for (int level = 0; level < count; ++level) {
      levels.first[level + 1] = levels.first[level] + sizes[level];
      levels.slot[level + 1] = levels.slot[level] + (sizes[level] < k ? sizes[level] : k);
    }
    return levels;
  }
  LIBRA_HOST_DEVICE int64_t size(int level) const { return first[level + 1] - first[level]; }
  LIBRA_HOST_DEVICE int64_t take(int level) const { return slot[level + 1] - slot[level]; }
};

}  // namespace libra
