#include "cuda/cuda_range.h"

#include <algorithm>

#include "base/bytes.h"

namespace memo {
namespace {

// The runtime's numbers for the driver's failures are the driver's own.
// Source: driver_types.h, enum cudaError.
cudaError_t Code(CUresult result) { return static_cast<cudaError_t>(result); }

CUmemAllocationProp PropertiesOn(int ordinal) {
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = ordinal;
  return properties;
}

template <typename Function>
bool LookUp(const char* name, Function** function) {
#if CUDART_VERSION >= 12050
  constexpr unsigned int kVersion = 10020;  // in which all of them came
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t code =
      cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, &result);
  if (code != cudaSuccess) static_cast<void>(cudaGetLastError());
  if (code != cudaSuccess || result != cudaDriverEntryPointSuccess) return false;
  *function = reinterpret_cast<Function*>(found);
  return *function != nullptr;
#else
  static_cast<void>(name);
  static_cast<void>(function);
  return false;
#endif
}

}  // namespace

std::unique_ptr<const CudaDriver> CudaDriver::Find(const CudaCalls& calls) {
  auto driver = std::make_unique<CudaDriver>();
  CUresult (*granularity)(size_t*, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) =
      nullptr;
  const bool found =
      LookUp("cuMemAddressReserve", &driver->address_reserve) &&
      LookUp("cuMemAddressFree", &driver->address_free) && LookUp("cuMemCreate", &driver->create) &&
      LookUp("cuMemRelease", &driver->release) && LookUp("cuMemMap", &driver->map) &&
      LookUp("cuMemUnmap", &driver->unmap) && LookUp("cuMemSetAccess", &driver->set_access) &&
      LookUp("cuMemGetAllocationGranularity", &granularity);
  if (!found) return nullptr;
  const CUmemAllocationProp properties = PropertiesOn(calls.ordinal());
  // Devices without virtual memory management refuse the question.
  const CUresult result =
      granularity(&driver->granularity_bytes, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  if (result != CUDA_SUCCESS || driver->granularity_bytes == 0) return nullptr;
  return driver;
}

CudaRange::CudaRange(CudaCalls* calls, const CudaDriver* driver, size_t most_bytes,
                     size_t piece_bytes)
    : calls_(calls),
      driver_(driver),
      most_bytes_(RoundUp(most_bytes, driver->granularity_bytes)),
      piece_bytes_(RoundUp(piece_bytes, driver->granularity_bytes)) {
  calls_->Check(Code(driver_->address_reserve(&data_, most_bytes_, 0, 0, 0)), "cuMemAddressReserve",
                most_bytes_);
}

CudaRange::~CudaRange() {
  ShrinkTo(0);
  calls_->Keep(Code(driver_->address_free(data_, most_bytes_)), "cuMemAddressFree");
}

bool CudaRange::Grow(size_t bytes) {
  if (bytes > most_bytes_ - bytes_) return false;
  const size_t before = bytes_;
  const size_t end = bytes_ + bytes;
  try {
    while (bytes_ < end && AddPiece(std::min(piece_bytes_, end - bytes_))) continue;
  } catch (const Error&) {
    ShrinkTo(before);
    throw;
  }
  if (bytes_ < end) ShrinkTo(before);
  return bytes_ == end;
}

bool CudaRange::AddPiece(size_t bytes) {
  const CUmemAllocationProp properties = PropertiesOn(calls_->ordinal());
  pieces_.reserve(pieces_.size() + 1);  // first, so that no handle is lost for want of memory
  CUmemGenericAllocationHandle handle = 0;
  const CUresult created = driver_->create(&handle, bytes, &properties, 0);
  if (created == CUDA_ERROR_OUT_OF_MEMORY) return false;
  calls_->Check(Code(created), "cuMemCreate", bytes);
  const CUdeviceptr begin = data_ + bytes_;
  const CUresult mapped = driver_->map(begin, bytes, 0, handle, 0);
  if (mapped != CUDA_SUCCESS) calls_->Keep(Code(driver_->release(handle)), "cuMemRelease");
  calls_->Check(Code(mapped), "cuMemMap", bytes);
  pieces_.push_back(Piece{handle, bytes});
  bytes_ += bytes;
  CUmemAccessDesc access = {};
  access.location = properties.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  calls_->Check(Code(driver_->set_access(begin, bytes, &access, 1)), "cuMemSetAccess", bytes);
  return true;
}

size_t CudaRange::EndAbove(size_t used_bytes) const {
  size_t end = bytes_;
  for (auto piece = pieces_.rbegin(); piece != pieces_.rend(); ++piece) {
    if (end - piece->bytes < used_bytes) break;
    end -= piece->bytes;
  }
  return end;
}

void CudaRange::ShrinkTo(size_t end_bytes) noexcept {
  while (bytes_ > end_bytes) {
    const Piece piece = pieces_.back();
    pieces_.pop_back();
    bytes_ -= piece.bytes;
    calls_->Keep(Code(driver_->unmap(data_ + bytes_, piece.bytes)), "cuMemUnmap");
    calls_->Keep(Code(driver_->release(piece.handle)), "cuMemRelease");
  }
}

}  // namespace memo
