#include "step.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

namespace {

constexpr size_t kPlaceBytes = 64;  // places are whole multiples, as an arena's are
constexpr size_t kArenaBytes = 1 << 16;
constexpr int kPoison = 0xFF;

unsigned char Pattern(unsigned char value, size_t index) {
  return static_cast<unsigned char>(value + index * 7);
}

void Fold(unsigned char* gradient, const unsigned char* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    gradient[i] = static_cast<unsigned char>(gradient[i] * 3 + data[i]);
  }
}

}  // namespace

StepShape ShapeFrom(uint64_t seed) {
  std::mt19937_64 random(seed);
  StepShape shape;
  shape.num_blocks = 2 + static_cast<int>(random() % 2);
  shape.num_tiles = 2 + static_cast<int>(random() % 3);
  shape.most_rows = 1 + random() % 3;
  shape.most_row_bytes = 64 + random() % 500;
  shape.in_flight = random() % 3;
  shape.fetch_ahead = random() % 2 == 0;
  shape.change_stream = random() % 2 == 0;
  return shape;
}

Step::Step(memo::CudaDevice* device, const StepShape& shape, Bug bug, Fault fault)
    : device_(device),
      shape_(shape),
      bug_(bug),
      faulty_(std::make_shared<FaultyDevice>(device, fault)),
      transfer_(faulty_),
      expected_(shape.most_rows * shape.most_row_bytes) {
  arena_ = static_cast<char*>(device_->AllocDevice(kArenaBytes));
  gradient_ = reinterpret_cast<unsigned char*>(arena_) + slots_.Take(expected_.size());
  compute_ = {nullptr, sim::Machine::Get().NewStream(device_->ordinal())};
  unordered_ = device_->CreateStream(memo::Direction::kToDevice);
  tiles_.resize(static_cast<size_t>(shape_.num_blocks));
  const size_t bytes = expected_.size();
  unsigned char* gradient = gradient_;
  Compute(sim::Kernel{"zero the gradient", {}, {sim::RangeOf(gradient, bytes)}, [=] {
                        std::memset(gradient, 0, bytes);
                      }});
}

void Step::Compute(sim::Kernel kernel) {
  cudaSetDevice(device_->ordinal());
  sim::Machine::Get().Launch(compute_[0], std::move(kernel));
  cudaSetDevice(0);
}

void Step::ChangeStream() {
  const memo::EventPtr before = faulty_->RecordCompute(current_);
  std::swap(compute_[0], compute_[1]);
  if (!Has(Bug::kStaleStream)) current_ = reinterpret_cast<uintptr_t>(compute_[0]);
  Wait(before);
}

void Step::Forward(int block) {
  if (shape_.change_stream || Has(Bug::kStaleStream)) ChangeStream();
  if (block == 0) ++num_forwards_;
  auto& tiles = tiles_[static_cast<size_t>(block)];
  tiles.clear();
  tiles.reserve(static_cast<size_t>(shape_.num_tiles));
  for (int index = 0; index < shape_.num_tiles; ++index) {
    tiles.push_back(MakeTile(block, index));
    SwapOut(&tiles.back());
  }
  if (block + 1 < shape_.num_blocks) return;
  while (!in_flight_.empty()) FinishOldest();
}

Step::Tile Step::MakeTile(int block, int index) {
  const size_t odd = static_cast<size_t>(block) % 2;
  Form form;
  form.rows = std::max<size_t>(1, shape_.most_rows - odd);
  form.row_bytes = shape_.most_row_bytes - static_cast<size_t>(block) * 9;
  form.pitch_bytes = form.row_bytes + 16;
  Tile tile;
  tile.form = form;
  tile.value = static_cast<unsigned char>(block * 31 + index * 5 + num_forwards_ * 13);
  tile.place = slots_.Take(memo::RoundUp(form.Extent(), kPlaceBytes));
  char* data = Data(tile);
  Compute(sim::Kernel{"make a tile", {}, Rows(tile), [form, data, value = tile.value] {
                        for (size_t i = 0; i < form.Bytes(); ++i) {
                          data[i / form.row_bytes * form.pitch_bytes + i % form.row_bytes] =
                              static_cast<char>(Pattern(value, i));
                        }
                      }});
  return tile;
}

void Step::SwapOut(Tile* tile) {
  const Form& form = tile->form;
  if (Has(Bug::kReleaseBeforeCopy)) Release(*tile);
  tile->host = transfer_.AllocHost(form.Bytes());
  tile->sent = transfer_.ToHost(memo::CopySpec{tile->host, Data(*tile), form.rows, form.row_bytes,
                                               form.row_bytes, form.pitch_bytes},
                                current_);
  in_flight_.push_back(tile);
  while (in_flight_.size() > shape_.in_flight) FinishOldest();
}

