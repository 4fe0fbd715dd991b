// Where the fields of the tracepoints lie, as tracefs describes them, and the
// filter that keeps events of other threads from being recorded at all.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace holdfast {

// All are 32 bits wide but prev_state, of which the lower half says all.
struct SwitchFields {
  uint32_t id = 0;
  uint32_t prev_pid = 0;
  uint32_t prev_state = 0;
  uint32_t next_pid = 0;
};
struct MigrateFields {
  uint32_t id = 0;
  uint32_t pid = 0;
  uint32_t orig_cpu = 0;
  uint32_t dest_cpu = 0;
};
struct WakeupFields {
  uint32_t id = 0;
  uint32_t pid = 0;
  uint32_t target_cpu = 0;
};

struct Tracepoints {
  SwitchFields on_switch;
  MigrateFields on_migrate;
  WakeupFields on_wakeup;
};

// `prev_pid` and `next_pid`, {7, 8, 9, 20} →
//   (prev_pid>=7&&prev_pid<=9)||prev_pid==20||(next_pid>=7&&next_pid<=9)||next_pid==20
// Threads that were started together have neighbouring ids: ranges keep it short.
std::string ThreadFilter(const std::vector<std::string>& fields, std::vector<pid_t> threads);

}  // namespace holdfast
