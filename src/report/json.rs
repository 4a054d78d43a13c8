//! A set as the JSON object that `bank run --json` prints. `data/run-output.schema.json` is its definition.
//!
//! A key that has nothing to say is left out (`reason` of a commit, `scope` of accounts that do not exist, `latency_us`
//! where nobody replied); only a crashed server's balance is `null`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};

use super::{Performance, Resolved, RowOutcome, RowReport, Scope, SetReport};
use crate::metrics::Latencies;
use crate::testset::Command;
use crate::types::{AccountId, NodeId, Reason, Transfer};

/// A report in its JSON form. It is written row by row: as one tree of values, a long set would take far more memory
/// than the bank that ran it.
///
/// Panics when a row ended as rows of its kind cannot, which only a mistake of the runner brings about.
pub struct Json<'a>(pub &'a SetReport);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let report = self.0;
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("set", &report.set)?;
        object.serialize_entry("live", &report.live.iter().map(NodeId::to_string).collect::<Vec<_>>())?;
        object.serialize_entry("results", &Each(&report.results, row))?;
        object.serialize_entry("resolved", &Each(&report.resolved, resolved))?;
        object.serialize_entry("modified", &modified(&report.modified))?;
        object.serialize_entry("performance", &performance(&report.performance))?;
        object.end()
    }
}

/// A list whose elements become values one at a time.
struct Each<'a, T>(&'a [T], fn(&T) -> Value);

impl<T> Serialize for Each<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(self.1))
    }
}

fn row(row: &RowReport) -> Value {
    let mut object = Map::new();
    object.insert("n".into(), json!(row.n));
    match (row.command, row.outcome) {
        (Command::Transfer(t), RowOutcome::Committed) => {
            put_transfer(&mut object, &t, row.scope, Ok("committed"))
        }
        (Command::Transfer(t), RowOutcome::Unknown) => {
            put_transfer(&mut object, &t, row.scope, Ok("unknown"))
        }
        (Command::Transfer(t), RowOutcome::Aborted(why)) => {
            put_transfer(&mut object, &t, row.scope, Err(why))
        }
        (Command::Balance(account), RowOutcome::Balance(balance)) => {
            put_read(&mut object, account, Ok("ok"));
            object.insert("balance".into(), json!(balance));
        }
        (Command::Balance(account), RowOutcome::Aborted(why)) => put_read(&mut object, account, Err(why)),
        (Command::Fail(server), RowOutcome::Done) => put_change(&mut object, "fail", server),
        (Command::Recover(server), RowOutcome::Done) => put_change(&mut object, "recover", server),
        (command, outcome) => panic!("row {}: {command:?} cannot end as {outcome:?}", row.n),
    }
    let is_change = row.outcome == RowOutcome::Done;
    if let Some(latency) = row.latency.filter(|_| !is_change) {
        object.insert("latency_us".into(), json!(micros(latency)));
    }
    object.into()
}

fn resolved(resolved: &Resolved) -> Value {
    let mut object = Map::new();
    object.insert("set".into(), json!(resolved.set));
    object.insert("n".into(), json!(resolved.n));
    put_transfer(&mut object, &resolved.transfer, resolved.scope, resolved.outcome.map(|()| "committed"));
    object.into()
}

fn put_transfer(
    object: &mut Map<String, Value>,
    transfer: &Transfer,
    scope: Option<Scope>,
    outcome: Result<&str, Reason>,
) {
    object.insert("kind".into(), json!("transfer"));
    object.insert("from".into(), json!(transfer.from.0));
    object.insert("to".into(), json!(transfer.to.0));
    object.insert("amount".into(), json!(transfer.amount));
    if let Some(scope) = scope {
        object.insert("scope".into(), json!(scope.name()));
    }
    put_outcome(object, outcome);
}

fn put_read(object: &mut Map<String, Value>, account: AccountId, outcome: Result<&str, Reason>) {
    object.insert("kind".into(), json!("balance"));
    object.insert("account".into(), json!(account.0));
    put_outcome(object, outcome);
}

fn put_change(object: &mut Map<String, Value>, kind: &str, server: NodeId) {
    object.insert("kind".into(), json!(kind));
    object.insert("server".into(), json!(server.to_string()));
}

fn put_outcome(object: &mut Map<String, Value>, outcome: Result<&str, Reason>) {
    object.insert("outcome".into(), json!(outcome.unwrap_or("aborted")));
    if let Err(reason) = outcome {
        object.insert("reason".into(), json!(reason.name()));
    }
}

fn modified(accounts: &BTreeMap<AccountId, BTreeMap<NodeId, Option<u64>>>) -> Value {
    let mut object = Map::new();
    for (account, servers) in accounts {
        let on_servers: Map<String, Value> =
            servers.iter().map(|(server, balance)| (server.to_string(), json!(balance))).collect();
        object.insert(account.to_string(), on_servers.into());
    }
    object.into()
}

fn performance(performance: &Performance) -> Value {
    let aborted: Map<String, Value> =
        performance.aborted.iter().map(|(reason, count)| (reason.name().into(), json!(count))).collect();
    let mut object = json!({
        "committed": performance.committed,
        "aborted": aborted,
        "throughput_tps": performance.throughput_tps,
        "latency_us": latencies(&performance.latency),
        "held_back_us": latencies(&performance.held_back),
        "peak_in_flight": performance.peak_in_flight,
        "syncs": performance.syncs,
    });
    let damaged = performance.servers.iter().filter(|row| !row.metrics.damage.is_empty());
    let damage: Map<String, Value> =
        damaged.map(|row| (row.server.to_string(), json!(row.metrics.damage))).collect();
    if !damage.is_empty() {
        object["damage"] = damage.into();
    }
    object
}

fn latencies(latencies: &Latencies) -> Value {
    let summary = latencies.summary();
    json!({"p50": summary.p50, "p95": summary.p95, "p99": summary.p99, "max": summary.max})
}

fn micros(latency: Duration) -> u64 {
    u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)
}
