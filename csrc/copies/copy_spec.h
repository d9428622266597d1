// What a copy moves: rows of bytes.
#ifndef MEMO_COPIES_COPY_SPEC_H_
#define MEMO_COPIES_COPY_SPEC_H_

#include <cstddef>

namespace memo {

// `rows` runs of `row_bytes` bytes, the starts of neighbouring runs `*_pitch_bytes` apart.
// One row is a plain copy, its pitches are ignored.
struct CopySpec {
  void* target = nullptr;
  const void* source = nullptr;
  size_t rows = 1;
  size_t row_bytes = 0;
  size_t target_pitch_bytes = 0;
  size_t source_pitch_bytes = 0;

  size_t Bytes() const { return rows * row_bytes; }
  size_t TargetExtentBytes() const { return (rows - 1) * target_pitch_bytes + row_bytes; }
  size_t SourceExtentBytes() const { return (rows - 1) * source_pitch_bytes + row_bytes; }

  // Throws InvalidArgument unless there is something to copy, rows do not overlap, and no extent
  // is larger than an address space.
  void Check() const;

  // The same copy in as few rows as possible.
  CopySpec Joined() const;

  // Copies bytes [begin, end) of the rows laid end to end, now, on this thread.
  void CopyRange(size_t begin, size_t end) const;
};

}  // namespace memo

#endif  // MEMO_COPIES_COPY_SPEC_H_
