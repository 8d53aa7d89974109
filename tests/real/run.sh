#!/usr/bin/env bash
# The end-to-end pass with real programs: curl and nginx, redis, iperf3, ssh with port forwarding and
# sftp, each through a tunnel, on every backend.
#
#   tests/real/run.sh [--direct] [BACKEND …]      (default: uring epoll)
#
# --direct leaves the tunnel out, which tells a fault of this machine from a fault of ZProxy.
# ZPROXY_BIN_DIR names the directory of zproxyd and zproxy; without it they are built for release.
# ZPROXY_REAL_KEEP=1 keeps the temporary directory with all logs.
# ZPROXY_TESTS_RELAY=auto|splice|copy is the path of every byte (--relay), as in the other tests.
#
# One line per check and a summary at the end; the exit code is 0 when every check passed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
direct=no
backends=()
for arg in "$@"; do
    case $arg in
        --direct) direct=yes ;;
        uring | epoll | auto) backends+=("$arg") ;;
        *) echo "usage: $0 [--direct] [uring|epoll|auto …]" >&2; exit 2 ;;
    esac
done
relay=${ZPROXY_TESTS_RELAY-auto}
case $relay in
    auto | splice | copy) ;;
    *) echo "ZPROXY_TESTS_RELAY is \"$relay\": write auto, splice or copy" >&2; exit 2 ;;
esac
if [ "${#backends[@]}" -eq 0 ]; then
    if [ $direct = yes ]; then backends=(direct); else backends=(uring epoll); fi
fi

for program in curl nginx redis-server redis-cli redis-benchmark iperf3 ssh sftp ssh-keygen \
    sha256sum timeout perl; do
    command -v "$program" > /dev/null || PATH=$PATH:/usr/sbin command -v "$program" > /dev/null || {
        echo "$program is missing; .ci/run installs everything that is needed" >&2
        exit 1
    }
done
export PATH=$PATH:/usr/sbin:/sbin
sshd=$(command -v sshd) || { echo "sshd is missing (openssh-server)" >&2; exit 1; }

dir=$(mktemp -d "${TMPDIR:-/tmp}/zproxy-real.XXXXXX")
# Workers of nginx and sshd may run as another user.
chmod 755 "$dir"
pids=()

