//! What a run shows: percentiles, the JSON against its schema, tables, and the prompt's language.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use shardpaxosbank::config::Topology;
use shardpaxosbank::metrics::{Latencies, ServerMetrics, Summary};
use shardpaxosbank::report::json::Json;
use shardpaxosbank::report::prompt::{self, PromptCommand, completions};
use shardpaxosbank::report::tables::{self, Rows};
use shardpaxosbank::report::*;
use shardpaxosbank::testset::Command;
use shardpaxosbank::types::*;

fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

fn transfer(from: u64, to: u64, amount: i64) -> Transfer {
    Transfer { from: AccountId(from), to: AccountId(to), amount }
}

/// A row of the default topology. `latency_us` 0 means that nobody replied.
fn row(n: usize, command: Command, outcome: RowOutcome, latency_us: u64) -> RowReport {
    let scope = match &command {
        Command::Transfer(t) => Scope::of(t, &Topology::default()),
        _ => None,
    };
    RowReport { n, command, scope, outcome, latency: (latency_us > 0).then(|| us(latency_us)) }
}

fn server(number: u16, up: ServerState) -> ServerRow {
    ServerRow {
        server: NodeId(number),
        up,
        role: if number == 1 { Role::Leader } else { Role::Follower },
        ballot: Ballot::new(3, NodeId(1)),
        decided: Slot(17),
        applied: Slot(16),
        disk_full: false,
        metrics: ServerMetrics::default(),
    }
}

/// Every kind of row and outcome; S2 is failed, S3 has crashed.
fn to_json(report: &SetReport) -> serde_json::Value {
    serde_json::to_value(Json(report)).expect("a report has a JSON form")
}

fn report() -> SetReport {
    use RowOutcome::*;
    let results = vec![
        row(1, Command::Transfer(transfer(100, 501, 8)), Committed, 412),
        row(2, Command::Transfer(transfer(100, 1501, 30)), Aborted(Reason::InsufficientBalance), 1_500),
        row(3, Command::Transfer(transfer(1, 9000, 1)), Aborted(Reason::UnknownAccount), 300),
        row(4, Command::Transfer(transfer(2, 2500, -5)), Unknown, 0),
        row(5, Command::Balance(AccountId(1002)), Balance(11), 220),
        row(6, Command::Balance(AccountId(7)), Aborted(Reason::NoQuorum), 0),
        row(7, Command::Fail(NodeId(2)), Done, 0),
        row(8, Command::Recover(NodeId(2)), Done, 0),
    ];
    let mut performance = Performance::default();
    results.iter().for_each(|row| performance.count(row));
    // The coordinator's share: latencies as they happened.
    for row in results.iter() {
        let Some(latency) = row.latency else { continue };
        performance.latency.record(latency);
        match row.scope {
            Some(Scope::IntraShard) => performance.intra.latency.record(latency),
            Some(Scope::CrossShard) => performance.cross.latency.record(latency),
            None => {}
        }
    }
    performance.set_span(Duration::from_millis(12));
    performance.syncs = 40;
    performance.peak_in_flight = 5;
    performance.held_back.record(us(77));
    performance.servers = vec![
        server(1, ServerState::Live),
        server(2, ServerState::Failed),
        server(3, ServerState::Crashed),
        server(4, ServerState::Live),
    ];
    performance.servers[0].metrics = ServerMetrics {
        messages_in: 120,
        bytes_out: 12_345,
        syncs: 9,
        led_transactions: 50,
        led_span: Duration::from_millis(100),
        ..ServerMetrics::default()
    };
    performance.servers[0].metrics.led_latency.record(us(333));
    let on = |servers: [u16; 3], balances: [Option<u64>; 3]| -> BTreeMap<NodeId, Option<u64>> {
        servers.map(NodeId).into_iter().zip(balances).collect()
    };
    SetReport {
        set: 3,
        live: [1, 2, 3, 4].map(NodeId).to_vec(),
        results,
        resolved: vec![
            Resolved {
                set: 2,
                n: 9,
                transfer: transfer(5, 6, 1),
                scope: Some(Scope::IntraShard),
                outcome: Ok(()),
            },
            Resolved {
                set: 2,
                n: 10,
                transfer: transfer(5, 1500, 1),
                scope: None,
                outcome: Err(Reason::NoQuorum),
            },
        ],
        modified: BTreeMap::from([
            (AccountId(100), on([1, 2, 3], [Some(2), Some(10), None])),
            (AccountId(501), on([1, 2, 3], [Some(18), Some(11), None])),
            (AccountId(1501), on([4, 5, 6], [Some(10); 3])),
        ]),
        performance,
    }
}

