// Byte counts: rounding, and the form in which errors print them.
#ifndef MEMO_BASE_BYTES_H_
#define MEMO_BASE_BYTES_H_

#include <cstddef>
#include <cstdio>
#include <string>

namespace memo {

// The smallest multiple of `unit` (a power of two) that is at least `bytes`.
constexpr size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) & ~(unit - 1); }

// The largest multiple of `unit` (a power of two) that is at most `bytes`.
constexpr size_t RoundDown(size_t bytes, size_t unit) { return bytes & ~(unit - 1); }

// "1536 bytes (1.5 KiB)"; exact first, because a refusal may hang on one byte.
inline std::string FormatBytes(size_t bytes) {
  constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
  const std::string exact = std::to_string(bytes) + " bytes";
  if (bytes < 1024) return exact;
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 1024 && unit < 3; ++unit) value /= 1024;
  char rounded[32];
  std::snprintf(rounded, sizeof(rounded), " (%.1f %s)", value, kUnits[unit]);
  return exact + rounded;
}

}  // namespace memo

#endif  // MEMO_BASE_BYTES_H_
