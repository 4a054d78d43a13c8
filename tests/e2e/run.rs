//! `bank run --json` on set files: every outcome and every balance is what running the rows one by one would give.

use shardpaxosbank::config::Topology;
use shardpaxosbank::testset::parse;
use shardpaxosbank::workload::{SetFileOptions, random_set_file};

use crate::common::{
    Running, agreed_balances, assert_as_model, audit, audit_set, bank, data, load, model_of, put, run, temp,
};

fn as_the_file_beside_it_says(name: &str) {
    let path = data(name);
    let ran = run(&["run", &path.display().to_string(), "--json"]).with_code(0);
    let expected = std::fs::read_to_string(path.with_extension("expected.json")).expect(name);
    let expected = serde_json::from_str(&expected).expect(name);
    assert_as_model(name, &ran.sets(), &expected, &Topology::default());
    let warned = if name == "abort-reasons.csv" { 1 } else { 0 };
    assert_eq!(ran.err.lines().filter(|l| l.starts_with("warning: ")).count(), warned, "{}", ran.err);
    let rest: Vec<&str> = ran.err.lines().filter(|l| !l.starts_with("warning: ")).collect();
    assert_eq!(rest.len(), 1, "only the directory is told: {}", ran.err);
    let dir = rest[0].strip_prefix("data directory: ").and_then(|l| l.split(" (").next()).expect("its place");
    assert!(!std::path::Path::new(dir).exists(), "{dir} is still there");
}

/// One test for each file, so that a failure names it.
macro_rules! files {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { as_the_file_beside_it_says($name); })*

        #[test]
        fn no_file_is_left_out() {
            let is_set = |n: &String| n.ends_with(".csv") || n.ends_with(".tsv");
            let entries = std::fs::read_dir(data("")).expect("data");
            let names = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned());
            let mut names: Vec<String> = names.filter(is_set).collect();
            names.sort();
            assert_eq!(names, [$($name),*]);
        }
    };
}

files! {
    abort_reasons: "abort-reasons.csv",
    contention: "contention.csv",
    cross: "cross.csv",
    demo: "demo.csv",
    failures: "failures.csv",
    intra: "intra.csv",
    recovery: "recovery.csv",
    shape_contacts: "shape-contacts.csv",
    shape_header: "shape-header.csv",
    shape_tabs: "shape-tabs.tsv",
}

/// A failing seed is repeated with `bank run` on the file that the message names the parameters of.
fn as_the_model(seed: u64, topology: Topology, rows: usize, options: SetFileOptions, flags: &[&str]) {
    let context = format!("random_set_file({seed}, {topology:?}, {rows}, {options:?}) with {flags:?}");
    let text = random_set_file(seed, &topology, rows, &options);
    let dir = temp();
    let file = put(dir.path(), "random", &text);
    let (clusters, servers) = (topology.clusters.to_string(), topology.servers_per_cluster.to_string());
    let (accounts, balance) = (topology.accounts.to_string(), topology.initial_balance.to_string());
    let shape =
        ["--clusters", &clusters, "--servers", &servers, "--accounts", &accounts, "--balance", &balance];
    let ran = run(&[&["run", &file, "--json"], &shape[..], flags].concat());
    assert_eq!(ran.code, Some(0), "{context}: {ran:?}");
    let parsed = parse("random", text.as_bytes(), &topology).unwrap_or_else(|e| panic!("{context}: {e}"));
    let reset = flags.contains(&"--reset-each-set");
    assert_as_model(&context, &ran.sets(), &model_of(&parsed, &topology, reset), &topology);
}

const THREE: Topology = Topology { clusters: 3, servers_per_cluster: 3, accounts: 3000, initial_balance: 10 };
const HOT: SetFileOptions = SetFileOptions {
    sets: 3,
    reads: true,
    failures: false,
    invalid: true,
    hot_accounts: Some(4),
    max_amount: 10,
};

#[test]
fn random_with_failures() {
    as_the_model(1, THREE, 60, SetFileOptions::default(), &[]);
}

#[test]
fn random_on_few_accounts() {
    as_the_model(2, THREE, 600, HOT, &[]);
}

#[test]
fn random_one_at_a_time() {
    as_the_model(3, THREE, 150, HOT, &["--in-flight", "1"]);
}

#[test]
fn random_each_set_afresh() {
    as_the_model(4, THREE, 60, HOT, &["--reset-each-set"]);
}

#[test]
fn random_on_one_server() {
    let topology = Topology { clusters: 1, servers_per_cluster: 1, accounts: 20, initial_balance: 7 };
    as_the_model(5, topology, 200, SetFileOptions { hot_accounts: Some(20), ..HOT }, &[]);
}