fn empty_report() -> SetReport {
    SetReport {
        set: 0,
        live: vec![],
        results: vec![],
        resolved: vec![],
        modified: BTreeMap::new(),
        performance: Performance::default(),
    }
}

fn long_report(rows: usize) -> SetReport {
    let results = (1..=rows)
        .map(|n| row(n, Command::Transfer(transfer(n as u64, 1, 1)), RowOutcome::Committed, 100))
        .collect();
    SetReport { results, ..empty_report() }
}

// ---- Latencies -----------------------------------------------------------------------------------------------------

#[test]
fn percentiles_are_right_to_three_digits() {
    let (mut low, mut high) = (Latencies::default(), Latencies::default());
    assert_eq!(low.summary(), Summary::default());
    for value in 1..=10_000 {
        if value <= 5_000 { low.record(us(value)) } else { high.record(us(value)) }
    }
    low.merge(&high);
    low.merge(&Latencies::default());
    let summary = low.summary();
    assert_eq!(summary.count, 10_000);
    for (found, exact) in
        [(summary.p50, 5_000), (summary.p95, 9_500), (summary.p99, 9_900), (summary.max, 10_000)]
    {
        assert!(found >= exact && found - exact <= exact / 1000, "{found} for {exact}");
    }
    let mut merged = Latencies::default();
    merged.merge(&low);
    assert_eq!(merged.summary(), summary);
}

#[test]
fn latencies_saturate_at_both_ends() {
    let mut latencies = Latencies::default();
    latencies.record(Duration::ZERO);
    assert_eq!(latencies.summary(), Summary { count: 1, p50: 1, p95: 1, p99: 1, max: 1 });
    latencies.record(Duration::MAX);
    latencies.record(Duration::from_secs(3601));
    let hour = 3_600_000_000;
    assert_eq!(latencies.summary(), Summary { count: 3, p50: hour, p95: hour, p99: hour, max: hour });
}

#[test]
fn rates_need_a_span() {
    let mut metrics = ServerMetrics { led_transactions: 50, ..ServerMetrics::default() };
    assert_eq!(metrics.led_throughput_tps(), 0.0);
    metrics.led_span = Duration::from_millis(500);
    assert_eq!(metrics.led_throughput_tps(), 100.0);
}

// ---- Counting ------------------------------------------------------------------------------------------------------

#[test]
fn transfers_are_counted_by_outcome_and_scope() {
    let performance = report().performance;
    assert_eq!((performance.committed, performance.aborted_total(), performance.unknown), (1, 2, 1));
    assert_eq!((performance.intra.committed, performance.intra.aborted), (1, 0));
    assert_eq!((performance.cross.aborted, performance.cross.unknown), (1, 1));
    assert_eq!(performance.latency.summary().count, 4);
    assert_eq!(performance.throughput_tps, 250.0);

    let mut run = performance.clone();
    run.merge(&performance);
    assert_eq!((run.committed, run.aborted_total(), run.unknown, run.syncs), (2, 4, 2, 80));
    assert_eq!((run.latency.summary().count, run.cross.aborted, run.peak_in_flight), (8, 2, 5));
    assert_eq!(run.throughput_tps, 250.0);
}

// ---- JSON ----------------------------------------------------------------------------------------------------------

#[test]
fn json_obeys_its_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/run-output.schema.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut damaged = report();
    damaged.performance.servers[0].metrics.record_damage("wal-00000001.seg at offset 4096: damaged (S2)");
    let told = json!({"S1": ["wal-00000001.seg at offset 4096: damaged (S2)"]});
    assert_eq!(to_json(&damaged)["performance"]["damage"], told);
    for report in [report(), empty_report(), long_report(100), damaged] {
        let errors: Vec<String> = validator.iter_errors(&to_json(&report)).map(|e| e.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new());
    }
}

