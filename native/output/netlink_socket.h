// A NETLINK_ROUTE socket that sends one request at a time and waits for the
// kernel's word on it.
#pragma once

#include <linux/netlink.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"

namespace holdfast {

class NetlinkSocket {
 public:
  // In the network namespace of the calling thread.
  static Result<NetlinkSocket> Open();

  // An error holds the kernel's errno, and its own words where it gave any.
  Status Execute(nlmsghdr* request, const std::string& what);
  // The first answer, from its nlmsghdr on; empty if the kernel confirmed without one.
  Result<std::vector<std::byte>> Query(nlmsghdr* request, const std::string& what);

 private:
  explicit NetlinkSocket(Descriptor socket) : socket_(std::move(socket)) {}

  Descriptor socket_;
  uint32_t sequence_ = 0;
};

// The payload of the first attribute of this type among `attributes` (a chain
// of nlattr); empty if there is none, or if the chain is damaged before it.
std::span<const std::byte> FindAttribute(std::span<const std::byte> attributes, uint16_t type);

// The attributes of an answer after its fixed part of `header_bytes`.
std::span<const std::byte> AttributesOf(std::span<const std::byte> message, size_t header_bytes);

}  // namespace holdfast
