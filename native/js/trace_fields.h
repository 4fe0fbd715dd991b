// What the objects of tracing have in common.
#pragma once

#include <napi.h>

#include <vector>

#include "js/fields.h"

namespace holdfast::js {

// Whole numbers, none negative.
template <typename T>
std::vector<T> WholeNumbers(Fields& fields, const char* name) {
  std::vector<T> numbers;
  const Napi::Value value = fields.Get(name);
  if (value.IsEmpty() || !value.IsArray()) {
    fields.Wrong(name, 0);
    return numbers;
  }
  const auto array = value.As<Napi::Array>();
  for (uint32_t index = 0; index < array.Length(); ++index) {
    const Napi::Value element = array.Get(index);
    const double number = element.IsNumber() ? element.As<Napi::Number>().DoubleValue() : -1;
    if (!(number >= 0 && number <= 0x7fffffff)) {
      fields.Wrong(name, 0);
      return {};
    }
    numbers.push_back(static_cast<T>(number));
  }
  if (numbers.empty()) fields.Wrong(name, 0);
  return numbers;
}

// The events' own bytes, copied.
template <typename Event>
Napi::Value BytesOf(Napi::Env env, const std::vector<Event>& events) {
  return Napi::Buffer<std::byte>::Copy(env, reinterpret_cast<const std::byte*>(events.data()),
                                       events.size() * sizeof(Event));
}

}  // namespace holdfast::js