#[test]
fn json_says_what_happened_and_nothing_else() {
    let expected = json!({
        "set": 3,
        "live": ["S1", "S2", "S3", "S4"],
        "results": [
            {"n": 1, "kind": "transfer", "from": 100, "to": 501, "amount": 8, "scope": "intra-shard",
             "outcome": "committed", "latency_us": 412},
            {"n": 2, "kind": "transfer", "from": 100, "to": 1501, "amount": 30, "scope": "cross-shard",
             "outcome": "aborted", "reason": "insufficient-balance", "latency_us": 1500},
            {"n": 3, "kind": "transfer", "from": 1, "to": 9000, "amount": 1,
             "outcome": "aborted", "reason": "unknown-account", "latency_us": 300},
            {"n": 4, "kind": "transfer", "from": 2, "to": 2500, "amount": -5, "scope": "cross-shard",
             "outcome": "unknown"},
            {"n": 5, "kind": "balance", "account": 1002, "outcome": "ok", "balance": 11, "latency_us": 220},
            {"n": 6, "kind": "balance", "account": 7, "outcome": "aborted", "reason": "no-quorum"},
            {"n": 7, "kind": "fail", "server": "S2"},
            {"n": 8, "kind": "recover", "server": "S2"},
        ],
        "resolved": [
            {"set": 2, "n": 9, "kind": "transfer", "from": 5, "to": 6, "amount": 1, "scope": "intra-shard",
             "outcome": "committed"},
            {"set": 2, "n": 10, "kind": "transfer", "from": 5, "to": 1500, "amount": 1,
             "outcome": "aborted", "reason": "no-quorum"},
        ],
        "modified": {
            "100": {"S1": 2, "S2": 10, "S3": null},
            "501": {"S1": 18, "S2": 11, "S3": null},
            "1501": {"S4": 10, "S5": 10, "S6": 10},
        },
        "performance": {
            "committed": 1,
            "aborted": {"unknown-account": 1, "insufficient-balance": 1},
            "throughput_tps": 250.0,
            "latency_us": {"p50": 300, "p95": 1500, "p99": 1500, "max": 1500},
            "held_back_us": {"p50": 77, "p95": 77, "p99": 77, "max": 77},
            "peak_in_flight": 5,
            "syncs": 40,
        },
    });
    assert_eq!(to_json(&report()), expected);
}

#[test]
#[should_panic(expected = "row 1: Balance(3) cannot end as Committed")]
fn json_refuses_a_row_that_cannot_be() {
    let results = vec![row(1, Command::Balance(AccountId(3)), RowOutcome::Committed, 0)];
    to_json(&SetReport { results, ..empty_report() });
}

// ---- Tables --------------------------------------------------------------------------------------------------------

fn assert_text(found: &str, expected: &str) {
    assert_eq!(found, expected.trim_matches('\n'), "\n{found}\n");
}

#[test]
fn results_have_a_line_per_row() {
    assert_text(
        &tables::results(&report(), Rows::Abridged),
        "
┌───┬─────────────────┬─────────────┬───────────────────────────────┬─────────┐
│ n ┆ transaction     ┆ scope       ┆ outcome                       ┆ latency │
╞═══╪═════════════════╪═════════════╪═══════════════════════════════╪═════════╡
│ 1 ┆ (100, 501, 8)   ┆ intra-shard ┆ committed                     ┆  412 µs │
│ 2 ┆ (100, 1501, 30) ┆ cross-shard ┆ aborted: insufficient-balance ┆ 1.50 ms │
│ 3 ┆ (1, 9000, 1)    ┆ —           ┆ aborted: unknown-account      ┆  300 µs │
│ 4 ┆ (2, 2500, -5)   ┆ cross-shard ┆ unknown                       ┆       — │
│ 5 ┆ (1002)          ┆ —           ┆ balance 11                    ┆  220 µs │
│ 6 ┆ (7)             ┆ —           ┆ aborted: no-quorum            ┆       — │
│ 7 ┆ F(S2)           ┆ —           ┆ done                          ┆       — │
│ 8 ┆ R(S2)           ┆ —           ┆ done                          ┆       — │
└───┴─────────────────┴─────────────┴───────────────────────────────┴─────────┘
",
    );
}

