// DistributedDataParallel's C++ half: what its Python constructor and forward do around c10d::Reducer.
#include "shim.h"

#include <algorithm>
#include <limits>

#include <torch/csrc/distributed/c10d/comm.hpp>

namespace shim {
std::vector<at::Tensor> list(TensorPtrs ptrs) {
  std::vector<at::Tensor> v;
  v.reserve(ptrs.size());
  for (size_t p : ptrs) v.push_back(*reinterpret_cast<const at::Tensor*>(p));
  return v;
}

namespace {
// Lets out the times that DistributedDataParallel's logger reads as a friend.
class TimedReducer final : public c10d::Reducer {
 public:
  using c10d::Reducer::Reducer;
  double exchange_wait() const {
    using Event = c10d::Timer::Event;
    if (!timer_) return 0;
    auto ns = timer_->measureDifference(Event::kBackwardComputeEnd, Event::kBackwardCommEnd);
    return ns && *ns > 0 ? static_cast<double>(*ns) * 1e-9 : 0;
  }
  // The first pass need not find the order of the gradients.
  void keep_buckets() { has_rebuilt_bucket_ = true; }
};
} // namespace

std::unique_ptr<Reducer> make_reducer(TensorPtrs params, const Group& g, int64_t first_bucket_bytes,
                                      int64_t bucket_bytes, bool find_unused, bool grad_as_view,
                                      rust::Slice<const uint64_t> layout) {
  auto ps = list(params);
  // DistributedDataParallel checks this in Python; c10d itself crashes on an empty list.
  TORCH_CHECK(!ps.empty(), "there are no parameters to reduce");
  for (size_t i = 0; i < ps.size(); ++i) {
    auto& t = ps[i];
    TORCH_CHECK(t.defined() && t.is_leaf() && t.requires_grad() && t.device() == ps[0].device(),
                "parameter ", i, " must be a leaf that requires grad, on the device of the first");
    t.mutable_grad().reset(); // it may be a view of another reducer's bucket
  }
  c10d::verify_params_across_processes(g.p, ps, std::nullopt);
  // As DistributedDataParallel: one bucket for the first iteration unless unused
  // parameters are looked for; the Reducer rebuilds them after the first backward.
  std::vector<size_t> limits{static_cast<size_t>(std::numeric_limits<int64_t>::max())};
  if (find_unused)
    limits = {static_cast<size_t>(first_bucket_bytes), static_cast<size_t>(bucket_bytes)};
  std::vector<bool> sparse(ps.size(), false);
  std::vector<std::vector<size_t>> buckets;
  if (layout.empty()) {
    buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(ps, limits, sparse));
    std::reverse(buckets.begin(), buckets.end());
  }
  std::vector<bool> seen(ps.size(), false);
  for (uint64_t at : layout) {
    const size_t bucket = at >> 32, i = at & 0xffffffff;
    TORCH_CHECK(layout.size() == ps.size() && i < ps.size() && !seen[i] && bucket <= buckets.size() &&
                    bucket + 1 >= buckets.size(),
                "the layout of the buckets belongs to other parameters");
    seen[i] = true;
    if (bucket == buckets.size()) buckets.emplace_back();
    buckets.back().push_back(i);
  }
  std::unordered_map<size_t, std::string> names;
  for (size_t i = 0; i < ps.size(); ++i) names[i] = "parameter " + std::to_string(i);
  auto out = std::make_unique<Reducer>();
  out->params = ps;
  out->p = std::make_shared<TimedReducer>(
      std::move(ps), std::move(buckets), g.p, std::move(sparse), bucket_bytes, find_unused,
      grad_as_view, std::move(names), first_bucket_bytes,
      /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
      /*bucket_bytes_cap_list=*/std::vector<int64_t>{});
  out->p->set_ddp_runtime_logging_sample_rate(1); // times every backward pass
  if (!layout.empty()) static_cast<TimedReducer&>(*out->p).keep_buckets();
  return out;
}
Reducer::~Reducer() {
  try {
    p.reset();
  } catch (const std::exception& e) {
    TORCH_WARN("c10d::Reducer destructor: ", e.what());
  }
}
bool Reducer::prepare_forward() const {
  p->prepare_for_forward();
  return p->rebuild_buckets();
}
void Reducer::prepare_backward(TensorPtrs outputs) const { p->prepare_for_backward(list(outputs)); }
void Reducer::zero_grad() const {
  for (const auto& t : params) t.mutable_grad().reset();
}
double Reducer::exchange_wait() const {
  return static_cast<const TimedReducer&>(*p).exchange_wait();
}
rust::Vec<uint64_t> Reducer::lay_out() const {
  p->rebuild_buckets();
  std::unordered_map<const at::TensorImpl*, uint64_t> places;
  for (size_t i = 0; i < params.size(); ++i) places[params[i].unsafeGetTensorImpl()] = i;
  rust::Vec<uint64_t> out;
  uint64_t bucket = 0;
  for (auto& b : p->get_grad_buckets(/*return_zero_tensors=*/false)) {
    for (auto& t : b.getParameters()) out.push_back(bucket << 32 | places.at(t.unsafeGetTensorImpl()));
    ++bucket;
  }
  return out;
}
} // namespace shim
