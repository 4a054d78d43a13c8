//! What must come of set files: the sequential model, the expected outcomes in `data/`, and the schema of the output.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shardpaxosbank::config::Topology;
use shardpaxosbank::testset::model::{self, Outcome};
use shardpaxosbank::testset::{SetFile, parse};
use shardpaxosbank::types::AccountId;

/// Outcomes in short: `+` committed, a balance, `.` a change of servers, else the reason.
fn short(outcomes: &[Outcome]) -> String {
    let words: Vec<String> = outcomes
        .iter()
        .map(|o| match o {
            Outcome::Committed => "+".to_string(),
            Outcome::Aborted(reason) => reason.to_string(),
            Outcome::Balance(balance) => balance.to_string(),
            Outcome::Done => ".".to_string(),
        })
        .collect();
    words.join(" ")
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

fn load(name: &str) -> SetFile {
    let path = data().join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    parse(name, &bytes, &Topology::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn outcomes(name: &str) -> Vec<model::SetOutcome> {
    model::run(&Topology::default(), &load(name), false)
}

fn balances(pairs: &[(u64, u64)]) -> BTreeMap<AccountId, u64> {
    pairs.iter().map(|(account, balance)| (AccountId(*account), *balance)).collect()
}

/// Worked out by hand from the file, not taken from the model.
#[test]
fn intra_by_hand() {
    let sets = outcomes("intra.csv");
    assert_eq!(short(&sets[0].rows), "+ + +");
    assert_eq!(
        sets[0].balances,
        balances(&[(100, 2), (501, 18), (1001, 8), (1650, 12), (2150, 17), (2800, 3)])
    );
    // 501: 18 - 13 = 5. 299: 10 + 13 - 20 = 3. 1650: 12 - 12. 100 has 2: 3 is too much, 2 is not.
    assert_eq!(short(&sets[1].rows), "+ + + insufficient-balance +");
    assert_eq!(
        sets[1].balances,
        balances(&[(1, 30), (2, 12), (100, 0), (299, 3), (501, 5), (1001, 20), (1650, 0)])
    );
    // 1: 30 - 30 + 39. 100: 0 + 30 - 29. 1000: 10 + 29 - 39.
    assert_eq!(short(&sets[2].rows), "+ + + + insufficient-balance");
    assert_eq!(
        sets[2].balances,
        balances(&[(1, 39), (100, 1), (1000, 0), (1650, 0), (2000, 10), (2150, 0), (2800, 20)])
    );
}

/// Worked out by hand from the file, not taken from the model.
#[test]
fn failures_by_hand() {
    let rows: Vec<String> = outcomes("failures.csv").iter().map(|s| short(&s.rows)).collect();
    assert_eq!(
        rows,
        [
            "+ . + . no-quorum no-quorum no-quorum +",
            "8 12 no-quorum + no-quorum 11",
            "+ . . . + no-quorum . + 5",
            "no-quorum no-quorum no-quorum",
            "5 12",
        ]
    );
}

/// Worked out by hand from the file, not taken from the model.
#[test]
fn abort_reasons_by_hand() {
    let rows: Vec<String> = outcomes("abort-reasons.csv").iter().map(|s| short(&s.rows)).collect();
    assert_eq!(
        rows[0],
        "invalid-amount invalid-amount same-account unknown-account unknown-account insufficient-balance \
         insufficient-balance + unknown-account unknown-account"
    );
    assert_eq!(
        rows[1],
        "invalid-amount same-account invalid-amount unknown-account insufficient-balance invalid-amount"
    );
    assert_eq!(
        rows[2],
        "invalid-amount same-account unknown-account no-quorum no-quorum no-quorum no-quorum unknown-account"
    );
}

#[test]
fn every_data_file_has_its_expected_outcomes() {
    let mut seen = 0;
    for entry in std::fs::read_dir(data()).unwrap() {
        let path = entry.unwrap().path();
        let extension = path.extension().and_then(|e| e.to_str());
        if !matches!(extension, Some("csv" | "tsv")) {
            continue;
        }
        seen += 1;
        let name = path.file_name().and_then(|n| n.to_str()).unwrap();
        let expected = std::fs::read_to_string(path.with_extension("expected.json")).expect(name);
        let expected: Value = serde_json::from_str(&expected).expect(name);
        let file = load(name);
        let actual = model::to_json(&file, &model::run(&Topology::default(), &file, false));
        let count = expected.as_array().map_or(0, Vec::len);
        assert_eq!(count, file.sets.len(), "{name}: sets");
        for (i, set) in file.sets.iter().enumerate() {
            assert_eq!(actual[i], expected[i], "{name}, the set that begins in line {}", set.line);
        }
    }
    assert_eq!(seen, 10, "set files in data/");
}

#[test]
fn each_set_can_start_afresh() {
    let text = "1,\"(1, 2, 10)\",\"[S1,S2]\"\n2,\"(1, 2, 10)\",\"[S1,S2]\"\n";
    let file = parse("t.csv", text.as_bytes(), &Topology::default()).unwrap();
    let topology = Topology::default();
    let carried = model::run(&topology, &file, false);
    assert_eq!(short(&carried[1].rows), "insufficient-balance");
    let fresh = model::run(&topology, &file, true);
    assert_eq!(short(&fresh[1].rows), "+");
    assert_eq!(fresh[1].balances, balances(&[(1, 0), (2, 20)]));
}

// The schema of `bank run --json`.

fn example_output() -> Value {
    json!({
        "set": 1,
        "live": ["S1", "S2", "S3", "S4"],
        "results": [
            {"n": 1, "kind": "transfer", "from": 100, "to": 501, "amount": 8, "scope": "intra-shard",
             "outcome": "committed", "latency_us": 412},
            {"n": 2, "kind": "transfer", "from": 100, "to": 1501, "amount": 8, "scope": "cross-shard",
             "outcome": "aborted", "reason": "insufficient-balance"},
            {"n": 3, "kind": "transfer", "from": 0, "to": 1501, "amount": -8, "outcome": "aborted",
             "reason": "invalid-amount"},
            {"n": 4, "kind": "transfer", "from": 1, "to": 2, "amount": 1, "scope": "intra-shard",
             "outcome": "unknown"},
            {"n": 5, "kind": "balance", "account": 1002, "outcome": "ok", "balance": 11, "latency_us": 90},
            {"n": 6, "kind": "balance", "account": 2002, "outcome": "aborted", "reason": "no-quorum"},
            {"n": 7, "kind": "fail", "server": "S2"},
            {"n": 8, "kind": "recover", "server": "S2"}
        ],
        "resolved": [
            {"set": 1, "n": 4, "kind": "transfer", "from": 1, "to": 2, "amount": 1, "scope": "intra-shard",
             "outcome": "committed"}
        ],
        "modified": {"100": {"S1": 2, "S2": 2, "S3": null}},
        "performance": {
            "committed": 1,
            "aborted": {"insufficient-balance": 1, "invalid-amount": 1},
            "throughput_tps": 1234.5,
            "latency_us": {"p50": 1, "p95": 2, "p99": 3, "max": 4},
            "held_back_us": {"p50": 0, "p95": 0, "p99": 0, "max": 0},
            "peak_in_flight": 3,
            "syncs": 40
        }
    })
}

#[test]
fn schema_accepts_the_example_and_refuses_doctored_ones() {
    let text = std::fs::read_to_string(data().join("run-output.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let example = example_output();
    let errors: Vec<String> = validator.iter_errors(&example).map(|e| e.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());

    let doctored: &[(&str, Value)] = &[
        ("/set", json!("1")),
        ("/live/0", json!("n1")),
        ("/live/1", json!("S1")),
        ("/results/0/outcome", json!("ok")),
        ("/results/0/amount", json!(1.5)),
        ("/results/0/scope", json!("local")),
        ("/results/0/n", json!(0)),
        ("/results/0/reason", json!("no-quorum")),
        ("/results/0/extra", json!(1)),
        ("/results/1/reason", Value::Null),
        ("/results/1/outcome", json!("committed")),
        ("/results/4/outcome", json!("aborted")),
        ("/results/5/outcome", json!("unknown")),
        ("/results/6/kind", json!("crash")),
        ("/resolved/0/outcome", json!("unknown")),
        ("/modified/100/S3", json!(-1)),
        ("/modified/x", json!({"S1": 1})),
        ("/performance/aborted/bored", json!(1)),
        ("/performance/latency_us/p50", json!(null)),
        ("/more", json!(1)),
    ];
    for (place, value) in doctored {
        let mut output = example.clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        match output.pointer_mut(parent).unwrap() {
            Value::Object(map) => drop(map.insert(key.to_string(), value.clone())),
            Value::Array(items) => items[key.parse::<usize>().unwrap()] = value.clone(),
            other => panic!("{parent} is {other}"),
        }
        assert!(!validator.is_valid(&output), "{place} = {value} passes");
    }
    for key in ["set", "live", "results", "resolved", "modified", "performance"] {
        let mut output = example.clone();
        output.as_object_mut().unwrap().remove(key);
        assert!(!validator.is_valid(&output), "{key} is optional");
    }
}
