//! How a leader that is about to stop, or too slow to lead, leaves the lead to another server, so that its cluster need not
//! wait for its silence.
//!
//! Source: D. Ongaro, "Consensus: Bridging Theory and Practice" (2014), section 3.10. The follower that has come furthest
//! begins phase 1 at once, without a pre-vote, which is there to spare a leader that is well. Nothing that is safe depends on
//! it: whatever is lost or comes twice, there is one campaign more, or one that begins later.

use crate::paxos::message::{Doubts, Message};
use crate::paxos::output::{Event, Output};
use crate::paxos::replica::{Replica, Role};
use crate::types::{NodeId, Time};

/// Why a leader that is about to stop does not lead any more.
pub const LEAVES: &str = "it leaves the lead to another server";
/// Why one that is too slow does not.
pub const TOO_SLOW: &str = "it is too slow, and leaves the lead to another server";

impl Replica {
    /// Gives the lead up, if there is no slot in flight: whoever proposed one could not be told what becomes of it. Whether
    /// this server leads no more.
    pub fn resign(&mut self, now: Time, why: &'static str, out: &mut Output) -> bool {
        let (decided, ballot) = (self.decided, self.promised);
        let Role::Leader(leader) = &self.role else { return true };
        if self.position > decided || leader.phase1_end > decided {
            return false;
        }
        if let Some(to) = self.successor(now) {
            out.now.push((to, Message::Resign { ballot }));
        }
        self.step_down(now, why, out);
        // Not before the others had their time does it ask for the lead again: they wait for a leader that they do not hear
        // up to two election time-outs. Once one of them campaigns, it waits for that one as everybody does.
        self.yields_until = Some(now + self.timeouts.election() * 2);
        self.deadline = self.deadline + self.timeouts.election();
        true
    }

    /// Whoever would follow this leader best if it left: of those that may lead, the one that has come furthest.
    pub fn successor(&self, now: Time) -> Option<NodeId> {
        let Role::Leader(leader) = &self.role else { return None };
        let able = leader.progress.iter().filter(|(server, progress)| {
            let heard = now.since(progress.heard) < self.timeouts.election();
            **server != self.me && heard && progress.doubts == Some(Doubts::None) && progress.room.is_none()
        });
        able.max_by_key(|(_, progress)| progress.acked).map(|(server, _)| *server)
    }

    /// The leader leaves, and nobody is nearer to leading than this server.
    pub(super) fn on_resign(&mut self, now: Time, from: NodeId, out: &mut Output) {
        let able = self.membership.votes() && self.doubts() == Doubts::None && self.has_room();
        if !matches!(self.role, Role::Follower) || !able {
            return out
                .events
                .push(Event::Ignored { from, what: "a leader that leaves the lead to this server" });
        }
        out.events.push(Event::Succeeds { from });
        self.campaign(now, out);
    }
}
