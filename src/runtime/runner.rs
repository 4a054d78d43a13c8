//! Runs the sets of a file: brings servers up and down, gives rows to the coordinator thread, waits at barriers, and
//! reports. It decides nothing about a transaction itself; every outcome comes from the coordinator, which has it from
//! the servers.

use std::collections::BTreeMap;
use std::time::Duration;

use crossbeam::channel::{Receiver, after, never};
use crossbeam::select;

use crate::audit::Listing;
use crate::bank::Committed;
use crate::config::Topology;
use crate::report::{
    Election, Log, LogLine, Performance, Resolved, RowOutcome, RowReport, Scope, ServerRow, ServerState,
    SetReport, progress,
};
use crate::runtime::client::{Client, Command as Ask, News, Row, Segment};
use crate::runtime::cluster::Fleet;
use crate::runtime::order::{Order, Report};
use crate::runtime::status::Status;
use crate::testset::{Command, Set};
use crate::txn::{Op, Outcome, Reach};
use crate::types::{AccountId, NodeId, ShardId, Transfer};

/// Longer than any barrier honestly takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// How rows are given to the coordinator.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rows in flight at a time, at least 1.
    pub in_flight: usize,
    /// Do not hold back rows that share an account.
    pub race: bool,
    /// Start every set as if on fresh directories.
    pub reset_each_set: bool,
    /// Show a progress bar on long sets.
    pub progress: bool,
}

/// Why a run ended early.
#[derive(Debug)]
pub enum Stop {
    /// Something that should work did not; the text says what.
    Failed(String),
    /// The user pressed Ctrl-C.
    Interrupted,
}

impl From<String> for Stop {
    fn from(what: String) -> Stop {
        Stop::Failed(what)
    }
}

/// Makes the servers anew, for `--reset-each-set`.
pub type Factory = Box<dyn Fn() -> Result<Box<dyn Fleet>, String>>;

/// A transfer whose outcome nobody knew when its set ended.
struct Open {
    set: u64,
    n: usize,
    transfer: Transfer,
}

/// See the module documentation.
pub struct Runner {
    fleet: Box<dyn Fleet>,
    factory: Factory,
    client: Client,
    topology: Topology,
    options: Options,
    interrupt: Receiver<()>,
    next_tag: u64,
    sets_run: usize,
    /// The servers have not been confirmed since they were started.
    fresh: bool,
    open: BTreeMap<u64, Open>,
    resolved: Vec<Resolved>,
    elections: BTreeMap<(u64, NodeId), Election>,
    whole: Performance,
}

