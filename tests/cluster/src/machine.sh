# A node that is a machine of its own: what it runs, as root, in its writable root. Arguments: its
# directory, the cluster's, and others of the host's that it has to see.
node=$1
state=/run/node
see() {
    mkdir -p "$1"
    mount -t hostfs -o "$1" none "$1"
}
# written to from both sides
see "$2"
shift 2
# /tmp and /run are the guest's own: what lies there on the host has to be brought in
for path; do [ -e "$path" ] || see "$path"; done
hostname "$(cat "$node/name")"
while read -r path value; do echo "$value" >"/proc/sys/$path"; done <"$node/sysctls"
ip -batch "$node/nics"
# What this machine's own container tools left there is none of the node's.
for path in /etc/cni/net.d /opt/cni/bin /var/lib/cni /var/lib/kubelet /var/log/pods /var/log/containers; do
    mkdir -p "$path"
    mount -t tmpfs node "$path"
done
# as the package kubernetes-cni has them: containerd asks for loopback with every sandbox
while read -r plugin; do cp "/usr/lib/cni/$plugin" /opt/cni/bin/; done <"$node/plugins"
# Containers' roots are overlays, which cannot lie upon one; the state directory does not.
mkdir -p "$state"
mount --make-rshared /
mkdir "/sys/fs/cgroup/$(cat "$node/cgroup")"
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || true
done
# cadvisor wants a clock speed, which user-mode Linux does not have.
{ cat /proc/cpuinfo; echo 'cpu MHz : 1000.000'; } >"$state/cpuinfo"
mount --bind "$state/cpuinfo" /proc/cpuinfo

# start PART: its command line is a file, a word a line
start() {
    PATH="$(cat "$node/path"):$PATH" xargs -a "$node/$1.args" -d '\n' env >"$node.$1.log" 2>&1 &
}
start containerd
ctr=$(cat "$node/ctr")
until "$ctr" --address "$state/containerd.sock" version >/dev/null 2>&1; do sleep 0.1; done
while read -r image; do
    "$ctr" --address "$state/containerd.sock" --namespace k8s.io images import "$image"
done <"$node/images"
start kubelet
[ ! -e "$node/kube-proxy.args" ] || start kube-proxy
echo up
# until one of them ends, or the host is done with us
wait -n
echo 'a part of the node ended'
exit 1
