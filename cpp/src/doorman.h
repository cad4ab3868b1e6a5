/// \file
/// Who may join a ControlChannel.
#pragma once

#include <chrono>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "connection.h"

namespace aliquot {

/// Rank 0's listening socket. Whoever calls must at once say the secret, which the ranks have from their store: to read
/// the store is what makes a rank. Who does not, or is too long about it, is cut off; so is the oldest of too many.
class Doorman {
 public:
  using Clock = std::chrono::steady_clock;

  struct Caller {
    int rank;
    std::uint64_t pid;
    std::unique_ptr<Connection> connection;
  };

  Doorman(const std::string& address, int world_size);

  /// What a rank needs to join.
  const std::string& invitation() const { return invitation_; }
  /// All that poll is to watch.
  std::vector<int> descriptors() const;
  /// Lets in those who have proved to be ranks.
  std::vector<Caller> look(Clock::time_point now);

  static constexpr std::size_t most_waiting = 64;
  static constexpr std::chrono::seconds longest_wait{5};

 private:
  struct Waiting {
    std::unique_ptr<Connection> connection;
    Clock::time_point since;
  };
  enum class Answer { wait, send_away, let_in };

  void take_calls(Clock::time_point now);
  Answer answer(Waiting& waiting, Clock::time_point now, Caller& caller) const;

  int world_size_;
  UnsharedDescriptor listening_;
  std::string secret_;
  std::string invitation_;
  std::list<Waiting> waiting_;
};

/// A rank's end of the connection that an invitation leads to, with its greeting in it.
/// \throws CommunicatorError
std::unique_ptr<Connection> call(const std::string& invitation, int rank, std::chrono::milliseconds patience);

}  // namespace aliquot
