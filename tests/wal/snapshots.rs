//! Snapshots beside the log: a restart begins with one, the log before it goes, and whatever happens on the way leaves
//! either the old ones or the new one.

use std::time::Duration;

use super::*;
use shardpaxosbank::config::{Limits, Timeouts};
use shardpaxosbank::drive;
use shardpaxosbank::storage::{FileDisk, Pieces, Retention, survey};
use shardpaxosbank::types::{Cut, Time};

/// A state of three pieces, the last one short.
#[derive(Clone, Copy, Debug)]
struct State(u64);

impl State {
    fn bytes(&self, n: u64) -> Vec<u8> {
        vec![self.0 as u8 ^ n as u8; self.cut().piece(n).1]
    }
}

impl Pieces for State {
    fn cut(&self) -> Cut {
        Cut { slot: Slot(self.0), digest: self.0 * 7, bytes: 40, piece_bytes: 16 }
    }

    fn piece(&mut self, n: u64) -> std::io::Result<Vec<u8>> {
        Ok(self.bytes(n))
    }
}

fn retention(audit_bytes: u64) -> Retention {
    Retention { audit_bytes, audit_age: None }
}

/// Slots `from` to `to`, one group each, everything but the last two decided.
fn slots<D: Disk>(wal: &mut Wal<D>, from: u64, to: u64) {
    for slot in from..=to {
        commit(wal, &[accept(slot, slot / 10 + 1, slot as u8, 200)]);
        wal.set_decided(Slot(slot.saturating_sub(2)));
    }
}

pub fn write<D: Disk>(wal: &mut Wal<D>, slot: u64, foreign: bool) {
    wal.begin_snapshot(Box::new(State(slot)), foreign).expect("begin");
    while wal.has_work() {
        wal.prepare_ahead().expect("space");
    }
    assert_eq!(wal.snapshot(), Some(State(slot).cut()));
}

fn snapshots(disk: &MemDisk) -> Vec<String> {
    disk.list().expect("list").into_iter().filter(|name| name.starts_with("snapshot-")).collect()
}

/// 40 slots with snapshots after 16 and 32.
pub fn sample_with_snapshots(disk: &MemDisk, audit_bytes: u64) -> Wal<MemDisk> {
    let mut wal = format(disk.clone()).with_retention(retention(audit_bytes)).expect("nothing to retire");
    slots(&mut wal, 1, 18);
    write(&mut wal, 16, false);
    slots(&mut wal, 19, 34);
    write(&mut wal, 32, false);
    slots(&mut wal, 35, 40);
    wal
}

/// What a restart knows: the same as before it, but for values that the snapshot stands for.
fn check_restart(disk: &MemDisk, slot: u64) -> Recovered {
    let (mut wal, recovered) = open(disk.copy());
    assert_eq!(recovered.snapshot, Some(State(slot).cut()));
    assert_eq!(recovered.promised, ballot(5));
    assert!(recovered.decided >= Slot(37), "{}", recovered.decided);
    let known: Vec<u64> = wal.read(Slot(slot + 1), LIMIT).expect("read").iter().map(|(s, ..)| s.0).collect();
    assert_eq!(known, (slot + 1..=40).collect::<Vec<_>>());
    assert!(wal.read(Slot(slot), LIMIT).expect("nothing").is_empty());
    for n in 0..3 {
        assert_eq!(wal.read_piece(Slot(slot), n).expect("whole"), Some(State(slot).bytes(n)));
    }
    assert_eq!(wal.read_piece(Slot(slot), 3).expect("none"), None);
    recovered
}

#[test]
fn a_restart_begins_with_the_newest_snapshot() {
    let mut needed = 0;
    for audit_bytes in [0, 2 * SEGMENT, u64::MAX] {
        let disk = MemDisk::new();
        let wal = sample_with_snapshots(&disk, audit_bytes);
        assert_eq!(snapshots(&disk).len(), 2);
        let kept = log_files(&disk);
        match audit_bytes {
            u64::MAX => assert_eq!(wal.oldest_segment(), 1),
            0 => needed = wal.oldest_segment(),
            _ => assert_eq!(wal.oldest_segment(), needed - 2),
        }
        assert!(needed > 3, "{needed}");
        assert_eq!(kept[0], format!("wal-{:08}.seg", wal.oldest_segment()));
        // Values are read down to the older of the two.
        assert_eq!(wal.read(Slot(17), 0).expect("read").len(), 1);
        assert!(wal.read(Slot(16), 0).expect("read").is_empty());
        drop(wal);
        assert!(check_restart(&disk, 32).damaged.is_empty());
    }
}

