#include "vmm/cuda_driver_api.h"

#include <cstdlib>

#include <dlfcn.h>

namespace weir {
namespace {

// Looks entry points up and keeps the first one that is missing.
class EntryPoints {
 public:
  explicit EntryPoints(PFN_cuGetProcAddress_v12000 get) : get_(get) {}

  // |cuda_version| is 1000 * major + 10 * minor of the release that gave the function this
  // signature.
  template <typename Function>
  void Find(const char* name, int cuda_version, Function& out) {
    void* address = nullptr;
    CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    const CUresult result =
        get_(name, &address, cuda_version, CU_GET_PROC_ADDRESS_LEGACY_STREAM, &found);
    if (result == CUDA_SUCCESS && found == CU_GET_PROC_ADDRESS_SUCCESS && address != nullptr) {
      out = reinterpret_cast<Function>(address);
    } else if (missing_.empty()) {
      missing_ = std::string(name) + " (of CUDA " + std::to_string(cuda_version / 1000) + "." +
                 std::to_string(cuda_version % 1000 / 10) + ")";
    }
  }
  const std::string& missing() const { return missing_; }

 private:
  PFN_cuGetProcAddress_v12000 get_;
  std::string missing_;
};

void FindDevice(EntryPoints& entry, CudaApi& api) {
  entry.Find("cuInit", 2000, api.cuInit);
  entry.Find("cuDriverGetVersion", 2020, api.cuDriverGetVersion);
  entry.Find("cuModuleGetLoadingMode", 11070, api.cuModuleGetLoadingMode);
  entry.Find("cuGetErrorName", 6000, api.cuGetErrorName);
  entry.Find("cuGetErrorString", 6000, api.cuGetErrorString);
  entry.Find("cuDeviceGetCount", 2000, api.cuDeviceGetCount);
  entry.Find("cuDeviceGet", 2000, api.cuDeviceGet);
  entry.Find("cuDeviceGetName", 2000, api.cuDeviceGetName);
  entry.Find("cuDeviceGetAttribute", 2000, api.cuDeviceGetAttribute);
  entry.Find("cuDeviceTotalMem", 3020, api.cuDeviceTotalMem);
  entry.Find("cuDeviceCanAccessPeer", 4000, api.cuDeviceCanAccessPeer);
  entry.Find("cuDevicePrimaryCtxRetain", 7000, api.cuDevicePrimaryCtxRetain);
  entry.Find("cuDevicePrimaryCtxRelease", 11000, api.cuDevicePrimaryCtxRelease);
  entry.Find("cuCtxGetCurrent", 4000, api.cuCtxGetCurrent);
  entry.Find("cuCtxSetCurrent", 4000, api.cuCtxSetCurrent);
}

void FindMemory(EntryPoints& entry, CudaApi& api) {
  entry.Find("cuMemGetAllocationGranularity", 10020, api.cuMemGetAllocationGranularity);
  entry.Find("cuMemAddressReserve", 10020, api.cuMemAddressReserve);
  entry.Find("cuMemAddressFree", 10020, api.cuMemAddressFree);
  entry.Find("cuMemCreate", 10020, api.cuMemCreate);
  entry.Find("cuMemRelease", 10020, api.cuMemRelease);
  entry.Find("cuMemMap", 10020, api.cuMemMap);
  entry.Find("cuMemUnmap", 10020, api.cuMemUnmap);
  entry.Find("cuMemSetAccess", 10020, api.cuMemSetAccess);
  entry.Find("cuMemAlloc", 3020, api.cuMemAlloc);
  entry.Find("cuMemFree", 3020, api.cuMemFree);
  entry.Find("cuMemHostAlloc", 2020, api.cuMemHostAlloc);
  entry.Find("cuMemFreeHost", 2000, api.cuMemFreeHost);
  entry.Find("cuMemHostGetDevicePointer", 3020, api.cuMemHostGetDevicePointer);
  entry.Find("cuMemcpyAsync", 4000, api.cuMemcpyAsync);
  entry.Find("cuMemsetD8Async", 3020, api.cuMemsetD8Async);
}

void FindStreams(EntryPoints& entry, CudaApi& api) {
  entry.Find("cuStreamCreate", 2000, api.cuStreamCreate);
  entry.Find("cuStreamDestroy", 4000, api.cuStreamDestroy);
  entry.Find("cuStreamQuery", 2000, api.cuStreamQuery);
  entry.Find("cuStreamSynchronize", 2000, api.cuStreamSynchronize);
  entry.Find("cuStreamWaitEvent", 3020, api.cuStreamWaitEvent);
  entry.Find("cuStreamWriteValue64", 11070, api.cuStreamWriteValue64);
  entry.Find("cuStreamWaitValue64", 11070, api.cuStreamWaitValue64);
  entry.Find("cuLaunchHostFunc", 10000, api.cuLaunchHostFunc);
  entry.Find("cuEventCreate", 2000, api.cuEventCreate);
  entry.Find("cuEventDestroy", 4000, api.cuEventDestroy);
  entry.Find("cuEventRecord", 2000, api.cuEventRecord);
  entry.Find("cuEventQuery", 2000, api.cuEventQuery);
  entry.Find("cuEventSynchronize", 2000, api.cuEventSynchronize);
  entry.Find("cuEventElapsedTime", 2000, api.cuEventElapsedTime);
}

Result<CudaApi> Load() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* why = dlerror();
    return NotFound("libcuda.so.1 not found: no NVIDIA driver (" +
                    std::string(why == nullptr ? "no reason given" : why) + ")");
  }
  const auto get =
      reinterpret_cast<PFN_cuGetProcAddress_v12000>(dlsym(library, "cuGetProcAddress_v2"));
  if (get == nullptr) {
    return Unsupported("libcuda.so.1 is older than CUDA 12.0; weir needs driver 525 or newer");
  }
  CudaApi api;
  EntryPoints entry(get);
  FindDevice(entry, api);
  FindMemory(entry, api);
  FindStreams(entry, api);
  if (!entry.missing().empty()) {
    return Unsupported("libcuda.so.1 lacks " + entry.missing() + "; weir needs a newer driver");
  }
  // Both are read by cuInit.
  // A gated stream blocks its hardware queue. With the default of 8 queues the ninth stream shares
  // one with the first, and a gate could hold up the very copy that would open it.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0);
  // A kernel that is loaded when it is first launched waits for what runs, holding up all streams:
  // behind a closed gate that is a deadlock.
  setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0);
  const CUresult result = api.cuInit(0);
  if (result == CUDA_ERROR_NO_DEVICE) return NotFound("no CUDA device");
  if (result != CUDA_SUCCESS) return Unsupported(api.Describe("cuInit", result));
  int devices = 0;
  WEIR_TRY(api.ToStatus("cuDeviceGetCount", api.cuDeviceGetCount(&devices)));
  if (devices < 1) return NotFound("no CUDA device");
  return api;
}

}  // namespace

