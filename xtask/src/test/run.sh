# Runs tests, each in a process of its own, and tells what becomes of them in lines that begin with @@
# (xtask/src/test/told.rs). Several of these scripts may share the tests: who makes a test's directory
# below $queue has it.
own=$(mktemp -d) || exit 1
load='' test=''
trap 'kill $load $test 2>/dev/null; wait; rm -rf "$own"' EXIT
trap 'exit 143' HUP INT TERM

milliseconds() { echo $(($(date +%s%N) / 1000000)); }

# busy N: N processes that do nothing, quickly
busy() {
    for _ in $(seq "$1"); do
        while :; do :; done &
        load="$load $!"
    done
}

# run NUMBER SECONDS TRIES DIRECTORY EXECUTABLE TEST
run() {
    mkdir "$queue/$1" 2>/dev/null || return 0
    for try in $(seq "$3"); do
        echo "@@ start $1"
        : >"$own/skips"
        start=$(milliseconds)
        (cd "$4" && EBBTIDE_SKIPS=$own/skips exec timeout -k 10 "$2" "$5" --exact "$6" --test-threads=1) \
            </dev/null >"$own/log" 2>&1 &
        test=$! # waited for, not called: a signal is to end it at once
        wait $test
        status=$?
        test=''
        took=$(($(milliseconds) - start))
        [ $status = 0 ] || sed 's/^/    | /' "$own/log"
        sed "s/^/@@ skip $1 /" "$own/skips"
        echo "@@ end $1 $status $took"
        [ $status != 0 ] || break
    done
}

mkdir -p "$queue"
echo "@@ ready"
