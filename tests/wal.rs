//! The log against everything that may happen to it: crashes, failures, damage (rules S1, S2).

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use shardpaxosbank::config::Topology;
use shardpaxosbank::storage::{
    Disk, DiskFile, Expected, FileDisk, Identity, Kept, MemDisk, Recovered, StorageError, Unsynced, Wal,
    is_formatted,
};
use shardpaxosbank::types::{Ballot, NodeId, Record, Slot, Value};

/// Small segments, so that a few records fill several.
const SEGMENT: u64 = 4096 + 1024;
const LIMIT: usize = usize::MAX;

fn identity() -> Identity {
    Identity { cluster_id: 7, topology: Topology::default(), server: NodeId(2), incarnation: 99 }
}

fn expected() -> Expected {
    Expected { cluster_id: Some(7), topology: Topology::default(), server: NodeId(2) }
}

fn ballot(round: u64) -> Ballot {
    Ballot { round, server: 1 }
}

fn value(byte: u8, len: usize) -> Value {
    Value::from_slice(&vec![byte; len])
}

fn accept(slot: u64, round: u64, byte: u8, len: usize) -> Record {
    Record::Accept { slot: Slot(slot), ballot: ballot(round), value: value(byte, len) }
}

fn learn(slot: u64, round: u64, byte: u8, len: usize) -> Record {
    Record::Learn { slot: Slot(slot), ballot: ballot(round), value: value(byte, len) }
}

fn format<D: Disk>(disk: D) -> Wal<D> {
    Wal::format(disk, identity(), SEGMENT).unwrap_or_else(|e| panic!("{e}"))
}

fn open<D: Disk>(disk: D) -> (Wal<D>, Recovered) {
    Wal::open(disk, expected()).unwrap_or_else(|e| panic!("{e}"))
}

fn refusal<D: Disk>(disk: D) -> String {
    match Wal::open(disk, expected()) {
        Ok(_) => panic!("opened what it had to refuse"),
        Err(e) => e.to_string(),
    }
}

fn commit<D: Disk>(wal: &mut Wal<D>, records: &[Record]) {
    records.iter().for_each(|record| wal.append(record));
    wal.commit().unwrap_or_else(|e| panic!("{e}"));
}

/// Everything a log has to say.
#[derive(Clone, PartialEq, Debug)]
struct Said {
    promised: Ballot,
    decided: Slot,
    values: Vec<(Slot, Ballot, Value)>,
}

fn said<D: Disk>(wal: &Wal<D>) -> Said {
    let values = wal.read(Slot(1), LIMIT).unwrap_or_else(|e| panic!("{e}"));
    Said { promised: wal.promised(), decided: wal.decided(), values }
}

/// Five groups over three segments; the fourth spans two of them. Returns what was said after each group, from 0 on.
fn sample(disk: &MemDisk) -> Vec<Said> {
    let mut wal = format(disk.clone());
    let mut after = vec![said(&wal)];
    for group in [
        vec![Record::Promise(ballot(1)), accept(1, 1, 1, 13)],
        vec![accept(2, 1, 2, 300)],
        vec![accept(2, 2, 3, 301), Record::Decided(Slot(1)), accept(3, 2, 4, 0)],
        vec![learn(2, 2, 3, 301), accept(3, 2, 5, 400), accept(4, 2, 6, 450)],
        vec![Record::Promise(ballot(5)), accept(4, 5, 7, 21)],
    ] {
        commit(&mut wal, &group);
        after.push(said(&wal));
    }
    after
}

fn log_files(disk: &MemDisk) -> Vec<String> {
    let names = disk.list().expect("list");
    names.into_iter().filter(|name| name.starts_with("wal-")).collect()
}

