/// \file
/// Roles by their names.
#pragma once

#include <string>

#include "aliquot/error.h"
#include "aliquot/role.h"

namespace aliquot::python {

/// \throws InvalidArgument
inline Role role_named(const std::string& name) {
  for (const Role role : all_roles) {
    if (name_of(role) == name) return role;
  }
  throw InvalidArgument("there is no role '" + name + "'");
}

}  // namespace aliquot::python
