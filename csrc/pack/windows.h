// First fit of a training step, one window of time after another.
//
// The window with the most units alive comes first, with all buffers that live in it, also those
// that live beyond it. What is placed stays and is in the way of the windows after it. So a window
// costs what its own buffers cost, however long the step is, and the fullest ones have most
// freedom. Windows that end too high are the core: from the next round on they are packed as one,
// before all others, by exact search where first fits are not enough.
#ifndef MEMO_PACK_WINDOWS_H_
#define MEMO_PACK_WINDOWS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "pack/first_fit.h"
#include "pack/problem.h"

namespace memo::pack {

class WindowPacker {
 public:
  explicit WindowPacker(const Problem& problem);
  ~WindowPacker();

  // Lowers `best`, which may be empty, to `target`, or as far as so many attempts and `stop` allow;
  // perhaps not at all. Each attempt cuts time into windows of another length.
  void Pack(int64_t target, int64_t most_attempts, const std::function<bool()>& stop,
            Offsets& best);

 private:
  class Spans;

  // Sections [first, last).
  struct Window {
    int32_t first;
    int32_t last;
    bool in_core = false;
    bool failed = false;  // ended too high in the latest round
    int32_t urgency = 0;  // how often it did, since time was cut
    int64_t load = 0;     // most units alive in it
    // Placed buffers that live in several windows, by where they begin and where they end.
    std::vector<int32_t> beginning = {};
    std::vector<int32_t> ending = {};
  };

  // The buffers to be placed in a window, as a problem of its own, and what is in their way.
  struct Task {
    std::vector<int32_t> index;
    Problem problem;
    Obstacles obstacles;
  };

  // What a round's peak should come down to, and what it must be below to be of use.
  struct Bounds {
    int64_t aim;
    int64_t limit;
  };

  void Cut(int64_t num_events);
  void Index();
  bool JoinFailed();
  bool SavesNothing() const;
  void Clear();
  bool Round(const Bounds& peak, int most_failures, const std::function<bool()>& stop);
  int64_t PackCore(const Task& core, int64_t aim, const std::function<bool()>& stop);
  int64_t PackWindow(size_t w, int64_t aim, const std::function<bool()>& stop);
  std::vector<size_t> FullestFirst() const;
  Task CoreTask() const;
  Task TaskOf(size_t w);
  std::vector<int32_t> PartlyAlive(const Window& window) const;
  std::pair<size_t, size_t> Spanned(const Buffer& buffer) const;
  void SortByLifetime(std::vector<int32_t>& buffers) const;
  Ranges Beside(size_t w, int32_t i, const std::vector<int32_t>& partial);
  int64_t PlaceAll(const Task& task, const Offsets& offsets);
  void Place(int32_t i, int64_t offset);
  const Buffer& buffer(int32_t i) const { return problem_.buffers[i]; }

  const Problem& problem_;
  const std::vector<int64_t> load_;
  const std::vector<int32_t> by_first_;
  const std::vector<int32_t> by_last_;
  std::vector<Window> windows_;
  std::vector<size_t> window_of_;  // per section
  std::unique_ptr<Spans> spans_;   // of the buffers in `windows_`
  int64_t attempt_ = 0;
  int64_t strategy_ = 0;    // for the core, see PackTogether
  int64_t looks_left_ = 0;  // of the latest round
  Offsets offsets_;         // of the latest round
};

}  // namespace memo::pack

#endif  // MEMO_PACK_WINDOWS_H_
