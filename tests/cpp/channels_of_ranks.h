/// \file
/// Ranks that have a control channel: as threads where they talk, as processes where they die or freeze.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "aliquot/control.h"
#include "outcomes.h"

namespace aliquot::test {

using ChannelBody = std::function<void(ControlChannel&)>;

inline std::string numbered(const std::string& text, int rank) { return text + std::to_string(rank); }

inline ControlOptions with_patience(std::chrono::milliseconds frozen_after) {
  return {.address = "127.0.0.1", .patience = frozen_after, .timeout = patience};
}

/// Each rank's body in a thread, with its channel, which ends with the body. What each threw, by rank.
inline std::vector<std::string> run_channels(int world_size, const ChannelBody& body,
                                             const ControlOptions& options = {}) {
  const DirectoryStore directory;
  std::vector<std::string> messages(static_cast<std::size_t>(world_size));
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      messages[static_cast<std::size_t>(rank)] = message_of([&] {
        ControlChannel channel(directory.store(), "test", rank, world_size, options);
        body(channel);
      });
    });
  }
  threads.clear();
  return messages;
}

/// The same in processes. SIGALRM ends what hangs.
inline std::vector<Outcome> run_channel_processes(int world_size, std::chrono::milliseconds frozen_after,
                                                  const ChannelBody& body) {
  return run_processes(world_size, [&](const KeyValueStore& store, int rank) {
    alarm(60);
    ControlChannel channel(store, "test", rank, world_size, with_patience(frozen_after));
    body(channel);
  });
}

/// Waits for the fault of the channel, and throws it.
inline void await_fault(const ControlChannel& channel) { channel.look_for_lost(patience); }

/// A number that this process and those forked from it share.
class SharedNumber {
 public:
  SharedNumber()
      : number_(static_cast<std::int64_t*>(
            mmap(nullptr, sizeof(std::int64_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~SharedNumber() { munmap(number_, sizeof *number_); }
  SharedNumber(const SharedNumber&) = delete;
  SharedNumber& operator=(const SharedNumber&) = delete;

  std::atomic_ref<std::int64_t> operator*() const { return std::atomic_ref(*number_); }

 private:
  std::int64_t* number_;
};

}  // namespace aliquot::test
