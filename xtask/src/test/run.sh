failed=0
run() {
    name=$1
    shift
    printf '\n== %s\n' "$name"
    start=$(date +%s)
    if "$@"; then word=ok; else word="FAILED (status $?)" failed=1; fi
    echo "== $name: $word, $(($(date +%s) - start)) s"
}
