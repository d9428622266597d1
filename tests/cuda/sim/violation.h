// What a program did that CUDA does not allow, or that would be slow or leak.
#ifndef MEMO_TESTS_CUDA_SIM_VIOLATION_H_
#define MEMO_TESTS_CUDA_SIM_VIOLATION_H_

#include <string>

namespace sim {

enum class Kind {
  kRace,          // two accesses to a byte, one of them a write, without an order between them
  kUseAfterFree,  // device memory that was freed
  kOutOfBounds,   // bytes that are not in one live allocation
  kUnpinned,      // a copy that cannot overlap, because its host side is not pinned
  kWrongDevice,   // a stream, event or address of another device than the current one
  kWrongOrder,    // a handle before it is made or after it is destroyed, a wait before the record
  kLeak,          // events, streams, memory or errors left behind at the end
};

inline const char* NameOf(Kind kind) {
  constexpr const char* kNames[] = {"race",         "use after free", "out of bounds", "unpinned",
                                    "wrong device", "wrong order",    "leak"};
  return kNames[static_cast<int>(kind)];
}

struct Violation {
  Kind kind;
  std::string text;
};

}  // namespace sim

#endif  // MEMO_TESTS_CUDA_SIM_VIOLATION_H_