#[test]
fn a_third_replaces_the_first_unless_that_is_being_sent() {
    let disk = MemDisk::new();
    let mut wal = sample_with_snapshots(&disk, 0);
    let slots_of = |disk: &MemDisk| -> Vec<u64> {
        snapshots(disk).iter().map(|name| name[9..25].parse().expect("a slot")).collect()
    };
    write(&mut wal, 34, false);
    assert_eq!(slots_of(&disk), [32, 34]);
    // A piece of it now and then, and it stays, with the log behind it; but not for ever.
    let mut expected = vec![32, 34];
    for slot in 35..=40 {
        assert!(wal.read_piece(Slot(32), 0).expect("whole").is_some() || expected[0] > 32);
        slots(&mut wal, slot + 6, slot + 6);
        write(&mut wal, slot, false);
        expected.push(slot);
        if expected.len() > 6 || expected[0] > 32 {
            expected = expected.split_off(expected.len() - 2);
        }
        assert_eq!(slots_of(&disk), expected);
        let read = wal.read(Slot(expected[0] + 1), 0).expect("read");
        assert_eq!(read.len(), 1, "the log goes on behind {}", expected[0]);
    }
    assert!(expected[0] > 32);
    // Older than what is there: nothing to do. And one of its own never takes the place of another in the making.
    wal.begin_snapshot(Box::new(State(3)), false).expect("ignored");
    assert!(!wal.has_work());
    wal.begin_snapshot(Box::new(State(42)), false).expect("begin");
    wal.begin_snapshot(Box::new(State(43)), false).expect("ignored");
    wal.begin_snapshot(Box::new(State(41)), true).expect("ignored");
    while wal.has_work() {
        wal.prepare_ahead().expect("space");
    }
    assert_eq!(wal.snapshot(), Some(State(42).cut()));
}

/// A sender goes on without a snapshot that it cannot read; a restart finds the damage and begins with the other.
#[test]
fn a_snapshot_that_cannot_be_sent_is_not_offered_again() {
    let disk = MemDisk::new();
    let mut wal = sample_with_snapshots(&disk, 0);
    let name = snapshots(&disk).pop().expect("two of them");
    let mut bytes = disk.contents(&name).expect("snapshot");
    bytes[4096 + 30] ^= 1;
    disk.overwrite(&name, bytes);
    let damage = wal.read_piece(Slot(32), 1).expect_err("a flipped bit").to_string();
    assert!(damage.contains(&name) && damage.contains("piece 1"), "{damage}");
    wal.distrust_snapshot(Slot(32));
    assert_eq!(wal.snapshot(), Some(State(16).cut()));
    assert_eq!(wal.read_piece(Slot(32), 0).expect("none"), None);
    check_restart(&disk, 16);
    write(&mut wal, 38, false);
    assert_eq!(snapshots(&disk), ["snapshot-0000000000000016.snap", "snapshot-0000000000000038.snap"]);
    drop(wal);
    check_restart(&disk, 38);
}

/// An operator who needs space wants less of an audit log than before, and starts again.
#[test]
fn a_smaller_audit_log_goes_at_once() {
    let disk = MemDisk::new();
    drop(sample_with_snapshots(&disk, u64::MAX));
    let before = log_files(&disk).len();
    let wal = open(disk.clone()).0.with_retention(retention(0)).expect("the disk works");
    assert!(wal.oldest_segment() > 3 && log_files(&disk).len() < before - 2);
    drop(wal);
    check_restart(&disk, 32);
}

/// A loss of power may bring some of the segments back that went.
#[test]
fn segments_that_came_back_go_with_the_next_ones() {
    let disk = MemDisk::new();
    let mut wal = sample_with_snapshots(&disk, 0);
    let first = log_files(&disk).remove(0);
    disk.overwrite("wal-00000001.seg", disk.contents(&first).expect("segment"));
    slots(&mut wal, 41, 60);
    write(&mut wal, 58, false);
    let kept = log_files(&disk);
    assert!(kept[0] > first && wal.oldest_segment() > 2, "{kept:?}");
}

