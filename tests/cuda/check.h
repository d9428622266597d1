// The one check of the C++ tests: says what does not hold, where, and ends the program. And what
// texts are looked at with.
#ifndef MEMO_TESTS_CUDA_CHECK_H_
#define MEMO_TESTS_CUDA_CHECK_H_

#include <cstdlib>
#include <iostream>
#include <string>

#define EXPECT(condition, details)                                                                \
  do {                                                                                            \
    if (!(condition)) {                                                                           \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " #condition " does not hold: " << (details) \
                << std::endl;                                                                     \
      std::exit(1);                                                                               \
    }                                                                                             \
  } while (false)

inline bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

#endif  // MEMO_TESTS_CUDA_CHECK_H_
