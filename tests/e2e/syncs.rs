//! The syncs that are reported are the syncs that the kernel sees, no more and no fewer.
//!
//! What a server does to format or open its directory is no part of a set, and sets are told apart in the trace by the
//! write of their line to standard output: whatever is synced between two such lines belongs to the later set, because
//! a set ends only when every server has applied everything.

use shardpaxosbank::config::Topology;

use crate::common::{Running, bank, eventually, put, run, set_text, temp, traced, whole_trace};

const CALLS: &str = "trace=write,fsync,fdatasync,sync_file_range,msync,sync,syncfs";

/// Syncs before the first line on standard output, between the lines, and after the last.
fn syncs_by_set(trace: &str) -> Vec<u64> {
    let mut counts = vec![0];
    for line in trace.lines() {
        // `PID call(…) = …`; a call that another thread interrupts in the trace is shown once more as resumed.
        let call = line.split_whitespace().nth(1).unwrap_or("");
        // A long line takes several writes; its first one ends the set.
        if call.starts_with("write(1,") && line.contains(r#""{\"set\":"#) {
            counts.push(0);
        }
        let is_sync = ["fsync(", "fdatasync(", "sync_file_range(", "msync(", "sync(", "syncfs("];
        if is_sync.iter().any(|name| call.starts_with(name)) {
            *counts.last_mut().expect("never empty") += 1;
        }
    }
    counts
}

#[test]
fn reported_syncs_are_real_syncs() {
    let topology = Topology::default();
    let dir = temp();
    let transfer = |i: usize| {
        let from = i * 7919 % 3000 + 1;
        format!("({from}, {}, 1)", (from + if i.is_multiple_of(5) { 1500 } else { 1 }) % 3000 + 1)
    };
    let sizes = [1, 40, 1, 400, 3];
    let sets = sizes.iter().enumerate().map(|(n, size)| {
        let rows: Vec<String> = (0..*size).map(transfer).collect();
        set_text(n + 1, &topology, &rows)
    });
    let file = put(dir.path(), "sets.csv", &sets.collect::<String>());
    let trace = dir.path().join("trace");
    // Longer tests elsewhere fill segments; here none is full, so that none has to be made ready ahead.
    let plain = bank(&["run", &file, "--json", "--in-flight", "8"]);
    let ran = Running::start(traced(&plain, &trace, &["-s", "16", "-e", CALLS])).finish();
    assert_eq!(ran.code, Some(0), "strace must be allowed to trace others: {}", ran.err);
    let real = eventually("the whole trace", || whole_trace(&trace));
    let real = syncs_by_set(&real);
    let reported: Vec<u64> =
        ran.sets().iter().map(|s| s["performance"]["syncs"].as_u64().expect("valid")).collect();
    assert_eq!(real.len(), sizes.len() + 1, "the line of every set is in the trace: {real:?}");
    // The first set cannot be told from the start, and what follows the last line belongs to none.
    let real = &real[1..sizes.len()];
    for (set, (real, reported)) in real.iter().zip(&reported[1..]).enumerate() {
        // A server that has nothing else to write notes its decided slot after a while. The runner reads the counters
        // at both ends of a set, so a note may fall between two sets: once for each server, and into no set.
        let between = real.checked_sub(*reported);
        assert!(between.is_some_and(|n| n <= 9), "set {}: {real} syncs, {reported} reported", set + 2);
    }
    assert!(reported[1] >= 40 * 2 / 8, "a majority syncs every batch: {reported:?}");
    // One transfer across shards: in both, a majority or all three sync the vote, and later the outcome. Notes of the set
    // before may add to it, one for each server.
    assert!((8..=12 + 9).contains(&reported[2]), "{reported:?}");
}

/// What one at a time costs: every decision is synced by a majority before anybody hears of it (P1).
#[test]
fn no_decision_without_syncs() {
    let topology = Topology::default();
    let dir = temp();
    let rows: Vec<String> = (0..50).map(|i| format!("({}, {}, 1)", 2 * i + 1, 2 * i + 2)).collect();
    let file = put(dir.path(), "sets.csv", &set_text(1, &topology, &rows));
    let ran = run(&["run", &file, "--json", "--in-flight", "1"]).with_code(0);
    let syncs = ran.sets()[0]["performance"]["syncs"].as_u64().expect("valid");
    assert!(syncs >= 50 * 2, "{syncs}");
}
