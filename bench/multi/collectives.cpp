// Collectives among ranks of one host. Each is verified on every rank before it is timed; every iteration times it next
// to a memcpy of as many bytes that all ranks make at once, so that `of_memcpy` holds on a machine that others use too.
//
//   collectives [--ranks N] [--threads] [--mib SIZE]... [--iterations N] [--json FILE]
#include <getopt.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "aliquot/communicator.h"
#include "tests/cpp/ranks.h"
#include "timing.h"

namespace aliquot {
namespace {

using bench::median;
using bench::timed;
using test::require;

struct Options {
  int ranks = 2;
  bool threads = false;
  std::vector<std::size_t> mib;
  int iterations = 15;
  std::string json;
};

Options parse(int argc, char** argv) {
  const option known[] = {{"ranks", required_argument, nullptr, 'r'},      {"threads", no_argument, nullptr, 't'},
                          {"mib", required_argument, nullptr, 'm'},        {"json", required_argument, nullptr, 'j'},
                          {"iterations", required_argument, nullptr, 'i'}, {nullptr, 0, nullptr, 0}};
  Options options;
  for (int found; (found = getopt_long(argc, argv, "", known, nullptr)) != -1;) {
    switch (found) {
      case 'r': options.ranks = std::stoi(optarg); break;
      case 't': options.threads = true; break;
      case 'm': options.mib.push_back(std::stoul(optarg)); break;
      case 'i': options.iterations = std::max(1, std::stoi(optarg)); break;
      case 'j': options.json = optarg; break;
      default: std::exit(2);
    }
  }
  if (options.mib.empty()) options.mib = {1, 16, 64};
  return options;
}

/// One rank's vectors, of which each rank owns a part, and what each collective must make of them. All values are small
/// integers, so sums are exact.
class Arrays {
 public:
  Arrays(Communicator& communicator, std::size_t bytes)
      : communicator_(communicator),
        part_numel_(bytes / sizeof(float) / static_cast<std::size_t>(communicator.world_size())),
        numel_(part_numel_ * static_cast<std::size_t>(communicator.world_size())),
        memory_(communicator.share(64 + part_numel_ * sizeof(float))), whole_(numel_), result_(numel_) {
    fill();
  }

  void all_gather() {
    communicator_.all_gather({"gather", "bench"}, std::as_bytes(mine(whole_)),
                             std::as_writable_bytes(std::span(result_)).data());
  }
  void reduce_scatter() { communicator_.reduce_scatter({"reduce", "bench"}, whole_.data(), mine(result_)); }
  void all_reduce() { communicator_.all_reduce({"norm", "bench"}, result_); }
  void pull() {
    ++epoch_;
    communicator_.post(signal(communicator_.rank()), epoch_);
    for (int r = 0; r < communicator_.world_size(); ++r) {
      communicator_.wait_until([&] { return reached(signal(r), epoch_); }, "an epoch");
      std::memcpy(&result_[static_cast<std::size_t>(r) * part_numel_], memory_.part(r) + 64,
                  part_numel_ * sizeof(float));
    }
  }
  std::size_t bytes() const { return numel_ * sizeof(float); }
  void memcpy_whole() { std::memcpy(result_.data(), whole_.data(), bytes()); }

  void fill() {
    for (std::size_t i = 0; i < numel_; ++i) whole_[i] = value(communicator_.rank(), i);
    auto* shared = reinterpret_cast<float*>(memory_.part(communicator_.rank()) + 64);
    std::copy_n(mine(whole_).data(), part_numel_, shared);
    result_ = whole_;
  }
  bool gathered() const {
    return holds(0, numel_, [&](std::size_t i) { return value(static_cast<int>(i / part_numel_), i); });
  }
  bool part_summed() const {
    return holds(own(), own() + part_numel_, [&](std::size_t i) { return sum(i); });
  }
  bool whole_summed() const {
    return holds(0, numel_, [&](std::size_t i) { return sum(i); });
  }

 private:
  static float value(int rank, std::size_t i) { return static_cast<float>(i % 1009) + static_cast<float>(rank); }
  float sum(std::size_t i) const {
    float total = 0;
    for (int r = 0; r < communicator_.world_size(); ++r) total += value(r, i);
    return total;
  }
  template <typename Expected>
  bool holds(std::size_t begin, std::size_t end, const Expected& expected) const {
    for (std::size_t i = begin; i < end; ++i) {
      if (result_[i] != expected(i)) return false;
    }
    return true;
  }
  std::size_t own() const { return static_cast<std::size_t>(communicator_.rank()) * part_numel_; }
  std::span<float> mine(std::vector<float>& whole) const { return std::span(whole).subspan(own(), part_numel_); }
  Signal& signal(int rank) const { return *reinterpret_cast<Signal*>(memory_.part(rank)); }

