//! A disk in memory that forgets what was not synced: the simulator's disk, and the tests'.
//!
//! Between syncs every write lives in a model of the page cache: reads see it, [`MemDisk::kill`] (a process that dies)
//! keeps it, and [`MemDisk::crash`] (a power cut) asks, write by write, what had reached the medium. A sector of 512
//! bytes is written wholly or not at all, as disks promise; or only a line of 64 is, which is less than they promise.
//! Directory entries reach the medium in order, as on a journaling file system, so that of the unsynced ones a prefix
//! survives.
//!
//! A sync that fails leaves what it should have written visible in the cache but clean, as Linux does: no later sync
//! will write it. Whoever takes the sync's second answer for a yes is caught by the next crash.
//!
//! A sector may become unreadable ([`MemDisk::ruin`]): reading it fails, and so does writing a part of it, since the rest
//! would have to be read. Writing all of it makes it sound again, as disks then use another one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};

const SECTOR: u64 = 512;
const LINE: u64 = 64;

/// A handle to a disk in memory; clones share it.
#[derive(Clone, Default, Debug)]
pub struct MemDisk(Arc<Mutex<State>>);

/// An open file of a [`MemDisk`]. It dies with the life ([`MemDisk::kill`], [`MemDisk::crash`]) that opened it.
#[derive(Debug)]
pub struct MemFile {
    disk: MemDisk,
    inode: u64,
    life: u64,
}

/// Something that a power cut may take away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsynced<'a> {
    Write {
        file: &'a str,
        offset: u64,
        len: usize,
    },
    /// The directory's entry for this name was added, replaced or removed.
    Entry {
        name: &'a str,
    },
}

/// What reached the medium of something unsynced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    Lost,
    Whole,
    /// Of the sectors that the write touches, those whose bit is set (the mask repeats after 64). An entry counts as
    /// kept whole.
    Sectors(u64),
    /// The same of lines of 64 bytes: a medium that promises less than a sector.
    Lines(u64),
}

/// How often the disk was asked to write and to sync (files and the directory), failures included.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    pub writes: u64,
    pub syncs: u64,
}

#[derive(Clone, Default, Debug)]
struct State {
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Since the last `sync_dir`, in order: a name, and what it stands for afterwards.
    entries: Vec<Vec<(String, Option<u64>)>>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    life: u64,
    counts: Counts,
    fail_write: Option<u64>,
    fail_sync: Option<u64>,
    capacity: Option<u64>,
    /// The time, in microseconds, as whoever owns the disk tells it.
    now_us: u64,
}

#[derive(Clone, Default, Debug)]
struct Inode {
    current: Vec<u8>,
    durable: Vec<u8>,
    dirty: Vec<Dirty>,
    /// Numbers of sectors that cannot be read.
    ruined: BTreeSet<u64>,
    written_us: u64,
}

impl Inode {
    fn check_readable(&self, offset: u64, len: u64) -> io::Result<()> {
        let sectors = offset / SECTOR..(offset + len).div_ceil(SECTOR);
        match self.ruined.range(sectors).next() {
            Some(_) if len > 0 => Err(io::Error::from_raw_os_error(libc::EIO)),
            _ => Ok(()),
        }
    }

