//! Following the chain of records when a log is opened: what is whole, what a crash interrupted (S1), what is lost (S2).

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::Identity;
use super::contents::Contents;
use super::disk::{Disk, DiskFile};
use super::format::{
    BLOCK, Bad, Block, HEADER, Kind, MARK, MARK_SLOT, Mark, Position, RecordHeader, check_payload, record_at,
    segment_name, segment_name_new,
};
use super::recover::{UNPROVED, check_segment, damaged_file, is_one_bit_off};
use super::snapshot::Start;
use super::wal::io_error;
use super::{Fault, StorageError};
use crate::types::Slot;

/// What disks lose at once, at least.
const SECTOR: usize = 512;

const GONE: &str = "missing, short, or without its header, where the log goes on: it may have held more";

/// A record of the group being read, and whether its payload is whole.
type Open = (RecordHeader, Kind, Position, bool);

pub(super) struct Scan<'a, D> {
    pub disk: &'a D,
    pub identity: Identity,
    /// The last segment that there is, or should be.
    pub segments: u32,
    pub segment_bytes: u64,
    pub mark: Mark,
    /// There was another mark, which may have been the newer one.
    pub mark_lost: bool,
    pub contents: Contents,
    /// The last whole group, and where it ends.
    pub group: u64,
    pub end: Position,
    pub boundaries: BTreeMap<u32, Start>,
    /// What is not as it was written.
    pub faults: Vec<Fault>,
    /// Segments that are missing, too short, or without their header.
    broken: BTreeSet<u32>,
    /// Those of which nothing is known.
    gone: BTreeSet<u32>,
    /// The last segment of which there is a file.
    made: u32,
    /// The records of the group being read: they count when the last one is there, or when it is known to have been.
    open: Vec<Open>,
    /// The segment being looked at, whole.
    image: Vec<u8>,
    loaded: u32,
}

/// Where the chain stops, and why.
struct Stop {
    at: Position,
    bad: Option<Bad>,
    why: &'static str,
}

/// Bytes of a file that the disk does not give back.
pub(super) struct Unreadable {
    pub from: u64,
    pub to: u64,
    pub why: String,
}

/// Reads what can be read of the beginning of a file, a sector at a time where need be. The rest counts as zeros.
pub(super) fn read_sectors<F: DiskFile>(file: &F, image: &mut [u8]) -> Vec<Unreadable> {
    let mut runs: Vec<Unreadable> = Vec::new();
    if file.read_at(image, 0).is_ok() {
        return runs;
    }
    let mut from = 0;
    for sector in image.chunks_mut(SECTOR) {
        let to = from + sector.len() as u64;
        if let Err(e) = file.read_at(sector, from) {
            sector.fill(0);
            match runs.last_mut().filter(|run| run.to == from) {
                Some(run) => run.to = to,
                None => runs.push(Unreadable { from, to, why: e.to_string() }),
            }
        }
        from = to;
    }
    runs
}

