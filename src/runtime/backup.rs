//! `bank backup` and `bank restore`: a consistent copy of a whole bank as files, and a bank made from such a copy.
//!
//! ```text
//! backup.json    which bank, and of each shard the slot, the digest and the file; with its own checksum
//! shard-1.image  the state of shard 1: see crate::bank::image. Its digest covers every byte.
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backup::{self, Backup, Source};
use crate::bank::{Bank, Incoming};
use crate::config::{Limits, Timeouts, Topology, limits};
use crate::drive::{self, Checked};
use crate::runtime::cluster::server_dir;
use crate::runtime::inspect::servers;
use crate::runtime::session::Exit;
use crate::storage::{Expected, FileDisk, Identity, Overlay, Wal, is_formatted};
use crate::types::{Cut, NodeId, ShardId, Slot, Time};

const MANIFEST: &str = "backup.json";
const FORMAT: u32 = 1;

/// What `backup.json` says, but for its checksum.
#[derive(Serialize, Deserialize)]
struct Content {
    format: u32,
    /// Of the bank that this is a copy of.
    cluster_id: String,
    topology: Topology,
    shards: Vec<ShardFile>,
}

#[derive(Serialize, Deserialize)]
struct ShardFile {
    shard: u16,
    slot: u64,
    digest: String,
    bytes: u64,
    file: String,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    /// CRC-32C of the content as compact JSON.
    crc32c: u32,
    content: Content,
}

impl Content {
    fn crc(&self) -> Result<u32, String> {
        Ok(crc32c::crc32c(&serde_json::to_vec(self).map_err(|e| e.to_string())?))
    }
}

/// `bank backup`: copies the bank whose servers' directories are `dirs`, or lie in them, to a new directory.
pub fn backup(dirs: &[PathBuf], to: &Path) -> Exit {
    finish(write_backup(dirs, to))
}

/// `bank restore`: makes new directories for all servers of the bank that `from` is a copy of.
pub fn restore(from: &Path, to: &Path, cluster_id: Option<u128>) -> Exit {
    finish(write_servers(from, to, cluster_id.unwrap_or_else(rand::random)))
}

fn finish(done: Result<String, String>) -> Exit {
    match done {
        Ok(text) => {
            print!("{text}");
            Exit::Success
        }
        Err(e) => {
            eprintln!("{e}");
            Exit::Failure
        }
    }
}

/// Fills a new directory. Under its name it is either whole or not there.
fn fill(to: &Path, fill: impl FnOnce(&Path) -> Result<String, String>) -> Result<String, String> {
    let named = |path: &Path, what: &str, e: io::Error| format!("{}: {what}: {e}", path.display());
    if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) || to.is_file() {
        return Err(format!("{}: already there; name a new directory", to.display()));
    }
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    if partial.exists() {
        return Err(format!(
            "{}: left by an attempt that was interrupted; remove it first",
            partial.display()
        ));
    }
    fs::create_dir_all(&partial).map_err(|e| named(&partial, "cannot be made", e))?;
    let done = fill(&partial).and_then(|text| {
        sync_dir(&partial).map_err(|e| named(&partial, "cannot be synced", e))?;
        fs::rename(&partial, to).map_err(|e| named(to, "cannot be given its name", e))?;
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_dir(parent).map_err(|e| named(parent, "cannot be synced", e))?;
        Ok(text)
    });
    if done.is_err() {
        // What is left of it is of no use to anybody; that it stays is no reason to hide why it failed.
        let _ = fs::remove_dir_all(&partial);
    }
    done
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn write_backup(dirs: &[PathBuf], to: &Path) -> Result<String, String> {
    let mut sources = Vec::new();
    for dir in dirs {
        for dir in servers(dir, is_formatted)? {
            let name = dir.display().to_string();
            sources.push(Source { name, open: move || Overlay::new(FileDisk::look(&dir)) });
        }
    }
    let Backup { cluster_id, topology, banks } = backup::read(&sources)?;
    fill(to, |to| {
        let mut shards = Vec::new();
        let mut text = String::new();
        for (shard, bank) in topology.shards().zip(&banks) {
            let image = bank.image(limits::PIECE_BYTES);
            let Cut { slot, digest, bytes, .. } = image.cut();
            let name = format!("shard-{}.image", shard.0);
            let path = to.join(&name);
            let written = File::create_new(&path).and_then(|mut file| {
                (0..image.cut().pieces()).try_for_each(|n| file.write_all(&image.piece(n)))?;
                file.sync_all()
            });
            written.map_err(|e| format!("{}: cannot be written: {e}", path.display()))?;
            text += &format!(
                "{shard}: slot {slot}, digest {digest:016x}, {bytes} bytes, {} units\n",
                bank.total()
            );
            let digest = format!("{digest:016x}");
            shards.push(ShardFile { shard: shard.0, slot: slot.0, digest, bytes, file: name });
        }
        let content = Content { format: FORMAT, cluster_id: format!("{cluster_id:032x}"), topology, shards };
        let manifest = Manifest { crc32c: content.crc()?, content };
        let path = to.join(MANIFEST);
        let written = File::create_new(&path).and_then(|mut file| {
            serde_json::to_writer_pretty(&mut file, &manifest)?;
            file.write_all(b"\n")?;
            file.sync_all()
        });
        written.map_err(|e| format!("{}: cannot be written: {e}", path.display()))?;
        Ok(text)
    })
}

