//! Looks into data directories, of servers that run or not: `bank wal verify`, `bank wal dump`, `bank log`.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::audit::{self, Listing, Replay};
use crate::bank::Committed;
use crate::bank::command::{self, Command};
use crate::config::{Limits, Timeouts, Topology};
use crate::drive;
use crate::report::Scope;
use crate::runtime::session::Exit;
use crate::storage::{
    Audit, Expected, FileDisk, Identity, Overlay, Seen, StorageError, Survey, Wal, holds_log, survey,
};
use crate::types::Time;

/// What `bank wal` and `bank log` are asked to do.
pub enum Look {
    Verify,
    /// The records of these slots (all if `None`), as JSON lines or as text.
    Dump {
        slots: Option<(u64, u64)>,
        json: bool,
    },
    Log {
        json: bool,
    },
}

/// Looks into a server's directory, or into all servers' directories in it, and prints to standard output.
pub fn command(dir: &Path, look: &Look) -> Exit {
    let dirs = match servers(dir, holds_log) {
        Ok(dirs) => dirs,
        Err(what) => {
            eprintln!("{what}");
            return Exit::Usage;
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut exit = Exit::Success;
    for dir in &dirs {
        let disk = FileDisk::look(dir);
        let place = dir.display().to_string();
        let done = match look {
            Look::Verify => verify(&disk, &place, &mut out),
            Look::Dump { slots, json } => dump(&disk, &place, *slots, *json, &mut out),
            Look::Log { json } => log(&disk, &place, *json, &mut out),
        };
        match done.and_then(|sound| out.flush().map(|()| sound).map_err(Problem::from)) {
            Ok(true) => {}
            Ok(false) => exit = Exit::Failure,
            // Whoever reads this has seen enough.
            Err(Problem::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => return exit,
            Err(Problem::Output(e)) => {
                eprintln!("standard output: {e}");
                return Exit::Failure;
            }
            Err(Problem::Storage(e)) => {
                eprintln!("{place}/{}", e.what());
                exit = Exit::Failure;
            }
        }
    }
    exit
}

enum Problem {
    Output(io::Error),
    Storage(StorageError),
}

impl From<io::Error> for Problem {
    fn from(e: io::Error) -> Problem {
        Problem::Output(e)
    }
}

impl From<StorageError> for Problem {
    fn from(e: StorageError) -> Problem {
        Problem::Storage(e)
    }
}

/// The directory itself if a server's, else those of servers in it, in order of their names.
pub(super) fn servers(
    dir: &Path,
    is_one: impl Fn(&FileDisk) -> io::Result<bool>,
) -> Result<Vec<PathBuf>, String> {
    let is_one = |dir: &Path| is_one(&FileDisk::look(dir)).unwrap_or(false);
    if is_one(dir) {
        return Ok(vec![dir.to_path_buf()]);
    }
    let entries = std::fs::read_dir(dir).map_err(|e| format!("{}: cannot be read: {e}", dir.display()))?;
    let mut dirs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|p| is_one(p)).collect();
    dirs.sort_by_key(|dir| (dir.as_os_str().len(), dir.clone()));
    if dirs.is_empty() {
        return Err(format!("{}: neither a server's data directory nor one that holds some", dir.display()));
    }
    Ok(dirs)
}

fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Prints every fault; whether there is none.
fn verify(disk: &FileDisk, place: &str, out: &mut impl Write) -> Result<bool, Problem> {
    let mut survey = survey(disk, |_| {})?;
    if let Some(identity) = survey.identity {
        for cut in &survey.snapshots {
            survey.faults.extend(audit::check_snapshot(disk, &identity, *cut).err().map(Into::into));
        }
        // The history is read only where there is no doubt about what it stands on.
        if survey.faults.is_empty() && survey.torn.is_none() {
            survey.faults.extend(check_history(disk).err().map(Into::into));
        }
    }
    let Survey { segments, records, groups, bytes, snapshots, torn, faults, .. } = survey;
    for fault in &faults {
        writeln!(out, "{place}/{fault}")?;
    }
    if let Some(torn) = torn {
        writeln!(out, "{place}/{torn} (a write that was interrupted; the next start cuts it off)")?;
    }
    let slots: Vec<String> = snapshots.iter().map(|cut| cut.slot.to_string()).collect();
    let snapshots = match &slots[..] {
        [] => "no snapshot".to_string(),
        [slot] => format!("a snapshot of slot {slot}"),
        _ => format!("snapshots of slots {}", slots.join(", ")),
    };
    let (segments, records, groups) =
        (count(segments.into(), "segment"), count(records, "record"), count(groups, "group"));
    let verdict = match faults.len() as u64 {
        0 => "sound".to_string(),
        n => count(n, "fault"),
    };
    writeln!(out, "{place}: {segments} with {records} in {groups}, {bytes} bytes; {snapshots}: {verdict}")?;
    Ok(faults.is_empty())
}

fn check_history(disk: &FileDisk) -> Result<(), StorageError> {
    let (mut audit, _) = Audit::open(disk)?;
    while let Some(entries) = audit.advance(disk)? {
        Listing::default().extend(entries)?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Record<'a> {
    file: u32,
    offset: u64,
    kind: &'a str,
    group: u64,
    last: bool,
    slot: u64,
    ballot: String,
    promised: String,
    decided: Option<u64>,
    bytes: usize,
    blocks: Vec<String>,
}

fn dump(
    disk: &FileDisk,
    place: &str,
    slots: Option<(u64, u64)>,
    json: bool,
    out: &mut impl Write,
) -> Result<bool, Problem> {
    let mut failed = None;
    let survey = survey(disk, |seen| {
        let wanted = slots.is_none_or(|(from, to)| (from..=to).contains(&seen.slot.0));
        if wanted && failed.is_none() {
            failed = print(&seen, json, out).err();
        }
    })?;
    if let Some(e) = failed {
        return Err(e.into());
    }
    // After what is whole, so that a list of records stays one.
    out.flush()?;
    survey.faults.iter().chain(&survey.torn).for_each(|fault| eprintln!("{place}/{fault}"));
    Ok(survey.faults.is_empty())
}

fn print(seen: &Seen<'_>, json: bool, out: &mut impl Write) -> io::Result<()> {
    let value = matches!(seen.kind, "accept" | "learn");
    let blocks: Vec<String> = if value { blocks(seen.payload) } else { Vec::new() };
    let record = Record {
        file: seen.segment,
        offset: seen.offset,
        kind: seen.kind,
        group: seen.group,
        last: seen.last,
        slot: seen.slot.0,
        ballot: seen.ballot.to_string(),
        promised: seen.promised.to_string(),
        decided: seen.decided.map(|slot| slot.0),
        bytes: seen.payload.len(),
        blocks,
    };
    if json {
        serde_json::to_writer(&mut *out, &record)?;
        return writeln!(out);
    }
    write!(out, "{}:{} group {} {}", seen.segment, seen.offset, seen.group, seen.kind)?;
    match seen.kind {
        "promise" => write!(out, " {}", seen.ballot)?,
        "history" => write!(out, " slots {} to {}", seen.ballot.round, seen.slot)?,
        "accept" | "learn" => write!(out, " slot {} ballot {}", seen.slot, seen.ballot)?,
        "decided" => write!(out, " slot {}", seen.slot)?,
        _ => {}
    }
    if !seen.payload.is_empty() {
        write!(out, " {}", count(seen.payload.len() as u64, "byte"))?;
    }
    for block in &record.blocks {
        write!(out, "; {block}")?;
    }
    writeln!(out)
}

fn blocks(value: &[u8]) -> Vec<String> {
    let range = |r: command::Range| match r.count {
        1 => format!("{}:{}", r.session, r.first),
        _ => format!("{}:{} to {}", r.session, r.first, r.first + u64::from(r.count) - 1),
    };
    let text = |block| match block {
        Ok(Command::Open { named: false }) => "open".into(),
        Ok(Command::Open { named: true }) => "open for names".into(),
        Ok(Command::Touch { session }) => format!("touch {session}"),
        Ok(Command::Mark { session, mark }) => format!("mark {session}:{mark}"),
        Ok(Command::Transfers { range: r, .. }) => format!("transfers {}", range(r)),
        Ok(Command::Prepare { range: r, participants: [a, b], .. }) => {
            format!("prepare {} for {a} {b}", range(r))
        }
        Ok(Command::Outcome { range: r, .. }) => format!("outcome {}", range(r)),
        Ok(Command::Fence { range: r, .. }) => format!("fence {}", range(r)),
        Ok(Command::Close { session }) => format!("close {session}"),
        Ok(Command::Expire { session, .. }) => format!("expire {session}"),
        Ok(Command::Rejoin { server, incarnation, ballot }) => {
            format!("rejoin {server} with disk {:032x} in ballot {ballot}", incarnation.0)
        }
        Err(what) => format!("malformed: {what}"),
    };
    command::blocks(value).map(text).collect()
}

#[derive(Serialize)]
struct Line {
    slot: u64,
    id: String,
    from: u64,
    to: u64,
    amount: i64,
    scope: String,
}

#[derive(Serialize)]
struct Missing {
    missing_from: u64,
    missing_to: u64,
}

/// Streams the committed transactions of one server: what it would list if it were started.
fn log(disk: &FileDisk, place: &str, json: bool, out: &mut impl Write) -> Result<bool, Problem> {
    let (mut audit, identity) = Audit::open(disk)?;
    let Identity { cluster_id, topology, server, .. } = identity;
    let expected = Expected { cluster_id: Some(cluster_id), topology, server };
    let started = Wal::open(Overlay::new(disk.clone()), expected).and_then(|(mut wal, recovered)| {
        recovered.damaged.iter().for_each(|damaged| eprintln!("{place}/{damaged}"));
        if let Some(loss) = recovered.loss.as_ref().filter(|loss| loss.known > recovered.decided) {
            let (last, known) = (recovered.decided, loss.known);
            eprintln!("{place}: the list ends with slot {last}; what follows up to slot {known} needs the other servers");
        }
        let usual = (Timeouts::default(), Limits::default());
        let shard = drive::restore(server, topology, usual, Time::default(), 0, &mut wal, recovered)?;
        Ok((wal, shard))
    });
    match started {
        Ok((wal, shard)) => {
            let mut replay = Replay::new(&wal, shard.bank().applied());
            loop {
                let (part, last) = replay.advance(&wal, &shard)?;
                list(&part, &topology, json, out)?;
                if last {
                    return Ok(true);
                }
            }
        }
        // It cannot be started from; what the log says of itself can be told all the same.
        Err(e) => {
            while let Ok(Some(entries)) = audit.advance(disk) {
                let mut part = Listing::default();
                part.extend(entries)?;
                list(&part, &topology, json, out)?;
            }
            out.flush()?;
            eprintln!("{place}: the list ends with slot {}, for:", audit.covered());
            Err(e.into())
        }
    }
}

fn list(part: &Listing, topology: &Topology, json: bool, out: &mut impl Write) -> io::Result<()> {
    for (from, to) in &part.gaps {
        if json {
            let missing = Missing { missing_from: from.0, missing_to: to.0 };
            serde_json::to_writer(&mut *out, &missing)?;
            writeln!(out)?;
        } else {
            writeln!(out, "slots {from} to {to} are not in this log any more")?;
        }
    }
    for Committed { slot, id, transfer: t } in &part.committed {
        let scope = Scope::of(t, topology).map(|scope| scope.to_string()).unwrap_or_default();
        if json {
            let (slot, id, from, to) = (slot.0, id.to_string(), t.from.0, t.to.0);
            serde_json::to_writer(&mut *out, &Line { slot, id, from, to, amount: t.amount, scope })?;
            writeln!(out)?;
        } else {
            writeln!(out, "slot {slot}  {id}  {t}  {scope}")?;
        }
    }
    Ok(())
}
