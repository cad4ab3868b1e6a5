/// \file
/// Update rules: what an optimizer does to one element, written once for hosts and devices. A rule is a struct of
/// hyperparameters, named as torch.optim names them, with
///   name       of the rule
///   states     what it keeps for each element, zero at first
///   Scalars    what its arithmetic needs that is the same for all elements of a parameter
///   scalars()  those of a parameter's step, counted from 1: worked out in fp64, rounded once
///   update()   the new `p` from the gradient `g`, and the new states, in the order of `states`
/// or, in place of the last, what a Normed rule has. A Quantized one says so, and how the states are kept is all that
/// differs.
/// F is float, or several of them side by side (Lanes). All functions are constexpr so that kernels may call them.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>
#include <variant>

#include "aliquot/role.h"

namespace aliquot {

/// Several fp32 numbers that are computed with side by side.
template <typename T>
concept Lanes = requires(float value) { T::all(value); };

template <Lanes F>
constexpr F operator*(F lanes, float scalar) {
  return lanes * F::all(scalar);
}
template <Lanes F>
constexpr F operator*(float scalar, F lanes) {
  return F::all(scalar) * lanes;
}
template <Lanes F>
constexpr F operator+(F lanes, float scalar) {
  return lanes + F::all(scalar);
}

constexpr float sign(float value) { return static_cast<float>(value > 0) - static_cast<float>(value < 0); }

// Templates, because the functions of <cmath> are not constexpr.
template <typename Real>
constexpr Real one_minus_power(Real base, std::int64_t exponent) {
  return 1 - std::pow(base, static_cast<Real>(exponent));
}
template <typename Real>
constexpr Real inverse_root(Real value) {
  return 1 / std::sqrt(value);
}

/// A rule whose step of a parameter is scaled by norms of the whole parameter, in two passes: take() the gradient into
/// the states; then move() by trust_ratio() of the square sums of the parameter and of its direction().
template <typename R>
concept Normed = requires(const typename R::Scalars& scalars, float f) { R::direction(scalars, f, f, f); };

/// A rule whose states are kept in 8 bits (quantization.h): decoded, updated and encoded again.
template <typename R>
concept Quantized = requires { requires R::quantized; };

/// 1 where one of them is zero.
template <typename Real>
constexpr float trust_ratio(Real param_squares, Real direction_squares) {
  const bool fine = param_squares > 0 && direction_squares > 0;
  return fine ? static_cast<float>(std::sqrt(param_squares / direction_squares)) : 1;
}

/// What the rules of Adam's family share (Kingma & Ba, 2015, algorithm 1).
struct AdamStep {
  float one_minus_beta1 = 0;
  float beta2 = 0;
  float one_minus_beta2 = 0;
  float inverse_correction2 = 0;  ///< 1 / sqrt(1 - beta2^step)
  float eps = 0;
  float minus_step_size = 0;  ///< -lr / (1 - beta1^step)

  static constexpr AdamStep of(double lr, double beta1, double beta2, double eps, std::int64_t step) {
    return {.one_minus_beta1 = static_cast<float>(1 - beta1),
            .beta2 = static_cast<float>(beta2),
            .one_minus_beta2 = static_cast<float>(1 - beta2),
            .inverse_correction2 = static_cast<float>(inverse_root(one_minus_power(beta2, step))),
            .eps = static_cast<float>(eps),
            .minus_step_size = static_cast<float>(-lr / one_minus_power(beta1, step))};
  }

  /// Takes `g` into the moments.
  template <typename F>
  constexpr void take(F g, F& exp_avg, F& exp_avg_sq) const {
    exp_avg = exp_avg + (g - exp_avg) * one_minus_beta1;
    exp_avg_sq = exp_avg_sq * beta2 + one_minus_beta2 * g * g;
  }
  /// What to add to the parameter.
  template <typename F>
  constexpr F change(F exp_avg, F exp_avg_sq) const {
    using std::sqrt;
    return minus_step_size * exp_avg / (sqrt(exp_avg_sq) * inverse_correction2 + eps);
  }
};

/// Loshchilov & Hutter, 2019, algorithm 2.
struct AdamW {
  static constexpr std::string_view name = "AdamW";
  static constexpr std::array states{Role::exp_avg, Role::exp_avg_sq};

  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 1e-2;

