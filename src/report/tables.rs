//! Tables for people. Every function returns text without a last newline; what to do with it is the caller's affair.
//!
//! The text is the same on a terminal, in a pipe and in a file: no colours, and no lines folded to a window's width.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::{Election, Log, Performance, RowReport, Scope, ScopeTally, ServerRow, ServerState, SetReport};
use crate::metrics::Latencies;
use crate::testset::Command;
use crate::types::{AccountId, NodeId, Reason, ShardId};

/// How much of a long set to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rows {
    /// Of more than 60 rows only the first and the last 20, and how many lie between.
    Abridged,
    All,
}

const LONGEST: usize = 60;
const AT_EACH_END: usize = 20;

/// Stands where there is nothing to show.
const NONE: &str = "—";

/// Everything about a set, unabridged: what `save` writes.
pub fn everything(report: &SetReport) -> String {
    let parts = [
        summary(report),
        results(report, Rows::All),
        resolved(report),
        modified(report, Rows::All),
        performance(&report.performance, None),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n\n")
}

/// One line: `set 3: 4 committed, 1 aborted (insufficient-balance 1), 2 unknown, 12.0 ms`.
pub fn summary(report: &SetReport) -> String {
    let performance = &report.performance;
    let mut parts = vec![format!("{} committed", performance.committed)];
    let reasons: Vec<String> =
        performance.aborted.iter().map(|(why, count)| format!("{why} {count}")).collect();
    parts.push(match performance.aborted_total() {
        0 => "0 aborted".to_string(),
        total => format!("{total} aborted ({})", reasons.join(", ")),
    });
    if performance.unknown > 0 {
        parts.push(format!("{} unknown", performance.unknown));
    }
    let reads = report.results.iter().filter(|row| matches!(row.command, Command::Balance(_))).count();
    if reads > 0 {
        parts.push(format!("{reads} read{}", if reads == 1 { "" } else { "s" }));
    }
    if !report.resolved.is_empty() {
        parts.push(format!("{} resolved from earlier sets", report.resolved.len()));
    }
    parts.push(duration(performance.span));
    format!("set {}: {}", report.set, parts.join(", "))
}

/// One line per row of the set.
pub fn results(report: &SetReport, rows: Rows) -> String {
    let mut table = table(&["n", "transaction", "scope", "outcome", "latency"]);
    fill(&mut table, &report.results, rows, |row| {
        vec![
            row.n.to_string(),
            transaction(row),
            optional(row.scope.map(Scope::name)),
            row.outcome.to_string(),
            row.latency.map_or(NONE.to_string(), duration),
        ]
    });
    align_right(&mut table, [0, 4]);
    table.to_string()
}

/// The late outcomes of transfers of earlier sets; empty text when there are none.
pub fn resolved(report: &SetReport) -> String {
    if report.resolved.is_empty() {
        return String::new();
    }
    let mut table = table(&["set", "n", "transaction", "scope", "outcome"]);
    for resolved in &report.resolved {
        table.add_row([
            resolved.set.to_string(),
            resolved.n.to_string(),
            resolved.transfer.to_string(),
            optional(resolved.scope.map(Scope::name)),
            resolved.outcome.map_or_else(|why| format!("aborted: {why}"), |()| "committed".to_string()),
        ]);
    }
    align_right(&mut table, [0, 1]);
    format!("Unknown before, known now:\n{table}")
}

/// The accounts that the set's transfers name, on every server of their clusters: one table for each cluster.
pub fn modified(report: &SetReport, rows: Rows) -> String {
    type Row<'a> = (&'a AccountId, &'a BTreeMap<NodeId, Option<u64>>);
    let mut clusters: BTreeMap<Vec<NodeId>, Vec<Row<'_>>> = BTreeMap::new();
    for row in &report.modified {
        clusters.entry(row.1.keys().copied().collect()).or_default().push(row);
    }
    if clusters.is_empty() {
        return "No transfer names an account of this bank.".to_string();
    }
    let mut parts = Vec::new();
    for (servers, accounts) in &clusters {
        let names: Vec<String> = servers.iter().map(NodeId::to_string).collect();
        let header: Vec<&str> = ["account"].into_iter().chain(names.iter().map(String::as_str)).collect();
        let mut table = table(&header);
        fill(&mut table, accounts, rows, |(account, balances)| {
            let cells = balances.iter().map(|(server, value)| balance_cell(report.state_of(*server), *value));
            [account.to_string()].into_iter().chain(cells).collect()
        });
        align_right(&mut table, 0..header.len());
        parts.push(table.to_string());
    }
    let servers: BTreeSet<NodeId> = clusters.into_keys().flatten().collect();
    parts.extend(legend(servers.into_iter().map(|server| report.state_of(server))));
    parts.join("\n")
}

/// One account on the servers of its cluster. `None`: the server has crashed.
pub fn balance(account: AccountId, shard: ShardId, servers: &[(NodeId, ServerState, Option<u64>)]) -> String {
    let names: Vec<String> = servers.iter().map(|(server, ..)| server.to_string()).collect();
    let header: Vec<&str> =
        ["account", "shard"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut table = table(&header);
    let cells = servers.iter().map(|(_, state, value)| balance_cell(*state, *value));
    table.add_row([account.to_string(), shard.to_string()].into_iter().chain(cells));
    align_right(&mut table, 0..header.len());
    let mut parts = vec![table.to_string()];
    parts.extend(legend(servers.iter().map(|(_, state, _)| *state)));
    parts.join("\n")
}

/// A server's committed transactions in log order.
pub fn log(server: NodeId, log: &Log) -> String {
    let Log { lines, gaps } = log;
    let plural = if lines.len() == 1 { "" } else { "s" };
    let mut title = format!("{server}: {} committed transaction{plural} in log order", lines.len());
    for (from, to) in gaps {
        title += &format!("\nslots {from} to {to} are not in its log any more");
    }
    if lines.is_empty() {
        return title;
    }
    let mut table = table(&["slot", "id", "transaction", "scope"]);
    for line in lines {
        table.add_row([
            line.slot.to_string(),
            line.id.to_string(),
            line.transfer.to_string(),
            line.scope.to_string(),
        ]);
    }
    align_right(&mut table, [0]);
    format!("{title}\n{table}")
}

/// The elections so far.
pub fn views(elections: &[Election]) -> String {
    if elections.is_empty() {
        return "No elections so far.".to_string();
    }
    let mut table = table(&["at", "shard", "leader", "ballot", "open slots found"]);
    for election in elections {
        table.add_row([
            format!("{:.3} s", election.at.as_secs_f64()),
            election.shard.to_string(),
            election.server.to_string(),
            election.ballot.to_string(),
            election.phase1_slots.to_string(),
        ]);
    }
    align_right(&mut table, [0, 4]);
    table.to_string()
}

/// Outcomes and latencies of a set, beside those of the whole run if given, and what each server did.
pub fn performance(set: &Performance, whole_run: Option<&Performance>) -> String {
    let columns: Vec<(&str, &Performance)> =
        [("this set", set)].into_iter().chain(whole_run.map(|run| ("whole run", run))).collect();
    let mut parts = vec![totals(&columns), latencies(&columns)];
    if !set.servers.is_empty() {
        parts.push(format!("Paxos, and what each server led since it started:\n{}", led(&set.servers)));
        parts.push(format!("Network and disk since each server started:\n{}", traffic(&set.servers)));
    }
    parts.join("\n")
}

fn totals(columns: &[(&str, &Performance)]) -> String {
    let header: Vec<&str> = [""].into_iter().chain(columns.iter().map(|(title, _)| *title)).collect();
    let mut table = table(&header);
    let mut line = |name: &str, value: &dyn Fn(&Performance) -> String| {
        let cells = columns.iter().map(|(_, performance)| value(performance));
        table.add_row([name.to_string()].into_iter().chain(cells));
    };
    line("committed", &|p| p.committed.to_string());
    line("aborted", &|p| p.aborted_total().to_string());
    let reasons: BTreeSet<Reason> = columns.iter().flat_map(|(_, p)| p.aborted.keys().copied()).collect();
    for reason in reasons {
        line(&format!("  {reason}"), &|p| p.aborted.get(&reason).copied().unwrap_or(0).to_string());
    }
    line("unknown", &|p| p.unknown.to_string());
    let outcomes = |t: &ScopeTally| format!("{} / {} / {}", t.committed, t.aborted, t.unknown);
    line("intra-shard committed / aborted / unknown", &|p| outcomes(&p.intra));
    line("cross-shard committed / aborted / unknown", &|p| outcomes(&p.cross));
    line("throughput", &|p| rate(p.throughput_tps));
    line("time", &|p| duration(p.span));
    line("peak in flight", &|p| p.peak_in_flight.to_string());
    line("syncs", &|p| p.syncs.to_string());
    align_right(&mut table, 1..header.len());
    table.to_string()
}

fn latencies(columns: &[(&str, &Performance)]) -> String {
    let mut table = table(&["latency", "of", "count", "p50", "p95", "p99", "max"]);
    type Of = fn(&Performance) -> &Latencies;
    let kinds: [(&str, Of); 4] = [
        ("all rows", |p| &p.latency),
        ("intra-shard", |p| &p.intra.latency),
        ("cross-shard", |p| &p.cross.latency),
        ("held back", |p| &p.held_back),
    ];
    for (kind, of) in kinds {
        for (title, performance) in columns {
            let summary = of(performance).summary();
            let times = [summary.p50, summary.p95, summary.p99, summary.max]
                .map(|us| if summary.count > 0 { micros(us) } else { NONE.to_string() });
            table.add_row(
                [kind.to_string(), title.to_string(), summary.count.to_string()].into_iter().chain(times),
            );
        }
    }
    align_right(&mut table, 2..7);
    table.to_string()
}

fn led(servers: &[ServerRow]) -> String {
    let mut table = table(&[
        "server", "state", "role", "ballot", "decided", "applied", "led tx", "led rate", "p50", "p99",
    ]);
    for row in servers {
        let summary = row.metrics.led_latency.summary();
        let has_led = summary.count > 0;
        table.add_row([
            row.server.to_string(),
            row.up.to_string(),
            // A crashed server has no role, and what one believes that is cut off is out of date.
            match (row.up, row.disk_full) {
                (ServerState::Live, true) => format!("{}, disk full", row.role),
                (ServerState::Live, false) => row.role.to_string(),
                _ => NONE.to_string(),
            },
            row.ballot.leader().map_or(NONE.to_string(), |_| row.ballot.to_string()),
            row.decided.to_string(),
            row.applied.to_string(),
            row.metrics.led_transactions.to_string(),
            if has_led { rate(row.metrics.led_throughput_tps()) } else { NONE.to_string() },
            if has_led { micros(summary.p50) } else { NONE.to_string() },
            if has_led { micros(summary.p99) } else { NONE.to_string() },
        ]);
    }
    align_right(&mut table, 3..10);
    table.to_string()
}

fn traffic(servers: &[ServerRow]) -> String {
    let mut table = table(&[
        "server", "msgs in", "msgs out", "dropped", "in", "out", "WAL", "syncs", "sync p50", "sync p99",
    ]);
    for row in servers {
        let metrics = &row.metrics;
        let summary = metrics.sync_latency.summary();
        let has_synced = summary.count > 0;
        table.add_row([
            row.server.to_string(),
            metrics.messages_in.to_string(),
            metrics.messages_out.to_string(),
            metrics.dropped_messages.to_string(),
            bytes(metrics.bytes_in),
            bytes(metrics.bytes_out),
            bytes(metrics.wal_bytes),
            metrics.syncs.to_string(),
            if has_synced { micros(summary.p50) } else { NONE.to_string() },
            if has_synced { micros(summary.p99) } else { NONE.to_string() },
        ]);
    }
    align_right(&mut table, 1..10);
    let damage = servers.iter().flat_map(|row| row.metrics.damage.iter().map(|what| (row.server, what)));
    let damage: Vec<String> = damage.map(|(server, what)| format!("\n{server}: {what}")).collect();
    let title = if damage.is_empty() { "" } else { "\nDamage found on disks since each server started:" };
    format!("{table}{title}{}", damage.concat())
}

// ---- Pieces --------------------------------------------------------------------------------------------------------

/// An empty table in the style of the house.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).force_no_tty().set_header(header.iter().copied());
    table
}

/// A table of these rows, of which some may be short; the columns given are numbers.
pub fn plain(header: &[&str], rows: Vec<Vec<String>>, numbers: std::ops::Range<usize>) -> String {
    let mut table = table(header);
    rows.into_iter().for_each(|row| _ = table.add_row(row));
    align_right(&mut table, numbers);
    table.to_string()
}

fn align_right(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        table.column_mut(column).expect("a column of the header").set_cell_alignment(CellAlignment::Right);
    }
}