impl<'a, D: Disk> Scan<'a, D> {
    pub fn new(
        disk: &'a D,
        (identity, segment_bytes): (Identity, u64),
        segments: u32,
        (mark, mark_lost): (Mark, bool),
        (contents, start): (Contents, Start),
    ) -> Scan<'a, D> {
        Scan {
            disk,
            identity,
            segments: segments.max(mark.end.segment),
            made: segments,
            segment_bytes,
            mark,
            mark_lost,
            contents,
            group: start.group,
            end: start.at,
            boundaries: BTreeMap::from([(start.at.segment, start)]),
            faults: Vec::new(),
            broken: BTreeSet::new(),
            gone: BTreeSet::new(),
            open: Vec::new(),
            image: Vec::new(),
            loaded: 0,
        }
    }

    /// Reads the whole log from the start on. Returns what was cut off (S1).
    ///
    /// # Errors
    ///
    /// The disk cannot be read or written, or what is lost cannot be bounded.
    pub fn run(&mut self, start: Start) -> Result<Option<String>, StorageError> {
        if self.mark.group == 0 && self.mark.end != Position::start_of(1) {
            return Err(damaged_file(MARK, 0, "group 0 does not end at the start of the log"));
        }
        self.contents.reach(start.group);
        let (mut from, mut skipped_to) = (start.at, None);
        let torn = loop {
            let stop = self.follow(from)?;
            match self.behind(&stop)? {
                Some(next) => from = next,
                // S1: the mark that is lost may have vouched for one group more, and for the promise in it (S3).
                None if self.mark_lost && self.group <= self.mark.group => {
                    return Err(damaged_file(MARK, (self.mark.group + 1) % 2 * MARK_SLOT, UNPROVED));
                }
                // Where nobody but this function has led, nothing was ever made to hold what comes there.
                None if skipped_to != Some(stop.at) || stop.at.segment <= self.made => {
                    match self.behind_what_is_gone(stop.at)? {
                        Some(next) => (from, skipped_to) = (next, Some(next)),
                        None => break self.cut_rest(stop.at, stop.why)?,
                    }
                }
                None => break self.cut_rest(stop.at, stop.why)?,
            }
        };
        self.make_durable(start)?;
        Ok(torn)
    }

    /// Where the log goes on behind a segment of which the rest is gone, if it ends in one. That segment was whole before the
    /// log came there, so this is no torn write; and if the power went, the mark may be older than what stood in it. (But not
    /// than a promise: see [`crate::storage::Wal::commit`].) The segment stays as it is, so that the next start finds the same.
    fn behind_what_is_gone(&mut self, stop: Position) -> Result<Option<Position>, StorageError> {
        if !self.gone.contains(&stop.segment) {
            return Ok(None);
        }
        let next = Position::start_of(stop.segment + 1);
        self.fault(stop, GONE);
        // What stands behind the last whole group is as good as gone.
        self.open.clear();
        let records = (self.bytes_between(self.end, next) / HEADER).max(1);
        self.lose(records, self.end, stop)?;
        // No group that may have stood there has the number of one that comes behind.
        (self.group, self.end) = (self.group + records, next);
        self.contents.reach(self.group);
        self.bound(next);
        Ok(Some(next))
    }

    fn load(&mut self, number: u32) -> Result<(), StorageError> {
        if self.loaded == number {
            return Ok(());
        }
        self.loaded = number;
        self.image.resize(self.segment_bytes as usize, 0);
        match check_segment(self.disk, number, self.identity, self.segment_bytes) {
            Ok(()) => {}
            Err(StorageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                if self.broken.insert(number) {
                    self.faults.push(damaged_file(&segment_name(number), None, "missing").into());
                }
                self.gone.insert(number);
                self.image.fill(0);
                return Ok(());
            }
            Err(e @ StorageError::Damaged { .. }) => {
                let short = matches!(e, StorageError::Damaged { offset: Some(at), .. } if at >= BLOCK);
                if self.broken.insert(number) {
                    self.faults.push(e.into());
                }
                self.image.fill(0);
                if short {
                    self.gone.insert(number);
                }
                // Whose records they are is not known where the header is lost.
                if !short && !is_one_bit_off(self.disk, number, self.identity, self.segment_bytes) {
                    self.gone.insert(number);
                    return Ok(());
                }
            }
            Err(e) => return Err(e),
        }
        let name = segment_name(number);
        let file = self.disk.open(&name).map_err(io_error(&name, "open"))?;
        let len = file.len().map_err(io_error(&name, "read"))?.min(self.segment_bytes) as usize;
        self.read_sectors(&file, number, len);
        Ok(())
    }

    /// What cannot be read of a segment counts as zeros, and is named, run by run.
    fn read_sectors(&mut self, file: &D::File, number: u32, len: usize) {
        let unreadable = read_sectors(file, &mut self.image[..len]);
        if !unreadable.is_empty() && self.broken.insert(number) {
            for Unreadable { from, to, why } in unreadable {
                let at = Position { segment: number, offset: from };
                self.fault(at, format!("cannot read {} bytes: {why}", to - from));
            }
        }
    }

    fn fault(&mut self, at: Position, what: impl Into<String>) {
        let fault = Fault { file: segment_name(at.segment), offset: Some(at.offset), what: what.into() };
        self.faults.push(fault);
    }

    /// Follows the chain of records as far as it is whole.
    fn follow(&mut self, mut at: Position) -> Result<Stop, StorageError> {
        loop {
            if at.segment > self.segments {
                // A segment is durable before the one in front of it is closed: this is no torn write.
                self.segments = at.segment;
            }
            self.load(at.segment)?;
            let stop = |bad, why| Ok(Stop { at, bad, why });
            let (header, kind) = match record_at(&self.image, at.offset) {
                Ok(record) => record,
                Err(bad) => return stop(Some(bad), bad.text()),
            };
            if header.segment.get() != at.segment {
                return stop(None, "record of another segment");
            }
            if header.group.get() != self.group + 1 {
                return stop(None, "record of another group");
            }
            self.open.push((header, kind, at, true));
            at = self.step_over(at, &header, kind)?;
            if header.is_last() {
                self.close_group(at)?;
            }
        }
    }

    /// Where the record behind this one begins.
    fn step_over(
        &mut self,
        at: Position,
        header: &RecordHeader,
        kind: Kind,
    ) -> Result<Position, StorageError> {
        let next = Position { offset: at.offset + header.record_bytes(), ..at };
        if kind != Kind::End {
            return Ok(next);
        }
        // Nobody ever writes there, so this is no torn write either.
        let rest = self.image.get(next.offset as usize..).unwrap_or_default();
        if let Some(i) = rest.iter().position(|b| *b != 0) {
            let mut records = (i & !7..rest.len()).step_by(8).filter_map(|i| {
                let (header, _) = RecordHeader::decode(&rest[i..]).ok()?;
                (header.segment.get() == at.segment).then_some(i as u64 + header.record_bytes())
            });
            let lost = records.next_back();
            let at = Position { offset: next.offset + i as u64, ..at };
            self.fault(at, "not zero behind the last record of the segment");
            // Unless it is the End that does not belong where it stands, and the log went on here.
            if let Some(bytes) = lost {
                // What was lost counts from where the server stood with the records in front of it.
                self.note_open()?;
                self.lose(bytes / HEADER + 1, next, at)?;
            }
        }
        Ok(Position::start_of(at.segment + 1))
    }

    /// So many records were lost at `at`, as was seen at `seen`.
    fn lose(&mut self, records: u64, at: Position, seen: Position) -> Result<(), StorageError> {
        let lost = self.contents.lose(records, at);
        lost.map_err(|what| damaged_file(&segment_name(seen.segment), seen.offset, what))
    }

    fn close_group(&mut self, end: Position) -> Result<(), StorageError> {
        self.end = end;
        self.group += 1;
        self.note_open()?;
        self.contents.reach(self.group);
        self.bound(end);
        self.check_mark()
    }

    /// Recovery may begin here.
    fn bound(&mut self, at: Position) {
        let start = Start { group: self.group, at, stood: self.contents.stood };
        self.boundaries.entry(at.segment).or_insert(start);
    }

    fn note_open(&mut self) -> Result<(), StorageError> {
        for (header, kind, at, whole) in std::mem::take(&mut self.open) {
            let (slot, ballot) = (Slot(header.slot.get()), header.ballot());
            let noted = match whole {
                true => self.contents.note(kind, slot, ballot, at),
                false => self.contents.note_bodiless(kind, slot, ballot, at),
            };
            noted.map_err(|what| damaged_file(&segment_name(at.segment), at.offset, what))?;
            self.contents.raise_promise(header.promise());
            if let Some(decided) = header.decided() {
                self.contents.raise_decided(decided);
            }
        }
        self.contents.settle();
        Ok(())
    }

    /// The mark and the log must agree on the group that the mark names.
    fn check_mark(&self) -> Result<(), StorageError> {
        let Mark { group, end, promised, .. } = self.mark;
        // Where records are lost, the mark may know of a promise that the log does not.
        let promise = promised == self.contents.promised || !self.faults.is_empty();
        if group == self.group && (end != self.end || !promise) {
            return Err(damaged_file(
                MARK,
                group % 2 * MARK_SLOT,
                format!("says otherwise than the log how group {group} ends"),
            ));
        }
        Ok(())
    }

    /// Whether what stands at a stop was once on disk, so that it is damage (S2); then from where the log goes on.
    fn behind(&mut self, stop: &Stop) -> Result<Option<Position>, StorageError> {
        let later = self.later_record(stop)?;
        if self.group >= self.mark.group && later.is_none() {
            return Ok(None);
        }
        self.load(stop.at.segment)?;
        let known = self.faults.len();
        let bytes = self.image.get(stop.at.offset as usize..).unwrap_or_default();
        let known_header = match stop.bad {
            Some(Bad::Payload) => RecordHeader::decode(bytes).ok(),
            // One wrong bit can be told, and what stood there with it.
            Some(Bad::Header) => RecordHeader::decode_mended(bytes),
            _ => None,
        };
        if let Some((header, kind)) = known_header
            && header.segment.get() == stop.at.segment
            && header.group.get() == self.group + 1
        {
            let read_back = kind.has_value() || kind == Kind::History;
            let whole = check_payload(bytes, &header).is_ok() && !read_back;
            let slot = header.slot.get();
            let what = if kind.has_value() { format!(" of slot {slot}") } else { String::new() };
            self.fault(stop.at, format!("{}{what}", stop.why));
            // Its own bytes are as wrong as before, so nobody can read it back.
            self.open.push((header, kind, stop.at, whole));
            let next = self.step_over(stop.at, &header, kind)?;
            if header.is_last() {
                self.close_group(next)?;
            }
            return Ok(Some(next));
        }
        if !self.broken.contains(&stop.at.segment) {
            self.fault(stop.at, stop.why);
        }
        let (next, group) = match later {
            Some((next, group)) => (next, group),
            // All that the mark vouches for is lost up to its end.
            None => (self.mark.end, self.mark.group + 1),
        };
        if next <= stop.at {
            return Err(damaged_file(&segment_name(stop.at.segment), stop.at.offset, stop.why));
        }
        self.note_open()?;
        let mut records = self.bytes_between(stop.at, next) / HEADER;
        // A whole record that does not belong there covers what did, and says nothing of its own vote.
        if let Ok((header, _)) =
            RecordHeader::decode(self.image.get(stop.at.offset as usize..).unwrap_or_default())
        {
            records = records.max(header.record_bytes() / HEADER) + 1;
        }
        // Each group has one at least.
        let groups = group.saturating_sub(self.group + 1);
        self.lose(records.max(groups).max(1), stop.at, stop.at)?;
        // Should what follows turn out to be torn, this is where the log goes on; what is lost stays as it is.
        (self.group, self.end) = (group - 1, next);
        self.contents.reach(self.group);
        if later.is_none() {
            self.bound(next);
        }
        if let Some(fault) = self.faults.get_mut(known) {
            let (segment, offset) = (segment_name(next.segment), next.offset);
            fault.what += &format!("; lost up to {segment} at offset {offset}");
        }
        Ok(Some(next))
    }

    /// The next place behind `from` with the header of a record that shows that everything before was on disk: of a later
    /// group, or of the group being read if the mark vouches for that. Every aligned place is tried, for the chain cannot
    /// be trusted here.
    fn later_record(&mut self, stop: &Stop) -> Result<Option<(Position, u64)>, StorageError> {
        let from = Position { offset: stop.at.offset + 8, ..stop.at };
        let least = if self.group < self.mark.group { self.group + 1 } else { self.group + 2 };
        let mut first = None;
        for segment in from.segment..=self.segments {
            self.load(segment)?;
            let begin = if segment == from.segment { from.offset } else { BLOCK };
            let rest = self.image.get(begin as usize..).unwrap_or_default();
            if rest.iter().all(|byte| *byte == 0) {
                continue;
            }
            for offset in (begin..self.segment_bytes.saturating_sub(HEADER)).step_by(8) {
                let Ok((header, _)) = RecordHeader::decode(&self.image[offset as usize..]) else { continue };
                let group = header.group.get();
                if header.segment.get() != segment || group <= self.group {
                    continue;
                }
                // The rest of a group is as good as a later one, once it is clear that it was on disk.
                let (at, _) = *first.get_or_insert((Position { segment, offset }, group));
                if group >= least {
                    let group = first.map_or(group, |(_, group)| group);
                    return Ok(Some((at, group)));
                }
            }
        }
        // A whole record that does not belong there tells as much, unless the mark knows better where the log ends.
        self.load(stop.at.segment)?;
        let there = record_at(&self.image, stop.at.offset).ok().map(|(header, _)| header);
        let is_later = |header: &RecordHeader| {
            header.segment.get() == stop.at.segment
                && header.group.get() >= least
                && self.group >= self.mark.group
        };
        Ok(there.filter(is_later).map(|header| {
            let behind = Position { offset: stop.at.offset + header.record_bytes(), ..stop.at };
            first.unwrap_or((behind, header.group.get() + 1))
        }))
    }

    fn bytes_between(&self, from: Position, to: Position) -> u64 {
        let whole = u64::from(to.segment - from.segment) * (self.segment_bytes - BLOCK);
        (whole + to.offset).saturating_sub(from.offset)
    }

    /// S1: what follows the last whole group is nothing, or a torn group; that is cut off.
    ///
    /// The cut group's number is given out again. That is safe because every byte behind the end is zero on disk
    /// before this returns: no record of the old group is left that could complete or contradict the new one. A crash
    /// in the middle of the cut leaves fewer records of a group that already lacked one: it is torn as before.
    ///
    /// Zeros are written even over zeros: those may stand in the page cache only, from a cut that was never synced.
    fn cut_rest(&mut self, stop: Position, why: &'static str) -> Result<Option<String>, StorageError> {
        let file = segment_name(stop.segment);
        let end = self.end;
        let rest = |segment| if segment == end.segment { end.offset } else { BLOCK };
        let mut torn = false;
        for segment in end.segment..=self.segments {
            self.load(segment)?;
            torn |= self.image[rest(segment) as usize..].iter().any(|b| *b != 0);
        }
        for segment in end.segment..=self.segments {
            if self.broken.contains(&segment) {
                self.make_anew(segment, rest(segment))?;
            } else {
                let from = rest(segment);
                self.overwrite(segment, from, &vec![0; (self.segment_bytes - from) as usize])?;
            }
        }
        Ok(torn.then(|| {
            format!(
                "{file} at offset {}: {why}; cut group {}, which was being written and never confirmed, back to {} at \
                 offset {} (S1)",
                stop.offset,
                self.group + 1,
                segment_name(end.segment),
                end.offset
            )
        }))
    }

    /// S2: a segment that is to be written to gets its header and its length again, with what is whole in it.
    fn make_anew(&mut self, segment: u32, upto: u64) -> Result<(), StorageError> {
        self.load(segment)?;
        let block = Block { identity: self.identity, segment, segment_bytes: self.segment_bytes }.encode();
        let mut bytes = self.image.clone();
        bytes[..BLOCK as usize].copy_from_slice(&block);
        bytes[upto as usize..].fill(0);
        self.loaded = 0;
        let name = segment_name_new(segment);
        let write = || -> io::Result<()> {
            let mut file = self.disk.create(&name)?;
            file.write_at(&bytes, 0)?;
            file.sync_data()?;
            self.disk.rename(&name, &segment_name(segment))?;
            self.disk.sync_dir()
        };
        write().map_err(io_error(&name, "write"))
    }

    /// Whatever stands above the mark may have been read from a page cache whose sync never came or failed; in the
    /// second case the pages count as clean, and only writing them again makes a sync mean something.
    /// The log in front of the start was on disk before the snapshot was.
    fn make_durable(&mut self, start: Start) -> Result<(), StorageError> {
        let first = self.mark.end.max(start.at);
        for segment in first.segment..=self.end.segment {
            let from = if segment == first.segment { first.offset } else { BLOCK };
            let to = if segment == self.end.segment { self.end.offset } else { self.segment_bytes };
            if from < to && !self.broken.contains(&segment) {
                self.load(segment)?;
                let bytes = self.image[from as usize..to as usize].to_vec();
                self.overwrite(segment, from, &bytes)?;
            }
        }
        Ok(())
    }

    fn overwrite(&mut self, segment: u32, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let name = segment_name(segment);
        // What is in memory may be older than the file from here on.
        self.loaded = 0;
        let mut file = self.disk.open(&name).map_err(io_error(&name, "open"))?;
        file.write_at(bytes, offset).and_then(|()| file.sync_data()).map_err(io_error(&name, "write"))
    }
}