#[test]
fn long_results_show_both_ends() {
    let lines = |report: &SetReport, rows| tables::results(report, rows).lines().count() - 4;
    assert_eq!(lines(&long_report(60), Rows::Abridged), 60);
    assert_eq!(lines(&long_report(61), Rows::Abridged), 41);
    assert_eq!(lines(&long_report(61), Rows::All), 61);
    let text = tables::results(&long_report(1000), Rows::Abridged);
    assert!(text.contains("(20, 1, 1)") && !text.contains("(21, 1, 1)"), "{text}");
    assert!(text.contains("960 more"), "{text}");
    assert!(!text.contains("(980, 1, 1)") && text.contains("(981, 1, 1)"), "{text}");
}

#[test]
fn the_summary_is_one_line() {
    assert_eq!(
        tables::summary(&report()),
        "set 3: 1 committed, 2 aborted (unknown-account 1, insufficient-balance 1), 1 unknown, 2 reads, \
         2 resolved from earlier sets, 12.0 ms"
    );
    assert_eq!(tables::summary(&empty_report()), "set 0: 0 committed, 0 aborted, 0 µs");
}

#[test]
fn modified_accounts_stand_beside_the_servers_of_their_cluster() {
    assert_text(
        &tables::modified(&report(), Rows::All),
        "
┌─────────┬────┬─────┬────┐
│ account ┆ S1 ┆  S2 ┆ S3 │
╞═════════╪════╪═════╪════╡
│     100 ┆  2 ┆ 10* ┆  — │
│     501 ┆ 18 ┆ 11* ┆  — │
└─────────┴────┴─────┴────┘
┌─────────┬────┬────┬────┐
│ account ┆ S4 ┆ S5 ┆ S6 │
╞═════════╪════╪════╪════╡
│    1501 ┆ 10 ┆ 10 ┆ 10 │
└─────────┴────┴────┴────┘
* failed: what the server last had; — crashed
",
    );
    assert!(tables::modified(&empty_report(), Rows::All).contains("No transfer"));
}

#[test]
fn a_balance_shows_how_each_server_stands() {
    let servers = [
        (NodeId(1), ServerState::Live, Some(2)),
        (NodeId(2), ServerState::Failed, Some(10)),
        (NodeId(3), ServerState::Crashed, None),
    ];
    assert_text(
        &tables::balance(AccountId(100), ShardId(1), &servers),
        "
┌─────────┬───────┬────┬─────┬────┐
│ account ┆ shard ┆ S1 ┆  S2 ┆ S3 │
╞═════════╪═══════╪════╪═════╪════╡
│     100 ┆    D1 ┆  2 ┆ 10* ┆  — │
└─────────┴───────┴────┴─────┴────┘
* failed: what the server last had; — crashed
",
    );
    let text = tables::balance(AccountId(100), ShardId(1), &servers[..1]);
    assert_eq!(text.lines().count(), 5, "nothing to explain:\n{text}");
}

#[test]
fn logs_and_views_are_listed() {
    let id = TxnId { session: Session::new(ShardId(1), 2), seq: 7 };
    let line = LogLine { slot: Slot(12), id, transfer: transfer(100, 501, 8), scope: Scope::IntraShard };
    assert_text(
        &tables::log(NodeId(1), &Log { lines: vec![line], gaps: vec![(Slot(1), Slot(8))] }),
        "
S1: 1 committed transaction in log order
slots 1 to 8 are not in its log any more
┌──────┬────────┬───────────────┬─────────────┐
│ slot ┆ id     ┆ transaction   ┆ scope       │
╞══════╪════════╪═══════════════╪═════════════╡
│   12 ┆ D1-2:7 ┆ (100, 501, 8) ┆ intra-shard │
└──────┴────────┴───────────────┴─────────────┘
",
    );
    assert_eq!(
        tables::log(NodeId(1), &Log { lines: vec![], gaps: vec![] }),
        "S1: 0 committed transactions in log order"
    );

    let election = Election {
        shard: ShardId(2),
        server: NodeId(4),
        ballot: Ballot::new(2, NodeId(4)),
        at: Duration::from_millis(1503),
        phase1_slots: 3,
    };
    assert_text(
        &tables::views(&[election]),
        "
┌─────────┬───────┬────────┬────────┬──────────────────┐
│      at ┆ shard ┆ leader ┆ ballot ┆ open slots found │
╞═════════╪═══════╪════════╪════════╪══════════════════╡
│ 1.503 s ┆ D2    ┆ S4     ┆ 2.S4   ┆                3 │
└─────────┴───────┴────────┴────────┴──────────────────┘
",
    );
    assert_eq!(tables::views(&[]), "No elections so far.");
}

