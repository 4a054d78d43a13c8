//! Catching up by snapshot: what a server does that lags behind the oldest entry of the others, and what they do for it.
//!
//! ```text
//! S1 (leads, or was asked)            S3 (lags)
//!  ├─ Snapshot(slot, digest, size) ────►│  the entries you lack are gone; this stands for them
//!  │◄──────────────── GetPiece(0) ──────┤
//!  ├─ Piece(0) ────────────────────────►│  one at a time, so that other traffic finds its way
//!  │        …                           │  digest computed anew, written, synced
//!  │◄─ position: the snapshot's slot ───┤  entries follow
//! ```
//!
//! Servers take snapshots after the same slots, and equal states are equal bytes, so a transfer goes on at any server that
//! has the same snapshot: after a change of leader, and after a connection broke. Who sends one keeps it to the end, and
//! who is sent one stays with it, so that transfers end however often servers take new ones.

use std::time::Duration;

use super::{Event, Output, Shard};
use crate::bank::{Bank, Incoming};
use crate::paxos::Message;
use crate::types::{Cut, NodeId, Slot, Time, Value};

/// A snapshot that comes in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Transfer {
    incoming: Incoming,
    /// Who was asked last.
    from: NodeId,
    /// When something was last asked for, or came.
    active: Time,
}

/// A piece that another server asks for, to be read from disk.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadPiece {
    pub to: NodeId,
    pub slot: Slot,
    pub n: u64,
}

/// Election time-outs without an answer after which a transfer is given up for that of a newer snapshot.
const GIVE_UP: u32 = 4;
/// How long a server without space for a snapshot asks for no other.
const AFTER_LOSS: Duration = Duration::from_secs(5);

impl Shard {
    /// The server that sends this one a snapshot.
    pub fn receives_from(&self) -> Option<NodeId> {
        self.transfer.as_ref().map(|transfer| transfer.from)
    }

    /// Hands out the cut of this server's own state, once it may be written.
    pub(super) fn begin_snapshot(&mut self, out: &mut Output) {
        let Some((confirmed, _)) = self.comparison.confirmed() else { return };
        if out.snapshot.is_none()
            && let Some(image) = self.cuts.take_confirmed(confirmed.min(self.history.written()))
        {
            out.snapshot = Some((image, false));
        }
    }

    /// Offers the newest snapshot to those whose entries are gone.
    pub(super) fn offer_snapshots(&mut self, out: &mut Output) {
        for to in std::mem::take(&mut out.paxos.gone) {
            if let Some(cut) = self.snapshot_saved {
                out.paxos.now.push((to, Message::Snapshot(cut)));
            }
        }
    }

    /// A message about snapshots, which the replica has no idea of; any other is given back.
    pub(super) fn snapshot_message(
        &mut self,
        now: Time,
        from: NodeId,
        message: Message,
        out: &mut Output,
    ) -> Option<Message> {
        match message {
            Message::Snapshot(cut) => self.on_offer(now, from, cut, out),
            Message::GetPiece { slot, n } => out.pieces.push(ReadPiece { to: from, slot, n }),
            Message::Piece { slot, n, bytes } => self.on_piece(now, from, slot, n, &bytes, out),
            other => return Some(other),
        }
        None
    }

    /// The piece that [`ReadPiece`] asked for, `None` if there is no such snapshot any more.
    pub(super) fn send_piece(&mut self, read: ReadPiece, bytes: Option<Value>, out: &mut Output) {
        let ReadPiece { to, slot, n } = read;
        match bytes {
            Some(bytes) => out.paxos.now.push((to, Message::Piece { slot, n, bytes })),
            // Begun at another server, or long ago: there is a newer one.
            None => {
                out.paxos.gone.push(to);
                self.offer_snapshots(out);
            }
        }
    }

