// The one check of the C++ tests: says what does not hold, where, and ends the program.
#ifndef MEMO_TESTS_CUDA_CHECK_H_
#define MEMO_TESTS_CUDA_CHECK_H_

#include <cstdlib>
#include <iostream>

#define EXPECT(condition, details)                                                                \
  do {                                                                                            \
    if (!(condition)) {                                                                           \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " #condition " does not hold: " << (details) \
                << std::endl;                                                                     \
      std::exit(1);                                                                               \
    }                                                                                             \
  } while (false)

#endif  // MEMO_TESTS_CUDA_CHECK_H_
