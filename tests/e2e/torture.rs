//! kill -9 of any server at any moment, under load, again and again; what the clients were told is what the logs hold.
//!
//! `TORTURE_KILLS=500 cargo test --release --test e2e torture` takes some ten minutes; without it, a few kills.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use shardpaxosbank::config::Topology;
use shardpaxosbank::report::Role;
use shardpaxosbank::types::NodeId;
use shardpaxosbank::workload::{SetFileOptions, SplitMix64, random_set_file};

use crate::common::{Ran, Running, bank, eventually, put, run, set_text};
use crate::inspect::transfer;
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

/// Flips a bit in a file of a server that is down, cuts it, or removes it: a segment, the mark or a snapshot.
fn damage(all: &Processes, server: usize, rng: &mut SplitMix64) -> String {
    let names =
        std::fs::read_dir(all.place(server)).expect("a directory").flatten().map(|entry| entry.path());
    let one_of = ["seg", "snap"];
    let kept = |path: &PathBuf| {
        let ends = path.extension().is_some_and(|e| one_of.iter().any(|known| e == *known));
        ends || path.file_name().is_some_and(|name| name == "mark")
    };
    let mut files: Vec<PathBuf> = names.filter(kept).collect();
    files.sort();
    // Segments are many; each kind of file shall have its turn.
    let kind = ["seg", "snap", "mark"][rng.below(3) as usize];
    let some: Vec<_> = files.iter().filter(|path| path.display().to_string().ends_with(kind)).collect();
    let file = match &some[..] {
        [] => &files[0],
        some => some[rng.below(some.len() as u64) as usize],
    };
    let mut bytes = std::fs::read(file).expect("a file");
    let at = rng.below(bytes.len() as u64) as usize;
    let how = match rng.below(3) {
        0 => {
            bytes[at] ^= 1 << rng.below(8);
            std::fs::write(file, bytes).expect("a file");
            "flipped"
        }
        1 => {
            std::fs::write(file, &bytes[..at]).expect("a file");
            "cut"
        }
        _ => {
            std::fs::remove_file(file).expect("a file");
            "removed"
        }
    };
    format!("{} {how} at {at}", file.display())
}

/// Whether every server of its cluster can do without it: what one disk lost, a majority has.
fn can_be_spared(all: &Processes, server: usize) -> bool {
    let topology = all.topology();
    let shard = topology.shard_of_server(NodeId(server as u16));
    let votes = |server: NodeId| {
        all.status(usize::from(server.0))
            .is_some_and(|status| status.role != Role::Learner && status.applied.0 > 0)
    };
    topology.servers_of(shard).all(votes)
}

/// Some time that nothing depends on: when servers die, how long they are down, and how far others have come, shall differ.
fn moment(rng: &mut SplitMix64, most_ms: u64) {
    let _ = crossbeam::channel::after(Duration::from_millis(rng.below(most_ms))).recv();
}

/// Adds what a server lists, which must not contradict the others. Where an old part of its log is damaged, which no start
/// needs, the list ends with a word on that.
fn list(place: &Path, by_id: &mut BTreeMap<String, Transfer>) {
    let Ran { code, out, err } = run(&["log", &place.display().to_string(), "--json"]);
    assert!(code == Some(0) || code == Some(1) && err.contains("damaged (S2)"), "{code:?} {err}");
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    for line in lines.filter(|line| line.get("missing_from").is_none()) {
        let other = by_id.insert(line["id"].to_string(), transfer(&line));
        assert!(other.is_none_or(|other| other == transfer(&line)), "{line}");
    }
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
    let (mut damaged, mut rejoined) = (0, 0);
    let mut by_id = BTreeMap::new();
    for _ in 0..kills {
        // Any server; with the one before it still catching up, a cluster may lack a majority for a while.
        let server = 1 + rng.below(9) as usize;
        let harm = rng.one_in(3) && can_be_spared(&all, server);
        all.kill(server);
        let mut what = String::new();
        if harm {
            // Soon nobody may have the oldest part of the list any more.
            list(&all.place(server), &mut by_id);
            what = damage(&all, server, &mut rng);
            damaged += 1;
        }
        moment(&mut rng, 400);
        all.launch(server);
        if let Some(why) = all.refusal(server) {
            assert!(harm && why.contains("damaged (S2)"), "{what}: {why}");
            std::fs::remove_dir_all(all.place(server)).expect("its directory");
            all.launch_with(server, "--rejoin");
            all.listens(server);
            rejoined += 1;
        }
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
    all.agree();
    (1..=9).for_each(|server| all.kill(server));
    (1..=9).for_each(|server| list(&all.place(server), &mut by_id));
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
        "{kills} kills, {damaged} damaged disks, {rejoined} of them replaced, {} rows, {} committed, {} unknown",
        told.rows,
        told.committed.values().sum::<usize>(),
        told.unknown.values().sum::<usize>()
    );
}
