//! kill -9 of any server at any moment, under load, again and again, and damage to the disks of some; what the clients were
//! told is what the logs hold.
//!
//! `make kills KILLS=500` takes some ten minutes; without `TORTURE_KILLS`, a few kills.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use shardpaxosbank::config::Topology;
use shardpaxosbank::report::Role;
use shardpaxosbank::types::NodeId;
use shardpaxosbank::workload::{SetFileOptions, SplitMix64, random_set_file};

use crate::common::{Ran, Running, bank, eventually, numbered, put, run, set_text};
use crate::harm::Tally;
use crate::inspect::transfer;
use crate::process::Processes;

/// Rows of a file until every server has a snapshot, and afterwards.
const MANY: usize = 40_000;
const USUAL: usize = 3000;
/// So many kills must show all damage.
const LONG: u64 = 100;

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

/// Runs random files with so many rows on the servers, until there shall be none.
fn load(dir: std::path::PathBuf, config: String, topology: Topology, rows: Arc<AtomicUsize>) -> Told {
    let options = SetFileOptions { sets: 2, failures: false, ..SetFileOptions::default() };
    let mut told = Told::default();
    for seed in 0.. {
        let rows = rows.load(Ordering::Relaxed);
        if rows == 0 {
            return told;
        }
        let file = put(&dir, &format!("load-{seed}"), &random_set_file(seed, &topology, rows, &options));
        let ran = Running::start(bank(&["run", &file, "--config", &config, "--json"])).finish();
        // 3: some outcome stayed unknown.
        assert!(matches!(ran.code, Some(0 | 3)), "{}", ran.err);
        ran.sets().iter().for_each(|set| told.take(set));
        std::fs::remove_file(file).expect("it was just written");
    }
    told
}

/// Whether its cluster can do without its disk: what that lost, a majority has.
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

/// Takes a server's directory away; the one that it gets next is sound.
fn replace(
    all: &Processes,
    server: usize,
    damaged: &mut BTreeSet<usize>,
    said_before: &mut BTreeMap<usize, BTreeSet<String>>,
) {
    std::fs::remove_dir_all(all.place(server)).expect("its directory");
    damaged.remove(&server);
    said_before.remove(&server);
}

#[test]
fn servers_that_are_killed_again_and_again_lose_and_repeat_nothing() {
    let kills: u64 = std::env::var("TORTURE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let mut all = Processes::start(|text| {
        let text = text.replace("initial_balance = 100", "initial_balance = 100000");
        text.replace("[servers]", "[keep]\nsnapshot_mib = 1\n[servers]")
    });
    let topology = all.topology();
    let rows = Arc::new(AtomicUsize::new(MANY));
    let client = {
        let (dir, config, rows) = (all.dir.path().to_path_buf(), all.path.clone(), rows.clone());
        thread::spawn(move || load(dir, config, topology, rows))
    };
    for server in 1..=9 {
        let has_one = || !numbered(&all.place(server), "snapshot-", ".snap").is_empty();
        eventually("a snapshot", || has_one().then_some(()));
    }
    rows.store(USUAL, Ordering::Relaxed);
    let mut rng = SplitMix64::new(kills);
    let (mut tally, mut harmed, mut rejoined, mut replaced) = (Tally::default(), 0, 0, 0);
    // Servers with damage on their disks, at most one of each cluster: the lists of the others go on. What more of it
    // does is the simulator's to find out.
    let mut damaged = BTreeSet::new();
    let mut said_before: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    let mut by_id = BTreeMap::new();
    for _ in 0..kills {
        // Any server, damaged ones more often; with the one before it still catching up, a cluster may lack a majority for
        // a while.
        let bad: Vec<usize> = damaged.iter().copied().filter(|_| rng.one_in(3)).collect();
        let server = bad.first().copied().unwrap_or(1 + rng.below(9) as usize);
        let shard = topology.shard_of_server(NodeId(server as u16));
        let mut others = topology.servers_of(shard).map(|s| usize::from(s.0)).filter(|s| *s != server);
        let spared = others.all(|other| !damaged.contains(&other)) && can_be_spared(&all, server);
        all.kill(server);
        let mut harms = Vec::new();
        let mut flag = "--format";
        if spared && damaged.contains(&server) && rng.one_in(2) {
            // Its operator has seen enough of this disk.
            flag = "--rejoin";
            replaced += 1;
        } else if spared && rng.one_in(2) {
            // Soon nobody may have the oldest part of the list any more.
            if damaged.insert(server) {
                list(&all.place(server), &mut by_id);
            }
            harms = tally.harm(&all.place(server), &mut rng);
            harmed += 1;
        }
        if flag == "--rejoin" {
            replace(&all, server, &mut damaged, &mut said_before);
        }
        moment(&mut rng, 400);
        all.launch_with(server, flag);
        let before = said_before.entry(server).or_default();
        if let Some(why) = all.refusal(server) {
            assert!(damaged.contains(&server) && why.contains("damaged (S2)"), "{harms:?}: {why}");
            tally.heard(&harms, before, &[why]);
            replace(&all, server, &mut damaged, &mut said_before);
            all.launch_with(server, "--rejoin");
            all.listens(server);
            rejoined += 1;
        } else if !harms.is_empty() {
            let said = all.status(server).expect("it listens").metrics.damage;
            tally.heard(&harms, before, &said);
            before.extend(said);
        }
        moment(&mut rng, 800);
        assert!(!client.is_finished(), "the load has ended");
    }
    rows.store(0, Ordering::Relaxed);
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
        "{kills} kills, damage {harmed} times, {rejoined} servers refused it and had to rejoin, {replaced} disks replaced \
         later, {} rows, {} committed, {} unknown\n{}",
        told.rows,
        told.committed.values().sum::<usize>(),
        told.unknown.values().sum::<usize>(),
        tally.table()
    );
    let never = tally.never_met();
    assert!(kills < LONG || never.is_empty(), "no server met {never:?}");
}
