//! Reads a log as the audit log: what was decided and what came of it, from the oldest segment that is kept.
//!
//! Nothing is changed, and nothing is taken for granted: every checksum is verified again. It goes segment by segment, so
//! that a server may do it between its turns, and its memory holds no more than what is decided and not yet accounted for.

use std::collections::BTreeMap;

use super::disk::{Disk, DiskFile};
use super::format::{Kind, LAST, Position, record_at, segment_name, segment_number};
use super::recover::{damaged_file, gapless, read_identity};
use super::scan::{Unreadable, read_sectors};
use super::wal::{Wal, io_error};
use super::{Identity, StorageError};
use crate::types::{Slot, Value};

/// What the log says of a run of slots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// The decided values of the slots from `from` on, and which of their transactions committed, as
    /// [`crate::types::Record::History`] has it.
    History { from: Slot, values: Vec<Value>, bytes: Vec<u8> },
    /// Nothing: what it said is no longer kept, or this server went on from another's snapshot.
    Gap { from: Slot, to: Slot },
}

/// A reading in progress.
#[derive(Debug)]
pub struct Audit {
    segment_bytes: u64,
    at: Position,
    /// The latest value of each slot that no history was found for yet.
    values: BTreeMap<Slot, Value>,
    /// Every slot up to here was returned.
    covered: Slot,
    /// Parts of a history whose last one is to come.
    parts: Vec<u8>,
    /// Records of a group whose last one is to come.
    open: Vec<(Kind, Slot, u64, u16, Value)>,
}

impl Audit {
    fn new(segment_bytes: u64, oldest: u32) -> Audit {
        Audit {
            segment_bytes,
            at: Position::start_of(oldest),
            values: BTreeMap::new(),
            covered: Slot::ZERO,
            parts: Vec::new(),
            open: Vec::new(),
        }
    }

    /// Begins to read a directory whose server may or may not run.
    ///
    /// # Errors
    ///
    /// It is no directory of a server, or cannot be read.
    pub fn open<D: Disk>(disk: &D) -> Result<(Audit, Identity), StorageError> {
        let (identity, segment_bytes) = read_identity(disk)?;
        let names = disk.list().map_err(io_error(".", "list the directory"))?;
        let numbers = names.iter().filter_map(|name| segment_number(name)).collect();
        let Some(run) = gapless(numbers) else {
            return Err(damaged_file(&segment_name(1), None, "missing"));
        };
        Ok((Audit::new(segment_bytes, *run.start()), identity))
    }

    /// Every slot up to here was returned.
    pub fn covered(&self) -> Slot {
        self.covered
    }

    /// Reads on to the end of the segment. `None` at the end of the log.
    ///
    /// # Errors
    ///
    /// The disk cannot be read, or the log is no longer whole from here on: a write that a crash interrupted, which the
    /// next start will cut off, or damage. (A server, which knows where its log ends, goes on behind damage.)
    pub fn advance<D: Disk>(&mut self, disk: &D) -> Result<Option<Vec<Entry>>, StorageError> {
        self.read(disk, None)
    }

    fn read<D: Disk>(&mut self, disk: &D, end: Option<Position>) -> Result<Option<Vec<Entry>>, StorageError> {
        if end.is_some_and(|end| self.at >= end) {
            return Ok(None);
        }
        let name = segment_name(self.at.segment);
        let image = match self.image(disk, &name) {
            Ok((image, None)) => image,
            Ok((image, Some(_))) if end.is_some() => image,
            // S2: what is known to have been there is not; the list has a gap.
            Err(StorageError::Damaged { .. }) if end.is_some() => vec![0; self.segment_bytes as usize],
            Ok((_, Some(lost))) => {
                return Err(damaged_file(&name, lost.from, format!("cannot read: {}", lost.why)));
            }
            Err(e) => return Err(e),
        };
        let mut entries = Vec::new();
        let begun = self.at;
        while end.is_none_or(|end| self.at < end) {
            let (header, kind) = match record_at(&image, self.at.offset) {
                Ok(record) if record.0.segment.get() == self.at.segment => record,
                _ if end.is_some() => {
                    self.skip(&image);
                    if self.at.segment != begun.segment {
                        break;
                    }
                    continue;
                }
                _ if image[self.at.offset as usize..].iter().all(|byte| *byte == 0) => {
                    return Ok((self.at != begun).then_some(entries));
                }
                Ok(_) => return Err(damaged_file(&name, self.at.offset, "record of another segment")),
                Err(bad) => return Err(damaged_file(&name, self.at.offset, bad.text())),
            };
            let payload = self.at.offset as usize + size_of_val(&header);
            let payload = &image[payload..payload + header.payload_len.get() as usize];
            let ballot = header.ballot();
            let slot = Slot(header.slot.get());
            self.open.push((kind, slot, ballot.round, ballot.server, Value::from_slice(payload)));
            self.at.offset += header.record_bytes();
            if header.flags & LAST != 0 {
                for record in std::mem::take(&mut self.open) {
                    self.note(record, &name, &mut entries)?;
                }
            }
            if kind == Kind::End {
                self.at = Position::start_of(self.at.segment + 1);
                break;
            }
        }
        Ok(Some(entries))
    }