/// Adds a line for each item, or, when there are too many, for those at both ends and one that counts the rest.
fn fill<T>(table: &mut Table, items: &[T], rows: Rows, cells: impl Fn(&T) -> Vec<String>) {
    if rows == Rows::All || items.len() <= LONGEST {
        table.add_rows(items.iter().map(cells));
        return;
    }
    let last = items.len() - AT_EACH_END;
    table.add_rows(items[..AT_EACH_END].iter().map(&cells));
    table.add_row(["…".to_string(), format!("{} more", last - AT_EACH_END)]);
    table.add_rows(items[last..].iter().map(&cells));
}

fn transaction(row: &RowReport) -> String {
    match row.command {
        Command::Transfer(transfer) => transfer.to_string(),
        Command::Balance(account) => format!("({account})"),
        Command::Fail(server) => format!("F({server})"),
        Command::Recover(server) => format!("R({server})"),
    }
}

fn balance_cell(state: ServerState, balance: Option<u64>) -> String {
    match (balance, state) {
        (None, _) => NONE.to_string(),
        (Some(balance), ServerState::Failed) => format!("{balance}*"),
        (Some(balance), _) => balance.to_string(),
    }
}

/// Explains the marks of [`balance_cell`], if these states need any.
fn legend(states: impl Iterator<Item = ServerState>) -> Option<String> {
    let states: Vec<ServerState> = states.collect();
    let mut parts = Vec::new();
    if states.contains(&ServerState::Failed) {
        parts.push("* failed: what the server last had".to_string());
    }
    if states.contains(&ServerState::Crashed) {
        parts.push(format!("{NONE} crashed"));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn optional(text: Option<&str>) -> String {
    text.unwrap_or(NONE).to_string()
}

fn rate(per_second: f64) -> String {
    format!("{per_second:.0} tx/s")
}

fn micros(us: u64) -> String {
    duration(Duration::from_micros(us))
}

/// Three digits or so, in the unit that suits.
fn duration(duration: Duration) -> String {
    let us = duration.as_micros();
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
