#include "disk/disk_map.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <span>

#include "wire/digest.h"
#include "wire/text.h"

namespace holdfast {
namespace {

constexpr uint64_t kPageBytes = 4096;

using BootId = std::array<std::byte, 16>;

// A host's id from one start to the next; all zeros, which no map has, if there is none.
BootId ThisBoot() {
  BootId id{};
  const Descriptor file(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  char text[40] = {};
  if (!file.valid() || ::read(file.get(), text, sizeof text - 1) < 36) return id;
  size_t digits = 0;
  for (const char c : text) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0 || digits == 32) continue;
    id[digits / 2] = id[digits / 2] << 4 | static_cast<std::byte>(digit);
    digits++;
  }
  return id;
}

uint64_t WindowBytes(uint64_t image_bytes) {
  const uint64_t blocks = (image_bytes + kMapBlockBytes - 1) / kMapBlockBytes;
  const uint64_t bytes = (blocks + 63) / 64 * 8;
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

uint64_t HeaderDigest(const MapHeader& header) {
  return HashBytes(std::as_bytes(std::span(&header, 1)).first(offsetof(MapHeader, digest)));
}

MapHeader FreshHeader(uint64_t image_bytes) {
  MapHeader header{};
  std::memcpy(header.magic, kMapMagic, sizeof kMapMagic);
  header.version = kMapVersion;
  header.block_bytes = kMapBlockBytes;
  header.image_bytes = image_bytes;
  header.window_bytes = WindowBytes(image_bytes);
  header.digest = HeaderDigest(header);
  return header;
}

// Bits of `word` that stand for blocks in [first, end).
uint64_t MaskOf(uint64_t word, uint64_t first, uint64_t end) {
  const uint64_t from = std::max(first, word * 64) - word * 64;
  const uint64_t to = std::min(end, word * 64 + 64) - word * 64;
  return (to == 64 ? ~uint64_t{0} : (uint64_t{1} << to) - 1) & ~((uint64_t{1} << from) - 1);
}

Status WriteAll(int fd, std::span<const std::byte> bytes, uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Error::FromErrno("pwrite", "writing a disk's map");
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  return {};
}

Status SyncDirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string name = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const Descriptor directory(::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return Error::FromErrno("open", name);
  if (::fsync(directory.get()) != 0) return Error::FromErrno("fsync", name);
  return {};
}

// A map of which every block is marked, complete before it has its name. Written,
// not only stretched: a page that the file system cannot give is SIGBUS later.
Status CreateMap(const std::string& path, uint64_t image_bytes) {
  const std::string fresh = path + ".new";
  const Descriptor file(::open(fresh.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file.valid()) return Error::FromErrno("open", "creating a disk's map " + fresh);
  const MapHeader header = FreshHeader(image_bytes);
  std::vector<std::byte> bytes(kMapHeaderBytes + 2 * header.window_bytes);
  std::memcpy(bytes.data(), &header, sizeof header);
  const uint64_t blocks = (image_bytes + kMapBlockBytes - 1) / kMapBlockBytes;
  for (uint64_t word = 0; word * 64 < blocks; word++) {
    const uint64_t mask = MaskOf(word, 0, blocks);
    std::memcpy(bytes.data() + kMapHeaderBytes + word * sizeof mask, &mask, sizeof mask);
  }
  HF_TRY(WriteAll(file.get(), bytes, 0));
  if (::fsync(file.get()) != 0) return Error::FromErrno("fsync", "creating a disk's map " + fresh);
  if (::rename(fresh.c_str(), path.c_str()) != 0) {
    return Error::FromErrno("rename", "creating a disk's map " + path);
  }
  return SyncDirectoryOf(path);
}

Error Damaged(const std::string& path, const std::string& why) {
  Error error = Error::Of(ErrorCode::kSyscall,
                          path + " is no map of a disk, or damaged: " + why +
                              ". Remove it, and the next synchronisation sends the whole disk");
  error.sys_errno = EUCLEAN;
  return error;
}

Result<MapHeader> ReadHeader(int fd, const std::string& path) {
  MapHeader header{};
  const ssize_t bytes = ::pread(fd, &header, sizeof header, 0);
  if (bytes < 0) return Error::FromErrno("pread", "a disk's map " + path);
  if (static_cast<size_t>(bytes) < sizeof header) return Damaged(path, "it is too short");
  if (std::memcmp(header.magic, kMapMagic, sizeof kMapMagic) != 0) {
    return Damaged(path, "its magic is missing");
  }
  if (header.version != kMapVersion) {
    return Damaged(path, Text("version %u, %u is known here", header.version, kMapVersion));
  }
  if (header.digest != HeaderDigest(header) || header.block_bytes != kMapBlockBytes ||
      header.window_bytes != WindowBytes(header.image_bytes) || header.newer > 1) {
    return Damaged(path, "its header contradicts itself");
  }
  struct stat status {};
  if (::fstat(fd, &status) != 0) return Error::FromErrno("fstat", "a disk's map " + path);
  if (static_cast<uint64_t>(status.st_size) != kMapHeaderBytes + 2 * header.window_bytes) {
    return Damaged(path, "its length does not fit its header");
  }
  return header;
}

bool IsTrusted(const MapHeader& header) {
  if (header.fault != 0) return false;
  const BootId boot = ThisBoot();
  return header.clean == 1 || (boot != BootId{} && std::memcmp(header.boot_id, boot.data(), boot.size()) == 0);
}

// What tells an image's file from others, and from itself at another time.
struct ImageStamp {
  uint64_t inode = 0;
  uint64_t ctime_ns = 0;
};

Result<ImageStamp> StampOf(int image) {
  struct stat about {};
  if (image < 0) return ImageStamp{};
  if (::fstat(image, &about) != 0) return Error::FromErrno("fstat", "the image of a disk's map");
  if (!S_ISREG(about.st_mode)) return ImageStamp{};
  return ImageStamp{about.st_ino, static_cast<uint64_t>(about.st_ctim.tv_sec) * 1'000'000'000 +
                                      static_cast<uint64_t>(about.st_ctim.tv_nsec)};
}

// The writer that died has left its changes behind, whenever they were.
bool IsOfImage(const MapHeader& header, const ImageStamp& image) {
  if (header.image_inode == 0 || image.inode == 0) return true;
  return header.image_inode == image.inode &&
         (header.clean == 0 || header.image_ctime_ns == image.ctime_ns);
}

std::atomic_ref<uint64_t> Word(uint64_t& word) { return std::atomic_ref(word); }

}  // namespace

Result<DiskMap> DiskMap::Open(const std::string& path, uint64_t image_bytes, Mode mode, int image) {
  const bool writer = mode != Mode::kRead;
  bool created = false;
  for (;;) {
    Descriptor file(::open(path.c_str(), (writer ? O_RDWR : O_RDONLY) | O_CLOEXEC));
    if (!file.valid() && (errno != ENOENT || !writer || created)) {
      return Error::FromErrno("open", "a disk's map " + path);
    }
    if (file.valid() && writer && ::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) errno = EBUSY;
      return Error::FromErrno("flock", path + " is open in another process that writes to the disk");
    }
    MapHeader found{};
    if (file.valid()) {
      auto header = ReadHeader(file.get(), path);
      if (!header.ok()) return header.error();
      found = header.value();
    }
    if (!file.valid() || (writer && found.image_bytes != image_bytes)) {
      HF_TRY(CreateMap(path, image_bytes));
      created = true;
      continue;
    }
    if (found.image_bytes != image_bytes) {
      return Damaged(path, "it is of an image of another size");
    }
    const uint64_t bytes = kMapHeaderBytes + 2 * found.window_bytes;
    void* const base = ::mmap(nullptr, bytes, writer ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED,
                              file.get(), 0);
    if (base == MAP_FAILED) return Error::FromErrno("mmap", "a disk's map " + path);
    DiskMap map(std::move(file), Mapping(base, bytes), image_bytes, path);
    map.writer_ = writer;
    map.image_ = image;
    map.created_ = created;
    if (writer) HF_TRY(map.Claim(mode == Mode::kActive ? MapRole::kActive : MapRole::kReplica));
    return map;
  }
}

// Opens it for writing: what the file says from here on is true also if this
// host dies at any moment.
Status DiskMap::Claim(MapRole role) {
  const auto image = StampOf(image_);
  if (!image.ok()) return image.error();
  if (!created_) role_found_ = static_cast<MapRole>(header().role);
  // A fresh map says "everything", which is always true.
  trusted_at_open_ = created_ || (IsTrusted(header()) && IsOfImage(header(), image.value()));
  if (!trusted_at_open_) {
    MarkAll();
    header().sync_id = {};
    HF_TRY(SyncAll(mapping_.size()));
  }
  const BootId boot = ThisBoot();
  MapHeader& shared = header();
  shared.fault = 0;
  std::memcpy(shared.boot_id, boot.data(), boot.size());
  shared.role = static_cast<uint32_t>(role);
  shared.clean = 0;
  shared.image_inode = image.value().inode;
  shared.image_ctime_ns = 0;
  return SyncAll(kMapHeaderBytes);
}

bool DiskMap::trusted() const {
  return writer_ ? trusted_at_open_ && !fault() : IsTrusted(header());
}

Status DiskMap::SetSyncId(const SyncId& sync_id) {
  HF_ASSERT(writer_);
  // Never together with marks that are older on the disk than it is.
  HF_TRY(SyncAll(mapping_.size()));
  header().sync_id = sync_id;
  return SyncAll(kMapHeaderBytes);
}

uint64_t* DiskMap::Window(uint32_t index) const {
  return reinterpret_cast<uint64_t*>(mapping_.data() + kMapHeaderBytes + index * header().window_bytes);
}

uint32_t DiskMap::Newer() const {
  return std::atomic_ref(header().newer).load(std::memory_order_acquire);
}

void DiskMap::Mark(uint64_t offset, uint64_t length) {
  HF_ASSERT(writer_ && offset <= image_bytes_ && length <= image_bytes_ - offset);
  if (length == 0) return;
  const uint64_t first = offset / kMapBlockBytes;
  const uint64_t end = (offset + length - 1) / kMapBlockBytes + 1;
  uint64_t* const window = Window(Newer());
  for (uint64_t word = first / 64; word * 64 < end; word++) {
    const uint64_t mask = MaskOf(word, first, end);
    // A page that is not written to stays clean, and costs no write-back.
    if ((Word(window[word]).load(std::memory_order_relaxed) & mask) == mask) continue;
    Word(window[word]).fetch_or(mask, std::memory_order_relaxed);
  }
}

void DiskMap::MarkForGood(uint64_t offset, uint64_t length) {
  Mark(offset, length);
  if (length == 0) return;
  if (for_good_.empty()) for_good_.resize(words());
  const uint64_t first = offset / kMapBlockBytes;
  const uint64_t end = (offset + length - 1) / kMapBlockBytes + 1;
  for (uint64_t word = first / 64; word * 64 < end; word++) for_good_[word] |= MaskOf(word, first, end);
}

void DiskMap::SetFault() {
  HF_ASSERT(writer_);
  std::atomic_ref(header().fault).store(1);
  // If even this does not reach the disk, the host's end leaves the map open: not trusted either.
  [[maybe_unused]] const Status written = SyncAll(kMapHeaderBytes);
}

bool DiskMap::fault() const { return std::atomic_ref(header().fault).load() != 0; }

void DiskMap::ClearWindow(uint32_t index) {
  uint64_t* const window = Window(index);
  for (uint64_t word = 0; word < words(); word++) {
    const uint64_t kept = for_good_.empty() ? 0 : for_good_[word];
    if (Word(window[word]).load(std::memory_order_relaxed) == kept) continue;
    Word(window[word]).store(kept, std::memory_order_relaxed);
  }
}

void DiskMap::Rotate() {
  HF_ASSERT(writer_);
  const uint32_t older = 1 - Newer();
  ClearWindow(older);
  std::atomic_ref(header().newer).store(older, std::memory_order_release);
}

void DiskMap::Clear() {
  HF_ASSERT(writer_);
  ClearWindow(0);
  ClearWindow(1);
}

uint64_t DiskMap::MarkedWord(uint64_t word) const {
  return Word(Window(0)[word]).load(std::memory_order_relaxed) |
         Word(Window(1)[word]).load(std::memory_order_relaxed);
}

bool DiskMap::IsMarked(uint64_t block) const {
  return (MarkedWord(block / 64) >> (block % 64) & 1) != 0;
}

uint64_t DiskMap::MarkedBlocks() const {
  uint64_t marked = 0;
  for (uint64_t word = 0; word < words(); word++) {
    marked += static_cast<uint64_t>(std::popcount(MarkedWord(word)));
  }
  return marked;
}

void DiskMap::ForEachMarkedRun(const std::function<void(uint64_t, uint64_t)>& visit) const {
  uint64_t first = 0;  // of the run that is open
  uint64_t end = 0;    // and the block after it: equal if none is
  const auto close = [&] {
    if (first == end) return;
    const uint64_t offset = first * kMapBlockBytes;
    visit(offset, std::min(end * kMapBlockBytes, image_bytes_) - offset);
  };
  for (uint64_t word = 0; word < words(); word++) {
    uint64_t bits = MarkedWord(word);
    while (bits != 0) {
      const auto skip = static_cast<uint64_t>(std::countr_zero(bits));
      const auto count = static_cast<uint64_t>(std::countr_one(bits >> skip));
      const uint64_t at = word * 64 + skip;
      if (at != end) {
        close();
        first = at;
      }
      end = at + count;
      bits = count == 64 ? 0 : bits & ~(((uint64_t{1} << count) - 1) << skip);
    }
  }
  close();
}

Status DiskMap::SyncAll(size_t bytes) const {
  if (::msync(mapping_.data(), bytes, MS_SYNC) != 0) return Error::FromErrno("msync", "a disk's map " + path_);
  return {};
}

Status DiskMap::Close() {
  HF_ASSERT(writer_);
  HF_TRY(SyncAll(mapping_.size()));
  // fdatasync leaves the time behind, which is compared after the host's next start.
  if (image_ >= 0 && ::fsync(image_) != 0) return Error::FromErrno("fsync", "the image of a disk's map");
  const auto image = StampOf(image_);
  if (!image.ok()) return image.error();
  header().image_ctime_ns = image.value().ctime_ns;
  header().clean = 1;
  HF_TRY(SyncAll(kMapHeaderBytes));
  mapping_.Unmap();
  file_.Close();
  return {};
}

}  // namespace holdfast
