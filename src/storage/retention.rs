//! What goes once a snapshot is there: old snapshots, and the segments of the log before them.

use std::io;
use std::time::Duration;

use super::disk::Disk;
use super::format::{Jump, segment_name, segment_number};
use super::snapshot::{self, Pieces, Snapshot, Start, Writing};
use super::wal::{Wal, is_full, sync};
use crate::types::{Cut, Slot};

/// How much of the log is kept that no restart needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Bytes of older log that are kept as the audit log, rounded up to a segment.
    pub audit_bytes: u64,
    /// How long ago the newest record of a segment of it may have been written.
    pub audit_age: Option<Duration>,
}

/// Everything.
impl Default for Retention {
    fn default() -> Retention {
        Retention { audit_bytes: u64::MAX, audit_age: None }
    }
}

/// Snapshots that are kept although there are two newer ones, since they are being sent.
const SENT_AT_MOST: usize = 4;

impl<D: Disk> Wal<D> {
    /// Begins to write a snapshot; [`Wal::prepare_ahead`] goes on with it. Nothing happens if a newer one is there, and the
    /// one in the making is given up only for a newer one from elsewhere. Every slot up to the snapshot's is decided;
    /// `foreign` if the log here does not lead up to it.
    pub fn begin_snapshot(&mut self, source: Box<dyn Pieces>, foreign: bool) -> io::Result<()> {
        self.check()?;
        let slot = source.cut().slot;
        let newest = self.snapshots.last().map_or(Slot::ZERO, |s| s.cut.slot);
        if slot <= newest || self.writing.as_ref().is_some_and(|w| w.slot() >= slot || !foreign) {
            return Ok(());
        }
        // Votes that come later stand behind the end, wherever their slots are.
        let start = match self.contents.lowest_above(slot) {
            Some(lowest) => {
                let lies = |start: &&Start| start.at <= lowest;
                let start = self.boundaries.values().rev().find(lies);
                let start = *start.expect("S2: what is read stands behind a boundary");
                // A snapshot from elsewhere may have come behind this place. The mark says so, too, but it may be lost.
                Start { stood: start.stood.max(self.jump.slot), ..start }
            }
            None => Start { group: self.group, at: self.end, stood: self.contents.stood },
        };
        self.abandon_snapshot()?;
        self.writing = Some(Writing::new(source, start, foreign));
        Ok(())
    }

