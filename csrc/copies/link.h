// One direction of the link between device and host: its speed limit and its counters.
#ifndef MEMO_COPIES_LINK_H_
#define MEMO_COPIES_LINK_H_

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

namespace memo {

struct LinkCounters {
  uint64_t copies = 0;  // counted when they are asked for, so that counts equal the plan's
  uint64_t bytes = 0;
  double busy_s = 0;  // time in which at least one copy of this direction was under way
};

// Shared by all streams of its direction; any thread may call any method.
//
// The limit is kept with a timetable: a piece of a copy reserves the first free interval long
// enough for its bytes, and is over when the interval is. Oversleeping therefore shifts nothing.
class Link {
 public:
  // Throws InvalidArgument unless `bytes_per_s` is nullopt or finite and positive.
  static void CheckLimit(std::optional<double> bytes_per_s);
  // Bytes per second, nullopt for no limit. Throws as CheckLimit does.
  void SetLimit(std::optional<double> bytes_per_s);

  // Reserves time for `bytes` bytes that could travel from `ready_s` on; returns the end of the
  // interval, or `ready_s` without a limit.
  double Reserve(double ready_s, size_t bytes);

  // How many bytes to move between two looks at the timetable: about 2 ms, at least 1 byte.
  size_t PieceBytes() const;

  void CountCopy(size_t bytes);
  void BeginBusy(double now_s);
  void EndBusy(double now_s);

  LinkCounters Counters() const;
  void ResetCounters(double now_s);

 private:
  mutable std::mutex mutex_;
  std::optional<double> bytes_per_s_;
  double free_from_s_ = 0;
  int busy_copies_ = 0;
  double busy_since_s_ = 0;
  LinkCounters counters_;
};

}  // namespace memo

#endif  // MEMO_COPIES_LINK_H_
