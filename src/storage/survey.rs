//! Looks at every byte of a directory, names every fault, and changes nothing: `bank wal verify`, `bank wal dump`.
//!
//! Recovery follows the chain of records up to the first thing that does not fit, and refuses. Here the search goes on
//! behind it, at the next place that holds a whole record.

use std::fmt;

use super::contents::Contents;
use super::disk::{Disk, DiskFile};
use super::format::{
    BLOCK, Bad, FoundMark, Kind, MARK, Mark, Position, RecordHeader, record_at, segment_name, segment_number,
};
use super::recover::{
    check_names, check_segment, damaged_file, gapless, read_block, read_identity, read_mark,
};
use super::scan::{Unreadable, read_sectors};
use super::snapshot::{self, Snapshot};
use super::wal::io_error;
use super::{Identity, StorageError};
use crate::types::{Ballot, Cut, Slot};

/// A record as it stands in a segment.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub segment: u32,
    pub offset: u64,
    pub kind: &'static str,
    pub group: u64,
    /// Whether its group ends with it.
    pub last: bool,
    /// What it is about; 0 for a promise. For a history the last slot, of which the first stands in place of the round.
    pub slot: Slot,
    pub ballot: Ballot,
    /// The promise in force with it.
    pub promised: Ballot,
    /// What was known as decided, if it says so.
    pub decided: Option<Slot>,
    pub payload: &'a [u8],
}

/// Something that is not as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub file: String,
    pub offset: Option<u64>,
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "{} at offset {offset}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

impl From<StorageError> for Fault {
    fn from(e: StorageError) -> Fault {
        match e {
            StorageError::Damaged { file, offset, what } => Fault { file, offset, what },
            StorageError::Io { file, doing, source } => {
                Fault { file, offset: None, what: format!("cannot {doing}: {source}") }
            }
            other => Fault { file: "directory".into(), offset: None, what: other.to_string() },
        }
    }
}

/// What a directory holds.
#[derive(Clone, Default, Debug)]
pub struct Survey {
    pub identity: Option<Identity>,
    pub segments: u32,
    pub records: u64,
    /// Groups that are whole.
    pub groups: u64,
    /// Bytes of records, headers included.
    pub bytes: u64,
    /// Snapshots of which every byte is as it was written.
    pub snapshots: Vec<Cut>,
    /// What the next start will cut off (S1): a group that was being written and never confirmed.
    pub torn: Option<Fault>,
    pub faults: Vec<Fault>,
}

struct Walk {
    survey: Survey,
    /// The group that the next record should belong to, if one was read without a fault between.
    expected: Option<u64>,
    /// Whether every record of the group so far was read.
    chained: bool,
    /// The last whole group, and where it ends.
    whole: u64,
    end: Position,
    /// The highest group of any record.
    highest: u64,
    /// Faults in the log, by place.
    found: Vec<(Position, Fault)>,
    promised: Ballot,
    /// What the log behind the newest whole snapshot holds.
    contents: Contents,
    mark: Option<Mark>,
}

