#!/bin/sh
# Second stage of a guest's init: process 1 in the writable root. Made by `cargo xtask vm`.
end() { sync; echo o >/proc/sysrq-trigger; sleep 20; }
trap end EXIT

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 pts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t debugfs debug /sys/kernel/debug 2>/dev/null
mount -t tracefs trace /sys/kernel/tracing 2>/dev/null
# What this machine left there is none of the guest's; but its workspace may be there as well.
for dir in /run /tmp /var/lib/ebbtide; do
    case @WORKSPACE@/ in "$dir"/*) continue ;; esac
    case @TARGET@/ in "$dir"/*) continue ;; esac
    [ -d "$dir" ] && mount -t tmpfs -o mode=1777 tmpfs "$dir"
done
chmod 755 /run
mkdir -p @OUT@ /run/xtask/home /run/xtask/bin /run/lock /run/netns
@MOUNT_OUT@ @OUT@ || exit 1

@EXPORTS@
unset mem uml_dir # the kernel gives unknown words of its command line to init
export HOME=/run/xtask/home EBBTIDE_OUT=@OUT@
# iptables of the old kind: it is what every kernel here has
for name in iptables ip6tables; do
    for part in '' -save -restore; do
        ln -s /usr/sbin/xtables-legacy-multi "/run/xtask/bin/$name$part"
    done
done
export PATH="/run/xtask/bin:$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

version=$(uname -r)
if [ ! -e "/lib/modules/$version/modules.dep" ]; then
    mkdir -p /lib/modules && rm -rf "/lib/modules/$version" && ln -s @MODULES_DIR@ "/lib/modules/$version"
fi
# shellcheck disable=SC2043
for module in @MODULES@; do echo "$module"; done | xargs modprobe -qa 2>/dev/null

# as systemd leaves a normal host
set_to() { [ ! -e "/proc/sys/$1" ] || echo "$2" >"/proc/sys/$1"; }
set_to net/ipv4/conf/all/rp_filter 2
set_to net/ipv4/conf/default/rp_filter 2
set_to net/ipv4/conf/all/promote_secondaries 1
set_to net/ipv4/conf/default/promote_secondaries 1
set_to net/ipv4/ping_group_range "0	2147483647"
ulimit -n 65536 2>/dev/null || ulimit -n 4096
echo ebbtide-vm >/proc/sys/kernel/hostname
ip link set lo up
cd @WORKSPACE@ || exit 1

# The command writes into a pipe, not to a terminal that it would colour for, and what it leaves
# running must not keep us here.
mkfifo /run/xtask/output
cat /run/xtask/output >@OUTPUT@ &
copier=$!
@COMMAND@ </dev/null >/run/xtask/output 2>&1
echo $? >@OUT@/status.new
tries=0
while kill -0 $copier 2>/dev/null && [ $tries -lt 10 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
mv @OUT@/status.new @OUT@/status
