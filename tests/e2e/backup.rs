//! `bank backup` of a bank under load and of one that was killed; `bank restore`, and what it refuses.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use shardpaxosbank::config::Topology;
use shardpaxosbank::workload::{SetFileOptions, random_set_file};

use crate::common::{Ran, Running, audit, audit_set, bank, data, load, model_of, put, run, temp};
use crate::process::Processes;

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn backup(dirs: &Path, to: &Path) -> Ran {
    run(&["backup", &text(dirs), "--to", &text(to)])
}

fn restore(from: &Path, to: &Path) -> Ran {
    run(&["restore", &text(from), "--to", &text(to)])
}

/// Starts a restored bank, in which all money must be there; what every account holds.
fn serve(dir: &Path, topology: &Topology) -> BTreeMap<u64, u64> {
    let file = put(dir.parent().expect("a parent"), "audit", &audit_set(1, topology));
    let Topology { clusters, servers_per_cluster, accounts, initial_balance } = *topology;
    let numbers =
        [clusters.into(), servers_per_cluster.into(), accounts, initial_balance].map(|n| n.to_string());
    let [clusters, servers, accounts, balance] = &numbers;
    let shape = ["--clusters", clusters, "--servers", servers, "--accounts", accounts, "--balance", balance];
    let dir = text(dir);
    let ran = run(&[&["run", &file, "--json", "--data-dir", &dir], &shape[..]].concat()).with_code(0);
    audit(&ran.sets()[0], topology)
}

/// Each copy is a bank of its own with all its money, though transfers across shards were under way everywhere.
#[test]
fn a_copy_of_a_bank_under_load_is_a_whole_bank() {
    let all = Processes::start(|text| text.replace("[servers]", "[keep]\nsnapshot_mib = 1\n[servers]"));
    let topology = all.topology();
    let stop = Arc::new(AtomicBool::new(false));
    let client = {
        let (dir, config, stop) = (all.dir.path().to_path_buf(), all.path.clone(), stop.clone());
        thread::spawn(move || {
            let options = SetFileOptions { sets: 2, failures: false, ..SetFileOptions::default() };
            for seed in 0.. {
                let file =
                    put(&dir, &format!("load-{seed}"), &random_set_file(seed, &topology, 3000, &options));
                Running::start(bank(&["run", &file, "--config", &config, "--json"])).finish().with_code(0);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        })
    };
    let dir = temp();
    let mut seen = Vec::new();
    for n in 0..5 {
        let (copy, restored) = (dir.path().join(format!("copy-{n}")), dir.path().join(format!("bank-{n}")));
        let made = backup(all.dir.path(), &copy).with_code(0).out;
        let said = restore(&copy, &restored).with_code(0).out;
        assert_eq!(said.matches("equal at").count(), usize::from(topology.clusters), "{said}");
        for line in made.lines() {
            let digest = line.split(", ").nth(1).expect("slot, digest, size");
            assert!(said.contains(digest), "{line}: {said}");
        }
        seen.push(serve(&restored, &topology));
    }
    assert!(seen.windows(2).any(|pair| pair[0] != pair[1]), "nothing went on meanwhile");
    stop.store(true, Ordering::Relaxed);
    client.join().expect("the load is not disturbed");
    all.audit();
}

/// What a client was told is in the copy, also if every server was killed before it knew on disk what is decided.
#[test]
fn a_copy_of_a_bank_that_was_killed_holds_what_was_committed() {
    let mut all = Processes::start(|text| {
        text.replace("accounts = 30\ninitial_balance = 100", "accounts = 3000\ninitial_balance = 10")
    });
    let topology = all.topology();
    let name = data("cross.csv");
    let file = text(&name);
    Running::start(bank(&["run", &file, "--config", &all.path, "--json"])).finish().with_code(0);
    (1..=9).for_each(|server| all.kill(server));
    // A majority of each cluster is enough.
    let kept = temp();
    for server in [1, 3, 4, 5, 8, 9] {
        let name = format!("S{server}");
        std::fs::rename(all.dir.path().join(&name), kept.path().join(name)).expect("it is there");
    }
    let (copy, restored) = (all.dir.path().join("copy"), all.dir.path().join("bank"));
    backup(kept.path(), &copy).with_code(0);
    restore(&copy, &restored).with_code(0);
    let balances = serve(&restored, &topology);
    let model = model_of(&load(&name, &topology), &topology, false);
    let sets = model.as_array().expect("one object for each set");
    let held = sets.iter().filter_map(|set| set["balances"].as_object()).flatten();
    let expected: BTreeMap<_, _> = held.collect();
    assert!(expected.len() >= 6, "{expected:?}");
    for (account, held) in expected {
        let account: u64 = account.parse().expect("a number");
        assert_eq!(Some(balances[&account]), held.as_u64(), "account {account}");
    }
}

#[test]
fn what_is_no_whole_copy_is_refused_by_name() {
    let dir = temp();
    let kept = dir.path().join("bank");
    let file = text(&data("cross.csv"));
    run(&["run", &file, "--json", "--data-dir", &text(&kept)]).with_code(0);
    let copy = dir.path().join("copy");
    backup(&kept, &copy).with_code(0);

    let refused = |ran: Ran, words: &[&str]| {
        let ran = ran.with_code(1);
        assert!(
            words.iter().all(|word| ran.err.contains(word)) && ran.err.lines().count() == 1,
            "{}",
            ran.err
        );
    };
    refused(backup(&kept, &copy), &["copy: already there"]);
    refused(restore(&copy, &kept), &["bank: already there"]);
    refused(backup(&kept.join("S1"), &dir.path().join("a")), &["D1: 1 of 3 servers"]);
    refused(restore(&kept, &dir.path().join("a")), &["backup.json: cannot be read"]);
    let twice = ["backup", &text(&kept), &text(&kept.join("S4")), "--to", &text(&dir.path().join("a"))]
        .map(String::from);
    refused(run(&twice.each_ref().map(String::as_str)), &["are both of S4"]);
    let other = dir.path().join("other");
    run(&["run", &file, "--json", "--data-dir", &text(&other)]).with_code(0);
    let mixed = ["backup", &text(&kept), &text(&other.join("S4")), "--to", &text(&dir.path().join("a"))]
        .map(String::from);
    refused(run(&mixed.each_ref().map(String::as_str)), &["belong to different banks"]);
    assert!(!dir.path().join("a").exists() && !dir.path().join("a.partial").exists());

    // Whatever byte is wrong, and wherever a file ends.
    let target = dir.path().join("b");
    for name in ["backup.json", "shard-1.image", "shard-3.image"] {
        let path = copy.join(name);
        let sound = std::fs::read(&path).expect("a file");
        for n in 0..12 {
            let at = n * sound.len() / 12 + n;
            let mut wrong = sound.clone();
            wrong[at] ^= 1;
            std::fs::write(&path, wrong).expect("a file");
            refused(restore(&copy, &target), &[name]);
            std::fs::write(&path, &sound[..at]).expect("a file");
            refused(restore(&copy, &target), &[name]);
        }
        std::fs::write(&path, sound).expect("a file");
    }
    assert!(!target.exists());
    restore(&copy, &target).with_code(0);
}
