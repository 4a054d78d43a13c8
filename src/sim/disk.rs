//! A memory disk with a fuse: the power goes before the n-th write or sync.
//!
//! [`MemDisk`] already forgets what was not synced; its injected failures are those of a disk that says no. The fuse is
//! the other kind: the machine stops *between* two operations, so that what was written and not synced may have reached
//! the medium wholly, in part, or not at all.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::bank::command::{self, Command};
use crate::storage::{CommitStats, Disk, DiskFile, MemDisk, MemFile, Pieces, StableLog, Wal};
use crate::types::{Ballot, Cut, Record, Slot, Value};

/// What happens to a server when it writes over one of its votes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Doom {
    #[default]
    Spared,
    /// The power goes between the write and its sync; or soon after it begins to write the snapshot of another server.
    PowerGoes,
    /// The disk says that the group is written, and it is not.
    WriteIsLost,
}

/// The log of a server that may be doomed, the next time that it replaces a vote by one for another value.
pub struct DoomedLog<'a> {
    pub wal: &'a mut Wal<SimDisk>,
    pub doom: Doom,
    /// It happened.
    pub struck: bool,
}

impl StableLog for DoomedLog<'_> {
    fn append(&mut self, record: &Record) {
        if let Record::Accept { slot, value, .. } | Record::Learn { slot, value, .. } = record
            && self.doom != Doom::Spared
            && *slot <= self.wal.last_slot()
            && self.wal.read(*slot, 0).is_ok_and(|old| old.iter().any(|(_, _, old)| old != value))
        {
            if self.doom == Doom::PowerGoes {
                self.wal.disk().set_fuse(Some(1));
            }
            self.struck = true;
        }
        self.wal.append(record);
    }

    fn set_decided(&mut self, slot: Slot) {
        self.wal.set_decided(slot);
    }

    fn secure(&mut self, bytes: u64, again: bool) -> io::Result<Option<u64>> {
        self.wal.secure(bytes, again)
    }

    fn commit(&mut self) -> io::Result<CommitStats> {
        self.wal.commit()
    }

    fn read(&self, from: Slot, max_bytes: usize) -> io::Result<Vec<(Slot, Ballot, Value)>> {
        self.wal.read(from, max_bytes)
    }

    fn writes_snapshot(&self) -> bool {
        self.wal.has_work()
    }

    fn begin_snapshot(&mut self, source: Box<dyn Pieces>, foreign: bool) -> io::Result<()> {
        if foreign && self.doom == Doom::PowerGoes {
            // Some of them while it is written, some when it has just taken its place.
            self.wal.disk().set_fuse(Some(2 + source.cut().slot.0 * 7 % 90));
        }
        self.wal.begin_snapshot(source, foreign)
    }

    fn snapshot(&self) -> Option<Cut> {
        self.wal.snapshot()
    }

    fn read_piece(&mut self, slot: Slot, n: u64) -> io::Result<Option<Vec<u8>>> {
        self.wal.read_piece(slot, n)
    }

    fn distrust_snapshot(&mut self, slot: Slot) {
        self.wal.distrust_snapshot(slot);
    }
}

/// The log as a server reads it whose memory fails it: of one decided value a bit is wrong. The disk is sound.
pub struct MisreadLog<'a> {
    pub wal: &'a mut Wal<SimDisk>,
    pub misread: Option<(Slot, Value)>,
}

impl<'a> MisreadLog<'a> {
    /// Misreads an amount in the last value up to `last` that has one.
    pub fn new(wal: &'a mut Wal<SimDisk>, last: Slot) -> MisreadLog<'a> {
        let wrong = |slot| {
            let (_, _, value) = wal.read(slot, 0).ok()?.into_iter().next()?;
            Some((slot, with_other_amount(&value)?))
        };
        let misread = (1..=last.0).rev().find_map(|slot| wrong(Slot(slot)));
        MisreadLog { wal, misread }
    }
}

fn with_other_amount(value: &Value) -> Option<Value> {
    let record = command::blocks(&value.0).flatten().find_map(|block| match block {
        Command::Transfers { records, .. } | Command::Prepare { records, .. } => records.first(),
        _ => None,
    });
    let transfer = record?.get();
    let bytes = [transfer.from.0.to_le_bytes(), transfer.to.0.to_le_bytes(), transfer.amount.to_le_bytes()];
    let bytes = bytes.concat();
    let at = value.0.windows(bytes.len()).position(|window| window == bytes)?;
    let mut wrong = value.0.to_vec();
    wrong[at + 16] ^= 1;
    Some(Value::from_slice(&wrong))
}

impl StableLog for MisreadLog<'_> {
    fn append(&mut self, record: &Record) {
        panic!("a server that starts writes nothing, and here comes {record:?}");
    }

