//! Snapshots on disk: a shard's state at one slot, and from where the log goes on behind it.
//!
//! ```text
//! block     who, which slot and digest, where the log goes on, the promise then in force; its own checksum
//! pieces    CRC-32C u32, length u32, bytes; each at a fixed place
//! ```
//!
//! A snapshot is written piece by piece under another name. It takes its own name only when all of it is durable, so one
//! that is not whole is damage, never an accident of timing (S2). Two generations are kept, and the log from the older
//! one on: should the newer turn out to be damaged, the older and the log give the same state.

use std::fmt::Debug;
use std::io;

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::disk::{Disk, DiskFile};
use super::format::{BLOCK, Position, VERSION};
use super::wal::{final_error, io_error, sync};
use super::{Identity, StorageError};
use crate::types::{Ballot, Cut, Slot};

/// Bytes of a snapshot that are written between two syncs.
const SYNC_EVERY: u64 = 1024 * 1024;

const MAGIC: [u8; 8] = *b"SPBsnap\n";
const PREFIX: &str = "snapshot-";
const SUFFIX: &str = ".snap";
/// Checksum and length in front of each piece.
const PIECE_HEADER: u64 = 8;
/// A guard for memory: no snapshot has larger pieces.
const MAX_PIECE: u32 = 16 * 1024 * 1024;

/// The state that becomes a snapshot.
pub trait Pieces: Debug + Send {
    fn cut(&self) -> Cut;
    /// The `n`-th piece, counted from 0, as long as [`Cut::piece`] says. They are asked for in order.
    ///
    /// # Errors
    ///
    /// What was asked for is not the state that its digest stands for (P4), and the server must stop.
    fn piece(&mut self, n: u64) -> io::Result<Vec<u8>>;
}

pub(super) fn name(slot: Slot) -> String {
    format!("{PREFIX}{:016}{SUFFIX}", slot.0)
}

fn name_new(slot: Slot) -> String {
    format!("{}.new", name(slot))
}

/// The slot in a snapshot's name, which must be spelled as [`name`] does.
pub(super) fn slot_of(file: &str) -> Option<Slot> {
    let slot = Slot(file.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()?);
    (name(slot) == file).then_some(slot)
}

/// The slot of the newest snapshot that a directory names, whole or not; 0 if there is none.
///
/// # Errors
///
/// The directory cannot be listed.
pub fn newest_snapshot<D: Disk>(disk: &D) -> Result<Slot, StorageError> {
    let names = disk.list().map_err(io_error(".", "list the directory"))?;
    Ok(names.iter().filter_map(|name| slot_of(name)).max().unwrap_or_default())
}

pub(super) fn is_leftover(file: &str) -> bool {
    file.strip_suffix(".new").is_some_and(|name| slot_of(name).is_some())
}

/// From where recovery follows the log: a place where one group ends and the next begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Start {
    /// The group that ends there.
    pub group: u64,
    pub at: Position,
    /// See [`super::contents::Contents::stood`].
    pub stood: Slot,
}

/// What a snapshot's block says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Snapshot {
    pub cut: Cut,
    /// The log from here on holds every vote for a slot above the snapshot's.
    pub start: Start,
    /// The promise in force when it was finished.
    pub promised: Ballot,
    /// Another server sent it, and neither older snapshots nor the log lead up to it.
    pub foreign: bool,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    cluster_id: U128,
    incarnation: U128,
    slot: U64,
    digest: U64,
    bytes: U64,
    start_offset: U64,
    start_group: U64,
    start_stood: U64,
    promise_round: U64,
    piece_bytes: U32,
    start_segment: U32,
    promise_server: U16,
    server: U16,
    /// 1 if another server sent it, else 0.
    foreign: U16,
}

/// Where the checksummed part of the block begins: behind magic, version and checksum.
const CHECKED: usize = 16;

