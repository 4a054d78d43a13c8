//! The bytes on disk: names, blocks, record headers, marks. All integers are little-endian.
//!
//! ```text
//! identity          one block: who owns this directory; written last when it is formatted
//! mark              two slots, 4 KiB apart: the last group known to be on disk, and where it ends (S1)
//! wal-00000001.seg  a block, then records of 56 bytes of header and the payload, padded to 8, then zeros
//! *.new             files in the making, without meaning after a restart
//! ```
//!
//! Every segment but the last one in use ends with an *End* record, for which room is always kept. A group is
//! therefore a gapless chain of valid records from its first byte to the record that carries [`LAST`], over any number
//! of segments: nothing can be missing from the middle of it unnoticed.

use std::io;

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Identity;
use super::disk::DiskFile;
use super::scan::Unreadable;
use crate::config::Topology;
use crate::types::{Ballot, NodeId, Slot};

pub(super) const VERSION: u32 = 7;
/// Size of the header of a segment, and of the identity file.
pub(super) const BLOCK: u64 = 4096;
/// Size of a record's header.
pub(super) const HEADER: u64 = size_of::<RecordHeader>() as u64;
pub(super) const IDENTITY: &str = "identity";
/// Present while a directory is being formatted; renamed to [`IDENTITY`] as the last step.
pub(super) const IDENTITY_NEW: &str = "identity.new";
pub(super) const MARK: &str = "mark";
/// Apart by a page, so that no medium writes both slots at once.
pub(super) const MARK_SLOT: u64 = 4096;
pub(super) const MARK_BYTES: u64 = 2 * MARK_SLOT;

const MAGIC: [u8; 8] = *b"SPBwal\r\n";

pub(super) fn segment_name(number: u32) -> String {
    format!("wal-{number:08}.seg")
}

pub(super) fn segment_name_new(number: u32) -> String {
    format!("wal-{number:08}.seg.new")
}

/// The number in a segment's name, which must be spelled as [`segment_name`] does.
pub(super) fn segment_number(name: &str) -> Option<u32> {
    let number = name.strip_prefix("wal-")?.strip_suffix(".seg")?.parse().ok()?;
    (segment_name(number) == name).then_some(number)
}

/// A place in the log: a segment, and an offset in its file. Ordered as the log is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Position {
    pub segment: u32,
    pub offset: u64,
}

impl Position {
    /// The first record of a segment.
    pub fn start_of(segment: u32) -> Position {
        Position { segment, offset: BLOCK }
    }

    /// Eight bytes for the index; 0 is no position, since no record stands at the start of a file.
    pub fn pack(self) -> u64 {
        u64::from(self.segment) << 32 | self.offset
    }

    pub fn unpack(packed: u64) -> Option<Position> {
        (packed != 0).then_some(Position { segment: (packed >> 32) as u32, offset: packed & 0xffff_ffff })
    }
}

/// The first bytes of a segment and of the identity file. The checksum covers the rest of the block, zeros included.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct BlockHeader {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    cluster_id: U128,
    incarnation: U128,
    accounts: U64,
    initial_balance: U64,
    segment_bytes: U64,
    /// 0 in the identity file.
    segment: U32,
    clusters: U16,
    servers_per_cluster: U16,
    server: U16,
    /// 1 if the directory replaces one that was lost, else 0.
    replaces: U16,
}

/// Where the checksummed part of a block begins: behind magic, version and checksum.
const BLOCK_CHECKED: usize = 16;

/// CRC-32C, the reflected polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Takes back the one flipped bit because of which `checked` does not fit `stored`, its checksum. False if it is not one bit.
/// CRC-32C tells apart whatever differs in fewer than four bits (Koopman, "32-bit cyclic redundancy codes for internet
/// applications", 2002), so it is the only bit that it can be.
fn mend_bit(checked: &mut [u8], stored: u32) -> bool {
    let wrong = stored ^ crc32c::crc32c(checked);
    if wrong.count_ones() <= 1 {
        // It is one of the checksum itself.
        return true;
    }
    // What a flipped bit does to the checksum depends on its place alone: here for the eight of a byte, the last one first.
    let through_a_byte =
        |effect: u32| (0..8).fold(effect, |crc, _| crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 });
    let mut effects: [u32; 8] = std::array::from_fn(|bit| through_a_byte(1 << bit));
    for byte in checked.iter_mut().rev() {
        if let Some(bit) = effects.iter().position(|effect| *effect == wrong) {
            *byte ^= 1 << bit;
            return true;
        }
        effects = effects.map(through_a_byte);
    }
    false
}

