//! One server's disk: a write-ahead log of what the protocol must not forget.
//!
//! The records of one turn are one *group*, written at once and synced once. Two rules decide what a restart may do
//! with what it finds:
//!
//! * **S1 Torn tail.** Group g+1 is written only after g's sync has returned; after that, before answers leave, g and
//!   its end go to the mark file, which is synced lazily. Only a group above the mark, with no record of a later group
//!   behind it, may be cut off as a write that a crash interrupted: nobody was told of it. What is cut is overwritten
//!   with zeros and synced before the server speaks.
//! * **S2 Damage.** Everything else that does not fit is damage: votes that others rely on may be gone. It is named, the
//!   chain is taken up behind it, and the server vouches only for what it can (see `scan.rs`, `paxos/repair.rs`). Where
//!   its identity or its promise cannot be proved, it does not start (S3). Nothing is dropped in silence.
//!
//! After a failed write or sync the log is poisoned: the kernel may have marked the page clean, so a second sync that
//! succeeds proves nothing. Recovery for the same reason writes again what it finds above the mark.
//!
//! *Snapshots* bound what a restart reads and what the disk holds: see `snapshot.rs`. Segments that lie before the older
//! of two snapshots are no part of recovery any more; they are kept as an audit log up to a limit.
//!
//! A full disk is no failure: [`Wal::secure`] finds it out before anything is written, and says what still fits.
//!
//! Deliberately absent: clocks (the simulator runs this code; callers measure), and threads.

use std::fmt;
use std::io;

use crate::config::Topology;
use crate::types::{Ballot, Cut, Incarnation, Loss, NodeId, Record, Slot, Value};

mod ahead;
mod audit;
mod contents;
mod disk;
mod format;
mod memdisk;
mod overlay;
mod recover;
mod retention;
mod scan;
mod snapshot;
mod survey;
mod wal;

pub use audit::{Audit, Entry};
pub use disk::{Disk, DiskFile, FileDisk, RealFile};
pub use memdisk::{Counts, Kept, MemDisk, MemFile, Unsynced};
pub use overlay::Overlay;
pub use recover::read_identity;
pub use retention::Retention;
pub use snapshot::{Pieces, newest_snapshot};
pub use survey::{Fault, Seen, Survey, snapshot_pieces, survey};
pub use wal::{CommitStats, Wal, holds_log, is_formatted};

/// Whose directory this is. Written once, when it is formatted; checked against at every start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// Drawn at random when the bank is founded, the same on all servers.
    pub cluster_id: u128,
    pub topology: Topology,
    pub server: NodeId,
    /// Drawn at random whenever a directory is formatted (S3).
    pub incarnation: u128,
    /// Formatted when the bank was founded. A server whose disk was replaced later votes only when it was let in again.
    pub founder: bool,
}

/// What a server that opens a directory expects to find there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected {
    /// `None` where the directory itself is the authority.
    pub cluster_id: Option<u128>,
    pub topology: Topology,
    pub server: NodeId,
}

/// What a turn and a restart need of a server's log: stable storage, as the Paxos papers call it.
///
/// Behind it is the [`Wal`] wherever servers run. A model checker puts another one there, which it can copy and compare.
pub trait StableLog {
    /// See [`Wal::append`].
    fn append(&mut self, record: &Record);
    /// See [`Wal::set_decided`].
    fn set_decided(&mut self, slot: Slot);
    /// See [`Wal::secure`].
    ///
    /// # Errors
    ///
    /// As for [`StableLog::commit`]. A full disk is none.
    fn secure(&mut self, bytes: u64, again: bool) -> io::Result<Option<u64>>;
    /// See [`Wal::commit`]. Room for the records was secured.
    ///
    /// # Errors
    ///
    /// What reached the disk is not known, and the server must stop.
    fn commit(&mut self) -> io::Result<CommitStats>;
    /// See [`Wal::read`].
    ///
    /// # Errors
    ///
    /// The disk cannot be read, or what it gives back is damaged.
    fn read(&self, from: Slot, max_bytes: usize) -> io::Result<Vec<(Slot, Ballot, Value)>>;
    /// Whether a snapshot is in the making. One that finds the disk full is given up.
    fn writes_snapshot(&self) -> bool;
    /// See [`Wal::begin_snapshot`].
    ///
    /// # Errors
    ///
    /// The disk failed, and the server must stop.
    fn begin_snapshot(&mut self, source: Box<dyn Pieces>, foreign: bool) -> io::Result<()>;
    /// See [`Wal::snapshot`].
    fn snapshot(&self) -> Option<Cut>;
    /// See [`Wal::read_piece`].
    ///
    /// # Errors
    ///
    /// The disk cannot be read, or what it gives back is damaged.
    fn read_piece(&mut self, slot: Slot, n: u64) -> io::Result<Option<Vec<u8>>>;
    /// See [`Wal::distrust_snapshot`].
    fn distrust_snapshot(&mut self, slot: Slot);
}

