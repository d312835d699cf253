// The passes over an image's candidates, in vector code: groups and their sizes, and which candidates can be among the
// smallest of their group. A pass works on blocks of 512, whose scratch stays in L1.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/vector_clones.h"
#include "sample_iou_balanced/sample_iou_balanced_cpu_words.h"
#include "sample_iou_balanced/sample_iou_balanced_math.h"

namespace libra {
namespace {

constexpr int kBlock = 512;

// Candidates [begin, end) of an image; begin is a multiple of kBlock.
struct Part {
  int64_t begin, end;
};

LIBRA_VECTOR_CLONES
float max_iou(const float* iou, Part part) {
  constexpr int kLanes = 32;
  float lanes[kLanes], result = -INFINITY;
  for (float& lane : lanes) lane = result;
  int64_t i = part.begin;
  for (; i + kLanes <= part.end; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = iou[i + lane] > lanes[lane] ? iou[i + lane] : lanes[lane];
  for (; i < part.end; ++i) result = std::max(result, iou[i]);
  for (const float lane : lanes) result = std::max(result, lane);
  return result;
}

// How many candidates each group has.
struct GroupCounts {
  int64_t of[kMaxGroups];
};

// Sets group[begin..end), and what the last block lacks to 512 to `ignored`. Returns the part's counts.
LIBRA_VECTOR_CLONES
GroupCounts find_groups(const float* iou, const signed char* state, const float* edges, Part part,
                        const SampleOptions& options_in, uint8_t* group) {
  const SampleOptions options = options_in;  // a copy that stores to `group` cannot change
  const float first = edges[0], last = edges[options.num_bins];
  GroupCounts counts = {};
  for (int64_t start = part.begin; start < part.end; start += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, part.end - start));
    int bin[kBlock] = {};
    for (int k = 1; k < options.num_bins; ++k)
      for (int i = 0; i < count; ++i) bin[i] += iou[start + i] >= edges[k];
    for (int i = 0; i < count; ++i)
      group[start + i] =
          static_cast<uint8_t>(candidate_group(bin[i], iou[start + i], state[start + i], first, last, options));
    for (int i = count; i < kBlock; ++i) group[start + i] = static_cast<uint8_t>(options.ignored());
    for (int g = 0; g < options.ignored(); ++g) {
      constexpr int kLanes = 64;
      uint8_t lanes[kLanes] = {};
      for (int i = 0; i < kBlock; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += group[start + i + lane] == g;
      int sum = 0;
      for (const int lane : lanes) sum += lane;
      counts.of[g] += sum;
    }
  }
  return counts;
}

LIBRA_VECTOR_CLONES
void mark_group(uint8_t* group, int64_t n, uint8_t from, uint8_t mark) {
  for (int64_t i = 0; i < n; ++i) group[i] = group[i] == from ? mark : group[i];
}

// What a pass looks for: candidates of some groups that can be among the smallest, by their first word within their
// group, and by their second word among all.
struct Query {
  struct Limit {
    int group;
    uint32_t most;  // the largest first word that is looked for; none if there is no quota
    bool any;
  };
  bool of_positives = false;  // words 2 and 3 instead of 0 and 1
  std::vector<Limit> groups;
  bool any_second = false;
  uint32_t most_second = 0;
  int64_t candidates = 0;  // of these groups
};

// Composites of what a query found; any order.
struct Found {
  std::vector<uint64_t> first, second;
};

// Adds bits to hits [kBlock] for candidates of a group: `bit_first` where the first word is within the group's limit,
// `bit_second` where the second is. With masks in place of conditions, since compilers make branches of nested ones.
LIBRA_VECTOR_CLONES
void add_hits(Query::Limit limit, int32_t bit_second, uint32_t most_second, const int32_t* group, const uint32_t* first,
              const uint32_t* second, int32_t* hits) {
  const int32_t bit_first = limit.any ? 1 : 0;
  for (int i = 0; i < kBlock; ++i) {
    const int32_t bits = (-(first[i] <= limit.most) & bit_first) | (-(second[i] <= most_second) & bit_second);
    hits[i] |= bits & -(group[i] == limit.group);
  }
}

LIBRA_VECTOR_CLONES
void list_all(const uint8_t* group, int64_t start, uint32_t* list, int32_t* groups) {
  for (int i = 0; i < kBlock; ++i) {
    list[i] = static_cast<uint32_t>(start) + i;
    groups[i] = group[start + i];
  }
}

// The block's candidates of the query's groups, in order. Returns how many.
LIBRA_VECTOR_CLONES
int list_wanted(const Query& query, const uint8_t* group, int64_t start, uint32_t* list, int32_t* groups) {
  alignas(8) uint8_t wanted[kBlock] = {};
  for (const Query::Limit& limit : query.groups) {
    const uint8_t g = static_cast<uint8_t>(limit.group);
    for (int i = 0; i < kBlock; ++i) wanted[i] |= group[start + i] == g;
  }
  int count = 0;
  for (int i = 0; i < kBlock; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, wanted + i, 8);
    if (eight == 0) continue;
    for (int j = i; j < i + 8; ++j) {
      list[count] = static_cast<uint32_t>(start) + j;
      groups[count] = group[start + j];
      count += wanted[j];
    }
  }
  std::fill(groups + count, groups + kBlock, -1);
  return count;
}

// all: so many candidates are wanted that words are computed for every one.
inline void find(const Query& query, bool all, const uint8_t* group, Part part, WordsOf words, Found& found) {
  uint32_t list[kBlock + 1], first[kBlock], second[kBlock];
  int32_t groups[kBlock + 1];  // one more each, written where a list is made without a branch
  int32_t hits[kBlock];        // bit 0: the first word is within its limit; bit 1: the second is
  uint64_t in_first[kBlock + 1], in_second[kBlock + 1];
  for (int64_t start = part.begin; start < part.end; start += kBlock) {
    int count = kBlock;
    if (all) {
      list_all(group, start, list, groups);
    } else {
      count = list_wanted(query, group, start, list, groups);
    }
    random_words(list, count, words, first, second);
    std::memset(hits, 0, sizeof hits);
    for (const Query::Limit& limit : query.groups) {
      add_hits(limit, query.any_second ? 2 : 0, query.most_second, groups, first, second, hits);
    }
    int firsts = 0, seconds = 0;
    for (int i = 0; i < kBlock; i += 4) {
      if ((hits[i] | hits[i + 1] | hits[i + 2] | hits[i + 3]) == 0) continue;
      for (int j = i; j < i + 4; ++j) {
        in_first[firsts] = composite(first[j], list[j]), firsts += hits[j] & 1;
        in_second[seconds] = composite(second[j], list[j]), seconds += hits[j] >> 1;
      }
    }
    found.first.insert(found.first.end(), in_first, in_first + firsts);
    found.second.insert(found.second.end(), in_second, in_second + seconds);
  }
}

}  // namespace
}  // namespace libra
