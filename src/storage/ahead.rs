//! Space before it is needed: segments that are filled with zeros ahead, and what still fits when the disk is full.

use std::io;

use super::disk::Disk;
use super::format::{BLOCK, HEADER, record_bytes, segment_name_new};
use super::wal::{Filling, Wal, is_full, sync};
use crate::config::limits;

impl<D: Disk> Wal<D> {
    /// Fills the next segment with zeros, one piece a call, once the active one is half full, so that no turn pays for
    /// a whole segment. True if there was something to do. To be called once a turn, or when idle.
    ///
    /// A full disk is left alone, until [`Wal::secure`] asks it again.
    ///
    /// # Errors
    ///
    /// All are final; a full disk is none.
    pub fn prepare_ahead(&mut self) -> io::Result<bool> {
        self.check()?;
        if !self.full && self.ready.is_empty() && self.end.offset >= self.segment_bytes / 2 {
            match self.fill() {
                Ok(()) => return Ok(true),
                Err(e) if is_full(&e) => {}
                Err(e) => return Err(e),
            }
        }
        self.write_snapshot()
    }

    /// Whether [`Wal::prepare_ahead`] has more to do than an idle server should put off.
    pub fn has_work(&self) -> bool {
        self.writing.is_some()
    }

    /// Makes room for `bytes` of records, or says how many fit in any case, however they are cut, if the disk is full.
    /// `None`: they fit. A disk that was full is asked only if `again` is set.
    ///
    /// # Errors
    ///
    /// All are final; a full disk is none.
    pub fn secure(&mut self, bytes: u64, again: bool) -> io::Result<Option<u64>> {
        self.check()?;
        let mut asks = again || !self.full;
        while asks && (self.full || self.certain_room() < bytes) {
            match self.fill() {
                Ok(()) => {}
                Err(e) if is_full(&e) => asks = false,
                Err(e) => return Err(e),
            }
        }
        Ok(self.full.then(|| self.certain_room()))
    }

    /// What fits in any case: at the end of each segment a record may be left over that goes to the next one.
    fn certain_room(&self) -> u64 {
        let blank = self.segment_bytes - BLOCK - HEADER;
        let largest = record_bytes(limits::VALUE_BYTES).min(blank / 2);
        let tail = self.tail();
        match (self.end.segment + self.ready.len() as u32).saturating_sub(tail.segment) {
            0 => (self.segment_bytes - HEADER).saturating_sub(tail.offset),
            untouched => blank + u64::from(untouched - 1) * (blank - largest),
        }
    }

    /// Bytes that can be appended without asking the file system for space.
    pub fn room(&self) -> u64 {
        let blank = self.segment_bytes - BLOCK - HEADER;
        let tail = self.tail();
        let untouched = (self.end.segment + self.ready.len() as u32).saturating_sub(tail.segment);
        (self.segment_bytes - HEADER).saturating_sub(tail.offset) + u64::from(untouched) * blank
    }

    pub(super) fn fill(&mut self) -> io::Result<()> {
        let number = self.end.segment + 1 + self.ready.len() as u32;
        match self.fill_step(number) {
            Ok(()) => Ok(()),
            // The log comes first.
            Err(e) if is_full(&e) && self.writing.is_some() => {
                self.abandon_snapshot()?;
                self.fill()
            }
            Err(e) if is_full(&e) => {
                self.full = true;
                Err(e)
            }
            Err(e) => Err(self.poison(format!("{}: zeros ahead", segment_name_new(number)), e)),
        }
    }

    fn fill_step(&mut self, number: u32) -> io::Result<()> {
        let mut filling = match self.filling.take() {
            Some(filling) => filling,
            None => Filling::create(&self.disk, number)?,
        };
        assert_eq!(filling.number, number, "segments are made in order");
        let done = match filling.step(&self.disk, self.identity, self.segment_bytes) {
            Ok(done) => done,
            Err(e) => {
                self.filling = Some(filling);
                return Err(e);
            }
        };
        if done {
            self.ready.push_back(filling.file);
            self.full = false;
            // Once a segment is seldom enough to cost nothing and often enough that the mark is never far behind.
            sync(&mut self.mark)?;
        } else {
            self.filling = Some(filling);
        }
        Ok(())
    }
}