/// Behind a gap in the log, votes would stand for other slots than it seems.
#[test]
fn a_log_with_a_gap_starts_nothing() {
    let noop = |slot| Record::Accept { slot: Slot(slot), ballot: ballot(1), value: Value::noop() };
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    commit(&mut wal, &[noop(1), noop(2), Record::Decided(Slot(1))]);
    commit(&mut wal, &[noop(101)]);
    drop(wal);
    let (mut wal, recovered) = open(disk);
    let Identity { topology, server, .. } = *wal.identity();
    let limits = (Timeouts::default(), Limits::default());
    let error = drive::restore(server, topology, limits, Time(0), 0, &mut wal, recovered).expect_err("a gap");
    let text = error.to_string();
    assert!(text.starts_with("the write-ahead log") && text.contains("is for slot 101"), "{text}");
}

/// S2: a damaged snapshot is named and the one before it used, wherever the damage is; two damaged ones are too many.
#[test]
fn damage_falls_back_to_the_older_snapshot() {
    let disk = MemDisk::new();
    drop(sample_with_snapshots(&disk, 0));
    let names = snapshots(&disk);
    let bytes = disk.contents(&names[1]).expect("snapshot");
    let named = |recovered: Recovered| {
        assert!(recovered.damaged[0].starts_with(&names[1]), "{:?}", recovered.damaged)
    };
    let with = |bytes: Vec<u8>| {
        let copy = disk.copy();
        copy.overwrite(&names[1], bytes);
        copy
    };
    // Every byte of the block, also where it says nothing, and of the pieces with what stands before each.
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        named(check_restart(&with(flipped), 16));
    }
    for len in 0..bytes.len() {
        named(check_restart(&with(bytes[..len].to_vec()), 16));
    }
    for len in [0, 1, 4095, 4096, 4100, bytes.len() - 1, bytes.len() + 1] {
        let mut cut = bytes.clone();
        cut.resize(len, 0);
        let copy = with(cut);
        named(check_restart(&copy, 16));
        let mut older = copy.contents(&names[0]).expect("snapshot");
        older[4100] ^= 1;
        copy.overwrite(&names[0], older);
        // Then only others can give back what came before the log that is kept.
        let (wal, recovered) = open(copy);
        assert_eq!(
            (recovered.snapshot, recovered.decided, recovered.promised),
            (None, Slot::ZERO, ballot(5))
        );
        assert!(recovered.loss.is_some_and(|loss| loss.known >= Slot(37)));
        assert!(recovered.damaged[0].starts_with(&names[1]), "{:?}", recovered.damaged);
        assert_eq!(wal.read(Slot(40), 0).expect("read").len(), 1);
    }
    let copy = disk.copy();
    copy.remove(&names[1]).expect("remove");
    check_restart(&copy, 16);
    // With the whole log there, none is needed.
    let whole = MemDisk::new();
    drop(sample_with_snapshots(&whole, u64::MAX));
    names.iter().for_each(|name| whole.remove(name).expect("remove"));
    let (wal, recovered) = open(whole);
    assert_eq!((recovered.snapshot, wal.read(Slot(1), LIMIT).expect("read").len()), (None, 40));
}

#[test]
fn a_missing_segment_is_damage_from_the_snapshot_on_and_none_before() {
    let disk = MemDisk::new();
    drop(sample_with_snapshots(&disk, u64::MAX));
    let files = log_files(&disk);
    let truth = Truth::of(&disk);
    let (mut damaged, mut unharmed) = (0, 0);
    for name in &files {
        let copy = disk.copy();
        copy.remove(name).expect("remove");
        let named = check_honest(&copy, &truth);
        match named.first() {
            None => unharmed += 1,
            Some(text) => {
                damaged += 1;
                assert!(text.starts_with(name) && text.contains("missing"), "{text}");
            }
        }
    }
    assert!(damaged >= 2 && unharmed >= 3, "{damaged} {unharmed}");
}

