//! `bank wal` and `bank log` on directories that servers left behind, with snapshots in them and without.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use shardpaxosbank::config::Topology;
use shardpaxosbank::workload::{SetFileOptions, random_set_file};

use crate::common::{audit, audit_set, data, put, run, set_text, temp};

/// The committed transactions that `bank log` lists, with the runs of slots that it says it lacks.
pub fn listed(dir: &Path) -> (Vec<Value>, Vec<(u64, u64)>) {
    let ran = run(&["log", &dir.display().to_string(), "--json"]).with_code(0);
    let lines = ran.out.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    let (gaps, lines): (Vec<Value>, Vec<Value>) = lines.partition(|line| line.get("missing_from").is_some());
    let number = |gap: &Value, key: &str| gap[key].as_u64().expect("a slot");
    (lines, gaps.iter().map(|gap| (number(gap, "missing_from"), number(gap, "missing_to"))).collect())
}

pub fn transfer(row: &Value) -> (i64, i64, i64) {
    let number = |key: &str| row[key].as_i64().expect("a number");
    (number("from"), number("to"), number("amount"))
}

fn verify(dir: &Path, code: i32) -> String {
    run(&["wal", "verify", &dir.display().to_string()]).with_code(code).out
}

#[test]
fn a_log_lists_exactly_what_the_clients_were_told() {
    let dir = temp();
    let kept = dir.path().join("bank");
    let file = data("cross.csv").display().to_string();
    let run_it = || {
        let ran = run(&["run", &file, "--json", "--data-dir", &kept.display().to_string()]).with_code(0);
        let rows = ran.sets().into_iter().flat_map(|set| set["results"].as_array().expect("rows").clone());
        let committed = rows.filter(|row| row["outcome"] == "committed").map(|row| transfer(&row));
        committed.collect::<Vec<_>>()
    };
    // What is decided last may not be known as decided on every disk; the second run tells of the first.
    let (mut told, more) = (run_it(), run_it());
    assert!(!told.is_empty());
    let topology = Topology::default();
    let mut all = BTreeMap::new();
    for shard in topology.shards() {
        let mut logs: Vec<_> =
            topology.servers_of(shard).map(|server| listed(&kept.join(server.to_string()))).collect();
        let shortest = logs.iter().map(|(lines, _)| lines.len()).min().expect("three servers");
        for (lines, gaps) in &mut logs {
            assert_eq!(*gaps, []);
            all.extend(lines.iter().map(|line| (line["id"].to_string(), transfer(line))));
            lines.truncate(shortest);
        }
        assert!(logs.iter().all(|log| *log == logs[0]), "{shard}");
    }
    let mut listed: Vec<_> = all.into_values().collect();
    listed.sort_unstable();
    for transfer in &told {
        let at = listed.binary_search(transfer).unwrap_or_else(|_| panic!("{transfer:?} is not listed"));
        listed.remove(at);
    }
    told.extend(more);
    assert!(listed.iter().all(|transfer| told.contains(transfer)), "nobody was told of {listed:?}");
    assert_eq!(verify(&kept, 0).lines().filter(|line| line.ends_with(": sound")).count(), 9);

    // One wrong byte has a name, and everything stays as it is.
    let segment = kept.join("S5/wal-00000001.seg");
    let mut bytes = std::fs::read(&segment).expect("a segment");
    bytes[4096 + 20] ^= 1;
    std::fs::write(&segment, &bytes).expect("a segment");
    let text = verify(&kept, 1);
    assert!(text.contains("S5/wal-00000001.seg at offset 4096: bad checksum of a record header"), "{text}");
    assert_eq!(std::fs::read(&segment).expect("a segment"), bytes);
    let dumped = run(&["wal", "dump", &kept.join("S5").display().to_string(), "--json"]).with_code(1);
    assert!(dumped.err.contains("at offset 4096") && dumped.out.lines().count() > 2);
    // Nor is a server passed over of which it is not known whose it is.
    std::fs::remove_file(kept.join("S8/identity")).expect("remove");
    for dir in [kept.clone(), kept.join("S8")] {
        let text = verify(&dir, 1);
        assert!(text.contains("S8/identity: missing, but there is a log"), "{text}");
    }
    let wrong = run(&["wal", "verify", &dir.path().join("nowhere").display().to_string()]).with_code(2);
    assert!(wrong.err.contains("nowhere: cannot be read"), "{}", wrong.err);
}

/// What `bank wal dump` prints for these arguments behind the directory, line by line.
fn dumped(dir: &Path, arguments: &[&str]) -> Vec<String> {
    let place = dir.display().to_string();
    let ran = run(&[&["wal", "dump", &place], arguments].concat()).with_code(0);
    assert_eq!(ran.err, "");
    ran.out.lines().map(String::from).collect()
}

