// Our declarations of NCCL against its own header, where there is one.
#include <gtest/gtest.h>

#if __has_include(<nccl.h>)

#include <cstddef>
#include <string>
#include <type_traits>

#include <nccl.h>

#include "aliquot/transports.h"
#include "cuda/nccl_api.h"

namespace aliquot::nccl {
namespace {

// Whether a value of one type reaches a function that was declared with the other.
template <typename Ours, typename Theirs>
constexpr bool alike = std::is_same_v<Ours, Theirs> || (std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>) ||
                       (std::is_enum_v<Ours> && std::is_enum_v<Theirs> && sizeof(Ours) == sizeof(Theirs)) ||
                       (std::is_class_v<Ours> && std::is_class_v<Theirs> && sizeof(Ours) == sizeof(Theirs) &&
                        alignof(Ours) == alignof(Theirs) && std::is_trivially_copyable_v<Ours>);

template <typename Ours, typename Theirs>
constexpr bool called_alike = false;
template <typename R, typename... Ps, typename S, typename... Qs>
  requires(sizeof...(Ps) == sizeof...(Qs))
constexpr bool called_alike<R (*)(Ps...), S (*)(Qs...)> = alike<R, S> && (alike<Ps, Qs> && ...);

static_assert(called_alike<decltype(Api::get_version), decltype(&ncclGetVersion)>);
static_assert(called_alike<decltype(Api::get_unique_id), decltype(&ncclGetUniqueId)>);
static_assert(called_alike<decltype(Api::init_rank), decltype(&ncclCommInitRankConfig)>);
static_assert(called_alike<decltype(Api::split), decltype(&ncclCommSplit)>);
static_assert(called_alike<decltype(Api::finalize), decltype(&ncclCommFinalize)>);
static_assert(called_alike<decltype(Api::destroy), decltype(&ncclCommDestroy)>);
static_assert(called_alike<decltype(Api::abort), decltype(&ncclCommAbort)>);
static_assert(called_alike<decltype(Api::async_error), decltype(&ncclCommGetAsyncError)>);
static_assert(called_alike<decltype(Api::count), decltype(&ncclCommCount)>);
static_assert(called_alike<decltype(Api::user_rank), decltype(&ncclCommUserRank)>);
static_assert(called_alike<decltype(Api::device), decltype(&ncclCommCuDevice)>);
static_assert(called_alike<decltype(Api::error_string), decltype(&ncclGetErrorString)>);
static_assert(called_alike<decltype(Api::last_error), decltype(&ncclGetLastError)>);
static_assert(called_alike<decltype(Api::group_start), decltype(&ncclGroupStart)>);
static_assert(called_alike<decltype(Api::group_end), decltype(&ncclGroupEnd)>);
static_assert(called_alike<decltype(Api::all_gather), decltype(&ncclAllGather)>);
static_assert(called_alike<decltype(Api::broadcast), decltype(&ncclBroadcast)>);
static_assert(called_alike<decltype(Api::send), decltype(&ncclSend)>);
static_assert(called_alike<decltype(Api::receive), decltype(&ncclRecv)>);
static_assert(called_alike<decltype(Api::allocate), decltype(&ncclMemAlloc)>);
static_assert(called_alike<decltype(Api::free), decltype(&ncclMemFree)>);

static_assert(sizeof(UniqueId) == sizeof(ncclUniqueId));
static_assert(static_cast<int>(Result::success) == ncclSuccess);
static_assert(static_cast<int>(Result::invalid_usage) == ncclInvalidUsage);
static_assert(static_cast<int>(Result::remote_error) == ncclRemoteError);
static_assert(static_cast<int>(Result::in_progress) == ncclInProgress);
static_assert(static_cast<int>(DataType::uint8) == ncclUint8);

static_assert(offsetof(Config, blocking) == offsetof(ncclConfig_t, blocking));
static_assert(offsetof(Config, cga_cluster_size) == offsetof(ncclConfig_t, cgaClusterSize));
static_assert(offsetof(Config, min_ctas) == offsetof(ncclConfig_t, minCTAs));
static_assert(offsetof(Config, max_ctas) == offsetof(ncclConfig_t, maxCTAs));
static_assert(offsetof(Config, net_name) == offsetof(ncclConfig_t, netName));
static_assert(offsetof(Config, split_share) == offsetof(ncclConfig_t, splitShare));
static_assert(Config::unset == NCCL_CONFIG_UNDEF_INT);

#if NCCL_VERSION_CODE >= 22800
static_assert(offsetof(Config, comm_name) == offsetof(ncclConfig_t, commName));
static_assert(offsetof(Config, cta_policy) == offsetof(ncclConfig_t, CTAPolicy));
static_assert(offsetof(Config, nvlink_centric_sched) == offsetof(ncclConfig_t, nvlinkCentricSched));
static_assert(sizeof(Config) <= sizeof(ncclConfig_t));
static_assert(called_alike<decltype(Api::register_window), decltype(&ncclCommWindowRegister)>);
static_assert(called_alike<decltype(Api::deregister_window), decltype(&ncclCommWindowDeregister)>);
static_assert(cta_policy_zero == NCCL_CTA_POLICY_ZERO);
static_assert(window_symmetric == NCCL_WIN_COLL_SYMMETRIC);
#endif

TEST(NcclHeader, AConfigurationBeginsAsTheirsDoes) {
  const ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;
  const Config ours;
  EXPECT_EQ(ours.magic, theirs.magic);
  EXPECT_EQ(ours.blocking, theirs.blocking);
  EXPECT_EQ(ours.net_name, theirs.netName);
}

#ifdef ALIQUOT_NCCL_LIBRARY
TEST(NcclApi, FindsAllItNeedsWithoutAGpu) {
  set_nccl_library(ALIQUOT_NCCL_LIBRARY);
  EXPECT_GE(api().version, 21900);
  EXPECT_NE(api().path.find("libnccl"), std::string::npos) << api().path;
  UniqueId one{}, other{};
  if (cuda_device_count() == 0) return;
  EXPECT_EQ(api().get_unique_id(&one), Result::success);
  EXPECT_EQ(api().get_unique_id(&other), Result::success);
  EXPECT_NE(one.bytes, other.bytes);
}
#endif

}  // namespace
}  // namespace aliquot::nccl

#endif
