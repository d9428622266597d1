#include "device.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/check.h"

namespace memo {

void CopySpec::Check() const {
  MEMO_REQUIRE(InvalidArgument, rows > 0 && row_bytes > 0)
      << "a copy needs at least 1 row of 1 byte, got " << rows << " rows of " << row_bytes
      << " bytes";
  // A quarter of all addresses: products and sums below stay under half of them.
  constexpr size_t kMost = std::numeric_limits<size_t>::max() / 4;
  const size_t pitch = rows == 1 ? row_bytes : std::max(target_pitch_bytes, source_pitch_bytes);
  MEMO_REQUIRE(InvalidArgument, row_bytes < kMost && pitch < kMost / rows)
      << rows << " rows of " << row_bytes << " bytes at a pitch of " << pitch
      << " do not fit into an address space";
  MEMO_REQUIRE(InvalidArgument,
               rows == 1 || std::min(target_pitch_bytes, source_pitch_bytes) >= row_bytes)
      << "rows of " << row_bytes << " bytes overlap at a pitch of " << source_pitch_bytes
      << " (source) and " << target_pitch_bytes << " (target)";
}

CopySpec CopySpec::Joined() const {
  if (target_pitch_bytes != row_bytes || source_pitch_bytes != row_bytes) return *this;
  return CopySpec{target, source, 1, Bytes(), Bytes(), Bytes()};
}

void CopySpec::CopyRange(size_t begin, size_t end) const {
  while (begin < end) {
    const size_t row = begin / row_bytes;
    const size_t column = begin % row_bytes;
    const size_t bytes = std::min(row_bytes - column, end - begin);
    std::memcpy(static_cast<char*>(target) + row * target_pitch_bytes + column,
                static_cast<const char*>(source) + row * source_pitch_bytes + column, bytes);
    begin += bytes;
  }
}

}  // namespace memo
