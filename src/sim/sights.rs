//! What the world notices for [`Coverage`](crate::sim::Coverage), always at the victim.

use std::io;

use crate::paxos::handover::{LEAVES, TOO_SLOW};
use crate::paxos::membership::{LOST_DISK_PROMISED, LOST_DISK_VOUCHED};
use crate::paxos::replica::RENEWS;
use crate::paxos::{self, Message};
use crate::shard;
use crate::sim::coverage::Seen;
use crate::sim::disk::SimDisk;
use crate::sim::server::{Outbox, Running, Sent};
use crate::sim::world::World;
use crate::storage::Wal;
use crate::txn;
use crate::txn::message::{Refusal, Response};
use crate::types::{Cut, NodeId};

/// A server before a turn, as far as the turn's rarities depend on it.
pub struct Before {
    in_flight: bool,
    reads: u64,
    log: Log,
}

/// What a server's disk holds of snapshots and log.
#[derive(PartialEq)]
pub struct Log {
    snapshot: Option<Cut>,
    oldest: u32,
}

impl Log {
    pub fn of(wal: &Wal<SimDisk>) -> Log {
        Log { snapshot: wal.snapshot(), oldest: wal.oldest_segment() }
    }
}

impl Before {
    pub fn of(running: &Running, disk: &SimDisk) -> Before {
        let replica = running.shard.replica();
        Before {
            in_flight: replica.is_leader() && replica.position() > replica.decided(),
            reads: disk.reads(),
            log: Log::of(&running.wal),
        }
    }
}

impl World {
    pub(super) fn see_turn(
        &mut self,
        id: NodeId,
        before: &Before,
        after: &Log,
        reads: u64,
        outbox: &Outbox,
        error: Option<&io::Error>,
    ) {
        let now = self.now;
        let server = self.servers.get_mut(&id).expect("a server of this topology");
        let coverage = &mut self.coverage;
        coverage.see_if(std::mem::take(&mut server.stalled) && server.busy_until >= now, Seen::Stalled);
        coverage.see_if(server.disk_slowness > 1 && outbox.syncs > 0, Seen::SlowDisk);
        coverage.see_if(!server.clock.is_even(), Seen::ClockSkewed);
        match server.jumped.take() {
            Some(true) => coverage.see(Seen::ClockJumped),
            Some(false) => coverage.see(Seen::ClockStrobed),
            None => {}
        }
        coverage.see_if(after.snapshot != before.log.snapshot, Seen::SnapshotTaken);
        coverage.see_if(after.oldest != before.log.oldest, Seen::SegmentRetired);
        coverage.see_if(reads > before.reads, Seen::ReadFromDisk);
        let deposed = |s: &Sent| matches!(s, Sent::Paxos(paxos::Event::LostLeadership { .. }));
        let was_deposed = outbox.sent.iter().any(|(_, _, sent)| deposed(sent));
        coverage.see_if(before.in_flight && was_deposed, Seen::DeposedInFlight);
        if let Some(error) = error {
            let text = error.to_string();
            coverage.see_if(server.disk.is_dead() && outbox.syncs == 0, Seen::DiedBeforeSync);
            coverage.see_if(text.contains("injected failure of a write"), Seen::WriteFailed);
            let sync = text.contains("injected failure of a sync") || text.contains("of a directory sync");
            coverage.see_if(sync, Seen::SyncFailed);
        }
    }

    /// A message reaches a server.
    pub(super) fn see_message(&mut self, to: NodeId, message: &Message) {
        let Some(running) = &self.servers[&to].running else { return };
        let replica = running.shard.replica();
        let asks = matches!(message, Message::PreVote(_) | Message::Prepare(_) | Message::Accept(_));
        self.coverage.see_if(asks && !replica.membership().votes(), Seen::LearnerAsked);
        let Message::Refuse(refuse) = message else { return };
        self.coverage.see(Seen::StaleBallot);
        let campaigns = replica.promised() == refuse.ballot && !replica.is_leader();
        self.coverage.see_if(campaigns && refuse.promised > refuse.ballot, Seen::PreparedAgain);
    }

