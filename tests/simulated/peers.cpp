// Fills the seams of the transports peer and nccl: ranks are threads of this process, and read each other's memory
// where it is.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "aliquot/error.h"
#include "aliquot/transports.h"
#include "launcher.h"
#include "tests/simulated/streams.h"

namespace aliquot {
namespace {

using simulated::give;

/// Where streams of all ranks wait for each other.
class Meetings {
 public:
  explicit Meetings(std::size_t ranks) : ranks_(ranks) {}

  using Number = std::pair<int, std::uint64_t>;  ///< channel, and which of its meetings
  using Brought = std::vector<const std::byte*>;

  /// What every rank has brought; empty once the world has ended.
  Brought attend(Number number, int rank, const std::byte* mine) {
    std::unique_lock lock(mutex_);
    Meeting& meeting = meetings_[number];
    meeting.brought.resize(ranks_);
    meeting.brought[static_cast<std::size_t>(rank)] = mine;
    ++meeting.arrived;
    changed_.notify_all();
    changed_.wait(lock, [&] { return aborted_ || meeting.arrived == ranks_; });
    if (aborted_) return {};
    Brought brought = meeting.brought;
    if (++meeting.left == ranks_) meetings_.erase(number);
    return brought;
  }
  void abort() {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    changed_.notify_all();
  }

 private:
  struct Meeting {
    Brought brought;
    std::size_t arrived = 0;
    std::size_t left = 0;
  };
  std::size_t ranks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Number, Meeting> meetings_;
  bool aborted_ = false;
};

/// A piece of memory as every rank has it.
struct Region {
  std::span<std::byte> mine;
  std::vector<const std::byte*> begins;  ///< by rank
};

class SimulatedPeers : public Communicator {
 public:
  SimulatedPeers(std::unique_ptr<Communicator> control, std::shared_ptr<Meetings> meetings)
      : Communicator(control->rank(), control->world_size(), control->timeout()), control_(std::move(control)),
        meetings_(std::move(meetings)), launcher_(std::make_unique<Launcher>([] {})) {}
  ~SimulatedPeers() override {
    launcher_.reset();
    meetings_->abort();
  }

  std::string_view name() const noexcept override { return "peer"; }
  bool one_sided() const noexcept override { return false; }
  bool maps_peers() const noexcept override { return true; }
  Communicator& host() noexcept override { return *control_; }

  void all_gather(const Tag&, std::span<const std::byte> part, std::byte* whole, Stream stream) override {
    collect(part.data(), stream, [this, part, whole](const Meetings::Brought& parts) {
      for (std::size_t r = 0; r < parts.size(); ++r) {
        if (whole + r * part.size() != parts[r]) std::memcpy(whole + r * part.size(), parts[r], part.size());
      }
    });
  }
  void exchange(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                Stream stream) override {
    all_to_all(tag, input, output, piece_bytes, stream);
  }
  void all_to_all(const Tag&, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                  Stream stream) override {
    const std::size_t mine = static_cast<std::size_t>(rank()) * piece_bytes;
    collect(input, stream, [=](const Meetings::Brought& inputs) {
      for (std::size_t r = 0; r < inputs.size(); ++r) {
        std::memcpy(output + r * piece_bytes, inputs[r] + mine, piece_bytes);
      }
    });
  }
  void reduce_scatter(const Tag&, const float* whole, std::span<float> part, Stream stream) override {
    collect(reinterpret_cast<const std::byte*>(whole), stream, [=, this](const Meetings::Brought& all) {
      add(all, static_cast<std::size_t>(rank()) * part.size(), part);
    });
  }
  // Whose sum is written while others still read what it was made of needs a place of its own.
  void all_reduce(const Tag&, std::span<float> data, Stream stream) override {
    const auto sum = std::make_shared<std::vector<float>>(data.size());
    collect(reinterpret_cast<const std::byte*>(data.data()), stream,
            [=](const Meetings::Brought& all) { add(all, 0, *sum); });
    give(stream, [=] { std::ranges::copy(*sum, data.begin()); });
  }
  void broadcast(const Tag&, std::span<std::byte> data, int root, Stream stream) override {
    collect(data.data(), stream, [=, this](const Meetings::Brought& all) {
      if (rank() != root) std::memcpy(data.data(), all[static_cast<std::size_t>(root)], data.size());
    });
  }
  void send(const Tag&, std::span<const std::byte>, int, Stream) override { refuse("send"); }
  void receive(const Tag&, std::span<std::byte>, int, Stream) override { refuse("receive"); }
  void barrier(const Tag& tag) override {
    await_launches();
    control_->barrier(tag);
  }

