//! Opening a log after whatever happened to it: rules S1 and S2.
//!
//! The log is one gapless chain of records, group after group, from the first segment on. The chain is followed from
//! where the newest snapshot says that it goes on, as far as it is whole. Where it stops there must be zeros to the end, or what is left of the one group that a crash
//! interrupted. Anything else is damage.

use std::collections::{BTreeMap, VecDeque};

use super::contents::Contents;
use super::disk::{Disk, DiskFile};
use super::format::{
    BLOCK, Block, BlockError, IDENTITY, IDENTITY_NEW, Kind, MARK, MARK_BYTES, MARK_SLOT, Mark, Position,
    RecordHeader, VERSION, record_at, segment_name, segment_number,
};
use super::snapshot::{self, Snapshot, Start};
use super::wal::{Tail, Wal, io_error};
use super::{Expected, Identity, Recovered, StorageError};
use crate::config::Topology;
use crate::types::{Ballot, Incarnation, Slot};

pub(super) fn damaged_file(
    file: &str,
    offset: impl Into<Option<u64>>,
    what: impl Into<String>,
) -> StorageError {
    StorageError::Damaged { file: file.to_string(), offset: offset.into(), what: what.into() }
}

impl<D: Disk> Wal<D> {
    /// Opens a formatted directory and says what its log holds. Whatever this returns is on disk: what a crash left in
    /// doubt has been written again and synced, or cut and synced.
    ///
    /// # Errors
    ///
    /// A directory that is not formatted, belongs to another cluster, topology or server, was written in another
    /// format, cannot be read, or is damaged (S2).
    pub fn open(disk: D, expected: Expected) -> Result<(Wal<D>, Recovered), StorageError> {
        let names = disk.list().map_err(io_error(".", "list the directory"))?;
        let (oldest, segments) = check_names(&names)?;
        let (identity, segment_bytes) = read_identity(&disk)?;
        check_identity(&identity, expected)?;
        for name in names.iter().filter(|name| is_leftover(name)) {
            disk.remove(name).map_err(io_error(name, "remove"))?;
        }
        let (snapshots, damaged) = open_snapshots(&disk, &names, &identity);
        let newest = snapshots.last().copied();
        let (contents, start) = match newest {
            Some(Snapshot { cut, start, .. }) => (Contents::behind(cut.slot), start),
            None => (Contents::default(), Start { group: 0, at: Position::start_of(1) }),
        };
        if !(oldest..=segments).contains(&start.at.segment) {
            let what = match damaged.first() {
                Some(why) => format!("missing, and no snapshot is whole that goes on behind it ({why})"),
                None => "missing, and no snapshot goes on behind it".into(),
            };
            return Err(damaged_file(&segment_name(start.at.segment), None, what));
        }
        for number in start.at.segment..=segments {
            check_segment(&disk, number, identity, segment_bytes)?;
        }
        let mark = read_mark(&disk, identity)?;

        let mut scan = Scan {
            disk: &disk,
            segments,
            segment_bytes,
            mark,
            contents,
            group: start.group,
            end: start.at,
            boundaries: BTreeMap::from([(start.at.segment, start)]),
            image: Vec::new(),
            loaded: 0,
        };
        let (stop, why) = scan.follow()?;
        let torn = scan.judge_rest(stop, why)?;
        scan.make_durable(start)?;
        let Scan { mut contents, group, end, boundaries, .. } = scan;
        if contents.present < mark.jumped {
            // P1: it answered for slots up to there, and would come back without them.
            let what = format!(
                "missing or not whole; another server sent it, and the log leads only to slot {}",
                contents.present
            );
            return Err(damaged_file(&snapshot::name(mark.jumped), None, what));
        }
        let jumped = newest.map_or(Slot::ZERO, |newest| newest.cut.slot).max(mark.jumped);
        // Only now: it was in force when the snapshot was finished, after some of the groups that were just read.
        contents.raise_promise(newest.map_or(Ballot::ZERO, |snapshot| snapshot.promised));

        // The mark, too, before anybody is answered: S1 must hold for the groups of the life before this one.
        let mut mark_file = disk.open(MARK).map_err(io_error(MARK, "open"))?;
        let mark = Mark { group, end, promised: contents.promised, jumped };
        let (bytes, offset) = mark.encode(identity.incarnation);
        mark_file
            .write_at(&bytes, offset)
            .and_then(|()| mark_file.sync_data())
            .and_then(|()| disk.sync_dir())
            .map_err(io_error(MARK, "write"))?;

        let mut files = VecDeque::new();
        for number in end.segment..=segments {
            let name = segment_name(number);
            files.push_back(disk.open(&name).map_err(io_error(&name, "open"))?);
        }
        let active = files.pop_front().expect("the log ends in one of its segments");
        let (ready, mark) = (files, mark_file);
        let tail = Tail { group, end, active, ready, mark, boundaries, snapshots, jumped, oldest };
        let wal = Wal::new(disk, identity, segment_bytes, contents, tail);

        let mut votes = Vec::new();
        let mut slot = wal.decided().next();
        while slot <= wal.last_slot() {
            // One at a time: there may be gaps, at which read() ends.
            let vote = wal.read(slot, 0).map_err(io_error("wal", "read the votes back"))?;
            votes.extend(vote.into_iter().take(1));
            slot = slot.next();
        }
        let (promised, decided, noted) = (wal.promised(), wal.decided(), wal.contents.noted);
        let snapshot = wal.snapshot();
        let Identity { incarnation, founder, .. } = identity;
        let incarnation = Incarnation(incarnation);
        Ok((
            wal,
            Recovered { incarnation, founder, promised, decided, noted, snapshot, votes, torn, damaged },
        ))
    }
}