    /// What a write over these bytes makes sound, or the error that it meets.
    fn write_over(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let whole = offset.div_ceil(SECTOR)..(offset + len) / SECTOR;
        let sectors = offset / SECTOR..(offset + len).div_ceil(SECTOR);
        if self.ruined.range(sectors).any(|sector| !whole.contains(sector)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.ruined.retain(|sector| !whole.contains(sector));
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct Dirty {
    offset: u64,
    bytes: Vec<u8>,
    /// A sync of it failed: no later one will write it.
    orphan: bool,
}

fn put(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = offset as usize;
    let end = start + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(bytes);
}

/// Of the aligned parts of `size` bytes that a write touches, those whose bit is set.
fn put_parts(content: &mut Vec<u8>, offset: u64, bytes: &[u8], size: u64, mask: u64) {
    let (first, end) = (offset / size, offset + bytes.len() as u64);
    let mut at = offset;
    while at < end {
        let next = ((at / size + 1) * size).min(end);
        if mask >> ((at / size - first) % 64) & 1 == 1 {
            put(content, at, &bytes[(at - offset) as usize..(next - offset) as usize]);
        }
        at = next;
    }
}

/// The part of a write that a failure leaves done: about half, ending where a sector does, or nothing.
fn half(len: u64, offset: u64) -> usize {
    let end = (offset + len / 2) / SECTOR * SECTOR;
    end.saturating_sub(offset) as usize
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{name}: no such file"))
}

impl MemDisk {
    pub fn new() -> MemDisk {
        MemDisk::default()
    }

    /// The process dies; what it wrote stays in the page cache. Its open files are dead.
    pub fn kill(&self) {
        let mut state = self.0.lock();
        state.life += 1;
        state.fail_write = None;
        state.fail_sync = None;
    }

    /// The power fails: `keep` decides about everything unsynced, first the directory's entries, then the writes, each
    /// file's in order. Once an entry is lost, so are the later ones.
    pub fn crash(&self, mut keep: impl FnMut(Unsynced<'_>) -> Kept) {
        self.kill();
        let mut guard = self.0.lock();
        let state = &mut *guard;
        for step in state.entries.drain(..) {
            let name = step.last().map(|(name, _)| name.as_str()).unwrap_or_default();
            if keep(Unsynced::Entry { name }) == Kept::Lost {
                break;
            }
            for (name, inode) in step {
                match inode {
                    Some(inode) => state.durable_names.insert(name, inode),
                    None => state.durable_names.remove(&name),
                };
            }
        }
        state.names = state.durable_names.clone();
        let live: BTreeSet<u64> = state.names.values().copied().collect();
        state.inodes.retain(|id, _| live.contains(id));
        for (name, id) in &state.names {
            let Some(inode) = state.inodes.get_mut(id) else { continue };
            for write in std::mem::take(&mut inode.dirty) {
                let Dirty { offset, bytes, .. } = write;
                match keep(Unsynced::Write { file: name, offset, len: bytes.len() }) {
                    Kept::Lost => {}
                    Kept::Whole => put(&mut inode.durable, offset, &bytes),
                    Kept::Sectors(mask) => put_parts(&mut inode.durable, offset, &bytes, SECTOR, mask),
                    Kept::Lines(mask) => put_parts(&mut inode.durable, offset, &bytes, LINE, mask),
                }
            }
            inode.current = inode.durable.clone();
        }
    }

    pub fn counts(&self) -> Counts {
        self.0.lock().counts
    }

    /// Lets the `n`-th write from now (1 is the next one) fail, with the first half of its
    /// sectors done.
    pub fn fail_write(&self, n: u64) {
        let mut state = self.0.lock();
        state.fail_write = Some(state.counts.writes + n);
    }

    /// Lets the `n`-th sync from now (1 is the next one) of a file or the directory fail.
    pub fn fail_sync(&self, n: u64) {
        let mut state = self.0.lock();
        state.fail_sync = Some(state.counts.syncs + n);
    }

    /// Bounds the bytes of all files together; a write beyond it fails with `StorageFull`, after what fits. So does a sync
    /// that is made to fail, as on file systems that look for space only then.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    pub fn is_bounded(&self) -> bool {
        self.0.lock().capacity.is_some()
    }

    /// The bytes of all files together.
    pub fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// Tells the disk what time it is, from which files get their age.
    pub fn set_time(&self, now_us: u64) {
        self.0.lock().now_us = now_us;
    }

    /// Makes the sector unreadable in which a byte of a file stands; nothing if there is no such byte.
    pub fn ruin(&self, name: &str, offset: u64) {
        let mut state = self.0.lock();
        let Some(inode) = state.names.get(name).copied() else { return };
        if let Some(inode) = state.inodes.get_mut(&inode)
            && offset < inode.current.len() as u64
        {
            inode.ruined.insert(offset / SECTOR);
        }
    }

    /// Whether a sector of a file cannot be read.
    pub fn is_ruined(&self, name: &str) -> bool {
        let state = self.0.lock();
        let inode = state.names.get(name).and_then(|inode| state.inodes.get(inode));
        inode.is_some_and(|inode| !inode.ruined.is_empty())
    }

    /// Takes a file away behind everybody's back, durably.
    pub fn take_away(&self, name: &str) {
        let mut state = self.0.lock();
        state.names.remove(name);
        state.durable_names.remove(name);
    }

    /// A separate disk with the same content and the same unsynced writes.
    pub fn copy(&self) -> MemDisk {
        MemDisk(Arc::new(Mutex::new(self.0.lock().clone())))
    }

    /// What a reader of the file sees now; for tests.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.0.lock();
        let inode = state.names.get(name)?;
        Some(state.inodes[inode].current.clone())
    }

    /// Replaces a file's content behind everybody's back, durably: the damage that tests do.
    pub fn overwrite(&self, name: &str, content: Vec<u8>) {
        let mut state = self.0.lock();
        let state = &mut *state;
        let inode = *state.names.entry(name.to_string()).or_insert_with(|| {
            state.next_inode += 1;
            state.next_inode
        });
        state.durable_names.insert(name.to_string(), inode);
        let written_us = state.now_us;
        let content = Inode { current: content.clone(), durable: content, written_us, ..Inode::default() };
        state.inodes.insert(inode, content);
    }

    fn file(&self, inode: u64, life: u64) -> MemFile {
        MemFile { disk: self.clone(), inode, life }
    }
}

impl State {
    fn set_entries(&mut self, step: Vec<(String, Option<u64>)>) {
        for (name, inode) in &step {
            match inode {
                Some(inode) => self.names.insert(name.clone(), *inode),
                None => self.names.remove(name),
            };
        }
        self.entries.push(step);
    }

    fn count_sync(&mut self) -> bool {
        self.counts.syncs += 1;
        self.fail_sync != Some(self.counts.syncs)
    }

    fn used(&self) -> u64 {
        self.names.values().filter_map(|id| self.inodes.get(id)).map(|i| i.current.len() as u64).sum()
    }

    fn inode(&mut self, file: &MemFile) -> io::Result<&mut Inode> {
        if file.life != self.life {
            return Err(io::Error::other("file was opened before the crash"));
        }
        self.inodes.get_mut(&file.inode).ok_or_else(|| missing("removed file"))
    }
}

impl Disk for MemDisk {
    type File = MemFile;

    fn create(&self, name: &str) -> io::Result<MemFile> {
        let mut state = self.0.lock();
        if state.names.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name}: exists")));
        }
        state.next_inode += 1;
        let inode = state.next_inode;
        state.inodes.insert(inode, Inode::default());
        state.set_entries(vec![(name.to_string(), Some(inode))]);
        Ok(self.file(inode, state.life))
    }