impl Snapshot {
    fn encode(&self, identity: &Identity) -> Vec<u8> {
        let mut header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            crc: 0.into(),
            cluster_id: identity.cluster_id.into(),
            incarnation: identity.incarnation.into(),
            slot: self.cut.slot.0.into(),
            digest: self.cut.digest.into(),
            bytes: self.cut.bytes.into(),
            start_offset: self.start.at.offset.into(),
            start_group: self.start.group.into(),
            start_stood: self.start.stood.0.into(),
            promise_round: self.promised.round.into(),
            piece_bytes: self.cut.piece_bytes.into(),
            start_segment: self.start.at.segment.into(),
            promise_server: self.promised.server.into(),
            server: identity.server.0.into(),
            foreign: u16::from(self.foreign).into(),
        };
        let mut block = vec![0; BLOCK as usize];
        block[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        header.crc = crc32c::crc32c(&block[CHECKED..]).into();
        block[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        block
    }

    fn decode(block: &[u8], slot: Slot, identity: &Identity) -> Result<Snapshot, String> {
        let (h, _) = Header::read_from_prefix(block).map_err(|_| "it is too short")?;
        if h.magic != MAGIC {
            return Err("no such file of this program: wrong first bytes".into());
        }
        if h.version.get() != VERSION {
            return Err(format!("written in format version {}, this is {VERSION}", h.version));
        }
        if h.crc.get() != crc32c::crc32c(&block[CHECKED..]) {
            return Err("bad checksum of the file header".into());
        }
        let whose = (h.cluster_id.get(), h.incarnation.get(), h.server.get());
        if whose != (identity.cluster_id, identity.incarnation, identity.server.0) || h.slot.get() != slot.0 {
            return Err("header of another directory or slot".into());
        }
        let piece_bytes = h.piece_bytes.get();
        if piece_bytes == 0 || piece_bytes > MAX_PIECE || !piece_bytes.is_multiple_of(8) {
            return Err(format!("impossible pieces of {piece_bytes} bytes"));
        }
        let cut = Cut { slot, digest: h.digest.get(), bytes: h.bytes.get(), piece_bytes };
        let at = Position { segment: h.start_segment.get(), offset: h.start_offset.get() };
        let promised = Ballot { round: h.promise_round.get(), server: h.promise_server.get() };
        Ok(Snapshot {
            cut,
            start: Start { group: h.start_group.get(), at, stood: Slot(h.start_stood.get()) },
            promised,
            foreign: h.foreign.get() != 0,
        })
    }

    fn place(&self, n: u64) -> u64 {
        BLOCK + n * (PIECE_HEADER + u64::from(self.cut.piece_bytes))
    }

    /// The `n`-th piece, its checksum verified.
    ///
    /// # Errors
    ///
    /// `InvalidData` names the file and the place that is damaged; others are the operating system's.
    pub fn read_piece<D: Disk>(&self, disk: &D, n: u64) -> io::Result<Vec<u8>> {
        let file = disk.open(&name(self.cut.slot))?;
        self.read_piece_of(&file, n)
    }

    /// Every piece that is not as it was written.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn damaged_pieces<D: Disk>(&self, disk: &D) -> Result<Vec<StorageError>, StorageError> {
        let name = name(self.cut.slot);
        let file = disk.open(&name).map_err(io_error(&name, "open"))?;
        Ok((0..self.cut.pieces()).filter_map(|n| self.damage_of(&file, n)).collect())
    }

    fn damage_of<F: DiskFile>(&self, file: &F, n: u64) -> Option<StorageError> {
        let (file_name, e) = (name(self.cut.slot), self.read_piece_of(file, n).err()?);
        Some(match e.kind() {
            io::ErrorKind::InvalidData => StorageError::Damaged {
                file: file_name,
                offset: Some(self.place(n)),
                what: format!("bad checksum of piece {n}"),
            },
            _ => io_error(&file_name, "read")(e),
        })
    }

