// What a training loop needs of libtorch and libc and tch lacks: logging, autocast, memory
// formats, fused optimizer kernels, malloc's settings, the NCCL plugin.
#include "shim.h"

#include <dlfcn.h>
#include <malloc.h>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/debug.h>

#include "collective/src/ffi.rs.h"

namespace shim {
void init_logging() {
  c10::initLogging();                   // TORCH_CPP_LOG_LEVEL; Python does it in torch/__init__
  c10d::setDebugLevelFromEnvironment(); // TORCH_DISTRIBUTED_DEBUG; likewise
}

void load_plugin(rust::Str path) {
  if (!dlopen(std::string(path).c_str(), RTLD_NOW | RTLD_GLOBAL)) {
    const char* why = dlerror();
    TORCH_CHECK(false, why ? why : "dlopen gave no reason");
  }
}

bool keep_pages() {
#ifdef __GLIBC__
  // Without M_MMAP_MAX every block above 32 MiB, so nearly every activation, is mapped and given
  // back each time: 41,000 page faults where 385 MiB are taken and freed, against none.
  return mallopt(M_MMAP_MAX, 0) && mallopt(M_TRIM_THRESHOLD, -1) && mallopt(M_TOP_PAD, 256 << 20);
#else
  return false;
#endif
}

AutocastState autocast_enter(bool cuda, bool half) {
  auto device = cuda ? at::kCUDA : at::kCPU;
  AutocastState before{cuda, at::autocast::is_autocast_enabled(device),
                       static_cast<int8_t>(at::autocast::get_autocast_dtype(device))};
  at::autocast::set_autocast_enabled(device, true);
  at::autocast::set_autocast_dtype(device, half ? at::kHalf : at::kBFloat16);
  at::autocast::increment_nesting();
  return before;
}
void autocast_leave(const AutocastState& before) {
  auto device = before.cuda ? at::kCUDA : at::kCPU;
  // The cache holds bf16 or fp16 copies of weights: stale after the next optimizer step.
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device, before.enabled);
  at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(before.dtype));
}

namespace {
at::Tensor last(const at::Tensor& t) {
  TORCH_CHECK(t.defined() && t.dim() == 5, "channels_last_3d needs 5 dimensions, not ",
              t.defined() ? t.dim() : -1);
  return t.contiguous(at::MemoryFormat::ChannelsLast3d);
}

bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// The fused kernels walk all tensors of a parameter as flat memory. Gradients are brought into the
// parameter's layout; a state in another one is the caller's mistake.
void check_state(const std::vector<at::Tensor>& params, const std::vector<at::Tensor>& state,
                 const char* what) {
  TORCH_CHECK(params.size() == state.size(), params.size(), " parameters but ", state.size(), " ",
              what);
  for (size_t i = 0; i < params.size(); ++i) {
    auto& p = params[i];
    TORCH_CHECK(p.is_non_overlapping_and_dense(), "parameter ", i, " is not dense");
    TORCH_CHECK(state[i].defined() && state[i].scalar_type() == p.scalar_type() &&
                    state[i].device() == p.device() && same_layout(p, state[i]),
                what, " ", i, " must have the type, device, shape and strides of its parameter");
  }
}
std::vector<at::Tensor> laid_out(const std::vector<at::Tensor>& params,
                                 std::vector<at::Tensor> grads) {
  TORCH_CHECK(params.size() == grads.size(), params.size(), " parameters but ", grads.size(),
              " gradients");
  for (size_t i = 0; i < params.size(); ++i) {
    TORCH_CHECK(grads[i].defined() && grads[i].sizes() == params[i].sizes(), "gradient ", i,
                " must have the shape of its parameter");
    if (!same_layout(params[i], grads[i]) || grads[i].scalar_type() != params[i].scalar_type())
      grads[i] = at::empty_like(params[i]).copy_(grads[i]);
  }
  return grads;
}
} // namespace

size_t channels_last_3d(const Tensor& t) {
  return reinterpret_cast<size_t>(new at::Tensor(last(t)));
}
void channels_last_3d_in_place(const Tensor& t) {
  at::NoGradGuard no_grad;
  t.set_data(last(t.detach()));
  if (t.grad().defined()) t.mutable_grad() = last(t.grad());
}

void fused_adamw(TensorPtrs params, TensorPtrs grads, TensorPtrs exp_avgs, TensorPtrs exp_avg_sqs,
                 double step, double lr, double beta1, double beta2, double weight_decay,
                 double eps) {
  at::NoGradGuard no_grad;
  auto p = list(params), m = list(exp_avgs), v = list(exp_avg_sqs);
  auto g = laid_out(p, list(grads));
  check_state(p, m, "exp_avg");
  check_state(p, v, "exp_avg_sq");
  if (p.empty()) return;
  std::vector<at::Tensor> steps(p.size(), at::full({}, step, p[0].options().dtype(at::kFloat)));
  at::_fused_adamw_(p, g, m, v, /*max_exp_avg_sqs=*/{}, steps, lr, beta1, beta2, weight_decay, eps,
                    /*amsgrad=*/false, /*maximize=*/false);
}
void fused_sgd(TensorPtrs params, TensorPtrs grads, TensorPtrs momenta, double lr, double momentum,
               double weight_decay, bool nesterov) {
  at::NoGradGuard no_grad;
  auto p = list(params), b = list(momenta);
  auto g = laid_out(p, list(grads));
  if (momentum != 0 || !b.empty()) check_state(p, b, "momentum");
  if (p.empty()) return;
  // Buffers start at zero, so the first step needs no special case: 0 * momentum + gradient.
  at::_fused_sgd_(p, g, b, weight_decay, momentum, lr, /*dampening=*/0, nesterov,
                  /*maximize=*/false, /*is_first_step=*/false);
}

double foreach_norm(TensorPtrs tensors) {
  at::NoGradGuard no_grad;
  auto ts = list(tensors);
  if (ts.empty()) return 0;
  return at::stack(at::_foreach_norm(ts)).norm().item<double>();
}
void foreach_mul(TensorPtrs tensors, double factor) {
  at::NoGradGuard no_grad;
  auto ts = list(tensors);
  if (!ts.empty()) at::_foreach_mul_(ts, factor);
}
void foreach_lerp(TensorPtrs tensors, TensorPtrs ends, double weight) {
  at::NoGradGuard no_grad;
  auto ts = list(tensors);
  if (!ts.empty()) at::_foreach_lerp_(ts, list(ends), weight);
}
void foreach_copy(TensorPtrs tensors, TensorPtrs sources) {
  at::NoGradGuard no_grad;
  auto ts = list(tensors);
  if (!ts.empty()) at::_foreach_copy_(ts, list(sources));
}
} // namespace shim
