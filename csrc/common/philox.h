// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random words from a counter.
//
// The counter is (candidate, image, 0, 0) and the key is the seed, so any thread of any device gives a candidate the
// same words, in any order, without state. One word is wanted at a time; compilers drop what only the others need.
#pragma once

#include <cstdint>

#include "common/cuda_compat.cuh"

namespace libra {

struct PhiloxWords {
  uint32_t word[4];
};

LIBRA_HOST_DEVICE PhiloxWords philox(uint32_t candidate, uint32_t image, uint64_t seed) {
  uint32_t c0 = candidate, c1 = image, c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(0xD2511F53u) * c0, product1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace libra
