//! What looks at a directory without changing it: verification, and the list of what was decided.

use super::damage::older_mark;
use super::*;
use shardpaxosbank::storage::{Audit, Entry, holds_log, survey};

fn history(from: u64, to: u64, more: u16, bytes: &[u8]) -> Record {
    Record::History { from: Slot(from), to: Slot(to), more, bytes: Value::from_slice(bytes) }
}

/// Verification and recovery come to the same verdict, whatever byte is wrong and wherever a file ends.
#[test]
fn verification_finds_what_recovery_refuses() {
    let disk = MemDisk::new();
    sample(&disk);
    let clean = survey(&disk, |_| {}).expect("a formatted directory");
    assert_eq!((clean.faults.len(), clean.torn, clean.groups, clean.segments), (0, None, 5, 3));
    let (mut refused, mut healed, mut torn, mut unharmed) = (0, 0, 0, 0);
    let mut judge = |disk: MemDisk, what: &str| {
        let found = survey(&disk, |_| {}).expect("a formatted directory");
        match Wal::open(disk, expected()) {
            Err(e) => {
                refused += 1;
                assert!(!found.faults.is_empty(), "{what}: {e}");
                if let StorageError::Damaged { file, offset, .. } = e {
                    let same = found.faults.iter().any(|fault| fault.file == file);
                    assert!(same, "{what}: {file} {offset:?}, found {:?}", found.faults);
                }
            }
            Ok((_, recovered)) if !recovered.damaged.is_empty() => {
                healed += 1;
                let text = &recovered.damaged[0];
                let same =
                    found.faults.iter().any(|fault| text.starts_with(&fault.file) || fault.file == "mark");
                assert!(same, "{what}: {text}, found {:?}", found.faults);
            }
            Ok((_, recovered)) => {
                assert!(found.faults.is_empty(), "{what}: {:?}", found.faults);
                assert_eq!(recovered.torn.is_some(), found.torn.is_some(), "{what}: {:?}", found.torn);
                if recovered.torn.is_some() { torn += 1 } else { unharmed += 1 }
            }
        }
    };
    for mark_is_older in [false, true] {
        for name in log_files(&disk).into_iter().chain(["mark".to_string()]) {
            let bytes = disk.contents(&name).expect("file");
            for at in 0..bytes.len() {
                let copy = disk.copy();
                if mark_is_older {
                    older_mark(&copy, 5);
                }
                let mut flipped = copy.contents(&name).expect("file");
                flipped[at] ^= 0x10;
                copy.overwrite(&name, flipped);
                judge(copy, &format!("{name} at {at}"));
            }
            for len in (0..bytes.len()).step_by(7) {
                let copy = disk.copy();
                copy.overwrite(&name, bytes[..len].to_vec());
                judge(copy, &format!("{name} cut to {len}"));
            }
        }
    }
    let counts = [refused, healed, torn];
    assert!(counts.iter().all(|n| *n > 100), "{counts:?}");
    assert_eq!(unharmed, 0, "every byte is looked at");
}

/// Files of segments that came back, or went: verification looks where a start would.
#[test]
fn verification_looks_at_the_segments_that_a_start_would_take() {
    let disk = MemDisk::new();
    drop(crate::snapshots::sample_with_snapshots(&disk, 0));
    let judge = |disk: &MemDisk| {
        let faults = survey(disk, |_| {}).expect("formatted").faults;
        assert_eq!(open(disk.copy()).1.damaged.is_empty(), faults.is_empty(), "{faults:?}");
        faults
    };
    assert_eq!(judge(&disk), []);
    let files = log_files(&disk);
    let copy = disk.copy();
    copy.overwrite("wal-00000001.seg", disk.contents(&files[0]).expect("a segment"));
    assert_eq!(judge(&copy), []);
    for name in &files[..files.len() - 1] {
        disk.remove(name).expect("it is there");
        judge(&disk);
    }
    assert!(judge(&disk).iter().any(|fault| fault.what.contains("newest snapshot")));
}

