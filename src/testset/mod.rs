//! Set files: the transactions that `bank run` executes, and what must come of them.
//!
//! A file holds *sets*; each names the servers that are up when it starts and the rows to run. Three parts share the
//! types below and know nothing of sockets, disks or clocks:
//!
//! * [`parse`]: bytes to [`SetFile`], or one line that says where and what is wrong.
//! * [`model`]: the same file run one row after the other on a map of balances: the oracle that end-to-end tests
//!   compare the real servers with.
//! * [`schedule`]: which rows may run side by side so that every outcome still equals file order.
//!
//! Deliberately absent: judging transactions. A transfer of a negative amount or between unknown accounts is a good
//! row; it is the servers that abort it.

pub mod model;
pub mod parse;
pub mod schedule;

use std::collections::BTreeSet;

pub use parse::{ParseError, parse};
pub use schedule::Scheduler;

use crate::config::Topology;
use crate::types::{AccountId, NodeId, Transfer};

/// A parsed file: at least one set, in file order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetFile {
    pub sets: Vec<Set>,
}

/// Adjacent rows under one number, run to their end before the next set begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// As written; need not be unique: a number that comes back later is another set.
    pub number: u64,
    /// Line of its first row, from 1.
    pub line: usize,
    /// The servers that are up at its start, ascending, each once. Empty when all are down.
    pub live: Vec<NodeId>,
    /// Servers that the client should ask first, ascending, at most one of each cluster. A hint: one that is not in
    /// `live` is simply down.
    pub contacts: Vec<NodeId>,
    /// At least one. A row's number within the set (the `n` of JSON) is its position here plus one, whatever it does.
    pub rows: Vec<Row>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// Line of the file, from 1.
    pub line: usize,
    pub command: Command,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// `(100, 501, 8)`: not validated, see [`Transfer`].
    Transfer(Transfer),
    /// `(100)`: read a balance.
    Balance(AccountId),
    /// `F(S2)`: cut this server off. Changes nothing when it is down already.
    Fail(NodeId),
    /// `R(S2)`: bring it back. Changes nothing when it is up.
    Recover(NodeId),
}

impl Command {
    /// The accounts that it touches, as written: at most two, perhaps equal, perhaps unknown.
    pub fn accounts(&self) -> impl Iterator<Item = AccountId> + use<> {
        let (first, second) = match *self {
            Command::Transfer(t) => (Some(t.from), Some(t.to)),
            Command::Balance(account) => (Some(account), None),
            Command::Fail(_) | Command::Recover(_) => (None, None),
        };
        first.into_iter().chain(second)
    }
}

impl Set {
    /// The accounts of this topology that its transfers name, whatever becomes of them.
    pub fn transfer_accounts(&self, topology: &Topology) -> BTreeSet<AccountId> {
        let transfers = self.rows.iter().filter(|row| matches!(row.command, Command::Transfer(_)));
        transfers.flat_map(|row| row.command.accounts()).filter(|a| topology.shard_of(*a).is_some()).collect()
    }
}

impl SetFile {
    /// The accounts that rows name but the bank does not hold: each once, ascending. Worth one warning at the start,
    /// because it usually means that the file was written for a larger bank.
    pub fn unknown_accounts(&self, topology: &Topology) -> Vec<AccountId> {
        let rows = self.sets.iter().flat_map(|set| &set.rows);
        let named: BTreeSet<AccountId> = rows.flat_map(|row| row.command.accounts()).collect();
        named.into_iter().filter(|a| topology.shard_of(*a).is_none()).collect()
    }
}
