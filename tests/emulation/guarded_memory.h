// Memory that begins after a page nobody may touch and ends at another, so that the first access past its end stops the
// kernel. What alignment leaves free beside the data is checked for stores when it is released. Each granule of it (the
// size of one element) has a record of who stored and read it last, for races.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulation {

struct Access {
  uint32_t epoch;  // interval between two barriers of a block; 0: never
  uint32_t warp_epoch;
  uint16_t who;  // a thread of the block, or several: see races.cpp
  bool atomic;
};
struct Record {
  Access store, read;
};

struct GuardedBlock {
  std::string name;
  size_t bytes;
  char* data;
  char* pages;  // the mapping with its two guard pages
  size_t page_bytes;
  size_t granule;
  bool shared;
  Record* records;  // one for each granule
};

// `alignment` is 16 at most; a block whose size is a multiple of it ends right at the guard page.
GuardedBlock* new_guarded_block(std::string name, size_t bytes, size_t alignment, size_t granule, bool shared);
// False where something was stored beside the data.
bool release_guarded_block(GuardedBlock* block);
// The block whose pages an address lies in, guard pages included; null where there is none.
GuardedBlock* find_guarded_block(const void* address);
// Where an address lies, in words.
std::string describe_address(const void* address);

}  // namespace emulation
