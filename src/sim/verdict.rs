//! The verdict on what the clients saw, by [`crate::history`], which knows nothing of logs and servers.

use std::collections::HashMap;

use crate::history::{self, Call, Failure, Operation, Reply};
use crate::sim::clients::Asked;
use crate::sim::world::World;
use crate::txn::{Op, Outcome};
use crate::types::{Reason, Transfer, TxnId};

/// Steps that the search may take for one run; far more than nearly all need.
const BUDGET: u64 = 50_000_000;

/// An operation as its client saw it. Questions about leaders are none.
fn operation(client: u32, asked: &Asked) -> Option<Operation> {
    let call = match asked.op {
        Op::Transfer(transfer) => Call::Transfer(transfer),
        Op::Read(account) => Call::Read(account),
        // What clients named is added up in `named`.
        Op::Named { .. } | Op::Open | Op::Lookup(_) | Op::Confirm { .. } | Op::Settle => return None,
    };
    let reply = match asked.outcomes.last() {
        Some(Outcome::Committed) => Some(Reply::Committed),
        Some(Outcome::Aborted(reason)) => Some(Reply::Aborted(*reason)),
        Some(Outcome::Balance(balance)) => Some(Reply::Balance(*balance)),
        _ => None,
    };
    Some(Operation { client, call, invoked: asked.invoked, replied: asked.answered.zip(reply) })
}

/// A transfer that clients named: however many asked for it, and however often, it is one. It began when the first of them
/// asked, and was over when the first of them was told for good.
fn named_operation(asked: &[(u32, &Asked)], transfer: Transfer) -> Option<Operation> {
    let (client, first) = asked.iter().min_by_key(|(_, asked)| asked.invoked)?;
    let told = |asked: &Asked| {
        let reply = match asked.outcomes.last()? {
            Outcome::Committed => Reply::Committed,
            Outcome::Aborted(reason) => Reply::Aborted(*reason),
            Outcome::Closed | Outcome::SessionFull => Reply::Aborted(Reason::NoQuorum),
            _ => return None,
        };
        Some((asked.answered?, reply))
    };
    let replied = asked.iter().filter_map(|(_, asked)| told(asked)).min_by_key(|(at, _)| *at);
    Some(Operation { client: *client, call: Call::Transfer(transfer), invoked: first.invoked, replied })
}

impl World {
    /// Everything that any client ever asked and was told, in the order of asking.
    pub fn history(&self) -> Vec<Operation> {
        let living = self.clients.iter().flat_map(|(id, client)| client.asked.values().map(|a| (*id, a)));
        let departed = self.departed.iter().map(|(id, asked)| (*id, asked));
        let asked: Vec<(u32, &Asked)> = living.chain(departed).collect();
        let mut named: HashMap<(TxnId, Transfer), Vec<(u32, &Asked)>> = HashMap::new();
        for (client, asked) in &asked {
            if let Op::Named { id, transfer } = asked.op {
                named.entry((id, transfer)).or_default().push((*client, asked));
            }
        }
        let mut all: Vec<Operation> = asked.iter().filter_map(|(id, asked)| operation(*id, asked)).collect();
        all.extend(named.iter().filter_map(|((_, transfer), all)| named_operation(all, *transfer)));
        all.sort_by_key(|o| o.invoked);
        all
    }

    /// Panics if no order of instants explains what the clients saw. False if the search ran out of its budget.
    pub fn judge(&self) -> bool {
        match history::check_within(BUDGET, &self.options.topology, &self.history()) {
            Ok(_) => true,
            Err(Failure::Undecided(_)) => false,
            Err(Failure::Violation(violation)) => panic!("H1: not strictly serializable: {violation}"),
        }
    }
}