    fn on_offer(&mut self, now: Time, from: NodeId, cut: Cut, out: &mut Output) {
        let early = now < self.no_transfer_before;
        if cut.slot <= self.replica.decided() || self.installing.is_some() || early {
            return;
        }
        let give_up = self.timeouts.election() * GIVE_UP;
        if let Some(transfer) = &self.transfer {
            let idle = now.since(transfer.active);
            let same = transfer.incoming.cut() == cut;
            // A question may be lost, and so may its answer. And nobody may have the snapshot any more.
            if same && idle < self.patience() || !same && idle < give_up {
                return;
            }
        }
        if self.transfer.as_ref().is_none_or(|transfer| transfer.incoming.cut() != cut) {
            match Incoming::new(cut, &self.topology, self.shard) {
                Ok(incoming) => self.transfer = Some(Transfer { incoming, from, active: now }),
                Err(why) => return out.events.push(Event::SnapshotRefused { from, slot: cut.slot, why }),
            }
            out.events.push(Event::SnapshotBegun { from, slot: cut.slot });
        }
        self.ask(now, from, out);
    }

    /// How long an answer may take before it is asked for again.
    fn patience(&self) -> Duration {
        self.timeouts.heartbeat() * 2
    }

    fn ask(&mut self, now: Time, from: NodeId, out: &mut Output) {
        let Some(transfer) = &mut self.transfer else { return };
        let Some(n) = transfer.incoming.wanted() else { return };
        transfer.active = now;
        if std::mem::replace(&mut transfer.from, from) != from {
            out.events.push(Event::SnapshotMoved { from, slot: transfer.incoming.cut().slot });
        }
        out.paxos.now.push((from, Message::GetPiece { slot: transfer.incoming.cut().slot, n }));
    }

    fn on_piece(&mut self, now: Time, from: NodeId, slot: Slot, n: u64, bytes: &Value, out: &mut Output) {
        // Entries may have come meanwhile, from a server that still had them.
        let decided = self.replica.decided();
        self.transfer.take_if(|transfer| transfer.incoming.cut().slot <= decided);
        let Some(transfer) = &mut self.transfer else { return };
        let wanted = transfer.incoming.wanted();
        if transfer.incoming.cut().slot != slot || wanted != Some(n) || !transfer.incoming.push(&bytes.0) {
            return;
        }
        // A campaign's clock stands still while the transfer makes progress.
        self.replica.catching_up(now);
        if transfer.incoming.wanted().is_some() {
            return self.ask(now, from, out);
        }
        let Some(Transfer { incoming, .. }) = self.transfer.take() else { return };
        match incoming.finish(self.topology, self.shard) {
            Ok(bank) => {
                let bank = bank.with_limits(&self.limits);
                out.snapshot = Some((bank.image(self.limits.piece_bytes), true));
                self.installing = Some(bank);
            }
            Err(why) => out.events.push(Event::SnapshotRefused { from, slot, why }),
        }
    }

    /// There was no space for the snapshot of another server. Entries may still come.
    pub(super) fn on_snapshot_lost(&mut self, now: Time) {
        self.installing = None;
        self.no_transfer_before = now + AFTER_LOSS;
    }

    /// A snapshot is durable: if it came from another server, this one now goes on from there (P1: not before). Or one
    /// turned out to be damaged.
    pub(super) fn on_snapshot(&mut self, now: Time, cut: Option<Cut>, out: &mut Output) {
        self.snapshot_saved = cut;
        let Some(cut) = cut else { return };
        let Some(bank) = self.installing.take_if(|bank| bank.applied() <= cut.slot) else { return };
        // Entries may have come meanwhile, from a server that still had them.
        if bank.applied() > self.replica.decided() && !self.replica.is_leader() {
            self.install(now, bank, out);
        }
    }

    fn install(&mut self, now: Time, bank: Bank, out: &mut Output) {
        let slot = bank.applied();
        let confirmed = self.comparison.confirmed().map_or(Slot::ZERO, |(slot, _)| slot);
        self.history.jump(confirmed, slot);
        self.comparison.applied(slot, bank.digest());
        self.bank = bank;
        self.cuts.jumped();
        let members: Vec<_> = self.bank.members().iter().map(|(server, member)| (*server, *member)).collect();
        for (server, member) in members {
            self.replica.let_in(now, server, member, &mut out.paxos);
        }
        self.replica.install(now, slot, &mut out.paxos);
        out.events.push(Event::SnapshotInstalled { slot });
    }
}
