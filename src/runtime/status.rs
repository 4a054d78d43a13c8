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
