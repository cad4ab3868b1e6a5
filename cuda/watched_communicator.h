/// \file
/// What the transports of GPUs share: the host's half, a thread that launches, and one that watches over the rank.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>

#include "aliquot/communicator.h"
#include "aliquot/error.h"
#include "cuda/progress.h"
#include "failure.h"
#include "launcher.h"
#include "watch.h"
#include "watched_host.h"

namespace aliquot {

/// Calls only hand work to the device; what is launched, a thread of the rank hands over. Another one notices a dead
/// peer, ranks that disagree, a passed deadline, an abort, and what the transport itself looks for. The first of these
/// is recorded, told to the peers, and ends the device's waits; later calls throw it. See docs/design.md, "Watching the
/// device".
class WatchedCommunicator : public Communicator {
 public:
  ~WatchedCommunicator() override;

  bool one_sided() const noexcept override { return false; }
  Communicator& host() noexcept override { return host_; }
  void barrier(const Tag& tag) override { host_.barrier(tag); }
  void require_intact() override;
  std::uint64_t launch(std::function<void()> work) override;
  void await(std::uint64_t launch) override;
  void abort(std::string_view reason) noexcept override;
  void leave() noexcept override;

 protected:
  /// \param control  what ranks call on the host goes through it
  /// \param channel  what ends the world is told there too, if there is one; see also Watch
  WatchedCommunicator(std::unique_ptr<Communicator> control, Device device, ControlChannel* channel);

  /// What a constructor ends with: from here on a thread calls the four functions that follow, and another one launches
  /// work. A destructor begins with leave(), after which neither does anything.
  void begin_watch();
  /// Throws if the device met an error, or does not get on.
  virtual void look_at_device() = 0;
  /// True if the device has done all that it was given. \throws DeviceError
  virtual bool idle() = 0;
  /// Ends all waits on the device. Safe from any thread.
  virtual void abort_device() noexcept = 0;
  /// After abort_device: waits, for seconds at most, until it has taken effect.
  virtual void await_abort() noexcept = 0;

  Device device() const noexcept { return device_; }
  /// A fork of the rank has the object, but neither the thread nor the device.
  bool in_fork() const noexcept;
  bool has_left() const noexcept { return left_; }
  /// Says that this rank makes its next call, before it does, and behind all that was launched.
  void say(std::string_view collective, const Tag& tag, std::uint64_t size, int root = -1);
  /// Throws what has ended the world, if this rank knows of anything.
  void raise_failure() const { failure_.raise(); }
  /// \throws CommunicatorError if the `what` that `progress` marks have been outstanding for longer than `longest`
  void require_progress(cuda::Progress& progress, std::string_view what, cuda::Progress::Clock::duration longest) const;
  /// Two ranks get here with the same size, behind all that was launched, or both throw.
  void agree(const Tag& tag, std::size_t bytes, int from, int to);
  /// What goes wrong with `act` ends the world.
  template <typename Act>
  void end_if_fails(const Act& act) {
    failure_.raise();
    try {
      act();
    } catch (const Error& error) {
      failure_.raise();  // what an abort or a lost rank leads to is not its reason
      fails([this] { watch_.look_for_reason(); });
      end(named() + ": " + error.what());
      failure_.raise_if_lost();
      throw;
    } catch (...) {
      end(interrupted());
      throw;
    }
  }

 private:
  /// What the watcher sleeps on.
  struct Alarm {
    std::mutex mutex;
    std::condition_variable_any wake;
  };

  void watch(const std::stop_token& stop) noexcept;
  /// Remembers what `check` throws, and says whether it did.
  bool fails(const std::function<void()>& check) noexcept;
  /// Says to all ranks why the world ends.
  void tell(std::string_view reason) noexcept;
  /// Ends the world for all ranks, and what runs on the device; `text` is the reason unless there was one already.
  void end(std::string_view text) noexcept;
  bool drain() noexcept;
  /// Not before begin_watch(), after leave(), or in a fork.
  bool can_launch() const noexcept { return launcher_ != nullptr && !in_fork(); }
  std::string interrupted() const;
  std::string named() const { return "rank " + std::to_string(names().of(rank())); }

  std::unique_ptr<Communicator> control_;
  ControlChannel* channel_;
  Device device_;
  pid_t creator_;
  Failure failure_{};
  Watch watch_;
  WatchedHost host_;
  std::unique_ptr<Launcher> launcher_;  ///< ends in leave(), before what its work uses
  std::atomic<bool> left_ = false;
  std::unique_ptr<Alarm> alarm_ = std::make_unique<Alarm>();
  std::jthread watcher_;
};

}  // namespace aliquot