    /// A server answers a client.
    pub(super) fn see_refusal(&mut self, id: NodeId, response: &Response) {
        if matches!(response, Response::Refused { why: Refusal::StorageFull, .. }) {
            self.coverage.see(Seen::NewWorkRefused);
            self.server(id).starved = true;
        }
    }

    pub(super) fn see_paxos(&mut self, id: NodeId, event: &paxos::Event) {
        match event {
            paxos::Event::NoRoom { what: "a proposal" } => self.server(id).starved = true,
            paxos::Event::SpaceBack if std::mem::take(&mut self.server(id).starved) => {
                self.coverage.see(Seen::SpaceBack);
            }
            _ => {}
        }
        let sight = match event {
            paxos::Event::PreVoteRefused { .. } => Seen::PreVoteRefused,
            paxos::Event::Leading { decided, phase1_end, .. } if phase1_end > decided => Seen::OldTail,
            paxos::Event::LostLeadership { why, .. } if why.contains("majority was not heard") => {
                Seen::CheckQuorum
            }
            paxos::Event::LostLeadership { why, .. } if why.contains("those of a majority have") => {
                Seen::HandedOver
            }
            paxos::Event::LostLeadership { why, .. } if *why == LEAVES => Seen::Resigned,
            paxos::Event::LostLeadership { why, .. } if *why == TOO_SLOW => Seen::TooSlow,
            paxos::Event::Succeeds { .. } => Seen::Succeeded,
            paxos::Event::LostLeadership { why, .. } if *why == RENEWS => Seen::RenewedBallot,
            paxos::Event::Rewritten { .. } => Seen::Rewritten,
            paxos::Event::NoRoom { what: "a proposal" } => Seen::NotAccepted,
            paxos::Event::CaughtUp { .. } => Seen::CaughtUp,
            paxos::Event::Salvaged { .. } => Seen::Salvaged,
            paxos::Event::Resending { .. } => Seen::Resent,
            paxos::Event::Ignored { what, .. } if *what == LOST_DISK_VOUCHED => Seen::OldDiskUnheard,
            paxos::Event::Ignored { what, .. } if *what == LOST_DISK_PROMISED => Seen::OldPromiseLate,
            _ => return,
        };
        self.coverage.see(sight);
    }

    pub(super) fn see_shard(&mut self, id: NodeId, event: &shard::Event) {
        match event {
            shard::Event::Recovering { id: txn } => {
                let all = self.recoverers.entry(*txn).or_default();
                all.insert(id);
                self.coverage.see_if(all.len() > 1, Seen::TwoRecoverers);
            }
            shard::Event::Recovery(event) => {
                let (txn, sight) = match event {
                    txn::Event::Recovered { id, commit: true } => (id, Seen::RecoveryCommits),
                    txn::Event::Recovered { id, commit: false } => (id, Seen::RecoveryAborts),
                    txn::Event::RecoveryDropped { id } => (id, Seen::RecoveryDropped),
                    _ => return,
                };
                self.coverage.see(sight);
                if let Some(all) = self.recoverers.get_mut(txn) {
                    all.remove(&id);
                }
            }
            shard::Event::ReadWaits { .. } => self.coverage.see(Seen::ReadWaited),
            shard::Event::SnapshotBegun { .. } => self.server(id).was_sent_snapshot = true,
            shard::Event::SnapshotMoved { .. } => self.coverage.see(Seen::SnapshotMoved),
            shard::Event::SnapshotInstalled { .. } => {
                self.coverage.see(Seen::SnapshotInstalled);
                self.server(id).installed = true;
            }
            shard::Event::SnapshotRefused { from, slot, why } => {
                panic!("P4: {id} refuses the snapshot of slot {slot} that {from} sent: {why}")
            }
            shard::Event::LogDamaged { slot, why } => {
                let ailing = self.servers[&id].ailment.is_some() || self.servers[&id].flipped;
                assert!(ailing, "S2: {id} cannot read slot {slot} back, and its disk is sound: {why}");
                self.coverage.see(Seen::FoundRunning);
            }
            shard::Event::DigestConfirmed { .. } => self.coverage.see(Seen::DigestConfirmed),
            shard::Event::DigestsDiffer { .. } => self.coverage.see(Seen::DigestsDiffer),
            _ => {}
        }
    }
}
