//! What just fits and what just does not, what a turn pays for new segments, and the real disk's own duties.

use super::*;
use shardpaxosbank::config::limits::{SEGMENT_BYTES, VALUE_BYTES};

const BLOCK: u64 = 4096;
const HEADER: u64 = 56;

/// Bytes of a value whose record takes so many bytes.
fn value_of(record: u64) -> usize {
    (record - HEADER) as usize
}

#[test]
fn segments_have_room_for_some_records_and_an_aligned_end() {
    let least = BLOCK + 4 * HEADER;
    for (bytes, usable) in
        [(least, true), (least - 8, false), (least + 4, false), (least + 8, true), ((1 << 31) + 8, false)]
    {
        let made = Wal::format(MemDisk::new(), identity(), bytes);
        assert_eq!(made.is_ok(), usable, "{bytes}");
        if let Err(e) = made {
            assert!(e.to_string().contains("segment size"), "{e}");
        }
    }
}

/// A segment is filled up to the place that its closing record needs, and no new one is made before it is wanted.
#[test]
fn a_record_that_just_fits_stays_in_its_segment() {
    let room = SEGMENT - BLOCK - HEADER;
    for (record, segments) in [(room, 1), (room + 8, 2)] {
        let disk = MemDisk::new();
        let mut wal = Wal::format(disk.clone(), identity(), 2 * SEGMENT).expect("format");
        let first = 2 * SEGMENT - SEGMENT;
        commit(&mut wal, &[accept(1, 1, 1, value_of(first))]);
        wal.append(&accept(2, 1, 2, value_of(record)));
        let stats = wal.commit().expect("commit");
        assert_eq!((log_files(&disk).len(), stats.syncs), (segments, segments as u32), "{record}");
        assert_eq!(stats.bytes, record + if segments == 2 { HEADER } else { 0 });
        commit(&mut wal, &[accept(3, 1, 3, 8)]);
        assert_eq!(log_files(&disk).len(), 2);
        let before = said(&wal);
        drop(wal);
        assert_eq!(said(&open(disk).0), before);
    }
}

#[test]
fn room_is_what_can_be_written_without_new_space() {
    let blank = SEGMENT - BLOCK - HEADER;
    let used = |disk: &MemDisk| -> u64 {
        let names = disk.list().expect("list");
        names.iter().map(|name| disk.contents(name).expect("file").len() as u64).sum()
    };
    for ahead in [false, true] {
        let disk = MemDisk::new();
        let mut wal = format(disk.clone());
        assert_eq!(wal.room(), blank);
        commit(&mut wal, &[accept(1, 1, 1, value_of(600))]);
        assert_eq!(wal.room(), blank - 600);
        if ahead {
            while wal.prepare_ahead().expect("space") {}
            assert_eq!(wal.room(), 2 * blank - 600);
        }
        disk.set_capacity(Some(used(&disk)));
        // The rest of this segment, and the whole of the one that is ready.
        wal.append(&accept(2, 1, 2, value_of(blank - 600)));
        assert_eq!(wal.room(), if ahead { blank } else { 0 });
        if ahead {
            wal.append(&accept(3, 1, 3, value_of(80)));
            assert_eq!(wal.room(), blank - 80);
            wal.append(&accept(4, 1, 4, value_of(blank - 80)));
        }
        wal.commit().expect("there was room");
        assert_eq!(wal.room(), 0);
        wal.append(&Record::Promise(ballot(9)));
        assert_eq!(wal.commit().expect_err("full").kind(), std::io::ErrorKind::StorageFull);
    }
}

/// No turn pays for a whole segment: the next one is begun when half of this one is used, in pieces, and a real disk begins with
/// each as soon as it is written, so that the one sync finds little left to write.
#[test]
fn a_segment_is_made_in_pieces_from_the_middle_of_the_last_one_on() {
    let disk = MemDisk::new();
    let mut wal = Wal::format(disk.clone(), identity(), SEGMENT_BYTES).expect("format");
    let mut slot = 0;
    let mut fill_to = |wal: &mut Wal<MemDisk>, end: u64, mut at: u64| {
        while at < end {
            let record = (end - at).min(64 * 1024);
            slot += 1;
            commit(wal, &[accept(slot, 1, 1, value_of(record))]);
            at += record;
        }
    };
    fill_to(&mut wal, SEGMENT_BYTES / 2 - 64, BLOCK);
    assert!(!wal.prepare_ahead().expect("prepare"));
    fill_to(&mut wal, SEGMENT_BYTES / 2, SEGMENT_BYTES / 2 - 64);
    let before = disk.counts();
    let mut pieces = 0;
    while wal.prepare_ahead().expect("prepare") {
        pieces += 1;
    }
    let after = disk.counts();
    assert_eq!(pieces, SEGMENT_BYTES / (128 * 1024));
    // Each piece and the header; then the file, the directory, and the mark.
    assert_eq!((after.writes - before.writes, after.syncs - before.syncs), (pieces + 1, 3));
    assert_eq!(log_files(&disk).len(), 2);
    // The boundary costs no more than one sync on each side of it.
    fill_to(&mut wal, SEGMENT_BYTES - HEADER, SEGMENT_BYTES / 2);
    let before = disk.counts();
    fill_to(&mut wal, 64, 0);
    assert_eq!(disk.counts().syncs - before.syncs, 2);
}

