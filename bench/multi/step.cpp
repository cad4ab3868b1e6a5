// A whole training step without Python: a model of equal units is walked forward and backward, its gradients reduced,
// clipped and stepped. Computing gradients costs nothing here, so the time is what sharding and the optimizer cost.
//
// Each row's parameters are first compared with a serial computation. Every iteration then times a step next to a plain
// copy, on all ranks at once, of the bytes that the step gathers from peers and packs for them.
//
//   step [--ranks N] [--units N] [--mib SIZE_OF_A_UNIT] [--iterations N] [--json FILE]
#include <getopt.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "aliquot/engine.h"
#include "aliquot/kernels.h"
#include "aliquot/parallel.h"
#include "tests/cpp/two_sided.h"
#include "timing.h"

namespace aliquot {
namespace {

using bench::median;
using bench::timed;
using test::require;

constexpr Rule rule = AdamW{.lr = 1e-3, .weight_decay = 0.1};
constexpr double max_norm = 1;
constexpr int verified_steps = 3;

struct Options {
  int ranks = 2;
  std::size_t units = 8;
  std::size_t mib = 16;
  int iterations = 11;
  std::string json;
};

Options parse(int argc, char** argv) {
  const option known[] = {{"ranks", required_argument, nullptr, 'r'}, {"units", required_argument, nullptr, 'u'},
                          {"mib", required_argument, nullptr, 'm'},   {"iterations", required_argument, nullptr, 'i'},
                          {"json", required_argument, nullptr, 'j'},  {nullptr, 0, nullptr, 0}};
  Options options;
  for (int found; (found = getopt_long(argc, argv, "", known, nullptr)) != -1;) {
    switch (found) {
      case 'r': options.ranks = std::stoi(optarg); break;
      case 'u': options.units = std::stoul(optarg); break;
      case 'm': options.mib = std::stoul(optarg); break;
      case 'i': options.iterations = std::max(1, std::stoi(optarg)); break;
      case 'j': options.json = optarg; break;
      default: std::exit(2);
    }
  }
  return options;
}

/// The gradient of every unit, in every step, on one rank.
std::vector<float> gradient_of(int rank, std::size_t numel) {
  std::vector<float> gradient(numel);
  for (std::size_t i = 0; i < numel; ++i) gradient[i] = static_cast<float>(i % 7) - static_cast<float>(rank % 3);
  return gradient;
}

/// The parameters of every unit after some steps from zero, by one rank alone.
std::vector<float> serial_parameters(const Options& options, std::size_t numel) {
  std::vector<std::vector<float>> gradients;
  std::vector<const float*> parts;
  for (int rank = 0; rank < options.ranks; ++rank) gradients.push_back(gradient_of(rank, numel));
  for (const auto& gradient : gradients) parts.push_back(gradient.data());
  std::vector<float> param(numel), mean(numel), exp_avg(numel), exp_avg_sq(numel);
  const double square_sum = reduce(parts, 1.0F / static_cast<float>(options.ranks), mean, Accumulate::no).square_sum;
  const float clip = clip_factor(std::sqrt(square_sum * static_cast<double>(options.units)), max_norm);
  for (int step = 1; step <= verified_steps; ++step) {
    update(rule, {step, clip}, param, mean, {exp_avg, exp_avg_sq});
  }
  return param;
}

/// One rank of the model.
class Training {
 public:
  Training(Communicator& communicator, const Options& options, const EngineOptions& engine_options)
      : engine(units(options), communicator, host_memory(), engine_options),
        gradient_(gradient_of(communicator.rank(), numel(options))) {
    engine.set_groups(Grouping(options.units, {0}));
  }

  static std::size_t numel(const Options& options) { return (options.mib << 20) / sizeof(float); }

  void step() {
    for (std::size_t unit = 0; unit < engine.unit_count(); ++unit) {
      engine.pre_forward(unit);
      engine.expect_backward(unit);
      engine.post_forward(unit);
    }
    engine.finish_forward();
    Left left;
    for (std::size_t unit = engine.unit_count(); unit-- > 0;) {
      engine.pre_backward(unit);
      if (!engine.post_backward(unit, {gradient_.data()})) left.push_back({unit, {gradient_.data()}});
    }
    engine.finish_backward(left);
    engine.step({&rule, 1}, max_norm);
    engine.clear_gradients();
  }

  bool holds(const std::vector<float>& expected) {
    bool all = true;
    std::vector<float> whole(engine.layout(0).numel());
    for (std::size_t unit = 0; unit < engine.unit_count(); ++unit) {
      engine.read(unit, whole.data());
      for (std::size_t i = 0; i < expected.size(); ++i) all = all && std::abs(whole[i] - expected[i]) <= 1e-7F;
    }
    return all;
  }

  /// Gathered from peers, and packed for them, since the start.
  std::uint64_t bytes_moved() const {
    const EngineStatistics statistics = engine.statistics();
    return statistics.gather.bytes + statistics.reduce.bytes;
  }

