// The disk server as nbdkit loads it: arguments, callbacks, life cycle. All that
// a disk needs is in disk_server.h; docs/disk.md, "Disk server", is the manual.
//
//   nbdkit --foreground --unix SOCKET holdfast_disk.so image=… meta=… ring=… control=…
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "base/cancel.h"
#include "base/thread.h"
#include "nbdkit/control_server.h"
#include "nbdkit/disk_server.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

namespace holdfast {
namespace {

constexpr uint64_t kRingBytesDefault = uint64_t{64} << 20;

struct Arguments {
  std::string image, meta, ring, control;
  uint64_t ring_bytes = kRingBytesDefault;
  bool active = true;
};

// What nbdkit's callbacks find: one disk per process. Destroyed at exit.
struct Plugin {
  Arguments arguments;
  std::unique_ptr<DiskServer> server;
  std::unique_ptr<ControlServer> control;
  CancelSignal end;
  Descriptor signals;
  Thread ender;
};

Plugin& ThePlugin() {
  static Plugin plugin;
  return plugin;
}

int Say(const Error& error) {
  if (error.sys_errno != 0) {
    nbdkit_error("%s: %s", error.message.c_str(), std::strerror(error.sys_errno));
  } else {
    nbdkit_error("%s", error.message.c_str());
  }
  return -1;
}

// Made absolute: nbdkit may leave its directory.
int TakePath(std::string& into, const char* value) {
  char* const path = nbdkit_absolute_path(value);
  if (path == nullptr) return -1;
  into = path;
  std::free(path);
  return 0;
}

int TakeRingBytes(uint64_t& into, const char* value) {
  const int64_t bytes = nbdkit_parse_size(value);
  if (bytes < 0) return -1;
  const auto size = static_cast<uint64_t>(bytes);
  if (size < kRingBytesMin || size > kRingBytesMax || (size & (size - 1)) != 0) {
    nbdkit_error("ring-bytes must be a power of two from 4M to 4G: %s", value);
    return -1;
  }
  into = size;
  return 0;
}

int TakeMode(bool& active, const char* value) {
  active = std::strcmp(value, "active") == 0;
  if (active || std::strcmp(value, "standby") == 0) return 0;
  nbdkit_error("mode must be active or standby: %s", value);
  return -1;
}

int Config(const char* key, const char* value) {
  Arguments& arguments = ThePlugin().arguments;
  const std::string name = key;
  if (name == "image") return TakePath(arguments.image, value);
  if (name == "meta") return TakePath(arguments.meta, value);
  if (name == "ring") return TakePath(arguments.ring, value);
  if (name == "control") return TakePath(arguments.control, value);
  if (name == "ring-bytes") return TakeRingBytes(arguments.ring_bytes, value);
  if (name == "mode") return TakeMode(arguments.active, value);
  nbdkit_error("unknown parameter '%s'", key);
  return -1;
}

int ConfigComplete() {
  const Arguments& arguments = ThePlugin().arguments;
  const std::pair<const char*, const std::string&> needed[] = {{"image", arguments.image},
                                                               {"meta", arguments.meta},
                                                               {"ring", arguments.ring},
                                                               {"control", arguments.control}};
  for (const auto& [name, value] : needed) {
    if (!value.empty()) continue;
    nbdkit_error("the parameter %s=PATH is missing", name);
    return -1;
  }
  return 0;
}

// Before nbdkit forks: what fails here is seen by whoever started it.
int GetReady() {
  Plugin& plugin = ThePlugin();
  const Arguments& arguments = plugin.arguments;
  ::umask(0077);  // ring, map and sockets are for this user only
  // First: a second server with the same paths ends here, before it replaces the
  // ring of the one that runs.
  auto control = ControlServer::Listen(arguments.control);
  if (!control.ok()) return Say(control.error());
  plugin.control = std::move(control).value();
  auto server = DiskServer::Open({.image_path = arguments.image,
                                  .meta_path = arguments.meta,
                                  .ring_path = arguments.ring,
                                  .ring_bytes = arguments.ring_bytes,
                                  .active = arguments.active});
  if (!server.ok()) return Say(server.error());
  plugin.server = std::move(server).value();
  return 0;
}

// Ends the process when it is told to. Not by nbdkit's own way: that answers
// ESHUTDOWN to requests that come meanwhile, which a VM takes for a broken disk,
// and waits for clients that are silent. So no request is answered wrongly: a VM
// whose connection breaks sends it again to the next server.
void EndWhenTold() {
  Plugin& plugin = ThePlugin();
  pollfd waits[] = {{plugin.signals.get(), POLLIN, 0}, {plugin.end.fd(), POLLIN, 0}};
  while (::poll(waits, std::size(waits), -1) <= 0) {
  }
  plugin.control.reset();
  const Status closed = plugin.server->Close();
  if (!closed.ok()) Say(closed.error());
  ::_exit(closed.ok() ? 0 : 1);
}

int AfterFork() {
  Plugin& plugin = ThePlugin();
  // nbdkit 1.32 has asked to be ended with its parent, wanted or not. Whoever
  // started this server may come and go: the VM needs it as long as it lives.
  ::prctl(PR_SET_PDEATHSIG, 0);
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) sigaddset(&signals, signal);
  // Of this thread, the first one, and of all that nbdkit makes from here on.
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  plugin.signals = Descriptor(::signalfd(-1, &signals, SFD_CLOEXEC));
  if (!plugin.signals.valid()) return Say(Error::FromErrno("signalfd", "waiting for the end"));
  plugin.server->Begin();
  plugin.control->Begin(*plugin.server, [&plugin] { plugin.end.Cancel(); });
  plugin.ender = Thread("hf-end", EndWhenTold);
  return 0;
}

// nbdkit ends for a reason of its own, such as a filter's.
void Cleanup() {
  Plugin& plugin = ThePlugin();
  plugin.end.Cancel();
  plugin.ender.Join();
}

void* OpenConnection(int) { return NBDKIT_HANDLE_NOT_NEEDED; }

int64_t GetSize(void*) { return static_cast<int64_t>(ThePlugin().server->image().bytes()); }

int Yes(void*) { return 1; }
int No(void*) { return 0; }
int CanFua(void*) { return NBDKIT_FUA_NATIVE; }
int CanExtents(void*) { return ThePlugin().server->image().knows_holes() ? 1 : 0; }

// As nbdkit wants it: -1 and the errno, and a line in the log. That the image
// cannot zero or trim is no failure.
int Answered(int failed, const char* what, uint64_t offset, uint64_t length) {
  if (failed == 0) return 0;
  while (failed == ESHUTDOWN) ::pause();  // EndWhenTold() ends this, too
  if (failed != EOPNOTSUPP) {
    nbdkit_error("%s of %llu bytes at %llu: %s", what, static_cast<unsigned long long>(length),
                 static_cast<unsigned long long>(offset), std::strerror(failed));
  }
  nbdkit_set_error(failed);
  errno = failed;
  return -1;
}

int ReadRange(void*, void* target, uint32_t count, uint64_t offset, uint32_t) {
  const std::span bytes(static_cast<std::byte*>(target), count);
  return Answered(ThePlugin().server->Read(bytes, offset), "read", offset, count);
}

int WriteRange(void*, const void* source, uint32_t count, uint64_t offset, uint32_t flags) {
  const std::span bytes(static_cast<const std::byte*>(source), count);
  const bool fua = (flags & NBDKIT_FLAG_FUA) != 0;
  return Answered(ThePlugin().server->Write(bytes, offset, fua), "write", offset, count);
}

int ZeroRange(void*, uint32_t count, uint64_t offset, uint32_t flags) {
  const int failed = ThePlugin().server->Zero(
      offset, count, (flags & NBDKIT_FLAG_MAY_TRIM) != 0, (flags & NBDKIT_FLAG_FAST_ZERO) != 0,
      (flags & NBDKIT_FLAG_FUA) != 0);
  return Answered(failed, "zero", offset, count);
}

int TrimRange(void*, uint32_t count, uint64_t offset, uint32_t flags) {
  const bool fua = (flags & NBDKIT_FLAG_FUA) != 0;
  return Answered(ThePlugin().server->Trim(offset, count, fua), "trim", offset, count);
}

int Flush(void*, uint32_t) { return Answered(ThePlugin().server->Flush(), "flush", 0, 0); }

int Extents(void*, uint32_t count, uint64_t offset, uint32_t flags, nbdkit_extents* extents) {
  const ImageFile& image = ThePlugin().server->image();
  const uint64_t end = offset + count;
  while (offset < end) {
    const auto extent = image.ExtentAt(offset);
    if (!extent.ok()) return Say(extent.error());
    const uint32_t type = extent.value().hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0;
    if (nbdkit_add_extent(extents, offset, extent.value().end - offset, type) != 0) return -1;
    if ((flags & NBDKIT_FLAG_REQ_ONE) != 0) return 0;
    offset = extent.value().end;
  }
  return 0;
}

nbdkit_plugin MakePlugin() {
  nbdkit_plugin plugin{};
  plugin.name = "holdfast-disk";
  plugin.longname = "Holdfast disk server";
  plugin.description = "A disk whose writes are logged for a backup host";
  plugin.config = Config;
  plugin.config_complete = ConfigComplete;
  plugin.config_help =
      "image=PATH       (required) Raw disk image or block device.\n"
      "meta=DIR         (required) Directory of the disk's map.\n"
      "ring=PATH        (required) The log, to be made on a tmpfs.\n"
      "control=PATH     (required) Unix socket to listen on for the daemon.\n"
      "ring-bytes=SIZE  Size of the log, a power of two (64M).\n"
      "mode=MODE        active, or standby: writes wait until activated.";
  plugin.get_ready = GetReady;
  plugin.after_fork = AfterFork;
  plugin.cleanup = Cleanup;
  plugin.open = OpenConnection;
  plugin.get_size = GetSize;
  plugin.can_write = Yes;
  plugin.can_flush = Yes;
  plugin.can_trim = Yes;
  plugin.can_zero = Yes;
  plugin.can_fast_zero = Yes;
  plugin.can_multi_conn = Yes;
  plugin.is_rotational = No;
  plugin.can_fua = CanFua;
  plugin.can_extents = CanExtents;
  plugin.pread = ReadRange;
  plugin.pwrite = WriteRange;
  plugin.zero = ZeroRange;
  plugin.trim = TrimRange;
  plugin.flush = Flush;
  plugin.extents = Extents;
  plugin.errno_is_preserved = 1;
  return plugin;
}

nbdkit_plugin g_plugin = MakePlugin();

}  // namespace
}  // namespace holdfast

using holdfast::g_plugin;
NBDKIT_REGISTER_PLUGIN(g_plugin)
