#include "js/bridge.h"

#include <cstring>
#include <string>
#include <utility>

namespace holdfast::js {
namespace {

// Wake-ups in flight; one is enough, since each drains the whole queue.
constexpr size_t kWakesMax = 2;

const char* CodeName(ErrorCode code) {
  switch (code) {
    case ErrorCode::kSyscall: return "HOLDFAST_E_SYSCALL";
    case ErrorCode::kUnsupported: return "HOLDFAST_E_UNSUPPORTED";
    case ErrorCode::kInject: return "HOLDFAST_E_INJECT";
    case ErrorCode::kRamMapping: return "HOLDFAST_E_RAM_MAPPING";
    case ErrorCode::kConnect: return "HOLDFAST_E_CONNECT";
    case ErrorCode::kPeerLost: return "HOLDFAST_E_PEER_LOST";
    case ErrorCode::kProtocol: return "HOLDFAST_E_PROTOCOL";
    case ErrorCode::kChecksum: return "HOLDFAST_E_CHECKSUM";
    case ErrorCode::kAuth: return "HOLDFAST_E_AUTH";
    case ErrorCode::kNoSpace: return "HOLDFAST_E_NO_SPACE";
    case ErrorCode::kLimit: return "HOLDFAST_E_LIMIT";
    case ErrorCode::kStateLoad: return "HOLDFAST_E_STATE_LOAD";
    case ErrorCode::kFenced: return "HOLDFAST_E_FENCED";
    case ErrorCode::kCancelled: return "HOLDFAST_E_CANCELLED";
    case ErrorCode::kDisk: return "HOLDFAST_E_DISK";
    case ErrorCode::kDiskForeign: return "HOLDFAST_E_DISK_FOREIGN";
  }
  return "HOLDFAST_E_SYSCALL";
}

struct AddonData {
  std::shared_ptr<Bridge> bridge;
};

}  // namespace

std::shared_ptr<Bridge> Bridge::Create(Napi::Env env) {
  auto bridge = std::make_shared<Bridge>();
  const napi_status created = napi_create_threadsafe_function(
      env, nullptr, nullptr, Napi::String::New(env, "holdfast"), kWakesMax, 1, nullptr, nullptr,
      bridge.get(), &Bridge::OnWake, &bridge->wake_);
  HF_ASSERT(created == napi_ok);
  // Idle, it must not keep the process alive.
  napi_unref_threadsafe_function(env, bridge->wake_);
  // After the function, so that this hook runs before the function's own.
  // The hook owns a reference: what it stops may outlive the instance data.
  auto* hook_owner = new std::shared_ptr<Bridge>(bridge);
  HF_ASSERT(napi_add_env_cleanup_hook(env, &Bridge::OnEnvironmentEnd, hook_owner) == napi_ok);
  env.SetInstanceData(new AddonData{bridge});
  return bridge;
}

const std::shared_ptr<Bridge>& Bridge::Of(Napi::Env env) {
  return env.GetInstanceData<AddonData>()->bridge;
}

void Bridge::Post(Task task) {
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    tasks_.push_back(std::move(task));
  }
  // Without the lock, or the woken thread blocks on it at once. The function is
  // there still: it is released only when the threads that post are joined.
  // Full means that a wake-up is on its way already.
  const napi_status woken = napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
  HF_ASSERT(woken == napi_ok || woken == napi_queue_full || woken == napi_closing);
}

void Bridge::OnWake(napi_env env, napi_value, void* context, void*) {
  if (env == nullptr) return;  // the environment is going away
  static_cast<Bridge*>(context)->Drain(env);
}

void Bridge::Drain(Napi::Env env) {
  std::deque<Task> ready;
  {
    const std::lock_guard lock(mutex_);
    ready.swap(tasks_);
  }
  for (Task& task : ready) {
    const Napi::HandleScope scope(env);
    task(env);
    task = nullptr;
    // What a listener throws is an uncaught exception, as in any callback of node's.
    if (env.IsExceptionPending()) {
      const Napi::Error thrown = env.GetAndClearPendingException();
      napi_fatal_exception(env, thrown.Value());
    }
  }
}

void Bridge::OnEnvironmentEnd(void* data) {
  const std::unique_ptr<std::shared_ptr<Bridge>> owner(static_cast<std::shared_ptr<Bridge>*>(data));
  Bridge& bridge = **owner;
  std::deque<Task> dropped;
  {
    const std::lock_guard lock(bridge.mutex_);
    bridge.closed_ = true;
    dropped.swap(bridge.tasks_);
  }
  for (const auto& stoppable : std::exchange(bridge.stoppables_, {})) stoppable->StopAndJoin();
  napi_release_threadsafe_function(bridge.wake_, napi_tsfn_abort);
}

void Bridge::HoldLoop(Napi::Env env) {
  if (loop_holds_++ == 0) napi_ref_threadsafe_function(env, wake_);
}

void Bridge::ReleaseLoop(Napi::Env env) {
  HF_ASSERT(loop_holds_ > 0);
  if (--loop_holds_ == 0) napi_unref_threadsafe_function(env, wake_);
}

void Bridge::Register(std::shared_ptr<Stoppable> stoppable) {
  stoppables_.insert(std::move(stoppable));
}

void Bridge::Unregister(const Stoppable* stoppable) {
  std::erase_if(stoppables_, [&](const auto& entry) { return entry.get() == stoppable; });
}

Napi::Error ToJs(Napi::Env env, const Error& error) {
  std::string message = error.message;
  if (!error.syscall.empty()) message += (message.empty() ? "" : ": ") + error.syscall;
  if (error.sys_errno != 0) {
    char text[128];
    message += std::string(": ") + ::strerror_r(error.sys_errno, text, sizeof text);
  }
  Napi::Error result = Napi::Error::New(env, message);
  result.Set("code", Napi::String::New(env, CodeName(error.code)));
  result.Set("errno", Napi::Number::New(env, error.sys_errno));
  result.Set("syscall", Napi::String::New(env, error.syscall));
  return result;
}

std::shared_ptr<Pending> Pending::Create(Napi::Env env, Napi::Object owner) {
  const auto& bridge = Bridge::Of(env);
  std::shared_ptr<Pending> pending(new Pending(env, bridge));
  if (!owner.IsEmpty()) {
    pending->owner_ = new Napi::ObjectReference(Napi::Persistent(owner));
    // At the end of the environment node frees the reference itself.
    pending->owner_->SuppressDestruct();
  }
  bridge->HoldLoop(env);
  return pending;
}

void Pending::Settle(Result<Value> outcome) {
  bridge_->Post([deferred = deferred_, owner = owner_, bridge = bridge_,
                 outcome = std::move(outcome)](Napi::Env env) {
    if (outcome.ok()) {
      deferred.Resolve(outcome.value()(env));
    } else {
      deferred.Reject(ToJs(env, outcome.error()).Value());
    }
    if (owner != nullptr) {
      owner->Reset();
      delete owner;
    }
    bridge->ReleaseLoop(env);
  });
}

Napi::Value Rejected(Napi::Env env, const Error& error) {
  const auto deferred = Napi::Promise::Deferred::New(env);
  deferred.Reject(ToJs(env, error).Value());
  return deferred.Promise();
}

}  // namespace holdfast::js
