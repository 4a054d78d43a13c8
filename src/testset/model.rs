//! The sequential model: a set file run one row after the other on a map of balances.
//!
//! It is what the real servers are compared with, so it must be obviously right: no shards beyond the arithmetic of
//! the topology, no log, no concurrency. It knows what no server knows, the list of servers that are up; a cluster can
//! decide exactly when more than half of its servers are. Lock contention does not exist here, and nothing stays
//! unknown: a run in which rows conflict (`--race`) or in which servers fail under load is not covered by it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Command, Set, SetFile};
use crate::config::Topology;
use crate::types::{AccountId, NodeId, Reason, ShardId, Transfer};

/// What must come of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A transfer that happened.
    Committed,
    /// A transfer or a read that did not.
    Aborted(Reason),
    /// A read, and the balance that it shows.
    Balance(u64),
    /// A failure or recovery: always carried out.
    Done,
}

/// What must come of a set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetOutcome {
    pub number: u64,
    /// One per row, in file order.
    pub rows: Vec<Outcome>,
    /// After the set: every account of the bank that its transfers name, whatever became of them.
    pub balances: BTreeMap<AccountId, u64>,
}

/// The whole bank as a single machine.
#[derive(Clone, Debug)]
pub struct Model {
    topology: Topology,
    up: BTreeSet<NodeId>,
    /// Accounts that differ from the initial balance.
    changed: BTreeMap<AccountId, u64>,
}

/// Runs a whole file on a new bank, or every set on a bank of its own.
pub fn run(topology: &Topology, file: &SetFile, reset_each_set: bool) -> Vec<SetOutcome> {
    let mut model = Model::new(*topology);
    file.sets
        .iter()
        .map(|set| {
            if reset_each_set {
                model = Model::new(*topology);
            }
            model.run_set(set)
        })
        .collect()
}

impl Model {
    /// A new bank with all servers up.
    pub fn new(topology: Topology) -> Model {
        Model { topology, up: topology.servers().collect(), changed: BTreeMap::new() }
    }

    pub fn run_set(&mut self, set: &Set) -> SetOutcome {
        self.up = set.live.iter().copied().collect();
        let rows = set.rows.iter().map(|row| self.run_command(&row.command)).collect();
        let accounts = set.transfer_accounts(&self.topology);
        let balances = accounts.into_iter().map(|a| (a, self.balance(a))).collect();
        SetOutcome { number: set.number, rows, balances }
    }

    pub fn run_command(&mut self, command: &Command) -> Outcome {
        match *command {
            Command::Transfer(transfer) => match self.transfer(&transfer) {
                Ok(()) => Outcome::Committed,
                Err(reason) => Outcome::Aborted(reason),
            },
            Command::Balance(account) => match self.topology.shard_of(account) {
                None => Outcome::Aborted(Reason::UnknownAccount),
                Some(shard) if !self.has_quorum(shard) => Outcome::Aborted(Reason::NoQuorum),
                Some(_) => Outcome::Balance(self.balance(account)),
            },
            Command::Fail(server) => {
                self.up.remove(&server);
                Outcome::Done
            }
            Command::Recover(server) => {
                self.up.insert(server);
                Outcome::Done
            }
        }
    }

    /// What the bank holds on an account of its own, quorum or not.
    pub fn balance(&self, account: AccountId) -> u64 {
        self.changed.get(&account).copied().unwrap_or(self.topology.initial_balance)
    }

    /// The servers that are up.
    pub fn up(&self) -> &BTreeSet<NodeId> {
        &self.up
    }

    pub fn has_quorum(&self, shard: ShardId) -> bool {
        let up = self.topology.servers_of(shard).filter(|s| self.up.contains(s)).count();
        up >= self.topology.majority()
    }

    /// The checks stand in the order of precedence of [`Reason`].
    fn transfer(&mut self, transfer: &Transfer) -> Result<(), Reason> {
        let amount = u64::try_from(transfer.amount).unwrap_or(0);
        if amount == 0 {
            return Err(Reason::InvalidAmount);
        }
        if transfer.from == transfer.to {
            return Err(Reason::SameAccount);
        }
        for account in [transfer.from, transfer.to] {
            self.topology.shard_of(account).ok_or(Reason::UnknownAccount)?;
        }
        let participants = [transfer.from, transfer.to].map(|a| self.topology.shard_of(a));
        if participants.into_iter().flatten().any(|shard| !self.has_quorum(shard)) {
            return Err(Reason::NoQuorum);
        }
        let left = self.balance(transfer.from).checked_sub(amount).ok_or(Reason::InsufficientBalance)?;
        // Cannot overflow: the sum of all balances stays below 2^63 (Topology::validate).
        let received = self.balance(transfer.to) + amount;
        self.changed.insert(transfer.from, left);
        self.changed.insert(transfer.to, received);
        Ok(())
    }
}

/// The form of the `.expected.json` files: per set its number, what became of each row, and the balances.
pub fn to_json(file: &SetFile, outcomes: &[SetOutcome]) -> Value {
    assert_eq!(file.sets.len(), outcomes.len(), "outcomes of another file");
    let sets = file.sets.iter().zip(outcomes).map(|(set, outcome)| {
        let rows = set.rows.iter().zip(&outcome.rows).enumerate();
        let results: Vec<Value> = rows.map(|(i, (row, o))| row_json(i + 1, &row.command, o)).collect();
        let balances: BTreeMap<String, u64> =
            outcome.balances.iter().map(|(account, balance)| (account.to_string(), *balance)).collect();
        json!({"set": outcome.number, "results": results, "balances": balances})
    });
    Value::Array(sets.collect())
}

fn row_json(n: usize, command: &Command, outcome: &Outcome) -> Value {
    let kind = match command {
        Command::Transfer(_) => "transfer",
        Command::Balance(_) => "balance",
        Command::Fail(_) => "fail",
        Command::Recover(_) => "recover",
    };
    match outcome {
        Outcome::Committed => json!({"n": n, "kind": kind, "outcome": "committed"}),
        Outcome::Aborted(reason) => {
            json!({"n": n, "kind": kind, "outcome": "aborted", "reason": reason.name()})
        }
        Outcome::Balance(balance) => json!({"n": n, "kind": kind, "outcome": "ok", "balance": balance}),
        Outcome::Done => json!({"n": n, "kind": kind}),
    }
}
