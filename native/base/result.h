// Result<T>: a value, or an error that names the code, the errno and the call.
//
// The addon is built without exceptions: every operating error travels as a
// value up to the N-API edge (addon.cc), which turns it into a JavaScript
// Error with `code`, `errno` and `syscall`. A broken invariant is not an
// operating error: it aborts (HF_ASSERT).
#pragma once

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace holdfast {

// Keep in step with NativeErrorCode in lib/native.ts.
enum class ErrorCode {
  kSyscall,
  kUnsupported,
  kInject,
  kRamMapping,
  kConnect,
  kPeerLost,
  kProtocol,
  kChecksum,
  kAuth,
  kNoSpace,
  kLimit,
  kStateLoad,
  kFenced,
  kCancelled,
  kDisk,
  kDiskForeign,
};

struct Error {
  ErrorCode code = ErrorCode::kSyscall;
  int sys_errno = 0;
  std::string syscall;  // name of the failing call, may be empty
  std::string message;  // what was being done, for a person

  // Reads errno: call it before anything else can change it.
  static Error FromErrno(const char* syscall, std::string message, ErrorCode code) {
    return Error{code, errno, syscall, std::move(message)};
  }
  // What is full is kNoSpace, whoever meets it: the cure is the same everywhere.
  static Error FromErrno(const char* syscall, std::string message) {
    const bool full = errno == ENOSPC || errno == EDQUOT;
    return FromErrno(syscall, std::move(message), full ? ErrorCode::kNoSpace : ErrorCode::kSyscall);
  }
  static Error Of(ErrorCode code, std::string message) {
    return Error{code, 0, {}, std::move(message)};
  }
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}   // NOLINT: implicit on purpose
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT
  bool ok() const { return state_.index() == 0; }
  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T&& value() && { return std::get<0>(std::move(state_)); }
  const Error& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT: implicit on purpose
  bool ok() const { return !error_.has_value(); }
  const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};

using Status = Result<void>;

}  // namespace holdfast

#define HF_ASSERT(condition)                                                   \
  do {                                                                         \
    if (!(condition)) {                                                        \
      std::fprintf(stderr, "holdfast: broken invariant %s at %s:%d\n",        \
                   #condition, __FILE__, __LINE__);                            \
      std::abort();                                                            \
    }                                                                          \
  } while (0)

// Returns the error of a Status or Result expression to the caller.
#define HF_TRY(expression)                                  \
  do {                                                      \
    auto hf_status_ = (expression);                         \
    if (!hf_status_.ok()) return hf_status_.error();        \
  } while (0)