#[test]
fn what_was_written_comes_back_from_many_segments() {
    let disk = MemDisk::new();
    assert!(!is_formatted(&disk).expect("list"));
    let mut wal = format(disk.clone());
    assert!(is_formatted(&disk).expect("list"));
    let mut most_syncs = 0;
    for slot in 1..=100 {
        wal.append(&accept(slot, 3, slot as u8, slot as usize * 3));
        wal.set_decided(Slot(slot - 1));
        assert!(wal.pending());
        let stats = wal.commit().expect("commit");
        assert_eq!(stats.group, slot);
        most_syncs = most_syncs.max(stats.syncs);
        assert!(!wal.pending());
        if slot % 7 == 0 {
            drop(wal);
            disk.kill();
            wal = open(disk.clone()).0;
        }
    }
    assert_eq!(most_syncs, 2, "a boundary costs one more sync, nothing else does");
    assert!(log_files(&disk).len() > 10);
    let before = said(&wal);
    disk.crash(|_| Kept::Lost);
    let (wal, recovered) = open(disk);
    assert_eq!(recovered.promised, ballot(3));
    // Slot 100 carries what was decided when it was appended, which was said before its decided slot was set.
    assert_eq!(recovered.decided, Slot(98));
    assert_eq!(recovered.torn, None);
    let votes: Vec<u64> = recovered.votes.iter().map(|(slot, ..)| slot.0).collect();
    assert_eq!(votes, [99, 100]);
    assert_eq!(said(&wal).values, before.values);
    for slot in 1..=100 {
        let got = wal.read(Slot(slot), 0).expect("read");
        assert_eq!(got, [(Slot(slot), ballot(3), value(slot as u8, slot as usize * 3))]);
    }
    assert_eq!(wal.read(Slot(1), 3 + 6 + 9).expect("read").len(), 3);
    assert_eq!(wal.read(Slot(1), 3 + 6 + 8).expect("read").len(), 2);
    assert!(wal.read(Slot(101), LIMIT).expect("read").is_empty());
    assert!(wal.read(Slot(0), LIMIT).expect("read").is_empty());
}

#[test]
fn a_real_directory_works_and_is_locked() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("deep/S2");
    let disk = FileDisk::open(&path).expect("open");
    let refused = FileDisk::open(&path).expect_err("locked").to_string();
    assert!(refused.contains("deep/S2") && refused.contains("in use"), "{refused}");
    let mut wal = Wal::format(disk, identity(), 1 << 20).expect("format");
    let mut ahead = 0;
    for slot in 1..=100 {
        commit(&mut wal, &[accept(slot, 1, slot as u8, 20_000)]);
        ahead += u32::from(wal.prepare_ahead().expect("prepare"));
    }
    assert!(ahead >= 8, "segments are made in pieces");
    let before = said(&wal);
    drop(wal);
    let (wal, recovered) = open(FileDisk::open(&path).expect("open again"));
    assert_eq!(recovered.torn, None);
    assert_eq!(said(&wal), before);
    drop(wal);
    assert!(matches!(
        Wal::format(FileDisk::open(&path).expect("open"), identity(), SEGMENT),
        Err(StorageError::AlreadyFormatted { .. })
    ));
    let e = FileDisk::open(&path).and_then(|disk| disk.open("absent")).expect_err("absent");
    assert!(e.to_string().contains("deep/S2/absent"), "{e}");
}

#[test]
fn a_directory_of_somebody_else_is_refused_by_name() {
    let disk = MemDisk::new();
    drop(format(disk.clone()));
    let t = Topology::default();
    for (expected, words) in [
        (Expected { cluster_id: Some(8), ..expected() }, "cluster id 0000"),
        (
            Expected { server: NodeId(3), ..expected() },
            "server S2, but this server was started for server S3",
        ),
        (Expected { topology: Topology { clusters: 4, ..t }, ..expected() }, "clusters 3"),
        (
            Expected { topology: Topology { servers_per_cluster: 5, ..t }, ..expected() },
            "servers per cluster 3",
        ),
        (Expected { topology: Topology { accounts: 9, ..t }, ..expected() }, "accounts 3000"),
        (Expected { topology: Topology { initial_balance: 9, ..t }, ..expected() }, "initial balance 10"),
    ] {
        let text = Wal::open(disk.clone(), expected).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(
            text.contains(words) && text.starts_with("identity: ") && text.lines().count() == 1,
            "{text}"
        );
    }
    assert!(Wal::open(disk.clone(), Expected { cluster_id: None, ..expected() }).is_ok());

    let mut bytes = disk.contents("identity").expect("identity");
    bytes[8] = 2;
    disk.overwrite("identity", bytes);
    let text = refusal(disk);
    assert!(text.contains("format version 2"), "{text}");
    assert!(refusal(MemDisk::new()).contains("never formatted"));
}

