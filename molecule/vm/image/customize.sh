#!/bin/sh
# Turns a minimal Debian tree into what a provider hands over: SSH by key, an account whose sudo asks for a password, two
# networks. mmdebstrap calls it with the root of the tree. One image serves all guests: the hardware tells them apart.
set -eu
root=$1
here=$(dirname "$0")

chroot "$root" useradd --create-home --shell /bin/bash ops
echo "ops:$VM_PASSWORD" | chroot "$root" chpasswd
printf 'ops ALL=(ALL) ALL\n' >"$root/etc/sudoers.d/ops"
chmod 0440 "$root/etc/sudoers.d/ops"
install -d -m 0700 "$root/home/ops/.ssh"
printf '%s\n' "$VM_KEY" >"$root/home/ops/.ssh/authorized_keys"
chroot "$root" chown -R ops:ops /home/ops/.ssh
printf 'PasswordAuthentication no\n' >"$root/etc/ssh/sshd_config.d/10-vm.conf"

# A network card's address says whose it is, and for which network.
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
index=0
echo "$VM_NETWORKS" | while read -r network prefix; do
  echo "$VM_GUESTS" | while read -r guest number; do
    {
      printf '[Match]\nMACAddress=52:54:00:00:%02d:%02d\n\n' "$index" "$number"
      printf '[Network]\nAddress=%s.%s/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' "$prefix" "$number"
      [ "$network" = private ] || printf 'Gateway=%s.2\n' "$prefix"
    } >"$root/etc/systemd/network/$network-$guest.network"
    [ "$network" = private ] || printf '%s.%s %s\n' "$prefix" "$number" "$guest" >>"$root/etc/hosts"
  done
  [ "$network" = private ] || printf 'nameserver %s.3\n' "$prefix" >"$root/etc/resolv.conf"
  index=$((index + 1))
done
install -D -m 0644 "$here/host-keys.conf" "$root/etc/systemd/system/ssh.service.d/host-keys.conf"
chroot "$root" systemctl enable -q systemd-networkd.service ssh.service
chroot "$root" systemctl mask -q e2scrub_reap.service
printf '/dev/vda / ext4 defaults 0 1\n' >"$root/etc/fstab"

# Each guest gets identities of its own; its name is given to its kernel.
rm -f "$root"/etc/ssh/ssh_host_*_key* "$root/var/lib/dbus/machine-id" "$root/etc/hostname"
: >"$root/etc/machine-id"

# A host behind an inspecting proxy has its authority here, and its nodes need the same.
for certificate in /usr/local/share/ca-certificates/*.crt; do
  [ -f "$certificate" ] && install -m 0644 "$certificate" "$root/usr/local/share/ca-certificates/"
done
chroot "$root" update-ca-certificates >/dev/null

# Ray's 15 seconds are too short for an emulated processor. Hardware needs no such thing.
install -m 0644 "$here/sitecustomize.py" "$root/etc/python3.11/sitecustomize.py"
install -m 0644 "$here/job.py" "$root/usr/local/lib/metalray-vm-job.py"
