// An anonymous private mapping that is unmapped when it goes out of scope.
#ifndef MEMO_MEMORY_MAPPED_RANGE_H_
#define MEMO_MEMORY_MAPPED_RANGE_H_

#include <sys/mman.h>

#include <cstddef>
#include <utility>

namespace memo {

// Holds `bytes` of zeroed, page-aligned, readable and writable memory. Pages get physical memory
// when they are first touched. A failed mapping is an empty range: test with `data() == nullptr`.
class MappedRange {
 public:
  MappedRange() = default;
  explicit MappedRange(size_t bytes, int extra_flags = 0) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | extra_flags, -1, 0);
    if (data == MAP_FAILED) return;
    data_ = static_cast<char*>(data);
    bytes_ = bytes;
  }
  MappedRange(MappedRange&& other) noexcept { *this = std::move(other); }
  MappedRange& operator=(MappedRange&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  MappedRange(const MappedRange&) = delete;
  MappedRange& operator=(const MappedRange&) = delete;
  ~MappedRange() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace memo

#endif  // MEMO_MEMORY_MAPPED_RANGE_H_