    fn read_piece_of<F: DiskFile>(&self, file: &F, n: u64) -> io::Result<Vec<u8>> {
        let (_, len) = self.cut.piece(n);
        let at = self.place(n);
        let mut bytes = vec![0; PIECE_HEADER as usize + len];
        file.read_at(&mut bytes, at)?;
        let (header, piece) = bytes.split_at(PIECE_HEADER as usize);
        let field = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        if field(0) != crc32c::crc32c(piece) || field(4) as usize != len {
            let file = name(self.cut.slot);
            let text = format!("{file} at offset {at}: damaged (S2): bad checksum of piece {n}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        bytes.drain(..PIECE_HEADER as usize);
        Ok(bytes)
    }
}

/// Opens a snapshot and verifies every byte of it, or all but the pieces if it is not `whole`.
///
/// # Errors
///
/// Damage, with the file and the place, or what the operating system refused.
pub(super) fn open<D: Disk>(
    disk: &D,
    slot: Slot,
    identity: &Identity,
    whole: bool,
) -> Result<Snapshot, StorageError> {
    let name = name(slot);
    let damaged =
        |offset: u64, what: String| StorageError::Damaged { file: name.clone(), offset: Some(offset), what };
    let file = disk.open(&name).map_err(io_error(&name, "open"))?;
    let len = file.len().map_err(io_error(&name, "read"))?;
    if len < BLOCK {
        return Err(damaged(len, "file is too short".into()));
    }
    let mut block = vec![0; BLOCK as usize];
    file.read_at(&mut block, 0).map_err(io_error(&name, "read"))?;
    let snapshot = Snapshot::decode(&block, slot, identity).map_err(|what| damaged(0, what))?;
    let pieces = snapshot.cut.pieces().saturating_mul(PIECE_HEADER);
    let expected = BLOCK.saturating_add(pieces).saturating_add(snapshot.cut.bytes);
    if len != expected {
        return Err(damaged(len.min(expected), format!("{len} bytes long instead of {expected}")));
    }
    let verified = if whole { snapshot.cut.pieces() } else { 0 };
    match (0..verified).find_map(|n| snapshot.damage_of(&file, n)) {
        Some(e) => Err(e),
        None => Ok(snapshot),
    }
}

/// A snapshot in the making.
#[derive(Debug)]
pub(super) struct Writing<F> {
    source: Box<dyn Pieces>,
    start: Start,
    /// The piece that is written next.
    next: u64,
    unsynced: u64,
    file: Option<F>,
    /// The state came from another server: older snapshots and the log do not lead up to it.
    pub foreign: bool,
}

impl<F: DiskFile> Writing<F> {
    pub fn new(source: Box<dyn Pieces>, start: Start, foreign: bool) -> Writing<F> {
        Writing { source, start, next: 0, unsynced: 0, file: None, foreign }
    }

    pub fn slot(&self) -> Slot {
        self.source.cut().slot
    }

    /// One piece of work; the snapshot once it is durable under its own name. `promised` is what the log holds by then.
    pub fn step<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        identity: &Identity,
        promised: Ballot,
    ) -> io::Result<Option<Snapshot>> {
        let Writing { start, foreign, .. } = *self;
        let snapshot = Snapshot { cut: self.source.cut(), start, promised, foreign };
        let (name, name_new) = (name(snapshot.cut.slot), name_new(snapshot.cut.slot));
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(disk.create(&name_new)?),
        };
        if self.next < snapshot.cut.pieces() {
            let piece = self.source.piece(self.next)?;
            let mut bytes = Vec::with_capacity(PIECE_HEADER as usize + piece.len());
            bytes.extend_from_slice(&crc32c::crc32c(&piece).to_le_bytes());
            bytes.extend_from_slice(&(piece.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&piece);
            file.write_at(&bytes, snapshot.place(self.next))?;
            self.next += 1;
            self.unsynced += bytes.len() as u64;
            // Bounds what the last sync still has to write, and with it the pause.
            if self.unsynced >= SYNC_EVERY {
                sync(file)?;
                self.unsynced = 0;
            }
            return Ok(None);
        }
        file.write_at(&snapshot.encode(identity), 0)?;
        sync(file)?;
        disk.rename(&name_new, &name)?;
        disk.sync_dir().map_err(final_error)?;
        Ok(Some(snapshot))
    }

    /// Gives it up, for lack of space: what was written of it goes.
    pub fn abandon<D: Disk<File = F>>(self, disk: &D) -> io::Result<()> {
        if self.file.is_some() { disk.remove(&name_new(self.slot())) } else { Ok(()) }
    }
}