  Communicator& communicator_;
  std::size_t part_numel_;
  std::size_t numel_;
  PeerMemory memory_;
  std::vector<float> whole_;
  std::vector<float> result_;
  std::uint32_t epoch_ = 0;
};

struct Case {
  std::string name;
  void (Arrays::*run)();
  bool (Arrays::*verify)() const;
};

const std::vector<Case> cases = {{"all_gather", &Arrays::all_gather, &Arrays::gathered},
                                 {"reduce_scatter", &Arrays::reduce_scatter, &Arrays::part_summed},
                                 {"all_reduce", &Arrays::all_reduce, &Arrays::whole_summed},
                                 {"pull", &Arrays::pull, &Arrays::gathered}};

struct Row {
  std::string name;
  std::size_t bytes;  ///< of the whole vector
  double seconds;
  double memcpy_seconds;
};

Row measure(Communicator& communicator, const Case& made, std::size_t bytes, int iterations) {
  Arrays arrays(communicator, bytes);
  (arrays.*made.run)();
  require((arrays.*made.verify)(), made.name + " gives a wrong result on rank " + std::to_string(communicator.rank()));
  communicator.barrier({"verified", ""});
  std::vector<double> seconds, memcpy_seconds;
  for (int i = 0; i < iterations; ++i) {
    memcpy_seconds.push_back(timed(communicator, [&] { arrays.memcpy_whole(); }));
    seconds.push_back(timed(communicator, [&] { (arrays.*made.run)(); }));
  }
  return {made.name, arrays.bytes(), median(seconds), median(memcpy_seconds)};
}

Row measure_barrier(Communicator& communicator) {
  constexpr int calls = 1000;
  const double seconds = timed(communicator, [&] {
    for (int i = 0; i < calls; ++i) communicator.barrier({"bench", ""});
  });
  return {"barrier", 0, seconds / calls, 0};
}

std::string table(const std::vector<Row>& rows) {
  std::ostringstream text;
  text << std::left << std::setw(16) << "collective" << std::right << std::setw(10) << "MiB" << std::setw(14) << "us"
       << std::setw(10) << "GB/s" << std::setw(14) << "memcpy GB/s" << std::setw(12) << "of_memcpy" << std::fixed
       << '\n';
  for (const Row& row : rows) {
    const double bytes = static_cast<double>(row.bytes);
    text << std::left << std::setw(16) << row.name << std::right << std::setprecision(1);
    text << std::setw(10) << bytes / (1 << 20) << std::setw(14) << row.seconds * 1e6 << std::setprecision(2);
    if (row.bytes > 0) {
      text << std::setw(10) << bytes / row.seconds * 1e-9 << std::setw(14) << bytes / row.memcpy_seconds * 1e-9
           << std::setw(12) << row.memcpy_seconds / row.seconds;
    }
    text << '\n';
  }
  return text.str();
}

std::string json(const Communicator& communicator, const std::vector<Row>& rows) {
  std::ostringstream text;
  text << "{\"transport\": \"" << communicator.name() << "\", \"ranks\": " << communicator.world_size()
       << ", \"results\": [";
  for (const Row& row : rows) {
    text << (&row == rows.data() ? "" : ",") << "\n  {\"collective\": \"" << row.name << "\", \"bytes\": " << row.bytes
         << ", \"seconds\": " << row.seconds << ", \"memcpy_seconds\": " << row.memcpy_seconds << "}";
  }
  return text.str() + "\n]}\n";
}

void run_rank(Communicator& communicator, const Options& options) {
  std::vector<Row> rows{measure_barrier(communicator)};
  for (const std::size_t mib : options.mib) {
    for (const Case& made : cases) rows.push_back(measure(communicator, made, mib << 20, options.iterations));
  }
  if (communicator.rank() != 0) return;
  std::cout << communicator.name() << ", " << communicator.world_size()
            << " ranks, one thread each; bytes of the whole "
            << "vector per second and rank\n"
            << table(rows) << std::flush;
  if (!options.json.empty()) std::ofstream(options.json) << json(communicator, rows);
}

int run(const Options& options) {
  const auto body = [&](Communicator& communicator) { run_rank(communicator, options); };
  const std::chrono::hours hour(1);
  const auto outcomes =
      options.threads ? test::run_threads(options.ranks, body, hour) : test::run_processes(options.ranks, body, hour);
  return bench::exit_status(outcomes);
}

}  // namespace
}  // namespace aliquot

int main(int argc, char** argv) { return aliquot::run(aliquot::parse(argc, argv)); }
