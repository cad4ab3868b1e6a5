#include "cuda/nccl_api.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>

#include "aliquot/error.h"
#include "aliquot/transports.h"

namespace aliquot {
namespace nccl {
namespace {

constexpr const char* soname = "libnccl.so.2";
constexpr int oldest = 21900;  // the first that lends out memory of its own

std::mutex named_mutex;
std::string& named() {
  static std::string path;
  return path;
}

std::string named_library() {
  const std::lock_guard lock(named_mutex);
  return named();
}

void* open_library() {
  // Read when the first communicator is made. Multicast objects of NVLink are shared by all jobs of a host and scarce;
  // whoever wants them says so.
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  if (void* loaded = dlopen(soname, RTLD_NOW | RTLD_NOLOAD)) return loaded;
  std::string reasons;
  for (const std::string& path : {named_library(), std::string(soname)}) {
    if (path.empty()) continue;
    if (void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    reasons += std::string(reasons.empty() ? "" : "; ") + dlerror();
  }
  throw CommunicatorError("the transport nccl needs the library NCCL, which could not be loaded: " + reasons +
                          ". It comes with torch's CUDA build, or with pip install nvidia-nccl-cu13");
}

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
}

std::string path_of(void* symbol) {
  Dl_info info{};
  return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "unknown";
}

template <typename... Functions>
bool all_found(const Functions&... functions) {
  return ((functions != nullptr) && ...);
}

void find_all(void* library, Api& api) {
  find(library, "ncclGetVersion", api.get_version);
  find(library, "ncclGetUniqueId", api.get_unique_id);
  find(library, "ncclCommInitRankConfig", api.init_rank);
  find(library, "ncclCommSplit", api.split);
  find(library, "ncclCommFinalize", api.finalize);
  find(library, "ncclCommDestroy", api.destroy);
  find(library, "ncclCommAbort", api.abort);
  find(library, "ncclCommGetAsyncError", api.async_error);
  find(library, "ncclCommCount", api.count);
  find(library, "ncclCommUserRank", api.user_rank);
  find(library, "ncclCommCuDevice", api.device);
  find(library, "ncclGetErrorString", api.error_string);
  find(library, "ncclGetLastError", api.last_error);
  find(library, "ncclGroupStart", api.group_start);
  find(library, "ncclGroupEnd", api.group_end);
  find(library, "ncclAllGather", api.all_gather);
  find(library, "ncclBroadcast", api.broadcast);
  find(library, "ncclSend", api.send);
  find(library, "ncclRecv", api.receive);
  find(library, "ncclMemAlloc", api.allocate);
  find(library, "ncclMemFree", api.free);
  find(library, "ncclCommWindowRegister", api.register_window);
  find(library, "ncclCommWindowDeregister", api.deregister_window);
}

bool complete(const Api& a) {
  return all_found(a.get_version, a.get_unique_id, a.init_rank, a.split, a.finalize, a.destroy, a.abort, a.async_error,
                   a.count, a.user_rank, a.device, a.error_string, a.last_error, a.group_start, a.group_end,
                   a.all_gather, a.broadcast, a.send, a.receive, a.allocate, a.free);
}

Api load() {
  void* library = open_library();
  Api api{};
  find_all(library, api);
  if (api.get_version != nullptr) {
    api.get_version(&api.version);
    api.path = path_of(reinterpret_cast<void*>(api.get_version));
  }
  if (api.version >= oldest && complete(api)) return api;
  throw CommunicatorError("NCCL at " + api.path + " has version " + std::to_string(api.version) +
                          "; the transport nccl needs 2.19 (" + std::to_string(oldest) + ") or later");
}

}  // namespace

const Api& api() {
  static const Api loaded = load();  // an exception leaves it for the next call to try again
  return loaded;
}

}  // namespace nccl

void set_nccl_library(const std::string& path) {
  const std::lock_guard lock(nccl::named_mutex);
  nccl::named() = path;
}

}  // namespace aliquot
