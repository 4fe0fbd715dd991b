// Error texts with figures in them.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <string>

namespace holdfast {

[[gnu::format(printf, 1, 2)]] inline std::string Text(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return text;
}

}  // namespace holdfast
