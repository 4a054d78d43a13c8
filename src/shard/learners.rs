//! What a leader does for a server that lost its disk and came back with another one (S3).

use std::collections::VecDeque;

use crate::bank::command;
use crate::paxos::message::Learner;
use crate::shard::{Queued, Shard};
use crate::types::{ClientId, NodeId, Time, Value};

impl Shard {
    /// Proposes to let a learner in, once it has nearly caught up: from then on it is asked again, and it would slow down
    /// whatever needs its answer. What is lost is proposed again.
    pub(super) fn on_learner(&mut self, now: Time, from: NodeId, m: &Learner) {
        let leads = self.replica.is_leader() && self.replica.promised() == m.ballot;
        let near = m.decided.0 + self.limits.window_slots >= self.replica.decided().0;
        let outside = self.replica.membership().is_outside(from, m.incarnation);
        let known = self.topology.servers_of(self.shard).any(|server| server == from);
        let early = self.let_in.get(&from).is_some_and(|at| now.since(*at) < self.timeouts.election());
        // An older disk's word that comes late must not take the place of one that was let in since.
        let heard = self.replica.hears(now, from);
        if !leads || !near || !outside || !known || early || heard {
            return;
        }
        self.let_in.insert(from, now);
        let mut bytes = Vec::new();
        command::put_rejoin(&mut bytes, from, m.incarnation, m.ballot);
        let size = command::check(&bytes).expect("it was just encoded");
        self.queue_bytes += bytes.len();
        let queue: &mut VecDeque<Queued> = &mut self.queue;
        queue.push_back(Queued { client: ClientId(u64::MAX), request: 0, blocks: Value(bytes.into()), size });
    }
}