/// Verifies every file of a directory, and shows every record that is whole.
///
/// # Errors
///
/// It cannot be listed, or was never formatted: there is neither an identity nor a log without one.
pub fn survey<D: Disk>(disk: &D, mut show: impl FnMut(Seen<'_>)) -> Result<Survey, StorageError> {
    let names = disk.list().map_err(io_error(".", "list the directory"))?;
    let mut survey = Survey::default();
    let (identity, segment_bytes) = match read_identity(disk) {
        Ok(found) => found,
        Err(e) => {
            let lost = match e {
                StorageError::NotFormatted => check_names(&names).err().unwrap_or(e),
                other => other,
            };
            if matches!(lost, StorageError::NotFormatted) {
                return Err(lost);
            }
            survey.faults.push(lost.into());
            // Every segment says whose it is.
            match names.iter().find_map(|name| owner(disk, name)) {
                Some(found) => found,
                None => return Ok(survey),
            }
        }
    };
    survey.identity = Some(identity);
    let slots: Vec<Slot> = names.iter().filter_map(|name| snapshot::slot_of(name)).collect();
    let mut starts = Vec::new();
    for slot in &slots {
        let opened = snapshot::open(disk, *slot, &identity, false);
        match opened.and_then(|snapshot| Ok((snapshot.damaged_pieces(disk)?, snapshot))) {
            Ok((damaged, Snapshot { cut, start, .. })) if damaged.is_empty() => {
                starts.push((cut.slot, start.at.segment));
                survey.snapshots.push(cut);
            }
            Ok((damaged, _)) => survey.faults.extend(damaged.into_iter().map(Fault::from)),
            Err(e) => survey.faults.push(e.into()),
        }
    }
    let mark = match read_mark(disk, identity) {
        Ok(FoundMark { mark, faults, .. }) => {
            let faults = faults.into_iter().map(|(at, what)| damaged_file(MARK, at, what).into());
            survey.faults.extend(faults);
            Some(mark)
        }
        Err(e) => {
            survey.faults.push(e.into());
            None
        }
    };
    // As a start does: some of the oldest may have come back that a loss of power kept from going.
    let numbers: Vec<u32> = names.iter().filter_map(|name| segment_number(name)).collect();
    let run = gapless(numbers).unwrap_or(1..=1);
    let (first, last) = if slots.is_empty() { (1, *run.end()) } else { run.into_inner() };
    let newest = starts.iter().max_by_key(|(slot, _)| *slot).map(|(_, segment)| *segment);
    if let Some(segment) = newest.or((!slots.is_empty()).then_some(1)).filter(|s| !(first..=last).contains(s))
    {
        let what = "missing, and the newest snapshot that is whole goes on in it";
        survey.faults.push(damaged_file(&segment_name(segment), None, what).into());
    }
    let mut walk = Walk {
        survey,
        expected: (first == 1).then_some(1),
        chained: first == 1,
        whole: 0,
        end: Position::start_of(first),
        highest: 0,
        found: Vec::new(),
        promised: Ballot::ZERO,
        contents: Contents::behind(
            starts.iter().map(|(slot, _)| *slot).max().unwrap_or_default(),
            Slot::ZERO,
        ),
        mark,
    };
    for number in first..=last {
        walk.segment(disk, number, (identity, segment_bytes), &mut show);
    }
    Ok(walk.finish())
}

/// Whose segment this is, and how large it is, if the file is one and that can be read.
fn owner<D: Disk>(disk: &D, name: &str) -> Option<(Identity, u64)> {
    let number = segment_number(name)?;
    let block = read_block(&disk.open(name).ok()?, name).ok()?;
    (block.segment == number).then_some((block.identity, block.segment_bytes))
}

impl Walk {
    fn fault(&mut self, at: Position, what: impl Into<String>) {
        let fault = Fault { file: segment_name(at.segment), offset: Some(at.offset), what: what.into() };
        self.found.push((at, fault));
        self.lose();
    }

    fn lose(&mut self) {
        self.expected = None;
        self.chained = false;
    }

    fn segment<D: Disk>(
        &mut self,
        disk: &D,
        number: u32,
        (identity, size): (Identity, u64),
        show: &mut impl FnMut(Seen<'_>),
    ) {
        let start = Position { segment: number, offset: 0 };
        let name = segment_name(number);
        let file = match disk.open(&name) {
            Ok(file) => file,
            Err(e) => {
                let gone = e.kind() == std::io::ErrorKind::NotFound;
                let what = if gone { "missing".into() } else { format!("cannot open: {e}") };
                self.found.push((start, Fault { file: name, offset: None, what }));
                return self.lose();
            }
        };
        self.survey.segments += 1;
        if let Err(e) = check_segment(disk, number, identity, size) {
            self.found.push((start, e.into()));
            self.lose();
        }
        let mut image = vec![0; size as usize];
        let len = file.len().unwrap_or(0).min(size);
        for Unreadable { from, to, why } in read_sectors(&file, &mut image[..len as usize]) {
            let at = Position { segment: number, offset: from };
            self.fault(at, format!("cannot read {} bytes: {why}", to - from));
        }
        let mut offset = BLOCK;
        while offset < size {
            let at = Position { segment: number, offset };
            match record_at(&image, offset) {
                Ok((header, kind)) if header.segment.get() == number => {
                    offset += header.record_bytes();
                    let payload = &image[at.offset as usize + size_of::<RecordHeader>()..];
                    self.record(at, &header, kind, &payload[..header.payload_len.get() as usize], show);
                    if kind == Kind::End {
                        if let Some(i) = image[offset as usize..].iter().position(|byte| *byte != 0) {
                            let at = Position { segment: number, offset: offset + i as u64 };
                            self.fault(at, "not zero behind the last record of the segment");
                        }
                        return;
                    }
                }
                found => {
                    let what = found.map_or_else(Bad::text, |_| "record of another segment");
                    let rest = image[offset as usize..].iter().all(|byte| *byte == 0);
                    if rest {
                        // The end of the log, if nothing comes behind it.
                        return;
                    }
                    self.fault(at, what);
                    let mut later = (offset + 8..size).step_by(8);
                    let whole = |at: &u64| {
                        record_at(&image, *at).is_ok_and(|(header, _)| header.segment.get() == number)
                    };
                    match later.find(whole) {
                        Some(next) => offset = next,
                        None => return,
                    }
                }
            }
        }
    }

    fn record(
        &mut self,
        at: Position,
        header: &RecordHeader,
        kind: Kind,
        payload: &[u8],
        show: &mut impl FnMut(Seen<'_>),
    ) {
        let group = header.group.get();
        if let Some(expected) = self.expected.filter(|expected| *expected != group) {
            self.fault(at, format!("record of group {group} where one of group {expected} should be"));
        } else if self.expected.is_none() && group <= self.whole {
            self.fault(at, format!("record of group {group} behind group {}", self.whole));
        }
        self.survey.records += 1;
        self.survey.bytes += header.record_bytes();
        self.highest = self.highest.max(group);
        self.promised = self.promised.max(header.promise());
        self.expected = Some(if header.is_last() { group + 1 } else { group });
        // What cannot be is for the others to name.
        _ = self.contents.note(kind, Slot(header.slot.get()), header.ballot(), at);
        self.contents.settle();
        show(Seen {
            segment: at.segment,
            offset: at.offset,
            kind: kind.name(),
            group,
            last: header.is_last(),
            slot: Slot(header.slot.get()),
            ballot: header.ballot(),
            promised: header.promise(),
            decided: header.decided(),
            payload,
        });
        if header.is_last() {
            let end = Position { segment: at.segment, offset: at.offset + header.record_bytes() };
            if std::mem::replace(&mut self.chained, true) {
                self.survey.groups += 1;
                (self.whole, self.end) = (self.whole.max(group), end);
            }
            let said = self.mark.filter(|mark| mark.group == group);
            if said.is_some_and(|mark| mark.end != end || mark.promised != header.promise()) {
                let what = format!("says otherwise than the log how group {group} ends");
                self.survey.faults.push(Fault { file: MARK.into(), offset: None, what });
            }
        }
    }

    fn finish(mut self) -> Survey {
        let mark = self.mark.map_or(0, |mark| mark.group);
        let in_tail = |at: &Position| *at >= self.end;
        // S1: only of the group behind the last whole one, and only if the mark does not name it.
        let may_cut = self.highest <= self.whole + 1 && mark <= self.whole;
        let (tail, damage): (Vec<_>, Vec<_>) =
            self.found.into_iter().partition(|(at, fault)| may_cut && in_tail(at) && fault.offset.is_some());
        self.survey.faults.extend(damage.into_iter().map(|(_, fault)| fault));
        let unfinished = self.highest > self.whole;
        self.survey.torn = tail.into_iter().map(|(_, fault)| fault).next().or_else(|| {
            (unfinished && may_cut).then(|| Fault {
                file: segment_name(self.end.segment),
                offset: Some(self.end.offset),
                what: format!("group {} is not complete", self.highest),
            })
        });
        if mark > self.whole {
            let what = format!("group {mark} was on disk, and the log is whole up to group {}", self.whole);
            self.survey.faults.push(Fault { file: MARK.into(), offset: None, what });
        }
        let jumped = self.mark.map_or(Slot::ZERO, |mark| mark.jump.slot);
        let file = snapshot::name(jumped);
        if self.contents.present < jumped && self.survey.faults.iter().all(|fault| fault.file != file) {
            let what = format!(
                "missing; another server sent it, and the log leads only to slot {}",
                self.contents.present
            );
            self.survey.faults.push(Fault { file, offset: None, what });
        }
        if unfinished && !may_cut && self.survey.faults.is_empty() {
            let what = format!("group {} is not complete, and was on disk", self.highest);
            let (file, offset) = (segment_name(self.end.segment), Some(self.end.offset));
            self.survey.faults.push(Fault { file, offset, what });
        }
        self.survey
    }
}

/// The pieces of a snapshot, verified.
///
/// # Errors
///
/// There is no such snapshot, it is damaged, or it cannot be read.
pub fn snapshot_pieces<D: Disk>(
    disk: &D,
    identity: &Identity,
    slot: Slot,
) -> Result<impl Iterator<Item = std::io::Result<Vec<u8>>>, StorageError> {
    let snapshot = snapshot::open(disk, slot, identity, false)?;
    Ok((0..snapshot.cut.pieces()).map(move |n| snapshot.read_piece(disk, n)))
}