#[test]
fn what_is_decided_comes_from_records_and_from_headers() {
    let recovered = |build: &dyn Fn(&mut Wal<MemDisk>)| {
        let disk = MemDisk::new();
        let mut wal = format(disk.clone());
        build(&mut wal);
        drop(wal);
        open(disk).1
    };
    let r = recovered(&|wal| {
        commit(wal, &[accept(1, 1, 1, 1), accept(2, 1, 2, 1), accept(3, 1, 3, 1), Record::Decided(Slot(2))])
    });
    assert_eq!((r.decided, r.votes), (Slot(2), vec![(Slot(3), ballot(1), value(3, 1))]));
    let r = recovered(&|wal| {
        commit(wal, &[accept(1, 1, 1, 1), accept(2, 1, 2, 1)]);
        wal.set_decided(Slot(2));
        commit(wal, &[accept(3, 1, 3, 1)]);
        // Said after the last record, so nothing carries it; and it is more than the log holds.
        wal.set_decided(Slot(9));
        assert_eq!(wal.decided(), Slot(3));
    });
    assert_eq!(r.decided, Slot(2));
    let r = recovered(&|wal| commit(wal, &[learn(1, 4, 1, 1), learn(2, 5, 2, 1), learn(4, 5, 4, 1)]));
    assert_eq!((r.decided, r.promised), (Slot(2), Ballot::ZERO), "learning is no promise, and a gap ends it");
    assert_eq!(r.votes, [(Slot(4), ballot(5), value(4, 1))]);
    let r = recovered(&|wal| {
        commit(wal, &[Record::Promise(ballot(9)), accept(1, 4, 1, 1), Record::Promise(ballot(3))])
    });
    assert_eq!(r.promised, ballot(9), "a promise never goes back");
}

#[test]
fn a_group_larger_than_a_segment_is_one_group() {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    commit(&mut wal, &[accept(1, 1, 1, 500)]);
    let before = said(&wal);
    (2..=12).for_each(|slot| wal.append(&accept(slot, 1, slot as u8, 500)));
    let stats = wal.commit().expect("commit");
    assert!(stats.syncs >= 6 && stats.group == 2);
    let whole = said(&wal);
    drop(wal);
    disk.kill();
    assert_eq!(said(&open(disk.copy()).0), whole);
    // Without one record of it, anywhere, the group is torn as a whole; with the mark behind it, it is damage.
    for name in log_files(&disk) {
        let copy = disk.copy();
        let mut bytes = copy.contents(&name).expect("segment");
        let at = if name == "wal-00000001.seg" { 4096 + 56 + 504 } else { 4096 };
        bytes[at..].fill(0);
        copy.overwrite(&name, bytes);
        assert!(refusal(copy.copy()).contains("damaged"));
        older_mark(&copy, 2);
        let (wal, recovered) = open(copy);
        assert!(recovered.torn.expect("torn").contains("cut group 2"));
        assert_eq!(said(&wal), before);
    }
}

/// Takes back the mark of the last group, `group`, as when only the log's own pages reached the disk.
fn older_mark(disk: &MemDisk, group: u64) {
    let mut mark = disk.contents("mark").expect("mark");
    let slot = (group % 2) as usize * 4096;
    mark[slot..slot + 64].fill(0);
    disk.overwrite("mark", mark);
}

#[test]
fn a_short_segment_is_damage_at_every_length() {
    let disk = MemDisk::new();
    sample(&disk);
    for name in log_files(&disk).into_iter().chain(["mark".to_string(), "identity".to_string()]) {
        let bytes = disk.contents(&name).expect("file");
        for len in (0..bytes.len()).rev() {
            let copy = disk.copy();
            copy.overwrite(&name, bytes[..len].to_vec());
            let text = refusal(copy);
            assert!(text.starts_with(&name) && text.contains("damaged (S2)"), "{text}");
        }
    }
}

