// A c10d::Store whose every operation is a call into Rust. Rust errors (and caught panics) arrive
// as rust::Error and leave as c10::DistStoreError, which c10d knows how to pass on.
#include "shim.h"

#include "collective/src/ffi.rs.h"

namespace shim {
namespace {
using ms = std::chrono::milliseconds;
using Bytes = std::vector<uint8_t>;

template <typename F>
auto in_rust(F&& f) {
  try {
    return f();
  } catch (const std::exception& e) { // rust::Error, or a key that is not UTF-8
    C10_THROW_ERROR(DistStoreError, e.what());
  }
}
rust::Slice<const uint8_t> slice(const Bytes& b) { return {b.data(), b.size()}; }
Bytes bytes(const rust::Vec<uint8_t>& v) { return Bytes(v.begin(), v.end()); }
Bytes bytes(rust::Slice<const uint8_t> v) { return Bytes(v.begin(), v.end()); }
rust::Vec<uint8_t> vec(const Bytes& b) {
  rust::Vec<uint8_t> out;
  out.reserve(b.size());
  for (uint8_t x : b) out.push_back(x);
  return out;
}
rust::Vec<rust::String> strings(const std::vector<std::string>& keys) {
  rust::Vec<rust::String> out;
  for (auto& k : keys) out.push_back(k);
  return out;
}

class RustStore final : public c10d::Store {
 public:
  RustStore(rust::Box<Keys> keys, ms timeout) : c10d::Store(timeout), keys_(std::move(keys)) {}

  c10::intrusive_ptr<c10d::Store> clone() override {
    return c10::make_intrusive<RustStore>(keys_->duplicate(), timeout_);
  }
  using c10d::Store::set;
  void set(const std::string& key, const Bytes& value) override {
    in_rust([&] { keys_->set(key, slice(value)); });
  }
  using c10d::Store::compareSet;
  Bytes compareSet(const std::string& key, const Bytes& expected, const Bytes& desired) override {
    return in_rust([&] { return bytes(keys_->compare_set(key, slice(expected), slice(desired))); });
  }
  Bytes get(const std::string& key) override {
    return in_rust([&] { return bytes(keys_->get(key, timeout_.count())); });
  }
  int64_t add(const std::string& key, int64_t n) override {
    return in_rust([&] { return keys_->add(key, n); });
  }
  bool deleteKey(const std::string& key) override {
    return in_rust([&] { return keys_->remove(key); });
  }
  bool check(const std::vector<std::string>& keys) override {
    return in_rust([&] { return keys_->check(strings(keys)); });
  }
  int64_t getNumKeys() override {
    return in_rust([&] { return keys_->num_keys(); });
  }
  void wait(const std::vector<std::string>& keys) override { wait(keys, timeout_); }
  void wait(const std::vector<std::string>& keys, const ms& timeout) override {
    // Gloo asks for c10d's default of 5 minutes where it means the store's own time-out.
    auto limit = timeout == kNoTimeout ? timeout_ : std::min(timeout, timeout_);
    in_rust([&] { keys_->wait(strings(keys), limit.count()); });
  }

 private:
  rust::Box<Keys> keys_;
};
} // namespace

std::unique_ptr<Store> make_store(rust::Box<Keys> keys, int64_t timeout_ms) {
  return std::make_unique<Store>(
      Store{c10::make_intrusive<RustStore>(std::move(keys), ms(timeout_ms))});
}

void Store::set(rust::Str key, rust::Slice<const uint8_t> v) const {
  p->set(std::string(key), bytes(v));
}
rust::Vec<uint8_t> Store::get(rust::Str key) const { return vec(p->get(std::string(key))); }
int64_t Store::add(rust::Str key, int64_t n) const { return p->add(std::string(key), n); }
rust::Vec<uint8_t> Store::compare_set(rust::Str key, rust::Slice<const uint8_t> expected,
                                      rust::Slice<const uint8_t> desired) const {
  return vec(p->compareSet(std::string(key), bytes(expected), bytes(desired)));
}
void Store::wait_for(rust::Str key, int64_t timeout_ms) const {
  p->wait({std::string(key)}, ms(timeout_ms));
}
bool Store::check(rust::Str key) const { return p->check({std::string(key)}); }
bool Store::remove(rust::Str key) const { return p->deleteKey(std::string(key)); }
int64_t Store::num_keys() const { return p->getNumKeys(); }
} // namespace shim
