// The NCCL half of the shim as a shared object, so that one CPU-linked program serves both:
// loading it pulls in libtorch_cuda.so (do that before anything asks torch about CUDA).
#include <c10/util/env.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

extern "C" c10d::Backend* marey_nccl_backend(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                                             int size, int64_t timeout_ms,
                                             const std::string& name) {
  // 2 is CleanUpOnly: after a dead peer or a time-out the communicator is aborted, so that waiting
  // kernels end and the next question is an error. The default ends the whole process.
  c10::utils::set_env("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", /*overwrite=*/false);
  // The monitor of the watchdog ends the process when the watchdog hangs; ours is the coordinator.
  c10::utils::set_env("TORCH_NCCL_ENABLE_MONITORING", "0", /*overwrite=*/false);
  using c10d::ProcessGroupNCCL;
  auto opts = ProcessGroupNCCL::Options::create();
  opts->timeout = std::chrono::milliseconds(timeout_ms);
  opts->group_name = name;
  return c10::make_intrusive<ProcessGroupNCCL>(store, rank, size, opts).release();
}
