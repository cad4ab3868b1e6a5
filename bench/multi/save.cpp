// What checksums cost a save: the shard files of all ranks, written with them and without, in turn. `cost` is the
// median of the pairs' ratios, less one, so it holds on a machine that others use too; with nothing else of a save
// (manifest, folder, snapshot) in either time, it is the most that checksums can cost one. Files are verified before
// anything is timed.
//
//   save [--ranks N] [--mib SIZE]... [--iterations N] [DIRECTORY]...
#include <getopt.h>

#include <cstdlib>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/crc32c.h"
#include "aliquot/shard_file.h"
#include "cpp/src/cpu/crc32c.h"
#include "tests/cpp/ranks.h"
#include "timing.h"

namespace aliquot {
namespace {

bool with_checksums = true;

}  // namespace

// This program's definition takes the place of the library's in all calls, which leaves users no way to do without.
std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t seed) {
  if (!with_checksums) return 0;
  static const auto update = cpu::has_crc32c_instructions() ? cpu::crc32c_by_instruction : cpu::crc32c_by_table;
  return ~update(data, ~seed);
}

namespace {

using bench::median;
using bench::timed;
using test::require;
namespace fs = std::filesystem;

struct Options {
  int ranks = 2;
  std::vector<std::size_t> mib;
  int iterations = 21;
  std::vector<fs::path> directories;
};

Options parse(int argc, char** argv) {
  const option known[] = {{"ranks", required_argument, nullptr, 'r'},
                          {"mib", required_argument, nullptr, 'm'},
                          {"iterations", required_argument, nullptr, 'i'},
                          {nullptr, 0, nullptr, 0}};
  Options options;
  for (int found; (found = getopt_long(argc, argv, "", known, nullptr)) != -1;) {
    switch (found) {
      case 'r': options.ranks = std::stoi(optarg); break;
      case 'm': options.mib.push_back(std::stoul(optarg)); break;
      case 'i': options.iterations = std::max(1, std::stoi(optarg)); break;
      default: std::exit(2);
    }
  }
  options.directories.assign(argv + optind, argv + argc);
  if (options.directories.empty()) options.directories = {"/dev/shm", "."};
  if (options.mib.empty()) options.mib = {64, 256};
  return options;
}

/// One rank's file of a save.
class Shard {
 public:
  Shard(const Communicator& communicator, const fs::path& directory, std::size_t bytes)
      : path_(directory / ("aliquot_save_bench_" + std::to_string(communicator.rank()))), values_(bytes) {
    std::uint32_t state = 1 + static_cast<std::uint32_t>(communicator.rank());
    for (std::byte& value : values_) value = static_cast<std::byte>((state = state * 1664525u + 1013904223u) >> 24);
    fs::remove(path_);
  }
  ~Shard() { fs::remove(path_); }
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  WrittenFile write() const {
    fs::remove(path_);
    const std::vector<FileTensor> tensors{{.name = "a", .dtype = "U8", .shape = {values_.size()}, .data = values_}};
    return write_shard_file(path_, tensors);
  }
  void require_right(const WrittenFile& written) const {
    verify_file(path_, written.bytes, written.crcs);
    std::vector<std::byte> found(values_.size());
    const std::vector<RangeRead> all{{.offset = written.offsets[0], .into = found, .tensor = "a"}};
    read_ranges(path_, written.bytes, written.crcs, all);
    require(found == values_, path_.string() + " holds something else");
  }

 private:
  fs::path path_;
  std::vector<std::byte> values_;
};

double seconds_of(Communicator& communicator, const Shard& shard, bool checksums) {
  with_checksums = checksums;
  return timed(communicator, [&] { shard.write(); });
}

void verify(const Shard& shard) {
  for (const bool checksums : {false, true}) {
    with_checksums = checksums;
    const WrittenFile written = shard.write();
    shard.require_right(written);
    const bool any = std::ranges::any_of(written.crcs, [](std::uint32_t crc) { return crc != 0; });
    require(any == checksums, "the library has checksums of its own: link this program with the shared one");
  }
}

void measure(Communicator& communicator, const fs::path& directory, std::size_t mib, int iterations) {
  const Shard shard(communicator, directory, mib << 20);
  verify(shard);
  std::vector<double> with, without, ratios;
  for (int i = 0; i < iterations; ++i) {
    const bool first = i % 2 == 0;
    const double one = seconds_of(communicator, shard, first), other = seconds_of(communicator, shard, !first);
    with.push_back(first ? one : other);
    without.push_back(first ? other : one);
    ratios.push_back(with.back() / without.back());
  }
  if (communicator.rank() != 0) return;
  const double bytes = static_cast<double>(mib << 20) * communicator.world_size();
  std::cout << std::left << std::setw(24) << directory.string() << std::right << std::fixed << std::setw(6) << mib
            << std::setprecision(1) << std::setw(12) << median(with) * 1e3 << std::setw(12) << median(without) * 1e3
            << std::setprecision(2) << std::setw(8) << bytes / median(with) * 1e-9 << std::setprecision(1)
            << std::setw(8) << (median(ratios) - 1) * 100 << " %\n"
            << std::flush;
}

void run_rank(Communicator& communicator, const Options& options) {
  if (communicator.rank() == 0) {
    std::cout << communicator.world_size() << " ranks, one file each; medians of " << options.iterations
              << " pairs\ndirectory                  MiB    with, ms without, ms    GB/s    cost\n";
  }
  for (const fs::path& directory : options.directories) {
    for (const std::size_t mib : options.mib) measure(communicator, directory, mib, options.iterations);
  }
}

}  // namespace
}  // namespace aliquot

int main(int argc, char** argv) {
  using namespace aliquot;  // NOLINT(google-build-using-namespace)
  const Options options = parse(argc, argv);
  return bench::exit_status(test::run_processes(
      options.ranks, [&](Communicator& communicator) { run_rank(communicator, options); }, std::chrono::hours(1)));
}
