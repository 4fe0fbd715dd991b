// What PrimaryEngine and Receiver have in common beneath their JavaScript
// objects: one thread that executes their calls in order, and an end.
//
// The core outlives its thread by construction; jobs may refer to it freely.
// Only the JavaScript thread destroys it.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "base/job_thread.h"
#include "js/bridge.h"
#include "js/counters.h"

namespace holdfast::js {

class Core : public Stoppable, public std::enable_shared_from_this<Core> {
 public:
  // Calls that wait for their turn; more are refused with kLimit.
  static constexpr size_t kJobsMax = 16;

  Core(std::shared_ptr<Bridge> bridge, const char* thread_name)
      : bridge_(std::move(bridge)), jobs_(thread_name, kJobsMax) {
    g_engines_open.fetch_add(1);
  }
  ~Core() override { EndCount(); }

  using Work = std::function<Result<Value>()>;

  // Runs `work` in its turn and settles the promise with its result; rejects
  // with kCancelled if the core is closed first. JavaScript thread.
  Napi::Value Submit(Napi::Env env, Napi::Object owner, Work work,
                     std::function<void()> afterwards = {}) {
    const auto pending = Pending::Create(env, owner);
    const auto push = jobs_.TryPush(
        [pending, work = std::move(work), afterwards = std::move(afterwards)](bool run) {
          if (!run) return pending->Settle(Error::Of(ErrorCode::kCancelled, "closed"));
          pending->Settle(work());
          if (afterwards) afterwards();
        });
    if (push == JobThread::Push::kFull) {
      pending->Settle(Error::Of(ErrorCode::kLimit, "too many calls are waiting"));
    } else if (push == JobThread::Push::kStopping) {
      pending->Settle(Error::Of(ErrorCode::kCancelled, "closed"));
    }
    return pending->promise();
  }

  // Ends the thread after it released what it holds. Idempotent: every call's
  // promise settles when all is done. JavaScript thread.
  Napi::Value Close(Napi::Env env, Napi::Object owner) {
    const auto pending = Pending::Create(env, owner);
    if (ended_) {
      pending->Settle(Undefined());
      return pending->promise();
    }
    close_waiters_.push_back(pending);
    if (!std::exchange(closing_, true)) {
      Cancel();
      jobs_.Stop([self = weak_from_this(), this] {
        ReleaseResources();
        bridge_->Post([self](Napi::Env end_env) {
          if (const auto core = self.lock()) core->FinishClose(end_env);
        });
      });
    }
    return pending->promise();
  }

  void StopAndJoin() override {
    Cancel();
    jobs_.Stop({});
    jobs_.Join();
  }

  bool closing() const { return closing_; }
  const std::shared_ptr<Bridge>& bridge() const { return bridge_; }

 protected:
  // Makes what runs return soon. Any number of times, JavaScript thread.
  virtual void Cancel() = 0;
  // On the core's thread, after its last job.
  virtual void ReleaseResources() = 0;
  // On the JavaScript thread, when the core's thread is gone.
  virtual void Ended() = 0;

 private:
  void FinishClose(Napi::Env) {
    jobs_.Join();
    ended_ = true;
    Ended();
    EndCount();
    for (const auto& waiter : std::exchange(close_waiters_, {})) waiter->Settle(Undefined());
    bridge_->Unregister(this);
  }

  void EndCount() {
    if (std::exchange(counted_, false)) g_engines_open.fetch_sub(1);
  }

  const std::shared_ptr<Bridge> bridge_;
  bool closing_ = false;
  bool ended_ = false;
  bool counted_ = true;
  std::vector<std::shared_ptr<Pending>> close_waiters_;

 protected:
  JobThread jobs_;
};

}  // namespace holdfast::js