    /// A whole segment, and the first part of it that cannot be read, if there is one.
    fn image<D: Disk>(&self, disk: &D, name: &str) -> Result<(Vec<u8>, Option<Unreadable>), StorageError> {
        let file = match disk.open(name) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged_file(name, None, "missing, or removed while it was read"));
            }
            other => other.map_err(io_error(name, "open"))?,
        };
        let size = self.segment_bytes;
        let len = file.len().map_err(io_error(name, "read"))?;
        if len != size {
            return Err(damaged_file(name, len.min(size), format!("{len} bytes long instead of {size}")));
        }
        let mut image = vec![0; size as usize];
        let unreadable = read_sectors(&file, &mut image).into_iter().next();
        Ok((image, unreadable))
    }

    /// S2: goes on at the next record that is whole. What was lost may have been later votes for slots that were not
    /// accounted for, so nothing is known of these any more.
    fn skip(&mut self, image: &[u8]) {
        self.open.clear();
        self.parts.clear();
        self.values.clear();
        let Position { segment, offset } = self.at;
        let whole = |at: &u64| record_at(image, *at).is_ok_and(|(header, _)| header.segment.get() == segment);
        let next = (offset + 8..self.segment_bytes).step_by(8).find(whole);
        self.at = match next {
            Some(offset) => Position { segment, offset },
            None => Position::start_of(segment + 1),
        };
    }

    fn note(
        &mut self,
        (kind, slot, first, more, payload): (Kind, Slot, u64, u16, Value),
        name: &str,
        entries: &mut Vec<Entry>,
    ) -> Result<(), StorageError> {
        if kind.has_value() && slot > self.covered {
            self.values.insert(slot, payload);
        } else if kind == Kind::History {
            self.parts.extend_from_slice(&payload.0);
            if more > 0 {
                return Ok(());
            }
            let bytes = std::mem::take(&mut self.parts);
            if slot <= self.covered {
                return Ok(());
            }
            if first <= self.covered.0 {
                let what = format!("the history of slot {first} and later ones, which was there before");
                return Err(damaged_file(name, None, what));
            }
            let gap = self.covered.next();
            let values = self.take_values(Slot(first), slot);
            let whole = values.is_some();
            let missing = if whole { Slot(first - 1) } else { slot };
            if gap <= missing {
                entries.push(Entry::Gap { from: gap, to: missing });
            }
            entries.extend(values.map(|values| Entry::History { from: Slot(first), values, bytes }));
        }
        Ok(())
    }

    /// The values of these slots, if all are there; what lies before is forgotten.
    pub fn take_values(&mut self, from: Slot, to: Slot) -> Option<Vec<Value>> {
        let later = self.values.split_off(&to.next());
        let mut values = std::mem::replace(&mut self.values, later);
        self.covered = to;
        let values: Vec<Value> = values.split_off(&from).into_values().collect();
        (values.len() as u64 == to.0 + 1 - from.0).then_some(values)
    }
}

impl<D: Disk> Wal<D> {
    /// Begins to read this log, from its oldest segment on.
    pub fn audit(&self) -> Audit {
        Audit::new(self.segment_bytes, self.oldest)
    }

    /// Reads on to the end of the segment, or of what was committed to this log. `None` at that end.
    ///
    /// # Errors
    ///
    /// As for [`Audit::advance`].
    pub fn audit_on(&self, audit: &mut Audit) -> Result<Option<Vec<Entry>>, StorageError> {
        audit.read(&self.disk, Some(self.end))
    }
}
