#!/usr/bin/env bash
# Plants each bug of this folder in a copy of the sources and lets the simulator look for it; see tests/mutants.rs.
#
#   run.sh [--seeds A..B] [--jobs N] [--from NAME] [--limit SECONDS] [NAME...]
#
# NAME is a patch's name or number. Exit status: 0 all were noticed, 1 some survived, 2 something does not fit or build.
set -euo pipefail
cd "$(dirname "$0")/../.."

seeds=0..1000 jobs=1 from='' limit=600 names=()
while [ $# -gt 0 ]; do
    case $1 in
        --seeds) seeds=$2 && shift 2 ;;
        --jobs) jobs=$2 && shift 2 ;;
        --from) from=$2 && shift 2 ;;
        --limit) limit=$2 && shift 2 ;;
        -*) echo "$0: unknown option $1" >&2 && exit 2 ;;
        *) names+=("$1") && shift ;;
    esac
done

scratch=$PWD/target/mutants
tree=$scratch/tree
log=$scratch/log

fail() {
    echo "error: $1" >&2
    exit 2
}

# The patch that a name or a number stands for.
find_patch() {
    local found
    for found in tests/mutants/*.patch; do
        local name=${found##*/} number
        name=${name%.patch}
        number=${name%%-*}
        case $1 in "$name" | "${name#*-}" | "$number" | "${number#0}") echo "$found" && return ;; esac
    done
    fail "no planted bug is called $1"
}

build() {
    (cd "$tree" && CARGO_TARGET_DIR=$scratch/build cargo build --quiet --bin bank) >"$log" 2>&1
}

# Runs the seeds. Sets `seed` to the first that failed, `said` to the rule that the failure named, or `verdict`.
look() {
    local status=0
    verdict='' seed='' said=''
    timeout "$limit" "$scratch/build/debug/bank" sim --seeds "$seeds" --jobs "$jobs" >"$log" 2>&1 || status=$?
    case $status in
        0) verdict=SURVIVED && return ;;
        124) seed=? said='hangs: not at rest' && return ;;
    esac
    # A failure that names no seed is one of the run itself: bad arguments, no memory.
    local line
    line=$(grep -m 1 -E '^seed [0-9]+:' "$log") || { tail -n 5 "$log" >&2 && fail "the simulator ended with status $status"; }
    seed=${line#seed } && seed=${seed%%:*}
    said=$(grep -o -m 1 -E '\b[PBTS][0-9]:|not at rest|unanswered|spins' <<<"$line" | head -n 1) || said='a panic'
    said=${said%:}
}

# A copy with times of its own: what an interrupted run left there is not taken for up to date.
rm -rf "$tree"
mkdir -p "$tree"
cp -R Cargo.toml Cargo.lock src bin benches "$tree"

patches=()
if [ ${#names[@]} -gt 0 ]; then
    for name in "${names[@]}"; do
        patch=$(find_patch "$name")
        patches+=("$patch")
    done
else
    [ -z "$from" ] || from=$(find_patch "$from")
    for patch in tests/mutants/*.patch; do
        [[ $patch < $from ]] || patches+=("$patch")
    done
fi

row='%-40s %-9s %6s  %-20s %5s\n'
printf "$row" bug rules seed named s
survivors=()
for patch in healthy "${patches[@]}"; do
    begun=$SECONDS rules='' name=${patch##*/} name=${name%.patch}
    if [ "$patch" != healthy ]; then
        rules=$(sed -n 's/^Rules: //p' "$patch")
        patch --quiet --batch --strip=1 --fuzz=0 --directory="$tree" <"$patch" >"$log" 2>&1 \
            || { cat "$log" >&2 && fail "$name no longer fits the sources"; }
    fi
    build || { cat "$log" >&2 && fail "$name does not build"; }
    look
    if [ "$patch" != healthy ]; then
        patch --quiet --batch --reverse --strip=1 --directory="$tree" <"$patch" >/dev/null
        [ -z "$verdict" ] || survivors+=("$name")
    elif [ -z "$verdict" ]; then
        # Whoever cries at everything has noticed nothing.
        cat "$log" >&2
        fail "the simulator fails without a planted bug: seed $seed"
    else
        verdict=passes
    fi
    printf "$row" "$name" "$rules" "$seed" "${verdict:-$said}" $((SECONDS - begun))
done
[ ${#survivors[@]} -eq 0 ] || { echo "survived seeds $seeds: ${survivors[*]}" && exit 1; }
