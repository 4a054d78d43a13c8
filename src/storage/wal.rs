//! The writer: groups of records into zero-filled segments, one write and one sync per group (S1).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use zerocopy::IntoBytes;

use super::contents::Contents;
use super::disk::{Disk, DiskFile};
use super::format::{
    BLOCK, Block, HEADER, IDENTITY, IDENTITY_NEW, Jump, Kind, LAST, MARK, MARK_BYTES, Mark, Position,
    RecordHeader, record_bytes, segment_name, segment_name_new, segment_number,
};
use super::retention::Retention;
use super::snapshot::{self, Pieces, Snapshot, Start, Writing};
use super::{Identity, StableLog, StorageError};
use crate::config::limits;
use crate::types::{Ballot, Cut, Record, Slot, Value};

/// Zeros written ahead in one call of [`Wal::prepare_ahead`].
const PIECE: u64 = 128 * 1024;
static ZEROS: [u8; PIECE as usize] = [0; PIECE as usize];

/// The write-ahead log of one server. Reading needs `&self`; whoever writes owns it.
#[derive(Debug)]
pub struct Wal<D: Disk> {
    pub(super) disk: D,
    pub(super) identity: Identity,
    pub(super) segment_bytes: u64,
    pub(super) contents: Contents,
    /// The last group on disk and where it ends; the next one begins there.
    pub(super) group: u64,
    pub(super) end: Position,
    /// The file of segment `end.segment`.
    pub(super) active: D::File,
    /// The files of the segments after it: blank, durable, in order.
    pub(super) ready: VecDeque<D::File>,
    pub(super) mark: D::File,
    /// The promise that no loss of power takes from the mark any more.
    marked: Ballot,
    /// The segment in the making.
    pub(super) filling: Option<Filling<D::File>>,
    /// For each segment the first place in it at which one group ends and the next begins.
    pub(super) boundaries: BTreeMap<u32, Start>,
    /// The snapshots to start from, the newest last: at most two.
    pub(super) snapshots: Vec<Snapshot>,
    /// See [`Mark::jump`].
    pub(super) jump: Jump,
    /// Those of which a piece was read since the newest one was finished.
    pub(super) sent: BTreeSet<Slot>,
    /// The snapshot in the making.
    pub(super) writing: Option<Writing<D::File>>,
    /// The segment before which no other is any more.
    pub(super) oldest: u32,
    pub(super) retention: Retention,
    /// The group in the making: for each segment that it touches, a run of records.
    chunks: Vec<Chunk>,
    /// Where in the last chunk its last record begins.
    last_record: usize,
    /// A buffer kept from group to group.
    spare: Vec<u8>,
    /// The disk had no space for a segment, and since then none was made.
    pub(super) full: bool,
    /// What made the log unusable, for good.
    pub(super) failed: Option<(io::ErrorKind, String)>,
}

#[derive(Debug)]
struct Chunk {
    start: Position,
    bytes: Vec<u8>,
}

/// What [`Wal::commit`] did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CommitStats {
    /// Bytes of the group in the log; 0 when there was nothing to write.
    pub bytes: u64,
    /// Syncs that the caller waited for, without those of a segment that had to be finished at once.
    pub syncs: u32,
    /// The group's number.
    pub group: u64,
}

/// A segment that is being filled with zeros under another name. It takes its own name only when it is whole and
/// durable, so a segment that is short or has no header is damage, never an accident of timing.
#[derive(Debug)]
pub(super) struct Filling<F> {
    pub(super) number: u32,
    pub(super) file: F,
    filled: u64,
}

impl<F: DiskFile> Filling<F> {
    pub fn create<D: Disk<File = F>>(disk: &D, number: u32) -> io::Result<Filling<F>> {
        Ok(Filling { number, file: disk.create(&segment_name_new(number))?, filled: 0 })
    }

