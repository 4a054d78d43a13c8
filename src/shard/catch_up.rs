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
//! has the same snapshot: after a change of leader, and after a connection broke.

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

/// Agreed slots for which a cut waits to be confirmed before a later one takes its place.
const CUT_PATIENCE: u64 = 8;

impl Shard {
    /// The server that sends this one a snapshot.
    pub fn receives_from(&self) -> Option<NodeId> {
        self.transfer.as_ref().map(|transfer| transfer.from)
    }

    /// Cuts a snapshot after an agreed slot, if one is wanted and none waits.
    pub(super) fn cut_snapshot(&mut self, slot: Slot) {
        let patience = CUT_PATIENCE * self.limits.digest_slots;
        let waits = self.snapshot_cut.as_ref().is_some_and(|cut| slot.0 < cut.cut().slot.0 + patience);
        if self.snapshot_wanted && !waits {
            self.snapshot_cut = Some(self.bank.image(self.limits.piece_bytes));
        }
    }

    /// Hands out a cut once a majority has confirmed its digest (P4): what others are sent, and what the log in front of
    /// it is given up for, is a state that a majority has.
    pub(super) fn begin_snapshot(&mut self, out: &mut Output) {
        let confirmed = self.comparison.confirmed().map_or(Slot::ZERO, |(slot, _)| slot);
        if let Some(image) = self.snapshot_cut.take_if(|image| image.cut().slot <= confirmed) {
            self.snapshot_wanted = false;
            out.snapshot.get_or_insert((image, false));
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
        if cut.slot <= self.replica.decided() || self.installing.is_some() {
            return;
        }
        let timeout = self.timeouts.election();
        if let Some(transfer) = &self.transfer {
            let idle = now.since(transfer.active);
            let same = transfer.incoming.cut() == cut;
            // A question may be lost, and so may its answer. And nobody may have the snapshot any more.
            if same && idle < self.patience() || !same && idle < timeout {
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

    /// A snapshot is durable: if it came from another server, this one now goes on from there (P1: not before).
    pub(super) fn on_snapshot_saved(&mut self, now: Time, cut: Cut, out: &mut Output) {
        self.snapshot_saved = Some(cut);
        let Some(bank) = self.installing.take_if(|bank| bank.applied() <= cut.slot) else { return };
        // Entries may have come meanwhile, from a server that still had them.
        if bank.applied() > self.replica.decided() && !self.replica.is_leader() {
            self.install(now, bank, out);
        }
    }

    fn install(&mut self, now: Time, bank: Bank, out: &mut Output) {
        let slot = bank.applied();
        self.comparison.applied(slot, bank.digest());
        self.bank = bank;
        self.replica.install(now, slot, &mut out.paxos);
        out.events.push(Event::SnapshotInstalled { slot });
    }
}
