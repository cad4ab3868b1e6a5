/// \file
/// Every persistent byte of a sharded model, by unit and role.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/memory_resource.h"
#include "aliquot/partition.h"
#include "aliquot/role.h"

namespace aliquot {

/// Where the fp32 value of a 16-bit parameter is. fp32 parameters are their own.
enum class MasterForm {
  low16,  ///< the parameter, and 16 more bits as Role::master: exact (split_master.h); bf16 only
  fp32,   ///< Role::master
};

/// Uninitialized memory, ordered on a stream, for what lives only during a part of a step: from an allocator that the
/// rest of the program uses too, so that it is the same memory that held activations before.
using TransientMemory = std::function<std::shared_ptr<std::byte>(std::size_t bytes, Stream stream)>;

/// How 16-bit units are kept, and where gradients lie; fp32 units have fp32 gradients and no master. CPUs keep all
/// gradients in fp32.
struct StoreOptions {
  MasterForm master = MasterForm::low16;
  DType gradients = DType::fp32;  ///< of the stored gradient; sums are taken in fp32 and rounded to it once
  TransientMemory transient;      ///< where sharded gradients come from, on a device; none: they are held always
};

/// How much of a unit a rank holds.
enum class Extent { shard, whole };

/// How the states of an optimizer are kept: as numbers, or as codes of 8 bits and scales of blocks (quantization.h).
enum class StateForm { fp32, quantized };

/// Holds each role of each unit, whole or sharded as the stage says; the states of an optimizer from when there is one.
/// Where the transport is one-sided, parameters and gradients lie in memory that peers can read. Who moves the bytes is
/// not known here.
class ShardStore {
 public:
  /// Collective over one-sided transports. \throws OutOfMemory; InvalidArgument for options that don't go with `units`
  ShardStore(std::vector<UnitSpec> units, Stage stage, Communicator& communicator, MemoryResource& memory,
             StoreOptions options = {});

  std::size_t unit_count() const { return layouts_.size(); }
  const Layout& layout(std::size_t unit) const { return layouts_.at(unit); }
  Stage stage() const { return stage_; }
  MasterForm master_form() const { return options_.master; }
  Extent extent(Role role) const;
  /// From here on each unit that trains has these states, zeroed, in one piece of `memory`, which outlives the store.
  /// Those of an optimizer before are gone. On a device nothing may be using them. \throws OutOfMemory
  void hold_states(std::span<const Role> states, MemoryResource& memory, StateForm form = StateForm::fp32);
  StateForm state_form() const { return state_form_; }
  /// From here on the unit trains: it has gradients, of arbitrary bytes, and zeroed states like all others; its master,
  /// if it has one, is for the caller to write. Collective over one-sided transports. Memory of the host only.
  /// \throws OutOfMemory; InvalidArgument for options that don't go with the unit
  void unfreeze(std::size_t unit, Communicator& communicator, MemoryResource& memory);
  /// False for the gradients and states of a unit that does not train, for the master of an fp32 one, and for states
  /// that no optimizer asked for.
  bool holds(std::size_t unit, Role role) const;
  /// Of the gradient in the store.
  DType gradient_dtype(std::size_t unit) const;
  /// Bytes of an element; of a quantized state those of its code.
  std::size_t width(std::size_t unit, Role role) const;
  /// What this rank holds: width() times shard_numel() where the extent is a shard, else times numel().
  std::span<std::byte> bytes_of(std::size_t unit, Role role) const;
  /// This rank's shard, wherever it lies.
  std::span<std::byte> own_bytes(std::size_t unit, Role role) const;

  /// What of `range` of the flat unit this rank holds.
  std::span<std::byte> held_bytes(std::size_t unit, Role role, Range range) const;

  /// Of a quantized state, at their scale_slot()s: the scales of all blocks that this rank holds.
  std::span<float> scales(std::size_t unit, Role role) const;
  /// Those of the blocks of a part of a shard.
  std::span<float> scales(std::size_t unit, Role role, const Segment& segment) const;

  /// The shard of `owner` where this rank can read it; one-sided transports, param and grad only.
  std::span<const std::byte> peer(std::size_t unit, Role role, int owner) const;
  /// Sharded parameters of all ranks side by side, read as the full unit where it lies; one-sided transports only.
  const std::byte* mapped(std::size_t unit) const;
  /// The range of the flat unit that bytes_of() holds.
  Range held_range(std::size_t unit, Role role) const;
  /// The range of the flat unit that this rank steps: that of masters and states. Empty if the unit does not train.
  Range stepped_range(std::size_t unit) const;
  /// The ranks whose shards make that up.
  std::vector<int> stepped_shards() const;

  // The same as fp32, for units and roles that are.

  /// What this rank holds: shard_numel() elements where the extent is a shard, else numel().
  std::span<float> block(std::size_t unit, Role role) const;
  /// This rank's shard, wherever it lies.
  std::span<float> own(std::size_t unit, Role role) const;
  /// What of `range` of the flat unit this rank holds.
  std::span<float> held_part(std::size_t unit, Role role, Range range) const;

  /// True if sharded gradients come and go: they are held from take_gradient to drop_gradients, and their bytes are
  /// arbitrary at first. Else they are held always.
  bool gradients_are_transient() const { return options_.transient && stage_.shards_gradients(); }
  void take_gradient(std::size_t unit, Stream stream);
  void drop_gradients();
  /// What keeps the bytes of a gradient that comes and goes; null if there is none.
  std::shared_ptr<std::byte> transient_gradient(std::size_t unit) const { return at(unit, Role::grad).lent; }

  /// Bytes of this rank by role, as they are now.
  std::map<std::string_view, std::size_t> bytes() const;

 private:
  struct Block {
    Buffer buffer;                    ///< private memory, or
    PeerMemory peers;                 ///< this rank's part of shared memory, or
    std::shared_ptr<std::byte> lent;  ///< transient memory, or a part of that of all states
    std::size_t bytes = 0;
    std::span<float> scales;  ///< of a quantized state: a part of that too
    std::byte* data(int rank) const {
      if (peers.base) return peers.part(rank);
      return lent ? lent.get() : buffer.data();
    }
  };

  void take_states(std::span<const std::size_t> units, MemoryResource& memory);
  Block take(std::size_t unit, Role role, Communicator& communicator, MemoryResource& memory) const;
  std::size_t scale_count(std::size_t unit) const;
  const Block& at(std::size_t unit, Role role) const;
  /// Where the shard of `rank` begins in the whole unit, in bytes.
  std::size_t start_of(std::size_t unit, Role role, int rank) const;
  std::size_t shard_bytes(std::size_t unit, Role role) const;
  void require_possible(const UnitSpec& unit, const MemoryResource& memory) const;

  std::vector<Layout> layouts_;
  Stage stage_;
  StoreOptions options_;
  int rank_;
  int world_size_;
  std::vector<Role> states_;
  StateForm state_form_ = StateForm::fp32;
  std::vector<std::array<Block, all_roles.size()>> blocks_;
};

}  // namespace aliquot