void Step::FinishOldest() {
  const Tile& tile = *in_flight_.front();
  in_flight_.pop_front();
  if (!Has(Bug::kReleaseWithoutWait)) Wait(tile.sent);
  Release(tile);
}

void Step::Release(const Tile& tile) {
  char* data = Data(tile);
  const size_t bytes = tile.form.Extent();
  Compute(sim::Kernel{"use memory again", {}, {sim::RangeOf(data, bytes)}, [=] {
                        std::memset(data, kPoison, bytes);
                      }});
  slots_.Release(tile.place);
}

void Step::Backward(int block) {
  if (shape_.change_stream) ChangeStream();
  auto& tiles = tiles_[static_cast<size_t>(block)];
  for (int index = shape_.num_tiles - 1; index >= 0; --index) {
    Tile* tile = &tiles[static_cast<size_t>(index)];
    Fetch(tile);
    Tile* next = Before(block, index);
    if (shape_.fetch_ahead && next != nullptr) Fetch(next);
    Use(tile);
  }
}

Step::Tile* Step::Before(int block, int tile) {
  if (tile == 0) {
    if (block == 0) return nullptr;
    --block;
    tile = shape_.num_tiles;
  }
  return &tiles_[static_cast<size_t>(block)][static_cast<size_t>(tile) - 1];
}

void Step::Fetch(Tile* tile) {
  if (tile->returned != nullptr) return;
  Wait(tile->sent);
  tile->place = slots_.Take(memo::RoundUp(tile->form.Extent(), kPlaceBytes));
  void* host = tile->host;
  auto& first = tiles_[0];
  const bool exchanged = Has(Bug::kExchangedCopies) && (tile == &first[0] || tile == &first[1]);
  if (exchanged) host = first[tile == &first[0] ? 1 : 0].host;
  const Form& form = tile->form;
  const memo::CopySpec copy{Data(*tile),      host,          form.rows, form.row_bytes,
                            form.pitch_bytes, form.row_bytes};
  if (Has(Bug::kFetchWithoutCompute)) {
    device_->StreamWait(unordered_, tile->sent);
    device_->CopyAsync(unordered_, copy);
    tile->returned = device_->Record(unordered_);
  } else {
    tile->returned = transfer_.ToDevice(copy, current_);
  }
  if (Has(Bug::kFreeHostEarly)) GiveAwayHost(tile);
}

void Step::GiveAwayHost(Tile* tile) {
  const size_t bytes = tile->form.Bytes();
  device_->FreeHost(tile->host);
  void* again = device_->AllocHost(bytes);
  sim::Machine::Get().HostWrite(sim::RangeOf(again, bytes));
  std::memset(again, kPoison, bytes);
}

void Step::Use(Tile* tile) {
  if (!Has(Bug::kUseWithoutWait)) Wait(tile->returned);
  const Form form = tile->form;
  const auto* data = reinterpret_cast<const unsigned char*>(Data(*tile));
  unsigned char* gradient = gradient_;
  const sim::Range folded = sim::RangeOf(gradient, form.Bytes());
  std::vector<sim::Range> reads = Rows(*tile);
  reads.push_back(folded);
  Compute(sim::Kernel{"use a tile", reads, {folded}, [=] {
                        for (size_t row = 0; row < form.rows; ++row) {
                          Fold(gradient + row * form.row_bytes, data + row * form.pitch_bytes,
                               form.row_bytes);
                        }
                      }});
  for (size_t i = 0; i < form.Bytes(); ++i) {
    const unsigned char value = Pattern(tile->value, i);
    Fold(&expected_[i], &value, 1);
  }
  Release(*tile);
  transfer_.RetireHost(tile->host);
}

std::vector<sim::Range> Step::Rows(const Tile& tile) const {
  std::vector<sim::Range> rows;
  for (size_t row = 0; row < tile.form.rows; ++row) {
    rows.push_back(sim::RangeOf(Data(tile) + row * tile.form.pitch_bytes, tile.form.row_bytes));
  }
  return rows;
}

std::vector<unsigned char> Step::Finish() {
  const size_t bytes = expected_.size();
  void* host = transfer_.AllocHost(bytes);
  const memo::EventPtr done =
      transfer_.ToHost(memo::CopySpec{host, gradient_, 1, bytes, bytes, bytes}, current_);
  if (Has(Bug::kFreeDeviceEarly)) device_->FreeDevice(arena_);
  if (!Has(Bug::kReadWithoutWait)) faulty_->HostWait(done);
  sim::Machine::Get().HostRead(sim::RangeOf(host, bytes));
  const auto* data = static_cast<const unsigned char*>(host);
  std::vector<unsigned char> gradient(data, data + bytes);
  faulty_->HostWait(done);
  transfer_.RetireHost(host);
  if (!Has(Bug::kFreeDeviceEarly)) device_->FreeDevice(arena_);
  return gradient;
}
