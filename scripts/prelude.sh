# Sourced by the scripts beside it: where things are, and how they speak.
# shellcheck shell=bash
# shellcheck disable=SC2034  # what is not used here is used there

set -euo pipefail
export LC_ALL=C

top=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
cache=${VMRUN_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/vmrun}
target=${CARGO_TARGET_DIR:-$top/target}
# Put on the command line of every script that the user starts.
self=$(basename "$0")

say() { printf '%s: %s\n' "$self" "$*" >&2; }
die() {
	say "error: $*"
	exit 1
}

# step NAME COMMAND... : runs it and notes how long it took, for step_times.
declare -a steps=()
step() {
	local name=$1 from=$SECONDS
	shift
	say "$name"
	"$@"
	steps+=("$(printf '%4d s  %s' $((SECONDS - from)) "$name")")
}

# Longest first.
step_times() {
	say "what took how long:"
	printf '%s\n' "${steps[@]}" | sort -rn >&2
}

# Installs the Debian packages that are missing; nothing to do costs no time.
need_packages() {
	local missing=() package
	for package; do
		dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null |
			grep -qx installed || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || die "run as root, or install: ${missing[*]}"
	say "installing ${missing[*]}"
	local log policy=/usr/sbin/policy-rc.d
	log=$(mktemp)
	# Packages are wanted for their programs: no daemon is started.
	if [ -e $policy ]; then
		policy=
	else
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod +x $policy
	fi
	if ! { apt-get update && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
		tail -n 5 "$log" >&2
		[ -z "$policy" ] || rm -f $policy
		die "apt-get failed, its output is in $log"
	fi
	rm -f "$log" $policy
}

# To build kernel, agent and vmrun; to run the example.
build_packages=(gcc libc6-dev make patch perl flex bison bc xz-utils libelf-dev
	cpio linux-source-6.1 busybox-static)
# To test them.
test_packages=(debootstrap runc crun strace shellcheck python3 procps util-linux
	docker.io containerd podman conmon tini catatonit)

# Kernel, agent and vmrun, linked into one folder as an installation has them:
# vmrun finds its guest files in ../lib/vmrun from where it stands.
build_all() {
	command -v cargo >/dev/null || die "cargo is missing: install Rust (see README.md)"
	local kernels agent lib=$target/lib/vmrun
	step "guest kernels" build_kernels
	step "agent" build_agent
	step "vmrun" build_vmrun
	mkdir -p "$lib"
	ln -sfn "${kernels[0]}/vmlinux" "$lib/vmlinux"
	ln -sfn "${kernels[1]}/vmlinux" "$lib/vmlinux-smp"
	ln -sfn "$agent/initramfs.cpio" "$lib/initramfs.cpio"
}
# Linked statically: finding and mapping libraries is 45 system calls of each start.
build_vmrun() {
	local triple=x86_64-unknown-linux-gnu
	RUSTFLAGS="${RUSTFLAGS-} -C target-feature=+crt-static" \
		cargo build --manifest-path "$top/Cargo.toml" --release --bin vmrun --target "$triple"
	mkdir -p "$target/release"
	ln -f "$target/$triple/release/vmrun" "$target/release/vmrun"
}
build_kernels() {
	local out
	out=$("$top/scripts/build-kernel" all)
	mapfile -t kernels < <(tail -n 2 <<<"$out")
}
build_agent() {
	agent=$("$top/scripts/build-agent" | tail -n 1)
}

# A bundle whose root holds Debian's static busybox, as applets in /bin.
busybox_bundle() { # FOLDER
	local bundle=$1 applet
	rm -rf "$bundle"
	mkdir -p "$bundle/rootfs"/{bin,dev,etc,proc,root,sys,tmp}
	cp /bin/busybox "$bundle/rootfs/bin/busybox"
	for applet in $(/bin/busybox --list); do
		[ "$applet" = busybox ] || ln -s busybox "$bundle/rootfs/bin/$applet"
	done
	echo 'root:x:0:0:root:/root:/bin/sh' >"$bundle/rootfs/etc/passwd"
	echo 'root:x:0:' >"$bundle/rootfs/etc/group"
}
