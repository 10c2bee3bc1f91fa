// Declarations only: the torch wheel ships ProcessGroupGloo.hpp but not the gloo headers it
// includes. Nothing here is ever constructed or laid out by us; the classes live inside
// libtorch_cpu.so, and we hold shared_ptrs to them and call functions that it exports.
#pragma once
#include <chrono>
#include <exception>
#include <memory>
#include <string>
namespace gloo {
namespace transport {
class Device;
class UnboundBuffer;
class Pair {
 public:
  Pair() = delete;
  virtual ~Pair() = 0;
};
namespace tcp {
class Pair {
 public:
  Pair() = delete;
  std::exception_ptr signalExceptionExternal(const std::string& why);
};
} // namespace tcp
} // namespace transport
class Context {
 public:
  Context() = delete;
  void setTimeout(std::chrono::milliseconds timeout);
  std::unique_ptr<transport::Pair>& getPair(int rank);
};
} // namespace gloo
