//! One server's data directory as the WAL sees it, and the real one.
//!
//! The traits are as narrow as the WAL's needs, so that the simulator can put a disk behind them that forgets
//! ([`super::MemDisk`]). Names are plain file names: there are no folders inside a data directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A server's data directory. What was created, renamed or removed survives a power cut only after [`Disk::sync_dir`].
pub trait Disk {
    type File: DiskFile;

    /// Creates a new file for reading and writing; an existing one is an error.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// The names of all files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames in one atomic step; an existing `to` is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes the directory's entries durable, not the files' contents.
    fn sync_dir(&self) -> io::Result<()>;

    /// How long ago a file was last written to; zero where nobody knows.
    fn age(&self, _name: &str) -> io::Result<Duration> {
        Ok(Duration::ZERO)
    }

    /// Syncs that succeeded since it was opened, of files and of the directory, where somebody counts them.
    fn syncs(&self) -> u64 {
        0
    }
}

/// An open file. What was written survives a power cut only after [`DiskFile::sync_data`].
pub trait DiskFile {
    /// Fills the whole buffer from `offset`, or fails with `UnexpectedEof`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes the whole buffer at `offset`. After an error any part of it may have been written.
    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn sync_data(&mut self) -> io::Result<()>;

    /// Has what was written there begun to be put on disk, so that a later sync need not wait for all of it. Promises nothing.
    fn begin_writeback(&self, _offset: u64, _len: u64) {}

    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A directory of the file system, locked for as long as a clone of this handle lives.
#[derive(Clone, Debug)]
pub struct FileDisk {
    dir: PathBuf,
    /// Held, never read: the lock goes with the last handle, and with the process however it ends. `None` for one that
    /// only looks.
    lock: Option<Arc<File>>,
    /// The directory itself, open for as long as it is written to: what is to be synced may not depend on a descriptor that is
    /// still to be had.
    open: Option<Arc<File>>,
    syncs: Arc<AtomicU64>,
}

/// A file of a [`FileDisk`]. Its errors name its path.
#[derive(Debug)]
pub struct RealFile {
    file: File,
    path: PathBuf,
    syncs: Arc<AtomicU64>,
}

/// The name of the lock file; it never shows in [`Disk::list`].
const LOCK: &str = "lock";

impl FileDisk {
    /// Opens a data directory, creating it where it is missing, and takes its lock: two servers that append to one log
    /// would destroy it. The lock is the operating system's and dies with the process, so a left-over lock file is
    /// harmless.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<FileDisk> {
        let dir = dir.into();
        if !dir.is_dir() {
            fs::create_dir_all(&dir).map_err(|e| at(&dir, e))?;
            // The new directory is itself an entry of its parent.
            if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
                File::open(parent).and_then(|f| f.sync_all()).map_err(|e| at(parent, e))?;
            }
        }
        let path = dir.join(LOCK);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(|e| at(&path, e))?;
        let locked = lock.try_lock();
        match locked {
            Ok(()) => {
                let open = File::open(&dir).map_err(|e| at(&dir, e))?;
                let (lock, open) = (Some(Arc::new(lock)), Some(Arc::new(open)));
                Ok(FileDisk { dir, lock, open, syncs: Arc::default() })
            }
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!(
                    "data directory {} is in use by another server; stop that one or choose another directory",
                    dir.display()
                ),
            )),
            Err(TryLockError::Error(e)) => Err(at(&path, e)),
        }
    }

    /// Opens a directory to look at it, while a server may run on it. Nothing in it can be changed.
    pub fn look(dir: impl Into<PathBuf>) -> FileDisk {
        FileDisk { dir: dir.into(), lock: None, open: None, syncs: Arc::default() }
    }

    fn may_change(&self) -> io::Result<()> {
        let refused = || io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "opened to be looked at only");
        self.lock.is_some().then_some(()).ok_or_else(refused)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn file(&self, path: PathBuf, opened: io::Result<File>) -> io::Result<RealFile> {
        let file = opened.map_err(|e| at(&path, e))?;
        Ok(RealFile { file, path, syncs: self.syncs.clone() })
    }
}

/// An error that says which file it is about; the operating system's own text never does.
fn at(path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

/// Descriptors that have run out are like space that has: nothing is broken, and there may be some again soon.
fn short(e: io::Error) -> io::Error {
    match e.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => io::Error::new(io::ErrorKind::QuotaExceeded, e),
        _ => e,
    }
}

impl Disk for FileDisk {
    type File = RealFile;

    fn create(&self, name: &str) -> io::Result<RealFile> {
        let path = self.dir.join(name);
        self.may_change()?;
        let opened = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        self.file(path, opened.map_err(short))
    }

    fn open(&self, name: &str) -> io::Result<RealFile> {
        let path = self.dir.join(name);
        let opened = OpenOptions::new().read(true).write(self.lock.is_some()).open(&path);
        self.file(path, opened)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| at(&self.dir, e))? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry.map_err(|e| at(&self.dir, e))?.file_name().into_string()
                && name != LOCK
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn age(&self, name: &str) -> io::Result<Duration> {
        let path = self.dir.join(name);
        let written = fs::metadata(&path).and_then(|data| data.modified()).map_err(|e| at(&path, e))?;
        // A clock that was set back makes nothing older.
        Ok(written.elapsed().unwrap_or_default())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.dir.join(name);
        self.may_change()?;
        fs::remove_file(&path).map_err(|e| at(&path, e))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let path = self.dir.join(from);
        self.may_change()?;
        fs::rename(&path, self.dir.join(to)).map_err(|e| at(&path, e))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.may_change()?;
        let synced = self.open.as_ref().map_or(Ok(()), |open| open.sync_all());
        synced.map_err(|e| at(&self.dir, e))?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|e| at(&self.path, e))
    }

    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset).map_err(|e| at(&self.path, e))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata().map_err(|e| at(&self.path, e))?.len())
    }

    fn begin_writeback(&self, offset: u64, len: u64) {
        // SAFETY: a system call on a descriptor that is open, without pointers. If it fails, the sync will tell.
        unsafe {
            libc::sync_file_range(
                self.file.as_raw_fd(),
                offset as i64,
                len as i64,
                libc::SYNC_FILE_RANGE_WRITE,
            );
        }
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.file.sync_data().map_err(|e| at(&self.path, e))?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::wal::is_full;
    use super::*;

    #[test]
    fn descriptors_that_have_run_out_are_a_lack_of_space_and_no_broken_disk() {
        for (code, full) in [(libc::EMFILE, true), (libc::ENFILE, true), (libc::EIO, false)] {
            let error = at(Path::new("wal"), short(io::Error::from_raw_os_error(code)));
            assert_eq!(is_full(&error), full, "{error}");
        }
    }
}
