// topk_per_level on the CPU, for whoever has pointers.
#pragma once

#include "common/parallel.h"
#include "topk_per_level/topk_per_level_math.h"

namespace libra {

// scores [images, N], values and index [images, T]: N and T as `levels` ends. Candidates have a key of at least
// `lowest`; slots that none is left for get `nothing` and the level's first position.
template <class F>
void topk_per_level(const typename F::Bits* scores, int64_t images, const Levels& levels, uint32_t lowest,
                    typename F::Bits nothing, typename F::Bits* values, int64_t* index, ParallelFor threads);

}  // namespace libra