/// Reads a copy, and proves that it is what was copied (P4).
fn read_backup(from: &Path) -> Result<(Topology, Vec<(ShardId, Bank)>), String> {
    let path = from.join(MANIFEST);
    let wrong = |what: String| format!("{}: {what}; use another copy", path.display());
    let text = fs::read(&path).map_err(|e| format!("{}: cannot be read: {e}", path.display()))?;
    let Manifest { crc32c, content } =
        serde_json::from_slice(&text).map_err(|e| wrong(format!("damaged, or no copy of a bank: {e}")))?;
    if content.format != FORMAT {
        return Err(wrong(format!(
            "written in format {}, this program reads format {FORMAT}",
            content.format
        )));
    }
    if content.crc()? != crc32c {
        return Err(wrong("damaged: bad checksum".into()));
    }
    let topology = content.topology;
    topology.validate().map_err(&wrong)?;
    if !content.shards.iter().map(|s| ShardId(s.shard)).eq(topology.shards()) {
        return Err(wrong("it does not name every shard once".into()));
    }
    let mut banks = Vec::new();
    for ShardFile { shard, slot, digest, bytes, file } in content.shards {
        let path = from.join(&file);
        let wrong = |what: String| format!("{}: {what}; use another copy", path.display());
        let digest = u64::from_str_radix(&digest, 16).map_err(|e| wrong(format!("digest: {e}")))?;
        let cut = Cut { slot: Slot(slot), digest, bytes, piece_bytes: limits::PIECE_BYTES };
        let content = fs::read(&path).map_err(|e| format!("{}: cannot be read: {e}", path.display()))?;
        if content.len() as u64 != bytes {
            return Err(wrong(format!("{} bytes long instead of {bytes}", content.len())));
        }
        let mut incoming = Incoming::new(cut, &topology, ShardId(shard)).map_err(&wrong)?;
        content.chunks(limits::PIECE_BYTES as usize).for_each(|piece| _ = incoming.push(piece));
        banks.push((ShardId(shard), incoming.finish(topology, ShardId(shard)).map_err(&wrong)?));
    }
    Ok((topology, banks))
}

fn write_servers(from: &Path, to: &Path, cluster_id: u128) -> Result<String, String> {
    let (topology, banks) = read_backup(from)?;
    let text = fill(to, |to| {
        for (shard, bank) in &banks {
            for server in topology.servers_of(*shard) {
                write_server(&server_dir(to, server), (cluster_id, topology, server), bank)?;
            }
        }
        // What these directories hold is what their servers will start from.
        let mut text = String::new();
        for (shard, bank) in &banks {
            for server in topology.servers_of(*shard) {
                let dir = server_dir(to, server);
                let digest = restored_digest(&dir, (cluster_id, topology, server))?;
                if digest != bank.digest() {
                    let digests = format!("{digest:016x} instead of {:016x}", bank.digest());
                    return Err(format!("{}: digest {digests}; check the disk", dir.display()));
                }
            }
            let servers: Vec<String> = topology.servers_of(*shard).map(|s| s.to_string()).collect();
            let (slot, digest) = (bank.applied(), bank.digest());
            text += &format!("{shard}: slot {slot}, digest {digest:016x}, equal at {}\n", servers.join(", "));
        }
        Ok(text)
    })?;
    Ok(format!("{text}cluster id {cluster_id:032x}\n"))
}

fn write_server(
    dir: &Path,
    (cluster_id, topology, server): (u128, Topology, NodeId),
    bank: &Bank,
) -> Result<(), String> {
    let named = |what: String| format!("{}/{what}", dir.display());
    // S3: a disk that was let in later is the one that counts.
    let incarnation = bank.members().get(&server).map_or_else(rand::random, |known| known.incarnation.0);
    let identity = Identity { cluster_id, topology, server, incarnation, founder: true };
    let disk = FileDisk::open(dir).map_err(|e| e.to_string())?;
    let mut wal = Wal::format(disk, identity, limits::SEGMENT_BYTES).map_err(|e| named(e.to_string()))?;
    let image = bank.image(limits::PIECE_BYTES);
    let cut = image.cut();
    if cut.slot == Slot::ZERO {
        return Ok(());
    }
    let checked = Checked::new(image, &topology, topology.shard_of_server(server));
    wal.begin_snapshot(Box::new(checked), true).map_err(|e| named(e.to_string()))?;
    while wal.has_work() {
        wal.prepare_ahead().map_err(|e| named(e.to_string()))?;
    }
    if wal.snapshot() != Some(cut) {
        return Err(named("no space is left for the state; free some and begin again".into()));
    }
    Ok(())
}

fn restored_digest(
    dir: &Path,
    (cluster_id, topology, server): (u128, Topology, NodeId),
) -> Result<u64, String> {
    let named = |what: String| format!("{}/{what}", dir.display());
    let disk = FileDisk::open(dir).map_err(|e| e.to_string())?;
    let expected = Expected { cluster_id: Some(cluster_id), topology, server };
    let (mut wal, recovered) = Wal::open(disk, expected).map_err(|e| named(e.to_string()))?;
    let usual = (Timeouts::default(), Limits::default());
    let shard = drive::restore(server, topology, usual, Time::default(), 0, &mut wal, recovered)
        .map_err(|e| named(e.to_string()))?;
    Ok(shard.bank().digest())
}