 private:
  static std::vector<UnitSpec> units(const Options& options) {
    std::vector<UnitSpec> made;
    for (std::size_t unit = 0; unit < options.units; ++unit) {
      made.push_back({.name = "blocks." + std::to_string(unit), .params = {{"weight", numel(options)}}});
    }
    return made;
  }

 public:
  Engine engine;

 private:
  std::vector<float> gradient_;
};

struct Row {
  std::string transport;
  int stage;
  std::string landing;
  std::uint64_t bytes;  ///< moved in a step
  double seconds;
  double copy_seconds;
};

Row measure(Communicator& communicator, const Options& options, int stage, Landing landing,
            const std::vector<float>& expected) {
  Training training(communicator, options, {.stage = Stage(stage), .gatherer = {.landing = landing}});
  for (int step = 0; step < verified_steps; ++step) training.step();
  require(training.holds(expected), "rank " + std::to_string(communicator.rank()) + " has wrong parameters at stage " +
                                        std::to_string(stage) + " over " + std::string(communicator.name()));
  const std::uint64_t before = training.bytes_moved();
  training.step();
  const std::uint64_t bytes = training.bytes_moved() - before;
  const std::vector<float> source(bytes / sizeof(float), 1.0F);
  std::vector<float> destination(source.size());
  std::vector<double> seconds, copy_seconds;
  for (int i = 0; i < options.iterations; ++i) {
    copy_seconds.push_back(timed(communicator, [&] { copy(source, destination.data()); }));
    seconds.push_back(timed(communicator, [&] { training.step(); }));
  }
  const bool in_place = stage == 3 && landing == Landing::in_place && communicator.one_sided();
  return {std::string(communicator.name()),
          stage,
          in_place     ? "in place"
          : stage == 3 ? "slots"
                       : "whole",
          bytes,
          median(seconds),
          median(copy_seconds)};
}

std::string line_of(const Row& row) {
  const auto bytes = static_cast<double>(row.bytes);
  std::ostringstream text;
  text << std::left << std::setw(15) << row.transport << std::setw(7) << row.stage << std::setw(12) << row.landing
       << std::right << std::fixed << std::setprecision(1) << std::setw(10) << row.seconds * 1e3 << std::setw(12)
       << bytes / (1 << 20) << std::setprecision(2) << std::setw(10) << bytes / row.seconds * 1e-9 << std::setw(12)
       << bytes / row.copy_seconds * 1e-9 << std::setw(10) << row.copy_seconds / row.seconds << '\n';
  return text.str();
}

std::string json_of(const Row& row, const Options& options) {
  std::ostringstream text;
  text << R"({"transport": ")" << row.transport << R"(", "stage": )" << row.stage << R"(, "landing": ")" << row.landing
       << R"(", "ranks": )" << options.ranks << R"(, "units": )" << options.units << R"(, "unit_bytes": )"
       << (options.mib << 20) << R"(, "bytes": )" << row.bytes << R"(, "seconds": )" << row.seconds
       << R"(, "copy_seconds": )" << row.copy_seconds << "}\n";
  return text.str();
}

void run_rank(Communicator& communicator, const Options& options) {
  const std::vector<float> expected = serial_parameters(options, Training::numel(options));
  const auto report = [&](int stage, Landing landing) {
    const Row row = measure(communicator, options, stage, landing, expected);
    if (communicator.rank() != 0) return;
    std::cout << line_of(row) << std::flush;
    if (!options.json.empty()) std::ofstream(options.json, std::ios::app) << json_of(row, options);
  };
  for (int stage = 0; stage <= 3; ++stage) report(stage, Landing::in_place);
  if (communicator.one_sided()) report(3, Landing::slots);
}

int run(const Options& options) {
  set_thread_count(1);
  if (!options.json.empty()) std::ofstream(options.json, std::ios::trunc);  // one object per line and row
  std::cout << options.ranks << " ranks, one thread each; " << options.units << " units of " << options.mib << " MiB\n"
            << "transport      stage  parameters   ms/step    MiB moved     GB/s   copy GB/s   of_copy\n"
            << std::flush;
  const test::RankBody one_sided = [&](Communicator& communicator) { run_rank(communicator, options); };
  const test::RankBody two_sided = [&](Communicator& communicator) {
    test::TwoSided hidden(communicator);
    run_rank(hidden, options);
  };
  constexpr std::chrono::minutes timeout(10);
  const int processes = bench::exit_status(test::run_processes(options.ranks, one_sided, timeout));
  const int threads = bench::exit_status(test::run_threads(options.ranks, one_sided, timeout));
  return processes | threads | bench::exit_status(test::run_threads(options.ranks, two_sided, timeout));
}

}  // namespace
}  // namespace aliquot

int main(int argc, char** argv) { return aliquot::run(aliquot::parse(argc, argv)); }
