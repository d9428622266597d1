// A packing problem in the form that every solver of csrc/pack works on.
//
// Lifetimes are reduced to sections: runs of time in which a maximal set of buffers is alive.
// Two buffers conflict exactly when they share a section.
#ifndef MEMO_PACK_PROBLEM_H_
#define MEMO_PACK_PROBLEM_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace memo::pack {

// A buffer alive in the sections [first, last); sizes and offsets count units of Problem::unit.
struct Buffer {
  int32_t first;
  int32_t last;
  int64_t size;
};

// Offset of every buffer, in the order of Problem::buffers.
using Offsets = std::vector<int64_t>;

struct Problem {
  // Sections from half-open lifetimes; sizes are taken as they are. All three have equal length,
  // lower < upper and size > 0.
  static Problem OfLifetimes(const std::vector<int64_t>& lower, const std::vector<int64_t>& upper,
                             const std::vector<int64_t>& size);

  std::vector<Buffer> buffers;
  int32_t num_sections = 0;
  // Per section, units that are taken by what is not among the buffers; none if empty.
  std::vector<int64_t> base;

  // Whether a buffer is alive in all sections.
  bool IsWhole(const Buffer& buffer) const {
    return buffer.first == 0 && buffer.last == num_sections;
  }
  // Numbers of the buffers in order of their first sections.
  std::vector<int32_t> ByFirstSection() const;
  // Units alive in each section.
  std::vector<int64_t> Load() const;
  // Most units alive in any section: no placement is lower.
  int64_t LowerBound() const;
  // The highest end of any placed buffer.
  int64_t Peak(const Offsets& offsets) const;
};

// A problem whose buffers stand for stacks: one for all that share a lifetime. Its best peak may be
// higher than the original's.
struct Merged {
  explicit Merged(const Problem& original);

  Problem problem;
  std::vector<int32_t> stack_of;  // per original buffer
  Offsets within;                 // per original buffer: offset within its stack

  // The original buffers' offsets from the stacks'.
  Offsets Unmerged(const Offsets& stacks) const;
};

// Who conflicts with whom, as one flat list. Built only where the list stays within a limit.
class Conflicts {
 public:
  struct Range {
    const int32_t* first;
    const int32_t* last;
    const int32_t* begin() const { return first; }
    const int32_t* end() const { return last; }
  };

  // Buffers alive in all sections conflict with all; they are left out unless `with_whole`.
  explicit Conflicts(const Problem& problem, bool with_whole = true);
  Range of(int32_t buffer) const {
    return {entries_.data() + start_[buffer], entries_.data() + start_[buffer + 1]};
  }
  // Entries of all lists: each conflicting pair counts twice.
  size_t size() const { return entries_.size(); }

  // Number of conflicting pairs, counted without listing them.
  static int64_t Count(const Problem& problem, bool with_whole = true);

 private:
  std::vector<size_t> start_;
  std::vector<int32_t> entries_;
};

}  // namespace memo::pack

#endif  // MEMO_PACK_PROBLEM_H_
