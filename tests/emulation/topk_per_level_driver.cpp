// The GPU's topk_per_level in the emulation: the launch function of topk_per_level_cuda.cu, for float32 and bfloat16.
#include "topk_per_level/topk_per_level_kernel.cuh"

namespace {

libra::TopkPlan make_plan(const int64_t* level_sizes, int64_t levels, int64_t k, int64_t lowest) {
  return libra::TopkPlan::make(libra::Levels::make(level_sizes, static_cast<int>(levels), k),
                               static_cast<uint32_t>(lowest));
}

template <class F>
int run(const typename F::Bits* scores, const int64_t* level_sizes, int64_t images, int64_t levels, int64_t k,
        int64_t lowest, uint32_t* counters, libra::TopkState* states, uint64_t* list, uint32_t* lengths,
        typename F::Bits* values, int64_t* index) {
  return libra::launch_topk_per_level<F>(scores, images, make_plan(level_sizes, levels, k, lowest),
                                         {counters, states, list, lengths}, values, index, nullptr);
}

}  // namespace

extern "C" int64_t topk_passes() { return libra::kPasses; }
extern "C" int64_t topk_buckets() { return libra::kBuckets; }

// What an image takes of the workspace: [open levels, candidates on its lists].
extern "C" int topk_room(const int64_t* level_sizes, int64_t* room, int64_t levels, int64_t k) {
  const libra::TopkPlan plan = make_plan(level_sizes, levels, k, 0);
  room[0] = plan.open_levels, room[1] = plan.listed();
  return 0;
}

extern "C" int run_topk_float32(const uint32_t* scores, const int64_t* level_sizes, int64_t images, int64_t levels,
                                int64_t k, int64_t lowest, uint32_t* counters, libra::TopkState* states, uint64_t* list,
                                uint32_t* lengths, uint32_t* values, int64_t* index) {
  return run<libra::Float32Format>(scores, level_sizes, images, levels, k, lowest, counters, states, list, lengths,
                                   values, index);
}

extern "C" int run_topk_bfloat16(const uint16_t* scores, const int64_t* level_sizes, int64_t images, int64_t levels,
                                 int64_t k, int64_t lowest, uint32_t* counters, libra::TopkState* states,
                                 uint64_t* list, uint32_t* lengths, uint16_t* values, int64_t* index) {
  return run<libra::BFloat16Format>(scores, level_sizes, images, levels, k, lowest, counters, states, list, lengths,
                                    values, index);
}
