// RAII for file descriptors and mappings. Every live Descriptor is counted, so
// that tests can show that none is left behind.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <utility>

namespace holdfast {

inline std::atomic<int> g_descriptors_open{0};

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {
    if (fd_ >= 0) g_descriptors_open.fetch_add(1, std::memory_order_relaxed);
  }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      Close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { Close(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  void Close() {
    if (fd_ < 0) return;
    ::close(std::exchange(fd_, -1));
    g_descriptors_open.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  int fd_ = -1;
};

class Mapping {
 public:
  Mapping() = default;
  Mapping(void* base, size_t size) : base_(base), size_(size) {}
  Mapping(Mapping&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    if (this != &other) {
      Unmap();
      base_ = std::exchange(other.base_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { Unmap(); }

  std::byte* data() const { return static_cast<std::byte*>(base_); }
  size_t size() const { return size_; }
  bool valid() const { return base_ != nullptr; }
  void Unmap() {
    if (base_ != nullptr) ::munmap(std::exchange(base_, nullptr), std::exchange(size_, 0));
  }

 private:
  void* base_ = nullptr;
  size_t size_ = 0;
};

}  // namespace holdfast