/// It used to say nothing of such a directory, or nothing of what else is in it.
#[test]
fn verification_reads_the_log_of_a_directory_that_lost_its_identity() {
    let disk = MemDisk::new();
    sample(&disk);
    let clean = survey(&disk, |_| {}).expect("formatted");
    assert!(holds_log(&disk).expect("list"));
    let (segment, offset) = ("wal-00000002.seg", 4096 + 20);
    let mut bytes = disk.contents(segment).expect("a segment");
    bytes[offset] ^= 1;
    disk.overwrite(segment, bytes);
    let identity = disk.contents("identity").expect("a file");
    let mut flipped = identity.clone();
    flipped[20] ^= 1;
    for (what, left) in [
        ("missing, but there is a log", None),
        ("bad checksum of the file header", Some(flipped)),
        ("file is too short", Some(identity[..9].to_vec())),
    ] {
        let copy = disk.copy();
        match left {
            Some(left) => copy.overwrite("identity", left),
            None => copy.remove("identity").expect("remove"),
        }
        assert!(holds_log(&copy).expect("list"));
        let found = survey(&copy, |_| {}).expect("a log");
        let named = |file: &str| found.faults.iter().any(|fault| fault.file == file);
        assert!(named("identity") && named(segment), "{:?}", found.faults);
        assert!(found.faults.iter().any(|fault| fault.what == what), "{:?}", found.faults);
        assert_eq!((found.segments, found.identity), (clean.segments, clean.identity));
        // Without a segment that says whose it is there is nothing to read.
        log_files(&copy).iter().for_each(|name| copy.remove(name).expect("remove"));
        let found = survey(&copy, |_| {}).expect("a mark is left");
        assert_eq!((found.faults.len(), found.identity), (1, None));
    }
    let empty = MemDisk::new();
    assert!(!holds_log(&empty).expect("list"));
    assert!(matches!(survey(&empty, |_| {}), Err(StorageError::NotFormatted)));
    // Formatting that was interrupted is none either.
    empty.overwrite("identity.new", Vec::new());
    empty.overwrite(segment, Vec::new());
    assert!(!holds_log(&empty).expect("list"));
    assert!(matches!(survey(&empty, |_| {}), Err(StorageError::NotFormatted)));
}

#[test]
fn verification_names_every_damaged_piece_of_a_snapshot() {
    let disk = MemDisk::new();
    drop(crate::snapshots::sample_with_snapshots(&disk, 0));
    let name = disk.list().expect("list").into_iter().filter(|name| name.starts_with("snapshot-")).max();
    let name = name.expect("a snapshot");
    let mut bytes = disk.contents(&name).expect("a file");
    let places: Vec<u64> = survey(&disk, |_| {})
        .expect("formatted")
        .snapshots
        .last()
        .map(|cut| (0..cut.pieces()).map(|n| 4096 + n * (8 + u64::from(cut.piece_bytes))).collect())
        .expect("a snapshot");
    assert!(places.len() > 1, "{places:?}");
    for at in &places {
        bytes[*at as usize + 8] ^= 1;
    }
    disk.overwrite(&name, bytes);
    let found = survey(&disk, |_| {}).expect("formatted");
    let named: Vec<u64> = found.faults.iter().filter(|f| f.file == name).filter_map(|f| f.offset).collect();
    assert_eq!(named, places);
}

/// Several faults are all named, and every whole record behind them is shown.
#[test]
fn verification_goes_on_behind_a_fault() {
    let disk = MemDisk::new();
    sample(&disk);
    let mut places = Vec::new();
    survey(&disk, |seen| places.push((seen.segment, seen.offset, seen.payload.len()))).expect("formatted");
    let damaged = [places[1], places[places.len() - 3]];
    for (segment, offset, _) in damaged {
        let name = format!("wal-{segment:08}.seg");
        let mut bytes = disk.contents(&name).expect("segment");
        bytes[offset as usize + 57] ^= 1;
        disk.overwrite(&name, bytes);
    }
    let mut left = Vec::new();
    let found =
        survey(&disk, |seen| left.push((seen.segment, seen.offset, seen.payload.len()))).expect("formatted");
    let named: Vec<_> = found.faults.iter().map(|fault| (fault.file.clone(), fault.offset)).collect();
    for (segment, offset, _) in damaged {
        assert!(named.contains(&(format!("wal-{segment:08}.seg"), Some(offset))), "{named:?}");
    }
    places.retain(|place| !damaged.contains(place));
    assert_eq!(left, places);
}