/// The power may go between any two writes and syncs of a snapshot, and each of them may fail.
#[test]
fn whatever_stops_a_snapshot_leaves_the_old_ones_or_the_new_one() {
    for kind in ["power", "write", "sync"] {
        let mut hits = 0;
        for n in 1.. {
            let disk = MemDisk::new();
            let mut wal = sample_with_snapshots(&disk, 0);
            wal.begin_snapshot(Box::new(State(38)), false).expect("begin");
            match kind {
                "write" => disk.fail_write(n),
                "sync" => disk.fail_sync(n),
                _ => {}
            }
            let mut steps = 0;
            let mut failed = false;
            while wal.has_work() && !failed && (kind != "power" || steps < n) {
                failed = wal.prepare_ahead().is_err();
                steps += 1;
            }
            if failed {
                assert!(wal.commit().is_err() && wal.prepare_ahead().is_err(), "the log is poisoned");
            } else if !wal.has_work() {
                break;
            }
            hits += 1;
            drop(wal);
            for kept in [Kept::Lost, Kept::Whole, Kept::Sectors(0b1010_0110)] {
                let copy = disk.copy();
                copy.crash(|_| kept);
                let (_, recovered) = open(copy.clone());
                let slot = recovered.snapshot.expect("one of them").slot.0;
                assert!([32, 38].contains(&slot), "{slot}");
                check_restart(&copy, slot);
                assert!(!copy.list().expect("list").iter().any(|name| name.ends_with(".snap.new")));
            }
        }
        assert!(hits >= 2, "{kind} {hits}");
    }
}

/// Age is a limit beside size, and counts only in front of what a restart needs.
#[test]
fn log_that_has_become_too_old_goes() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = FileDisk::open(dir.path()).expect("a directory");
    let mut wal = Wal::format(disk, identity(), SEGMENT).expect("format");
    slots(&mut wal, 1, 18);
    write(&mut wal, 16, false);
    slots(&mut wal, 19, 34);
    write(&mut wal, 32, false);
    let names = || {
        let entries = std::fs::read_dir(dir.path()).expect("list").flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| name.ends_with(".seg"));
        names.sort();
        names
    };
    let day = Duration::from_secs(86_400);
    let age = |name: &str, days: u32| {
        let file = std::fs::File::options().write(true).open(dir.path().join(name)).expect("a segment");
        file.set_modified(std::time::SystemTime::now() - day * days).expect("set");
    };
    let all = names();
    let mut wal =
        wal.with_retention(Retention { audit_bytes: u64::MAX, audit_age: Some(day * 30) }).expect("none");
    assert_eq!(names(), all);
    age(&all[0], 31);
    age(&all[1], 29);
    age(&all[2], 31);
    wal.retire_audit().expect("a sound disk");
    assert_eq!(names(), all[1..], "the log stays in one piece");
    all[1..].iter().for_each(|name| age(name, 400));
    wal.retire_audit().expect("a sound disk");
    assert_eq!(names()[0], format!("wal-{:08}.seg", wal.oldest_segment()));
    assert!(names().len() < all.len() - 1);
    assert_eq!(wal.read(Slot(17), 0).expect("read").len(), 1, "what the older snapshot needs stays");
}

/// A snapshot from elsewhere: the log does not lead up to it, and votes above it stay (P2).
#[test]
fn a_foreign_snapshot_stands_for_slots_that_the_log_lacks() {
    let disk = MemDisk::new();
    let mut wal = sample_with_snapshots(&disk, u64::MAX);
    write(&mut wal, 39, true);
    assert_eq!((wal.decided(), wal.last_slot()), (Slot(39), Slot(40)));
    assert_eq!(snapshots(&disk).len(), 1, "the log does not lead on from the older ones");
    write(&mut wal, 100, true);
    assert_eq!((wal.decided(), wal.last_slot()), (Slot(100), Slot(100)));
    commit(&mut wal, &[accept(101, 9, 101, 30), accept(102, 9, 102, 30), Record::Decided(Slot(101))]);
    drop(wal);
    let (_, recovered) = open(disk);
    assert_eq!((recovered.snapshot, recovered.decided), (Some(State(100).cut()), Slot(101)));
    assert_eq!(recovered.votes, [(Slot(102), ballot(9), value(102, 30))]);
    assert_eq!(recovered.promised, ballot(9));
}