    fn open(&self, name: &str) -> io::Result<MemFile> {
        let state = self.0.lock();
        let inode = *state.names.get(name).ok_or_else(|| missing(name))?;
        Ok(self.file(inode, state.life))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.names.contains_key(name) {
            return Err(missing(name));
        }
        state.set_entries(vec![(name.to_string(), None)]);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        let inode = *state.names.get(from).ok_or_else(|| missing(from))?;
        state.set_entries(vec![(from.to_string(), None), (to.to_string(), Some(inode))]);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.count_sync() {
            return Err(io::Error::other("injected failure of a directory sync"));
        }
        state.entries.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn age(&self, name: &str) -> io::Result<Duration> {
        let state = self.0.lock();
        let inode = state.names.get(name).and_then(|inode| state.inodes.get(inode));
        let written_us = inode.ok_or_else(|| missing(name))?.written_us;
        Ok(Duration::from_micros(state.now_us.saturating_sub(written_us)))
    }
}

impl DiskFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let inode = state.inode(self)?;
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= inode.current.len() as u64);
        let end = end.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "read beyond the end"))?;
        inode.check_readable(offset, buf.len() as u64)?;
        buf.copy_from_slice(&inode.current[offset as usize..end as usize]);
        Ok(())
    }

    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.counts.writes += 1;
        let fails = state.fail_write == Some(state.counts.writes);
        let free = state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used()));
        let now_us = state.now_us;
        let inode = state.inode(self)?;
        inode.write_over(offset, buf.len() as u64)?;
        inode.written_us = now_us;
        let fits = (inode.current.len() as u64).saturating_add(free).saturating_sub(offset);
        let full = (buf.len() as u64) > fits;
        let done = match (fails, full) {
            (true, _) => &buf[..half(buf.len() as u64, offset).min(fits as usize)],
            (false, true) => &buf[..fits as usize],
            (false, false) => buf,
        };
        put(&mut inode.current, offset, done);
        inode.dirty.push(Dirty { offset, bytes: done.to_vec(), orphan: false });
        match (fails, full) {
            (true, _) => Err(io::Error::other("injected failure of a write")),
            (false, true) => Err(io::Error::new(io::ErrorKind::StorageFull, "disk is full")),
            (false, false) => Ok(()),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().inode(self)?.current.len() as u64)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let works = state.count_sync();
        let kind = if state.capacity.is_some() { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
        let inode = state.inode(self)?;
        if !works {
            inode.dirty.iter_mut().for_each(|write| write.orphan = true);
            return Err(io::Error::new(kind, "injected failure of a sync"));
        }
        for write in std::mem::take(&mut inode.dirty) {
            if !write.orphan {
                put(&mut inode.durable, write.offset, &write.bytes);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with(content: &[u8]) -> (MemDisk, MemFile) {
        let disk = MemDisk::new();
        let mut file = disk.create("f").expect("create");
        file.write_at(content, 0).expect("write");
        (disk, file)
    }

    #[test]
    fn a_crash_takes_what_was_not_synced() {
        let (disk, mut file) = disk_with(&[1; 1024]);
        file.sync_data().expect("sync");
        disk.sync_dir().expect("sync");
        file.write_at(&[2; 1024], 0).expect("write");
        disk.create("g").expect("create");
        let asked = std::cell::Cell::new(0);
        disk.crash(|what| {
            asked.set(asked.get() + 1);
            match what {
                Unsynced::Write { .. } => Kept::Sectors(2),
                Unsynced::Entry { .. } => Kept::Lost,
            }
        });
        assert_eq!(asked.get(), 2);
        assert_eq!(disk.list().expect("list"), ["f"]);
        assert_eq!(disk.contents("f"), Some([[1; 512], [2; 512]].concat()));
        assert!(file.len().is_err(), "a handle outlived the crash");
    }

    #[test]
    fn a_write_may_be_torn_into_lines() {
        let (disk, mut file) = disk_with(&[1; 200]);
        file.sync_data().expect("sync");
        disk.sync_dir().expect("sync");
        file.write_at(&[2; 100], 60).expect("write");
        // It touches the lines from 0, 64 and 128 on.
        disk.crash(|_| Kept::Lines(0b101));
        let expected = [&[1; 60][..], &[2; 4], &[1; 64], &[2; 32], &[1; 40]].concat();
        assert_eq!(disk.contents("f"), Some(expected));
    }

    #[test]
    fn an_unreadable_sector_is_sound_again_once_all_of_it_is_written() {
        let (disk, mut file) = disk_with(&[1; 2048]);
        disk.ruin("f", 600);
        disk.ruin("f", 5000);
        let mut bytes = [0; 512];
        assert!(file.read_at(&mut bytes, 0).is_ok() && file.read_at(&mut bytes, 1024).is_ok());
        assert_eq!(file.read_at(&mut bytes, 1).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(file.write_at(&[2; 100], 1000).is_err(), "a part of it cannot be written");
        assert!(file.read_at(&mut bytes, 512).is_err());
        file.write_at(&[2; 513], 512).expect("all of it can");
        file.read_at(&mut bytes, 512).expect("and then be read");
        assert_eq!((bytes, disk.is_ruined("f")), ([2; 512], false));
    }

    #[test]
    fn what_a_failed_sync_left_behind_is_visible_and_never_durable() {
        let (disk, mut file) = disk_with(&[1; 8]);
        disk.sync_dir().expect("sync");
        disk.fail_sync(1);
        assert!(file.sync_data().is_err());
        assert!(file.sync_data().is_ok(), "the second sync has nothing left to do");
        assert_eq!(disk.contents("f"), Some(vec![1; 8]));
        disk.crash(|_| Kept::Whole);
        assert_eq!(disk.contents("f"), Some(vec![]));
    }
}