/// A block's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Block {
    pub identity: Identity,
    pub segment: u32,
    pub segment_bytes: u64,
}

pub(super) enum BlockError {
    Magic,
    Version(u32),
    Checksum,
}

impl Block {
    pub fn encode(&self) -> Vec<u8> {
        let Identity { cluster_id, topology, server, incarnation, founder } = self.identity;
        let mut header = BlockHeader {
            magic: MAGIC,
            version: VERSION.into(),
            crc: 0.into(),
            cluster_id: cluster_id.into(),
            incarnation: incarnation.into(),
            accounts: topology.accounts.into(),
            initial_balance: topology.initial_balance.into(),
            segment_bytes: self.segment_bytes.into(),
            segment: self.segment.into(),
            clusters: topology.clusters.into(),
            servers_per_cluster: topology.servers_per_cluster.into(),
            server: server.0.into(),
            replaces: u16::from(!founder).into(),
        };
        let mut bytes = vec![0; BLOCK as usize];
        bytes[..size_of::<BlockHeader>()].copy_from_slice(header.as_bytes());
        header.crc = crc32c::crc32c(&bytes[BLOCK_CHECKED..]).into();
        bytes[..size_of::<BlockHeader>()].copy_from_slice(header.as_bytes());
        bytes
    }

    /// Reads a whole block. The version is judged before the checksum, whose place another version may have moved.
    pub fn decode(bytes: &[u8]) -> Result<Block, BlockError> {
        let (h, _) = BlockHeader::read_from_prefix(bytes).map_err(|_| BlockError::Magic)?;
        if h.magic != MAGIC {
            return Err(BlockError::Magic);
        }
        if h.version.get() != VERSION {
            return Err(BlockError::Version(h.version.get()));
        }
        if h.crc.get() != crc32c::crc32c(&bytes[BLOCK_CHECKED..]) {
            return Err(BlockError::Checksum);
        }
        let topology = Topology {
            clusters: h.clusters.get(),
            servers_per_cluster: h.servers_per_cluster.get(),
            accounts: h.accounts.get(),
            initial_balance: h.initial_balance.get(),
        };
        let identity = Identity {
            cluster_id: h.cluster_id.get(),
            topology,
            server: NodeId(h.server.get()),
            incarnation: h.incarnation.get(),
            founder: h.replaces.get() == 0,
        };
        Ok(Block { identity, segment: h.segment.get(), segment_bytes: h.segment_bytes.get() })
    }

    /// The block that was written where one bit is not as it was (S2).
    pub fn decode_mended(bytes: &[u8]) -> Option<Block> {
        let mut bytes = bytes.to_vec();
        let (start, checked) = bytes.split_at_mut_checked(BLOCK_CHECKED)?;
        let stored = u32::from_le_bytes(start[12..].try_into().ok()?);
        let mut expected = [0; 12];
        expected[..8].copy_from_slice(&MAGIC);
        expected[8..].copy_from_slice(&VERSION.to_le_bytes());
        let wrong: u32 =
            start.iter().zip(expected).map(|(found, expected)| (found ^ expected).count_ones()).sum();
        let mended = match wrong {
            0 => mend_bit(checked, stored),
            1 => stored == crc32c::crc32c(checked),
            _ => false,
        };
        start[..12].copy_from_slice(&expected);
        let sum = crc32c::crc32c(checked);
        start[12..].copy_from_slice(&sum.to_le_bytes());
        if mended { Block::decode(&bytes).ok() } else { None }
    }
}

/// What a record is: those of [`crate::types::Record`], and *End*.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Promise = 1,
    Accept = 2,
    Learn = 3,
    Decided = 4,
    /// Nothing more in this segment: the group goes on at the start of the next one.
    End = 5,
    /// Its slot is the last one of the run; in place of a ballot it has the first one, and how many parts follow.
    History = 6,
    /// Votes for slots above its own that stand in front of it, or stood there, matter no more.
    Vouch = 7,
}

