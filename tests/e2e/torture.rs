//! kill -9 of any server at any moment, under load, again and again; what the clients were told is what the logs hold.
//!
//! `TORTURE_KILLS=500 cargo test --release --test e2e torture` takes some ten minutes; without it, a few kills.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use shardpaxosbank::config::Topology;
use shardpaxosbank::workload::{SetFileOptions, SplitMix64, random_set_file};

use crate::common::{Running, bank, eventually, put, set_text};
use crate::inspect::{listed, transfer};
use crate::process::Processes;

type Transfer = (i64, i64, i64);

/// How often each transfer was reported as committed, and as unknown.
#[derive(Default)]
struct Told {
    committed: BTreeMap<Transfer, usize>,
    unknown: BTreeMap<Transfer, usize>,
    rows: usize,
}

impl Told {
    fn take(&mut self, set: &Value) {
        let rows = ["results", "resolved"].iter().filter_map(|key| set[key].as_array()).flatten();
        for row in rows.filter(|row| row["kind"] == "transfer" || row.get("amount").is_some()) {
            self.rows += 1;
            match row["outcome"].as_str() {
                Some("committed") => *self.committed.entry(transfer(row)).or_default() += 1,
                Some("unknown") => *self.unknown.entry(transfer(row)).or_default() += 1,
                _ => {}
            }
        }
    }
}

/// Runs random files on the servers until it is told to stop.
fn load(dir: std::path::PathBuf, config: String, topology: Topology, stop: Arc<AtomicBool>) -> Told {
    let options = SetFileOptions { sets: 2, failures: false, ..SetFileOptions::default() };
    let mut told = Told::default();
    for seed in 0.. {
        if stop.load(Ordering::Relaxed) {
            return told;
        }
        let file = put(&dir, &format!("load-{seed}"), &random_set_file(seed, &topology, 3000, &options));
        let ran = Running::start(bank(&["run", &file, "--config", &config, "--json"])).finish();
        // 3: some outcome stayed unknown.
        assert!(matches!(ran.code, Some(0 | 3)), "{}", ran.err);
        ran.sets().iter().for_each(|set| told.take(set));
        std::fs::remove_file(file).expect("it was just written");
    }
    told
}

/// Flips a byte of the newest of two snapshots of a server that is down.
fn damage_snapshot(all: &Processes, server: usize, rng: &mut SplitMix64) -> bool {
    let place = all.dir.path().join(format!("S{server}"));
    let names = std::fs::read_dir(&place).expect("a directory").flatten().map(|entry| entry.path());
    let mut snapshots: Vec<_> = names.filter(|path| path.extension().is_some_and(|e| e == "snap")).collect();
    snapshots.sort();
    let [_, .., newest] = &snapshots[..] else { return false };
    let mut bytes = std::fs::read(newest).expect("a snapshot");
    let at = rng.below(bytes.len() as u64) as usize;
    bytes[at] ^= 1 << rng.below(8);
    std::fs::write(newest, bytes).expect("a snapshot");
    true
}

/// Some time that nothing depends on: when servers die, how long they are down, and how far others have come, shall differ.
fn moment(rng: &mut SplitMix64, most_ms: u64) {
    let _ = crossbeam::channel::after(Duration::from_millis(rng.below(most_ms))).recv();
}

#[test]
fn servers_that_are_killed_again_and_again_lose_and_repeat_nothing() {
    let kills: u64 = std::env::var("TORTURE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let mut all = Processes::start(|text| {
        let text = text.replace("initial_balance = 100", "initial_balance = 100000");
        text.replace("[servers]", "[keep]\nsnapshot_mib = 1\n[servers]")
    });
    let topology = all.topology();
    let stop = Arc::new(AtomicBool::new(false));
    let client = {
        let (dir, config, stop) = (all.dir.path().to_path_buf(), all.path.clone(), stop.clone());
        thread::spawn(move || load(dir, config, topology, stop))
    };
    let mut rng = SplitMix64::new(kills);
    let mut damaged = 0;
    for _ in 0..kills {
        // Any server; with the one before it still catching up, a cluster may lack a majority for a while.
        let server = 1 + rng.below(9) as usize;
        all.kill(server);
        damaged += usize::from(rng.one_in(4) && damage_snapshot(&all, server, &mut rng));
        moment(&mut rng, 400);
        all.launch(server);
        all.listens(server);
        moment(&mut rng, 800);
        assert!(!client.is_finished(), "the load has ended");
    }
    stop.store(true, Ordering::Relaxed);
    let told = client.join().expect("the load does not fail");

    // Nobody may know on disk that the very last slot is decided; one that comes behind it says so.
    let mut last = Told::default();
    let file =
        put(all.dir.path(), "last", &set_text(1, &topology, &["(1, 2, 1)", "(11, 21, 1)"].map(String::from)));
    let ran = Running::start(bank(&["run", &file, "--config", &all.path, "--json"])).finish();
    ran.sets().iter().for_each(|set| last.take(set));
    all.audit();
    for shard in topology.shards() {
        // Everybody comes to the same state, by its digest.
        eventually("equal digests", || {
            let states = topology.servers_of(shard).map(|server| all.status(usize::from(server.0)));
            let states: Option<Vec<_>> = states.map(|s| s.map(|s| (s.applied, s.digest))).collect();
            states.filter(|states| states.iter().all(|state| *state == states[0]))
        });
    }
    let mut by_id = BTreeMap::new();
    (1..=9).for_each(|server| all.kill(server));
    for server in 1..=9 {
        let (lines, _) = listed(&all.dir.path().join(format!("S{server}")));
        for line in lines {
            let other = by_id.insert(line["id"].to_string(), transfer(&line));
            assert!(other.is_none_or(|other| other == transfer(&line)), "{line}");
        }
    }
    let mut counts: BTreeMap<Transfer, usize> = BTreeMap::new();
    by_id.values().for_each(|transfer| *counts.entry(*transfer).or_default() += 1);
    let mut all_told = told.committed.clone();
    for (transfer, n) in told.unknown.iter().chain(&last.committed) {
        *all_told.entry(*transfer).or_default() += n;
    }
    for (transfer, n) in &counts {
        let most = all_told.get(transfer).copied().unwrap_or(0);
        assert!(*n <= most, "{transfer:?} committed {n} times, {most} told of");
    }
    for (transfer, n) in &told.committed {
        let listed = counts.get(transfer).copied().unwrap_or(0);
        assert!(listed >= *n, "{transfer:?} committed {n} times, {listed} listed");
    }
    println!(
        "{kills} kills, {damaged} damaged snapshots, {} rows, {} committed, {} unknown",
        told.rows,
        told.committed.values().sum::<usize>(),
        told.unknown.values().sum::<usize>()
    );
}
