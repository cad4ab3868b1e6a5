#include <algorithm>
#include <utility>

#include "aliquot/error.h"
#include "control_impl.h"
#include "rank.h"

namespace aliquot {
namespace {

std::uint64_t wide(int number) { return static_cast<std::uint64_t>(number); }

}  // namespace

void ControlChannel::Impl::take(int from, const Frame& frame) {
  BodyReader body(frame.body);
  const auto next_rank = [&] {
    const std::uint64_t number = body.number();
    if (number >= wide(world_size)) throw CommunicatorError("there is no rank " + std::to_string(number));
    return static_cast<int>(number);
  };
  switch (frame.kind) {
    case Kind::hello: throw CommunicatorError("it has joined already");
    case Kind::welcome: joined_ = true; return;
    case Kind::heartbeat: return on_heartbeat(from, body);
    case Kind::fault: {
      const int lost = next_rank();
      return end(lost, body.text());
    }
    case Kind::left: return on_left(next_rank());
    case Kind::part: return on_part(from, body);
    case Kind::gathered: return on_gathered(body);
    case Kind::refused: return on_refused(body);
    case Kind::stop: return on_stop();
    case Kind::count: return on_count();
    case Kind::counted: return on_counted(from, body.number());
    case Kind::stop_at: stop_at_ = body.number(); return;
    case Kind::told: {
      const int other = next_rank();
      std::string name = body.text();
      return on_told(from, other, std::move(name), body.text());
    }
  }
}

void ControlChannel::Impl::on_heartbeat(int from, BodyReader& body) {
  if (from != 0) {
    peers_[static_cast<std::size_t>(from)].progress = body.number();
    return;
  }
  for (Peer& peer : peers_) peer.progress = body.number();
}

void ControlChannel::Impl::on_left(int who) {
  peers_[static_cast<std::size_t>(who)].left = true;
  if (rank != 0) return;
  for (int r = 1; r < world_size; ++r) {
    if (r != who) send_to(r, make_frame(Kind::left, wide(who)));
  }
  refuse_without(who);
  on_counted(who, 0);
}

void ControlChannel::Impl::on_part(int from, BodyReader& body) {
  const std::string name = body.text();
  const auto longest = std::min<std::uint64_t>(body.number(), std::chrono::milliseconds(std::chrono::years(1)).count());
  const auto round = rounds_.add(from, name, body.text(), Clock::now() + std::chrono::milliseconds(longest));
  for (int r = 0; round && r < world_size; ++r) {
    tell_all(make_frame(Kind::gathered, name, wide(r), *round->parts[static_cast<std::size_t>(r)]));
  }
  for (int r = 0; r < world_size; ++r) {
    if (peers_[static_cast<std::size_t>(r)].left) refuse_without(r);
  }
}

void ControlChannel::Impl::on_gathered(BodyReader& body) {
  const auto found = gatherings_.find(body.text());
  if (found == gatherings_.end()) return;  // who asked for it was interrupted
  const std::uint64_t who = body.number();
  if (who < peers_.size()) found->second.parts[who] = body.text();
}

void ControlChannel::Impl::on_refused(BodyReader& body) {
  const auto found = gatherings_.find(body.text());
  if (found == gatherings_.end()) return;
  const int lost = static_cast<int>(body.number()) - 1;
  found->second.refusal = Fault{lost, body.text()};
}

void ControlChannel::Impl::on_stop() {
  if (vote_.begin()) tell_all(make_frame(Kind::count));
}

void ControlChannel::Impl::on_count() {
  counted_ = true;
  send_to(0, make_frame(Kind::counted, stop_calls_));
}

void ControlChannel::Impl::on_counted(int from, std::uint64_t calls) {
  if (const auto answer = vote_.count(from, calls)) tell_all(make_frame(Kind::stop_at, *answer));
}

void ControlChannel::Impl::on_told(int from, int other, std::string name, std::string text) {
  if (rank == 0 && other != 0) return send_to(other, make_frame(Kind::told, wide(from), name, text));
  told_.push_back({rank == 0 ? from : other, std::move(name), std::move(text)});
}

void ControlChannel::Impl::send_to(int to, const Frame& frame) {
  if (to == rank) return take(rank, frame);
  if (const auto& line = peers_[static_cast<std::size_t>(to)].line) line->send(frame);
}

void ControlChannel::Impl::tell_all(const Frame& frame) {
  for (int r = 0; r < world_size; ++r) send_to(r, frame);
}

void ControlChannel::Impl::refuse(const std::vector<std::pair<std::string, Rounds::Round>>& rounds, int lost,
                                  const std::string& how) {
  for (const auto& [name, round] : rounds) {
    const std::string who = lost < 0 ? list_of(round.missing()) : named(lost);
    const std::string text = std::string("all_gather '").append(name).append("': ").append(who).append(" ").append(how);
    for (int r = 0; r < world_size; ++r) {
      if (round.parts[static_cast<std::size_t>(r)]) send_to(r, make_frame(Kind::refused, name, wide(lost + 1), text));
    }
  }
}

void ControlChannel::Impl::refuse_without(int who) {
  refuse(rounds_.without(who), who, "has left (it ended in good order) and gave nothing");
}

void ControlChannel::Impl::end(int lost, const std::string& text) {
  if (fault_) return;
  fault_ = Fault{lost, text};
  for (const Peer& peer : peers_) {
    if (peer.line) peer.line->send(make_frame(Kind::fault, wide(lost), text));
  }
}

std::string ControlChannel::Impl::named(int who) const {
  const std::uint64_t pid = peers_[static_cast<std::size_t>(who)].pid;
  return "rank " + std::to_string(who) + (pid != 0 ? " (pid " + std::to_string(pid) + ")" : "");
}

}  // namespace aliquot