#[test]
fn random_on_one_cluster() {
    let topology = Topology { clusters: 1, servers_per_cluster: 3, accounts: 50, initial_balance: 10 };
    as_the_model(6, topology, 60, SetFileOptions::default(), &[]);
}

#[test]
fn random_on_clusters_of_five() {
    let topology = Topology { clusters: 2, servers_per_cluster: 5, accounts: 101, initial_balance: 100 };
    as_the_model(7, topology, 60, SetFileOptions { max_amount: 60, ..SetFileOptions::default() }, &[]);
}

#[test]
fn random_on_four_clusters() {
    let topology = Topology { clusters: 4, servers_per_cluster: 3, accounts: 4002, initial_balance: 10 };
    as_the_model(8, topology, 300, HOT, &["--in-flight", "16"]);
}

/// Nothing is held back: rows may meet each other's locks and come in any order, but no unit is made or lost.
#[test]
fn a_race_aborts_but_never_loses_money() {
    let topology = Topology::default();
    let file = data("contention.csv");
    let path = file.display().to_string();
    for _ in 0..3 {
        let ran = run(&["run", &path, "--json", "--race"]).with_code(0);
        let mut moved = std::collections::BTreeMap::new();
        for set in ran.sets() {
            for row in set["results"].as_array().into_iter().flatten().filter(|r| r["kind"] == "transfer") {
                let reason = row.get("reason").and_then(|r| r.as_str()).unwrap_or("");
                assert!(["", "lock-contention", "insufficient-balance"].contains(&reason), "{row}");
                assert!(["committed", "aborted"].contains(&row["outcome"].as_str().unwrap_or("")), "{row}");
                if row["outcome"] == "committed" {
                    let amount = row["amount"].as_i64().expect("valid under the schema");
                    *moved.entry(row["from"].as_u64().expect("valid")).or_insert(10) -= amount;
                    *moved.entry(row["to"].as_u64().expect("valid")).or_insert(10) += amount;
                }
            }
            for (account, balance) in agreed_balances(&set) {
                let expected = moved.get(&account).copied().unwrap_or(10);
                assert_eq!(balance as i64, expected, "account {account}: {set}");
            }
        }
        let number_of_sets = load(&file, &topology).sets.len();
        assert_eq!(ran.sets().len(), number_of_sets);
    }
}

/// Contention is real here: with hundreds of rows at once on a dozen accounts some must meet a lock.
#[test]
fn a_large_race_meets_locks() {
    let topology = Topology { accounts: 30, initial_balance: 100, ..Topology::default() };
    let options = SetFileOptions { reads: false, invalid: false, sets: 1, ..HOT };
    let text = random_set_file(9, &topology, 500, &options);
    let dir = temp();
    let file = put(dir.path(), "race", &text);
    let kept = dir.path().join("kept").display().to_string();
    let flags = ["--accounts", "30", "--balance", "100", "--json", "--data-dir", &kept];
    let ran = run(&[&["run", &file, "--race"], &flags[..]].concat()).with_code(0);
    let aborted = &ran.sets()[0]["performance"]["aborted"];
    assert!(aborted["lock-contention"].as_u64().unwrap_or(0) > 0, "{aborted}");
    let file = put(dir.path(), "audit", &audit_set(1, &topology));
    let ran = run(&[&["run", &file], &flags[..]].concat()).with_code(0);
    audit(&ran.sets()[0], &topology);
}

/// Without a terminal all sets run and the tables follow each, on standard output.
#[test]
fn tables_without_a_terminal() {
    let ran = run(&["run", &data("demo.csv").display().to_string()]).with_code(0);
    for word in ["committed", "insufficient-balance", "no-quorum", "p99", "S9"] {
        assert!(ran.out.contains(word), "no {word:?} in\n{}", ran.out);
    }
}

#[test]
fn an_interrupt_stops_cleanly() {
    let dir = temp();
    let sets: String =
        (1..=400).map(|n| format!("{n},\"(1, 2, 1)\",\"[S1, S2, S4, S5, S7, S8]\"\n")).collect();
    let file = put(dir.path(), "long.csv", &sets);
    let mut command = bank(&["run", &file, "--json"]);
    command.env("TMPDIR", dir.path());
    let mut running = Running::start(command);
    assert!(running.line().is_some(), "the first set has run");
    running.interrupt();
    let ran = running.finish().with_code(130);
    assert!(ran.out.lines().count() < 399, "it was not interrupted");
    let left = std::fs::read_dir(dir.path()).expect("a directory").count();
    assert_eq!(left, 1, "only the set file is left of it");
}
