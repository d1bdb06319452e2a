# Process 1 of a node, in its network, mount and PID namespaces. $1 is the node's directory.
dir=$1
# Mounts made outside still arrive here, ours do not get out; inside everything is shared, as
# HostToContainer volumes ask for.
mount --make-rshared /
for path in /etc/cni/net.d /opt/cni/bin /var/lib/cni /var/lib/kubelet /var/lib/ebbtide \
    /run/ebbtide /var/log/pods /var/log/containers; do
    mkdir -p "$path" "$dir/fs$path"
    mount --bind "$dir/fs$path" "$path"
done
# No bind mounts: the machine's own namespaces, and what its agents pinned, must not show here.
mkdir -p /run/netns
mount -t tmpfs netns /run/netns
mount -t bpf bpf /sys/fs/bpf
# cadvisor wants a clock speed, which user-mode Linux does not have.
if ! grep -q '^cpu MHz' /proc/cpuinfo; then
    { cat /proc/cpuinfo; echo 'cpu MHz : 1000.000'; } >"$dir/cpuinfo"
    mount --bind "$dir/cpuinfo" /proc/cpuinfo
fi
: >"$dir/mounted"
exec sleep infinity
