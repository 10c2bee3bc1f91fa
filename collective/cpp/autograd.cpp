// Functions of the autograd graph that Python's torch has and libtorch's C++ half lacks: a sum over
// the ranks (torch.distributed.nn.functional.all_reduce) and blocks that are computed again in the
// backward pass (torch.utils.checkpoint, reentrant).
#include "shim.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "collective/src/ffi.rs.h"

namespace shim {
namespace {
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using GroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;

at::Tensor sum_now(const at::Tensor& x, const GroupPtr& group) {
  std::vector<at::Tensor> sum{x.detach().clone(at::MemoryFormat::Contiguous)};
  group->allreduce(sum)->wait();
  return sum[0];
}

struct SumOverRanks : Function<SumOverRanks> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const GroupPtr& group) {
    ctx->saved_data["group"] = c10::IValue::make_capsule(group);
    return sum_now(x, group);
  }
  // Every rank's loss depends on every rank's x through the sum.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto group = c10::static_intrusive_pointer_cast<c10d::ProcessGroup>(
        ctx->saved_data["group"].toCapsule());
    return {sum_now(grads[0], group), at::Tensor()};
  }
};

// What a block must find again to give the same numbers: autocast and the random state.
struct Surroundings {
  struct Cast {
    at::DeviceType device;
    bool enabled;
    at::ScalarType dtype;
  };
  std::vector<Cast> casts;
  std::vector<std::pair<at::Generator, at::Tensor>> random;

  static Surroundings now(at::Device device) {
    Surroundings s;
    for (auto d : {at::kCPU, at::kCUDA})
      s.casts.push_back({d, at::autocast::is_autocast_enabled(d), at::autocast::get_autocast_dtype(d)});
    s.remember(at::globalContext().defaultGenerator(at::Device(at::kCPU)));
    if (device.is_cuda()) s.remember(at::globalContext().defaultGenerator(device));
    return s;
  }
  void apply() const {
    for (auto& c : casts) {
      at::autocast::set_autocast_enabled(c.device, c.enabled);
      at::autocast::set_autocast_dtype(c.device, c.dtype);
    }
    for (auto [generator, state] : random) {
      std::lock_guard<std::mutex> lock(generator.mutex());
      generator.set_state(state);
    }
  }

private:
  void remember(at::Generator g) {
    std::lock_guard<std::mutex> lock(g.mutex());
    random.emplace_back(g, g.get_state());
  }
};

struct Remembered : torch::CustomClassHolder {
  Remembered(rust::Box<Block> b, Surroundings s) : block(std::move(b)), then(std::move(s)) {}
  rust::Box<Block> block;
  Surroundings then;
};

at::Tensor run(const Block& block, const at::Tensor& x) {
  std::unique_ptr<at::Tensor> y(reinterpret_cast<at::Tensor*>(block.run(x)));
  return *y;
}

struct Recompute : Function<Recompute> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x,
                            const c10::intrusive_ptr<Remembered>& memory) {
    ctx->save_for_backward({x});
    ctx->saved_data["memory"] = c10::IValue::make_capsule(memory);
    return run(*memory->block, x);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto memory =
        c10::static_intrusive_pointer_cast<Remembered>(ctx->saved_data["memory"].toCapsule());
    auto x = ctx->get_saved_variables()[0].detach().requires_grad_(true);
    at::Tensor y;
    {
      struct Restore {
        Surroundings before;
        explicit Restore(Surroundings s) : before(std::move(s)) { at::autocast::increment_nesting(); }
        ~Restore() {
          // As at the end of an autocast block: copies of the weights are stale after the next step.
          if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
          before.apply();
        }
      } restore{Surroundings::now(x.device())};
      memory->then.apply();
      at::AutoGradMode grad(true);
      y = run(*memory->block, x);
    }
    // Reentrant: the parameters' own gradients are accumulated, and the reducer's hooks run, here.
    torch::autograd::backward({y}, {grads[0]});
    return {x.grad(), at::Tensor()};
  }
};
} // namespace

size_t sum_over_ranks(const Group& g, const Tensor& x) {
  return reinterpret_cast<size_t>(new at::Tensor(SumOverRanks::apply(x, g.p)));
}

size_t recompute(rust::Box<Block> block, const Tensor& x) {
  TORCH_CHECK(x.requires_grad(), "a block that is computed again needs an input that requires grad");
  auto memory = c10::make_intrusive<Remembered>(std::move(block), Surroundings::now(x.device()));
  return reinterpret_cast<size_t>(new at::Tensor(Recompute::apply(x, memory)));
}
} // namespace shim