fn is_leftover(name: &str) -> bool {
    let segment = name.strip_suffix(".new").is_some_and(|name| segment_number(name).is_some());
    segment || snapshot::is_leftover(name)
}

/// The newest snapshot that is whole, and the one before it, the newest last; and what is damaged among them.
fn open_snapshots<D: Disk>(disk: &D, names: &[String], identity: &Identity) -> (Vec<Snapshot>, Vec<String>) {
    let mut slots: Vec<Slot> = names.iter().filter_map(|name| snapshot::slot_of(name)).collect();
    slots.sort_unstable();
    let (mut good, mut damaged) = (Vec::new(), Vec::new());
    while let Some(slot) = slots.pop().filter(|_| good.len() < 2) {
        // The older one is read only when it is needed.
        match snapshot::open(disk, slot, identity, good.is_empty()) {
            Ok(snapshot) => good.insert(0, snapshot),
            // Also where the disk cannot read it: the log behind the older one says the same.
            Err(e) => damaged.push(e.what()),
        }
    }
    (good, damaged)
}

/// Checks that no file is missing that must be there, and returns the first and the last segment of the gapless run that
/// ends with the last one.
fn check_names(names: &[String]) -> Result<(u32, u32), StorageError> {
    let has = |name: &str| names.iter().any(|n| n == name);
    let numbers: Vec<u32> = names.iter().filter_map(|name| segment_number(name)).collect();
    if !has(IDENTITY) {
        // An unfinished formatting holds nothing yet; a log without its identity does.
        return Err(if has(IDENTITY_NEW) || numbers.is_empty() && !has(MARK) {
            StorageError::NotFormatted
        } else {
            damaged_file(IDENTITY, None, "missing, but there is a log")
        });
    }
    let Some(run) = gapless(numbers) else {
        return Err(damaged_file(&segment_name(1), None, "missing"));
    };
    let (first, last) = run.into_inner();
    let snapshots = names.iter().any(|name| snapshot::slot_of(name).is_some());
    if first > 1 && !snapshots {
        return Err(damaged_file(&segment_name(first - 1), None, "missing, but there are later segments"));
    }
    if !has(MARK) {
        return Err(damaged_file(MARK, None, "missing: what the log must hold cannot be proved"));
    }
    Ok((first, last))
}

/// The gapless run that ends with the highest number.
pub(super) fn gapless(mut numbers: Vec<u32>) -> Option<std::ops::RangeInclusive<u32>> {
    numbers.sort_unstable();
    let last = *numbers.last()?;
    let run = (1..=last).rev().zip(numbers.iter().rev()).take_while(|(wanted, n)| wanted == *n).count();
    Some(last + 1 - run as u32..=last)
}

