/// \file
/// The functions of NCCL that Aliquot calls, by our own declarations, found in the library when it is first needed.
/// tests/cuda compares them with the real header. All names of NCCL's own are in nccl_api.cpp.
#pragma once

#include <array>
#include <climits>
#include <cstddef>
#include <string>

#include <cuda_runtime_api.h>

namespace aliquot::nccl {

struct CommState;
using Comm = CommState*;
struct WindowState;
using Window = WindowState*;

struct UniqueId {
  std::array<char, 128> bytes;
};

enum class Result : int { success = 0, invalid_usage = 5, remote_error = 6, in_progress = 7 };
enum class DataType : int { uint8 = 1 };

/// Version 2.28.0 of its configuration. Older libraries read the beginning, newer ones take the rest as not set.
struct Config {
  static constexpr int unset = INT_MIN;

  std::size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 22800;
  int blocking = unset;
  int cga_cluster_size = unset;
  int min_ctas = unset;
  int max_ctas = unset;
  const char* net_name = nullptr;
  int split_share = unset;
  int traffic_class = unset;
  const char* comm_name = nullptr;
  int collnet_enable = unset;
  int cta_policy = unset;
  int shrink_share = unset;
  int nvls_ctas = unset;
  int channels_per_net_peer = unset;
  int nvlink_centric_sched = unset;
};
inline constexpr int cta_policy_zero = 2;  ///< Config::cta_policy: copy engines where they can do the work
inline constexpr int cta_policy_zero_since = 22800;
inline constexpr int window_symmetric = 1;  ///< every rank registers, and uses, the same offsets

struct Api {
  Result (*get_version)(int* version);
  Result (*get_unique_id)(UniqueId* id);
  Result (*init_rank)(Comm* comm, int world_size, UniqueId id, int rank, Config* config);
  Result (*split)(Comm comm, int color, int key, Comm* made, Config* config);
  Result (*finalize)(Comm comm);
  Result (*destroy)(Comm comm);
  Result (*abort)(Comm comm);
  Result (*async_error)(Comm comm, Result* error);
  Result (*count)(Comm comm, int* count);
  Result (*user_rank)(Comm comm, int* rank);
  Result (*device)(Comm comm, int* device);
  const char* (*error_string)(Result result);
  const char* (*last_error)(Comm comm);
  Result (*group_start)();
  Result (*group_end)();
  Result (*all_gather)(const void* part, void* whole, std::size_t count, DataType type, Comm comm, cudaStream_t stream);
  Result (*broadcast)(const void* from, void* to, std::size_t count, DataType type, int root, Comm comm,
                      cudaStream_t stream);
  Result (*send)(const void* data, std::size_t count, DataType type, int to, Comm comm, cudaStream_t stream);
  Result (*receive)(void* data, std::size_t count, DataType type, int from, Comm comm, cudaStream_t stream);
  Result (*allocate)(void** data, std::size_t bytes);
  Result (*free)(void* data);
  // Null in libraries before 2.27:
  Result (*register_window)(Comm comm, void* data, std::size_t bytes, Window* window, int flags);
  Result (*deregister_window)(Comm comm, Window window);

  int version = 0;   ///< 22809 is 2.28.9
  std::string path;  ///< of the library, as the loader knows it
};

/// The copy that is loaded already (torch brings one), else the one that set_nccl_library() named, else that of the
/// loader's search path. Loaded once.
/// \throws CommunicatorError if there is none, or one too old
const Api& api();

}  // namespace aliquot::nccl
