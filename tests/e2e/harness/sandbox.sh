#!/bin/bash
# Runs vmrun inside the namespaces that sandbox.rs made, and reports what was not
# there before.
#
#   sandbox.sh STAGE BUNDLE TEMPLATES TIMES PRELUDE UID WORDS...
set -eu
stage=$1 bundle=$2 templates=$3 times=$4 prelude=$5 uid=$6
shift 6

mount --bind "$stage" /mnt
mount --bind "$bundle" /mnt/bundle
mount --bind "$templates" /mnt/templates
chmod 0777 /mnt/report
for folder in /tmp /var/tmp /run /dev/shm; do
	mount -t tmpfs tmpfs "$folder"
done
export HOME=/tmp TMPDIR=/tmp VMRUN_TEMPLATE_DIR=/mnt/templates
unset VMRUN_GUEST_DIR XDG_RUNTIME_DIR XDG_CACHE_HOME
# Folders for the state of containers stay, as runc's does.
mkdir -m 0700 /run/vmrun
[ -z "$uid" ] || install -d -m 0700 -o "$uid" -g "$uid" "/tmp/vmrun-$uid"
cd /mnt/bundle
eval "$prelude"
mkdir -p /dev/shm

state() {
	printf 'process %s\n' /proc/[0-9]*
	sed 's/^/mount /' /proc/mounts
	sed '1d; s/^/unix socket /' /proc/net/unix
	sed '1d; s/^/shared memory /' /proc/sysvipc/shm
	find /tmp /var/tmp /run /dev/shm /mnt \
		\( -path /mnt/report -o -path /mnt/templates \) -prune -o \
		\( -path /run/vmrun -o -path "/tmp/vmrun-$uid" \) -o \
		-printf 'file %p %y %m %U:%G %s %l %T@\n'
}

vmrun=(/mnt/bin/vmrun)
[ -z "$uid" ] || vmrun=(setpriv --reuid "$uid" --regid "$uid" --clear-groups /mnt/bin/vmrun)
# No pipe, as its processes would be among those listed.
state >/mnt/report/before
code=0
for ((i = 0; i < times; i++)); do
	"${vmrun[@]}" "$@" || code=$?
done
state >/mnt/report/after
for when in before after; do
	sort -o /mnt/report/$when /mnt/report/$when
done
comm -13 /mnt/report/before /mnt/report/after >/mnt/report/left
touch /mnt/report/done
exit "$code"
