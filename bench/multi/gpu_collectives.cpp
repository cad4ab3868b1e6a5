// Collectives among the GPUs of one host, over NCCL. Each is verified on every rank before it is timed, and timed in
// turn with a copy of as many bytes within the device. `GB/s` counts what a rank receives from its peers.
//
//   gpu_collectives [--ranks N] [--mib SIZE]... [--iterations N] [--nccl LIBRARY] [--json FILE]
#include <getopt.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "aliquot/memory_resource.h"
#include "aliquot/streams.h"
#include "tests/cpp/ranks.h"
#include "timing.h"

namespace aliquot {
namespace {

using bench::median;
using bench::timed;
using test::require;

struct Options {
  int ranks = 2;
  std::vector<std::size_t> mib;
  int iterations = 15;
  std::string nccl;
  std::string json;
};

Options parse(int argc, char** argv) {
  const option known[] = {{"ranks", required_argument, nullptr, 'r'}, {"mib", required_argument, nullptr, 'm'},
                          {"nccl", required_argument, nullptr, 'n'},  {"iterations", required_argument, nullptr, 'i'},
                          {"json", required_argument, nullptr, 'j'},  {nullptr, 0, nullptr, 0}};
  Options options;
  for (int found; (found = getopt_long(argc, argv, "", known, nullptr)) != -1;) {
    switch (found) {
      case 'r': options.ranks = std::stoi(optarg); break;
      case 'm': options.mib.push_back(std::stoul(optarg)); break;
      case 'i': options.iterations = std::max(1, std::stoi(optarg)); break;
      case 'n': options.nccl = optarg; break;
      case 'j': options.json = optarg; break;
      default: std::exit(2);
    }
  }
  if (options.mib.empty()) options.mib = {1, 16, 64, 256};
  return options;
}

/// One rank's vectors on its GPU: [ what it gives | what it gets ], each of a piece per rank.
class Arrays {
 public:
  Arrays(Communicator& communicator, MemoryResource& memory, std::size_t bytes)
      : communicator_(communicator), stream_(memory.device(), Priority::high), ranks_(communicator.world_size()),
        piece_(bytes / sizeof(float) / ranks_ / 1024 * 4096), both_(memory, 2 * whole_bytes(), stream_.get()) {
    std::vector<float> mine(whole_bytes() / sizeof(float));
    for (std::size_t i = 0; i < mine.size(); ++i) mine[i] = value(communicator.rank(), i);
    copy_async(given(), mine.data(), whole_bytes(), stream_.get());
    synchronize(stream_.get());
  }

  std::size_t whole_bytes() const { return ranks_ * piece_; }
  std::size_t received_bytes() const { return (ranks_ - 1) * piece_; }
  std::span<std::byte> memory() const { return {both_.data(), both_.bytes()}; }

  void all_gather() { communicator_.all_gather({"gather", "bench"}, {given() + own(), piece_}, got(), stream_.get()); }
  void exchange() { communicator_.exchange({"reduce", "bench"}, given(), got(), piece_, stream_.get()); }
  void reduce_scatter() {
    communicator_.reduce_scatter({"reduce", "bench"}, reinterpret_cast<const float*>(given()),
                                 {reinterpret_cast<float*>(got() + own()), numel()}, stream_.get());
  }
  void copy() { copy_async(got(), given(), received_bytes(), stream_.get()); }
  void finish() const { synchronize(stream_.get()); }

  bool gathered() const {
    return holds([&](std::size_t r, std::size_t i) { return value(static_cast<int>(r), r * numel() + i); }, all());
  }
  bool exchanged() const {
    std::vector<std::size_t> others = all();
    std::erase(others, rank());
    return holds([&](std::size_t r, std::size_t i) { return value(static_cast<int>(r), rank() * numel() + i); },
                 others);
  }
  bool summed() const {
    const auto sum = [&](std::size_t, std::size_t i) {
      float total = 0;
      for (std::size_t r = 0; r < ranks_; ++r) total += value(static_cast<int>(r), rank() * numel() + i);
      return total;
    };
    return holds(sum, {rank()});
  }

 private:
  static float value(int rank, std::size_t i) { return static_cast<float>(i % 1009) + static_cast<float>(rank); }

  template <typename Expected>
  bool holds(const Expected& expected, const std::vector<std::size_t>& pieces) const {
    std::vector<float> host(whole_bytes() / sizeof(float));
    copy_async(host.data(), got(), whole_bytes(), stream_.get());
    finish();
    for (const std::size_t r : pieces) {
      for (std::size_t i = 0; i < numel(); ++i) {
        if (host[r * numel() + i] != expected(r, i)) return false;
      }
    }
    return true;
  }
  std::vector<std::size_t> all() const {
    std::vector<std::size_t> ranks(ranks_);
    for (std::size_t r = 0; r < ranks_; ++r) ranks[r] = r;
    return ranks;
  }
  std::size_t rank() const { return static_cast<std::size_t>(communicator_.rank()); }
  std::size_t numel() const { return piece_ / sizeof(float); }
  std::size_t own() const { return rank() * piece_; }
  std::byte* given() const { return both_.data(); }
  std::byte* got() const { return both_.data() + whole_bytes(); }

