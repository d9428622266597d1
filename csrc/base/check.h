// Errors of the core, and the two macros that raise them with the values that broke.
//
//   MEMO_REQUIRE(InvalidArgument, bytes > 0) << "host_alloc of " << bytes << " bytes";
//   MEMO_CHECK(hole.bytes >= bytes) << hole.bytes << " < " << bytes;
//
// The streamed values are evaluated only when the condition is false. State is checked before it
// is changed, so a raised error leaves the object as it was.
#ifndef MEMO_BASE_CHECK_H_
#define MEMO_BASE_CHECK_H_

#include <sstream>
#include <stdexcept>
#include <string>

namespace memo {

// Root of everything the core throws.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The caller passed something that cannot be carried out, whatever the memory limits are.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

// A request does not fit under the device cap (or into the reserved range).
class DeviceMemoryExceeded : public Error {
 public:
  using Error::Error;
};

// A request does not fit under the host cap (or the operating system refused it).
class HostMemoryExceeded : public Error {
 public:
  using Error::Error;
};

// The process is a fork of the one that owns the copy threads.
class ForkedProcess : public Error {
 public:
  using Error::Error;
};

// A CUDA call failed; the message names call, device, code and bytes.
class CudaError : public Error {
 public:
  using Error::Error;
};

// The core contradicts itself: a defect, never the caller's mistake.
class BrokenInvariant : public Error {
 public:
  using Error::Error;
};

class Message {
 public:
  template <typename T>
  Message& operator<<(const T& value) {
    stream_ << value;
    return *this;
  }
  std::string Text() const { return stream_.str(); }

 private:
  std::ostringstream stream_;
};

template <typename E>
struct Raise {
  [[noreturn]] void operator&(const Message& message) const { throw E(message.Text()); }
};

}  // namespace memo

// `&` binds looser than `<<` and tighter than `?:`, so the whole chain is built, then thrown.
#define MEMO_REQUIRE(ErrorType, condition) \
  (condition) ? (void)0 : ::memo::Raise<ErrorType>() & ::memo::Message()

#define MEMO_CHECK(condition)                      \
  MEMO_REQUIRE(::memo::BrokenInvariant, condition) \
      << __FILE__ << ":" << __LINE__ << ": " #condition " does not hold: "

#endif  // MEMO_BASE_CHECK_H_