    /// One piece of work; true when the segment is ready for use.
    pub(super) fn step<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        identity: Identity,
        size: u64,
    ) -> io::Result<bool> {
        if self.filled < size {
            let piece = PIECE.min(size - self.filled);
            self.file.write_at(&ZEROS[..piece as usize], self.filled)?;
            self.file.begin_writeback(self.filled, piece);
            self.filled += piece;
            if self.filled < size {
                return Ok(false);
            }
        }
        let header = Block { identity, segment: self.number, segment_bytes: size };
        self.file.write_at(&header.encode(), 0)?;
        sync(&mut self.file)?;
        disk.rename(&segment_name_new(self.number), &segment_name(self.number))?;
        disk.sync_dir().map_err(final_error)?;
        Ok(true)
    }
}

/// Whether the directory was formatted, completely. What it says about damage: nothing.
pub fn is_formatted<D: Disk>(disk: &D) -> io::Result<bool> {
    Ok(disk.list()?.iter().any(|name| name == IDENTITY))
}

/// Whether there is anything of a log here, also where it lost its identity. Nothing that [`Wal::format`] left unfinished is.
pub fn holds_log<D: Disk>(disk: &D) -> io::Result<bool> {
    let names = disk.list()?;
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    Ok(has(IDENTITY) || !has(IDENTITY_NEW) && names.iter().any(|name| is_of_log(name)))
}

/// Whether a log has files of this name, complete or in the making.
fn is_of_log(name: &str) -> bool {
    let name = name.trim_end_matches(".new");
    name == MARK || segment_number(name).is_some() || snapshot::slot_of(name).is_some()
}

/// A sync that fails has lost pages, also when it was for lack of space: it must not look like something to try again.
pub(super) fn sync<F: DiskFile>(file: &mut F) -> io::Result<()> {
    file.sync_data().map_err(final_error)
}

pub(super) fn final_error(e: io::Error) -> io::Error {
    if is_full(&e) { io::Error::other(e.to_string()) } else { e }
}