#[test]
fn the_largest_value_is_written_and_read_back() {
    let disk = MemDisk::new();
    let mut wal = Wal::format(disk.clone(), identity(), 1 << 20).expect("format");
    commit(&mut wal, &[accept(1, 1, 7, VALUE_BYTES), accept(2, 1, 8, 1)]);
    drop(wal);
    let (wal, _) = open(disk);
    assert_eq!(wal.read(Slot(1), 1).expect("read"), [(Slot(1), ballot(1), value(7, VALUE_BYTES))]);
    assert_eq!(wal.read(Slot(1), LIMIT).expect("read").len(), 2);
}

#[test]
fn a_real_disk_syncs_what_it_is_told_to_and_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = FileDisk::open(dir.path()).expect("open");
    assert_eq!((disk.dir(), disk.syncs()), (dir.path(), 0));
    let mut file = disk.create("a").expect("create");
    assert!(file.is_empty().expect("len"));
    file.write_at(&[1, 2, 3], 2).expect("write");
    assert!(!file.is_empty().expect("len"));
    assert_eq!(file.len().expect("len"), 5);
    file.sync_data().expect("sync");
    assert_eq!(disk.syncs(), 1);
    disk.sync_dir().expect("sync");
    assert_eq!(disk.syncs(), 2);
    assert!(disk.create("a").is_err(), "it is there already");
    disk.rename("a", "b").expect("rename");
    assert_eq!(disk.list().expect("list"), ["b"]);
    let mut bytes = [9; 5];
    disk.open("b").and_then(|file| file.read_at(&mut bytes, 0)).expect("read");
    assert_eq!(bytes, [0, 0, 1, 2, 3]);
    disk.remove("b").expect("remove");
    assert!(disk.list().expect("list").is_empty());
    assert!(disk.remove("b").is_err() && disk.rename("b", "c").is_err() && disk.open("b").is_err());
    // A log on it: one sync each commit, and one more of the mark for a new promise.
    let mut wal = Wal::format(disk.clone(), identity(), SEGMENT).expect("format");
    let before = disk.syncs();
    commit(&mut wal, &[accept(1, 1, 1, 8)]);
    assert_eq!(disk.syncs(), before + 2);
    commit(&mut wal, &[accept(2, 1, 1, 8)]);
    assert_eq!(disk.syncs(), before + 3);
}

#[test]
fn the_operating_systems_own_error_is_kept() {
    use std::error::Error;
    let disk = MemDisk::new();
    disk.fail_write(1);
    let e = Wal::format(disk, identity(), SEGMENT).expect_err("no write succeeds");
    let source = e.source().expect("what the disk said").to_string();
    assert!(e.to_string().contains(&source), "{e}");
    let e = Wal::open(MemDisk::new(), expected()).expect_err("nothing there");
    assert!(e.source().is_none());
}

/// A full disk is asked for space when that is said, and by nobody else; what it gave in part is used when there is more.
#[test]
fn a_full_disk_is_left_alone_until_it_is_asked_again() {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    let blank = SEGMENT - BLOCK - HEADER;
    assert_eq!(wal.secure(blank, false).expect("nothing is asked"), None);
    disk.set_capacity(Some(disk.used() + 100));
    assert_eq!(wal.secure(blank + 1, false).expect("full is no failure"), Some(blank));
    let asked = disk.counts();
    commit(&mut wal, &[accept(1, 1, 1, value_of(blank - 400))]);
    assert!(!wal.prepare_ahead().expect("left alone"));
    assert_eq!(wal.secure(blank, false).expect("left alone"), Some(400));
    assert_eq!(disk.counts().writes, asked.writes + 2, "the group and its mark");
    assert_eq!(wal.secure(1, true).expect("still full"), Some(400));
    assert_eq!(disk.counts().writes, asked.writes + 3);
    // A restart finds the piece that was begun, and needs no space itself.
    let copy = disk.copy();
    copy.set_capacity(Some(copy.used()));
    copy.kill();
    let (again, recovered) = open(copy);
    assert_eq!((again.room(), recovered.votes.len()), (400, 1));
    disk.set_capacity(None);
    assert_eq!(wal.secure(1, true).expect("space is back"), None);
    commit(&mut wal, &[accept(2, 1, 2, value_of(blank))]);
    let before = said(&wal);
    drop(wal);
    assert_eq!(said(&open(disk).0), before);
}

/// A sync that fails has lost pages, whatever it says was missing: that is final.
#[test]
fn a_sync_without_space_is_a_failed_sync() {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    disk.set_capacity(Some(disk.used() + 2 * SEGMENT));
    disk.fail_sync(1);
    let e = wal.secure(SEGMENT, false).expect_err("a failed sync");
    assert_ne!(e.kind(), std::io::ErrorKind::StorageFull);
    assert!(wal.secure(0, true).is_err() && wal.commit().is_err(), "for good");
}
