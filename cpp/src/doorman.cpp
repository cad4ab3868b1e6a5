#include "doorman.h"

#include <sys/random.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "aliquot/error.h"

namespace aliquot {
namespace {

constexpr std::size_t longest_greeting = 128;

std::string random_secret() {
  std::array<unsigned char, 32> bytes{};
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    throw CommunicatorError(std::string("getrandom: ") + std::strerror(errno));
  }
  std::string text;
  for (const unsigned char byte : bytes) {
    for (const int digit : {byte >> 4, byte & 15}) text += "0123456789abcdef"[digit];
  }
  return text;
}

// Takes as long whether the first or the last character differs.
bool same(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return false;
  int differing = 0;
  for (std::size_t i = 0; i < a.size(); ++i) differing |= a[i] ^ b[i];
  return differing == 0;
}

}  // namespace

Doorman::Doorman(const std::string& address, int world_size)
    : world_size_(world_size), listening_(listen_at(address, world_size + static_cast<int>(most_waiting))),
      secret_(random_secret()) {
  const Endpoint endpoint = endpoint_of(listening_);
  invitation_ = endpoint.address + ' ' + endpoint.port + ' ' + secret_;
}

std::vector<int> Doorman::descriptors() const {
  std::vector<int> numbers{listening_.number()};
  for (const Waiting& waiting : waiting_) numbers.push_back(waiting.connection->number());
  return numbers;
}

std::vector<Doorman::Caller> Doorman::look(Clock::time_point now) {
  take_calls(now);
  std::vector<Caller> callers;
  std::erase_if(waiting_, [&](Waiting& waiting) {
    Caller caller{};
    const Answer answered = answer(waiting, now, caller);
    if (answered == Answer::let_in) callers.push_back(std::move(caller));
    return answered != Answer::wait;
  });
  return callers;
}

void Doorman::take_calls(Clock::time_point now) {
  while (UnsharedDescriptor socket = accept_from(listening_)) {
    waiting_.push_back({std::make_unique<Connection>(std::move(socket), longest_greeting), now});
    if (waiting_.size() > most_waiting + static_cast<std::size_t>(world_size_)) waiting_.pop_front();
  }
}

Doorman::Answer Doorman::answer(Waiting& waiting, Clock::time_point now, Caller& caller) const try {
  const bool open = waiting.connection->receive();
  const auto frame = waiting.connection->reader().next();
  if (!frame) return open && now - waiting.since < longest_wait ? Answer::wait : Answer::send_away;
  BodyReader body(frame->body);
  const std::string secret = body.text();
  const std::uint64_t rank = body.number();
  if (frame->kind != Kind::hello || !same(secret, secret_) || rank == 0 ||
      rank >= static_cast<std::uint64_t>(world_size_)) {
    return Answer::send_away;
  }
  caller = {static_cast<int>(rank), body.number(), std::move(waiting.connection)};
  caller.connection->reader().allow(longest_body);
  return Answer::let_in;
} catch (const CommunicatorError&) {  // what it said is no greeting
  return Answer::send_away;
}

std::unique_ptr<Connection> call(const std::string& invitation, int rank, std::chrono::milliseconds patience) {
  const std::size_t port = invitation.find(' ');
  const std::size_t secret = invitation.find(' ', port + 1);
  if (port == std::string::npos || secret == std::string::npos) {
    throw CommunicatorError("the store holds '" + invitation + "' where rank 0's address should be");
  }
  const Endpoint endpoint{invitation.substr(0, port), invitation.substr(port + 1, secret - port - 1)};
  auto connection = std::make_unique<Connection>(connect_to(endpoint, patience), longest_body);
  connection->send(make_frame(Kind::hello, invitation.substr(secret + 1), static_cast<std::uint64_t>(rank),
                              static_cast<std::uint64_t>(getpid())));
  return connection;
}

}  // namespace aliquot