# Ends the processes started since the mark given, last first, and waits for each.
end_processes() {
    local keep=$1 i pid
    for ((i = ${#pids[@]} - 1; i >= keep; i--)); do
        pid=${pids[i]}
        kill -TERM "$pid" 2> /dev/null || true
        for _ in $(seq 50); do
            kill -0 "$pid" 2> /dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2> /dev/null || true
        wait "$pid" 2> /dev/null || true
    done
    pids=("${pids[@]:0:keep}")
}

cleanup() {
    local code=$?
    trap - EXIT INT TERM
    end_processes 0
    if [ "${ZPROXY_REAL_KEEP:-0}" = 1 ]; then echo "logs: $dir"; else rm -rf "$dir"; fi
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# start NAME COMMAND …: runs it in the background, with its output in NAME.out and NAME.err.
start() {
    local name=$1
    shift
    "$@" > "$dir/$name.out" 2> "$dir/$name.err" < /dev/null &
    pids+=($!)
}

free_port() {
    perl -MIO::Socket::INET -e \
        'print IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1:0")->sockport'
}

# until_true SECONDS COMMAND …: looks until the command succeeds.
until_true() {
    local until=$((SECONDS + $1))
    shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt "$until" ] || return 1
        sleep 0.05
    done
}

answers() {
    perl -MIO::Socket::INET -e \
        'exit !IO::Socket::INET->new(PeerAddr => "127.0.0.1:$ARGV[0]", Timeout => 2)' "$1"
}

# field FILE LINE_PREFIX KEY: the value of KEY= in the first line that begins so.
field() {
    sed -n "s/^$2.*[ ]$3=\([^ ]*\).*/\1/p" "$1" | head -n 1
}

sha() {
    sha256sum "$1" | cut -d ' ' -f 1
}

checks=0
failures=()

# check WHAT FUNCTION: one line, with the time it took; what it said is shown when it failed.
check() {
    local what=$1 begun took
    shift
    checks=$((checks + 1))
    begun=$(date +%s%N)
    if (set -euo pipefail; "$@") > "$dir/check.log" 2>&1; then
        took=$((($(date +%s%N) - begun) / 10000000))
        printf 'ok    %-6s %-58s %3d.%02d s\n' "$backend" "$what" $((took / 100)) $((took % 100))
    else
        printf 'FAIL  %-6s %s\n' "$backend" "$what"
        failures+=("$backend: $what")
        tail -n 25 "$dir/check.log" | sed 's/^/      | /'
        for log in zproxyd zproxy; do
            [ -f "$dir/$log-$backend.err" ] || continue
            echo "      $log said last:"
            tail -n 12 "$dir/$log-$backend.err" | sed 's/^/      | /'
        done
    fi
}

# Bash runs a function in an `if` with `set -e` off, so every step of a check says so itself.
must() {
    "$@" || { echo "failed ($?): $*"; exit 1; }
}

same() {
    [ "$1" = "$2" ] || { echo "$3: '$1' is not '$2'"; exit 1; }
}

# --- the services -------------------------------------------------------------------------------

start_nginx() {
    web_local=$(free_port)
    mkdir -p "$dir/www" "$dir/nginx"
    head -c 100000000 /dev/urandom > "$dir/www/large"
    head -c 2000 /dev/urandom > "$dir/www/small"
    chmod -R a+rX "$dir/www" "$dir/nginx"
    cat > "$dir/nginx/nginx.conf" << EOF
worker_processes 1;
daemon off;
pid $dir/nginx/pid;
error_log $dir/nginx/error.log;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path $dir/nginx/body;
    proxy_temp_path $dir/nginx/proxy;
    fastcgi_temp_path $dir/nginx/fastcgi;
    uwsgi_temp_path $dir/nginx/uwsgi;
    scgi_temp_path $dir/nginx/scgi;
    keepalive_requests 100000;
    server { listen 127.0.0.1:$web_local; root $dir/www; }
}
EOF
    start nginx nginx -p "$dir/nginx" -c "$dir/nginx/nginx.conf"
    until_true 10 answers "$web_local"
}

start_redis() {
    redis_local=$(free_port)
    start redis redis-server --bind 127.0.0.1 --port "$redis_local" --save '' --appendonly no \
        --dir "$dir" --daemonize no
    until_true 10 answers "$redis_local"
}

start_iperf() {
    iperf_local=$(free_port)
    start iperf iperf3 --server --bind 127.0.0.1 --port "$iperf_local"
    until_true 10 answers "$iperf_local"
}

start_sshd() {
    ssh_local=$(free_port)
    ssh_dir=$dir/ssh
    mkdir -p -m 700 "$ssh_dir"
    ssh-keygen -q -t ed25519 -N '' -f "$ssh_dir/host"
    ssh-keygen -q -t ed25519 -N '' -f "$ssh_dir/user"
    cp "$ssh_dir/user.pub" "$ssh_dir/authorized"
    cat > "$ssh_dir/sshd_config" << EOF
ListenAddress 127.0.0.1
Port $ssh_local
HostKey $ssh_dir/host
PidFile $ssh_dir/pid
AuthorizedKeysFile $ssh_dir/authorized
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
AllowTcpForwarding yes
Subsystem sftp internal-sftp
EOF
    # The directory that sshd, run by root, wants to exist for its unprivileged part.
    if [ "$(id -u)" = 0 ]; then mkdir -p -m 755 /run/sshd; fi
    start sshd "$sshd" -D -e -f "$ssh_dir/sshd_config"
    until_true 10 answers "$ssh_local"
    ssh_options=(-F /dev/null -i "$ssh_dir/user" -o IdentitiesOnly=yes -o BatchMode=yes
        -o StrictHostKeyChecking=no -o "UserKnownHostsFile=$ssh_dir/known" -o ConnectTimeout=10
        -o LogLevel=ERROR)
    head -c 200000000 /dev/urandom > "$dir/upload"
}

# --- the tunnel ---------------------------------------------------------------------------------

start_tunnel() {
    local ctl
    start "zproxyd-$backend" "$bin/zproxyd" --bind 127.0.0.1 --ctl-port 0 --proxy-port 0 \
        --backend "$backend" --relay "$relay" --state-dir "$dir/state-$backend" --drain-timeout 2
    if ! until_true 15 grep -q '^zproxyd ready ' "$dir/zproxyd-$backend.out"; then
        cat "$dir/zproxyd-$backend.err" >&2
        return 1
    fi
    ctl=$(field "$dir/zproxyd-$backend.out" 'zproxyd ready' ctl)
    cat > "$dir/zproxy-$backend.toml" << EOF
server = "$ctl"
backend = "$backend"
relay = "$relay"
token-file = "$dir/state-$backend/token"
state-dir = "$dir/client-$backend"
drain-timeout = 2

[[tunnel]]
name = "web"
local = "127.0.0.1:$web_local"

[[tunnel]]
name = "redis"
local = "127.0.0.1:$redis_local"

[[tunnel]]
name = "iperf"
local = "127.0.0.1:$iperf_local"

[[tunnel]]
name = "ssh"
local = "127.0.0.1:$ssh_local"
EOF
    start "zproxy-$backend" "$bin/zproxy" --config "$dir/zproxy-$backend.toml"
    local name addr
    for name in web redis iperf ssh; do
        if ! until_true 15 grep -q "^tunnel $name ready " "$dir/zproxy-$backend.out"; then
            cat "$dir/zproxy-$backend.err" >&2
            return 1
        fi
        addr=$(field "$dir/zproxy-$backend.out" "tunnel $name ready" public)
        printf -v "$name" %s "${addr##*:}"
    done
}

# --- the checks ---------------------------------------------------------------------------------

web_large() {
    must timeout 60 curl -fsS -o "$dir/large" "http://127.0.0.1:$web/large"
    same "$(sha "$dir/large")" "$(sha "$dir/www/large")" "sha256 of the download"
    rm -f "$dir/large"
}

web_ranges() {
    local i
    for i in 0 1 2 3; do
        must timeout 60 curl -fsS -r "$((i * 25000000))-$((i * 25000000 + 24999999))" \
            -o "$dir/part$i" "http://127.0.0.1:$web/large" &
    done
    wait
    cat "$dir"/part[0-3] > "$dir/joined"
    same "$(sha "$dir/joined")" "$(sha "$dir/www/large")" "sha256 of four parts joined"
    rm -f "$dir"/part[0-3] "$dir/joined"
}

# small_requests COUNT CONNECTIONS HEADER: requests in one curl, and the connections it may take.
small_requests() {
    local urls answers
    urls="http://127.0.0.1:$web/small?[1-$1]"
    answers=$(must timeout 120 curl -fsS -H "$3" -o "$dir/small" -w \
        '%{http_code} %{size_download} %{num_connects}\n' "$urls")
    same "$(grep -c '^200 2000 ' <<< "$answers")" "$1" "good answers"
    same "$(awk '{ sum += $3 } END { print sum }' <<< "$answers")" "$2" "connections"
    same "$(sha "$dir/small")" "$(sha "$dir/www/small")" "sha256 of the last answer"
}

web_keepalive() {
    small_requests 1000 1 'X-Ignored: 1'
}

web_small() {
    small_requests 500 500 'Connection: close'
}

redis_benchmark() {
    local said
    said=$(must timeout 120 redis-benchmark -h 127.0.0.1 -p "$redis" -q -t ping,set,get "$@")
    echo "$said"
    if grep -qi error <<< "$said"; then exit 1; fi
    same "$(tr '\r' '\n' <<< "$said" | grep -c 'requests per second, p50')" 4 "results"
}

redis_simple() {
    redis_benchmark -n 10000 -c 50
}

redis_pipelined() {
    redis_benchmark -n 100000 -c 50 -P 16
}

redis_large_value() {
    head -c 20000000 "$dir/www/large" > "$dir/value"
    must timeout 60 redis-cli -h 127.0.0.1 -p "$redis" -x set large < "$dir/value"
    must timeout 60 redis-cli -h 127.0.0.1 -p "$redis" --no-raw strlen large
    must timeout 60 redis-cli -h 127.0.0.1 -p "$redis" --raw get large > "$dir/value.back"
    # redis-cli puts a newline behind the value.
    same "$(head -c 20000000 "$dir/value.back" | sha256sum)" "$(sha256sum < "$dir/value")" "sha256"
    rm -f "$dir/value" "$dir/value.back"
}

iperf() {
    # The server serves one test at a time and needs a moment between two.
    local try
    for try in 1 2 3 4 5; do
        if timeout 60 iperf3 --client 127.0.0.1 --port "$iperf" --time 3 "$@" \
            > "$dir/iperf.log" 2>&1; then
            grep -E 'SUM.*(sender|receiver)|sender|receiver' "$dir/iperf.log"
            # Zero bits would be printed as "0.00 bits/sec".
            if grep -E '(sender|receiver)$' "$dir/iperf.log" | grep -q ' 0\.00 bits/sec'; then
                echo "nothing was moved"
                exit 1
            fi
            return 0
        fi
        grep -q 'busy' "$dir/iperf.log" || break
        sleep 0.5
    done
    cat "$dir/iperf.log"
    exit 1
}

iperf_up() { iperf; }
iperf_down() { iperf --reverse; }
iperf_up_parallel() { iperf --parallel 4; }
iperf_down_parallel() { iperf --reverse --parallel 4; }

ssh_command() {
    local said
    said=$(echo through the tunnel |
        must timeout 30 ssh "${ssh_options[@]}" -p "$ssh" "$(id -un)@127.0.0.1" 'cat; exit 0')
    same "$said" "through the tunnel" "what came back"
    local code=0
    timeout 30 ssh "${ssh_options[@]}" -p "$ssh" "$(id -un)@127.0.0.1" 'exit 7' || code=$?
    same "$code" 7 "the remote exit code"
}

ssh_forwarding() {
    local port pid code=0
    port=$(free_port)
    timeout 90 ssh "${ssh_options[@]}" -p "$ssh" -N -o ExitOnForwardFailure=yes \
        -L "127.0.0.1:$port:127.0.0.1:$web_local" "$(id -un)@127.0.0.1" &
    pid=$!
    if until_true 15 answers "$port"; then
        timeout 60 curl -fsS -o "$dir/forwarded" "http://127.0.0.1:$port/large" || code=$?
    else
        code=99
    fi
    kill "$pid" 2> /dev/null || true
    wait "$pid" 2> /dev/null || true
    same "$code" 0 "curl through ssh -L"
    same "$(sha "$dir/forwarded")" "$(sha "$dir/www/large")" "sha256 through ssh -L"
    rm -f "$dir/forwarded"
}

sftp_both_ways() {
    local remote=$dir/remote
    printf 'put %s %s\nget %s %s\n' "$dir/upload" "$remote" "$remote" "$dir/download" > "$dir/batch"
    must timeout 120 sftp "${ssh_options[@]}" -P "$ssh" -b "$dir/batch" "$(id -un)@127.0.0.1"
    same "$(sha "$remote")" "$(sha "$dir/upload")" "sha256 of the upload"
    same "$(sha "$dir/download")" "$(sha "$dir/upload")" "sha256 of the download"
    rm -f "$remote" "$dir/download"
}

nothing_left_over() {
    # Every flow above has ended, so neither program may hold more than its listeners and its pool.
    local pid held
    for pid in "${pids[@]: -2}"; do
        held=$(find "/proc/$pid/fd" -lname 'pipe:*' | wc -l)
        [ "$held" -le 200 ] || { echo "process $pid holds $held pipe ends"; exit 1; }
        held=$(find "/proc/$pid/fd" -lname 'socket:*' | wc -l)
        until_true 30 few_sockets "$pid" || { echo "process $pid holds $held sockets"; exit 1; }
    done
}

few_sockets() {
    [ "$(find "/proc/$1/fd" -lname 'socket:*' | wc -l)" -le 250 ]
}

stops_in_order() {
    local pid code
    for pid in "${pids[@]: -1}" "${pids[@]: -2:1}"; do
        kill -TERM "$pid"
        until_true 8 gone "$pid" || { echo "process $pid goes on after SIGTERM"; exit 1; }
    done
}

gone() {
    # A child that has ended is a zombie until its parent asks for it.
    ! grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$1/status" 2> /dev/null
}

run_checks() {
    check "curl: 100 MB from nginx, sha256 equal" web_large
    check "curl: four ranges at once, joined, sha256 equal" web_ranges
    check "curl: 1,000 requests in one connection" web_keepalive
    check "curl: 500 connections, one request each" web_small
    check "redis-benchmark: ping, set, get, 50 connections" redis_simple
    check "redis-benchmark: -P 16" redis_pipelined
    check "redis-cli: a value of 20 MB both ways, equal" redis_large_value
    check "iperf3" iperf_up
    check "iperf3 -R" iperf_down
    check "iperf3 -P 4" iperf_up_parallel
    check "iperf3 -R -P 4" iperf_down_parallel
    check "ssh: a command, its output and its exit code" ssh_command
    check "ssh -L: 100 MB through the forwarded port, sha256 equal" ssh_forwarding
    check "sftp: 200 MB both ways, sha256 equal" sftp_both_ways
}

if [ $direct = no ]; then
    if [ -z "${ZPROXY_BIN_DIR:-}" ]; then
        (cd "$root" && cargo build --release --locked --quiet -p zproxyd -p zproxy)
        ZPROXY_BIN_DIR=${CARGO_TARGET_DIR:-$root/target}/release
    fi
    bin=$ZPROXY_BIN_DIR
fi

start_nginx || { echo "nginx did not start"; cat "$dir"/nginx.err; exit 1; }
start_redis || { echo "redis-server did not start"; cat "$dir"/redis.*; exit 1; }
start_iperf || { echo "iperf3 did not start"; cat "$dir"/iperf.*; exit 1; }
start_sshd || { echo "sshd did not start"; cat "$dir"/sshd.err; exit 1; }

services=${#pids[@]}
for backend in "${backends[@]}"; do
    if [ $direct = yes ]; then
        web=$web_local redis=$redis_local iperf=$iperf_local ssh=$ssh_local
        run_checks
        continue
    fi
    if start_tunnel; then
        run_checks
        check "nothing is left over" nothing_left_over
        check "both programs stop on SIGTERM" stops_in_order
    else
        checks=$((checks + 1))
        failures+=("$backend: the tunnel did not come up")
        echo "FAIL  $backend the tunnel did not come up"
    fi
    end_processes "$services"
done

echo
if [ "${#failures[@]}" -eq 0 ]; then
    echo "real programs: all $checks checks passed"
else
    echo "real programs: ${#failures[@]} of $checks checks failed"
    printf '  %s\n' "${failures[@]}"
    exit 1
fi
