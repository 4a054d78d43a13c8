//! Opening a log after whatever happened to it: rules S1 and S2.
//!
//! The log is one gapless chain of records, group after group, from the first segment on. The chain is followed from
//! where the newest snapshot says that it goes on, as far as it is whole. Where it stops there are zeros to the end, or
//! what is left of the one group that a crash interrupted. Anything else is damage: then the chain is taken up again
//! behind it, and what may have stood there is told to the replica, which vouches for that much less (see `scan.rs`).

use std::collections::{BTreeMap, VecDeque};

use super::contents::Contents;
use super::disk::{Disk, DiskFile};
use super::format::{
    BLOCK, Block, BlockError, FoundMark, IDENTITY, IDENTITY_NEW, Jump, MARK, MARK_BYTES, Mark, Position,
    VERSION, segment_name, segment_number,
};
use super::scan::{Scan, read_sectors};
use super::snapshot::{self, Snapshot, Start};
use super::wal::{Tail, Wal, io_error};
use super::{Expected, Identity, Recovered, StorageError};
use crate::config::Topology;
use crate::types::{Ballot, Incarnation, Loss, Slot, Value, Vote};

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
    /// format, or cannot be read. Damage, where it cannot be said what this server has promised, or whose it is (S3); any
    /// other is told in [`Recovered::damaged`] (S2).
    pub fn open(disk: D, expected: Expected) -> Result<(Wal<D>, Recovered), StorageError> {
        let names = disk.list().map_err(io_error(".", "list the directory"))?;
        let (oldest, segments) = check_names(&names)?;
        let (identity, segment_bytes) = read_identity(&disk)?;
        check_identity(&identity, expected)?;
        for name in names.iter().filter(|name| is_leftover(name)) {
            disk.remove(name).map_err(io_error(name, "remove"))?;
        }
        let (mut snapshots, mut damaged) = open_snapshots(&disk, &names, &identity);
        let newest = snapshots.last().copied();
        let FoundMark { mark, faults: marks, lost: mark_lost } = read_mark(&disk, identity)?;
        if mark_lost && !damaged.is_empty() {
            return Err(damaged_file(MARK, marks.first().map(|(at, _)| *at), UNPROVED));
        }
        let mut jump = mark.jump;
        if let Some(newest) = newest.filter(|newest| newest.foreign && newest.cut.slot > jump.slot) {
            // The power went before the mark could say so.
            jump = Jump { slot: newest.cut.slot, missed: 0 };
            snapshots = vec![newest];
        }
        let (contents, start) = match newest {
            Some(Snapshot { cut, start, .. }) => (Contents::behind(cut.slot, start.stood), start),
            None => (Contents::default(), Start { group: 0, at: Position::start_of(1), stood: Slot::ZERO }),
        };
        // P1: it answered for slots up to there.
        let lost = "missing or not whole; another server sent it, and the log does not lead up to it";
        let contents = contents.jumped(jump);
        let contents = contents.ok_or_else(|| damaged_file(&snapshot::name(jump.slot), None, lost))?;
        let mut scan =
            Scan::new(&disk, (identity, segment_bytes), segments, (mark, mark_lost), (contents, start));
        let torn = scan.run(start)?;
        let Scan { mut contents, group, end, boundaries, faults, segments, .. } = scan;
        if contents.finish() {
            damaged.push(damaged_file(&snapshot::name(jump.slot), None, lost).what());
            jump.missed = if jump.missed > 0 { jump.missed } else { group };
        }
        contents.raise_promise(mark.promised);
        damaged.extend(faults.into_iter().map(|f| damaged_file(&f.file, f.offset, f.what).what()));
        damaged.extend(marks.iter().map(|(at, what)| damaged_file(MARK, *at, what).what()));
        let oldest = oldest.min(start.at.segment);
        // Only now: it was in force when the snapshot was finished, after some of the groups that were just read.
        contents.raise_promise(newest.map_or(Ballot::ZERO, |snapshot| snapshot.promised));

        // The mark, too, before anybody is answered: S1 must hold for the groups of the life before this one.
        let mut mark_file = disk.open(MARK).map_err(io_error(MARK, "open"))?;
        let mark = Mark { group, end, promised: contents.promised, jump };
        mark.write_anew(&mut mark_file, identity.incarnation, !marks.is_empty())
            .and_then(|()| disk.sync_dir())
            .map_err(io_error(MARK, "write"))?;

        let mut files = VecDeque::new();
        for number in end.segment..=segments {
            let name = segment_name(number);
            files.push_back(disk.open(&name).map_err(io_error(&name, "open"))?);
        }
        let active = files.pop_front().expect("the log ends in one of its segments");
        let (ready, mark) = (files, mark_file);
        let tail = Tail { group, end, active, ready, mark, boundaries, snapshots, jump, oldest };
        let wal = Wal::new(disk, identity, segment_bytes, contents, tail);

        let (votes, loss) = votes(&wal)?;
        let (promised, decided, noted) = (wal.promised(), wal.decided(), wal.contents.noted);
        let snapshot = wal.snapshot();
        let Identity { incarnation, founder, .. } = identity;
        let incarnation = Incarnation(incarnation);
        Ok((
            wal,
            Recovered {
                incarnation,
                founder,
                promised,
                decided,
                noted,
                snapshot,
                votes,
                loss,
                torn,
                damaged,
            },
        ))
    }
}

pub(super) const UNPROVED: &str = "one of two marks is lost: what the log must hold cannot be proved";

/// Cast votes in order of slots, each with its ballot.
type Cast = Vec<(Slot, Ballot, Value)>;