    /// Gives up the snapshot in the making.
    pub(super) fn abandon_snapshot(&mut self) -> io::Result<()> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let name = snapshot::name(writing.slot());
        writing.abandon(&self.disk).map_err(|e| self.poison(format!("{name}.new: giving it up"), e))
    }

    /// One piece of the snapshot in the making. True if there was something to do.
    pub(super) fn write_snapshot(&mut self) -> io::Result<bool> {
        let Some(writing) = &mut self.writing else { return Ok(false) };
        let slot = writing.slot();
        match writing.step(&self.disk, &self.identity, self.contents.promised) {
            Ok(None) => Ok(true),
            Ok(Some(snapshot)) => {
                let foreign = writing.foreign;
                self.writing = None;
                self.retire(snapshot, foreign).map_err(|e| {
                    self.poison(format!("{}: retiring the log before it", snapshot::name(slot)), e)
                })?;
                Ok(true)
            }
            // A snapshot can wait for space; what is there stays as good as it is.
            Err(e) if is_full(&e) => self.abandon_snapshot().map(|()| false),
            Err(e) => Err(self.poison(snapshot::name(slot), e)),
        }
    }

    /// A snapshot is durable: the last but two goes, and of the log what neither recovery nor the audit needs.
    fn retire(&mut self, snapshot: Snapshot, foreign: bool) -> io::Result<()> {
        if foreign {
            // The log does not lead from the older ones to this one. Should it be lost, that must be known, and before
            // anybody hears that this server has come so far (P1).
            self.snapshots.clear();
            self.contents.jump(snapshot.cut.slot);
            // One that is older than what was lost stands for less: the log does not lead up to that one either.
            if snapshot.cut.slot >= self.jump.slot {
                self.jump = Jump { slot: snapshot.cut.slot, missed: 0 };
            }
            self.write_mark()?;
            sync(&mut self.mark)?;
        }
        self.snapshots.push(snapshot);
        // One that is being sent stays for a while, and the log behind it.
        let done = |s: &Snapshot| !self.sent.contains(&s.cut.slot);
        while self.snapshots.len() > 2
            && (self.snapshots.len() > 2 + SENT_AT_MOST || done(&self.snapshots[0]))
        {
            self.snapshots.remove(0);
        }
        self.sent.clear();
        let kept: Vec<String> = self.snapshots.iter().map(|s| snapshot::name(s.cut.slot)).collect();
        for name in self.disk.list()? {
            if snapshot::slot_of(&name).is_some() && !kept.contains(&name) {
                self.disk.remove(&name)?;
            }
        }
        // Before the log goes that leads on from them.
        self.disk.sync_dir()?;
        if foreign || self.snapshots.len() >= 2 {
            self.contents.forget(self.snapshots[0].cut.slot);
            self.retire_segments(self.snapshots[0].start.at.segment)?;
        }
        Ok(())
    }

    /// Removes the oldest segments in front of `needed` until the audit log is no longer and no older than it should be.
    fn retire_segments(&mut self, needed: u32) -> io::Result<()> {
        let audit = self.retention.audit_bytes.div_ceil(self.segment_bytes);
        let mut first = needed.saturating_sub(u32::try_from(audit).unwrap_or(u32::MAX)).max(self.oldest);
        if let Some(most) = self.retention.audit_age {
            let old = |segment| match self.disk.age(&segment_name(segment)) {
                // Damage took it long ago (S2).
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
                age => age.map(|age| age > most),
            };
            while first < needed && old(first)? {
                first += 1;
            }
        }
        if first == self.oldest {
            return Ok(());
        }
        // Recovery begins at the mark if that is older than the snapshot: it must not point at what is gone.
        sync(&mut self.mark)?;
        for name in self.disk.list()? {
            // Some may have come back that a loss of power kept from going.
            if segment_number(&name).is_some_and(|number| number < first) {
                self.disk.remove(&name)?;
            }
        }
        self.boundaries.retain(|segment, _| *segment >= first);
        self.oldest = first;
        self.disk.sync_dir()
    }

    /// Removes what a smaller audit log than before has no place for, and what has become too old.
    ///
    /// # Errors
    ///
    /// The disk failed; the log is of no use any more.
    pub fn retire_audit(&mut self) -> io::Result<()> {
        self.check()?;
        let [older, _, ..] = &self.snapshots[..] else { return Ok(()) };
        let needed = older.start.at.segment;
        self.retire_segments(needed).map_err(|e| self.poison("retiring old log".into(), e))
    }

    /// The number of the oldest segment that is kept.
    pub fn oldest_segment(&self) -> u32 {
        self.oldest
    }

    /// What the segments take on disk, those filled ahead included, but not one that is still being filled.
    pub fn segments_bytes(&self) -> u64 {
        let last = self.end.segment + self.ready.len() as u32;
        u64::from(last + 1 - self.oldest) * self.segment_bytes
    }

    /// The newest snapshot on disk.
    pub fn snapshot(&self) -> Option<Cut> {
        self.snapshots.last().map(|snapshot| snapshot.cut)
    }

    /// The `n`-th piece of the snapshot of `slot`, verified; `None` if there is no such snapshot or piece.
    ///
    /// # Errors
    ///
    /// The disk cannot be read, or what it gives back is damaged.
    pub fn read_piece(&mut self, slot: Slot, n: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(snapshot) = self.snapshots.iter().find(|s| s.cut.slot == slot && n < s.cut.pieces()) else {
            return Ok(None);
        };
        self.sent.insert(slot);
        snapshot.read_piece(&self.disk, n).map(Some)
    }

    /// S2: nothing is done any more with a snapshot that cannot be read. Its file stays until the next one is there.
    pub fn distrust_snapshot(&mut self, slot: Slot) {
        self.snapshots.retain(|snapshot| snapshot.cut.slot != slot);
    }
}