#[test]
fn a_dump_of_some_slots_shows_those_and_no_others() {
    let dir = temp();
    let kept = dir.path().join("bank");
    let file = data("cross.csv").display().to_string();
    run(&["run", &file, "--json", "--data-dir", &kept.display().to_string()]).with_code(0);
    let slot = |line: &String| {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        record["slot"].as_u64().expect("a slot")
    };
    for dir in [kept.join("S1"), kept] {
        let (text, json) = (dumped(&dir, &[]), dumped(&dir, &["--json"]));
        let slots: Vec<u64> = json.iter().map(slot).collect();
        assert_eq!(text.len(), json.len(), "a line for each record");
        let last = *slots.iter().max().expect("a log");
        assert!(last > 7 && slots.contains(&0), "a promise is about no slot: {slots:?}");
        for (argument, from, to) in [
            ("3..5".to_string(), 3, 5),
            ("4".to_string(), 4, 4),
            (format!("1..{}", u64::MAX), 1, u64::MAX),
            (format!("{last}..{}", last + 1000), last, last + 1000),
            (format!("{}", last + 1), last + 1, last + 1),
        ] {
            let wanted = |lines: &[String]| -> Vec<String> {
                let some = lines.iter().zip(&slots).filter(|(_, slot)| (from..=to).contains(*slot));
                some.map(|(line, _)| line.clone()).collect()
            };
            let some_text = dumped(&dir, &["--slot", &argument]);
            let some_json = dumped(&dir, &["--json", "--slot", &argument]);
            assert_eq!((&some_text, &some_json), (&wanted(&text), &wanted(&json)), "{argument}");
            assert_eq!(some_json.is_empty(), from > last, "{argument}");
            assert!(some_json.iter().map(slot).all(|slot| (from..=to).contains(&slot)), "{argument}");
            // A reader is told the slot as well.
            let told = |line: &String| line.split_once(" slot ")?.1.split(' ').next()?.parse::<u64>().ok();
            assert!(some_text.iter().filter_map(told).all(|slot| (from..=to).contains(&slot)), "{argument}");
        }
        let place = dir.display().to_string();
        for wrong in ["5..3", "x", "3..", "..3", "-1"] {
            let ran = run(&["wal", "dump", &place, &format!("--slot={wrong}")]).with_code(2);
            assert!(ran.out.is_empty() && ran.err.contains("5..9, or 5"), "{ran:?}");
        }
    }
}

/// Snapshots every MiB and no log that is not needed: the money is all there after each restart, what is kept is bounded,
/// and what is listed of what is left is the same on all servers.
#[test]
fn a_bank_goes_on_from_its_snapshots() {
    let topology = Topology { clusters: 1, servers_per_cluster: 3, accounts: 400, initial_balance: 1000 };
    let flags = ["--clusters", "1", "--accounts", "400", "--balance", "1000", "--json"];
    let keep = ["--snapshot-mib", "1", "--audit-mib", "0"];
    let dir = temp();
    let kept = dir.path().join("bank");
    let kept_text = kept.display().to_string();
    let options = SetFileOptions { sets: 1, reads: false, failures: false, ..SetFileOptions::default() };
    let mut before = None;
    for round in 0..3 {
        let rows = random_set_file(round, &topology, 100_000, &options);
        let file = put(dir.path(), "random", &rows);
        run(&[&["run", &file, "--data-dir", &kept_text][..], &flags, &keep].concat()).with_code(0);
        let file = put(dir.path(), "audit", &(set_text(1, &topology, &[]) + &audit_set(2, &topology)));
        let ran = run(&[&["run", &file, "--data-dir", &kept_text][..], &flags, &keep].concat()).with_code(0);
        let balances = audit(ran.sets().last().expect("a set"), &topology);
        assert_eq!(balances.values().sum::<u64>(), 400 * 1000);
        assert_ne!(before.replace(balances.clone()), Some(balances), "something happened");

        let text = verify(&kept, 0);
        let expected = if round == 0 { "snapshot" } else { "snapshots of slots" };
        assert_eq!(
            text.lines().filter(|l| l.contains(expected) && !l.contains("no snap")).count(),
            3,
            "{text}"
        );
        let mut logs = Vec::new();
        for server in topology.servers() {
            let place = kept.join(server.to_string());
            let segments = std::fs::read_dir(&place).expect("a directory").filter(|entry| {
                entry.as_ref().expect("an entry").file_name().to_string_lossy().starts_with("wal-")
            });
            assert!(segments.count() <= 4, "two times a MiB, and what is made ahead");
            logs.push(listed(&place));
        }
        let begins = logs.iter().filter_map(|(_, gaps)| Some(gaps.first()?.1)).max().unwrap_or(0);
        assert!(round < 2 || begins > 0, "the oldest segment is still there");
        let slot = |line: &Value| line["slot"].as_u64().expect("a slot");
        let ends = logs.iter().filter_map(|(lines, _)| lines.last().map(slot)).min().expect("three servers");
        for (lines, gaps) in &mut logs {
            assert!(gaps.iter().all(|gap| gap.0 == 1) && gaps.len() <= 1, "{gaps:?}");
            lines.retain(|line| (begins + 1..=ends).contains(&slot(line)));
        }
        assert!(logs[0].0.len() > 1000 && logs.iter().all(|log| log.0 == logs[0].0));
    }
}
