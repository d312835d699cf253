// Finds races, and reads of shared memory that nobody wrote. The drivers are compiled with -fsanitize=thread, which
// makes the compiler call a function at every access to memory; instead of the sanitizer's own runtime, which knows OS
// threads, these functions are below. They look at tensors and shared memory only.
//
// The record of a granule keeps the last store and the last read; readers (and atomic updates) of one interval between
// barriers are summed up as "several lanes of a warp" or "several warps".
#include "guarded_memory.h"
#include "scheduler.h"

namespace emulation {
namespace {

enum class AccessKind { kRead, kStore, kAtomic };

constexpr uint16_t kLanesOfWarp = 1024, kSeveralWarps = 2048;  // Access::who: a thread, kLanesOfWarp + warp, or this

uint32_t epoch, launch_epoch, block_epoch;  // now, and of the first interval of this launch and block
uint32_t warp_epochs[32];                   // __syncwarp calls

int warp_of(uint16_t who) { return who < kLanesOfWarp ? who / 32 : who < kSeveralWarps ? who - kLanesOfWarp : -1; }

bool unordered(const Access& before, int self, bool shared) {
  if (before.epoch < (shared ? block_epoch : launch_epoch)) return false;  // each block has shared memory of its own
  if (before.epoch < block_epoch) return true;                             // another block
  if (before.epoch < epoch || before.who == self) return false;
  return warp_of(before.who) != self / 32 || before.warp_epoch == warp_epochs[self / 32];
}

void report(const char* what, const Access& before, const char* verb, const void* address,
            const void* program_counter) {
  std::string who = "another block";
  if (before.epoch >= block_epoch)
    who = before.who >= kSeveralWarps  ? "threads of several warps"
          : before.who >= kLanesOfWarp ? "lanes of warp " + std::to_string(before.who - kLanesOfWarp)
                                       : "thread " + text(threads[before.who].index);
  fail("race: " + std::string(what) + " " + describe_address(address) + ", which " + who + " " + verb +
           " with no barrier between",
       program_counter);
}

// The access now, and with it those of other threads in this interval that are of the same kind as `before`.
Access access_now(int self, bool atomic, const Access* before) {
  Access now = {epoch, warp_epochs[self / 32], uint16_t(self), atomic};
  if (!before || before->epoch != epoch || before->who == self) return now;
  if (warp_of(before->who) != self / 32)
    now.who = kSeveralWarps;
  else if (before->warp_epoch == now.warp_epoch)
    now.who = uint16_t(kLanesOfWarp + self / 32);
  return now;
}

void note(GuardedBlock& block, size_t offset, AccessKind kind, const void* program_counter) {
  Record& record = block.records[offset / block.granule];
  const int self = current;
  const char* address = block.data + offset;
  const bool atomic = kind == AccessKind::kAtomic;
  if (block.shared && kind != AccessKind::kStore && record.store.epoch < block_epoch)
    fail("reads " + describe_address(address) + " before anything is stored there", program_counter);
  if (unordered(record.store, self, block.shared) && !(atomic && record.store.atomic))
    report(kind == AccessKind::kRead ? "reads" : "stores to", record.store, "stored", address, program_counter);
  if (kind != AccessKind::kRead) {
    if (unordered(record.read, self, block.shared)) report("stores to", record.read, "read", address, program_counter);
    record.store = access_now(self, atomic, atomic && record.store.atomic ? &record.store : nullptr);
  } else {
    record.read = access_now(self, false, &record.read);
  }
}

}  // namespace

void order_launch() { launch_epoch = ++epoch; }
void order_block() { block_epoch = ++epoch; }
void order_barrier() { ++epoch; }
void order_warp(int warp) { ++warp_epochs[warp]; }

void note_access(const void* pointer, size_t bytes, AccessKind kind, const void* program_counter) {
  if (current < 0) return;
  GuardedBlock* block = find_guarded_block(pointer);
  if (!block) return;  // a thread's own memory
  const char* address = static_cast<const char*>(pointer);
  if (address < block->data || address + bytes > block->data + block->bytes)
    fail("access outside of memory: " + describe_address(address < block->data ? address : block->data + block->bytes),
         program_counter);
  for (size_t done = 0; done < bytes; done += block->granule)
    note(*block, size_t(address - block->data) + done, kind, program_counter);
}

void note_atomic(const void* address, size_t bytes) {
  note_access(address, bytes, AccessKind::kAtomic, __builtin_return_address(0));
}

}  // namespace emulation

extern "C" {
#define EMULATION_HOOK(name, bytes, kind)                                                             \
  void name(void* address) {                                                                          \
    emulation::note_access(address, bytes, emulation::AccessKind::kind, __builtin_return_address(0)); \
  }
#define EMULATION_HOOKS(bytes)                                \
  EMULATION_HOOK(__tsan_read##bytes, bytes, kRead)            \
  EMULATION_HOOK(__tsan_write##bytes, bytes, kStore)          \
  EMULATION_HOOK(__tsan_volatile_read##bytes, bytes, kRead)   \
  EMULATION_HOOK(__tsan_volatile_write##bytes, bytes, kStore) \
  EMULATION_HOOK(__tsan_unaligned_read##bytes, bytes, kRead)  \
  EMULATION_HOOK(__tsan_unaligned_write##bytes, bytes, kStore)
EMULATION_HOOKS(1)
EMULATION_HOOKS(2)
EMULATION_HOOKS(4)
EMULATION_HOOKS(8)
EMULATION_HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) {
  emulation::note_access(address, bytes, emulation::AccessKind::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  emulation::note_access(address, bytes, emulation::AccessKind::kStore, __builtin_return_address(0));
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
}
