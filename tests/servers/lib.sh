# shellcheck shell=bash
# What the scripts of this folder share: programs in the background, each with a file of its pid.
# The one that sources it sets `dir`, and each program has `dir` in its arguments.

# With these the bucket is made and used. They protect nothing: the servers listen on 127.0.0.1.
export AWS_ACCESS_KEY_ID=ringstore AWS_SECRET_ACCESS_KEY=ringstore-secret
bucket=ringstore
bucket_script=$(dirname "${BASH_SOURCE[0]}")/bucket

die() {
    echo "error: $*" >&2
    exit 1
}

# Says what to export for `ringstore`, which speaks to the server behind this address.
print_env() {
    echo "export AWS_ACCESS_KEY_ID=$AWS_ACCESS_KEY_ID"
    echo "export AWS_SECRET_ACCESS_KEY=$AWS_SECRET_ACCESS_KEY"
    echo "export RINGSTORE_REMOTE='$(url "$1")'"
}

url() {
    echo "s3://$bucket/store?endpoint=http://$1&region=us-east-1&path_style=true"
}

# A new directory, or an empty one: it is removed with all that is in it.
make_dir() {
    mkdir -p "$1"
    dir=$(cd "$1" && pwd)
    [ -z "$(ls -A "$dir")" ] || die "not empty, is there a server already? $dir"
    touch "$dir/of-servers"
}

# The directory of a server that was started.
find_dir() {
    [ -e "$1/of-servers" ] || return 1
    dir=$(cd "$1" && pwd)
}

spawn() {
    local name=$1
    shift
    setsid "$@" >>"$dir/$name.log" 2>&1 </dev/null &
    echo $! >"$dir/$name.pid"
}

# The pid, unless the program has ended and somebody else has its number.
pid_of() {
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) || return 1
    grep -qaF -- "$dir" "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
}

kill_hard() {
    local pid
    pid=$(pid_of "$1") || die "$1 does not run"
    kill -9 "$pid"
    until ! pid_of "$1" >/dev/null; do sleep 0.05; done
    rm -f "$dir/$1.pid"
}

stop_all() {
    local file pid names=()
    for file in "$dir"/*.pid; do
        [ -e "$file" ] && names+=("$(basename "$file" .pid)")
    done
    for name in "${names[@]}"; do
        ! pid=$(pid_of "$name") || kill -9 "$pid" 2>/dev/null || true
    done
    for name in "${names[@]}"; do
        until ! pid_of "$name" >/dev/null; do sleep 0.05; done
    done
    rm -rf "$dir"
}

# Repeats a command until it succeeds, for so many seconds.
wait_for() {
    local seconds=$1 what=$2 end
    end=$((SECONDS + seconds))
    shift 2
    until "$@" >"$dir/wait.log" 2>&1; do
        if ((SECONDS >= end)); then
            tail -n 3 "$dir"/*.log >&2
            die "$what: not in $seconds s"
        fi
        sleep 0.2
    done
}

# Waits for the gateway and makes the bucket.
make_bucket() {
    wait_for "$1" "the S3 gateway" env RINGSTORE_REMOTE="$(url "$2")" "$bucket_script" create
}
