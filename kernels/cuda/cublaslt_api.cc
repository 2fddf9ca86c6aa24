#include "kernels/cuda/cublaslt_api.h"

#include <cstdlib>
#include <vector>

#include <dlfcn.h>

namespace weir::cuda {
namespace {

struct Loaded {
  CublasLtApi api;
  std::string reason;
};

std::vector<std::string> Candidates() {
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  std::vector<std::string> paths = {name};
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const char* home = std::getenv(variable)) {
      paths.push_back(std::string(home) + "/lib64/" + name);
    }
  }
  paths.push_back("/usr/local/cuda/lib64/" + name);
  return paths;
}

Loaded Load() {
  Loaded loaded;
  void* library = nullptr;
  std::string errors;
  for (const std::string& path : Candidates()) {
    library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
    errors += std::string("; ") + dlerror();
  }
  if (library == nullptr) {
    loaded.reason =
        "cuBLASLt " + std::to_string(CUBLAS_VER_MAJOR) + " could not be opened" + errors;
    return loaded;
  }
#define WEIR_RESOLVE(name)                                                      \
  loaded.api.name = reinterpret_cast<decltype(&::name)>(dlsym(library, #name)); \
  if (loaded.api.name == nullptr) loaded.reason = "cuBLASLt lacks the function " #name;
  WEIR_CUBLASLT_FUNCTIONS(WEIR_RESOLVE)
#undef WEIR_RESOLVE
  return loaded;
}

}  // namespace

const CublasLtApi* LoadCublasLt(std::string* reason) {
  static const Loaded loaded = Load();
  if (loaded.reason.empty()) return &loaded.api;
  *reason = loaded.reason;
  return nullptr;
}

const char* CublasStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "not initialised";
    case CUBLAS_STATUS_ALLOC_FAILED: return "allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE: return "invalid value";
    case CUBLAS_STATUS_ARCH_MISMATCH: return "not for this GPU";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "execution failed";
    case CUBLAS_STATUS_INTERNAL_ERROR: return "internal error";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "not supported";
    default: return "unknown error";
  }
}

}  // namespace weir::cuda
