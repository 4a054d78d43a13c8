//! The verdict on what the clients saw, by [`crate::history`], which knows nothing of logs and servers.

use crate::history::{self, Call, Failure, Operation, Reply};
use crate::sim::clients::Asked;
use crate::sim::world::World;
use crate::txn::{Op, Outcome};

/// Steps that the search may take for one run; far more than nearly all need.
const BUDGET: u64 = 50_000_000;

/// An operation as its client saw it. Questions about leaders are none.
fn operation(client: u32, asked: &Asked) -> Option<Operation> {
    let call = match asked.op {
        Op::Transfer(transfer) => Call::Transfer(transfer),
        Op::Read(account) => Call::Read(account),
        Op::Confirm { .. } | Op::Settle => return None,
    };
    let reply = match asked.outcomes.last() {
        Some(Outcome::Committed) => Some(Reply::Committed),
        Some(Outcome::Aborted(reason)) => Some(Reply::Aborted(*reason)),
        Some(Outcome::Balance(balance)) => Some(Reply::Balance(*balance)),
        _ => None,
    };
    Some(Operation { client, call, invoked: asked.invoked, replied: asked.answered.zip(reply) })
}

impl World {
    /// Everything that any client ever asked and was told, in the order of asking.
    pub fn history(&self) -> Vec<Operation> {
        let living = self.clients.iter().flat_map(|(id, client)| client.asked.values().map(|a| (*id, a)));
        let departed = self.departed.iter().map(|(id, asked)| (*id, asked));
        let mut all: Vec<Operation> =
            living.chain(departed).filter_map(|(id, asked)| operation(id, asked)).collect();
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
