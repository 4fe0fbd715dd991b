// A device state as what changed since another one (docs/wire-protocol.md).
//
//   | state bytes, u64 | xxh3-64 of the state, u64 | change… |
//   change = unchanged bytes before it (varint), its bytes - 1 (varint), its bytes
//
// Behind the last change all is as it was. QEMU writes most of a state at the
// same place each time: of 124 KB a few hundred bytes change in an epoch. Bytes
// are compared where they are; what shifted travels anew.
//
// Pure functions over spans. Decoding trusts nothing and ends with the digest of
// the whole state, so that a base other than the sender's is noticed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace holdfast {

inline constexpr size_t kStateDeltaHeadBytes = 16;

// Writes `state` as changes to `base`. False: that would not be smaller than
// the state itself, and `delta` is of no use.
bool EncodeStateDelta(std::span<const std::byte> base, std::span<const std::byte> state,
                      std::vector<std::byte>& delta);

// Makes `state` of `base`, which must be another buffer. kProtocol for what is
// malformed or larger than `bytes_max`, kChecksum where it is not what was encoded.
Status DecodeStateDelta(std::span<const std::byte> base, std::span<const std::byte> delta,
                        uint64_t bytes_max, std::vector<std::byte>& state);

}  // namespace holdfast
