#include <algorithm>
#include <array>
#include <concepts>
#include <cstring>
#include <string>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/control.h"
#include "aliquot/error.h"
#include "register.h"

namespace aliquot::python {
namespace {

/// What a rank is about to do, as the ranks compare it before any other byte moves.
struct Intent {
  std::array<char, 32> operation{};
  std::array<char, 96> unit{};
  std::uint64_t bytes = 0;

  Intent() = default;
  Intent(const Tag& tag, std::size_t bytes) : bytes(bytes) {
    tag.operation.copy(operation.data(), operation.size() - 1);
    tag.unit.copy(unit.data(), unit.size() - 1);
  }
  bool of_unit() const { return unit[0] != '\0'; }
  std::string text() const {
    const std::string of = of_unit() ? " of unit '" + std::string(unit.data()) + "'" : "";
    return "'" + std::string(operation.data()) + "'" + of + " (" + std::to_string(bytes) + " bytes)";
  }
  friend bool operator==(const Intent&, const Intent&) = default;
};

/// Does what calls Python. An error of this module that is raised there goes on as the core's own: whoever holds the
/// communicator tells a lost rank from other failures.
void call_python(const std::invocable auto& body) {
  const py::gil_scoped_acquire acquire;
  try {
    body();
  } catch (py::error_already_set& raised) {
    const py::module_ core = py::module_::import("aliquot._core");
    const auto text = [&] { return py::str(raised.value()).cast<std::string>(); };
    if (raised.matches(core.attr("PeerLost"))) throw PeerLost(raised.value().attr("rank").cast<int>(), text());
    if (raised.matches(core.attr("CommunicatorError"))) throw CommunicatorError(text());
    throw;
  }
}

/// `process_group`: whatever torch.distributed reaches. The bytes are moved by a Python object with the methods
/// all_gather(part, whole), all_to_all(input, output), broadcast(data, root), send(data, to), receive(data, from_),
/// each of which takes writable buffers and raises an Error of this module. Why a rank gives up is told over `channel`.
class ProcessGroupCommunicator final : public Communicator {
 public:
  ProcessGroupCommunicator(py::object group, ControlChannel& channel, int rank, int world_size, double timeout,
                           RankNames names)
      : Communicator(rank, world_size, std::chrono::milliseconds(static_cast<std::int64_t>(timeout * 1000)), names),
        group_(std::move(group)), channel_(channel) {}
  ~ProcessGroupCommunicator() override {
    const py::gil_scoped_acquire acquire;
    group_ = {};
  }

  std::string_view name() const noexcept override { return "process_group"; }
  bool one_sided() const noexcept override { return false; }

  void all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream) override {
    agree(tag, part.size());
    gather_bytes(part, whole);
  }

  void reduce_scatter(const Tag& tag, const float* whole, std::span<float> part, Stream stream) override {
    std::vector<float> pieces(part.size() * ranks());
    all_to_all(tag, reinterpret_cast<const std::byte*>(whole), reinterpret_cast<std::byte*>(pieces.data()),
               part.size_bytes(), stream);
    add_in_rank_order(pieces, part);
  }

  // Each rank sums one slice, and sends no more than twice what it has.
  void all_reduce(const Tag& tag, std::span<float> data, Stream stream) override {
    std::vector<float> slice((data.size() + ranks() - 1) / ranks());
    std::vector<float> whole(slice.size() * ranks());
    std::ranges::copy(data, whole.begin());
    reduce_scatter(tag, whole.data(), slice, stream);
    gather_bytes(std::as_bytes(std::span(slice)), reinterpret_cast<std::byte*>(whole.data()));
    std::copy_n(whole.begin(), data.size(), data.begin());
  }

  void broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream) override {
    agree(tag, data.size());
    if (!data.empty()) call("broadcast", data.data(), data.size(), root);
  }

  void all_to_all(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes, Stream) override {
    agree(tag, piece_bytes);
    if (piece_bytes == 0) return;
    const std::size_t bytes = piece_bytes * ranks();
    call_python([&] { group_.attr("all_to_all")(buffer(input, bytes), buffer(output, bytes)); });
  }

  void send(const Tag&, std::span<const std::byte> data, int to, Stream) override {
    if (!data.empty()) call("send", data.data(), data.size(), to);
  }
  void receive(const Tag&, std::span<std::byte> data, int from, Stream) override {
    if (!data.empty()) call("receive", data.data(), data.size(), from);
  }
  void barrier(const Tag& tag) override { agree(tag, 0); }

  void require_intact() override { channel_.require_intact(); }
  void abort(std::string_view reason) noexcept override { channel_.announce(reason); }

 private:
  std::size_t ranks() const { return static_cast<std::size_t>(world_size()); }

  static py::memoryview buffer(const void* data, std::size_t bytes) {
    return py::memoryview::from_memory(const_cast<void*>(data), static_cast<py::ssize_t>(bytes));
  }

  void call(const char* method, const void* data, std::size_t bytes, int peer) {
    call_python([&] { group_.attr(method)(buffer(data, bytes), peer); });
  }

  void gather_bytes(std::span<const std::byte> part, std::byte* whole) {
    if (part.empty()) return;
    call_python(
        [&] { group_.attr("all_gather")(buffer(part.data(), part.size()), buffer(whole, part.size() * ranks())); });
  }

  void agree(const Tag& tag, std::size_t bytes) {
    const Intent mine(tag, bytes);
    std::vector<Intent> all(ranks());
    gather_bytes(std::as_bytes(std::span(&mine, 1)), reinterpret_cast<std::byte*>(all.data()));
    const auto other = std::ranges::find_if(all, [&](const Intent& intent) { return intent != mine; });
    if (other == all.end()) return;
    const int peer = names().of(static_cast<int>(other - all.begin()));
    const std::string calls = "rank " + std::to_string(names().of(rank())) + " is at " + mine.text() + ", rank " +
                              std::to_string(peer) + " at " + other->text();
    if (!mine.of_unit() || !other->of_unit()) {
      throw CommunicatorError("ranks disagree: " + calls + ". Every rank must call the same in the same order");
    }
    throw CommunicatorError(calls +
                            ": the ranks took different paths through the model. That works on one-sided "
                            "transports only (transport=\"shared_memory\"); here every rank must run the same units in "
                            "the same order");
  }

  void add_in_rank_order(const std::vector<float>& pieces, std::span<float> sum) const {
    std::copy_n(pieces.begin(), sum.size(), sum.begin());
    for (std::size_t rank = 1; rank < ranks(); ++rank) {
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += pieces[rank * sum.size() + i];
    }
  }

  py::object group_;
  ControlChannel& channel_;
};

}  // namespace

void register_process_group(py::module_& module) {
  module.def(
      "process_group_communicator",
      [](py::object group, ControlChannel& channel, int rank, int world_size, double timeout, int first,
         int stride) -> std::unique_ptr<Communicator> {
        return std::make_unique<ProcessGroupCommunicator>(std::move(group), channel, rank, world_size, timeout,
                                                          RankNames{first, stride});
      },
      py::keep_alive<0, 2>(), py::arg("group"), py::arg("channel"), py::arg("rank"), py::arg("world_size"),
      py::arg("timeout"), py::arg("first") = 0, py::arg("stride") = 1,
      "A communicator whose bytes `group` moves; see aliquot.process_group.");
}

}  // namespace aliquot::python
