#!/usr/bin/env bash
# Where each server spends its time: drives a bank with `bank bench` under `perf record`, lists the hottest functions of each
# thread, and draws a flamegraph of each.
#
#   perf.sh FOLDER [FLAG OF bank bench...]
#
# The executable is a build of its own, with frame pointers: call graphs are cheap to record then, and the usual build stays
# as it is. The flamegraphs are drawn by inferno, which is installed into the folder, too.
set -euo pipefail
dir=$(realpath -m "${1:?usage: perf.sh FOLDER [FLAG OF bank bench...]}")
shift
cd "$(dirname "$0")/.."

inferno=0.12.3
read -ra cargo <<<"${CARGO:-cargo}"
tools=$dir/inferno-$inferno

command -v perf >/dev/null || {
    echo 'make perf: perf is missing; install the package linux-perf (Debian), linux-tools-generic (Ubuntu) or perf' \
        '(Fedora, Arch)' >&2
    exit 1
}
# Before any of it takes minutes.
perf record -q -e cpu-clock -o /dev/null true 2>/dev/null || {
    echo 'make perf: perf may not record here; as root, or after sysctl kernel.perf_event_paranoid=1, it may' >&2
    exit 1
}
mkdir -p "$dir"
RUSTFLAGS='-C force-frame-pointers=yes' "${cargo[@]}" build --release --bin bank --target-dir "$dir"
if ! [ -x "$tools/bin/inferno-flamegraph" ]; then
    "${cargo[@]}" install inferno --version "$inferno" --locked --root "$tools" --target-dir "$dir/build-of-tools"
    rm -rf "$dir/build-of-tools"
fi

rm -f "$dir"/*.svg "$dir/index.html"
perf record -q -e cpu-clock -F 1499 -g --call-graph fp -o "$dir/perf.data" -- \
    "$dir/release/bank" bench "$@" >"$dir/load.out"

echo 'Hottest functions by thread (S1, S2, ... are the servers):'
perf report -i "$dir/perf.data" --stdio --no-children --no-inline -g none --sort comm,symbol --percent-limit 0.02 2>/dev/null |
    sed -E '/^#/d; /^ *$/d; s/ +- +- *$//' | sort -k2,2V -s |
    awk '$2 != last { last = $2; shown = 0; print "" } shown++ < 12'

# What all threads of Rust have in common before their own work begins is left out. Times are in nanoseconds.
perf script -i "$dir/perf.data" --no-inline 2>/dev/null | "$tools/bin/inferno-collapse-perf" -q |
    sed -E 's/^([^;]*);.*;std::sys::backtrace::__rust_begin_short_backtrace;/\1;/' >"$dir/folded"
page=$dir/index.html
echo '<!DOCTYPE html><meta charset="utf-8"><title>Where the time goes</title><h1>Where the time goes</h1>' >"$page"
# A thread that ran for less than 50 ms has no shape.
awk '{ ran[substr($0, 1, index($0, ";") - 1)] += $NF } END { for (name in ran) if (ran[name] >= 5e7) print name }' "$dir/folded" |
    sort -V | while read -r thread; do
        grep "^$thread;" "$dir/folded" | "$tools/bin/inferno-flamegraph" -q --countname ns --title "$thread" >"$dir/$thread.svg"
        echo "<p><object data=\"$thread.svg\" type=\"image/svg+xml\" width=\"100%\"></object></p>" >>"$page"
    done

echo
cat "$dir/load.out"
cat <<END

Flamegraphs:  $page
Call graphs:  perf report -i $dir/perf.data --no-children --sort comm,symbol
Attach to a running one:  perf record -e cpu-clock -F 1499 -g -p \$(pgrep -xo bank) -- sleep 10
                   live:  perf top -e cpu-clock -p \$(pgrep -xo bank) --sort comm,symbol
END