/// P1: once it may have answered for the slots up to there, a server never comes back without them; also if it answered
/// before it wrote anything else, and whenever it died.
#[test]
fn without_the_foreign_snapshot_that_it_went_on_from_a_server_knows_what_it_lacks() {
    let name = "snapshot-0000000000000100.snap";
    let lacks = |disk: MemDisk| {
        let found = survey(&disk, |_| {}).expect("formatted").faults;
        assert!(found.iter().any(|fault| fault.file == name), "{found:?}");
        let (_, recovered) = open(disk);
        assert!(recovered.decided < Slot(41) && recovered.snapshot.is_none(), "{recovered:?}");
        assert!(recovered.damaged.iter().any(|text| text.starts_with(name)), "{:?}", recovered.damaged);
        assert_eq!(recovered.loss.map(|loss| loss.known), Some(Slot(100)));
    };
    let mut installed = 0;
    for steps in 1.. {
        let disk = MemDisk::new();
        let mut wal = sample_with_snapshots(&disk, u64::MAX);
        wal.begin_snapshot(Box::new(State(100)), true).expect("begin");
        (0..steps).for_each(|_| _ = wal.prepare_ahead().expect("space"));
        let answered = wal.snapshot() == Some(State(100).cut());
        let done = !wal.has_work();
        drop(wal);
        for kept in [Kept::Lost, Kept::Whole, Kept::Sectors(0b1010_0110)] {
            let copy = disk.copy();
            copy.crash(|_| kept);
            let lost = copy.copy();
            let was_there = lost.remove(name).is_ok();
            assert!(was_there || !answered);
            if answered {
                lacks(lost);
            }
            if was_there {
                assert_eq!(open(copy.clone()).1.snapshot, Some(State(100).cut()));
                let mut flipped = copy.contents(name).expect("snapshot");
                flipped[4100] ^= 1;
                let damaged = copy.copy();
                damaged.overwrite(name, flipped);
                lacks(damaged);
                copy.remove(name).expect("it is there");
                lacks(copy);
                installed += 1;
            } else {
                check_restart(&copy, 32);
            }
        }
        if done {
            break;
        }
    }
    assert!(installed >= 3, "{installed}");
}

/// The power may also go, or the disk fail, between the naming of another's snapshot and the mark that speaks of it.
#[test]
fn a_foreign_snapshot_is_missed_wherever_its_installation_ended() {
    let name = "snapshot-0000000000000100.snap";
    let mut named = 0;
    for (n, by_write) in (1..).flat_map(|n| [(n, true), (n, false)]) {
        let disk = MemDisk::new();
        let mut wal = sample_with_snapshots(&disk, u64::MAX);
        wal.begin_snapshot(Box::new(State(100)), true).expect("begin");
        if by_write {
            disk.fail_write(n)
        } else {
            disk.fail_sync(n)
        }
        let failed = std::iter::repeat_with(|| wal.prepare_ahead().is_err()).take(20).any(|failed| failed);
        drop(wal);
        if !failed {
            break;
        }
        disk.crash(|_| Kept::Whole);
        if !disk.list().expect("list").iter().any(|file| file == name) {
            check_restart(&disk, 32);
            continue;
        }
        named += 1;
        assert_eq!(open(disk.clone()).1.snapshot, Some(State(100).cut()));
        disk.remove(name).expect("it is there");
        let (_, recovered) = open(disk);
        assert_eq!(recovered.loss.map(|loss| loss.known), Some(Slot(100)), "{n} {by_write}");
    }
    assert!(named >= 2, "{named}");
}

/// Damage took a segment that would have gone for its age: nothing is missing.
#[test]
fn a_lost_segment_of_the_audit_log_stops_nothing() {
    let disk = MemDisk::new();
    let wal = sample_with_snapshots(&disk, u64::MAX);
    let gone = log_files(&disk)[1].clone();
    disk.take_away(&gone);
    disk.set_time(1_000_000);
    let wal = wal.with_retention(Retention { audit_bytes: u64::MAX, audit_age: Some(Duration::ZERO) });
    let oldest = wal.expect("a segment that is gone needs no removal").oldest_segment();
    assert_eq!(log_files(&disk)[0], format!("wal-{oldest:08}.seg"));
    check_restart(&disk, 32);
}

