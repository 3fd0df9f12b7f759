#!/bin/sh
# Turns a minimal Debian tree into what a provider hands over: SSH, an account with sudo, nothing else.
# mmdebstrap calls it with the root of the tree.
set -eu
root=$1
here=$(dirname "$0")

chroot "$root" useradd --create-home --shell /bin/bash ops
printf 'ops ALL=(ALL) NOPASSWD: ALL\n' >"$root/etc/sudoers.d/ops"
chmod 0440 "$root/etc/sudoers.d/ops"
chroot "$root" install -d -o ops -g ops /mnt/shared

install -m 0644 "$here/sshd.conf" "$root/etc/ssh/sshd_config.d/10-sandbox.conf"
install -m 0755 "$here/first-boot" "$root/usr/local/sbin/first-boot"
install -m 0644 "$here/first-boot.service" "$root/etc/systemd/system/first-boot.service"
chroot "$root" systemctl enable -q first-boot.service ssh.service

# Each container gets identities of its own.
rm -f "$root"/etc/ssh/ssh_host_*_key* "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"

# A host behind an inspecting proxy has its authority here, and its nodes need the same.
for certificate in /usr/local/share/ca-certificates/*.crt; do
  [ -f "$certificate" ] && install -m 0644 "$certificate" "$root/usr/local/share/ca-certificates/"
done
chroot "$root" update-ca-certificates >/dev/null
