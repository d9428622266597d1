// The runtime functions that memo-train's device calls, answered by a simulated machine.
#include <cuda_runtime_api.h>

#include "sim/machine.h"

using sim::Machine;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = Machine::Get().options().num_devices;
  return *count == 0 ? sim::LastError() = cudaErrorNoDevice : cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  return Machine::Get().Call("cudaGetDevice", [&](auto&) {
    *device = sim::CurrentDevice();
    return cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return Machine::Get().Call("cudaSetDevice", [&](auto&) {
    if (device < 0 || device >= Machine::Get().options().num_devices) {
      return cudaErrorInvalidDevice;
    }
    sim::CurrentDevice() = device;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  return Machine::Get().Call("cudaDeviceGetAttribute", [&](auto&) {
    const size_t pitch = Machine::Get().options().max_pitch_bytes;
    if (attribute == cudaDevAttrMaxPitch) {
      *value = static_cast<int>(pitch);
    } else if (attribute == cudaDevAttrHostNumaId) {
      *value = 0;
    } else {
      return cudaErrorInvalidValue;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  return Machine::Get().Call("cudaMemGetInfo", [&](auto&) {
    *free_bytes = Machine::Get().memory().FreeBytes(sim::CurrentDevice());
    *total_bytes = Machine::Get().memory().device_bytes();
    return cudaSuccess;
  });
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  return Machine::Get().Call("cudaMalloc",
                             [&](auto&) { return Machine::Get().Malloc(data, bytes); });
}

cudaError_t cudaFree(void* data) {
  return Machine::Get().Call("cudaFree",
                             [&](sim::Lock& lock) { return Machine::Get().Free(data, lock); });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
  return Machine::Get().Call("cudaPointerGetAttributes", [&](auto&) {
    const sim::Range first = sim::RangeOf(data, 1);
    const sim::MemoryMap& memory = Machine::Get().memory();
    *attributes = cudaPointerAttributes();
    if (memory.IsLive(first)) {
      attributes->type = cudaMemoryTypeDevice;
      attributes->device = memory.Find(first)->device;
    } else {
      attributes->type = memory.IsPinned(first) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaHostRegister(void* data, size_t bytes, unsigned int) {
  return Machine::Get().Call("cudaHostRegister",
                             [&](auto&) { return Machine::Get().HostRegister(data, bytes); });
}

cudaError_t cudaHostUnregister(void* data) {
  return Machine::Get().Call("cudaHostUnregister", [&](sim::Lock& lock) {
    return Machine::Get().HostUnregister(data, lock);
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  return Machine::Get().Call("cudaStreamCreateWithFlags",
                             [&](auto&) { return Machine::Get().StreamCreate(stream, flags); });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return Machine::Get().Call("cudaStreamDestroy",
                             [&](auto&) { return Machine::Get().StreamDestroy(stream); });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return Machine::Get().Call("cudaStreamSynchronize", [&](sim::Lock& lock) {
    return Machine::Get().StreamSynchronize(stream, lock);
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  return Machine::Get().Call("cudaStreamWaitEvent", [&](auto& lock) {
    return Machine::Get().StreamWait(stream, event, lock);
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  return Machine::Get().Call("cudaEventCreateWithFlags",
                             [&](auto&) { return Machine::Get().EventCreate(event, flags); });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  return Machine::Get().Call("cudaEventElapsedTime", [&](auto&) {
    return Machine::Get().EventElapsed(milliseconds, begin, end);
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return Machine::Get().Call("cudaEventDestroy",
                             [&](auto&) { return Machine::Get().EventDestroy(event); });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return Machine::Get().Call("cudaEventRecord",
                             [&](auto&) { return Machine::Get().EventRecord(event, stream); });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return Machine::Get().Call("cudaEventQuery",
                             [&](auto&) { return Machine::Get().EventQuery(event); });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return Machine::Get().Call("cudaEventSynchronize", [&](sim::Lock& lock) {
    return Machine::Get().EventSynchronize(event, lock);
  });
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const sim::Copy copy{target, source, 1, bytes, bytes, bytes, kind == cudaMemcpyDeviceToHost};
  return Machine::Get().Call("cudaMemcpyAsync",
                             [&](auto&) { return Machine::Get().StartCopy(copy, stream); });
}

cudaError_t cudaMemcpy2DAsync(void* target, size_t target_pitch, const void* source,
                              size_t source_pitch, size_t row_bytes, size_t rows,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  const sim::Copy copy{
      target, source, rows, row_bytes, target_pitch, source_pitch, kind == cudaMemcpyDeviceToHost};
  return Machine::Get().Call("cudaMemcpy2DAsync",
                             [&](auto&) { return Machine::Get().StartCopy(copy, stream); });
}

cudaError_t cudaGetLastError() {
  const cudaError_t code = sim::LastError();
  sim::LastError() = cudaSuccess;
  return code;
}

const char* cudaGetErrorName(cudaError_t code) {
  return code == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorOther";
}

const char* cudaGetErrorString(cudaError_t) { return "a failure that the test asked for"; }

}  // extern "C"