  struct Scalars {
    float decay = 1;
    AdamStep adam;
  };
  constexpr Scalars scalars(std::int64_t step) const {
    return {static_cast<float>(1 - lr * weight_decay), AdamStep::of(lr, beta1, beta2, eps, step)};
  }
  template <typename F>
  static constexpr void update(const Scalars& s, F& p, F g, F& exp_avg, F& exp_avg_sq) {
    s.adam.take(g, exp_avg, exp_avg_sq);
    p = p * s.decay + s.adam.change(exp_avg, exp_avg_sq);
  }
};

/// The same with moments of 8 bits.
struct AdamW8bit : AdamW {
  static constexpr std::string_view name = "AdamW of 8 bits";
  static constexpr bool quantized = true;
};

/// Kingma & Ba, 2015; the decay is a part of the gradient.
struct Adam {
  static constexpr std::string_view name = "Adam";
  static constexpr std::array states{Role::exp_avg, Role::exp_avg_sq};

  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;

  struct Scalars {
    float weight_decay = 0;
    AdamStep adam;
  };
  constexpr Scalars scalars(std::int64_t step) const {
    return {static_cast<float>(weight_decay), AdamStep::of(lr, beta1, beta2, eps, step)};
  }
  template <typename F>
  static constexpr void update(const Scalars& s, F& p, F g, F& exp_avg, F& exp_avg_sq) {
    s.adam.take(g + s.weight_decay * p, exp_avg, exp_avg_sq);
    p = p + s.adam.change(exp_avg, exp_avg_sq);
  }
};

/// Gradient descent without momentum, and so without states.
struct Sgd {
  static constexpr std::string_view name = "SGD";
  static constexpr std::array<Role, 0> states{};

  double lr = 1e-3;
  double weight_decay = 0;

  struct Scalars {
    float weight_decay = 0;
    float minus_lr = 0;
  };
  constexpr Scalars scalars(std::int64_t) const { return {static_cast<float>(weight_decay), static_cast<float>(-lr)}; }
  template <typename F>
  static constexpr void update(const Scalars& s, F& p, F g) {
    p = p + s.minus_lr * (g + s.weight_decay * p);
  }
};

/// The same with momentum, as torch.optim.SGD defines it: the first gradient is not dampened. While momentum is 0 the
/// buffer stays as it is.
struct MomentumSgd {
  static constexpr std::string_view name = "SGD with momentum";
  static constexpr std::array states{Role::momentum_buffer};

  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;

  struct Scalars {
    float weight_decay = 0;
    float momentum = 0;
    float take = 1;    ///< how much of the gradient goes into the momentum
    float ahead = 0;   ///< the step is of ahead * gradient
    float behind = 1;  ///< + behind * momentum
    float minus_lr = 0;
  };
  constexpr Scalars scalars(std::int64_t step) const {
    const float decay = static_cast<float>(weight_decay), minus_lr = static_cast<float>(-lr);
    if (momentum == 0)
      return {.weight_decay = decay, .momentum = 1, .take = 0, .ahead = 1, .behind = 0, .minus_lr = minus_lr};
    return {.weight_decay = decay,
            .momentum = static_cast<float>(momentum),
            .take = static_cast<float>(step > 1 ? 1 - dampening : 1),
            .ahead = nesterov ? 1.0F : 0.0F,
            .behind = static_cast<float>(nesterov ? momentum : 1),
            .minus_lr = minus_lr};
  }
  template <typename F>
  static constexpr void update(const Scalars& s, F& p, F g, F& momentum_buffer) {
    g = g + s.weight_decay * p;
    momentum_buffer = momentum_buffer * s.momentum + g * s.take;
    p = p + s.minus_lr * (g * s.ahead + momentum_buffer * s.behind);
  }
};

/// Chen et al., 2023 (arXiv 2302.06675), algorithm 2.
struct Lion {
  static constexpr std::string_view name = "Lion";
  static constexpr std::array states{Role::exp_avg};

  double lr = 1e-4;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double weight_decay = 0;

