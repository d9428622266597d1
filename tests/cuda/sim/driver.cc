// The driver's functions for addresses apart from memory, on a simulated machine that has them.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <string>

#include "sim/machine.h"

namespace sim {
namespace {

constexpr size_t kGranularity = 4096;  // what the host can map

void* Pointer(CUdeviceptr data) { return reinterpret_cast<void*>(static_cast<uintptr_t>(data)); }

template <typename Body>
CUresult Called(const char* name, Body body) {
  return static_cast<CUresult>(Machine::Get().Call(name, body));
}

CUresult AddressReserve(CUdeviceptr* data, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  return Called("cuMemAddressReserve", [&](auto&) {
    void* const found =
        mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *data = reinterpret_cast<CUdeviceptr>(found);
    return found == MAP_FAILED ? cudaErrorMemoryAllocation : cudaSuccess;
  });
}

CUresult AddressFree(CUdeviceptr data, size_t bytes) {
  return Called("cuMemAddressFree", [&](auto&) {
    return munmap(Pointer(data), bytes) == 0 ? cudaSuccess : cudaErrorInvalidValue;
  });
}

CUresult Create(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* on,
                unsigned long long) {
  return Called("cuMemCreate", [&](auto&) {
    if (bytes == 0 || bytes % kGranularity != 0) return cudaErrorInvalidValue;
    *handle = Machine::Get().memory().Create(bytes, on->location.id);
    return *handle == 0 ? cudaErrorMemoryAllocation : cudaSuccess;
  });
}

CUresult Release(CUmemGenericAllocationHandle handle) {
  return Called("cuMemRelease", [&](auto&) {
    return Machine::Get().memory().Release(handle) ? cudaSuccess : cudaErrorInvalidValue;
  });
}

CUresult Map(CUdeviceptr data, size_t, size_t, CUmemGenericAllocationHandle handle,
             unsigned long long) {
  return Called("cuMemMap", [&](auto&) { return Machine::Get().MapMemory(Pointer(data), handle); });
}

CUresult SetAccess(CUdeviceptr data, size_t bytes, const CUmemAccessDesc*, size_t) {
  return Called("cuMemSetAccess", [&](auto&) {
    if (mprotect(Pointer(data), bytes, PROT_READ | PROT_WRITE) != 0) return cudaErrorInvalidValue;
    std::memset(Pointer(data), 0xFF, bytes);
    return cudaSuccess;
  });
}

CUresult Unmap(CUdeviceptr data, size_t bytes) {
  return Called("cuMemUnmap", [&](Lock& lock) {
    const cudaError_t code = Machine::Get().UnmapMemory(Pointer(data), bytes, lock);
    mprotect(Pointer(data), bytes, PROT_NONE);
    return code;
  });
}

CUresult Granularity(size_t* bytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  *bytes = kGranularity;
  return CUDA_SUCCESS;
}

template <typename Function>
void* Address(Function* function) {
  return reinterpret_cast<void*>(function);
}

}  // namespace
}  // namespace sim

extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function,
                                                        unsigned int, unsigned long long,
                                                        cudaDriverEntryPointQueryResult* result) {
  static const std::map<std::string, void*> known = {
      {"cuMemAddressReserve", sim::Address(sim::AddressReserve)},
      {"cuMemAddressFree", sim::Address(sim::AddressFree)},
      {"cuMemCreate", sim::Address(sim::Create)},
      {"cuMemRelease", sim::Address(sim::Release)},
      {"cuMemMap", sim::Address(sim::Map)},
      {"cuMemUnmap", sim::Address(sim::Unmap)},
      {"cuMemSetAccess", sim::Address(sim::SetAccess)},
      {"cuMemGetAllocationGranularity", sim::Address(sim::Granularity)}};
  const auto found = known.find(symbol);
  const bool has = sim::Machine::Get().options().has_driver && found != known.end();
  *function = has ? found->second : nullptr;
  *result = has ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
