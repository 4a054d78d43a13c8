//! `bank status`: every server of a bank at a glance.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::report::tables;
use crate::runtime::admin::{self, AskError};
use crate::runtime::config_file;
use crate::runtime::http;
use crate::runtime::order::{Order, Report};
use crate::runtime::session::{Exit, refuse};
use crate::runtime::status::Status;
use crate::types::{NodeId, ShardId, Slot};

/// What a server said, or why it said nothing.
type Said = Result<Status, AskError>;

/// Asks all servers and prints what they say. Exit code 1 if one of them does not answer, or has stopped for good.
pub fn status(config: &Path, as_json: bool) -> Exit {
    let config = match config_file::load(config) {
        Ok(config) => config,
        Err(what) => return refuse(&what),
    };
    let context = &config.context;
    // All at once: each that is away takes its time to be found so.
    let said: BTreeMap<NodeId, Said> = std::thread::scope(|scope| {
        let ask = |server| match admin::ask(context, server, &Order::Status) {
            Ok(Report::Status(status)) => Ok(*status),
            Ok(_) => Err(AskError::Refused(format!("{server} answers something else"))),
            Err(e) => Err(e),
        };
        let asked: Vec<_> =
            context.topology.servers().map(|server| (server, scope.spawn(move || ask(server)))).collect();
        let gone = |_| Err(AskError::Unreachable("asking it ended in a panic".into()));
        asked.into_iter().map(|(server, asked)| (server, asked.join().unwrap_or_else(gone))).collect()
    });
    if as_json {
        println!("{:#}", to_json(&said, |server| context.topology.shard_of_server(server)));
    } else {
        println!("{}", to_table(&said, |server| context.topology.shard_of_server(server).0));
    }
    let well = |said: &Said| said.as_ref().is_ok_and(|status| status.stopped.is_none());
    if said.values().all(well) { Exit::Success } else { Exit::Failure }
}

fn to_json(said: &BTreeMap<NodeId, Said>, shard: impl Fn(NodeId) -> ShardId) -> Value {
    let one = |(server, said): (&NodeId, &Said)| match said {
        Ok(status) => http::describe(status, shard(*server), status.uptime),
        Err(e) => {
            json!({"server": server.to_string(), "shard": shard(*server).to_string(), "error": e.to_string()})
        }
    };
    Value::Array(said.iter().map(one).collect())
}

fn to_table(said: &BTreeMap<NodeId, Said>, cluster: impl Fn(NodeId) -> u16) -> String {
    let mut newest: BTreeMap<u16, Slot> = BTreeMap::new();
    for (server, status) in said.iter().filter_map(|(server, said)| Some((*server, said.as_ref().ok()?))) {
        let known = newest.entry(cluster(server)).or_default();
        *known = status.decided.max(*known);
    }
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for (server, said) in said {
        match said {
            Ok(status) => {
                let lag = newest[&cluster(*server)].0 - status.applied.0;
                rows.push(cells(*server, status, lag));
                notes.extend(status.stopped.iter().map(|why| format!("{server} has stopped: {why}")));
                notes.extend(status.metrics.damage.iter().map(|what| format!("{server}: {what}")));
            }
            Err(e) => {
                let why = if matches!(e, AskError::Refused(_)) { "refuses" } else { "away" };
                rows.push(vec![server.to_string(), why.into()]);
                notes.push(e.to_string());
            }
        }
    }
    let header = [
        "server", "role", "leader", "ballot", "decided", "applied", "lag", "in doubt", "log", "up", "digest",
    ];
    let table = tables::plain(&header, rows, 4..10);
    [vec![table], notes].concat().join("\n")
}

fn cells(server: NodeId, status: &Status, lag: u64) -> Vec<String> {
    let role = match (status.stopped.is_some(), status.failed, status.repairing) {
        (true, ..) => "stopped".into(),
        (_, true, _) => "failed".into(),
        (_, _, true) => format!("{}, repairing", status.role),
        _ => status.role.to_string(),
    };
    let log = match status.room {
        Some(room) => format!("full, {room} B left"),
        None => format!("{} MiB", status.log_bytes >> 20),
    };
    vec![
        server.to_string(),
        role,
        status.leader.map_or_else(|| "-".into(), |leader| leader.to_string()),
        status.ballot.to_string(),
        status.decided.to_string(),
        status.applied.to_string(),
        lag.to_string(),
        status.in_doubt.to_string(),
        log,
        format!("{} s", status.uptime.as_secs()),
        format!("{:016x}", status.digest),
    ]
}