fn read_block<F: DiskFile>(file: &F, name: &str) -> Result<Block, StorageError> {
    let len = file.len().map_err(io_error(name, "read"))?;
    if len < BLOCK {
        return Err(damaged_file(name, len, "file is too short"));
    }
    let mut bytes = vec![0; BLOCK as usize];
    file.read_at(&mut bytes, 0).map_err(io_error(name, "read"))?;
    Block::decode(&bytes).map_err(|e| match e {
        BlockError::Magic => damaged_file(name, 0, "no such file of this program: wrong first bytes"),
        BlockError::Version(found) => {
            StorageError::WrongVersion { file: name.to_string(), found, expected: VERSION }
        }
        BlockError::Checksum => damaged_file(name, 0, "bad checksum of the file header"),
    })
}

/// Whose directory it is, and how large its segments are.
///
/// # Errors
///
/// It was never formatted, or what says so is damaged.
pub fn read_identity<D: Disk>(disk: &D) -> Result<(Identity, u64), StorageError> {
    let file = match disk.open(IDENTITY) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(StorageError::NotFormatted),
        other => other.map_err(io_error(IDENTITY, "open"))?,
    };
    let block = read_block(&file, IDENTITY)?;
    let len = file.len().map_err(io_error(IDENTITY, "read"))?;
    if len != BLOCK || block.segment != 0 {
        return Err(damaged_file(IDENTITY, None, "not an identity file"));
    }
    Ok((block.identity, block.segment_bytes))
}

fn check_identity(identity: &Identity, expected: Expected) -> Result<(), StorageError> {
    let Identity { cluster_id, topology: found, server, .. } = *identity;
    let wrong = |field, found: String, expected: String| {
        Err(StorageError::WrongIdentity { file: IDENTITY.to_string(), field, found, expected })
    };
    if let Some(expected) = expected.cluster_id.filter(|expected| *expected != cluster_id) {
        return wrong("cluster id", format!("{cluster_id:032x}"), format!("{expected:032x}"));
    }
    let Topology { clusters, servers_per_cluster, accounts, initial_balance } = expected.topology;
    for (field, found, expected) in [
        ("a topology with clusters", u64::from(found.clusters), u64::from(clusters)),
        (
            "a topology with servers per cluster",
            u64::from(found.servers_per_cluster),
            u64::from(servers_per_cluster),
        ),
        ("a topology with accounts", found.accounts, accounts),
        ("a topology with initial balance", found.initial_balance, initial_balance),
    ] {
        if found != expected {
            return wrong(field, found.to_string(), expected.to_string());
        }
    }
    if server != expected.server {
        return wrong("server", server.to_string(), expected.server.to_string());
    }
    Ok(())
}

pub(super) fn check_segment<D: Disk>(
    disk: &D,
    number: u32,
    identity: Identity,
    size: u64,
) -> Result<(), StorageError> {
    let name = segment_name(number);
    let file = disk.open(&name).map_err(io_error(&name, "open"))?;
    let block = read_block(&file, &name)?;
    if block != (Block { identity, segment: number, segment_bytes: size }) {
        return Err(damaged_file(&name, 0, "header of another directory or segment"));
    }
    let len = file.len().map_err(io_error(&name, "read"))?;
    if len != size {
        return Err(damaged_file(&name, len.min(size), format!("{len} bytes long instead of {size}")));
    }
    Ok(())
}

pub(super) fn read_mark<D: Disk>(disk: &D, identity: Identity) -> Result<Mark, StorageError> {
    let file = disk.open(MARK).map_err(io_error(MARK, "open"))?;
    let len = file.len().map_err(io_error(MARK, "read"))?;
    if len != MARK_BYTES {
        return Err(damaged_file(
            MARK,
            len.min(MARK_BYTES),
            format!("{len} bytes long instead of {MARK_BYTES}"),
        ));
    }
    let mut bytes = vec![0; MARK_BYTES as usize];
    file.read_at(&mut bytes, 0).map_err(io_error(MARK, "read"))?;
    if let Some(offset) = Mark::unused_byte_set(&bytes) {
        return Err(damaged_file(MARK, offset, "not zero where nothing is ever written"));
    }
    Mark::decode(&bytes, identity.incarnation)
        .ok_or_else(|| damaged_file(MARK, 0, "unreadable: what the log must hold cannot be proved"))
}

