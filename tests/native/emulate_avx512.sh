#!/usr/bin/env bash
# Runs the AVX-512 kernels on a machine whose processor has none, in a PC that Bochs emulates.
#
#   tests/native/emulate_avx512.sh VMLINUZ [LAST_SEED]
#
# VMLINUZ is a kernel of Linux 5.10 (Debian 11: linux-image-5.10.0-30-cloud-amd64-unsigned); those from
# 6 on take offence at the size that Bochs gives for the vectors' state, and leave AVX off. Needs a
# build in this tree (make build) and Debian's packages bochs, bochs-term, bochsbios, vgabios,
# grub-pc-bin, grub-common, xorriso, mtools and cpio. 100 seeds take a minute or two.
set -euo pipefail

vmlinuz=$(realpath "$1")
last=${2:-400}
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$root/build/emulated
rm -rf "$work"
mkdir -p "$work/files" "$work/disc/boot/grub"
cd "$work"

# The fuzzer, and what runs it instead of an operating system.
mapfile -t objects < <(find "$root/build/native/kernels/CMakeFiles/tf_deformable_kernels.dir" -name '*.o' ! -name '*.cu.*')
sources=("$root"/tests/native/{fuzz_kernels,kernel_cases,geometry_cases,scalar_operators}.cc)
${CXX:-g++} -std=c++17 -O1 -static -s -I"$root/cc" "${sources[@]}" "${objects[@]}" -o files/fuzz_kernels
cat > init.cc << 'END'
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

void Run(const char* isa, int first, const char* action) {
  const pid_t child = fork();
  if (child == 0) {
    setenv("TF_DEFORMABLE_CPU_ISA", isa, 1);
    dup2(open("/dev/null", O_WRONLY), 2);
    const std::string from = std::to_string(first), to = std::to_string(first + 100);
    execl("/fuzz_kernels", "fuzz_kernels", from.c_str(), to.c_str(), action, "/results", nullptr);
    _exit(127);
  }
  int status;
  waitpid(child, &status, 0);
  if (status != 0) std::printf("FAILED: %s, seeds from %d, status %d\n", isa, first, status);
}

int main() {
  mkdir("/dev", 0755);
  mount("devtmpfs", "/dev", "devtmpfs", 0, nullptr);
  const int serial = open("/dev/ttyS0", O_RDWR);
  for (int file = 0; file < 3; ++file) dup2(serial, file);
  std::setbuf(stdout, nullptr);
  for (int first = 0; first < LAST_SEED; first += 100) {
    Run("baseline", first, "keep");
    Run("avx512", first, "compare");
    unlink("/results");
  }
  std::puts("THE END");
  sleep(1);
  reboot(RB_POWER_OFF);
}
END
${CXX:-g++} -std=c++17 -O1 -static -s -DLAST_SEED="$last" init.cc -o files/init

cp "$vmlinuz" disc/boot/vmlinuz
(cd files && find . | cpio --quiet -o -H newc | gzip) > disc/boot/initrd
cat > disc/boot/grub/grub.cfg << 'END'
set timeout=0
menuentry emulated {
  linux /boot/vmlinuz quiet console=ttyS0 nokaslr mitigations=off nopku noxsaves
  initrd /boot/initrd
}
END
grub-mkrescue -o disc.iso disc 2> mkrescue.log

cat > bochsrc << 'END'
cpu: model=corei7_skylake_x, count=1
memory: guest=1024, host=1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path=disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial.log
display_library: term
sound: driver=default, waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
clock: sync=none
log: bochs.log
END
echo continue > commands # Debian's Bochs is its debugger
: > serial.log
# It wants a terminal, and does not end by itself when the PC is switched off.
TERM=vt100 setsid script -qfc "bochs -q -f bochsrc -rc commands" screen.log < /dev/null > /dev/null 2>&1 &
trap 'kill -KILL -- "-$emulator" 2> /dev/null' EXIT
emulator=$!
until grep -q "THE END" serial.log; do
  kill -0 "$emulator" || { tail -n 5 bochs.log; exit 1; }
  sleep 5
done
grep -a -E "tensors of|FAILED|seed" serial.log
! grep -a -q FAILED serial.log && grep -a -q "tensors of avx512" serial.log