impl Kind {
    pub fn from_code(code: u8) -> Option<Kind> {
        use Kind::*;
        [Promise, Accept, Learn, Decided, End, History, Vouch].into_iter().find(|kind| *kind as u8 == code)
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Promise => "promise",
            Kind::Accept => "accept",
            Kind::Learn => "learn",
            Kind::Decided => "decided",
            Kind::End => "end",
            Kind::History => "history",
            Kind::Vouch => "vouch",
        }
    }

    /// Whether the record holds the value of a slot.
    pub fn has_value(self) -> bool {
        matches!(self, Kind::Accept | Kind::Learn)
    }
}

/// Flag: the last record of its group.
pub(super) const LAST: u8 = 1;
/// A lag that says nothing about what was decided.
const LAG_UNSAID: u16 = u16::MAX;

/// A record's header. Its checksum covers the other 52 bytes. A run of zeros is not a valid one.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct RecordHeader {
    pub header_crc: U32,
    pub payload_len: U32,
    pub kind: u8,
    pub flags: u8,
    pub ballot_server: U16,
    pub segment: U32,
    pub group: U64,
    pub slot: U64,
    pub ballot_round: U64,
    /// The promise in force once this record is (S2).
    pub promise_round: U64,
    pub promise_server: U16,
    /// How far the decided slot was behind this one: an Accept also tells what was decided.
    pub decided_lag: U16,
    pub payload_crc: U32,
}

const _: () = assert!(size_of::<RecordHeader>() == 56);

impl RecordHeader {
    fn checksum(&self) -> u32 {
        crc32c::crc32c(&self.as_bytes()[4..])
    }

    pub fn seal(&mut self) {
        self.header_crc = self.checksum().into();
    }

    pub fn ballot(&self) -> Ballot {
        Ballot { round: self.ballot_round.get(), server: self.ballot_server.get() }
    }

    pub fn promise(&self) -> Ballot {
        Ballot { round: self.promise_round.get(), server: self.promise_server.get() }
    }

    pub fn is_last(&self) -> bool {
        self.flags & LAST != 0
    }

    pub fn decided(&self) -> Option<Slot> {
        let lag = self.decided_lag.get();
        (lag != LAG_UNSAID).then(|| Slot(self.slot.get().saturating_sub(u64::from(lag))))
    }

    pub fn lag(slot: Slot, decided: Slot) -> u16 {
        let lag = slot.0.checked_sub(decided.0).and_then(|lag| u16::try_from(lag).ok());
        lag.unwrap_or(LAG_UNSAID)
    }

    /// Bytes of the record in the log: header, payload, padding.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.payload_len.get() as usize)
    }

    /// A header with a good checksum and a known kind, or why there is none.
    pub fn decode(bytes: &[u8]) -> Result<(RecordHeader, Kind), Bad> {
        let (header, _) = RecordHeader::read_from_prefix(bytes).map_err(|_| Bad::Header)?;
        if header.as_bytes().iter().all(|b| *b == 0) {
            return Err(Bad::Zeros);
        }
        // The kind first: it spares most checksums when a torn tail is searched for headers.
        let kind = Kind::from_code(header.kind).filter(|_| header.flags & !LAST == 0).ok_or(Bad::Header)?;
        if header.header_crc.get() != header.checksum() {
            return Err(Bad::Header);
        }
        Ok((header, kind))
    }

    /// The header that was written where one bit is not as it was (S2).
    pub fn decode_mended(bytes: &[u8]) -> Option<(RecordHeader, Kind)> {
        let (mut header, _) = RecordHeader::read_from_prefix(bytes).ok()?;
        let stored = header.header_crc.get();
        mend_bit(&mut header.as_mut_bytes()[4..], stored).then_some(())?;
        header.seal();
        RecordHeader::decode(header.as_bytes()).ok()
    }
}

/// Why there is no record at a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bad {
    Zeros,
    Header,
    Length,
    Payload,
}

impl Bad {
    pub fn text(self) -> &'static str {
        match self {
            Bad::Zeros => "zeros where a record should be",
            Bad::Header => "bad checksum of a record header",
            Bad::Length => "record runs beyond its segment",
            Bad::Payload => "bad checksum of a payload",
        }
    }
}

pub(super) fn record_bytes(payload: usize) -> u64 {
    HEADER + payload.next_multiple_of(8) as u64
}

