//! The log against everything that may happen to it: crashes, failures, damage (rules S1, S2).

mod damage;
mod edges;
mod history;
mod honest;
mod power_and_damage;
mod snapshots;
mod survey;

use shardpaxosbank::config::Topology;
use shardpaxosbank::storage::{
    Disk, DiskFile, Expected, FileDisk, Identity, Kept, MemDisk, Recovered, StorageError, Unsynced, Wal,
    is_formatted,
};
use shardpaxosbank::types::{Ballot, NodeId, Record, Slot, Value, Vote};

use honest::{Truth, check_honest};

/// Small segments, so that a few records fill several.
const SEGMENT: u64 = 4096 + 1024;
const LIMIT: usize = usize::MAX;

fn identity() -> Identity {
    Identity {
        cluster_id: 7,
        topology: Topology::default(),
        server: NodeId(2),
        incarnation: 99,
        founder: true,
    }
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
    bytes[8] = 9;
    disk.overwrite("identity", bytes);
    let text = refusal(disk);
    assert!(text.contains("format version 9"), "{text}");
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
    let truth = Truth::of(&disk);
    // Without one record of it, anywhere, the group is torn as a whole; with the mark behind it, it is damage.
    for name in log_files(&disk) {
        let copy = disk.copy();
        let mut bytes = copy.contents(&name).expect("segment");
        let at = if name == "wal-00000001.seg" { 4096 + 56 + 504 } else { 4096 };
        bytes[at..].fill(0);
        copy.overwrite(&name, bytes);
        assert_ne!(check_honest(&copy, &truth), [""; 0]);
        damage::older_mark(&copy, 2);
        let (wal, recovered) = open(copy);
        assert!(recovered.torn.expect("torn").contains("cut group 2"));
        assert_eq!(said(&wal), before);
    }
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

/// A torn group is cut, the process dies in the middle of that, and its successor finds zeros in the page cache that never
/// reached the disk. It wrote a short group on top, and behind that the torn one was back after a power cut.
#[test]
fn a_cut_that_was_not_synced_is_repeated() {
    let mut failures = 0;
    for sync in [false, true] {
        for n in 1.. {
            let disk = MemDisk::new();
            let mut wal = format(disk.clone());
            commit(&mut wal, &[Record::Promise(ballot(1))]);
            (1..=3).for_each(|slot| wal.append(&accept(slot, 1, 7, 200)));
            disk.fail_sync(1);
            assert!(wal.commit().is_err());
            disk.crash(|_| Kept::Sectors(!1));

            if sync {
                disk.fail_sync(n)
            } else {
                disk.fail_write(n)
            }
            let interrupted = Wal::open(disk.clone(), expected()).is_err();
            disk.kill();
            let (mut wal, _) = open(disk.clone());
            commit(&mut wal, &[accept(1, 2, 8, 8)]);
            disk.crash(|_| Kept::Lost);
            let (wal, recovered) = open(disk);
            assert_eq!((said(&wal).values.len(), recovered.torn), (1, None));
            if !interrupted {
                break;
            }
            failures += 1;
        }
    }
    assert!(failures > 4, "recovery was interrupted {failures} times");
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
fn memory_files_report_their_length() {
    let disk = MemDisk::new();
    let mut file = disk.create("x").expect("create");
    assert!(file.is_empty().expect("len"));
    file.write_at(&[1, 2], 3).expect("write");
    assert_eq!(file.len().expect("len"), 5);
    assert!(!file.is_empty().expect("len"));
    assert!(file.read_at(&mut [0; 3], 3).is_err());
}
