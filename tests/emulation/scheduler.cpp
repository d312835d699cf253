// Grids, blocks and their barriers, and the order in which threads go on. The loop of run_block runs on the host's
// stack; every wait of a CUDA thread comes back to it.
#include "scheduler.h"

#include <algorithm>
#include <vector>

#include "guarded_memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {

struct SharedSlot {
  GuardedBlock* memory;
  uint64_t block_serial;  // of the block that poisoned it last
};

Thread threads[kMaxThreads];
int thread_count, live_count, current = -1;
unsigned returned[kMaxThreads / 32];
std::string error;

namespace {

enum class Order { kForward, kReverse, kRandom };
constexpr int kWords = kMaxThreads / 64;
constexpr size_t kMaxSharedBytes = 48 << 10;  // what every GPU gives a block without being asked for more

Order order = Order::kForward;
uint64_t random_state = 1;

Fiber host;
std::vector<Fiber*> all_fibers, idle_fibers;

uint64_t ready[kWords];  // a bit for each thread that can go on
int at_barrier_count;
Place barrier_place;  // of those who wait
BarrierVote vote;     // of the barrier that was passed last

uint64_t block_serial, shared_bytes_used;
GuardedBlock* dynamic_memory;  // none in a launch without
void (*kernel_body)(void*);
void* kernel_argument;

uint64_t random_number() {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state >> 16;
}

// A mark of the order, so that whoever reads shared memory before writing it meets a large negative number, a large
// positive one and NaN in turn (as an integer: negative, positive, -1).
int poison() { return order == Order::kForward ? 0xcb : order == Order::kReverse ? 0x4b : 0xff; }

void release_barrier() {
  vote = {0, 1, 0};
  for (int i = 0; i < thread_count; ++i) {
    if (threads[i].state != State::kAtBarrier) continue;
    vote.any |= threads[i].value != 0;
    vote.all &= threads[i].value != 0;
    vote.count += threads[i].value != 0;
    set_ready(i);
  }
  at_barrier_count = 0;
  order_barrier();
}

void fiber_main() {
  for (;;) {  // a fiber runs one CUDA thread after another
    kernel_body(kernel_argument);
    idle_fibers.push_back(threads[current].fiber);
    // A thread that has returned holds no barrier up.
    returned[current / 32] |= 1u << current % 32;
    if (--live_count && at_barrier_count == live_count) release_barrier();
    wait(State::kReturned);
  }
}

Fiber* take_fiber() {
  if (idle_fibers.empty()) {
    all_fibers.push_back(new_fiber(fiber_main));
    return all_fibers.back();
  }
  Fiber* fiber = idle_fibers.back();
  idle_fibers.pop_back();
  return fiber;
}

int pick() {  // the thread that goes on, or -1
  const int words = (thread_count + 63) / 64;
  if (order == Order::kForward) {
    for (int i = 0; i < words; ++i)
      if (ready[i]) return i * 64 + __builtin_ctzll(ready[i]);
  } else if (order == Order::kReverse) {
    for (int i = words - 1; i >= 0; --i)
      if (ready[i]) return i * 64 + 63 - __builtin_clzll(ready[i]);
  } else {  // the next one from a random place on
    const int start = int(random_number() % thread_count);
    const uint64_t from_start = ready[start / 64] >> start % 64 << start % 64;
    if (from_start) return start / 64 * 64 + __builtin_ctzll(from_start);
    for (int i = 1; i <= words; ++i) {
      const int word = (start / 64 + i) % words;
      if (ready[word]) return word * 64 + __builtin_ctzll(ready[word]);
    }
  }
  return -1;
}

void run_block() {
  for (int i = 0; i < thread_count; ++i) {
    threads[i] = Thread{};
    threads[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    set_ready(i);
  }
  begin_warps();
  std::fill(returned, returned + kMaxThreads / 32, 0);
  live_count = thread_count;
  at_barrier_count = 0;
  for (int next = pick(); next >= 0; next = pick()) {
    Thread& thread = threads[current = next];
    if (!thread.fiber) thread.fiber = take_fiber();
    threadIdx = thread.index;
    switch_fiber(host, *thread.fiber);
    current = -1;
    if (!error.empty()) return;
  }
  if (live_count) report_deadlock();
}

void use_shared(size_t bytes, const char* name) {
  shared_bytes_used += bytes;
  if (shared_bytes_used > kMaxSharedBytes)
    fail(std::string("shared memory of a block is more than 48 KiB with ") + name);
}

}  // namespace

void set_ready(int thread) {
  threads[thread].state = State::kReady;
  ready[thread / 64] |= uint64_t(1) << thread % 64;
}

void go_to_host() { switch_fiber(*threads[current].fiber, host); }

void wait(State state) {
  threads[current].state = state;
  ready[current / 64] &= ~(uint64_t(1) << current % 64);
  go_to_host();
}

void preempt() {
  if (order == Order::kRandom && random_number() % 4 == 0) go_to_host();
}

void* static_shared(SharedSlot*& slot, size_t bytes, size_t alignment, size_t granule, const char* name) {
  if (!slot) {
    const std::string full_name = std::string("shared variable ") + name;
    slot = new SharedSlot{new_guarded_block(full_name, bytes, alignment, granule, /*shared=*/true), 0};
  }
  if (slot->block_serial != block_serial) {
    slot->block_serial = block_serial;
    use_shared(bytes, name);
    memset(slot->memory->data, poison(), bytes);
  }
  return slot->memory->data;
}

void* dynamic_shared() {
  if (!dynamic_memory) fail("DYN_SHARED in a kernel that was launched with 0 bytes of it");
  return dynamic_memory->data;
}

BarrierVote block_barrier(bool predicate, Place place) {
  Thread& self = threads[current];
  self.place = place;
  self.value = predicate;
  if (!at_barrier_count) barrier_place = place;
  if (!same(barrier_place, place))
    fail("threads of the block wait at different barriers, one at " + text(barrier_place));
  if (++at_barrier_count < live_count) {
    wait(State::kAtBarrier);
  } else {
    self.state = State::kAtBarrier;
    release_barrier();
    go_to_host();  // the order says which of the threads goes on first
  }
  return vote;
}

cudaError_t run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* argument) {
  const uint64_t count = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (count < 1 || count > kMaxThreads || block.z > 64 || blocks < 1 || grid.x > 0x7fffffff || grid.y > 65535 ||
      grid.z > 65535 || shared_bytes > kMaxSharedBytes) {
    error = "invalid launch: grid " + text(uint3{grid.x, grid.y, grid.z}) + ", block " +
            text(uint3{block.x, block.y, block.z}) + ", " + std::to_string(shared_bytes) +
            " bytes of dynamic shared memory";
    return cudaErrorInvalidConfiguration;
  }
  if (!error.empty()) return cudaErrorLaunchFailure;  // an earlier launch failed, as on a device
  kernel_body = body;
  kernel_argument = argument;
  blockDim = block;
  gridDim = grid;
  thread_count = int(count);
  // Granules of one byte: kernels lay out values of several types in it.
  dynamic_memory =
      shared_bytes ? new_guarded_block("dynamic shared memory", shared_bytes, 16, 1, /*shared=*/true) : nullptr;
  order_launch();
  // Random order of blocks: steps of a fixed length that shares no factor with their number.
  uint64_t step = 1, first = 0;
  if (order == Order::kRandom) {
    first = random_number() % blocks;
    const auto shares_factor = [&](uint64_t a, uint64_t b) {
      while (b) std::swap(a %= b, b);
      return a > 1;
    };
    do step = 1 + random_number() % blocks;
    while (shares_factor(step, blocks));
  }
  SignalGuard signals;
  for (uint64_t i = 0; i < blocks && error.empty(); ++i) {
    const uint64_t linear = order == Order::kReverse ? blocks - 1 - i : (first + i * step) % blocks;
    blockIdx = {unsigned(linear % grid.x), unsigned(linear / grid.x % grid.y), unsigned(linear / grid.x / grid.y)};
    ++block_serial;
    shared_bytes_used = 0;
    if (dynamic_memory) {
      use_shared(shared_bytes, "dynamic shared memory");
      memset(dynamic_memory->data, poison(), shared_bytes);
    }
    order_block();
    run_block();
  }
  if (dynamic_memory && !release_guarded_block(dynamic_memory) && error.empty())
    fail("stores just past the end of dynamic shared memory (" + std::to_string(shared_bytes) + " bytes)");
  if (error.empty()) return cudaSuccess;
  std::fill(ready, ready + kWords, 0);
  idle_fibers = all_fibers;
  for (Fiber* fiber : all_fibers) restart_fiber(*fiber, fiber_main);
  return cudaErrorLaunchFailure;
}

}  // namespace emulation

// For harness.py.
extern "C" void emulation_begin(int order, uint64_t seed) {  // forgets an earlier error
  emulation::order = emulation::Order(order);
  emulation::random_state = seed * 0x9e3779b97f4a7c15 | 1;
  emulation::error.clear();
}