/// What a server learns after such a loss stays learned, also if it has not come as far yet as the snapshot was.
#[test]
fn what_is_learned_again_after_a_lost_foreign_snapshot_stays() {
    for upto in [60, 100, 103] {
        let disk = MemDisk::new();
        let mut wal = sample_with_snapshots(&disk, u64::MAX);
        write(&mut wal, 100, true);
        commit(&mut wal, &[accept(101, 9, 101, 30)]);
        drop(wal);
        disk.remove("snapshot-0000000000000100.snap").expect("it is there");
        let (mut wal, recovered) = open(disk.clone());
        assert_eq!(recovered.decided, Slot(0));
        for slot in 1..=upto {
            commit(&mut wal, &[learn(slot, 9, slot as u8, 20)]);
        }
        drop(wal);
        for _ in 0..2 {
            let (wal, recovered) = open(disk.clone());
            assert_eq!((recovered.decided, wal.read(Slot(upto), 0).expect("whole").len()), (Slot(upto), 1));
            let known = recovered.loss.map(|loss| (loss.known, loss.gaps));
            let gap = (Slot(upto + 1), Slot(100));
            assert_eq!(known, (upto < 100).then(|| (Slot(100), vec![gap])));
        }
    }
}

#[test]
fn a_snapshot_without_space_is_given_up_and_harms_nothing() {
    let disk = MemDisk::new();
    let mut wal = sample_with_snapshots(&disk, 0);
    disk.set_capacity(Some(disk.used() + 20));
    wal.begin_snapshot(Box::new(State(38)), false).expect("begin");
    while wal.has_work() {
        wal.prepare_ahead().expect("a full disk is no failure");
    }
    assert_eq!(wal.snapshot(), Some(State(32).cut()));
    assert!(!disk.list().expect("list").iter().any(|name| name.ends_with(".snap.new")));
    check_restart(&disk, 32);
    disk.set_capacity(None);
    write(&mut wal, 38, false);
    drop(wal);
    check_restart(&disk, 38);
}

/// A snapshot in the making takes no space that the log needs.
#[test]
fn the_log_comes_before_a_snapshot_in_the_making() {
    let disk = MemDisk::new();
    let mut wal = sample_with_snapshots(&disk, 0);
    wal.begin_snapshot(Box::new(State(38)), false).expect("begin");
    while !disk.list().expect("list").iter().any(|name| name.ends_with(".snap.new")) {
        wal.prepare_ahead().expect("space");
    }
    assert!(wal.has_work());
    disk.set_capacity(Some(disk.used() + SEGMENT - 60));
    assert_eq!(wal.secure(1000, false).expect("space"), None, "there is space without it");
    assert!(!wal.has_work());
}

/// A snapshot from elsewhere moved the server on, and then it took one of its own, which is all that is left to say so: the
/// mark is an older one. Damage between the two hides votes above both.
#[test]
fn a_snapshot_says_how_far_an_earlier_one_from_elsewhere_took_the_server() {
    let disk = MemDisk::new();
    let mut wal = Wal::format(disk.clone(), identity(), 1 << 16).unwrap_or_else(|e| panic!("{e}"));
    (1..=11).for_each(|slot| commit(&mut wal, &[accept(slot, 1, 1, 20)]));
    let mark = disk.contents("mark").expect("mark");
    write(&mut wal, 100, true);
    for slot in 101..=107 {
        commit(&mut wal, &[accept(slot, 1, 1, 300)]);
        wal.set_decided(Slot(slot.min(104)));
    }
    write(&mut wal, 104, false);
    commit(&mut wal, &[Record::Promise(ballot(2))]);
    drop(wal);
    let mut places = Vec::new();
    survey(&disk, |seen| places.push((seen.group, seen.offset as usize))).expect("formatted");
    let at = |group: u64| places.iter().find(|(g, _)| *g == group).expect("it was written").1;
    let mut log = disk.contents("wal-00000001.seg").expect("segment");
    log[at(12)..at(19)].fill(0);
    disk.overwrite("wal-00000001.seg", log);
    disk.overwrite("mark", mark);
    let (_, recovered) = open(disk);
    assert_eq!(recovered.snapshot, Some(State(104).cut()), "{:?}", recovered.damaged);
    let loss = recovered.loss.expect("it voted for three slots more");
    assert!(loss.hidden >= Slot(107), "{loss:?}");
}
