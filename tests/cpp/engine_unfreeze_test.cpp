// A unit that trains from some step on.
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "toy_training.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

constexpr std::size_t numel = 1361;  // the late unit is the larger one: outboxes grow

std::vector<UnitSpec> units(DType dtype, bool all_train) {
  return {{.name = "early", .params = {{"early.weight", 307}, {"early.bias", 17}}, .dtype = dtype},
          {.name = "late", .params = {{"late.weight", numel}}, .dtype = dtype, .trainable = all_train}};
}

class EngineUnfreezes : public ::testing::TestWithParam<std::tuple<Transport, int>> {
 protected:
  EngineOptions options(MasterForm master = MasterForm::low16) const {
    EngineOptions options;
    options.stage = Stage(std::get<1>(GetParam()));
    options.store.master = master;
    return options;
  }
  void run(const RankBody& body) const {
    run_world(std::get<0>(GetParam()), 3, [&](Communicator& communicator) {
      body(communicator);
      communicator.barrier({"end", ""});
    });
  }
};

class Training {
 public:
  Training(Communicator& communicator, const EngineOptions& options, DType dtype, bool all_train)
      : engine(units(dtype, all_train), communicator, host_memory(), options), dtype_(dtype),
        rank_(static_cast<std::size_t>(communicator.rank())) {
    engine.begin_write();
    for (std::size_t unit = 0; unit < 2; ++unit) {
      for (std::size_t p = 0; p < params(unit).size(); ++p) {
        std::vector<float> values = numbers({unit, p}, params(unit)[p].numel);
        if (unit == 1) values = rounded(values);  // as a frozen parameter has no more bits
        engine.write(unit, p, values.data());
      }
    }
    engine.end_write();
    engine.set_groups({{0, 0}, {0}});
  }

  /// The late unit has gradients from `first` on.
  void step(std::size_t number, std::size_t first) {
    backward(number, number >= first);
    engine.step(toy_groups, std::nullopt);
    engine.clear_gradients();
  }

  void backward(std::size_t number, bool late) {
    Left left;
    std::vector<UnitGradients> gradients;
    for (std::size_t unit = 0; unit < (late ? 2 : 1); ++unit) {
      gradients.emplace_back(engine.layout(unit).unit());
      for (std::size_t p = 0; p < params(unit).size(); ++p) {
        gradients.back().set(p, numbers({rank_, number, unit, p}, params(unit)[p].numel));
      }
      left.emplace_back(unit, gradients.back().pointers());
    }
    engine.finish_backward(left);
  }

  std::vector<std::byte> values(std::size_t unit) {
    std::vector<std::byte> whole(engine.layout(unit).bytes());
    engine.read(unit, whole.data());
    return whole;
  }

  const std::vector<ParamSpec>& params(std::size_t unit) const { return engine.layout(unit).unit().params; }

  Engine engine;

 private:
  std::vector<float> rounded(const std::vector<float>& values) const {
    std::vector<std::byte> narrow(values.size() * size_of(dtype_));
    std::vector<float> wide(values.size());
    cast(values.data(), DType::fp32, narrow.data(), dtype_, values.size());
    cast(narrow.data(), dtype_, wide.data(), DType::fp32, values.size());
    return wide;
  }

  DType dtype_;
  std::size_t rank_;
};

TEST_P(EngineUnfreezes, TheUnitTrainsAsOneThatAlwaysDid) {
  run([&](Communicator& communicator) {
    for (const auto& [dtype, master] : {std::pair{DType::fp32, MasterForm::low16},
                                        {DType::bf16, MasterForm::low16},
                                        {DType::bf16, MasterForm::fp32},
                                        {DType::fp16, MasterForm::fp32}}) {
      Training late(communicator, options(master), dtype, false), always(communicator, options(master), dtype, true);
      for (std::size_t number = 0; number < 5; ++number) {
        if (number == 2) late.engine.unfreeze(1);
        late.step(number, 2);
        always.step(number, 2);
        for (std::size_t unit = 0; unit < 2; ++unit) {
          require(late.values(unit) == always.values(unit), "unit " + std::to_string(unit) + " has other values");
        }
      }
      require(late.engine.statistics().bytes == always.engine.statistics().bytes, "other bytes");
    }
  });
}

TEST_P(EngineUnfreezes, GradientsInTheStoreStay) {
  run([&](Communicator& communicator) {
    Training late(communicator, options(), DType::fp32, false), always(communicator, options(), DType::fp32, true);
    for (Training* training : {&late, &always}) training->backward(0, false);
    late.engine.unfreeze(1);
    late.engine.unfreeze(1);  // which does nothing more
    for (Training* training : {&late, &always}) training->step(1, 0);
    for (std::size_t unit = 0; unit < 2; ++unit) require(late.values(unit) == always.values(unit), "other values");
  });
}

INSTANTIATE_TEST_SUITE_P(Engine, EngineUnfreezes, every_transport_and_stage(), name_of_case);

}  // namespace
}  // namespace aliquot
