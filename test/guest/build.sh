#!/bin/bash
# Builds the lab's guests into .cache/guest/: a Linux guest (Debian's cloud
# kernel, an initramfs with busybox, Debian's redis-server, bonnie++ and programs
# of ours) and a flat Multiboot guest. Debian packages are downloaded and unpacked,
# never installed: no kernel and no redis service appears on the host.
#
#   vmlinuz       kernel image
#   initrd.cpio   uncompressed, since inflating it would cost the guest (on TCG) more than loading it
#   flat.elf      Multiboot guest
#   sqlwriter     the guest's program, for checking a database out of its image
#   stamp         hash of what they were made from; written last
#
# With --check it only prints `current` or `outdated`.

set -euo pipefail

repository=$(cd "$(dirname "$0")/../.." && pwd)
sources=$repository/test/guest
cache=$repository/.cache
out=$cache/guest
debs=$cache/debs

# Only what the images are made of: an edit elsewhere does not rebuild them.
stamp_wanted=$(cat "$sources"/build.sh "$sources"/init "$sources"/*.c "$sources"/*.ld | sha256sum)
state=current
outputs=(vmlinuz initrd.cpio flat.elf sqlwriter)
for file in "${outputs[@]}"; do [ -s "$out/$file" ] || state=outdated; done
[ "$(cat "$out/stamp" 2> /dev/null)" = "$stamp_wanted" ] || state=outdated
if [ "${1-}" = --check ]; then echo $state; fi
if [ "${1-}" = --check ] || [ $state = current ]; then exit 0; fi

mkdir -p "$debs" "$out"
work=$(mktemp -d "$cache/guest-build.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The meta-package names the kernel package of the day. Without package lists
# (a fresh container) apt knows none: fetch them once.
kernel_package() {
  apt-cache depends linux-image-cloud-amd64 2> /dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}
[ -n "$(kernel_package)" ] || apt-get -qq update
kernel=$(kernel_package)
[ -n "$kernel" ] || { echo "linux-image-cloud-amd64 is in no configured Debian archive" >&2; exit 1; }

# redis-server's program lives in redis-tools; then come redis-tools' libraries, and SQLite to link with.
packages=("$kernel" redis-server redis-tools libatomic1 libjemalloc2 liblzf1 libssl3 libsystemd0 bonnie++ libsqlite3-dev)

# Downloads a package unless its file is already there; moved when complete, so
# that an interrupted download is not taken for a package. Lists older than the
# archive name files that are gone, hence one update and a second attempt.
mkdir "$work/downloads"
download() {
  compgen -G "$debs/$1_*.deb" > /dev/null && return
  (cd "$work/downloads" && apt-get -qq -o APT::Sandbox::User=root download "$1") && mv "$work/downloads/$1"_*.deb "$debs/"
}
for package in "${packages[@]}"; do
  download "$package" || { apt-get -qq update && download "$package"; }
done
for package in "${packages[@]}"; do
  dpkg -x "$(ls -t "$debs/$package"_*.deb | head -n 1)" "$work/unpacked"
done

root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,run,tmp,modules,lib64}

# Modules in the order in which they must be loaded; a later one needs the earlier ones.
modules=(virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_net virtio_blk)
for module in "${modules[@]}"; do
  file=$(find "$work/unpacked/lib/modules" -name "$module.ko" | head -n 1)
  [ -n "$file" ] || { echo "$kernel has no module $module" >&2; exit 1; }
  cp "$file" "$root/modules/"
  echo "$module.ko" >> "$root/modules/order"
done
cp "$work"/unpacked/boot/vmlinuz-* "$out/vmlinuz.new"

# busybox-static, with a link per applet made here rather than at every boot.
cp "$(command -v busybox)" "$root/bin/busybox"
while read -r applet; do
  [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done < <("$root/bin/busybox" --list)

# add_program FILE: a program and the libraries it is linked with, from the packages
# or, where these have them not (the C library), from the host.
library_path=$work/unpacked/usr/lib/x86_64-linux-gnu:$work/unpacked/lib/x86_64-linux-gnu
mkdir -p "$root/lib/x86_64-linux-gnu"
add_program() {
  local links
  cp "$1" "$root/bin/"
  links=$(LD_LIBRARY_PATH=$library_path ldd "$1")
  if grep 'not found' <<< "$links" >&2; then
    echo "$1 needs a library that no package of the list has" >&2
    exit 1
  fi
  sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' <<< "$links" | while read -r library; do
    cp -L "$library" "$root/lib/x86_64-linux-gnu/"
  done
}
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"

compile() { gcc -O2 -Wall -Wextra -Werror -s -o "$work/$1" "$sources/$1.c" "${@:2}"; }
compile diskchurn
compile diskload -pthread
compile sqlwriter -I"$work/unpacked/usr/include" "$work/unpacked/usr/lib/x86_64-linux-gnu/libsqlite3.a" -lm -lpthread -ldl

cp "$(readlink -f "$work/unpacked/usr/bin/redis-server")" "$work/redis-server"
# The real one in place of busybox's.
rm "$root/bin/mke2fs"
for program in "$work"/{redis-server,diskchurn,diskload,sqlwriter} "$work/unpacked/usr/sbin/bonnie++" /sbin/mke2fs; do
  add_program "$program"
done
gcc -O2 -Wall -Wextra -Werror -static -s -o "$root/bin/memwriter" "$sources/memwriter.c"
gcc -O2 -Wall -Wextra -Werror -static -s -o "$root/bin/flood" "$sources/flood.c"
gcc -O2 -Wall -Wextra -Werror -static -s -o "$root/bin/linpack" "$sources/linpack.c" -lm
install -m 755 "$sources/init" "$root/init"
(cd "$root" && find . -print0 | LC_ALL=C sort -z | cpio --quiet --null --reproducible -o -H newc) > "$out/initrd.cpio.new"

gcc -m32 -O2 -Wall -Wextra -Werror -ffreestanding -fno-pic -fno-stack-protector -fcf-protection=none \
  -mgeneral-regs-only -c -o "$work/flat.o" "$sources/flat.c"
ld -m elf_i386 -nostdlib -z noexecstack --no-warn-rwx-segments --build-id=none -T "$sources/flat.ld" -o "$out/flat.elf.new" "$work/flat.o"

cp "$work/sqlwriter" "$out/sqlwriter.new"

# Renamed into place, so that a running test never reads half of a new image.
rm -f "$out/stamp"
for file in "${outputs[@]}"; do mv "$out/$file.new" "$out/$file"; done
echo "$stamp_wanted" > "$out/stamp"
