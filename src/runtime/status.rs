//! What others may look at: published by a server's loop once per turn, under one lock that nobody holds across a
//! system call.

use serde::{Deserialize, Serialize};

use crate::metrics::ServerMetrics;
use crate::report::Role;
use crate::types::{Ballot, NodeId, Slot};

/// A server as it was at the end of its last turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub server: NodeId,
    pub role: Role,
    pub ballot: Ballot,
    pub decided: Slot,
    pub applied: Slot,
    /// Digest of the bank at `applied`; equal on all servers of the cluster (P4).
    pub digest: u64,
    /// Bytes that still fit into its log, if its disk is full.
    pub room: Option<u64>,
    /// Undecided YES votes.
    pub in_doubt: u64,
    /// Elections that this server won, oldest first.
    pub elections: Vec<Won>,
    pub metrics: ServerMetrics,
    /// Why the server stopped for good, if it did.
    pub stopped: Option<String>,
}

/// An election won.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Won {
    pub ballot: Ballot,
    /// Microseconds since the server's process started.
    pub at_us: u64,
    /// Slots that phase 1 brought up to be proposed again.
    pub reproposed: u64,
}

impl Status {
    pub fn new(server: NodeId) -> Status {
        Status {
            server,
            role: Role::default(),
            ballot: Ballot::ZERO,
            decided: Slot::ZERO,
            applied: Slot::ZERO,
            digest: 0,
            room: None,
            in_doubt: 0,
            elections: Vec::new(),
            metrics: ServerMetrics::default(),
            stopped: None,
        }
    }
}

/// What is said where damage stops a cluster: it is named, and nothing is guessed.
pub fn lost(slots: &[(Slot, Slot)], decided: bool) -> String {
    let run =
        |(from, to): &(Slot, Slot)| if from == to { from.to_string() } else { format!("{from} to {to}") };
    let named = match &slots.iter().map(run).collect::<Vec<_>>()[..] {
        [one] if slots[0].0 == slots[0].1 => format!("slot {one}"),
        all => format!("slots {}", all.join(", ")),
    };
    match decided {
        true => format!(
            "{named}: decided, and no server that answers has the values whole: the cluster stops here until one does (S2); \
             start all of its servers, from copies of their directories if need be"
        ),
        false => format!(
            "{named}: too few servers know what was voted: the cluster stops here until more of them answer (S2)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_named() {
        let run = |from, to| (Slot(from), Slot(to));
        assert!(lost(&[run(5, 5)], true).starts_with("slot 5: decided"));
        assert!(lost(&[run(5, 5), run(7, 9)], true).starts_with("slots 5, 7 to 9: decided"));
        assert!(lost(&[run(7, 9)], true).starts_with("slots 7 to 9: decided"));
        assert!(lost(&[run(4, 4)], false).starts_with("slot 4: too few servers"));
    }
}
