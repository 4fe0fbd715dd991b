// What everything that works on a running VM's memory reads from its options.
#pragma once

#include <napi.h>
#include <sys/types.h>

#include "guest/ram.h"
#include "js/fields.h"

namespace holdfast::js {

inline unsigned CopyThreadsField(Fields& fields) {
  constexpr uint64_t kMax = 64;
  const uint64_t threads = fields.Whole("copyThreads");
  if (threads < 1 || threads > kMax) fields.Wrong("copyThreads", 0);
  return static_cast<unsigned>(threads);
}

// Reads last: `pid`, and `ram` with its own fields. False: thrown already, as by Check.
inline bool CheckWithRam(Napi::Env env, Fields& fields, RamPlace& place) {
  place.pid = static_cast<pid_t>(fields.Whole("pid"));
  if (place.pid <= 0) fields.Wrong("pid", 0);
  const Napi::Value mapping = fields.Get("ram");
  if (!fields.Check()) return false;
  Fields ram(env, mapping);
  place.host_address = ram.BigWhole("hostAddress");
  place.ram_bytes = ram.Whole("sizeBytes");
  place.file_offset = ram.Whole("fileOffset");
  return ram.Check();
}

}  // namespace holdfast::js
