#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "aliquot/crc32c.h"
#include "aliquot/error.h"
#include "aliquot/put_values.h"
#include "aliquot/shard_file.h"
#include "register.h"

namespace aliquot::python {
namespace {

template <typename Byte>
std::span<Byte> memory_at(std::uintptr_t address, std::size_t bytes) {
  return {reinterpret_cast<Byte*>(address), bytes};
}

/// offset, bytes, address, tensor
using Range = std::tuple<std::uint64_t, std::size_t, std::uintptr_t, std::string>;
using Written = std::tuple<std::uint64_t, std::vector<std::uint32_t>, std::vector<std::uint64_t>>;

Device device_of(int gpu) { return gpu < 0 ? Device{} : Device{Device::Type::cuda, gpu}; }

FileTensor tensor(std::string name, std::string dtype, std::vector<std::uint64_t> shape, std::uintptr_t address,
                  std::size_t bytes, std::uintptr_t low, int device) {
  return {.name = std::move(name),
          .dtype = std::move(dtype),
          .shape = std::move(shape),
          .data = memory_at<const std::byte>(address, bytes),
          .low = reinterpret_cast<const std::byte*>(low),
          .device = device_of(device)};
}

Written write(const std::string& path, const std::vector<FileTensor>& tensors, std::size_t threads) {
  WrittenFile written = write_shard_file(path, tensors, threads);
  return {written.bytes, std::move(written.crcs), std::move(written.offsets)};
}

void read(const std::string& path, std::uint64_t bytes, const std::vector<std::uint32_t>& crcs,
          const std::vector<Range>& ranges, std::size_t threads, PageCache cache) {
  std::vector<RangeRead> wanted;
  wanted.reserve(ranges.size());
  for (const auto& [offset, count, address, tensor] : ranges) {
    wanted.push_back({offset, memory_at<std::byte>(address, count), tensor});
  }
  read_ranges(path, bytes, crcs, wanted, threads, cache);
}

void verify(const std::string& path, std::uint64_t bytes, const std::vector<std::uint32_t>& crcs, std::size_t threads) {
  verify_file(path, bytes, crcs, threads);
}

/// values, bytes, address, address of the low halves or 0
using PutTuple = std::tuple<std::uintptr_t, std::size_t, std::uintptr_t, std::uintptr_t>;

void put(const ValuePutter& putter, const std::vector<PutTuple>& tuples) {
  std::vector<Put> puts;
  puts.reserve(tuples.size());
  for (const auto& [values, bytes, address, low] : tuples) {
    puts.push_back({memory_at<const std::byte>(values, bytes), reinterpret_cast<std::byte*>(address),
                    reinterpret_cast<std::byte*>(low)});
  }
  putter.put(puts);
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
  module.attr("usual_file_threads") = usual_file_threads;
  py::class_<FileTensor>(module, "FileTensor",
                         "A tensor to be written, by its address. `bytes`: of what lies there. `low`: where it is the "
                         "high halves of split masters, the address of the low ones. See aliquot/shard_file.h.")
      .def(py::init(&tensor), py::arg("name"), py::arg("dtype"), py::arg("shape"), py::arg("address"), py::arg("bytes"),
           py::arg("low") = 0, py::arg("device") = -1);
  module.def("write_shard_file", &write, py::arg("path"), py::arg("tensors"), py::arg("threads") = usual_file_threads,
             released(),
             "Returns the file's bytes, the checksums of its chunks and the offsets of the tensors. See "
             "aliquot/shard_file.h.");
  py::enum_<PageCache>(module, "PageCache").value("keep", PageCache::keep).value("drop", PageCache::drop);
  module.def("read_ranges", &read, py::arg("path"), py::arg("bytes"), py::arg("crcs"), py::arg("ranges"),
             py::arg("threads") = usual_file_threads, py::arg("cache") = PageCache::keep, released(),
             "Reads each range (offset, bytes, address, tensor). See aliquot/shard_file.h.");
  module.def("verify_file", &verify, py::arg("path"), py::arg("bytes"), py::arg("crcs"),
             py::arg("threads") = usual_file_threads, released());
  py::class_<ValuePutter>(module, "ValuePutter", "See aliquot/put_values.h.")
      .def(py::init([](int device, std::size_t threads) {
             return std::make_unique<ValuePutter>(device_of(device), threads);
           }),
           py::arg("device") = -1, py::arg("threads") = usual_file_threads, released())
      .def("put", &put, py::arg("puts"), released(),
           "Copies each (address of values, bytes, address to copy to, that of low halves or 0).");
  module.def("crc32c", &checksum, py::arg("data"), py::arg("seed") = 0,
             "`seed`: the checksum of what comes before `data`.");
}

}  // namespace aliquot::python