/// What the log says after a restart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// Which disk this is, and whether it is the server's first (S3).
    pub incarnation: Incarnation,
    pub founder: bool,
    /// The highest promise, explicit or implied by an acceptance.
    pub promised: Ballot,
    /// Every slot up to this one is known to be decided, and [`Wal::read`] has its value.
    pub decided: Slot,
    /// Up to here the log says which transactions committed.
    pub noted: Slot,
    /// The snapshot that the state is to be taken from; [`Wal::read`] begins behind it.
    pub snapshot: Option<Cut>,
    /// For each slot above `decided` the latest vote, in order of slots; empty if there was a loss.
    pub votes: Vec<(Slot, Ballot, Value)>,
    /// What is left of the rest, where damage took some of it (S2).
    pub loss: Option<Loss>,
    /// What was cut off as a torn tail (S1), in words, for the server's log.
    pub torn: Option<String>,
    /// What was damaged (S2), in words, for the server's log.
    pub damaged: Vec<String>,
}

/// Why a directory cannot be used. Each text is one line: the file, what is wrong, what to do.
#[derive(Debug)]
pub enum StorageError {
    /// The operating system refused.
    Io { file: String, doing: &'static str, source: io::Error },
    /// The directory was never formatted, or formatting did not finish.
    NotFormatted,
    /// A directory that already holds (parts of) a log is never formatted.
    AlreadyFormatted { file: String },
    /// The parameters do not allow a log.
    Unusable(String),
    /// Written by another version of the format.
    WrongVersion { file: String, found: u32, expected: u32 },
    /// Belongs to somebody else; `field` says in what they differ.
    WrongIdentity { file: String, field: &'static str, found: String, expected: String },
    /// S2: what is there is not what was written.
    Damaged { file: String, offset: Option<u64>, what: String },
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageError::Io { source, .. } => {
                let todo = match source.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        "the disk is full, free some space and start again"
                    }
                    _ => "check the disk and the directory's permissions",
                };
                write!(f, "{}; {todo}", self.what())
            }
            StorageError::NotFormatted => {
                write!(
                    f,
                    "identity: missing, this directory was never formatted; if the bank is new, format it once, with \
                     bank node --format; if it stands for one that was lost, with bank node --rejoin"
                )
            }
            StorageError::AlreadyFormatted { file } => write!(
                f,
                "{file}: already here, and formatting would destroy a log; choose an empty directory"
            ),
            StorageError::Unusable(what) => f.write_str(what),
            StorageError::WrongVersion { file, found, expected } => write!(
                f,
                "{file}: written in format version {found}, this program reads version {expected}; use a program \
                 that reads version {found}"
            ),
            StorageError::WrongIdentity { file, field, found, expected } => write!(
                f,
                "{file}: belongs to {field} {found}, but this server was started for {field} {expected}; use the \
                 directory or the configuration that fits"
            ),
            StorageError::Damaged { .. } => {
                write!(
                    f,
                    "{}; keep this directory for inspection and do not start from it; bank node --rejoin starts the \
                     server from an empty one",
                    self.what()
                )
            }
        }
    }
}

impl StorageError {
    /// What is wrong, without what to do about it.
    pub fn what(&self) -> String {
        match self {
            StorageError::Damaged { file, offset: Some(offset), what } => {
                format!("{file} at offset {offset}: damaged (S2): {what}")
            }
            StorageError::Damaged { file, offset: None, what } => format!("{file}: damaged (S2): {what}"),
            StorageError::Io { file, doing, source } => format!("{file}: cannot {doing}: {source}"),
            other => other.to_string(),
        }
    }
}

impl std::error::Error for StorageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StorageError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
