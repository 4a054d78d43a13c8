#!/usr/bin/env bash
# Plants each bug of this folder in a copy of the sources and lets somebody look for it; see tests/mutants.rs.
#
#   run.sh [--with sim|tests|model|compiler] [--seeds A..B] [--jobs N] [--from NAME] [--limit SECONDS] [NAME...]
#
#   sim     the simulator, on these seeds; each failure must also tell its story
#   tests   the tests that give examples: those beside the code, and golden scripts
#   model   the model checker within the bounds of the usual tests, where a rule must break; without a NAME, only what it
#           must notice (`Model: yes`)
#
#   compiler  nobody: only whether each still fits and builds, which takes seconds
#
# NAME is a patch's name or number. Exit status: 0 all were noticed, 1 some survived, 2 something does not fit or build.
set -euo pipefail
cd "$(dirname "$0")/../.."

with=sim seeds=0..1000 jobs=1 from='' limit=600 names=()
while [ $# -gt 0 ]; do
    case $1 in
        --with) with=$2 && shift 2 ;;
        --seeds) seeds=$2 && shift 2 ;;
        --jobs) jobs=$2 && shift 2 ;;
        --from) from=$2 && shift 2 ;;
        --limit) limit=$2 && shift 2 ;;
        -*) echo "$0: unknown option $1" >&2 && exit 2 ;;
        *) names+=("$1") && shift ;;
    esac
done

case $with in
    sim) build=(build --bin bank) ;;
    tests) build=(test --lib --test golden) ;;
    model) build=(test --test model) ;;
    compiler) build=(check --lib) ;;
    *) echo "$0: --with $with: must be sim, tests, model or compiler" >&2 && exit 2 ;;
esac

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

# Without what debuggers read: that takes most of the time, and nobody looks at these executables.
export CARGO_PROFILE_DEV_DEBUG=0

build() {
    local only=()
    case $with in tests | model) only=(--no-run) ;; esac
    (cd "$tree" && CARGO_TARGET_DIR=$scratch/build cargo "${build[@]}" "${only[@]}" --quiet) >"$log" 2>&1
}

# Each of these sets `seed` to the first that failed if there are seeds, and `said` to what the failure named, or `verdict`.
look() {
    verdict='' seed='' said=''
    case $with in
        compiler) if [ "$patch" = healthy ]; then verdict=SURVIVED; else said=builds; fi ;;
        sim) look_with_sim ;;
        *) look_with_tests ;;
    esac
}

look_with_sim() {
    local status=0
    timeout "$limit" "$scratch/build/debug/bank" sim --seeds "$seeds" --jobs "$jobs" >"$log" 2>&1 || status=$?
    case $status in
        0) verdict=SURVIVED && return ;;
        124) seed=? said='hangs: not at rest' && return ;;
    esac
    # A failure that names no seed is one of the run itself: bad arguments, no memory.
    local line
    line=$(grep -m 1 -E '^seed [0-9]+:' "$log") || { tail -n 5 "$log" >&2 && fail "the simulator ended with status $status"; }
    seed=${line#seed } && seed=${seed%%:*}
    said=$(grep -o -m 1 -E '\b[PBTSH][0-9]:|not at rest|unanswered|spins' <<<"$line" | head -n 1) || said='a panic'
    case $said in [PBTSH][0-9]:) said=${said%:} && tells "rule $said broke" ;; esac
    tells "repeat it with: bank sim --seed $seed --log"
    tells ' last:'
    ! grep -q '^when repeated it ended otherwise' "$log" || fail "seed $seed ends otherwise when it is repeated, see $log"
}

# Whoever reads of a failure needs this too.
tells() {
    grep -q -F -- "$1" "$log" || fail "the story of the failure does not say '$1', see $log"
}

look_with_tests() {
    local status=0 failed
    if [ "$with" = model ]; then look_with_model && return; fi
    try "$limit" --no-fail-fast || status=$?
    case $status in
        0) verdict=SURVIVED && return ;;
        124) said='caught: hangs' && return ;;
    esac
    failed=$(sed -n -E 's/^test (.*) \.\.\. FAILED$/\1/p' "$log")
    [ -n "$failed" ] || { tail -n 5 "$log" >&2 && fail "the tests ended with status $status"; }
    said="caught: $(head -n 1 <<<"$failed")"
    [ "$(wc -l <<<"$failed")" = 1 ] || said+=", $(($(wc -l <<<"$failed") - 1)) more"
}

# One configuration after the other, until a rule breaks in one. That something else happens there, or that there are more
# states or fewer, is no broken rule yet; and a bug that multiplies the states must not take all time or memory.
look_with_model() {
    local configuration broken other=''
    try "$limit" -- --list || fail 'the tests of the model cannot be listed'
    for configuration in $(sed -n -E 's/^([a-z0-9_]+): test$/\1/p' "$log"); do
        try 120 -- --exact "$configuration" && continue
        # The core's own assertions name the rule too, if not always at first.
        broken=$(sed -n -E "s/.*broken: ([PBT][0-9]|the core's own assertions).*/\1/p" "$log" | head -n 1)
        [ -z "$broken" ] || { said="caught: $broken in $configuration" && return; }
        [ "$patch" != healthy ] || { said=$configuration && return; }
        other=', no rule broke'
    done
    verdict=SURVIVED$other
}

# Runs the tests that were built, for so many seconds, and with 6 GiB at most.
try() {
    local seconds=$1
    shift
    (cd "$tree" && ulimit -v 6291456 && CARGO_TARGET_DIR=$scratch/build timeout "$seconds" cargo "${build[@]}" "$@") \
        >"$log" 2>&1
}

# A copy with times of its own: what an interrupted run left there is not taken for up to date.
rm -rf "$tree"
mkdir -p "$tree"
cp -R Cargo.toml Cargo.lock src bin benches data "$tree"
[ "$with" = sim ] || cp -R tests "$tree"

patches=()
if [ ${#names[@]} -gt 0 ]; then
    for name in "${names[@]}"; do
        patch=$(find_patch "$name")
        patches+=("$patch")
    done
else
    [ -z "$from" ] || from=$(find_patch "$from")
    for patch in tests/mutants/*.patch; do
        [ "$with" != model ] || grep -q -x 'Model: yes' "$patch" || continue
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
    if build; then
        look
    elif [ "$with" = compiler ]; then
        verdict='DOES NOT BUILD'
    else
        cat "$log" >&2 && fail "$name does not build"
    fi
    if [ "$patch" != healthy ]; then
        patch --quiet --batch --reverse --strip=1 --directory="$tree" <"$patch" >/dev/null
        [ -z "$verdict" ] || survivors+=("$name")
    elif [ -z "$verdict" ]; then
        # Whoever cries at everything has noticed nothing.
        cat "$log" >&2
        fail "without a planted bug it fails too: ${seed:+seed $seed }$said"
    else
        verdict=passes
    fi
    printf "$row" "$name" "$rules" "$seed" "${verdict:-$said}" $((SECONDS - begun))
done
[ "$with" != sim ] || with="seeds $seeds"
[ ${#survivors[@]} -eq 0 ] || { echo "survived $with: ${survivors[*]}" && exit 1; }
