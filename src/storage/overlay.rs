//! A directory that is looked at as if a server started from it: what would be written stays in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile, FileDisk, RealFile};

/// What became of a file: nothing yet, its new content, or it was removed.
type Changes = Arc<Mutex<BTreeMap<String, Option<Vec<u8>>>>>;

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct Overlay {
    base: FileDisk,
    changes: Changes,
}

#[derive(Debug)]
pub struct OverlayFile {
    base: Option<RealFile>,
    name: String,
    changes: Changes,
}

impl Overlay {
    pub fn new(base: FileDisk) -> Overlay {
        Overlay { base, changes: Changes::default() }
    }

    fn file(&self, name: &str, base: Option<RealFile>) -> OverlayFile {
        OverlayFile { base, name: name.to_string(), changes: self.changes.clone() }
    }
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{name}: no such file"))
}

impl Disk for Overlay {
    type File = OverlayFile;

    fn create(&self, name: &str) -> io::Result<OverlayFile> {
        self.changes.lock().insert(name.to_string(), Some(Vec::new()));
        Ok(self.file(name, None))
    }

    fn open(&self, name: &str) -> io::Result<OverlayFile> {
        match self.changes.lock().get(name) {
            Some(Some(_)) => Ok(self.file(name, None)),
            Some(None) => Err(missing(name)),
            None => Ok(self.file(name, Some(self.base.open(name)?))),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = self.base.list()?;
        let changes = self.changes.lock();
        names.retain(|name| !changes.contains_key(name));
        names.extend(changes.iter().filter(|(_, content)| content.is_some()).map(|(name, _)| name.clone()));
        names.sort();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.changes.lock().insert(name.to_string(), None);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let content = self.open(from)?.content()?;
        let mut changes = self.changes.lock();
        changes.insert(from.to_string(), None);
        changes.insert(to.to_string(), Some(content));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

impl OverlayFile {
    fn content(&self) -> io::Result<Vec<u8>> {
        if let Some(Some(content)) = self.changes.lock().get(&self.name) {
            return Ok(content.clone());
        }
        let base = self.base.as_ref().ok_or_else(|| missing(&self.name))?;
        let mut content = vec![0; base.len()? as usize];
        base.read_at(&mut content, 0)?;
        Ok(content)
    }
}

impl DiskFile for OverlayFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(Some(content)) = self.changes.lock().get(&self.name) {
            let part = content.get(offset as usize..).and_then(|rest| rest.get(..buf.len()));
            buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            return Ok(());
        }
        self.base.as_ref().ok_or_else(|| missing(&self.name))?.read_at(buf, offset)
    }

    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut content = self.content()?;
        let end = offset as usize + buf.len();
        content.resize(content.len().max(end), 0);
        content[offset as usize..end].copy_from_slice(buf);
        self.changes.lock().insert(self.name.clone(), Some(content));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        match self.changes.lock().get(&self.name) {
            Some(Some(content)) => Ok(content.len() as u64),
            _ => self.base.as_ref().ok_or_else(|| missing(&self.name))?.len(),
        }
    }

    fn sync_data(&mut self) -> io::Result<()> {
        Ok(())
    }
}
