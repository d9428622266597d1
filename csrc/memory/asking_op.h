// Which tensor operation is asking for memory, read off the native stack.
#ifndef MEMO_MEMORY_ASKING_OP_H_
#define MEMO_MEMORY_ASKING_OP_H_

#include <string>

namespace memo {

// The operation that the interpreter (or autograd) called, such as "mm" or "MmBackward0: mm", and
// empty if the stack names none. Takes about a millisecond: for reports, not for every request.
std::string AskingOp();

}  // namespace memo

#endif  // MEMO_MEMORY_ASKING_OP_H_
