// What the Rust side sees of c10d, and how C++ exceptions reach it. Every function may throw:
// cxx turns that into an `Err`.
#pragma once
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include "rust/cxx.h"

// How cxx turns C++ exceptions into Rust `Err`. The prefixes are read by src/error.rs.
namespace rust::behavior {
template <typename Try, typename Fail>
static void trycatch(Try&& func, Fail&& fail) noexcept try {
  func();
} catch (const c10::DistStoreError& e) {
  fail("store: " + std::string(e.what_without_backtrace()));
} catch (const c10::DistError& e) { // its backend and its network errors
  fail("peer: " + std::string(e.what_without_backtrace()));
} catch (const c10::Error& e) {
  fail(e.what_without_backtrace());
} catch (const std::exception& e) {
  fail(e.what());
} catch (...) {
  fail("unknown C++ exception");
}
} // namespace rust::behavior

namespace shim {
using Tensor = at::Tensor;
using TensorPtrs = rust::Slice<const size_t>; // at::Tensor* as integers

std::vector<at::Tensor> list(TensorPtrs ptrs);

// store.cpp
struct Keys; // the Rust key-value store
struct Store {
  c10::intrusive_ptr<c10d::Store> p;
  void set(rust::Str key, rust::Slice<const uint8_t> value) const;
  rust::Vec<uint8_t> get(rust::Str key) const;
  int64_t add(rust::Str key, int64_t n) const;
  rust::Vec<uint8_t> compare_set(rust::Str key, rust::Slice<const uint8_t> expected,
                                 rust::Slice<const uint8_t> desired) const;
  void wait_for(rust::Str key, int64_t timeout_ms) const;
  bool check(rust::Str key) const;
  bool remove(rust::Str key) const;
  int64_t num_keys() const;
};
std::unique_ptr<Store> make_store(rust::Box<Keys> keys, int64_t timeout_ms);

// group.cpp
struct Work {
  c10::intrusive_ptr<c10d::Work> p;
  void wait(int64_t timeout_ms) const;
  bool done() const;
};
struct Group {
  c10::intrusive_ptr<c10d::ProcessGroup> p;
  std::unique_ptr<Work> all_reduce(const Tensor& t, uint8_t op) const;
  std::unique_ptr<Work> broadcast(const Tensor& t, int root) const;
  std::unique_ptr<Work> barrier() const;
  void broadcast_all(TensorPtrs tensors, int root) const;
  void abort() const;
  bool healthy() const;
};
std::unique_ptr<Group> gloo_group(const Store& store, rust::Str prefix, int rank, int size,
                                  rust::Str host, int64_t timeout_ms);
std::unique_ptr<Group> nccl_group(const Store& store, rust::Str prefix, int rank, int size,
                                  int device, int64_t timeout_ms);

// reducer.cpp
struct Reducer {
  std::shared_ptr<c10d::Reducer> p;
  std::vector<at::Tensor> params;
  ~Reducer(); // c10d::Reducer's destructor may throw, this one does not
  bool prepare_forward() const;
  void prepare_backward(TensorPtrs outputs) const;
  void zero_grad() const;
  double exchange_wait() const; // seconds
  rust::Vec<uint64_t> lay_out() const; // bucket << 32 | parameter, in the order of exchange
};
std::unique_ptr<Reducer> make_reducer(TensorPtrs params, const Group& g, int64_t first_bucket_bytes,
                                      int64_t bucket_bytes, bool find_unused, bool grad_as_view,
                                      rust::Slice<const uint64_t> layout); // empty: none is known

// autograd.cpp
struct Block; // a Rust function of one tensor
size_t sum_over_ranks(const Group& g, const Tensor& x);         // a new at::Tensor*, owned by the caller
size_t recompute(rust::Box<Block> block, const Tensor& x);      // likewise

// runtime.cpp
struct AutocastState; // shared with Rust
void init_logging();
void load_plugin(rust::Str path);
bool keep_pages();
AutocastState autocast_enter(bool cuda, bool half);
void autocast_leave(const AutocastState& before);
size_t channels_last_3d(const Tensor& t); // a new at::Tensor*, owned by the caller
void channels_last_3d_in_place(const Tensor& t);
void fused_adamw(TensorPtrs params, TensorPtrs grads, TensorPtrs exp_avgs, TensorPtrs exp_avg_sqs,
                 double step, double lr, double beta1, double beta2, double weight_decay,
                 double eps);
void fused_sgd(TensorPtrs params, TensorPtrs grads, TensorPtrs momenta, double lr, double momentum,
               double weight_decay, bool nesterov);
double foreach_norm(TensorPtrs tensors);
void foreach_mul(TensorPtrs tensors, double factor);
void foreach_lerp(TensorPtrs tensors, TensorPtrs ends, double weight);
void foreach_copy(TensorPtrs tensors, TensorPtrs sources);
} // namespace shim
