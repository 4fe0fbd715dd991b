// The way from native threads back to one JavaScript environment.
//
//   native thread ──Post──► queue ──threadsafe function──► JavaScript thread
//
// One bridge per environment (main thread or worker). Post never blocks, so a
// native thread can be joined from the JavaScript thread at any time. What is
// queued is bounded by its producers: one completion per accepted job (job
// queues are bounded), one wake-up per event channel.
//
// Teardown: the cleanup hook is registered after the threadsafe function is
// created and therefore runs before node's own hook for it. It closes the
// queue, stops and joins everything registered, then releases the function.
// process.exit() on the main thread runs no hooks: threads then run until the
// process is gone, and touch nothing that static destructors destroy.
#pragma once

#include <napi.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>

#include "base/result.h"

namespace holdfast::js {

// Something with threads of its own that must end before the environment does.
class Stoppable {
 public:
  virtual ~Stoppable() = default;
  // Cancels and joins. On the JavaScript thread; must not call into JavaScript.
  virtual void StopAndJoin() = 0;
};

class Bridge {
 public:
  using Task = std::function<void(Napi::Env)>;

  static std::shared_ptr<Bridge> Create(Napi::Env env);
  static const std::shared_ptr<Bridge>& Of(Napi::Env env);

  Bridge() = default;
  Bridge(const Bridge&) = delete;
  Bridge& operator=(const Bridge&) = delete;

  // Runs `task` on the JavaScript thread soon; drops it if the environment is
  // going away. Any thread.
  void Post(Task task);

  // All of the following: JavaScript thread only.

  // While something holds the loop, node does not exit by itself.
  void HoldLoop(Napi::Env env);
  void ReleaseLoop(Napi::Env env);
  void Register(std::shared_ptr<Stoppable> stoppable);
  void Unregister(const Stoppable* stoppable);

 private:
  static void OnWake(napi_env env, napi_value callback, void* context, void* data);
  static void OnEnvironmentEnd(void* bridge);
  void Drain(Napi::Env env);

  napi_threadsafe_function wake_ = nullptr;
  size_t loop_holds_ = 0;
  std::set<std::shared_ptr<Stoppable>> stoppables_;

  std::mutex mutex_;  // guards the rest
  std::deque<Task> tasks_;
  bool closed_ = false;
};

// Error with `code`, `errno` and `syscall`, as lib/native.ts describes it.
Napi::Error ToJs(Napi::Env env, const Error& error);

// Builds the JavaScript value of a result; runs on the JavaScript thread.
using Value = std::function<Napi::Value(Napi::Env)>;

// A promise that a native thread settles. Holds the event loop until then.
class Pending {
 public:
  // `owner`, if any, is kept alive until the promise is settled.
  static std::shared_ptr<Pending> Create(Napi::Env env, Napi::Object owner = {});

  Napi::Promise promise() const { return deferred_.Promise(); }

  // Once, on any thread.
  void Settle(Result<Value> outcome);

 private:
  Pending(Napi::Env env, std::shared_ptr<Bridge> bridge)
      : deferred_(Napi::Promise::Deferred::New(env)), bridge_(std::move(bridge)) {}

  Napi::Promise::Deferred deferred_;
  std::shared_ptr<Bridge> bridge_;
  // Owned by the JavaScript thread: deleted there, or with the environment.
  Napi::ObjectReference* owner_ = nullptr;
};

// Settled with undefined.
inline Value Undefined() {
  return [](Napi::Env env) -> Napi::Value { return env.Undefined(); };
}
inline Result<Value> FromStatus(const Status& status) {
  if (!status.ok()) return status.error();
  return Undefined();
}

// A promise that is rejected already.
Napi::Value Rejected(Napi::Env env, const Error& error);

}  // namespace holdfast::js
