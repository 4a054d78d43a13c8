//! Whose promises and votes count (S3): a server that lost its disk has forgotten its own, and says so.
//!
//! Each life of a disk has an *incarnation*. A server that comes back with a new one is a *learner*: it answers no question
//! that counts towards a majority, and takes in what is decided. When a `Rejoin` that names its new incarnation is decided,
//! by a majority without it, it promises at least the ballot that the entry names, and votes again. From then on whatever
//! its old disk vouched for, and is still on its way, counts for nothing.
//!
//! A candidate looks for such entries also among the votes that phase 1 brings up: one that may be decided could rest on a
//! majority that its own quorum, with an old promise in it, does not meet.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::paxos::leader::Progress;
use crate::paxos::message::{Fetch, Heartbeat, Learner, Message, Promise};
use crate::paxos::output::Output;
use crate::paxos::replica::{Replica, Role};
use crate::types::{Ballot, Incarnation, NodeId, Rejoined, Slot, Time, Value};

/// Why a message from a server whose disk was replaced since counts for nothing.
pub const LOST_DISK_VOUCHED: &str = "what a disk vouched for that is lost";
/// Why its promise does, when the candidate that has it learns of that.
pub const LOST_DISK_PROMISED: &str = "the promise of a disk that is lost";

/// Finds the servers that a value lets rejoin. A replica does not know what values mean.
#[derive(Clone, Copy)]
pub struct Names(pub fn(&Value) -> Vec<(NodeId, Rejoined)>);

/// Which incarnation of each server counts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Membership {
    me: NodeId,
    mine: Incarnation,
    /// This disk was there when the bank was founded: it counts unless another one was let in.
    founder: bool,
    /// By the latest decided `Rejoin` of each server; those that are not here have their first disk.
    rejoined: BTreeMap<NodeId, Rejoined>,
    names: Names,
    /// A learner was told that everything up to here is decided.
    pub(super) known: Slot,
    /// No record of its own says that it promised the ballot of its own `Rejoin`. That entry says so itself, so a full disk
    /// may put it off.
    pub(super) promise_unsaved: bool,
}

impl Default for Membership {
    fn default() -> Membership {
        Membership::new(NodeId(0), Incarnation::default(), true, Names(|_| Vec::new()))
    }
}

impl Membership {
    pub fn new(me: NodeId, mine: Incarnation, founder: bool, names: Names) -> Membership {
        let (rejoined, known) = (BTreeMap::new(), Slot::ZERO);
        Membership { me, mine, founder, rejoined, names, known, promise_unsaved: false }
    }

    pub fn mine(&self) -> Incarnation {
        self.mine
    }

    /// Whether this server votes.
    pub fn votes(&self) -> bool {
        self.rejoined.get(&self.me).map_or(self.founder, |known| known.incarnation == self.mine)
    }

    /// Whether what this disk of a server vouches for counts.
    pub fn counts(&self, server: NodeId, incarnation: Incarnation) -> bool {
        self.rejoined.get(&server).is_none_or(|known| known.incarnation == incarnation)
    }

    /// Whether a server with this disk waits to be let in.
    pub fn is_outside(&self, server: NodeId, incarnation: Incarnation) -> bool {
        self.rejoined.get(&server).is_none_or(|known| known.incarnation != incarnation)
    }

    /// A `Rejoin` is decided. If it is this server's own, the ballot that it promises.
    pub(super) fn rejoin(&mut self, server: NodeId, rejoined: Rejoined) -> Option<Ballot> {
        self.rejoined.insert(server, rejoined);
        (server == self.me && rejoined.incarnation == self.mine).then_some(rejoined.ballot)
    }

    pub(super) fn names(&self, value: &Value) -> Vec<(NodeId, Rejoined)> {
        (self.names.0)(value)
    }

    /// The same with what the votes say that a candidate would propose again. Not those for slots that it knows as decided
    /// meanwhile: what came after them may have put them out.
    pub(super) fn newest<'a>(
        &self,
        decided: Slot,
        promises: impl Iterator<Item = &'a Promise>,
    ) -> Membership {
        let mut votes: BTreeMap<Slot, (Ballot, &Value)> = BTreeMap::new();
        for promise in promises {
            for (slot, ballot, value) in promise.cast().filter(|(slot, ..)| *slot > decided) {
                let vote = votes.entry(slot).or_insert((ballot, value));
                if vote.0 < ballot {
                    *vote = (ballot, value);
                }
            }
        }
        let mut newest = self.clone();
        for (server, rejoined) in votes.values().flat_map(|(_, value)| self.names(value)) {
            newest.rejoin(server, rejoined);
        }
        newest
    }
}

impl Replica {
    /// The same with the history of its disk, and what the log says of those of others (S3). If this server was let in
    /// again, it has promised what that said.
    pub fn with_membership(
        mut self,
        membership: Membership,
        rejoined: impl IntoIterator<Item = (NodeId, Rejoined)>,
    ) -> Replica {
        self.membership = membership;
        for (server, rejoined) in rejoined {
            let own = self.membership.rejoin(server, rejoined);
            if let Some(ballot) = own.filter(|ballot| *ballot > self.promised) {
                self.promised = ballot;
                self.highest = ballot;
                self.position = self.decided;
                self.membership.promise_unsaved = true;
            }
        }
        self
    }

    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Everything up to `slot` is decided and has its value here.
    pub(super) fn set_decided(&mut self, now: Time, slot: Slot, out: &mut Output) {
        while self.decided < slot {
            let next = self.decided.next();
            let (_, value) = self.log.get(next).expect("P2: a decided slot has its value in the log");
            let rejoined = self.membership.names(value);
            self.decided = next;
            for (server, rejoined) in rejoined {
                self.let_in(now, server, rejoined, out);
            }
        }
        self.mend(out);
    }

    /// S3: from now on another disk of a server counts.
    pub fn let_in(&mut self, now: Time, server: NodeId, rejoined: Rejoined, out: &mut Output) {
        let own = self.membership.rejoin(server, rejoined);
        if let Some(ballot) = own.filter(|ballot| *ballot > self.promised) {
            let room = self.can_promise(out);
            self.promise(now, ballot, out);
            if !room {
                out.records.pop();
                self.membership.promise_unsaved = true;
            }
        }
        if server != self.me
            && let Role::Leader(leader) = &mut self.role
        {
            leader.progress.insert(server, Progress::new(now, None));
        }
    }

    /// Whether this leader has heard from the disk of a server that counts, within an election time-out.
    pub fn hears(&self, now: Time, server: NodeId) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        leader.progress.get(&server).is_some_and(|p| now.since(p.heard) < self.timeouts.election())
    }

    /// A learner answers nothing that counts: it says where it stands, and asks for what is decided beyond.
    pub(super) fn learn_from(&mut self, from: NodeId, m: Heartbeat, out: &mut Output) {
        let (decided, incarnation) = (self.decided, self.membership.mine());
        out.now.push((from, Message::Learner(Learner { ballot: m.ballot, decided, incarnation })));
        self.membership.known = m.decided;
        if decided < m.decided {
            out.now.push((from, Message::Fetch(Fetch { from: decided.next() })));
        }
    }
}

// All servers have the same function, which is no part of their state.
impl PartialEq for Names {
    fn eq(&self, _: &Names) -> bool {
        true
    }
}

impl Eq for Names {}

impl Hash for Names {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}