#[test]
fn performance_shows_totals_and_servers() {
    let set = report().performance;
    assert_text(
        &tables::performance(&set, Some(&set)),
        "
┌───────────────────────────────────────────┬───────────┬───────────┐
│                                           ┆  this set ┆ whole run │
╞═══════════════════════════════════════════╪═══════════╪═══════════╡
│ committed                                 ┆         1 ┆         1 │
│ aborted                                   ┆         2 ┆         2 │
│   unknown-account                         ┆         1 ┆         1 │
│   insufficient-balance                    ┆         1 ┆         1 │
│ unknown                                   ┆         1 ┆         1 │
│ intra-shard committed / aborted / unknown ┆ 1 / 0 / 0 ┆ 1 / 0 / 0 │
│ cross-shard committed / aborted / unknown ┆ 0 / 1 / 1 ┆ 0 / 1 / 1 │
│ throughput                                ┆  250 tx/s ┆  250 tx/s │
│ time                                      ┆   12.0 ms ┆   12.0 ms │
│ peak in flight                            ┆         5 ┆         5 │
│ syncs                                     ┆        40 ┆        40 │
└───────────────────────────────────────────┴───────────┴───────────┘
┌─────────────┬───────────┬───────┬─────────┬─────────┬─────────┬─────────┐
│ latency     ┆ of        ┆ count ┆     p50 ┆     p95 ┆     p99 ┆     max │
╞═════════════╪═══════════╪═══════╪═════════╪═════════╪═════════╪═════════╡
│ all rows    ┆ this set  ┆     4 ┆  300 µs ┆ 1.50 ms ┆ 1.50 ms ┆ 1.50 ms │
│ all rows    ┆ whole run ┆     4 ┆  300 µs ┆ 1.50 ms ┆ 1.50 ms ┆ 1.50 ms │
│ intra-shard ┆ this set  ┆     1 ┆  412 µs ┆  412 µs ┆  412 µs ┆  412 µs │
│ intra-shard ┆ whole run ┆     1 ┆  412 µs ┆  412 µs ┆  412 µs ┆  412 µs │
│ cross-shard ┆ this set  ┆     1 ┆ 1.50 ms ┆ 1.50 ms ┆ 1.50 ms ┆ 1.50 ms │
│ cross-shard ┆ whole run ┆     1 ┆ 1.50 ms ┆ 1.50 ms ┆ 1.50 ms ┆ 1.50 ms │
│ held back   ┆ this set  ┆     1 ┆   77 µs ┆   77 µs ┆   77 µs ┆   77 µs │
│ held back   ┆ whole run ┆     1 ┆   77 µs ┆   77 µs ┆   77 µs ┆   77 µs │
└─────────────┴───────────┴───────┴─────────┴─────────┴─────────┴─────────┘
Paxos, and what each server led since it started:
┌────────┬─────────┬──────────┬────────┬─────────┬─────────┬────────┬──────────┬────────┬────────┐
│ server ┆ state   ┆ role     ┆ ballot ┆ decided ┆ applied ┆ led tx ┆ led rate ┆    p50 ┆    p99 │
╞════════╪═════════╪══════════╪════════╪═════════╪═════════╪════════╪══════════╪════════╪════════╡
│ S1     ┆ live    ┆ leader   ┆   3.S1 ┆      17 ┆      16 ┆     50 ┆ 500 tx/s ┆ 333 µs ┆ 333 µs │
│ S2     ┆ failed  ┆ —        ┆   3.S1 ┆      17 ┆      16 ┆      0 ┆        — ┆      — ┆      — │
│ S3     ┆ crashed ┆ —        ┆   3.S1 ┆      17 ┆      16 ┆      0 ┆        — ┆      — ┆      — │
│ S4     ┆ live    ┆ follower ┆   3.S1 ┆      17 ┆      16 ┆      0 ┆        — ┆      — ┆      — │
└────────┴─────────┴──────────┴────────┴─────────┴─────────┴────────┴──────────┴────────┴────────┘
Network and disk since each server started:
┌────────┬─────────┬──────────┬─────────┬─────┬─────────┬─────┬───────┬──────────┬──────────┐
│ server ┆ msgs in ┆ msgs out ┆ dropped ┆  in ┆     out ┆ WAL ┆ syncs ┆ sync p50 ┆ sync p99 │
╞════════╪═════════╪══════════╪═════════╪═════╪═════════╪═════╪═══════╪══════════╪══════════╡
│ S1     ┆     120 ┆        0 ┆       0 ┆ 0 B ┆ 12.3 kB ┆ 0 B ┆     9 ┆        — ┆        — │
│ S2     ┆       0 ┆        0 ┆       0 ┆ 0 B ┆     0 B ┆ 0 B ┆     0 ┆        — ┆        — │
│ S3     ┆       0 ┆        0 ┆       0 ┆ 0 B ┆     0 B ┆ 0 B ┆     0 ┆        — ┆        — │
│ S4     ┆       0 ┆        0 ┆       0 ┆ 0 B ┆     0 B ┆ 0 B ┆     0 ┆        — ┆        — │
└────────┴─────────┴──────────┴─────────┴─────┴─────────┴─────┴───────┴──────────┴──────────┘
",
    );
    let mut damaged = set;
    let metrics = &mut damaged.servers[3].metrics;
    (1..=20)
        .for_each(|n| metrics.record_damage(&format!("snapshot-{n}: damaged (S2): bad checksum of piece 0")));
    let text = tables::performance(&damaged, None);
    let (_, told) = text.split_once("Damage found on disks since each server started:\n").expect(&text);
    assert_eq!(told.lines().next(), Some("S4: snapshot-1: damaged (S2): bad checksum of piece 0"));
    assert_eq!(told.lines().count(), 16, "{told}");
    let alone = tables::performance(&Performance::default(), None);
    assert!(!alone.contains("whole run") && !alone.contains("server"), "{alone}");
}