    fn set_decided(&mut self, _: Slot) {}

    fn commit(&mut self) -> io::Result<CommitStats> {
        panic!("a server that starts writes nothing");
    }

    fn read(&self, from: Slot, max_bytes: usize) -> io::Result<Vec<(Slot, Ballot, Value)>> {
        let mut entries = self.wal.read(from, max_bytes)?;
        for (slot, _, value) in &mut entries {
            if let Some((wrong, misread)) = &self.misread
                && wrong == slot
            {
                *value = misread.clone();
            }
        }
        Ok(entries)
    }

    fn secure(&mut self, _: u64, _: bool) -> io::Result<Option<u64>> {
        panic!("a server that starts writes nothing");
    }

    fn writes_snapshot(&self) -> bool {
        false
    }

    fn begin_snapshot(&mut self, _: Box<dyn Pieces>, _: bool) -> io::Result<()> {
        panic!("a server that starts writes nothing");
    }

    fn snapshot(&self) -> Option<Cut> {
        self.wal.snapshot()
    }

    fn read_piece(&mut self, slot: Slot, n: u64) -> io::Result<Option<Vec<u8>>> {
        self.wal.read_piece(slot, n)
    }

    fn distrust_snapshot(&mut self, slot: Slot) {
        self.wal.distrust_snapshot(slot);
    }
}

/// A handle to one server's disk; clones share it.
#[derive(Clone, Default, Debug)]
pub struct SimDisk {
    pub inner: MemDisk,
    /// Operations until the power goes.
    fuse: Rc<Cell<Option<u64>>>,
    reads: Rc<Cell<u64>>,
}

#[derive(Debug)]
pub struct SimFile {
    inner: MemFile,
    fuse: Rc<Cell<Option<u64>>>,
    reads: Rc<Cell<u64>>,
}

fn burn(fuse: &Cell<Option<u64>>) -> io::Result<()> {
    match fuse.get() {
        Some(0) => Err(io::Error::other("the power is gone")),
        Some(left) => {
            fuse.set(Some(left - 1));
            Ok(())
        }
        None => Ok(()),
    }
}

impl SimDisk {
    /// Lets `operations` more writes and syncs happen and fails all later ones; `None` for ever.
    pub fn set_fuse(&self, operations: Option<u64>) {
        self.fuse.set(operations);
    }

    /// Whether the fuse has burned down.
    pub fn is_dead(&self) -> bool {
        self.fuse.get() == Some(0)
    }

    /// How often something was read.
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }

    fn file(&self, inner: MemFile) -> SimFile {
        SimFile { inner, fuse: self.fuse.clone(), reads: self.reads.clone() }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create(&self, name: &str) -> io::Result<SimFile> {
        burn(&self.fuse)?;
        Ok(self.file(self.inner.create(name)?))
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        Ok(self.file(self.inner.open(name)?))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        burn(&self.fuse)?;
        self.inner.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        burn(&self.fuse)?;
        self.inner.rename(from, to)
    }

    fn sync_dir(&self) -> io::Result<()> {
        burn(&self.fuse)?;
        self.inner.sync_dir()
    }

    fn age(&self, name: &str) -> io::Result<Duration> {
        self.inner.age(name)
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.reads.set(self.reads.get() + 1);
        self.inner.read_at(buf, offset)
    }

    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        burn(&self.fuse)?;
        self.inner.write_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn sync_data(&mut self) -> io::Result<()> {
        burn(&self.fuse)?;
        self.inner.sync_data()
    }
}
