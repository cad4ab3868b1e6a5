#include "tensor_reader.h"

#include <cstring>

#include "aliquot/split_master.h"

namespace aliquot {
namespace {

const std::uint16_t* halves_in(std::span<const std::byte> bytes) {
  return reinterpret_cast<const std::uint16_t*>(bytes.data());
}

std::span<float> masters_in(std::span<std::byte> bytes) {
  return {reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float)};
}

}  // namespace

void TensorReader::read(const FileTensor& tensor, std::uint64_t begin, std::span<std::byte> into) {
  if (tensor.low == nullptr) {
    std::memcpy(into.data(), on_host(tensor.device, tensor.data.subspan(begin, into.size())).data(), into.size());
    return;
  }
  const std::uint64_t first = begin / 2, size = into.size() / 2;
  const auto high = on_host(tensor.device, tensor.data.subspan(first, size));
  const auto low = on_host(tensor.device, {tensor.low + first, size}, step_bytes / 2);
  join_masters(halves_in(high), halves_in(low), masters_in(into));
}

std::span<const std::byte> TensorReader::on_host(Device device, std::span<const std::byte> data, std::size_t first) {
  if (device.type == Device::Type::cpu) return data;
  const DeviceGuard guard(device);
  if (!staging_) staging_.emplace(device);
  std::byte* const copy = staging_->data() + first;
  copy_async(copy, data.data(), data.size(), staging_->stream.get());
  synchronize(staging_->stream.get());
  return {copy, data.size()};
}

}  // namespace aliquot