/// What the log says of the slots that are not known as decided: votes, or what is left of them (S2).
fn votes<D: Disk>(wal: &Wal<D>) -> Result<(Cast, Option<Loss>), StorageError> {
    let (contents, io) = (&wal.contents, io_error("wal", "read the votes back"));
    let mut cast = Vec::new();
    let mut lost = BTreeMap::new();
    // Doubts without a vote behind them need no list.
    let mut hidden = contents.last();
    while hidden > contents.known && contents.is_hidden(hidden) {
        hidden = Slot(hidden.0 - 1);
    }
    for slot in (contents.known.0 + 1..=hidden.0).map(Slot) {
        if let Some(at) = contents.bodiless(slot) {
            lost.insert(slot, Vote::Lost(Some(wal.ballot_at(at).map_err(&io)?)));
        } else if contents.is_hidden(slot) {
            lost.insert(slot, Vote::Lost(None));
        } else {
            // One at a time: there may be gaps, at which read() ends.
            cast.extend(wal.read(slot, 0).map_err(&io)?.into_iter().take(1));
        }
    }
    let hidden = if hidden < contents.last() { contents.last() } else { Slot::ZERO };
    if lost.is_empty() && hidden == Slot::ZERO && contents.known == contents.decided {
        return Ok((cast, None));
    }
    lost.extend(cast.into_iter().map(|(slot, ballot, value)| (slot, Vote::Cast(ballot, value))));
    Ok((Vec::new(), Some(Loss { known: contents.known, votes: lost, hidden, gaps: contents.gaps() })))
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

/// Checks that no file is missing without which nothing can be said (S3), and returns the first and the last segment of
/// the gapless run that ends with the last one.
pub(super) fn check_names(names: &[String]) -> Result<(u32, u32), StorageError> {
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
    if !has(MARK) {
        return Err(damaged_file(MARK, None, "missing: what the log must hold cannot be proved"));
    }
    let (first, last) = gapless(numbers).unwrap_or(1..=1).into_inner();
    Ok((first, last))
}

/// The gapless run that ends with the highest number.
pub(super) fn gapless(mut numbers: Vec<u32>) -> Option<std::ops::RangeInclusive<u32>> {
    numbers.sort_unstable();
    let last = *numbers.last()?;
    let run = (1..=last).rev().zip(numbers.iter().rev()).take_while(|(wanted, n)| wanted == *n).count();
    Some(last + 1 - run as u32..=last)
}

/// A disk that cannot give back what stands at the start of a file has lost it.
fn unreadable(name: &str) -> impl Fn(std::io::Error) -> StorageError {
    move |e| damaged_file(name, 0, format!("cannot read: {e}"))
}

pub(super) fn read_block<F: DiskFile>(file: &F, name: &str) -> Result<Block, StorageError> {
    let len = file.len().map_err(io_error(name, "read"))?;
    if len < BLOCK {
        return Err(damaged_file(name, len, "file is too short"));
    }
    let mut bytes = vec![0; BLOCK as usize];
    file.read_at(&mut bytes, 0).map_err(unreadable(name))?;
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

/// Whether a file is the segment that its name says, and whole. An error that is not about the length of the file is about
/// its header.
pub(super) fn check_segment<D: Disk>(
    disk: &D,
    number: u32,
    identity: Identity,
    size: u64,
) -> Result<(), StorageError> {
    let name = segment_name(number);
    let file = disk.open(&name).map_err(io_error(&name, "open"))?;
    let block = read_block(&file, &name).map_err(|e| match e {
        // The directory is of this version: its identity says so.
        StorageError::WrongVersion { found, .. } => {
            damaged_file(&name, 8, format!("version {found} in its header"))
        }
        other => other,
    })?;
    if block != (Block { identity, segment: number, segment_bytes: size }) {
        return Err(damaged_file(&name, 0, "header of another directory or segment"));
    }
    let len = file.len().map_err(io_error(&name, "read"))?;
    if len != size {
        return Err(damaged_file(&name, len.min(size), format!("{len} bytes long instead of {size}")));
    }
    Ok(())
}

/// Whether all that is wrong with the header of a segment is one bit.
pub(super) fn is_one_bit_off<D: Disk>(disk: &D, number: u32, identity: Identity, size: u64) -> bool {
    let mut bytes = vec![0; BLOCK as usize];
    let read = disk.open(&segment_name(number)).and_then(|file| file.read_at(&mut bytes, 0));
    let expected = Block { identity, segment: number, segment_bytes: size };
    read.is_ok() && Block::decode(&bytes).is_err() && Block::decode_mended(&bytes) == Some(expected)
}

pub(super) fn read_mark<D: Disk>(disk: &D, identity: Identity) -> Result<FoundMark, StorageError> {
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
    let unreadable = read_sectors(&file, &mut bytes);
    Mark::decode(&bytes, identity.incarnation, &unreadable)
        .ok_or_else(|| damaged_file(MARK, 0, "unreadable: what the log must hold cannot be proved"))
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
        // What is missing of the log itself is found when it is read.
        assert_eq!(check(&["identity", "mark", "wal-00000002.seg"]), Ok((2, 2)));
        assert_eq!(check(&["identity", "mark"]), Ok((1, 1)));
        assert_eq!(check(&["identity", "mark", "notes", "wal-00000001.seg"]), Ok((1, 1)));
        let snapshot = "snapshot-0000000000000064.snap";
        assert_eq!(
            check(&["identity", "mark", snapshot, "wal-00000001.seg", "wal-00000003.seg"]),
            Ok((3, 3))
        );
    }

    #[test]
    fn zeros_are_never_a_record() {
        use crate::storage::format::record_at;
        assert_eq!(record_at(&[0; 64], 0).unwrap_err(), crate::storage::format::Bad::Zeros);
    }
}
