// Memory of one call of an operator, which later calls use again.
//
// Fresh memory costs a page fault per 4 KB, as much time as a small layer takes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace spnas {

constexpr int64_t kAlignment = 64;  // bytes: a cache line, and the longest vector

// Floats at an aligned address.
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : size_(size), data_(static_cast<float *>(
                         ::operator new(size * sizeof(float), std::align_val_t{kAlignment}))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t{kAlignment}); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;

  float *data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  const int64_t size_;
  float *const data_;
};

#ifdef __SANITIZE_ADDRESS__
constexpr bool kExactBuffers = true;  // so that what is written beyond a buffer is found
#else
constexpr bool kExactBuffers = false;
#endif

// Gives out memory until it is destroyed. What it has grown to is kept for the next arena.
class Arena {
 public:
  Arena() {
    if (kExactBuffers) {
      return;
    }
    std::lock_guard<std::mutex> lock(mutex());
    if (!kept().empty()) {
      buffers_.push_back(std::move(kept().back()));
      kept().pop_back();
    }
  }

  ~Arena() {
    if (kExactBuffers) {
      return;
    }
    int64_t total = 0;
    for (const auto &buffer : buffers_) {
      total += buffer->size();
    }
    try {
      if (buffers_.size() > 1) {  // one that would have been enough
        buffers_.clear();
        buffers_.push_back(std::make_unique<Buffer>(total));
      }
      std::lock_guard<std::mutex> lock(mutex());
      if (!buffers_.empty()) {
        kept().push_back(std::move(buffers_.front()));
      }
    } catch (const std::bad_alloc &) {  // then the next one begins with nothing
    }
  }

  Arena(const Arena &) = delete;
  Arena &operator=(const Arena &) = delete;

  // Memory that holds anything.
  template <typename T = float>
  T *take(int64_t count) {
    constexpr int64_t kLine = kAlignment / sizeof(float);
    const int64_t size = (count * sizeof(T) + kAlignment - 1) / kAlignment * kLine;
    if (kExactBuffers || buffers_.empty() || used_ + size > buffers_.back()->size()) {
      buffers_.push_back(std::make_unique<Buffer>(size));
      used_ = 0;
    }
    float *data = buffers_.back()->data() + used_;
    used_ += size;
    return reinterpret_cast<T *>(data);
  }

  float *zeros(int64_t size) {
    float *data = take(size);
    std::memset(data, 0, size * sizeof(float));
    return data;
  }

 private:
  // As many as there have been calls at the same time.
  static std::vector<std::unique_ptr<Buffer>> &kept() {
    static auto *buffers = new std::vector<std::unique_ptr<Buffer>>;  // never destroyed
    return *buffers;
  }
  static std::mutex &mutex() {
    static auto *mutex = new std::mutex;
    return *mutex;
  }

  std::vector<std::unique_ptr<Buffer>> buffers_;
  int64_t used_ = 0;  // of the last buffer
};

}  // namespace spnas
