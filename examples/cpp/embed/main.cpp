// Trains a small network to tell two spirals apart, sharded over ranks of this machine, in C++ alone.
#include <cstdio>
#include <numbers>

#include "mlp.h"
#include "ranks.h"

namespace embed {

constexpr int steps = 300;

struct Options {
  int ranks = 2;
  int stage = 3;
  decltype(&run_threads) run = run_threads;
};

Options parse(const std::vector<std::string>& words) {
  Options options;
  for (std::size_t n = 0; n < words.size(); ++n) {
    const bool more = n + 1 < words.size();
    if (words[n] == "--ranks" && more) {
      options.ranks = std::stoi(words[++n]);
    } else if (words[n] == "--stage" && more) {
      options.stage = std::stoi(words[++n]);
    } else if (words[n] == "--threads" || words[n] == "--processes") {
      options.run = words[n] == "--threads" ? run_threads : run_processes;
    } else {
      throw std::invalid_argument(words[n]);
    }
  }
  return options;
}

struct Examples {
  std::vector<float> points;  ///< [count, 2]
  std::vector<float> labels;  ///< [count], +1 or -1: the spiral that the point lies on
};

/// This rank's part of 512 points.
Examples spirals(int rank, int world_size) {
  Examples mine;
  for (int n = rank; n < 512; n += world_size) {
    const float label = n / world_size % 2 == 0 ? 1 : -1;
    const float radius = static_cast<float>(n) / 512;
    const float angle = radius * 3 * std::numbers::pi_v<float>;
    mine.points.insert(mine.points.end(), {label * radius * std::cos(angle), label * radius * std::sin(angle)});
    mine.labels.push_back(label);
  }
  return mine;
}

/// Forward, backward and step. Returns the mean of log(1 + exp(-label * output)) over this rank's examples.
float train(Mlp& mlp, const Examples& mine) {
  const std::vector<float> outputs = mlp.forward(mine.points);
  const auto count = static_cast<float>(outputs.size());
  std::vector<float> gradient(outputs.size());
  float loss = 0;
  for (std::size_t n = 0; n < outputs.size(); ++n) {
    const float odds = std::exp(-mine.labels[n] * outputs[n]);
    loss += std::log1p(odds) / count;
    gradient[n] = -mine.labels[n] * odds / (1 + odds) / count;
  }
  mlp.backward(std::move(gradient));
  mlp.step(aliquot::AdamW{.lr = 1e-2}, 1.0);
  return loss;
}

float mean_over_ranks(float value, aliquot::Communicator& communicator) {
  communicator.all_reduce({"loss", ""}, {&value, 1});
  return value / static_cast<float>(communicator.world_size());
}

void print_bytes(const aliquot::Engine& engine) {
  std::printf("bytes per rank:");
  for (const auto& [role, bytes] : engine.statistics().bytes) std::printf(" %s %zu", role.c_str(), bytes);
  std::printf("\n");
}

void work(const Options& options, aliquot::Communicator& communicator) {
  Mlp mlp({{2, 32, true}, {32, 32, true}, {32, 1, false}}, aliquot::Stage(options.stage), communicator);
  const Examples mine = spirals(communicator.rank(), communicator.world_size());
  const bool prints = communicator.rank() == 0;
  std::vector<float> losses;
  for (int step = 0; step < steps; ++step) {
    losses.push_back(mean_over_ranks(train(mlp, mine), communicator));
    if (prints && step % 50 == 0) std::printf("step %3d  loss %.4f\n", step, losses.back());
  }
  if (prints) print_bytes(mlp.engine());
  if (prints) std::printf("final loss: %.9g\n", losses.back());
  if (!(losses.back() < losses.front() / 10)) throw std::runtime_error("the loss did not fall to a tenth");
}

}  // namespace embed

int main(int count, char** words) {
  try {
    const embed::Options options = embed::parse({words + 1, words + count});
    return options.run(options.ranks, [&](auto& communicator) { embed::work(options, communicator); }) ? 0 : 1;
  } catch (const std::invalid_argument&) {
    std::fprintf(stderr, "usage: embed [--ranks N] [--stage 0|1|2|3] [--threads | --processes]\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return 2;
}
