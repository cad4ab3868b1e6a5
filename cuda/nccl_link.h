/// \file
/// One communicator of NCCL, which never keeps a thread waiting for ever.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <string>

#include "aliquot/device.h"
#include "cuda/aside.h"
#include "cuda/nccl_api.h"

namespace aliquot::nccl {

/// How long a link waits for peers.
struct Patience {
  std::chrono::milliseconds timeout;
  std::function<void()> require_hope;  ///< asked again and again during a wait; throws when it has become pointless
};

/// Owner of a communicator of NCCL. NCCL's calls on it are made one at a time, whichever threads make them; only abort
/// does not wait for a call that is stuck.
class Link {
 public:
  /// Collective: every rank has the same `id` and `config`.
  Link(Device device, int rank, int world_size, const UniqueId& id, Config config, Patience patience);
  /// Of the ranks of `parent`. Collective over it.
  Link(Device device, int rank, Comm parent, Config config, Patience patience);
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  /// Ends in good order with its peers, within seconds; else aborts.
  ~Link();

  /// `make(comm)` makes a call of NCCL, which has taken effect when this returns. The first of a kind waits for peers;
  /// an abort gets it out.
  /// \throws CommunicatorError with `what` if NCCL refuses
  void call(const char* what, const std::function<Result(Comm)>& make);
  /// Throws CommunicatorError if NCCL met an error since. Never waits.
  void require_health();
  /// Ends what runs on the device, and this link. Returns within about a second; safe from any thread.
  void abort() noexcept;
  /// After abort: waits until NCCL has given everything back; after 5 seconds the process ends (see Watchdog).
  void await_abort() noexcept;
  /// Gives the communicator up as it is: for the end of the process, when the runtime may be gone.
  void abandon() noexcept { comm_ = nullptr; }

 private:
  void become(const char* what, const std::function<Result(Comm*)>& make);
  Result state_of(Comm comm) const;
  void finish() noexcept;
  [[noreturn]] void refuse(const char* what, Result result) const;

  const Api& api_;
  Device device_;
  Patience patience_;
  std::timed_mutex mutex_;
  std::atomic<Comm> comm_ = nullptr;  ///< null once it was aborted
  std::optional<cuda::Aside<Result>> aborting_;
};

}  // namespace aliquot::nccl
