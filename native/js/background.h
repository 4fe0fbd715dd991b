// A blocking function on a thread of its own, as a promise.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>

#include "base/cancel.h"
#include "base/result.h"
#include "js/bridge.h"

namespace holdfast::js {

// `work` should look at the signal now and then: it is raised at the end of
// the environment, which waits for it.
using Work = std::function<Result<Value>(const CancelSignal&)>;

Napi::Value RunInBackground(Napi::Env env, Work work);

}  // namespace holdfast::js
