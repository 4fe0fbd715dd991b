#include "output/libnl.h"

#include <dlfcn.h>

#include <string>

namespace holdfast {
namespace {

// The ABI of the headers this was compiled with: libnl keeps it since 3.2.
constexpr char kCore[] = "libnl-3.so.200";
constexpr char kRoute[] = "libnl-route-3.so.200";

Error NotInstalled(const std::string& what) {
  return Error::Of(ErrorCode::kUnsupported, "libnl-route-3 is not usable: " + what);
}

Result<void*> OpenLibrary(const char* name) {
  void* library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return NotInstalled(::dlerror());
  return library;
}

template <typename Function>
Status Find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr) return NotInstalled(std::string("it has no ") + name);
  return {};
}

Result<Libnl> OpenAll() {
  auto core = OpenLibrary(kCore);
  if (!core.ok()) return core.error();
  auto route = OpenLibrary(kRoute);
  if (!route.ok()) return route.error();
  Libnl libnl;
#define HF_FIND(name) HF_TRY(Find(core.value(), #name, libnl.name));
  HF_LIBNL_CORE(HF_FIND)
#undef HF_FIND
#define HF_FIND(name) HF_TRY(Find(route.value(), #name, libnl.name));
  HF_LIBNL_ROUTE(HF_FIND)
#undef HF_FIND
  return libnl;
}

}  // namespace

Result<const Libnl*> Libnl::Load() {
  // Tried once per process, also where it failed: what dlopen got from a half
  // installed library is not given back.
  static const Result<Libnl> loaded = OpenAll();
  if (!loaded.ok()) return loaded.error();
  return &loaded.value();
}

}  // namespace holdfast
