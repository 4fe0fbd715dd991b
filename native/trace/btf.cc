#include "trace/btf.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace holdfast {
namespace {

constexpr size_t kHeaderBytes = 24;
constexpr size_t kTypeBytes = 12;
constexpr size_t kMemberBytes = 12;
// Structures nest three or four deep; a loop in damaged data must end.
constexpr int kDepthMax = 16;
// They may also hold each other many times: the guest writes what is read here.
constexpr uint32_t kMembersMax = 1 << 20;  // looked at, for one name
constexpr size_t kNameBytesMax = 512;      // KSYM_NAME_LEN

enum Kind : uint32_t { kStruct = 4, kUnion = 5 };

// Of what follows a type's 12 bytes: so much once, and so much per element.
struct Trailer {
  uint8_t once;
  uint8_t each;
};
constexpr Trailer kTrailers[] = {
    {0, 0},               // 0: none
    {4, 0},  {0, 0},      // int, pointer
    {12, 0},              // array
    {0, 12}, {0, 12},     // struct, union
    {0, 8},               // enum
    {0, 0},  {0, 0},      // forward, typedef
    {0, 0},  {0, 0},      // volatile, const
    {0, 0},  {0, 0},      // restrict, function
    {0, 8},               // prototype
    {4, 0},  {0, 12},     // variable, section
    {0, 0},  {4, 0},      // float, declaration tag
    {0, 0},  {0, 12},     // type tag, enum64
};

Error Damaged(const char* what) {
  return Error::Of(ErrorCode::kUnsupported, std::string("the guest kernel's type information: ") + what);
}

uint32_t KindOf(uint32_t info) { return (info >> 24) & 0x1f; }

}  // namespace

Result<Btf> Btf::Parse(std::vector<std::byte> bytes) {
  Btf btf;
  btf.bytes_ = std::move(bytes);
  const size_t size = btf.bytes_.size();
  if (size < kHeaderBytes || (btf.Word(0) & 0xffff) != kMagic) return Damaged("no BTF");
  const uint64_t header = btf.Word(4);
  const uint64_t types_at = header + btf.Word(8), types_end = types_at + btf.Word(12);
  const uint64_t strings_at = header + btf.Word(16), strings_end = strings_at + btf.Word(20);
  if (types_end > size || strings_end > size) return Damaged("cut off");
  btf.strings_at_ = strings_at;
  btf.strings_end_ = strings_end;
  for (uint64_t at = types_at; at + kTypeBytes <= types_end;) {
    const uint32_t info = btf.Word(at + 4);
    const uint32_t kind = KindOf(info);
    if (kind >= std::size(kTrailers)) return Damaged("a kind of type that is not known");
    const uint64_t next = at + kTypeBytes + kTrailers[kind].once + uint64_t{kTrailers[kind].each} * (info & 0xffff);
    if (next > types_end) return Damaged("cut off");
    btf.types_.push_back(static_cast<uint32_t>(at));
    at = next;
  }
  return btf;
}

uint32_t Btf::Word(size_t at) const {
  uint32_t word = 0;
  HF_ASSERT(at + sizeof word <= bytes_.size());
  std::memcpy(&word, bytes_.data() + at, sizeof word);
  return word;
}

std::string_view Btf::Name(uint32_t offset) const {
  const size_t at = strings_at_ + offset;
  if (at >= strings_end_) return {};
  const char* text = reinterpret_cast<const char*>(bytes_.data()) + at;
  return {text, ::strnlen(text, std::min(strings_end_ - at, kNameBytesMax))};
}

std::optional<uint32_t> Btf::MemberOffset(std::string_view structure, std::string_view member) const {
  uint32_t members_left = kMembersMax;
  for (const uint32_t at : types_) {
    if (KindOf(Word(at + 4)) != kStruct || Name(Word(at)) != structure) continue;
    if (const auto bits = BitOffset(at, member, 0, members_left)) return *bits / 8;
  }
  return std::nullopt;
}

std::optional<uint32_t> Btf::BitOffset(size_t type_at, std::string_view member, int depth,
                                       uint32_t& members_left) const {
  const uint32_t info = Word(type_at + 4);
  const uint32_t kind = KindOf(info);
  if ((kind != kStruct && kind != kUnion) || depth > kDepthMax) return std::nullopt;
  const bool has_bit_fields = (info >> 31) != 0;
  for (uint32_t index = 0; index < (info & 0xffff) && members_left > 0; ++index) {
    --members_left;
    const size_t at = type_at + kTypeBytes + index * kMemberBytes;
    const uint32_t offset = has_bit_fields ? Word(at + 8) & 0xffffff : Word(at + 8);
    const std::string_view name = Name(Word(at));
    if (name == member) return offset;
    const uint32_t type = Word(at + 4);
    if (!name.empty() || type == 0 || type > types_.size()) continue;
    const auto inner = BitOffset(types_[type - 1], member, depth + 1, members_left);
    if (inner) return offset + *inner;
  }
  return std::nullopt;
}

}  // namespace holdfast