impl Runner {
    pub fn new(factory: Factory, options: Options, interrupt: Option<Receiver<()>>) -> Result<Runner, Stop> {
        let fleet = factory()?;
        let client = start_client(fleet.as_ref())?;
        Ok(Runner {
            topology: fleet.context().topology,
            fleet,
            factory,
            client,
            options,
            interrupt: interrupt.unwrap_or_else(never),
            next_tag: 0,
            sets_run: 0,
            fresh: true,
            open: BTreeMap::new(),
            resolved: Vec::new(),
            elections: BTreeMap::new(),
            whole: Performance::default(),
        })
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// All sets so far together.
    pub fn whole_run(&self) -> &Performance {
        &self.whole
    }

    /// Whether a transfer's outcome is still unknown.
    pub fn has_unknown(&self) -> bool {
        !self.open.is_empty()
    }

    /// Runs one set to its end.
    pub fn run_set(&mut self, set: &Set) -> Result<SetReport, Stop> {
        if self.options.reset_each_set && self.sets_run > 0 {
            self.reset()?;
        }
        self.sets_run += 1;
        let changed = self.bring_up(&set.live)?;
        self.client.send(Ask::Hints(self.first_choices(set)));
        if changed || self.fresh {
            self.barrier(true)?;
            self.fresh = false;
        }
        let before = self.syncs();
        let mut results: Vec<RowReport> = Vec::with_capacity(set.rows.len());
        let mut performance = Performance::default();
        let mut span = Duration::ZERO;
        let bar =
            progress(if self.options.progress { set.rows.len() } else { 0 }, &format!("set {}", set.number));
        let mut rest = &set.rows[..];
        while let Some(first) = rest.first() {
            match first.command {
                Command::Fail(server) => {
                    self.barrier(false)?;
                    self.fail(server)?;
                }
                Command::Recover(server) => {
                    self.barrier(false)?;
                    self.recover(server)?;
                }
                _ => {
                    let together = |r: &&crate::testset::Row| {
                        matches!(r.command, Command::Transfer(_) | Command::Balance(_))
                    };
                    let count = rest.iter().take_while(together).count();
                    let commands: Vec<Command> = rest[..count].iter().map(|r| r.command).collect();
                    let from = results.len();
                    results
                        .extend(commands.iter().enumerate().map(|(i, c)| self.pending_row(from + i + 1, *c)));
                    let segment = self.run_rows(set.number, &mut results[from..], &bar)?;
                    span += segment.span;
                    add(&mut performance, &segment);
                    rest = &rest[count..];
                    continue;
                }
            }
            let mut done = self.pending_row(results.len() + 1, first.command);
            done.outcome = RowOutcome::Done;
            results.push(done);
            bar.inc(1);
            rest = &rest[1..];
        }
        bar.finish_and_clear();
        self.barrier(false)?;

        results.iter().for_each(|row| performance.count(row));
        performance.set_span(span);
        performance.syncs = self.syncs_since(&before);
        performance.servers = self.server_rows();
        self.whole.merge(&performance);
        Ok(SetReport {
            set: set.number,
            live: set.live.clone(),
            results,
            resolved: std::mem::take(&mut self.resolved),
            modified: self.balances(set.transfer_accounts(&self.topology))?,
            performance,
        })
    }

    fn pending_row(&self, n: usize, command: Command) -> RowReport {
        let scope = match &command {
            Command::Transfer(transfer) => Scope::of(transfer, &self.topology),
            _ => None,
        };
        RowReport { n, command, scope, outcome: RowOutcome::Unknown, latency: None }
    }

    /// Gives rows to the coordinator and waits until each has its outcome.
    fn run_rows(
        &mut self,
        set: u64,
        rows: &mut [RowReport],
        bar: &indicatif::ProgressBar,
    ) -> Result<Segment, Stop> {
        let first_tag = self.next_tag;
        self.next_tag += rows.len() as u64;
        let given = rows
            .iter()
            .zip(first_tag..)
            .map(|(row, tag)| Row {
                tag,
                accounts: row.command.accounts().collect(),
                op: match row.command {
                    Command::Balance(account) => Op::Read(account),
                    Command::Transfer(transfer) => Op::Transfer(transfer),
                    Command::Fail(_) | Command::Recover(_) => {
                        unreachable!("the runner changes servers itself")
                    }
                },
                cross: row.scope == Some(Scope::CrossShard),
            })
            .collect();
        let Options { in_flight, race, .. } = self.options;
        self.client.send(Ask::Rows { rows: given, in_flight, race });
        loop {
            match self.news()? {
                News::Row { tag, outcome, latency } => {
                    let row = &mut rows[(tag - first_tag) as usize];
                    row.latency = latency;
                    row.outcome = match outcome {
                        Outcome::Committed => RowOutcome::Committed,
                        Outcome::Aborted(reason) => RowOutcome::Aborted(reason),
                        Outcome::Balance(balance) => RowOutcome::Balance(balance),
                        _ => RowOutcome::Unknown,
                    };
                    if let (RowOutcome::Unknown, Command::Transfer(transfer)) = (row.outcome, row.command) {
                        self.open.insert(tag, Open { set, n: row.n, transfer });
                    }
                    bar.inc(1);
                }
                News::RowsDone(segment) => return Ok(*segment),
                News::Op(_) | News::TurnedAway(_) => {}
                News::Resolved { tag, outcome } => self.resolve(tag, outcome),
            }
        }
    }

    fn resolve(&mut self, tag: u64, outcome: Outcome) {
        let Some(open) = self.open.remove(&tag) else { return };
        let outcome = match outcome {
            Outcome::Committed => Ok(()),
            Outcome::Aborted(reason) => Err(reason),
            other => {
                log::error!("transfer {} ended as {other:?}, which is no end", open.transfer);
                return;
            }
        };
        let scope = Scope::of(&open.transfer, &self.topology);
        self.resolved.push(Resolved { set: open.set, n: open.n, transfer: open.transfer, scope, outcome });
    }

    fn news(&self) -> Result<News, Stop> {
        select! {
            recv(self.client.news) -> news => match news {
                Ok(News::TurnedAway(why)) => Err(Stop::Failed(why)),
                Ok(news) => Ok(news),
                Err(_) => Err(Stop::Failed("the coordinator has stopped; see the log above".into())),
            },
            recv(self.interrupt) -> _ => Err(Stop::Interrupted),
            recv(after(PATIENCE)) -> _ => {
                Err(Stop::Failed(format!("nothing happened for {} s; giving up", PATIENCE.as_secs())))
            }
        }
    }

    fn op(&mut self, op: Op) -> Result<Outcome, Stop> {
        self.client.send(Ask::Op(op));
        loop {
            match self.news()? {
                News::Op(outcome) => return Ok(outcome),
                News::Resolved { tag, outcome } => self.resolve(tag, outcome),
                News::Row { .. } | News::RowsDone(_) | News::TurnedAway(_) => {}
            }
        }
    }

    /// Waits until every shard has a confirmed leader or knows that it has no majority (asked anew if servers have
    /// changed), until everything given so far is finished, and until every live server of a cluster with a majority has
    /// applied everything decided.
    fn barrier(&mut self, anew: bool) -> Result<(), Stop> {
        if anew {
            self.op(Op::Confirm { anew: true })?;
        }
        self.op(Op::Settle)?;
        let Outcome::Confirmed(reaches) = self.op(Op::Confirm { anew: false })? else {
            return Err(Stop::Failed("the coordinator answered something else than was asked".into()));
        };
        for (shard, reach) in self.topology.shards().zip(reaches) {
            let Reach::Leader { decided, .. } = reach else { continue };
            for server in self.topology.servers_of(shard) {
                if self.fleet.state(server) == ServerState::Live
                    && let Some(Report::Behind { applied }) =
                        self.ask(server, Order::AwaitApplied(decided))?
                {
                    log::warn!(
                        "{server} has no space for its log: it stands at slot {applied} of {decided}, and what it \
                         shows is old"
                    );
                }
            }
        }
        Ok(())
    }

    // ---- servers ----

    /// Gives an order to a server that is up. `None`: it turned out to be gone, which is no reason to end the run.
    fn ask(&mut self, server: NodeId, order: Order) -> Result<Option<Report>, Stop> {
        match self.fleet.ask(server, order) {
            Ok(report) => Ok(Some(report)),
            Err(e) if self.fleet.state(server) == ServerState::Crashed => {
                log::warn!("{e}; it counts as down");
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Makes exactly `live` be up; whether that changed anything.
    fn bring_up(&mut self, live: &[NodeId]) -> Result<bool, Stop> {
        let mut changed = false;
        for server in self.topology.servers() {
            let state = self.fleet.state(server);
            match (live.contains(&server), state) {
                (true, ServerState::Live) | (false, ServerState::Failed | ServerState::Crashed) => continue,
                (true, _) => self.fleet.recover(server)?,
                (false, ServerState::Live) => self.fleet.fail(server)?,
            }
            changed = true;
        }
        Ok(changed)
    }

    /// The contact servers, or the lowest live number where a cluster has none that is up.
    fn first_choices(&self, set: &Set) -> Vec<NodeId> {
        let up = |s: &NodeId| set.live.contains(s);
        let choice = |shard: ShardId| {
            let contact = set.contacts.iter().copied().find(|c| self.topology.shard_of_server(*c) == shard);
            contact.filter(up).or_else(|| self.topology.servers_of(shard).find(up))
        };
        self.topology.shards().filter_map(choice).collect()
    }

    fn reset(&mut self) -> Result<(), Stop> {
        self.collect_elections();
        // What is unknown stays so: the servers that could tell are gone.
        self.client = {
            let fleet = (self.factory)()?;
            let client = start_client(fleet.as_ref())?;
            self.fleet = fleet;
            client
        };
        self.fresh = true;
        Ok(())
    }

    pub fn fail(&mut self, server: NodeId) -> Result<(), Stop> {
        self.fleet.fail(server)?;
        self.barrier(true)
    }

    pub fn recover(&mut self, server: NodeId) -> Result<(), Stop> {
        self.fleet.recover(server)?;
        self.barrier(true)
    }

    pub fn crash(&mut self, server: NodeId) -> Result<(), Stop> {
        self.collect_elections();
        self.fleet.crash(server)?;
        self.barrier(true)
    }

    pub fn restart(&mut self, server: NodeId) -> Result<(), Stop> {
        self.fleet.restart(server)?;
        self.barrier(true)
    }

    pub fn states(&self) -> Vec<(NodeId, ServerState)> {
        self.topology.servers().map(|s| (s, self.fleet.state(s))).collect()
    }

    // ---- looking ----

    fn statuses(&mut self) -> Vec<(NodeId, Option<Status>)> {
        let servers: Vec<NodeId> = self.topology.servers().collect();
        servers
            .into_iter()
            .map(|server| {
                let up = self.fleet.state(server) != ServerState::Crashed;
                let report = up.then(|| self.fleet.ask(server, Order::Status));
                match report {
                    Some(Ok(Report::Status(status))) => (server, Some(*status)),
                    Some(Err(e)) => {
                        log::warn!("{e}");
                        (server, None)
                    }
                    _ => (server, None),
                }
            })
            .collect()
    }

    fn syncs(&mut self) -> BTreeMap<NodeId, u64> {
        let counted =
            |(server, status): (NodeId, Option<Status>)| (server, status.map_or(0, |s| s.metrics.syncs));
        self.statuses().into_iter().map(counted).collect()
    }

    /// Syncs since `before`; a server that was restarted in between counts from zero again.
    fn syncs_since(&mut self, before: &BTreeMap<NodeId, u64>) -> u64 {
        let grown = |(server, now): (NodeId, u64)| {
            let then = before.get(&server).copied().unwrap_or(0);
            if now >= then { now - then } else { now }
        };
        self.syncs().into_iter().map(grown).sum()
    }

    pub fn server_rows(&mut self) -> Vec<ServerRow> {
        let states = self.states();
        let statuses = self.statuses();
        states
            .into_iter()
            .zip(statuses)
            .map(|((server, up), (_, status))| {
                let status = status.unwrap_or_else(|| Status::new(server));
                ServerRow {
                    server,
                    up,
                    role: status.role,
                    ballot: status.ballot,
                    decided: status.decided,
                    applied: status.applied,
                    disk_full: status.room.is_some(),
                    metrics: status.metrics,
                }
            })
            .collect()
    }

    /// Balances on every server of each account's cluster; `None` where the server has crashed.
    pub fn balances(
        &mut self,
        accounts: impl IntoIterator<Item = AccountId>,
    ) -> Result<BTreeMap<AccountId, BTreeMap<NodeId, Option<u64>>>, Stop> {
        let mut by_shard: BTreeMap<ShardId, Vec<AccountId>> = BTreeMap::new();
        for account in accounts {
            if let Some(shard) = self.topology.shard_of(account) {
                by_shard.entry(shard).or_default().push(account);
            }
        }
        let mut table: BTreeMap<AccountId, BTreeMap<NodeId, Option<u64>>> = BTreeMap::new();
        for (shard, accounts) in by_shard {
            for server in self.topology.servers_of(shard) {
                let up = self.fleet.state(server) != ServerState::Crashed;
                let report = if up { self.ask(server, Order::Balances(accounts.clone()))? } else { None };
                let held = match report {
                    None => vec![None; accounts.len()],
                    Some(Report::Balances(held)) if held.len() == accounts.len() => held,
                    Some(_) => {
                        return Err(Stop::Failed(format!("{server} answers something else than was asked")));
                    }
                };
                for (account, balance) in accounts.iter().zip(held) {
                    table.entry(*account).or_default().insert(server, balance);
                }
            }
        }
        Ok(table)
    }

    /// The committed transactions of one server, in log order.
    pub fn log(&mut self, server: NodeId) -> Result<Log, Stop> {
        let Listing { committed, gaps } = match self.fleet.ask(server, Order::Log)? {
            Report::Log(listing) => listing,
            Report::Failed(why) => return Err(Stop::Failed(why)),
            _ => return Err(Stop::Failed(format!("{server} answers something else than was asked"))),
        };
        let line = |l: Committed| {
            let scope = Scope::of(&l.transfer, &self.topology)?;
            Some(LogLine { slot: l.slot, id: l.id, transfer: l.transfer, scope })
        };
        Ok(Log { lines: committed.into_iter().filter_map(line).collect(), gaps })
    }

    fn collect_elections(&mut self) {
        for (server, status) in self.statuses() {
            for won in status.into_iter().flat_map(|s| s.elections) {
                let election = Election {
                    shard: self.topology.shard_of_server(server),
                    server,
                    ballot: won.ballot,
                    at: Duration::from_micros(won.at_us),
                    phase1_slots: won.reproposed,
                };
                self.elections.insert((won.at_us, server), election);
            }
        }
    }

    /// Every election so far, oldest first.
    pub fn views(&mut self) -> Vec<Election> {
        self.collect_elections();
        self.elections.values().copied().collect()
    }
}

fn start_client(fleet: &dyn Fleet) -> Result<Client, Stop> {
    Client::start(fleet.context().clone(), fleet.timeouts())
        .map_err(|e| Stop::Failed(format!("the coordinator cannot start: {e}")))
}

fn add(performance: &mut Performance, segment: &Segment) {
    performance.latency.merge(&segment.latency);
    performance.intra.latency.merge(&segment.intra);
    performance.cross.latency.merge(&segment.cross);
    performance.held_back.merge(&segment.held_back);
    performance.peak_in_flight = performance.peak_in_flight.max(segment.peak_in_flight);
}