#[test]
fn everything_holds_every_part() {
    let text = tables::everything(&SetReport { results: long_report(100).results, ..report() });
    for part in ["set 3:", "(50, 1, 1)", "Unknown before", "account", "throughput", "led rate", "sync p99"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    assert!(!text.contains('\x1b'), "no colours");
}

// ---- The prompt ----------------------------------------------------------------------------------------------------

fn parse(line: &str) -> Result<Option<PromptCommand>, String> {
    prompt::parse(line, &Topology::default())
}

#[test]
fn every_spelling_of_a_command_is_understood() {
    use PromptCommand::*;
    let moved = || Transfer(transfer(100, 501, 8));
    let cases: Vec<(PromptCommand, &[&str])> = vec![
        (Next, &["next", "  NEXT  ", "next()"]),
        (Skip, &["skip"]),
        (
            Balance(AccountId(100)),
            &["balance 100", "balance(100)", "PrintBalance(100)", "printbalance ( 100 )"],
        ),
        (
            Log(NodeId(1)),
            &["log S1", "log 1", "PrintLog(n1)", "PrintLog S1", "PrintDatastore(S1)", "PRINTLOG s1"],
        ),
        (Db, &["db", "PrintDB", "PrintDB()"]),
        (Performance, &["performance", "Performance", "PrintPerformance"]),
        (Views, &["views", "PrintView", "printviews"]),
        (Fail(NodeId(9)), &["fail S9", "fail n9", "F(n9)", "f 9"]),
        (Recover(NodeId(9)), &["recover S9", "R(N9)"]),
        (Crash(NodeId(3)), &["crash S3"]),
        (Restart(NodeId(3)), &["restart(3)"]),
        (
            moved(),
            &["transfer 100 501 8", "transfer(100, 501, 8)", "transfer (100,501,8)", "Transfer 100, 501, 8"],
        ),
        (Transfer(transfer(0, 9999, -3)), &["transfer 0 9999 -3"]),
        (Save(PathBuf::from("a b.txt")), &["save a b.txt", "save \"a b.txt\"", "save  'a b.txt' "]),
        (Help, &["help", "?"]),
        (Quit, &["quit", "exit"]),
    ];
    for (expected, lines) in cases {
        for line in lines {
            assert_eq!(parse(line), Ok(Some(expected.clone())), "{line}");
        }
    }
    assert_eq!(parse(" \t "), Ok(None));
}

#[test]
fn errors_say_what_is_accepted() {
    let cases = [
        ("blance 3", "unknown command `blance`; accepted: next, skip, balance"),
        ("balance", "balance A: A is an account, 1 to 3000, got ``"),
        ("balance 3001", "1 to 3000, got `3001`"),
        ("balance 0", "1 to 3000"),
        ("balance +5", "1 to 3000"),
        ("balance 1 2", "got `1 2`"),
        ("PrintBalance(100", "got `(100`"),
        ("log", "log S: S is a server, S1 to S9"),
        ("fail S10", "S1 to S9, got `S10`"),
        ("fail S", "S1 to S9"),
        ("crash 65537", "S1 to S9"),
        ("transfer 1 2", "transfer A B X: three numbers are needed"),
        ("transfer 1 2 x", "X is an integer"),
        ("transfer 1 2 9223372036854775808", "X is an integer"),
        ("transfer 1 -2 3", "A and B are accounts"),
        ("next 3", "next: nothing may follow it, got `3`"),
        ("save", "save FILE: the name of the file to write is missing"),
        ("\u{1b}[31m", "`\\u{1b}[31m`"),
    ];
    for (line, expected) in cases {
        let error = parse(line).expect_err(line);
        assert!(error.contains(expected), "{line}: {error}");
        assert!(!error.contains('\n') && !error.contains('\u{1b}'), "{error}");
    }
}

#[test]
fn help_names_every_command() {
    let help = prompt::help();
    for text in ["balance A", "PrintDatastore", "transfer A B X", "save FILE", "quit", "Ctrl-C"] {
        assert!(help.contains(text), "{text} is missing:\n{help}");
    }
}

#[test]
fn completion_offers_commands_and_servers() {
    let complete = |typed| completions(typed, &Topology::default());
    assert_eq!(complete("re"), (0, vec!["recover".into(), "restart".into()]));
    assert_eq!(complete("printd"), (0, vec!["PrintDatastore".into(), "PrintDB".into()]));
    assert_eq!(complete("f"), (0, vec!["fail".into()]));
    assert_eq!(complete("").1.len(), 15);
    assert_eq!(complete("log s").0, 4);
    assert_eq!(complete("log s").1.len(), 9);
    assert_eq!(complete("PrintLog(S3"), (9, vec!["S3".into()]));
    assert_eq!(complete("balance 1").1, Vec::<String>::new());
    assert_eq!(complete("größe ").1, Vec::<String>::new());
}

proptest! {
    #[test]
    fn no_line_breaks_the_prompt(
        name in "(PrintBalance|log|transfer|save|F|next|\\PC{0,8})",
        rest in "([ (,)]|[0-9]{1,30}|[-+sSnN\"']|\\PC){0,12}",
    ) {
        let line = name + &rest;
        if let Err(error) = parse(&line) {
            prop_assert!(!error.contains('\n'));
        }
        for (at, _) in line.char_indices() {
            let (start, _) = completions(&line[..at], &Topology::default());
            prop_assert!(line.is_char_boundary(start) && start <= at);
        }
    }

    #[test]
    fn transfers_survive_their_own_spelling(from: u64, to: u64, amount: i64) {
        let transfer = transfer(from, to, amount);
        prop_assert_eq!(parse(&format!("transfer{transfer}")), Ok(Some(PromptCommand::Transfer(transfer))));
    }
}