/// The list names decided values with their history, in parts too, and the slots of which nothing is left.
#[test]
fn an_audit_gives_back_what_was_noted_and_says_what_is_missing() {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    commit(&mut wal, &[accept(1, 1, 1, 5), accept(2, 1, 2, 5)]);
    commit(&mut wal, &[accept(2, 2, 9, 5), history(1, 2, 0, b"ab")]);
    commit(
        &mut wal,
        &[accept(3, 2, 3, 5), accept(4, 2, 4, 5), history(3, 3, 1, b"c"), history(3, 3, 0, b"d")],
    );
    let said = |entries: Vec<Entry>| -> Vec<(u64, Vec<Value>, Vec<u8>)> {
        let run = |entry| match entry {
            Entry::History { from, values, bytes } => (from.0, values, bytes),
            Entry::Gap { from, to } => panic!("a gap from {from} to {to}"),
        };
        entries.into_iter().map(run).collect()
    };
    let mut audit = wal.audit();
    let entries = wal.audit_on(&mut audit).expect("sound").expect("something");
    let first = (1, vec![value(1, 5), value(9, 5)], b"ab".to_vec());
    assert_eq!(said(entries), [first, (3, vec![value(3, 5)], b"cd".to_vec())]);
    assert_eq!((wal.audit_on(&mut audit).expect("sound"), audit.covered()), (None, Slot(3)));
    // It goes on where it stopped.
    commit(&mut wal, &[history(4, 4, 0, b"e"), accept(5, 2, 5, 900), accept(6, 2, 6, 900)]);
    commit(&mut wal, &[accept(7, 2, 7, 5), history(6, 7, 0, b"f")]);
    let mut entries = Vec::new();
    while let Some(more) = wal.audit_on(&mut audit).expect("sound") {
        entries.extend(more);
    }
    let gap = Entry::Gap { from: Slot(5), to: Slot(5) };
    assert!(
        matches!(&entries[..], [Entry::History { .. }, g, Entry::History { .. }] if *g == gap),
        "{entries:?}"
    );
    // What a restart knows of it: the history of 6 and 7 stands behind a gap.
    drop(wal);
    let (wal, recovered) = open(disk.clone());
    assert_eq!((recovered.noted, recovered.decided), (Slot(4), Slot(7)));
    drop(wal);
    // Without the first segment the list begins later.
    disk.remove("wal-00000001.seg").expect("remove");
    let (mut audit, _) = Audit::open(&disk).expect("a directory");
    let mut entries = Vec::new();
    while let Some(more) = audit.advance(&disk).expect("sound") {
        entries.extend(more);
    }
    assert!(matches!(entries.first(), Some(Entry::Gap { from: Slot(1), .. })), "{entries:?}");
    assert_eq!(audit.covered(), Slot(7));
    // A file that was cut is damage with a place, and not the end of the log.
    let last = log_files(&disk).pop().expect("a segment");
    let mut bytes = disk.contents(&last).expect("a segment");
    bytes.truncate(4096);
    disk.overwrite(&last, bytes);
    let (mut audit, _) = Audit::open(&disk).expect("a directory");
    let text = loop {
        match audit.advance(&disk) {
            Ok(more) => assert!(more.is_some(), "{last} was cut"),
            Err(e) => break e.to_string(),
        }
    };
    assert!(
        text.starts_with(&format!("{last} at offset 4096: damaged (S2): 4096 bytes long instead")),
        "{text}"
    );
}

/// S2: a server lists what stands behind damage, and nothing that the damage may have changed.
#[test]
fn an_audit_goes_on_behind_damage() {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    // Slot 2 was voted on again; each pair of slots has its history behind it.
    commit(&mut wal, &[accept(1, 1, 1, 5), accept(2, 1, 2, 5)]);
    commit(&mut wal, &[accept(2, 2, 9, 5), history(1, 2, 0, b"ab")]);
    commit(&mut wal, &[accept(3, 2, 3, 5), accept(4, 2, 4, 5)]);
    commit(&mut wal, &[history(3, 4, 0, b"cd")]);
    drop(wal);
    let entries = |disk: &MemDisk| {
        let (wal, recovered) = open(disk.copy());
        let mut audit = wal.audit();
        let mut entries = Vec::new();
        while let Some(more) = wal.audit_on(&mut audit).expect("it goes on") {
            entries.extend(more);
        }
        (entries, recovered.damaged.is_empty())
    };
    let (whole, sound) = entries(&disk);
    assert!(sound && whole.len() == 2, "{whole:?}");
    let name = "wal-00000001.seg";
    let bytes = disk.contents(name).expect("segment");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("records");
    let mut without = [0, 0];
    for at in 4096..=end {
        let copy = disk.copy();
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        copy.overwrite(name, bad);
        let (left, sound) = entries(&copy);
        assert!(!sound, "{at}");
        for entry in &left {
            assert!(whole.contains(entry) || matches!(entry, Entry::Gap { .. }), "{at}: {entry:?}");
        }
        (0..2).for_each(|n| without[n] += usize::from(!left.contains(&whole[n])));
    }
    assert!(
        without[0] > 150 && without[1] > 150 && without.iter().sum::<usize>() <= end - 4096 + 1,
        "{without:?}"
    );
}