  void abort(std::string_view reason) noexcept override {
    meetings_->abort();
    control_->abort(reason);
  }
  void require_intact() override { control_->require_intact(); }

  std::unique_ptr<MemoryResource> registrable_memory() override { return device_memory({Device::Type::cuda, rank()}); }
  std::shared_ptr<void> register_memory(std::span<std::byte> memory) override {
    await_launches();
    const auto region = std::make_shared<Region>(Region{memory, begins_of(memory.data())});
    regions_.emplace_back(region);
    return region;
  }
  const std::byte* peer(int rank, const std::byte* own) const override {
    for (const std::weak_ptr<Region>& weak : regions_) {
      const auto region = weak.lock();
      if (!region || own < region->mine.data() || own >= region->mine.data() + region->mine.size()) continue;
      return region->begins[static_cast<std::size_t>(rank)] + (own - region->mine.data());
    }
    return nullptr;
  }
  void meet(const Tag&, int channel, Stream stream) override {
    give(stream,
         [meetings = meetings_, number = next(channel), rank = rank()] { meetings->attend(number, rank, nullptr); });
  }

  std::uint64_t launch(std::function<void()> work) override { return launcher_->give(std::move(work)); }
  void await(std::uint64_t launch) override { launcher_->await(launch); }

 private:
  static constexpr int of_collectives = meeting_channels;

  [[noreturn]] static void refuse(const char* what) {
    throw InvalidArgument(std::string(what) + " is not among what the simulated peers do");
  }
  static void add(const Meetings::Brought& all, std::size_t first, std::span<float> sum) {
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i] = 0;
      for (const std::byte* const theirs : all) sum[i] += reinterpret_cast<const float*>(theirs)[first + i];
    }
  }
  void await_launches() {
    if (!Launcher::here()) await(every_launch);
  }
  Meetings::Number next(int channel) { return {channel, counts_[static_cast<std::size_t>(channel)]++}; }
  std::vector<const std::byte*> begins_of(const std::byte* mine) {
    std::vector<const std::byte*> begins(static_cast<std::size_t>(world_size()));
    control_->all_gather({"register", "memory"}, std::as_bytes(std::span(&mine, 1)),
                         reinterpret_cast<std::byte*>(begins.data()));
    return begins;
  }
  /// On `stream`: take(what every rank has at `mine`), which stays until all have taken it.
  template <typename Take>
  void collect(const std::byte* mine, Stream stream, const Take& take) {
    await_launches();
    const Meetings::Number put = next(of_collectives), taken = next(of_collectives);
    give(stream, [meetings = meetings_, rank = rank(), put, taken, mine, take] {
      const Meetings::Brought all = meetings->attend(put, rank, mine);
      if (all.empty()) return;
      take(all);
      meetings->attend(taken, rank, nullptr);
    });
  }

  std::unique_ptr<Communicator> control_;
  std::shared_ptr<Meetings> meetings_;
  std::vector<std::weak_ptr<Region>> regions_;
  std::array<std::uint64_t, meeting_channels + 1> counts_{};
  std::unique_ptr<Launcher> launcher_;
};

/// The collectives alone.
class SimulatedNccl final : public SimulatedPeers {
 public:
  using SimulatedPeers::SimulatedPeers;
  std::string_view name() const noexcept override { return "nccl"; }
  bool maps_peers() const noexcept override { return false; }
  const std::byte* peer(int, const std::byte*) const override { return nullptr; }
};

template <typename Kind>
std::unique_ptr<Communicator> make(std::unique_ptr<Communicator> control) {
  auto meetings = std::make_shared<Meetings>(static_cast<std::size_t>(control->world_size()));
  auto* first = &meetings;
  control->broadcast({"meetings", ""}, std::as_writable_bytes(std::span(&first, 1)), 0);
  auto shared = *first;
  control->barrier({"meetings", ""});
  return std::make_unique<Kind>(std::move(control), std::move(shared));
}

}  // namespace

std::unique_ptr<Communicator> make_peer_communicator(std::unique_ptr<Communicator> control, Device, ControlChannel*) {
  return make<SimulatedPeers>(std::move(control));
}

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> control, Device, const NcclOrigin&,
                                                     ControlChannel*) {
  return make<SimulatedNccl>(std::move(control));
}

std::unique_ptr<MemoryResource> nccl_memory(Device device) { return device_memory(device); }

void set_nccl_library(const std::string&) {}

bool can_map_peers(Communicator&, Device) { return true; }

}  // namespace aliquot
