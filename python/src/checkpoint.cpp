#include <pybind11/stl.h>

#include <cstdint>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "aliquot/crc32c.h"
#include "aliquot/error.h"
#include "aliquot/shard_file.h"
#include "register.h"

namespace aliquot::python {
namespace {

template <typename Byte>
std::span<Byte> memory_at(std::uintptr_t address, std::size_t bytes) {
  return {reinterpret_cast<Byte*>(address), bytes};
}

/// name, dtype, shape, address, bytes
using Tensor = std::tuple<std::string, std::string, std::vector<std::uint64_t>, std::uintptr_t, std::size_t>;
/// offset, bytes, address, tensor
using Range = std::tuple<std::uint64_t, std::size_t, std::uintptr_t, std::string>;
using Written = std::tuple<std::uint64_t, std::vector<std::uint32_t>, std::vector<std::uint64_t>>;

Written write(const std::string& path, std::vector<Tensor> tensors) {
  std::vector<FileTensor> given;
  given.reserve(tensors.size());
  for (auto& [name, dtype, shape, address, bytes] : tensors) {
    given.push_back({std::move(name), std::move(dtype), std::move(shape), memory_at<const std::byte>(address, bytes)});
  }
  WrittenFile written = write_shard_file(path, given);
  return {written.bytes, std::move(written.crcs), std::move(written.offsets)};
}

void read(const std::string& path, std::uint64_t bytes, const std::vector<std::uint32_t>& crcs,
          const std::vector<Range>& ranges) {
  std::vector<RangeRead> wanted;
  wanted.reserve(ranges.size());
  for (const auto& [offset, count, address, tensor] : ranges) {
    wanted.push_back({offset, memory_at<std::byte>(address, count), tensor});
  }
  read_ranges(path, bytes, crcs, wanted);
}

void verify(const std::string& path, std::uint64_t bytes, const std::vector<std::uint32_t>& crcs) {
  verify_file(path, bytes, crcs);
}

std::uint32_t checksum(const py::buffer& data, std::uint32_t seed) {
  const py::buffer_info info = data.request();
  if (PyBuffer_IsContiguous(info.view(), 'C') == 0) throw InvalidArgument("crc32c: the buffer is not contiguous");
  const std::span bytes(static_cast<const std::byte*>(info.ptr), static_cast<std::size_t>(info.view()->len));
  const py::gil_scoped_release release;
  return crc32c(bytes, seed);
}

}  // namespace

void register_checkpoint(py::module_& module) {
  using released = py::call_guard<py::gil_scoped_release>;
  module.attr("chunk_bytes") = chunk_bytes;
  module.def(
      "write_shard_file", &write, py::arg("path"), py::arg("tensors"), released(),
      "Writes (name, dtype, shape, address, bytes) of each tensor; returns the file's bytes, the checksums of its "
      "chunks and the offsets of the tensors. See aliquot/shard_file.h.");
  module.def("read_ranges", &read, py::arg("path"), py::arg("bytes"), py::arg("crcs"), py::arg("ranges"), released(),
             "Reads each range (offset, bytes, address, tensor). See aliquot/shard_file.h.");
  module.def("verify_file", &verify, py::arg("path"), py::arg("bytes"), py::arg("crcs"), released());
  module.def("crc32c", &checksum, py::arg("data"), py::arg("seed") = 0,
             "`seed`: the checksum of what comes before `data`.");
}

}  // namespace aliquot::python