/// Whether a running log is only out of space: nothing is broken, the same write may be tried again.
pub(super) fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl<D: Disk> Wal<D> {
    /// Makes a directory into an empty log: an explicit, one-time act (S3), refused where there is anything of a log.
    ///
    /// The identity takes its name last. Until then [`IDENTITY_NEW`] shows that what else lies here is an unfinished
    /// formatting, which is simply begun again; without it, segments without an identity are somebody's votes.
    pub fn format(disk: D, identity: Identity, segment_bytes: u64) -> Result<Wal<D>, StorageError> {
        if !segment_bytes.is_multiple_of(8) || !(BLOCK + 4 * HEADER..=1 << 31).contains(&segment_bytes) {
            return Err(StorageError::Unusable(format!(
                "segment size {segment_bytes}: must be a multiple of 8, {} to 2^31 bytes",
                BLOCK + 4 * HEADER
            )));
        }
        let names = disk.list().map_err(io_error(".", "list the directory"))?;
        let unfinished = names.iter().any(|name| name == IDENTITY_NEW);
        for name in &names {
            if name == IDENTITY || !unfinished && is_of_log(name) {
                return Err(StorageError::AlreadyFormatted { file: name.clone() });
            }
        }

        let mut file = if unfinished { disk.open(IDENTITY_NEW) } else { disk.create(IDENTITY_NEW) }
            .map_err(io_error(IDENTITY_NEW, "create"))?;
        let block = Block { identity, segment: 0, segment_bytes }.encode();
        file.write_at(&block, 0)
            .and_then(|()| file.sync_data())
            .and_then(|()| disk.sync_dir())
            .map_err(io_error(IDENTITY_NEW, "write"))?;
        for name in names.iter().filter(|name| is_of_log(name)) {
            disk.remove(name).map_err(io_error(name, "remove"))?;
        }

        let mut first = Filling::create(&disk, 1).map_err(io_error(&segment_name_new(1), "create"))?;
        while !first.step(&disk, identity, segment_bytes).map_err(io_error(&segment_name_new(1), "write"))? {}
        let end = Position::start_of(1);
        let (bytes, offset) = Mark { group: 0, end, promised: Ballot::ZERO, jump: Jump::default() }
            .encode(identity.incarnation);
        let mut mark = disk.create(MARK).map_err(io_error(MARK, "create"))?;
        mark.write_at(&ZEROS[..MARK_BYTES as usize], 0)
            .and_then(|()| mark.write_at(&bytes, offset))
            .and_then(|()| mark.sync_data())
            .and_then(|()| disk.sync_dir())
            .map_err(io_error(MARK, "write"))?;
        disk.rename(IDENTITY_NEW, IDENTITY)
            .and_then(|()| disk.sync_dir())
            .map_err(io_error(IDENTITY, "rename"))?;

        let boundaries = BTreeMap::from([(1, Start { group: 0, at: end, stood: Slot::ZERO })]);
        let (ready, snapshots) = (VecDeque::new(), Vec::new());
        let (active, jump) = (first.file, Jump::default());
        let tail = Tail { group: 0, end, active, ready, mark, boundaries, snapshots, jump, oldest: 1 };
        Ok(Wal::new(disk, identity, segment_bytes, Contents::default(), tail))
    }

    pub(super) fn new(
        disk: D,
        identity: Identity,
        segment_bytes: u64,
        contents: Contents,
        tail: Tail<D::File>,
    ) -> Wal<D> {
        let marked = contents.promised;
        Wal {
            disk,
            identity,
            segment_bytes,
            contents,
            marked,
            group: tail.group,
            end: tail.end,
            active: tail.active,
            ready: tail.ready,
            mark: tail.mark,
            boundaries: tail.boundaries,
            snapshots: tail.snapshots,
            jump: tail.jump,
            sent: BTreeSet::new(),
            writing: None,
            oldest: tail.oldest,
            retention: Retention::default(),
            filling: None,
            chunks: Vec::new(),
            last_record: 0,
            spare: Vec::new(),
            full: false,
            failed: None,
        }
    }

    /// The same with another idea of what to keep. What it leaves no place for goes at once.
    ///
    /// # Errors
    ///
    /// The disk failed; the log is of no use any more.
    pub fn with_retention(self, retention: Retention) -> io::Result<Wal<D>> {
        let mut wal = Wal { retention, ..self };
        wal.retire_audit()?;
        Ok(wal)
    }

    /// The directory it lies in.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The highest promise among the records appended so far.
    pub fn promised(&self) -> Ballot {
        self.contents.promised
    }

    /// The decided slot that the next record's header carries.
    pub fn decided(&self) -> Slot {
        self.contents.decided
    }

    /// The highest slot with a value on disk, or 0.
    pub fn last_slot(&self) -> Slot {
        self.contents.last()
    }

    /// Notes how far the caller knows slots to be decided, for the headers of later records. Costs no I/O; it is kept
    /// across a restart only if a later record's header carries it. Never goes back, nor beyond the log's values.
    pub fn set_decided(&mut self, slot: Slot) {
        self.contents.raise_decided(slot);
    }

    /// Adds a record to the group in the making, without I/O.
    ///
    /// # Panics
    ///
    /// On a value that is larger than [`limits::VALUE_BYTES`] or a segment, a value far above the gapless slots, and
    /// on `Decided` for a slot whose value is not in the log (P2).
    pub fn append(&mut self, record: &Record) {
        let (kind, slot, ballot, payload): (_, _, _, &[u8]) = match record {
            Record::Promise(ballot) => (Kind::Promise, Slot::ZERO, *ballot, &[]),
            Record::Accept { slot, ballot, value } => (Kind::Accept, *slot, *ballot, &value.0),
            Record::Learn { slot, ballot, value } => (Kind::Learn, *slot, *ballot, &value.0),
            Record::Decided(slot) => (Kind::Decided, *slot, Ballot::ZERO, &[]),
            Record::Vouch(slot) => (Kind::Vouch, *slot, Ballot::ZERO, &[]),
            Record::History { from, to, more, bytes } => {
                (Kind::History, *to, Ballot { round: from.0, server: *more }, &bytes.0)
            }
        };
        assert!(payload.len() <= limits::VALUE_BYTES, "a value of {} bytes", payload.len());
        let bytes = record_bytes(payload.len());
        // Behind every record there is room for End, so that a segment can always be closed.
        assert!(BLOCK + bytes + HEADER <= self.segment_bytes, "a value larger than a segment");
        let mut at = self.tail();
        if at.offset + bytes + HEADER > self.segment_bytes {
            self.put(Kind::End, Slot::ZERO, Ballot::ZERO, &[]);
            at = Position::start_of(at.segment + 1);
            self.chunks.push(Chunk { start: at, bytes: Vec::new() });
        }
        if let Err(what) = self.contents.note(kind, slot, ballot, at) {
            panic!("P2: {what}");
        }
        self.put(kind, slot, ballot, payload);
    }

    /// Whether there is anything for [`Wal::commit`] to write.
    pub fn pending(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// Where the next record goes.
    pub(super) fn tail(&self) -> Position {
        match self.chunks.last() {
            Some(Chunk { start, bytes }) => {
                Position { segment: start.segment, offset: start.offset + bytes.len() as u64 }
            }
            None => self.end,
        }
    }

    fn put(&mut self, kind: Kind, slot: Slot, ballot: Ballot, payload: &[u8]) {
        if self.chunks.is_empty() {
            self.chunks.push(Chunk { start: self.end, bytes: std::mem::take(&mut self.spare) });
        }
        let Some(chunk) = self.chunks.last_mut() else { return };
        let Contents { promised, decided, .. } = self.contents;
        let mut header = RecordHeader {
            header_crc: 0.into(),
            payload_len: (payload.len() as u32).into(),
            kind: kind as u8,
            flags: 0,
            ballot_server: ballot.server.into(),
            segment: chunk.start.segment.into(),
            group: (self.group + 1).into(),
            slot: slot.0.into(),
            ballot_round: ballot.round.into(),
            promise_round: promised.round.into(),
            promise_server: promised.server.into(),
            decided_lag: RecordHeader::lag(slot, decided).into(),
            payload_crc: crc32c::crc32c(payload).into(),
        };
        header.seal();
        self.last_record = chunk.bytes.len();
        chunk.bytes.extend_from_slice(header.as_bytes());
        chunk.bytes.extend_from_slice(payload);
        let padding = payload.len().next_multiple_of(8) - payload.len();
        chunk.bytes.extend_from_slice(&ZEROS[..padding]);
    }

    /// Puts the group on disk: one write and one sync per segment that it touches, nearly always one. When this
    /// returns, the records may be answered for (P1). Nothing pending is nothing to do.
    ///
    /// # Errors
    ///
    /// `StorageFull` or `QuotaExceeded`, when a new segment was needed and there is no space for it: nothing of the
    /// group was written, all of it is still pending, and the call may be repeated. Any other error is final.
    pub fn commit(&mut self) -> io::Result<CommitStats> {
        self.check()?;
        let Some(last) = self.chunks.last() else { return Ok(CommitStats::default()) };
        let last_segment = last.start.segment;
        // Space first: after this the group fits, and no write of it makes a file grow.
        while self.end.segment + (self.ready.len() as u32) < last_segment {
            self.fill()?;
        }
        self.seal_group();

        let group = self.group + 1;
        let mut stats = CommitStats { group, ..CommitStats::default() };
        for chunk in std::mem::take(&mut self.chunks) {
            let Chunk { start, mut bytes } = chunk;
            if start.segment != self.end.segment {
                self.active = self.ready.pop_front().expect("secured above");
            }
            let written = self.active.write_at(&bytes, start.offset).and_then(|()| self.active.sync_data());
            if let Err(e) = written {
                return Err(self.poison(
                    format!("{} at offset {}: group {group}", segment_name(start.segment), start.offset),
                    e,
                ));
            }
            stats.bytes += bytes.len() as u64;
            stats.syncs += 1;
            self.end = Position { segment: start.segment, offset: start.offset + bytes.len() as u64 };
            bytes.clear();
            self.spare = bytes;
        }
        self.group = group;
        self.boundaries.entry(self.end.segment).or_insert(Start {
            group,
            at: self.end,
            stood: self.contents.stood,
        });
        // S1: before any answer leaves, so that not even a lost page of the log goes unnoticed. Not synced: a mark
        // that is older than the log only means that less is known to be beyond suspicion. But a promise must be known
        // whatever becomes of the log (S3), and there is a new one only when there is an election.
        let promises = self.contents.promised > self.marked;
        let written = self.write_mark().and_then(|()| if promises { self.mark.sync_data() } else { Ok(()) });
        if let Err(e) = written {
            return Err(self.poison(format!("{MARK}: group {group}"), e));
        }
        if promises {
            self.marked = self.contents.promised;
            stats.syncs += 1;
        }
        self.contents.settle();
        Ok(stats)
    }

    /// Notes in the mark what is on disk, without a sync.
    pub(super) fn write_mark(&mut self) -> io::Result<()> {
        let Wal { group, end, jump, .. } = *self;
        let mark = Mark { group, end, promised: self.contents.promised, jump };
        let (bytes, offset) = mark.encode(self.identity.incarnation);
        self.mark.write_at(&bytes, offset)
    }

    /// Flags the last record of the group as the last.
    fn seal_group(&mut self) {
        let at = self.last_record;
        let Some(bytes) = self.chunks.last_mut().map(|chunk| &mut chunk.bytes[at..]) else { return };
        let (mut header, _) = RecordHeader::decode(bytes).expect("put() wrote it");
        header.flags |= LAST;
        header.seal();
        bytes[..HEADER as usize].copy_from_slice(header.as_bytes());
    }

    /// The values of consecutive slots on disk from `from` on, each with the ballot of its latest record: at least one
    /// if there is one, ending before a gap, before one that is damaged, and before more than `max_bytes` of values.
    /// Checksums are verified again.
    ///
    /// # Errors
    ///
    /// The log has failed before, or the first value cannot be read, or is not what was written.
    pub fn read(&self, from: Slot, max_bytes: usize) -> io::Result<Vec<(Slot, Ballot, Value)>> {
        self.check()?;
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut open: Option<(u32, D::File)> = None;
        let mut slot = from;
        while let Some(at) = self.contents.position(slot) {
            let read = match open.take() {
                Some((segment, file)) if segment == at.segment => Ok(file),
                _ => self.disk.open(&segment_name(at.segment)),
            }
            .and_then(|file| Ok((read_value(&file, at, slot)?, file)));
            let ((ballot, value), file) = match read {
                Ok(read) => read,
                Err(_) if !out.is_empty() => break,
                Err(e) => return Err(e),
            };
            open = Some((at.segment, file));
            bytes += value.len();
            if !out.is_empty() && bytes > max_bytes {
                break;
            }
            out.push((slot, ballot, value));
            slot = slot.next();
        }
        Ok(out)
    }

    /// The ballot of the record at `at`, of which at least the header is known.
    pub(super) fn ballot_at(&self, at: Position) -> io::Result<Ballot> {
        let mut bytes = [0; HEADER as usize];
        self.disk.open(&segment_name(at.segment))?.read_at(&mut bytes, at.offset)?;
        let header = RecordHeader::decode(&bytes);
        let header = header.or_else(|bad| RecordHeader::decode_mended(&bytes).ok_or(bad));
        header.map(|(header, _)| header.ballot()).map_err(|bad| io::Error::other(bad.text()))
    }

    pub(super) fn check(&self) -> io::Result<()> {
        match &self.failed {
            None => Ok(()),
            Some((kind, message)) => Err(io::Error::new(*kind, message.clone())),
        }
    }

    /// From now on every call fails, with this message: what is on disk is no longer known.
    pub(super) fn poison(&mut self, what: String, e: io::Error) -> io::Error {
        let e = final_error(e);
        let message = format!("{what}: {e}; this server must stop (a failed write or sync is never retried)");
        self.failed = Some((e.kind(), message.clone()));
        io::Error::new(e.kind(), message)
    }
}

impl<D: Disk> StableLog for Wal<D> {
    fn append(&mut self, record: &Record) {
        Wal::append(self, record);
    }

    fn set_decided(&mut self, slot: Slot) {
        Wal::set_decided(self, slot);
    }

    fn secure(&mut self, bytes: u64, again: bool) -> io::Result<Option<u64>> {
        Wal::secure(self, bytes, again)
    }

    fn commit(&mut self) -> io::Result<CommitStats> {
        Wal::commit(self)
    }

    fn read(&self, from: Slot, max_bytes: usize) -> io::Result<Vec<(Slot, Ballot, Value)>> {
        Wal::read(self, from, max_bytes)
    }

    fn writes_snapshot(&self) -> bool {
        self.has_work()
    }

    fn begin_snapshot(&mut self, source: Box<dyn Pieces>, foreign: bool) -> io::Result<()> {
        Wal::begin_snapshot(self, source, foreign)
    }

    fn snapshot(&self) -> Option<Cut> {
        Wal::snapshot(self)
    }

    fn read_piece(&mut self, slot: Slot, n: u64) -> io::Result<Option<Vec<u8>>> {
        Wal::read_piece(self, slot, n)
    }

    fn distrust_snapshot(&mut self, slot: Slot) {
        Wal::distrust_snapshot(self, slot);
    }
}

/// Where a log is continued.
pub(super) struct Tail<F> {
    pub group: u64,
    pub end: Position,
    pub active: F,
    pub ready: VecDeque<F>,
    pub mark: F,
    pub boundaries: BTreeMap<u32, Start>,
    pub snapshots: Vec<Snapshot>,
    pub jump: Jump,
    pub oldest: u32,
}

/// Reads and verifies the value that the index says stands at `at`.
fn read_value<F: DiskFile>(file: &F, at: Position, slot: Slot) -> io::Result<(Ballot, Value)> {
    let damaged = |what: &str| {
        let file = segment_name(at.segment);
        let text = format!("{file} at offset {}: damaged (S2): {what} of slot {slot}", at.offset);
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    let io = |e: io::Error| {
        let text = format!("{} at offset {}: slot {slot}: {e}", segment_name(at.segment), at.offset);
        io::Error::new(e.kind(), text)
    };
    let mut bytes = [0; HEADER as usize];
    file.read_at(&mut bytes, at.offset).map_err(io)?;
    let (header, kind) = RecordHeader::decode(&bytes).map_err(|bad| damaged(bad.text()))?;
    let len = header.payload_len.get() as usize;
    if !kind.has_value() || header.slot.get() != slot.0 || header.segment.get() != at.segment {
        return Err(damaged("another record in place"));
    }
    if len > limits::VALUE_BYTES {
        return Err(damaged("impossible length"));
    }
    let mut payload = vec![0; len];
    file.read_at(&mut payload, at.offset + HEADER).map_err(io)?;
    if header.payload_crc.get() != crc32c::crc32c(&payload) {
        return Err(damaged("bad payload"));
    }
    Ok((header.ballot(), Value(payload.into())))
}

pub(super) fn io_error<'a>(
    file: &'a str,
    doing: &'static str,
) -> impl Fn(io::Error) -> StorageError + use<'a> {
    move |source| StorageError::Io { file: file.to_string(), doing, source }
}
