#include <unistd.h>

#include <csignal>

#include "control_impl.h"

namespace aliquot {
namespace {

// Whom SIGTERM asks to stop. Only the first of two: the handler gives the signal its default effect back.
std::atomic<ControlChannel::Impl*> asked = nullptr;

void ask(int signal) {
  ControlChannel::Impl* const channel = asked;
  if (channel != nullptr && channel->creator == getpid()) return channel->request_stop();
  raise(signal);  // a fork is no rank
}

bool has_default_effect(int signal) {
  struct sigaction now{};
  return sigaction(signal, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) == 0 && now.sa_handler == SIG_DFL;
}

}  // namespace

bool ControlChannel::Impl::stop_on_terminate() {
  if (asked == this) return true;  // also once the signal has come: the second is to end the process
  if (!has_default_effect(SIGTERM)) return false;
  asked = this;
  struct sigaction ours{};
  ours.sa_handler = &ask;
  ours.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
  return sigaction(SIGTERM, &ours, nullptr) == 0;
}

void ControlChannel::Impl::forget_sigterm() const noexcept {
  ControlChannel::Impl* expected = const_cast<Impl*>(this);
  if (!asked.compare_exchange_strong(expected, nullptr)) return;
  struct sigaction now{};
  if (sigaction(SIGTERM, nullptr, &now) == 0 && now.sa_handler == &ask) std::signal(SIGTERM, SIG_DFL);
}

}  // namespace aliquot
