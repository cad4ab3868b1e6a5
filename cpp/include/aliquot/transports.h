/// \file
/// The transports for CPUs of one host.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "aliquot/communicator.h"

namespace aliquot {

inline constexpr std::chrono::milliseconds default_timeout = std::chrono::minutes(10);

/// `thread`: ranks are threads of this process. Element r is rank r's; give each to its thread. A rank whose thread
/// ends early must call abort() (destroying its communicator does), or its peers wait for their deadline.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(
    int world_size, std::chrono::milliseconds timeout = default_timeout);

/// `shared_memory`: ranks are processes of one host. Memory is anonymous (memfd) and mapped by all, so a killed job
/// leaves nothing behind; a dead process is noticed through its pidfd. Collective over `store`; `name` keeps several
/// communicators on one store apart.
/// \throws CommunicatorError if a rank lies on another host or another user's.
std::unique_ptr<Communicator> make_shared_memory_communicator(const KeyValueStore& store, const std::string& name,
                                                              int rank, int world_size,
                                                              std::chrono::milliseconds timeout = default_timeout);

/// Called about every 100 ms by a rank that waits on the host, so that an embedding language can raise (Python's
/// KeyboardInterrupt). It may throw. Process-wide; set it once, at start.
void set_interrupt_check(std::function<void()> check);

}  // namespace aliquot
