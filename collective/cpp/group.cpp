// Process groups: Gloo here, NCCL through the plugin, and the collectives on them.
#include "shim.h"

#include <dlfcn.h>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>

namespace shim {
namespace {
using ms = std::chrono::milliseconds;

// ProcessGroupGloo with the abort that it lacks: every connection fails, so that whoever waits on
// a peer, hung or dead, gets an exception at once instead of after the time-out.
class Gloo final : public c10d::ProcessGroupGloo {
 public:
  using c10d::ProcessGroupGloo::ProcessGroupGloo;
  void abort() override {
    for (auto& context : contexts_) {
      for (int peer = 0; peer < getSize(); ++peer) {
        auto& pair = context->getPair(peer);
        if (peer == getRank() || !pair) continue;
        // Torch builds Gloo's TCP transport only (its TLS pair derives from it), and
        // transport::Pair is the first base of tcp::Pair.
        reinterpret_cast<gloo::transport::tcp::Pair*>(pair.get())
            ->signalExceptionExternal("the group was aborted by this rank");
      }
    }
  }
};

// What torch.distributed.init_process_group does for one backend.
std::unique_ptr<Group> group(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                             c10::DeviceType device, c10d::ProcessGroup::BackendType type,
                             const c10::intrusive_ptr<c10d::Backend>& backend,
                             const std::string& name) {
  auto pg = c10::make_intrusive<c10d::ProcessGroup>(store, rank, size);
  pg->setDefaultBackend(type);
  pg->setBackend(device, type, backend);
  backend->setSequenceNumberForGroup();
  pg->setGroupName(name);
  return std::make_unique<Group>(Group{std::move(pg)});
}

std::unique_ptr<Work> work(c10::intrusive_ptr<c10d::Work> w) {
  return std::make_unique<Work>(Work{std::move(w)});
}
} // namespace

std::unique_ptr<Group> gloo_group(const Store& store, rust::Str prefix, int rank, int size,
                                  rust::Str host, int64_t timeout_ms) {
  std::string name(prefix);
  auto scoped = c10::make_intrusive<c10d::PrefixStore>(name, store.p);
  auto opts = Gloo::Options::create(ms(timeout_ms));
  opts->devices.push_back(host.empty() ? Gloo::createDefaultDevice()
                                       : Gloo::createDeviceForHostname(std::string(host)));
  opts->group_name = name;
  auto gloo = c10::make_intrusive<Gloo>(scoped, rank, size, opts);
  return group(scoped, rank, size, c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO,
               gloo, name);
}

std::unique_ptr<Group> nccl_group(const Store& store, rust::Str prefix, int rank, int size,
                                  int device, int64_t timeout_ms) {
  // Defined in nccl_plugin.cpp, which the Rust side has loaded before this.
  using Make = c10d::Backend* (*)(const c10::intrusive_ptr<c10d::Store>&, int, int, int64_t,
                                  const std::string&);
  auto make = reinterpret_cast<Make>(dlsym(RTLD_DEFAULT, "marey_nccl_backend"));
  TORCH_CHECK(make, "libmarey_nccl.so is not loaded");
  std::string name(prefix);
  c10::intrusive_ptr<c10d::Store> scoped = c10::make_intrusive<c10d::PrefixStore>(name, store.p);
  auto nccl =
      c10::intrusive_ptr<c10d::Backend>::reclaim(make(scoped, rank, size, timeout_ms, name));
  nccl->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
  return group(scoped, rank, size, c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL,
               nccl, name);
}

std::unique_ptr<Work> Group::all_reduce(const Tensor& t, uint8_t op) const {
  std::vector<at::Tensor> ts{t};
  c10d::AllreduceOptions o;
  o.reduceOp = static_cast<c10d::ReduceOp::RedOpType>(op);
  return work(p->allreduce(ts, o));
}
std::unique_ptr<Work> Group::broadcast(const Tensor& t, int root) const {
  std::vector<at::Tensor> ts{t};
  c10d::BroadcastOptions o;
  o.rootRank = root;
  return work(p->broadcast(ts, o));
}
std::unique_ptr<Work> Group::barrier() const { return work(p->barrier()); }
void Group::broadcast_all(TensorPtrs tensors, int root) const {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> plain;
  for (auto& t : list(tensors)) plain.push_back(t.detach());
  if (!plain.empty()) c10d::broadcast_coalesced(p, plain, 25 * 1024 * 1024, root);
}
void Group::abort() const { p->abort(); }
bool Group::healthy() const {
  // Only NCCL fails behind the caller's back; Gloo's errors come out of wait().
  if (p->getBackendType() != c10d::ProcessGroup::BackendType::NCCL) return true;
  return p->getDefaultBackend()->getError() == c10d::ErrorType::SUCCESS;
}

void Work::wait(int64_t timeout_ms) const {
  p->wait(timeout_ms > 0 ? ms(timeout_ms) : kNoTimeout);
  if (auto failed = p->exception()) std::rethrow_exception(failed);
}
bool Work::done() const { return p->isCompleted(); }
} // namespace shim