#[test]
fn a_missing_file_is_damage() {
    let disk = MemDisk::new();
    sample(&disk);
    for name in disk.list().expect("list") {
        let copy = disk.copy();
        copy.remove(&name).expect("remove");
        let text = refusal(copy.copy());
        assert!(text.starts_with(&name) && text.contains("missing"), "{text}");
        assert!(matches!(Wal::format(copy, identity(), SEGMENT), Err(StorageError::AlreadyFormatted { .. })));
    }
}

/// S1 from both sides: whatever the last group lost, it is cut while no mark vouches for it, and missed when one does.
#[test]
fn a_tail_of_zeros_is_torn_above_the_mark_and_damage_below() {
    let disk = MemDisk::new();
    let after = sample(&disk);
    let files = log_files(&disk);
    let last = files.last().expect("a segment");
    let bytes = disk.contents(last).expect("segment");
    let (mut torn, mut refused, mut whole) = (0, 0, 0);
    for from in 4096..bytes.len() {
        let mut cut = bytes.clone();
        cut[from..].fill(0);
        let copy = disk.copy();
        copy.overwrite(last, cut.clone());
        let changed = cut != bytes;
        assert_eq!(Wal::open(copy.copy(), expected()).is_err(), changed, "from {from}");
        older_mark(&copy, 5);
        match Wal::open(copy.clone(), expected()) {
            Ok((mut wal, recovered)) => {
                let wanted = if changed { &after[4] } else { &after[5] };
                assert_eq!(&said(&wal), wanted, "from {from}");
                match recovered.torn {
                    Some(_) => torn += 1,
                    None => whole += 1,
                }
                // Its number is given out again; what was cut must not come back.
                commit(&mut wal, &[accept(5, 6, 9, 9)]);
                let now = said(&wal);
                drop(wal);
                copy.crash(|_| Kept::Lost);
                assert_eq!(said(&open(copy).0), now);
            }
            Err(e) => {
                assert!(e.to_string().contains("group 4"), "{e}");
                refused += 1;
            }
        }
    }
    assert!(torn > 100 && refused > 100 && whole > 10, "{torn} {refused} {whole}");
}

