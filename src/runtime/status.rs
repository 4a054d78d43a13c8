//! What others may look at: published by a server's loop once per turn, under one lock that nobody holds across a
//! system call.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::metrics::{Latencies, ServerMetrics};
use crate::report::Role;
use crate::types::{Ballot, NodeId, Slot};

/// A server as it was at the end of its last turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub server: NodeId,
    /// How long its process had been running by then, on its own clock; zero before the first turn.
    pub uptime: Duration,
    pub role: Role,
    /// Whom it knows as the leader; itself, if it leads.
    pub leader: Option<NodeId>,
    /// Until what uptime that stands if nothing more is heard: see [`Replica::led_until`](crate::paxos::Replica::led_until).
    /// Zero if nothing shows that its cluster is led.
    pub led_until: Duration,
    /// It is cut off, by an order.
    pub failed: bool,
    /// Damage took votes of it, and those that it has do not all count until that is made good (S2).
    pub repairing: bool,
    /// Others have another state, and clients are told nothing of this one until a majority says who is right (P4).
    pub disputed: bool,
    pub ballot: Ballot,
    pub decided: Slot,
    pub applied: Slot,
    /// Slots that are decided, as far as leaders have told this server, and not applied here.
    pub lag: u64,
    /// Digest of the bank at `applied`; equal on all servers of the cluster (P4).
    pub digest: u64,
    /// Bytes that still fit into its log, if its disk is full.
    pub room: Option<u64>,
    /// Bytes that the segments of its log take on disk.
    pub log_bytes: u64,
    /// Undecided YES votes.
    pub in_doubt: u64,
    /// Requests that wait for their place in a slot, and the bytes of their blocks.
    pub queued: u64,
    pub queued_bytes: u64,
    /// Slots that this leader has proposed and that are not decided.
    pub in_flight: u64,
    /// Elections that this server won, oldest first.
    pub elections: Vec<Won>,
    pub metrics: ServerMetrics,
    /// It is told to stop, and does so as soon as nobody misses it.
    pub leaving: bool,
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
            uptime: Duration::ZERO,
            role: Role::default(),
            leader: None,
            led_until: Duration::ZERO,
            failed: false,
            repairing: false,
            disputed: false,
            ballot: Ballot::ZERO,
            decided: Slot::ZERO,
            applied: Slot::ZERO,
            lag: 0,
            digest: 0,
            room: None,
            log_bytes: 0,
            in_doubt: 0,
            queued: 0,
            queued_bytes: 0,
            in_flight: 0,
            elections: Vec::new(),
            metrics: ServerMetrics::default(),
            leaving: false,
            stopped: None,
        }
    }

    /// The same without what is long, so that whoever looks often holds the lock no longer than it takes to copy some
    /// numbers: no elections, and no latencies but their [`Durations`](crate::metrics::Durations).
    pub fn brief(&self) -> Status {
        let metrics = ServerMetrics {
            sync_latency: Latencies::default(),
            led_latency: Latencies::default(),
            damage: self.metrics.damage.clone(),
            ..self.metrics
        };
        Status { elections: Vec::new(), metrics, stopped: self.stopped.clone(), ..*self }
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
