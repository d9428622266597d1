#include "memory/asking_op.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <execinfo.h>

#include <cstdlib>
#include <memory>

namespace memo {
namespace {

constexpr int kMostFrames = 96;
constexpr char kOps[] = "at::_ops::";
constexpr char kNodes[] = "torch::autograd::generated::";

std::string FunctionAt(void* address) {
  Dl_info found;
  if (dladdr(address, &found) == 0 || found.dli_sname == nullptr) return "";
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> demangled(
      abi::__cxa_demangle(found.dli_sname, nullptr, nullptr, &status), &std::free);
  return status == 0 ? demangled.get() : found.dli_sname;
}

// "mm" of "at::_ops::mm::call(at::Tensor const&, ...)"; empty if `function` is in another space.
std::string NameIn(const std::string& function, const std::string& space) {
  if (function.compare(0, space.size(), space) != 0) return "";
  return function.substr(space.size(), function.find("::", space.size()) - space.size());
}

}  // namespace

std::string AskingOp() {
  void* frames[kMostFrames];
  const int num_frames = backtrace(frames, kMostFrames);
  std::string op;
  for (int i = 0; i < num_frames; ++i) {
    const std::string function = FunctionAt(frames[i]);
    if (function.compare(0, 3, "_Py") == 0) break;  // the interpreter: all below is the caller's
    const std::string name = NameIn(function, kOps);
    if (!name.empty()) op = name;
    const std::string node = NameIn(function, kNodes);
    if (!node.empty()) return op.empty() ? node : node + ": " + op;
  }
  return op;
}

}  // namespace memo