#[test]
fn a_flipped_byte_is_refused_or_changes_nothing() {
    let disk = MemDisk::new();
    let after = sample(&disk);
    let mut refused = 0;
    for name in disk.list().expect("list") {
        let bytes = disk.contents(&name).expect("file");
        for at in 0..bytes.len() {
            for flip in [0x01, 0xff] {
                let copy = disk.copy();
                let mut bad = bytes.clone();
                bad[at] ^= flip;
                copy.overwrite(&name, bad);
                match Wal::open(copy, expected()) {
                    Ok((wal, _)) => {
                        assert_eq!(said(&wal), after[5], "{name} at {at}");
                        assert!(name == "mark" || bytes[at] == 0, "{name} at {at} went unnoticed");
                    }
                    Err(e) => {
                        let text = e.to_string();
                        assert!(text.starts_with(&name), "{name} at {at}: {text}");
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(refused > 30_000, "{refused}");
}

/// Only the last group may be lost to rot, and only while the mark does not vouch for it: however old the mark is, the
/// records of later groups tell that a group was on disk.
#[test]
fn a_flipped_byte_under_an_older_mark_costs_no_group_but_the_last() {
    let first_mark = {
        let disk = MemDisk::new();
        drop(format(disk.clone()));
        disk.contents("mark").expect("mark")
    };
    for oldest in [false, true] {
        let disk = MemDisk::new();
        let after = sample(&disk);
        if oldest {
            disk.overwrite("mark", first_mark.clone());
        } else {
            older_mark(&disk, 5);
        }
        let (mut torn, mut refused) = (0, 0);
        for name in log_files(&disk) {
            let bytes = disk.contents(&name).expect("file");
            for at in 4096..bytes.len() {
                let copy = disk.copy();
                let mut bad = bytes.clone();
                bad[at] ^= 0x10;
                copy.overwrite(&name, bad);
                let Ok((wal, recovered)) = Wal::open(copy, expected()) else {
                    refused += 1;
                    continue;
                };
                let said = said(&wal);
                assert!(said == after[4] || said == after[5], "{name} at {at}");
                torn += usize::from(recovered.torn.is_some() && said == after[4]);
            }
        }
        assert!(torn >= 56 + 56 + 24 && refused > 1500, "{torn} {refused}");
    }
}

/// Whole records in the wrong place: their checksums are good, so only group, segment and mark give them away.
#[test]
fn records_out_of_place_are_not_taken_for_the_log() {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    commit(&mut wal, &[accept(1, 1, 1, 200)]);
    let before = said(&wal);
    let first = "wal-00000001.seg";
    let (start, end) = (4096, 4096 + 256);
    drop(wal);

    // The first group once more, behind itself.
    let copy = disk.copy();
    let mut bytes = copy.contents(first).expect("segment");
    bytes.copy_within(start..end, end);
    copy.overwrite(first, bytes);
    assert!(refusal(copy).contains("a record of group 1 follows"));

    // A second group that was meant for the next segment. Never confirmed, so it goes.
    let other = disk.copy();
    commit(&mut open(other.clone()).0, &[accept(2, 1, 2, 700)]);
    let moved = other.contents("wal-00000002.seg").expect("segment");
    let copy = disk.copy();
    let mut bytes = copy.contents(first).expect("segment");
    let room = bytes.len() - end;
    bytes[end..].copy_from_slice(&moved[start..start + room]);
    copy.overwrite(first, bytes);
    let (wal, recovered) = open(copy);
    assert!(recovered.torn.is_some_and(|text| text.contains("another segment")));
    assert_eq!(said(&wal), before);

    // A mark for the right group, of a log that went on otherwise.
    let copy = disk.copy();
    commit(&mut open(copy.clone()).0, &[accept(2, 1, 2, 80)]);
    copy.overwrite("mark", other.contents("mark").expect("mark"));
    let text = refusal(copy);
    assert!(text.starts_with("mark at offset 0") && text.contains("how group 2 ends"), "{text}");
}

/// A restart may answer for what it found above the mark, so from then on the mark must vouch for it.
#[test]
fn recovery_brings_the_mark_up_to_the_log() {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    commit(&mut wal, &[accept(1, 1, 1, 20)]);
    wal.append(&accept(2, 1, 2, 20));
    disk.fail_write(2);
    wal.commit().expect_err("the mark's write fails");
    drop(wal);
    disk.kill();
    assert_eq!(open(disk.clone()).0.last_slot(), Slot(2));
    disk.crash(|_| Kept::Lost);
    let mut bytes = disk.contents("wal-00000001.seg").expect("segment");
    bytes[4096 + 80..].fill(0);
    disk.overwrite("wal-00000001.seg", bytes);
    assert!(refusal(disk).contains("up to group 2"));
}

#[test]
fn a_read_notices_damage_that_came_later() {
    let disk = MemDisk::new();
    sample(&disk);
    let (wal, _) = open(disk.clone());
    let mut bytes = disk.contents("wal-00000001.seg").expect("segment");
    bytes[4096 + 56 + 56] ^= 1;
    disk.overwrite("wal-00000001.seg", bytes);
    let text = wal.read(Slot(1), LIMIT).expect_err("damaged").to_string();
    assert!(text.contains("wal-00000001.seg at offset 4152") && text.contains("slot 1"), "{text}");
}

/// Runs a small life of a server until the injected failure; returns what was said at each successful commit, and
/// whether there was a failure at all.
fn life(disk: &MemDisk, inject: impl Fn(&MemDisk)) -> (Vec<Said>, bool) {
    let mut wal = format(disk.clone());
    inject(disk);
    let mut confirmed = vec![said(&wal)];
    for slot in 1..=12 {
        wal.append(&accept(slot, 1, slot as u8, 180));
        wal.append(&Record::Decided(Slot(slot - 1)));
        let done = wal.commit().map(|_| ()).and_then(|()| {
            confirmed.push(said(&wal));
            wal.prepare_ahead().map(|_| ())
        });
        if let Err(e) = done {
            for again in [
                wal.commit().err().map(|e| e.to_string()),
                wal.prepare_ahead().err().map(|e| e.to_string()),
                wal.read(Slot(1), 1).err().map(|e| e.to_string()),
            ] {
                assert_eq!(again, Some(e.to_string()), "the log is poisoned");
            }
            return (confirmed, true);
        }
    }
    (confirmed, false)
}

#[test]
fn a_failed_write_or_sync_is_final_and_loses_nothing_confirmed() {
    for sync in [false, true] {
        let mut hits = 0;
        for n in 1.. {
            let disk = MemDisk::new();
            let (confirmed, hit) = life(&disk, |d| if sync { d.fail_sync(n) } else { d.fail_write(n) });
            if !hit {
                break;
            }
            hits += 1;
            for crash in 0..4 {
                let disk = disk.copy();
                match crash {
                    0 => disk.kill(),
                    1 => disk.crash(|_| Kept::Lost),
                    2 => disk.crash(|_| Kept::Whole),
                    _ => disk.crash(|_| Kept::Sectors(0x5555_5555_5555_5555)),
                }
                let (wal, _) = open(disk.clone());
                let kept = said(&wal);
                check_one_more_at_most(&kept, &confirmed);
                drop(wal);
                // What recovery found in the page cache after a failed sync is on disk now, not only visible.
                disk.crash(|_| Kept::Lost);
                assert_eq!(said(&open(disk).0), kept);
            }
        }
        assert!(hits > 20, "{hits} failures injected");
    }
}

fn check_one_more_at_most(kept: &Said, confirmed: &[Said]) {
    let last = confirmed.last().expect("at least the empty log");
    if kept != last {
        assert_eq!(kept.values.len(), last.values.len() + 1);
        assert_eq!(kept.values[..last.values.len()], last.values);
    }
}

#[test]
fn formatting_can_be_begun_again_after_any_crash() {
    let mut failures = 0;
    for sync in [false, true] {
        for n in 1.. {
            let disk = MemDisk::new();
            if sync {
                disk.fail_sync(n)
            } else {
                disk.fail_write(n)
            }
            if Wal::format(disk.clone(), identity(), SEGMENT).is_ok() {
                break;
            }
            failures += 1;
            for mask in [0, u64::MAX, 0x5555_5555_5555_5555, 0x3] {
                let disk = disk.copy();
                disk.crash(|what| match what {
                    Unsynced::Entry { name } if mask == 3 && name.contains("seg") => Kept::Lost,
                    _ if mask == 0 => Kept::Lost,
                    _ => Kept::Sectors(mask),
                });
                if is_formatted(&disk).expect("list") {
                    open(disk);
                } else {
                    assert!(refusal(disk.clone()).contains("never formatted"));
                    format(disk);
                }
            }
            // The process alone dies: the page cache shows what never became durable.
            disk.kill();
            if !is_formatted(&disk).expect("list") {
                drop(format(disk.clone()));
            }
            open(disk);
        }
    }
    assert!(failures >= 10, "{failures}");
}

#[test]
fn a_full_disk_is_not_the_end() {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    disk.set_capacity(Some(20 * 1024));
    let mut slot = 0;
    let e = loop {
        assert!(slot < 100, "the disk never fills");
        slot += 1;
        let room = wal.room();
        wal.append(&accept(slot, 1, 1, 300));
        match wal.commit() {
            Ok(_) => {}
            Err(e) => {
                assert!(room < 400, "there was room for {room} bytes");
                break e;
            }
        }
    };
    assert_eq!(e.kind(), std::io::ErrorKind::StorageFull);
    assert!(wal.pending());
    assert_eq!(wal.read(Slot(1), LIMIT).expect("reads go on").len() as u64, slot - 1);
    disk.set_capacity(None);
    assert_eq!(wal.commit().expect("space is back").group, slot);
    drop(wal);
    disk.crash(|_| Kept::Lost);
    assert_eq!(open(disk).0.last_slot(), Slot(slot));
}

#[test]
fn a_copied_mark_or_segment_of_another_life_is_refused() {
    let (disk, other) = (MemDisk::new(), MemDisk::new());
    sample(&disk);
    Wal::format(other.clone(), Identity { incarnation: 100, ..identity() }, SEGMENT).expect("format");
    for name in ["mark", "wal-00000001.seg"] {
        let copy = disk.copy();
        copy.overwrite(name, other.contents(name).expect("file"));
        assert!(refusal(copy).starts_with(name));
    }
}

#[test]
fn memory_files_report_their_length() {
    let disk = MemDisk::new();
    let mut file = disk.create("x").expect("create");
    assert!(file.is_empty().expect("len"));
    file.write_at(&[1, 2], 3).expect("write");
    assert_eq!(file.len().expect("len"), 5);
    assert!(file.read_at(&mut [0; 3], 3).is_err());
}

/// What the log must say, kept beside it: the reference for random histories.
#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    promised: Ballot,
    explicit: Slot,
    hinted: Slot,
    values: BTreeMap<Slot, (Ballot, Value)>,
}

impl Model {
    fn note(&mut self, record: &Record) {
        match record {
            Record::Promise(ballot) => self.promised = self.promised.max(*ballot),
            Record::Accept { slot, ballot, value } => {
                self.promised = self.promised.max(*ballot);
                self.values.insert(*slot, (*ballot, value.clone()));
            }
            Record::Learn { slot, ballot, value } => {
                self.values.insert(*slot, (*ballot, value.clone()));
                if *slot == self.decided().next() {
                    self.explicit = *slot;
                }
            }
            Record::Decided(slot) => self.explicit = self.explicit.max(*slot),
        }
    }

    fn decided(&self) -> Slot {
        self.explicit.max(self.hinted)
    }

    fn check(&self, wal: &Wal<MemDisk>, recovered: &Recovered) -> Result<(), TestCaseError> {
        prop_assert_eq!(recovered.promised, self.promised);
        prop_assert!(recovered.decided >= self.explicit && recovered.decided <= self.decided());
        let values: Vec<_> = self.values.iter().map(|(s, (b, v))| (*s, *b, v.clone())).collect();
        let read = wal.read(Slot(1), LIMIT).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(&read, &values);
        let votes: Vec<_> = values.into_iter().filter(|(s, ..)| *s > recovered.decided).collect();
        prop_assert_eq!(&recovered.votes, &votes);
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Promise(u64),
    /// How far back from the first free slot (as the ballot may be new), and the length.
    Accept(u64, u64, usize),
    Learn(usize),
    Decide(u64),
    Hint(u64),
    Commit,
    Prepare,
    /// Fails the n-th write or sync from here on, then takes the power away with these decisions.
    Crash {
        fail: Option<(bool, u64)>,
        keep: Vec<u64>,
        power: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (1u64..20).prop_map(Step::Promise),
        8 => (0u64..4, 1u64..20, 0usize..500).prop_map(|(back, round, len)| Step::Accept(back, round, len)),
        2 => (0usize..200).prop_map(Step::Learn),
        2 => (0u64..4).prop_map(Step::Decide),
        2 => (0u64..4).prop_map(Step::Hint),
        6 => Just(Step::Commit),
        2 => Just(Step::Prepare),
        1 => (
            proptest::option::of((any::<bool>(), 1u64..6)),
            proptest::collection::vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 1..12),
            any::<bool>(),
        )
            .prop_map(|(fail, keep, power)| Step::Crash { fail, keep, power }),
    ]
}

/// One server's history: the log, what it confirmed, and what it was given since.
struct History {
    disk: MemDisk,
    wal: Wal<MemDisk>,
    confirmed: Model,
    given: Model,
    byte: u8,
    failed: bool,
    crash: Option<(Vec<u64>, bool)>,
    hits: Hits,
}

/// What became of commits that failed: cut as torn, found whole, gone without a trace.
#[derive(Clone, Copy, Default, Debug)]
struct Hits {
    torn: u32,
    finished: u32,
    gone: u32,
}

impl History {
    fn append(&mut self, record: Record) {
        self.given.note(&record);
        self.wal.append(&record);
    }

    fn next(&mut self) -> (u64, u8) {
        self.byte = self.byte.wrapping_add(1);
        (self.given.values.len() as u64 + 1, self.byte)
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let (free, byte) = self.next();
        match step {
            Step::Promise(round) => self.append(Record::Promise(ballot(round))),
            Step::Accept(back, round, len) => {
                let slot = free.saturating_sub(back).max(self.given.decided().0 + 1).min(free);
                self.append(accept(slot, round, byte, len));
            }
            Step::Learn(len) => self.append(learn(self.given.decided().0 + 1, 1, byte, len)),
            Step::Decide(back) => self.append(Record::Decided(Slot((free - 1).saturating_sub(back)))),
            Step::Hint(back) => {
                let slot = Slot((free - 1).saturating_sub(back));
                self.wal.set_decided(slot);
                self.given.hinted = self.given.hinted.max(slot);
            }
            Step::Commit => match self.wal.commit() {
                Ok(_) => self.confirmed = self.given.clone(),
                Err(_) => self.failed = true,
            },
            Step::Prepare => self.failed |= self.wal.prepare_ahead().is_err(),
            Step::Crash { fail, keep, power } => {
                match fail {
                    Some((true, n)) => self.disk.fail_sync(n),
                    Some((false, n)) => self.disk.fail_write(n),
                    None => return self.restart(&keep, power),
                }
                self.crash = Some((keep, power));
            }
        }
        if self.failed {
            let (keep, power) = self.crash.take().unwrap_or((vec![0], true));
            self.restart(&keep, power)?;
        }
        Ok(())
    }

    fn restart(&mut self, keep: &[u64], power: bool) -> Result<(), TestCaseError> {
        if power {
            let mut decisions = keep.iter().cycle().copied();
            self.disk.crash(|_| match decisions.next().unwrap_or(0) {
                0 => Kept::Lost,
                u64::MAX => Kept::Whole,
                mask => Kept::Sectors(mask),
            });
        } else {
            self.disk.kill();
        }
        let opened = Wal::open(self.disk.clone(), expected());
        let (wal, recovered) = opened.map_err(|e| TestCaseError::fail(e.to_string()))?;
        // All that was confirmed; of what was not, all or nothing, and only if a commit was begun.
        let changed = self.failed && self.given.values != self.confirmed.values;
        if self.failed && self.given.check(&wal, &recovered).is_ok() {
            self.hits.finished += u32::from(changed);
            self.confirmed = self.given.clone();
        } else {
            self.confirmed.check(&wal, &recovered)?;
            match recovered.torn {
                Some(_) => self.hits.torn += 1,
                None => self.hits.gone += u32::from(changed),
            }
        }
        // A hint that no header carried is forgotten; what came back counts from here on.
        self.confirmed.hinted = Slot::ZERO;
        self.confirmed.explicit = recovered.decided;
        self.given = self.confirmed.clone();
        self.wal = wal;
        self.failed = false;
        self.crash = None;
        Ok(())
    }
}

#[test]
fn random_histories_with_crashes_lose_nothing_confirmed() {
    let config = ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() };
    let hits = Cell::new(Hits::default());
    let steps = proptest::collection::vec(step(), 1..120);
    let result = TestRunner::new(config).run(&steps, |steps| {
        let disk = MemDisk::new();
        let wal = format(disk.clone());
        let (confirmed, given) = (Model::default(), Model::default());
        let mut history =
            History { disk, wal, confirmed, given, byte: 0, failed: false, crash: None, hits: hits.get() };
        for step in steps {
            history.step(step)?;
        }
        history.restart(&[0], true)?;
        hits.set(history.hits);
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    // A fault that never struck counts as untested.
    let Hits { torn, finished, gone } = hits.get();
    assert!(torn > 20 && finished > 20 && gone > 20, "{:?}", hits.get());
}