/// The record at `offset` of a segment's image, with everything in it verified.
pub(super) fn record_at(image: &[u8], offset: u64) -> Result<(RecordHeader, Kind), Bad> {
    let bytes = usize::try_from(offset).ok().and_then(|at| image.get(at..)).ok_or(Bad::Length)?;
    let (header, kind) = RecordHeader::decode(bytes)?;
    check_payload(bytes, &header)?;
    Ok((header, kind))
}

/// Whether what stands behind a record's header is what the header says.
pub(super) fn check_payload(bytes: &[u8], header: &RecordHeader) -> Result<(), Bad> {
    let len = header.payload_len.get() as usize;
    let payload = bytes.get(HEADER as usize..header.record_bytes() as usize).ok_or(Bad::Length)?;
    let (payload, padding) = payload.split_at(len);
    let good = header.payload_crc.get() == crc32c::crc32c(payload) && padding.iter().all(|b| *b == 0);
    if good { Ok(()) } else { Err(Bad::Payload) }
}

/// The last group that is on disk, and where it ends (S1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub group: u64,
    pub end: Position,
    pub promised: Ballot,
    pub jump: Jump,
}

/// A snapshot that another server sent: the log alone may not lead up to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) struct Jump {
    pub slot: Slot,
    /// The last group when it was found to be lost (S2), or 0: what stands behind that was learned anew, without it.
    pub missed: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct MarkBytes {
    crc: U32,
    segment: U32,
    offset: U64,
    group: U64,
    promise_round: U64,
    promise_server: U16,
    /// Ties the mark to this life of the directory.
    incarnation: U128,
    jumped: U64,
    missed: U64,
}

impl Mark {
    /// The mark's bytes and their offset in the file. A mark lies within one sector, which the disk writes wholly or not
    /// at all; the slots take turns so that one that is unreadable all the same leaves the mark before it.
    pub fn encode(&self, incarnation: u128) -> (Vec<u8>, u64) {
        let mut bytes = MarkBytes {
            crc: 0.into(),
            segment: self.end.segment.into(),
            offset: self.end.offset.into(),
            group: self.group.into(),
            promise_round: self.promised.round.into(),
            promise_server: self.promised.server.into(),
            incarnation: incarnation.into(),
            jumped: self.jump.slot.0.into(),
            missed: self.jump.missed.into(),
        };
        bytes.crc = crc32c::crc32c(&bytes.as_bytes()[4..]).into();
        (bytes.as_bytes().to_vec(), self.group % 2 * MARK_SLOT)
    }

    /// Writes this mark and syncs it; if the file has faults, both halves of it anew, so that one mark is whole at any moment.
    ///
    /// # Errors
    ///
    /// What the disk refuses.
    pub fn write_anew<F: DiskFile>(&self, file: &mut F, incarnation: u128, faulty: bool) -> io::Result<()> {
        let (mut bytes, offset) = self.encode(incarnation);
        if !faulty {
            file.write_at(&bytes, offset)?;
            return file.sync_data();
        }
        // All of a sector that cannot be read has to be written.
        bytes.resize(MARK_SLOT as usize, 0);
        for offset in [offset, MARK_SLOT - offset] {
            file.write_at(&bytes, offset)?;
            file.sync_data()?;
        }
        Ok(())
    }

    /// The first byte outside the two marks that is not zero.
    fn unused_byte_set(file: &[u8]) -> Option<u64> {
        let used = size_of::<MarkBytes>() as u64;
        (0..).zip(file).find(|(at, byte)| at % MARK_SLOT >= used && **byte != 0).map(|(at, _)| at)
    }

    fn decode_slot(bytes: &[u8], incarnation: u128) -> Option<Mark> {
        let (bytes, _) = MarkBytes::read_from_prefix(bytes).ok()?;
        let good = bytes.crc.get() == crc32c::crc32c(&bytes.as_bytes()[4..])
            && bytes.incarnation.get() == incarnation;
        good.then(|| Mark {
            group: bytes.group.get(),
            end: Position { segment: bytes.segment.get(), offset: bytes.offset.get() },
            promised: Ballot { round: bytes.promise_round.get(), server: bytes.promise_server.get() },
            jump: Jump { slot: Slot(bytes.jumped.get()), missed: bytes.missed.get() },
        })
    }

