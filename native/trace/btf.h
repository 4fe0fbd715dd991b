// The type information that a Linux kernel carries (BTF): where a member lies
// in a structure. Format: Documentation/bpf/btf.rst of the kernel. What is
// parsed is guest memory: nothing in it is trusted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace holdfast {

class Btf {
 public:
  static constexpr uint16_t kMagic = 0xeb9f;  // its first two bytes

  static Result<Btf> Parse(std::vector<std::byte> bytes);

  // In bytes; also of a member of an anonymous structure or union within it.
  std::optional<uint32_t> MemberOffset(std::string_view structure, std::string_view member) const;

 private:
  Btf() = default;

  uint32_t Word(size_t at) const;
  std::string_view Name(uint32_t offset) const;
  std::optional<uint32_t> BitOffset(size_t type_at, std::string_view member, int depth,
                                    uint32_t& members_left) const;

  std::vector<std::byte> bytes_;
  size_t strings_at_ = 0;
  size_t strings_end_ = 0;
  std::vector<uint32_t> types_;  // where type 1, 2, … begins
};

}  // namespace holdfast
