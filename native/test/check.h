// A test program: TEST blocks, run in order; CHECK ends the program at the
// first failure, with the place and what was expected.
#pragma once

#include <signal.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace holdfast::test {

struct Case {
  const char* name;
  void (*body)();
};

inline std::vector<Case>& Cases() {
  static std::vector<Case> cases;
  return cases;
}

struct Registration {
  Registration(const char* name, void (*body)()) { Cases().push_back({name, body}); }
};

// Runs all, or those whose name contains the first argument.
inline int RunAll(int argc, char** argv) {
  // As in the data plane's threads: sendfile and splice raise it.
  signal(SIGPIPE, SIG_IGN);
  for (const Case& test : Cases()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    std::printf("  %s", test.name);
    std::fflush(stdout);
    const double started_ms = MonotonicMs();
    test.body();
    std::printf(" (%.1f s)\n", (MonotonicMs() - started_ms) / 1e3);
  }
  return 0;
}

[[noreturn]] inline void Fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  std::exit(1);
}

}  // namespace holdfast::test

#define HF_JOIN_(a, b) a##b
#define HF_JOIN(a, b) HF_JOIN_(a, b)
#define TEST(name)                                                                          \
  static void HF_JOIN(TestBody, __LINE__)();                                                \
  static const holdfast::test::Registration HF_JOIN(g_registration, __LINE__)(              \
      name, HF_JOIN(TestBody, __LINE__));                                                   \
  static void HF_JOIN(TestBody, __LINE__)()

#define CHECK(condition)                                                                    \
  do {                                                                                      \
    if (!(condition)) holdfast::test::Fail(__FILE__, __LINE__, "CHECK(" #condition ")");    \
  } while (0)

#define CHECK_EQ(actual, expected)                                                          \
  do {                                                                                      \
    const auto actual_ = (actual);                                                          \
    const decltype(actual_) expected_ = (expected);                                         \
    if (!(actual_ == expected_)) {                                                          \
      holdfast::test::Fail(__FILE__, __LINE__,                                              \
                           std::string(#actual " is ") +                                    \
                               std::to_string(static_cast<unsigned long long>(actual_)) +   \
                               ", expected " +                                              \
                               std::to_string(static_cast<unsigned long long>(expected_))); \
    }                                                                                       \
  } while (0)

#define CHECK_OK(result)                                                                    \
  do {                                                                                      \
    const auto& result_ = (result);                                                         \
    if (!result_.ok()) {                                                                    \
      holdfast::test::Fail(__FILE__, __LINE__, #result ": " + result_.error().message);     \
    }                                                                                       \
  } while (0)

// The result failed with this code, and its message contains this text.
#define CHECK_ERROR(result, expected_code, text)                                            \
  do {                                                                                      \
    const auto& result_ = (result);                                                         \
    if (result_.ok()) holdfast::test::Fail(__FILE__, __LINE__, #result " succeeded");       \
    if (result_.error().code != (expected_code) ||                                          \
        result_.error().message.find(text) == std::string::npos) {                          \
      holdfast::test::Fail(__FILE__, __LINE__,                                              \
                           #result ": code " +                                              \
                               std::to_string(static_cast<int>(result_.error().code)) +     \
                               ", " + result_.error().message);                             \
    }                                                                                       \
  } while (0)
