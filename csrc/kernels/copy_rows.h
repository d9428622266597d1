// Gather and scatter: rows of a tile between its place in a wider tensor and a tensor of its own.
#ifndef MEMO_KERNELS_COPY_ROWS_H_
#define MEMO_KERNELS_COPY_ROWS_H_

#include "kernels/packs.h"

namespace memo {

// `groups` times `rows` rows of `row_packs` times 16 bytes. A tile of [batch, heads, tokens, dim]
// is batch * heads groups of its tokens' rows; neighbouring rows and groups are the pitches apart,
// in packs, on either side.
struct CopyRows {
  const Pack<float>* source;
  Pack<float>* target;
  size_t groups;
  size_t rows;
  size_t row_packs;
  size_t source_row_pitch;
  size_t source_group_pitch;
  size_t target_row_pitch;
  size_t target_group_pitch;
};

MEMO_HOST_DEVICE size_t NumItems(const CopyRows& copy) {
  return copy.groups * copy.rows * copy.row_packs;
}

MEMO_HOST_DEVICE void RunItem(const CopyRows& copy, size_t item) {
  const size_t column = item % copy.row_packs;
  const size_t row = item / copy.row_packs % copy.rows;
  const size_t group = item / copy.row_packs / copy.rows;
  copy.target[group * copy.target_group_pitch + row * copy.target_row_pitch + column] =
      copy.source[group * copy.source_group_pitch + row * copy.source_row_pitch + column];
}

}  // namespace memo

#endif  // MEMO_KERNELS_COPY_ROWS_H_