  struct Scalars {
    float decay = 1;
    float one_minus_beta1 = 0;
    float one_minus_beta2 = 0;
    float minus_lr = 0;
  };
  constexpr Scalars scalars(std::int64_t) const {
    return {.decay = static_cast<float>(1 - lr * weight_decay),
            .one_minus_beta1 = static_cast<float>(1 - beta1),
            .one_minus_beta2 = static_cast<float>(1 - beta2),
            .minus_lr = static_cast<float>(-lr)};
  }
  template <typename F>
  static constexpr void update(const Scalars& s, F& p, F g, F& exp_avg) {
    const F change = g - exp_avg;
    p = p * s.decay + s.minus_lr * sign(exp_avg + change * s.one_minus_beta1);
    exp_avg = exp_avg + change * s.one_minus_beta2;
  }
};

/// Duchi et al., 2011, as torch.optim.Adagrad defines it, but that `sum` begins at zero and the initial value is added
/// where it is used.
struct Adagrad {
  static constexpr std::string_view name = "Adagrad";
  static constexpr std::array states{Role::sum};

  double lr = 1e-2;
  double lr_decay = 0;
  double weight_decay = 0;
  double initial_accumulator_value = 0;
  double eps = 1e-10;

  struct Scalars {
    float weight_decay = 0;
    float initial = 0;
    float eps = 0;
    float minus_lr = 0;  ///< -lr / (1 + (step - 1) * lr_decay)
  };
  constexpr Scalars scalars(std::int64_t step) const {
    return {.weight_decay = static_cast<float>(weight_decay),
            .initial = static_cast<float>(initial_accumulator_value),
            .eps = static_cast<float>(eps),
            .minus_lr = static_cast<float>(-lr / (1 + static_cast<double>(step - 1) * lr_decay))};
  }
  template <typename F>
  static constexpr void update(const Scalars& s, F& p, F g, F& sum) {
    using std::sqrt;
    g = g + s.weight_decay * p;
    sum = sum + g * g;
    p = p + s.minus_lr * g / (sqrt(sum + s.initial) + s.eps);
  }
};

/// You et al., 2020 (arXiv 1904.00962), algorithm 2, with phi the identity.
struct Lamb {
  static constexpr std::string_view name = "LAMB";
  static constexpr std::array states{Role::exp_avg, Role::exp_avg_sq};

  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-6;
  double weight_decay = 1e-2;

  struct Scalars {
    float minus_lr = 0;
    float weight_decay = 0;
    AdamStep adam;  ///< whose step size is 1
  };
  constexpr Scalars scalars(std::int64_t step) const {
    return {static_cast<float>(-lr), static_cast<float>(weight_decay), AdamStep::of(-1, beta1, beta2, eps, step)};
  }
  template <typename F>
  static constexpr void take(const Scalars& s, F g, F& exp_avg, F& exp_avg_sq) {
    s.adam.take(g, exp_avg, exp_avg_sq);
  }
  template <typename F>
  static constexpr F direction(const Scalars& s, F p, F exp_avg, F exp_avg_sq) {
    return s.adam.change(exp_avg, exp_avg_sq) + s.weight_decay * p;
  }
  template <typename F>
  static constexpr void move(const Scalars& s, float ratio, F& p, F direction) {
    p = p + s.minus_lr * ratio * direction;
  }
};

/// One of them, with its hyperparameters.
using Rule = std::variant<AdamW, AdamW8bit, Adam, Sgd, MomentumSgd, Lion, Adagrad, Lamb>;

/// More states than any rule keeps would be wasted arguments.
inline constexpr std::size_t max_states = 2;

inline std::string_view name_of(const Rule& rule) {
  return std::visit([](const auto& one) { return one.name; }, rule);
}
inline bool is_normed(const Rule& rule) {
  return std::visit([]<typename R>(const R&) { return Normed<R>; }, rule);
}
inline bool is_quantized(const Rule& rule) {
  return std::visit([]<typename R>(const R&) { return Quantized<R>; }, rule);
}
inline std::span<const Role> states_of(const Rule& rule) {
  return std::visit([](const auto& one) { return std::span<const Role>(one.states); }, rule);
}

}  // namespace aliquot
