// Looks for quotients that box_iou_quotient.h rounds otherwise than the division operator.
//
// It can only be wrong where a / b is almost in the middle between two floats. With the mantissas A and B as whole
// numbers of 24 bits, and M one of 25 bits that is odd (twice a middle), that is 2^s A - B M = r for a small r and s =
// 24 (A >= B) or 25: for each B and r, M is known modulo a power of two, and A from it.
#include "box_iou/box_iou_quotient.h"

namespace {

float neighbour(float value, int ulps) {
  return emulation::bit_cast<float>(emulation::bit_cast<uint32_t>(value) + static_cast<uint32_t>(ulps));
}

// Counts in wrong[k + 1] what goes wrong with the estimate k ulp off.
void check(float a, float b, int64_t* tried, int64_t* wrong) {
  ++*tried;
  for (int k = -1; k <= 1; ++k) wrong[k + 1] += libra::quotient_of(a, b, neighbour(1.0f / b, k)) != a / b;
}

}  // namespace

// All quotients with B in [first, last) and |r| <= 4 (more than what can go wrong).
extern "C" int run_hard_quotients(int64_t* tried, int64_t* wrong, int64_t first, int64_t last) {
  constexpr uint32_t kOne = 1u << 24;
  for (uint32_t b = static_cast<uint32_t>(first); b < last; ++b) {
    const int twos = __builtin_ctz(b);
    const uint32_t odd = b >> twos;
    uint32_t inverse = 1;  // of `odd` modulo 2^32, by Newton's method
    for (int i = 0; i < 5; ++i) inverse *= 2 - odd * inverse;
    for (int s = 24; s <= 25; ++s) {
      for (int r = -4; r <= 4; ++r) {
        if (r == 0 || r % (1 << (twos < 3 ? twos : 3)) != 0 || twos > 2) continue;
        const uint64_t modulus = uint64_t{1} << (s - twos);
        const uint32_t middle = static_cast<uint32_t>(-(r / (1 << twos))) * inverse;
        for (uint64_t m = middle & (modulus - 1); m < 2 * kOne; m += modulus) {
          const int64_t scaled = static_cast<int64_t>(b * m) + r, a = scaled >> s;
          if (m < kOne || m % 2 == 0 || scaled != a << s || a < kOne / 2 || a >= kOne) continue;
          check(static_cast<float>(a), static_cast<float>(b), tried, wrong);
        }
      }
    }
  }
  return 0;
}

// The numbers of `a` and `b`, in pairs.
extern "C" int run_quotients(const float* a, const float* b, int64_t* tried, int64_t* wrong, int64_t n) {
  for (int64_t i = 0; i < n; ++i) check(a[i], b[i], tried, wrong);
  return 0;
}
