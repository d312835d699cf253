#include "guarded_memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

namespace emulation {
namespace {

constexpr unsigned char kBeside = 0xcb;  // a large negative number, as float and as int: reading it changes a result

const size_t kPage = size_t(sysconf(_SC_PAGESIZE));
std::vector<GuardedBlock*> blocks;  // by address
GuardedBlock* found_last;

char* inner_begin(const GuardedBlock& block) { return block.pages + kPage; }
char* inner_end(const GuardedBlock& block) { return block.pages + block.page_bytes - kPage; }
bool contains(const GuardedBlock& block, const char* address) {
  return address >= block.pages && address < block.pages + block.page_bytes;
}

}  // namespace

GuardedBlock* new_guarded_block(std::string name, size_t bytes, size_t alignment, size_t granule, bool shared) {
  const size_t inner = (bytes + alignment + kPage - 1) / kPage * kPage, whole = inner + 2 * kPage;
  void* pages = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) abort();
  auto* block =
      new GuardedBlock{std::move(name), bytes, nullptr, static_cast<char*>(pages), whole, granule, shared, nullptr};
  if (mprotect(inner_begin(*block), inner, PROT_READ | PROT_WRITE)) abort();
  memset(inner_begin(*block), kBeside, inner);
  block->data = inner_end(*block) - (bytes + alignment - 1) / alignment * alignment;
  block->records = static_cast<Record*>(calloc(bytes / granule + 1, sizeof(Record)));
  if (!block->records) abort();
  const auto after = [&](const GuardedBlock* other) { return other->pages > block->pages; };
  blocks.insert(std::find_if(blocks.begin(), blocks.end(), after), block);
  return block;
}

bool release_guarded_block(GuardedBlock* block) {
  const auto beside = [](char byte) { return static_cast<unsigned char>(byte) == kBeside; };
  const bool intact = std::all_of(inner_begin(*block), block->data, beside) &&
                      std::all_of(block->data + block->bytes, inner_end(*block), beside);
  blocks.erase(std::find(blocks.begin(), blocks.end(), block));
  found_last = nullptr;
  munmap(block->pages, block->page_bytes);
  free(block->records);
  delete block;
  return intact;
}

GuardedBlock* find_guarded_block(const void* pointer) {
  const char* address = static_cast<const char*>(pointer);
  if (found_last && contains(*found_last, address)) return found_last;
  const auto before = [](const char* wanted, const GuardedBlock* block) { return wanted < block->pages; };
  auto next = std::upper_bound(blocks.begin(), blocks.end(), address, before);
  if (next == blocks.begin() || !contains(**--next, address)) return nullptr;
  return found_last = *next;
}

std::string describe_address(const void* pointer) {
  const GuardedBlock* block = find_guarded_block(pointer);
  if (!block) return "an address that is far from every buffer";
  const std::string name = " of " + block->name + " (" + std::to_string(block->bytes) + " bytes)";
  const ptrdiff_t offset = static_cast<const char*>(pointer) - block->data;
  if (offset < 0) return std::to_string(-offset) + " bytes before the start" + name;
  if (offset >= ptrdiff_t(block->bytes)) return std::to_string(offset - block->bytes) + " bytes past the end" + name;
  return "byte " + std::to_string(offset) + name;
}

}  // namespace emulation

// For harness.py: a guarded copy of a tensor that a kernel reads, or reads and writes.
extern "C" void* emulation_place(const void* data, size_t bytes, size_t element_bytes, int writable, const char* name) {
  emulation::GuardedBlock* block =
      emulation::new_guarded_block(name, bytes, 16, std::min<size_t>(element_bytes, 4), /*shared=*/false);
  if (bytes) memcpy(block->data, data, bytes);
  if (!writable) mprotect(emulation::inner_begin(*block), block->page_bytes - 2 * emulation::kPage, PROT_READ);
  return block->data;
}

// Copies the data back where `data` is given, and frees the copy. Returns 0 where something was stored beside it.
extern "C" int emulation_take(void* placed, void* data) {
  emulation::GuardedBlock* block = emulation::find_guarded_block(placed);
  if (data && block->bytes) memcpy(data, placed, block->bytes);
  return emulation::release_guarded_block(block);
}
