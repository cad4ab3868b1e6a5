/// \file
/// What a persistent byte of a sharded model is for.
#pragma once

#include <array>
#include <string_view>

namespace aliquot {

/// The last four are states, which an optimizer asks for by its rule (rules.h).
enum class Role { param, master, grad, exp_avg, exp_avg_sq, momentum_buffer, sum };
inline constexpr std::array all_roles{Role::param,      Role::master,          Role::grad, Role::exp_avg,
                                      Role::exp_avg_sq, Role::momentum_buffer, Role::sum};
constexpr bool is_state(Role role) { return role >= Role::exp_avg; }

std::string_view name_of(Role role);

}  // namespace aliquot