struct Scan<'a, D> {
    disk: &'a D,
    segments: u32,
    segment_bytes: u64,
    mark: Mark,
    contents: Contents,
    /// The last whole group, and where it ends.
    group: u64,
    end: Position,
    boundaries: BTreeMap<u32, Start>,
    /// The segment being looked at, whole.
    image: Vec<u8>,
    loaded: u32,
}

impl<D: Disk> Scan<'_, D> {
    fn load(&mut self, number: u32) -> Result<(), StorageError> {
        if self.loaded != number {
            let name = segment_name(number);
            let file = self.disk.open(&name).map_err(io_error(&name, "open"))?;
            self.image.resize(self.segment_bytes as usize, 0);
            file.read_at(&mut self.image, 0).map_err(io_error(&name, "read"))?;
            self.loaded = number;
        }
        Ok(())
    }

    /// Follows the chain of records. Returns where it stops, and why.
    fn follow(&mut self) -> Result<(Position, &'static str), StorageError> {
        if self.mark.group == 0 && self.mark.end != Position::start_of(1) {
            return Err(damaged_file(MARK, 0, "group 0 does not end at the start of the log"));
        }
        let mut at = self.end;
        // The records of the group being read: they count only when the last one is there.
        let mut open: Vec<(RecordHeader, Kind, Position)> = Vec::new();
        loop {
            self.load(at.segment)?;
            let (header, kind) = match record_at(&self.image, at.offset) {
                Ok(record) => record,
                Err(bad) => return Ok((at, bad.text())),
            };
            if header.segment.get() != at.segment {
                return Ok((at, "record of another segment"));
            }
            if header.group.get() != self.group + 1 {
                return Ok((at, "record of another group"));
            }
            open.push((header, kind, at));
            at.offset += header.record_bytes();
            if kind == Kind::End {
                // Nobody ever writes there, so this is no torn write either.
                let rest = &self.image[at.offset as usize..];
                if let Some(i) = rest.iter().position(|b| *b != 0) {
                    let what = "not zero behind the last record of the segment";
                    return Err(damaged_file(&segment_name(at.segment), at.offset + i as u64, what));
                }
                at = Position::start_of(at.segment + 1);
                // A segment is durable before the one in front of it is closed: this is no torn write.
                if at.segment > self.segments {
                    return Err(damaged_file(
                        &segment_name(at.segment),
                        None,
                        "missing, the log goes on in it",
                    ));
                }
            } else if header.is_last() {
                self.end = at;
                self.group += 1;
                self.boundaries.entry(at.segment).or_insert(Start { group: self.group, at });
                for (header, kind, at) in open.drain(..) {
                    self.note(header, kind, at)?;
                }
                self.contents.settle();
                self.check_mark()?;
            }
        }
    }

    fn note(&mut self, header: RecordHeader, kind: Kind, at: Position) -> Result<(), StorageError> {
        self.contents
            .note(kind, Slot(header.slot.get()), header.ballot(), at)
            .map_err(|what| damaged_file(&segment_name(at.segment), at.offset, what))?;
        self.contents.raise_promise(header.promise());
        if let Some(decided) = header.decided() {
            self.contents.raise_decided(decided);
        }
        Ok(())
    }

    /// The mark and the log must agree on the group that the mark names.
    fn check_mark(&self) -> Result<(), StorageError> {
        let Mark { group, end, promised, .. } = self.mark;
        if group == self.group && (end != self.end || promised != self.contents.promised) {
            return Err(damaged_file(
                MARK,
                group % 2 * MARK_SLOT,
                format!("says otherwise than the log how group {group} ends"),
            ));
        }
        Ok(())
    }

    /// S1: decides whether what follows the last whole group is nothing, a torn group, or damage; and cuts a torn one.
    ///
    /// The cut group's number is given out again. That is safe because every byte behind the end is zero on disk
    /// before this returns: no record of the old group is left that could complete or contradict the new one. A crash
    /// in the middle of the cut leaves fewer records of a group that already lacked one: it is torn as before.
    ///
    /// Zeros are written even over zeros: those may stand in the page cache only, from a cut that was never synced.
    fn judge_rest(&mut self, stop: Position, why: &'static str) -> Result<Option<String>, StorageError> {
        let file = segment_name(stop.segment);
        if self.group < self.mark.group {
            let what =
                format!("{why}; the log must be whole up to group {}, which was on disk", self.mark.group);
            return Err(damaged_file(&file, stop.offset, what));
        }
        let end = self.end;
        let rest = |segment| if segment == end.segment { end.offset } else { BLOCK };
        let mut torn = false;
        for segment in end.segment..=self.segments {
            self.load(segment)?;
            if self.image[rest(segment) as usize..].iter().any(|b| *b != 0) {
                torn = true;
                self.refuse_other_groups(segment, rest(segment), stop, why)?;
            }
        }
        for segment in end.segment..=self.segments {
            let from = rest(segment);
            self.overwrite(segment, from, &vec![0; (self.segment_bytes - from) as usize])?;
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

    /// Behind the end nothing but the torn group may have left a record. Every aligned place is tried, for the chain
    /// cannot be trusted here. (A value that contains record headers could be taken for one; that only refuses more.)
    fn refuse_other_groups(
        &self,
        segment: u32,
        from: u64,
        stop: Position,
        why: &str,
    ) -> Result<(), StorageError> {
        for offset in (from..self.segment_bytes).step_by(8) {
            let Ok((header, _)) = RecordHeader::decode(&self.image[offset as usize..]) else { continue };
            if header.group.get() != self.group + 1 {
                let what = format!(
                    "{why}; but a record of group {} follows in {} at offset {offset}, so this was on disk",
                    header.group,
                    segment_name(segment)
                );
                return Err(damaged_file(&segment_name(stop.segment), stop.offset, what));
            }
        }
        Ok(())
    }

    /// Whatever stands above the mark may have been read from a page cache whose sync never came or failed; in the
    /// second case the pages count as clean, and only writing them again makes a sync mean something.
    /// The log in front of the start was on disk before the snapshot was.
    fn make_durable(&mut self, start: Start) -> Result<(), StorageError> {
        let first = self.mark.end.max(start.at);
        for segment in first.segment..=self.end.segment {
            let from = if segment == first.segment { first.offset } else { BLOCK };
            let to = if segment == self.end.segment { self.end.offset } else { self.segment_bytes };
            if from < to {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_formatting_never_finished_counts_as_unformatted() {
        let check = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
            check_names(&names).map_err(|e| e.to_string())
        };
        assert!(check(&[]).unwrap_err().contains("never formatted"));
        assert!(check(&["identity.new", "wal-00000001.seg"]).unwrap_err().contains("never formatted"));
        assert!(check(&["mark"]).unwrap_err().starts_with("identity: damaged"));
        assert!(check(&["wal-1.seg", "notes"]).unwrap_err().contains("never formatted"));
        assert!(check(&["mark", "wal-00000001.seg"]).unwrap_err().starts_with("identity: damaged"));
        assert!(check(&["identity", "wal-00000001.seg"]).unwrap_err().starts_with("mark: damaged"));
        assert!(
            check(&["identity", "mark", "wal-00000002.seg"])
                .unwrap_err()
                .starts_with("wal-00000001.seg: damaged")
        );
        assert_eq!(check(&["identity", "mark", "notes", "wal-00000001.seg"]), Ok((1, 1)));
        let snapshot = "snapshot-0000000000000064.snap";
        assert_eq!(
            check(&["identity", "mark", snapshot, "wal-00000001.seg", "wal-00000003.seg"]),
            Ok((3, 3))
        );
    }

    #[test]
    fn zeros_are_never_a_record() {
        assert_eq!(record_at(&[0; 64], 0).unwrap_err(), crate::storage::format::Bad::Zeros);
    }
}
