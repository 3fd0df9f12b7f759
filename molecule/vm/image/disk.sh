#!/bin/sh
# disk.sh FOLDER SIZE: FOLDER/tree becomes FOLDER/disk.img, vmlinuz and initrd, and is removed. FOLDER/kvm says
# that KVM can be used.
set -eu
cd "$1"
cp -L tree/vmlinuz vmlinuz.new
cp -L tree/initrd.img initrd.new
rm -f disk.new
mke2fs -q -t ext4 -L root -d tree disk.new "$2"
# Whoever starts the guests reads these.
chmod 0644 vmlinuz.new initrd.new disk.new
for name in vmlinuz initrd; do mv "$name.new" "$name"; done
mv disk.new disk.img
# Some machines have /dev/kvm, and a kernel of Debian's hangs in it all the same. One with nothing to run panics at once, which
# ends its machine.
rm -f kvm
if timeout 15 qemu-system-x86_64 -accel kvm -m 256 -nodefaults -display none -no-reboot -kernel vmlinuz -append panic=-1; then
  touch kvm
fi
rm -rf tree