    /// The mark that was written where one bit is not as it was (S2).
    fn decode_mended(bytes: &[u8], incarnation: u128) -> Option<Mark> {
        let (mut mark, _) = MarkBytes::read_from_prefix(bytes).ok()?;
        let stored = mark.crc.get();
        mend_bit(&mut mark.as_mut_bytes()[4..], stored).then_some(())?;
        mark.crc = crc32c::crc32c(&mark.as_bytes()[4..]).into();
        Mark::decode_slot(mark.as_bytes(), incarnation)
    }

    /// What the file says, of which these parts could not be read. `None` where no mark is left of it.
    pub fn decode(file: &[u8], incarnation: u128, unreadable: &[Unreadable]) -> Option<FoundMark> {
        let mut faults: Vec<(u64, String)> =
            unreadable.iter().map(|run| (run.from, format!("cannot read: {}", run.why))).collect();
        let slot_of =
            |run: &Unreadable| [0, MARK_SLOT].into_iter().find(|at| (run.from..run.to).contains(at));
        let mut lost = unreadable.iter().any(|run| slot_of(run).is_some());
        let mut newest: Option<Mark> = None;
        for at in [0, MARK_SLOT] {
            let bytes = file.get(at as usize..at as usize + size_of::<MarkBytes>())?;
            let mut mark = Mark::decode_slot(bytes, incarnation);
            // Nobody ever wrote to it, or the power went before that reached the disk.
            if bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            if mark.is_none() {
                mark = Mark::decode_mended(bytes, incarnation);
                lost |= mark.is_none();
                let how =
                    if mark.is_some() { "one bit of a mark is wrong" } else { "bad checksum of a mark" };
                faults.push((at, how.into()));
            }
            // Both may be of one group: the one that was written later knows more.
            newest = [newest, mark]
                .into_iter()
                .flatten()
                .max_by_key(|mark| (mark.group, mark.jump, mark.promised));
        }
        let mark = newest?;
        let unused = Mark::unused_byte_set(file);
        faults.extend(unused.map(|at| (at, "not zero where nothing is ever written".into())));
        Some(FoundMark { mark, faults, lost })
    }
}

/// What the mark's file says.
pub(super) struct FoundMark {
    /// The newest mark that is left.
    pub mark: Mark,
    /// What is not as it was written: where, and why.
    pub faults: Vec<(u64, String)>,
    /// One of the two marks is gone, and nobody knows whether it was the newer one.
    pub lost: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_bit_is_found_and_two_are_not() {
        let good: Vec<u8> = (0..100).collect();
        let sum = crc32c::crc32c(&good);
        for bit in 0..800 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut twice = bytes.clone();
            assert!(mend_bit(&mut bytes, sum) && bytes == good, "bit {bit}");
            let other = (bit * 7 + 13) % 800;
            twice[other / 8] ^= 1 << (other % 8);
            assert!(bit == other || !mend_bit(&mut twice, sum), "bits {bit} and {other}");
        }
        (0..32).for_each(|bit| {
            let mut bytes = good.clone();
            assert!(mend_bit(&mut bytes, sum ^ 1 << bit) && bytes == good);
        });
    }

    /// After a fault both marks are of one group, until the next one is written; what comes to be known meanwhile stands in one
    /// of them only.
    #[test]
    fn of_two_marks_of_one_group_the_later_one_counts() {
        let mark = |jumped| Mark {
            group: 6,
            end: Position::start_of(1),
            promised: Ballot::ZERO,
            jump: Jump { slot: Slot(jumped), missed: 0 },
        };
        for later in [0, 1] {
            let mut file = [mark(0).encode(1).0, mark(0).encode(1).0].map(|mut bytes| {
                bytes.resize(MARK_SLOT as usize, 0);
                bytes
            });
            let newer = mark(9).encode(1).0;
            file[later][..newer.len()].copy_from_slice(&newer);
            let found = Mark::decode(&file.concat(), 1, &[]).expect("two marks");
            assert_eq!((found.mark, found.faults.len()), (mark(9), 0));
        }
    }

    /// The core counts with this bound when space is short.
    #[test]
    fn a_record_is_no_longer_than_the_core_believes() {
        for len in 0..100 {
            assert!(record_bytes(len) <= len as u64 + crate::config::limits::RECORD_BYTES);
        }
    }
}
