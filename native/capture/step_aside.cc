#include "capture/step_aside.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <utility>

namespace holdfast {
namespace {

// proc(5), from 1; the second, a name in brackets, may hold blanks.
constexpr int kFieldState = 3;
constexpr int kFieldCore = 39;

}  // namespace

std::optional<ThreadPlace> ParseThreadPlace(std::string_view stat) {
  const size_t name_end = stat.rfind(')');
  if (name_end == std::string_view::npos) return std::nullopt;
  ThreadPlace place;
  size_t at = name_end + 1;
  for (int field = kFieldState; at < stat.size() && stat[at] == ' '; field++) {
    const size_t end = std::min(stat.find(' ', at + 1), stat.size());
    const std::string_view text = stat.substr(at + 1, end - at - 1);
    if (field == kFieldState) place.runnable = text == "R";
    if (field == kFieldCore) {
      const auto parsed = std::from_chars(text.data(), text.data() + text.size(), place.core);
      if (parsed.ec != std::errc() || place.core < 0) return std::nullopt;
      return place;
    }
    at = end;
  }
  return std::nullopt;
}

Result<MainThread> MainThread::Open(pid_t pid) {
  const std::string id = std::to_string(pid);
  // Of the thread alone: the process's own file adds up all of its threads.
  const std::string path = "/proc/" + id + "/task/" + id + "/stat";
  Descriptor stat(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!stat.valid()) return Error::FromErrno("open", path);
  return MainThread(std::move(stat));
}

std::optional<ThreadPlace> MainThread::Place() const {
  std::array<char, 1024> text;
  const ssize_t bytes = ::pread(stat_.get(), text.data(), text.size(), 0);
  if (bytes <= 0) return std::nullopt;
  return ParseThreadPlace({text.data(), static_cast<size_t>(bytes)});
}

StepAside::StepAside(const MainThread& neighbour) {
  const auto place = neighbour.Place();
  if (!place || !place->runnable || place->core != ::sched_getcpu()) return;
  cpu_set_t before;
  // Fails on a host of more cores than a cpu_set_t has: there one of them is idle.
  if (::sched_getaffinity(0, sizeof before, &before) != 0) return;
  cpu_set_t others = before;
  CPU_CLR(static_cast<size_t>(place->core), &others);
  if (CPU_COUNT(&others) == 0 || ::sched_setaffinity(0, sizeof others, &others) != 0) return;
  before_ = before;
}

StepAside::~StepAside() {
  if (before_) (void)::sched_setaffinity(0, sizeof *before_, &*before_);
}

}  // namespace holdfast
