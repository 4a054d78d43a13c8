//! Two misfortunes at once: the power goes, so that the mark may be older than the log, and a file is lost or cut.

use super::snapshots::write;
use super::*;
use shardpaxosbank::storage::survey;

/// A log of two segments, of which the second, with votes of a new ballot in it, is harmed; and the mark as the last power
/// cut may have left it. The promise is of the second segment, too.
fn harmed(harm: &str) -> (MemDisk, String) {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    (1..=6).for_each(|slot| commit(&mut wal, &[accept(slot, 1, 1, 100)]));
    wal.set_decided(Slot(5));
    commit(&mut wal, &[Record::Decided(Slot(5))]);
    let in_first = log_files(&disk)[0].clone();
    let mut slot = 7;
    while wal_end(&disk) == in_first {
        commit(&mut wal, &[accept(slot, 1, 1, 100)]);
        slot += 1;
    }
    commit(&mut wal, &[Record::Promise(ballot(9))]);
    // What is not synced is lost, the mark with it; but not the mark that holds the promise.
    let before = disk.copy();
    commit(&mut wal, &[accept(8, 9, 9, 100)]);
    commit(&mut wal, &[accept(9, 9, 9, 100)]);
    drop(wal);
    before.crash(|_| Kept::Lost);
    disk.overwrite("mark", before.contents("mark").expect("a mark"));
    let name = wal_end(&disk);
    let mut bytes = disk.contents(&name).expect("a segment");
    match harm {
        "missing" => disk.take_away(&name),
        "header" => {
            bytes[20] ^= 0xff;
            disk.overwrite(&name, bytes);
        }
        "short by all" => disk.overwrite(&name, bytes[..4000].to_vec()),
        "short by all records" => disk.overwrite(&name, bytes[..4096].to_vec()),
        _ => disk.overwrite(&name, bytes[..4096 + 200].to_vec()),
    }
    (disk, name)
}

/// The last segment with records in it.
fn wal_end(disk: &MemDisk) -> String {
    let mut last = 1;
    survey(disk, |seen| last = last.max(seen.segment)).expect("formatted");
    format!("wal-{last:08}.seg")
}

/// S1, S2: no torn write takes a segment away, or a part of it. Votes may have stood there that were told; the promise is known.
#[test]
fn votes_in_a_lost_segment_behind_an_older_mark_are_in_doubt() {
    for harm in ["missing", "header", "short by all", "short by all records", "short"] {
        let (disk, name) = harmed(harm);
        for start in 1..=2 {
            let (wal, recovered) = open(disk.clone());
            assert_eq!(recovered.promised, ballot(9), "{harm}, start {start}: the promise is forgotten");
            let loss = recovered.loss.unwrap_or_else(|| panic!("{harm}, start {start}: nothing is in doubt"));
            for slot in [8, 9].map(Slot) {
                let told = loss.votes.get(&slot);
                assert!(
                    matches!(told, Some(Vote::Lost(None))) || told.is_none() && slot <= loss.hidden,
                    "{harm}, start {start}: slot {slot} is told as {told:?}, {loss:?}"
                );
            }
            if start == 1 {
                assert!(
                    recovered.damaged.iter().any(|what| what.starts_with(&name)),
                    "{:?}",
                    recovered.damaged
                );
            }
            drop(wal);
        }
    }
}

/// A server went on from the snapshot of another one, which is lost, and is sent an older one. What the log holds below the
/// first are old votes still, and not what was decided.
#[test]
fn an_older_snapshot_does_not_make_old_votes_the_decided_values() {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    commit(&mut wal, &(1..=4).map(|slot| accept(slot, 1, slot as u8, 8)).collect::<Vec<_>>());
    write(&mut wal, 10, true);
    wal.set_decided(Slot(10));
    commit(&mut wal, &[accept(11, 3, 11, 8)]);
    drop(wal);
    disk.take_away("snapshot-0000000000000010.snap");
    let (mut wal, recovered) = open(disk.clone());
    assert_eq!((recovered.decided, recovered.loss.map(|loss| loss.known)), (Slot(0), Some(Slot(10))));
    write(&mut wal, 2, true);
    commit(&mut wal, &[Record::Promise(ballot(4))]);
    drop(wal);
    let (_, recovered) = open(disk);
    assert_eq!(recovered.decided, Slot(2));
    let loss = recovered.loss.expect("the values of 3 to 10");
    assert_eq!((loss.known, loss.gaps), (Slot(10), vec![(Slot(3), Slot(10))]));
}

/// A promise is in the mark for good when it is answered, whatever becomes of the log.
#[test]
fn a_promise_is_synced_in_the_mark_and_nothing_else_is() {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    for (records, synced) in [
        (vec![Record::Promise(ballot(3))], true),
        (vec![accept(1, 3, 1, 8)], false),
        (vec![accept(2, 4, 2, 8)], true),
        (vec![Record::Promise(ballot(4))], false),
    ] {
        commit(&mut wal, &records);
        let kept = disk.copy();
        kept.crash(|_| Kept::Lost);
        let same = kept.contents("mark") == disk.contents("mark");
        assert_eq!(same, synced, "{records:?}");
    }
}