  Communicator& communicator_;
  OwnedStream stream_;
  std::size_t ranks_;
  std::size_t piece_;
  Buffer both_;
};

struct Case {
  std::string name;
  void (Arrays::*run)();
  bool (Arrays::*verify)() const;
  bool registered;
};

const std::vector<Case> cases = {{"all_gather", &Arrays::all_gather, &Arrays::gathered, false},
                                 {"all_gather, registered", &Arrays::all_gather, &Arrays::gathered, true},
                                 {"exchange", &Arrays::exchange, &Arrays::exchanged, false},
                                 {"exchange, registered", &Arrays::exchange, &Arrays::exchanged, true},
                                 {"reduce_scatter", &Arrays::reduce_scatter, &Arrays::summed, false}};

struct Row {
  std::string name;
  std::size_t whole, received;  ///< bytes
  double seconds, copy_seconds;
};

// Several calls between two looks at the clock: what is timed is the device, not the way there.
double seconds_of(Communicator& communicator, Arrays& arrays, void (Arrays::*run)()) {
  constexpr int calls = 10;
  return timed(communicator.host(),
               [&] {
                 for (int i = 0; i < calls; ++i) (arrays.*run)();
                 arrays.finish();
               }) /
         calls;
}

Row measure(Communicator& communicator, Device device, const Case& made, std::size_t bytes, int iterations) {
  const auto memory = nccl_memory(device);
  Arrays arrays(communicator, *memory, bytes);
  const auto registration = made.registered ? communicator.register_memory(arrays.memory()) : nullptr;
  (arrays.*made.run)();
  arrays.finish();
  require((arrays.*made.verify)(), made.name + " gives a wrong result on rank " + std::to_string(communicator.rank()));
  communicator.barrier({"verified", ""});
  std::vector<double> seconds, copy_seconds;
  for (int i = 0; i < iterations; ++i) {
    copy_seconds.push_back(seconds_of(communicator, arrays, &Arrays::copy));
    seconds.push_back(seconds_of(communicator, arrays, made.run));
  }
  communicator.barrier({"timed", ""});
  return {made.name, arrays.whole_bytes(), arrays.received_bytes(), median(seconds), median(copy_seconds)};
}

std::string table(const std::vector<Row>& rows) {
  std::ostringstream text;
  text << std::left << std::setw(24) << "collective" << std::right << std::setw(10) << "MiB" << std::setw(12) << "us"
       << std::setw(10) << "GB/s" << std::setw(12) << "copy GB/s" << std::setw(10) << "of_copy" << std::fixed << '\n';
  for (const Row& row : rows) {
    const auto received = static_cast<double>(row.received);
    text << std::left << std::setw(24) << row.name << std::right << std::setprecision(1) << std::setw(10)
         << static_cast<double>(row.whole) / (1 << 20) << std::setw(12) << row.seconds * 1e6 << std::setw(10)
         << received / row.seconds * 1e-9 << std::setw(12) << received / row.copy_seconds * 1e-9 << std::setprecision(3)
         << std::setw(10) << row.copy_seconds / row.seconds << '\n';
  }
  return text.str();
}

std::string json(int ranks, const std::vector<Row>& rows) {
  std::ostringstream text;
  text << "{\"transport\": \"nccl\", \"ranks\": " << ranks << ", \"results\": [";
  for (const Row& row : rows) {
    text << (&row == rows.data() ? "" : ",") << "\n  {\"collective\": \"" << row.name << "\", \"bytes\": " << row.whole
         << ", \"received\": " << row.received << ", \"seconds\": " << row.seconds
         << ", \"copy_seconds\": " << row.copy_seconds << "}";
  }
  return text.str() + "\n]}\n";
}

void run_rank(const KeyValueStore& store, int rank, const Options& options) {
  const std::chrono::minutes timeout(5);
  const Device device{Device::Type::cuda, rank};
  set_nccl_library(options.nccl);
  const auto communicator =
      make_nccl_communicator(make_shared_memory_communicator(store, "bench", rank, options.ranks, timeout), device);
  const DeviceGuard guard(device);
  std::vector<Row> rows;
  for (const std::size_t mib : options.mib) {
    for (const Case& made : cases) {
      rows.push_back(measure(*communicator, device, made, mib << 20, options.iterations));
    }
  }
  if (rank != 0) return;
  std::cout << "nccl, " << options.ranks << " GPUs, a process each\n" << table(rows) << std::flush;
  if (!options.json.empty()) std::ofstream(options.json) << json(options.ranks, rows);
}

}  // namespace
}  // namespace aliquot

int main(int argc, char** argv) {
  const aliquot::Options options = aliquot::parse(argc, argv);
  return aliquot::bench::exit_status(aliquot::test::run_processes(
      options.ranks, [&](const aliquot::KeyValueStore& store, int rank) { aliquot::run_rank(store, rank, options); }));
}