std::string CudaApi::Describe(const char* call, CUresult result) const {
  const char* name = nullptr;
  const char* text = nullptr;
  cuGetErrorName(result, &name);
  cuGetErrorString(result, &text);
  std::string message = std::string(call) + ": ";
  message += name == nullptr ? "CUDA error " + std::to_string(static_cast<int>(result)) : name;
  if (text != nullptr) message += " (" + std::string(text) + ")";
  return message;
}

Status CudaApi::ToStatus(const char* call, CUresult result) const {
  switch (result) {
    case CUDA_SUCCESS: return OkStatus();
    case CUDA_ERROR_OUT_OF_MEMORY: return NoMemory(Describe(call, result));
    case CUDA_ERROR_NOT_SUPPORTED: return Unsupported(Describe(call, result));
    default: return DriverError(Describe(call, result));
  }
}

Result<const CudaApi*> LoadCudaApi() {
  // Never destroyed: drivers that live in static objects may outlast it otherwise.
  static const auto* const loaded = new Result<CudaApi>(Load());
  if (!loaded->ok()) return loaded->status();
  return &loaded->value();
}

bool IsStickyCudaError(CUresult result) {
  switch (result) {
    case CUDA_ERROR_DEINITIALIZED:
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_UNKNOWN: return true;
    default: return false;
  }
}

}  // namespace weir
