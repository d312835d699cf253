// topk_per_level on the CPU: one pass over the scores, which keeps a little more than k candidates.
//
// A level is cut into pieces, so that few images and large levels still give every thread work. A piece is screened in
// vector code against the lowest key that can still be among the k best; what passes goes into a buffer of about 2 k
// candidates, and whenever that is full the k best of it stay and raise the lowest key. Then the pieces of a level are
// joined and sorted. Which are the best does not depend on the pieces or on the number of threads.
#include "topk_per_level/topk_per_level_cpu_kernel.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "common/vector_clones.h"

namespace libra {
namespace {

constexpr int64_t kPiece = 1 << 17;  // scores: 512 KiB of float32
constexpr int kBlock = 64;           // scores that are screened at a time

// The first block from `begin` on that holds a key of at least `lowest`; `end` if none does.
template <class F>
LIBRA_VECTOR_CLONES int64_t next_block(const typename F::Bits* scores, int64_t begin, int64_t end, uint32_t lowest) {
  for (; begin + kBlock <= end; begin += kBlock) {
    uint32_t found = 0;
    for (int i = 0; i < kBlock; ++i) found |= key_of<F>(scores[begin + i]) >= lowest;
    if (found) return begin;
  }
  return begin;
}

// A buffer that is to end with the `take` best of the candidates that are put into it.
struct Best {
  std::unique_ptr<uint64_t[]> candidates;
  int64_t take, capacity, size = 0;

  Best(int64_t take, int64_t most) : take(take), capacity(std::min(most, 2 * take + 16 * kBlock) + kBlock) {
    candidates.reset(new uint64_t[static_cast<size_t>(capacity)]);
  }
  // Drops all but the best. The key that a later candidate, which loses a tie, has to reach.
  uint32_t shrink(uint32_t lowest) {
    if (size <= take) return lowest;
    uint64_t* last = candidates.get() + take - 1;
    std::nth_element(candidates.get(), last, candidates.get() + size);
    size = take;
    return key_in(*last) + 1;
  }
};

// Positions begin .. end - 1 of a level. Returns how many candidates there are, at most `take`.
template <class F>
int64_t best_of_piece(const typename F::Bits* level, int64_t begin, int64_t end, int64_t take, uint32_t lowest,
                      uint64_t* result) {
  Best best(take, end - begin);
  for (int64_t i = begin; i < end; i += kBlock) {
    i = next_block<F>(level, i, end, lowest);
    const int count = static_cast<int>(std::min<int64_t>(kBlock, end - i));
    for (int j = 0; j < count; ++j) {
      const uint32_t key = key_of<F>(level[i + j]);
      best.candidates[best.size] = candidate_of(key, static_cast<uint32_t>(i + j));
      best.size += key >= lowest;
    }
    if (best.size > best.capacity - kBlock) lowest = best.shrink(lowest);
  }
  best.shrink(lowest);
  std::copy_n(best.candidates.get(), best.size, result);
  return best.size;
}

// What one thread screens at a time, and where its candidates go.
struct Piece {
  int level;
  int64_t begin, end;  // in the level
  int64_t place;       // among an image's candidates
};

}  // namespace

template <class F>
void topk_per_level(const typename F::Bits* scores, int64_t images, const Levels& levels, uint32_t lowest,
                    typename F::Bits nothing, typename F::Bits* values, int64_t* index, ParallelFor threads) {
  std::vector<Piece> pieces;
  std::vector<int64_t> first_piece;  // of each level
  int64_t places = 0;
  for (int level = 0; level < levels.count; ++level) {
    const int64_t n = levels.size(level), take = levels.take(level);
    first_piece.push_back(static_cast<int64_t>(pieces.size()));
    const int64_t count = take < n ? (n + std::max(kPiece, 4 * take) - 1) / std::max(kPiece, 4 * take) : 1;
    for (int64_t piece = 0; take > 0 && piece < count; ++piece) {
      const int64_t begin = n * piece / count, end = n * (piece + 1) / count;
      pieces.push_back({level, begin, end, places});
      places += std::min(take, end - begin);
    }
  }
  const int64_t per_image = static_cast<int64_t>(pieces.size());
  first_piece.push_back(per_image);
  const std::unique_ptr<uint64_t[]> candidates(new uint64_t[static_cast<size_t>(images * places)]);
  std::vector<int64_t> sizes(static_cast<size_t>(images * per_image));
  const int64_t num_scores = levels.first[levels.count], slots = levels.slot[levels.count];

  parallel_for(threads, images * per_image, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / per_image;
      const Piece& piece = pieces[i % per_image];
      sizes[i] = best_of_piece<F>(scores + image * num_scores + levels.first[piece.level], piece.begin, piece.end,
                                  std::min(levels.take(piece.level), piece.end - piece.begin), lowest,
                                  candidates.get() + image * places + piece.place);
    }
  });
  parallel_for(threads, images * levels.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / levels.count;
      const int level = static_cast<int>(i % levels.count);
      if (levels.take(level) == 0) continue;
      // The candidates of the level's pieces, one after the other, without the gaps of pieces that had few.
      uint64_t* joined = candidates.get() + image * places + pieces[first_piece[level]].place;
      int64_t size = 0;
      for (int64_t piece = first_piece[level]; piece < first_piece[level + 1]; ++piece) {
        const int64_t count = sizes[image * per_image + piece];
        const uint64_t* from = candidates.get() + image * places + pieces[piece].place;
        if (from != joined + size) std::copy_n(from, count, joined + size);
        size += count;
      }
      const int64_t take = levels.take(level), kept = std::min(size, take);
      if (kept < size) std::nth_element(joined, joined + kept - 1, joined + size);
      std::sort(joined, joined + kept);
      const int64_t first = levels.first[level], out = image * slots + levels.slot[level];
      for (int64_t slot = 0; slot < take; ++slot) {
        const int64_t position = first + (slot < kept ? position_in(joined[slot]) : 0);
        values[out + slot] = slot < kept ? scores[image * num_scores + position] : nothing;
        index[out + slot] = position;
      }
    }
  });
}

template void topk_per_level<Float32Format>(const uint32_t*, int64_t, const Levels&, uint32_t, uint32_t, uint32_t*,
                                            int64_t*, ParallelFor);
template void topk_per_level<Float16Format>(const uint16_t*, int64_t, const Levels&, uint32_t, uint16_t, uint16_t*,
                                            int64_t*, ParallelFor);
template void topk_per_level<BFloat16Format>(const uint16_t*, int64_t, const Levels&, uint32_t, uint16_t, uint16_t*,
                                             int64_t*, ParallelFor);

}  // namespace libra
