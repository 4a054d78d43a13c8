//! A server that was away for so long that nobody has the log any more that it needs goes on from a snapshot of another,
//! while the others' work goes on.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use serde_json::Value;
use shardpaxosbank::config::Topology;
use shardpaxosbank::workload::{SetFileOptions, random_set_file};

use crate::common::{Running, bank, eventually, numbered, put, run};
use crate::process::Processes;

/// Runs transfers until it is told to stop, and counts those that committed. The others find too little money, or a
/// cluster whose servers did not hear of each other for an election time-out: all of this machine may have stood still.
fn load(dir: &Path, config: &str, topology: Topology, stop: &AtomicBool, committed: &AtomicU64) {
    let options = SetFileOptions { sets: 1, failures: false, invalid: false, ..SetFileOptions::default() };
    for seed in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let file = put(dir, "load.csv", &random_set_file(seed, &topology, 40_000, &options));
        let ran = Running::start(bank(&["run", &file, "--config", config, "--json"])).finish().with_code(0);
        let performance = ran.sets()[0]["performance"].clone();
        let aborted = performance["aborted"].as_object().expect("valid under the schema");
        let may_be = ["insufficient-balance", "no-quorum"];
        assert!(aborted.keys().all(|reason| may_be.contains(&reason.as_str())), "{aborted:?}");
        committed.fetch_add(performance["committed"].as_u64().expect("a number"), Ordering::Relaxed);
    }
}

/// The slots of which a server's log on disk holds a value, from one on.
fn slots_with_values(place: &Path, from: u64) -> Vec<u64> {
    let range = format!("{from}..{}", u64::MAX);
    // Its last group may be half written: the server runs.
    let ran = run(&["wal", "dump", &place.display().to_string(), "--slot", &range, "--json"]);
    let records = ran.out.lines().map(|line| serde_json::from_str::<Value>(line).expect("a record"));
    let values = records.filter(|r| r["kind"] == "accept" || r["kind"] == "learn");
    values.map(|r| r["slot"].as_u64().expect("a slot")).collect()
}

#[test]
fn a_server_that_was_away_for_long_goes_on_from_a_snapshot() {
    // Enough of a state for some pieces, and as little log as that allows.
    let mut all = Processes::start_clusters(1, |text| {
        let text = text.replace("accounts = 10\n", "accounts = 40000\n");
        text.replace("[servers]", "[keep]\nsnapshot_mib = 1\naudit_mib = 0\n[servers]")
    });
    let topology = all.topology();
    let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let client = {
        let (dir, config) = (all.dir.path().to_path_buf(), all.path.clone());
        let (stop, committed) = (stop.clone(), committed.clone());
        thread::spawn(move || load(&dir, &config, topology, &stop, &committed))
    };
    let applied = |all: &Processes, server| all.status(server).map_or(0, |status| status.applied.0);
    eventually("something to know", || (applied(&all, 3) > 100).then_some(()));
    all.kill(3);
    let known = *slots_with_values(&all.place(3), 1).last().expect("it was there for a while");
    let last = numbered(&all.place(3), "wal-", ".seg").pop().expect("a log");
    for other in [1, 2] {
        eventually("the log is gone that leads on from there", || {
            assert!(!client.is_finished(), "the load has ended");
            let kept = numbered(&all.place(other), "wal-", ".seg");
            (kept[0] > last && slots_with_values(&all.place(other), 1)[0] > known + 1).then_some(())
        });
    }

    let (before, told) = (applied(&all, 1).max(applied(&all, 2)), committed.load(Ordering::Relaxed));
    let mut command = all.command(3, "--format");
    command.env("RUST_LOG", "info");
    all.launch_as(3, command);
    all.listens(3);
    let running = all.running[2].as_mut().expect("it runs");
    running.complains_of("sends it the snapshot of slot");
    running.complains_of("S3 goes on from the snapshot of slot");
    // Everything that was decided before it came back, and then what comes while it is there.
    eventually("it has what the others had", || (applied(&all, 3) >= before).then_some(()));
    eventually("the load goes on", || (committed.load(Ordering::Relaxed) > told).then_some(()));
    let now = eventually("more is decided meanwhile", || {
        let now = applied(&all, 1).max(applied(&all, 2));
        (now > before).then_some(now)
    });
    eventually("it has what was decided meanwhile", || (applied(&all, 3) >= now).then_some(()));

    // On its disk, too, and with a gap in the log that only the snapshot bridges.
    let newest = numbered(&all.place(3), "snapshot-", ".snap").pop();
    assert!(newest.is_some_and(|slot| slot > known + 1), "{newest:?} {known}");
    let log = slots_with_values(&all.place(3), 1);
    let behind = log.iter().find(|slot| **slot > known).expect("it votes again");
    assert!(*behind > known + 1, "slot {behind} follows {known}");
    all.kill(3);
    all.launch(3);
    all.listens(3);
    stop.store(true, Ordering::Relaxed);
    client.join().expect("every transfer is decided");
    all.agree();
    let damage = |server| all.status(server).expect("it runs").metrics.damage;
    assert_eq!([1, 2, 3].map(damage), [const { Vec::<String>::new() }; 3]);
}
