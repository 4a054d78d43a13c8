//! Files that are not what was written: cut, zeroed, flipped, missing, moved (S1, S2).

use std::collections::BTreeMap;

use super::*;
use shardpaxosbank::storage::survey;

/// Takes back the mark of the last group, `group`, as when only the log's own pages reached the disk.
pub fn older_mark(disk: &MemDisk, group: u64) {
    let mut mark = disk.contents("mark").expect("mark");
    let slot = (group % 2) as usize * 4096;
    mark[slot..slot + 64].fill(0);
    disk.overwrite("mark", mark);
}

#[test]
fn a_short_file_is_damage_at_every_length() {
    let disk = MemDisk::new();
    sample(&disk);
    let truth = Truth::of(&disk);
    for name in log_files(&disk).into_iter().chain(["mark".to_string(), "identity".to_string()]) {
        let bytes = disk.contents(&name).expect("file");
        for len in (0..bytes.len()).rev() {
            let copy = disk.copy();
            copy.overwrite(&name, bytes[..len].to_vec());
            if name.starts_with("wal-") {
                let named = check_honest(&copy, &truth);
                assert!(named.iter().any(|text| text.starts_with(&name)), "{named:?}");
                continue;
            }
            let text = refusal(copy);
            assert!(text.starts_with(&name) && text.contains("damaged (S2)"), "{text}");
        }
    }
}

#[test]
fn a_missing_file_is_damage() {
    let disk = MemDisk::new();
    sample(&disk);
    let truth = Truth::of(&disk);
    for name in disk.list().expect("list") {
        let copy = disk.copy();
        copy.remove(&name).expect("remove");
        if name.starts_with("wal-") {
            let named = check_honest(&copy, &truth);
            assert!(
                named.iter().any(|text| text.starts_with(&name) && text.contains("missing")),
                "{named:?}"
            );
            continue;
        }
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
    let truth = Truth::of(&disk);
    let mut last_group = None;
    survey(&disk, |seen| last_group = last_group.or((seen.group == 5).then_some(seen.offset as usize)))
        .expect("formatted");
    let last_group = last_group.expect("five groups");
    let before = {
        let copy = disk.copy();
        older_mark(&copy, 5);
        let mut cut = bytes.clone();
        cut[last_group..].fill(0);
        copy.overwrite(last, cut);
        drop(open(copy.clone()));
        Truth::of(&copy)
    };
    let (mut torn, mut damaged, mut whole) = (0, 0, 0);
    for from in 4096..bytes.len() {
        let mut cut = bytes.clone();
        cut[from..].fill(0);
        let copy = disk.copy();
        copy.overwrite(last, cut.clone());
        let changed = cut != bytes;
        assert_eq!(check_honest(&copy, &truth).is_empty(), !changed, "from {from}");
        older_mark(&copy, 5);
        match open(copy.copy()).1 {
            recovered if recovered.damaged.is_empty() => {
                let (mut wal, recovered) = open(copy.clone());
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
            _ => {
                // Without the last group, of which nothing is left.
                check_honest(&copy, &before);
                damaged += 1;
            }
        }
    }
    assert!(torn > 100 && damaged > 100 && whole > 10, "{torn} {damaged} {whole}");
}

#[test]
fn a_flipped_byte_is_refused_or_named_or_changes_nothing() {
    let disk = MemDisk::new();
    let after = sample(&disk);
    let truth = Truth::of(&disk);
    let (mut refused, mut named) = (0, 0);
    for name in disk.list().expect("list") {
        let bytes = disk.contents(&name).expect("file");
        for at in 0..bytes.len() {
            for flip in [0x01, 0xff] {
                let copy = disk.copy();
                let mut bad = bytes.clone();
                bad[at] ^= flip;
                copy.overwrite(&name, bad);
                match Wal::open(copy.copy(), expected()) {
                    Ok((_, recovered)) if !recovered.damaged.is_empty() => {
                        let faults = check_honest(&copy, &truth);
                        assert!(
                            faults.iter().any(|text| text.starts_with(&name)),
                            "{name} at {at}: {faults:?}"
                        );
                        named += 1;
                    }
                    Ok((wal, _)) => {
                        assert_eq!(said(&wal), after[5], "{name} at {at}");
                        assert!(bytes[at] == 0, "{name} at {at} went unnoticed");
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
    // The identity, of which no bit may be wrong.
    assert!(refused >= 8192 && named > 30_000, "{refused} {named}");
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
        let truth = {
            let whole = MemDisk::new();
            sample(&whole);
            Truth::of(&whole)
        };
        let (mut torn, mut named) = (0, 0);
        for name in log_files(&disk) {
            let bytes = disk.contents(&name).expect("file");
            for at in 4096..bytes.len() {
                let copy = disk.copy();
                let mut bad = bytes.clone();
                bad[at] ^= 0x10;
                copy.overwrite(&name, bad);
                let (wal, recovered) = open(copy.copy());
                if !recovered.damaged.is_empty() {
                    check_honest(&copy, &truth);
                    named += 1;
                    continue;
                }
                let said = said(&wal);
                assert!(said == after[4] || said == after[5], "{name} at {at}");
                torn += usize::from(recovered.torn.is_some() && said == after[4]);
            }
        }
        assert!(torn >= 56 + 56 + 24 && named > 1500, "{torn} {named}");
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
    let (wal, recovered) = open(copy);
    assert!(recovered.torn.is_some_and(|text| text.contains("another group")));
    assert_eq!(said(&wal), before);

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
    let (_, recovered) = open(disk);
    assert!(recovered.damaged[0].starts_with("wal-00000001.seg at offset 4176: damaged"), "{recovered:?}");
    assert!(recovered.loss.is_some_and(|loss| loss.hidden >= Slot(2)));
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

#[test]
fn a_copied_mark_or_segment_of_another_life_is_noticed() {
    let (disk, other) = (MemDisk::new(), MemDisk::new());
    sample(&disk);
    let truth = Truth::of(&disk);
    Wal::format(other.clone(), Identity { incarnation: 100, ..identity() }, SEGMENT).expect("format");
    for name in ["mark", "wal-00000001.seg"] {
        let copy = disk.copy();
        copy.overwrite(name, other.contents(name).expect("file"));
        match name {
            "mark" => assert!(refusal(copy).starts_with(name)),
            _ => assert!(check_honest(&copy, &truth)[0].starts_with(name)),
        }
    }
}

/// Where nothing is ever written, anything at all means that somebody else wrote there.
#[test]
fn nothing_may_stand_where_nothing_is_written() {
    let disk = MemDisk::new();
    sample(&disk);
    let with_byte = |name: &str, at: usize| {
        let copy = disk.copy();
        let mut bytes = copy.contents(name).expect("file");
        if at == bytes.len() {
            bytes.push(0);
        }
        bytes[at] ^= 1;
        copy.overwrite(name, bytes);
        copy
    };
    let truth = Truth::of(&disk);
    for at in [66, 4095, 4096 + 66, 8191] {
        let copy = with_byte("mark", at);
        let named = check_honest(&copy, &truth);
        assert!(named[0].starts_with(&format!("mark at offset {at}: damaged")), "{named:?}");
        drop(open(copy.clone()));
        assert_eq!(open(copy).1.damaged, Vec::<String>::new(), "the first start mended it");
    }
    assert!(refusal(with_byte("mark", 8192)).starts_with("mark"));
    assert!(refusal(with_byte("identity", 4096)).starts_with("identity: damaged"));
    // Behind the record that closes a segment.
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    (1..=2).for_each(|slot| commit(&mut wal, &[accept(slot, 1, 1, 504)]));
    let truth = Truth::of(&disk);
    let end = 4096 + 56 + 504 + 56;
    let first = "wal-00000001.seg";
    for at in [end, end + 9] {
        let copy = disk.copy();
        let mut bytes = copy.contents(first).expect("segment");
        bytes[at] ^= 1;
        copy.overwrite(first, bytes);
        let named = check_honest(&copy, &truth);
        assert!(named[0].starts_with(&format!("{first} at offset {at}: ")), "{named:?}");
    }
}

/// One wrong bit is told from a checksum, so nothing is lost with it but the value of the record that it is in.
#[test]
fn one_wrong_bit_of_a_header_or_a_mark_costs_nothing() {
    let disk = MemDisk::new();
    sample(&disk);
    let truth = Truth::of(&disk);
    let mut places: Vec<(String, usize)> = Vec::new();
    survey(&disk, |seen| {
        let name = format!("wal-{:08}.seg", seen.segment);
        places.extend((0..56).map(|i| (name.clone(), seen.offset as usize + i)));
    })
    .expect("formatted");
    for segment in log_files(&disk) {
        places.extend((0..4096).step_by(61).map(|at| (segment.clone(), at)));
    }
    places.extend((0..58).chain(4096..4096 + 58).map(|at| ("mark".to_string(), at)));
    for (name, at) in places {
        for bit in 0..8 {
            let copy = disk.copy();
            let mut bytes = copy.contents(&name).expect("file");
            bytes[at] ^= 1 << bit;
            copy.overwrite(&name, bytes);
            let recovered = open(copy.copy()).1;
            assert!(recovered.damaged[0].starts_with(&name), "{name} at {at}: {:?}", recovered.damaged);
            let hidden = recovered.loss.as_ref().map_or(Slot::ZERO, |loss| loss.hidden);
            let unknown = recovered.loss.iter().flat_map(|loss| loss.votes.values());
            let unknown = unknown.filter(|vote| matches!(vote, Vote::Lost(None))).count();
            assert_eq!((hidden, unknown), (Slot::ZERO, 0), "{name} at {at}: {:?}", recovered.loss);
            if bit == 3 {
                check_honest(&copy, &truth);
            }
        }
    }
}

/// A mark that is gone may have been the newer one of the two. Then the log must show the group that it may have vouched
/// for: nobody could tell a torn tail from one that was on disk, or say what was promised in it.
#[test]
fn a_lost_mark_must_be_made_up_for_by_the_log() {
    let disk = MemDisk::new();
    sample(&disk);
    let truth = Truth::of(&disk);
    let last = log_files(&disk).pop().expect("a segment");
    let bytes = disk.contents("mark").expect("mark");
    let (newer, older) = if bytes[16] > bytes[4096 + 16] { (0, 4096) } else { (4096, 0) };
    let without = |at: usize, unreadable: bool| {
        let copy = disk.copy();
        let mut bytes = bytes.clone();
        bytes[at + 1] ^= 0xff;
        if unreadable {
            copy.ruin("mark", at as u64);
        } else {
            copy.overwrite("mark", bytes);
        }
        copy
    };
    for unreadable in [false, true] {
        let whole_log = without(newer, unreadable);
        let named = check_honest(&whole_log, &truth);
        assert!(named[0].starts_with(&format!("mark at offset {newer}: damaged")), "{named:?}");
        let text = refusal(without(older, unreadable));
        assert!(text.contains("one of two marks is lost"), "{text}");
        // Whether the end of the log is damaged, was never written, or cannot be read.
        for harm in 0..3 {
            let copy = without(newer, unreadable);
            let mut log = copy.contents(&last).expect("segment");
            let end = log.iter().rposition(|byte| *byte != 0).expect("records");
            match harm {
                0 => log[end - 60] ^= 0xff,
                1 => log[end - 300..].fill(0),
                _ => {}
            }
            copy.overwrite(&last, log);
            if harm == 2 {
                copy.ruin(&last, end as u64);
            }
            for _ in 0..2 {
                let text = refusal(copy.clone());
                assert!(text.contains("one of two marks is lost"), "{text}");
            }
        }
    }
}

/// What a disk cannot read is lost like any other damage, and everything around it is not.
#[test]
fn an_unreadable_sector_is_named_or_refused() {
    let disk = MemDisk::new();
    sample(&disk);
    let truth = Truth::of(&disk);
    let (mut refused, mut named) = (0, 0);
    for name in disk.list().expect("list") {
        let len = disk.contents(&name).expect("file").len();
        for at in (0..len).step_by(512) {
            let copy = disk.copy();
            copy.ruin(&name, at as u64);
            assert!(!survey(&copy, |_| {}).expect("formatted").faults.is_empty(), "{name} at {at}");
            match Wal::open(copy.copy(), expected()) {
                Ok((_, recovered)) => {
                    let text = format!("{name} at offset {at}: damaged (S2): cannot read");
                    let header = format!("{name} at offset 0: damaged (S2): cannot read");
                    let found = |text: &str| recovered.damaged.iter().any(|found| found.starts_with(text));
                    assert!(
                        found(&text) || at < 4096 && found(&header),
                        "{name} at {at}: {:?}",
                        recovered.damaged
                    );
                    check_honest(&copy, &truth);
                    named += 1;
                }
                Err(e) => {
                    assert!(e.to_string().starts_with(&name), "{name} at {at}: {e}");
                    assert!(matches!(e, StorageError::Damaged { .. }), "{e}");
                    refused += 1;
                }
            }
        }
    }
    // The identity, and the older of the two marks.
    assert!(refused >= 9 && named >= 40, "{refused} {named}");
}

/// A record that is written to another place than its own covers what stood there, and leaves its own place as it was.
#[test]
fn a_misdirected_or_lost_write_is_noticed() {
    let disk = MemDisk::new();
    sample(&disk);
    let truth = Truth::of(&disk);
    let mut groups: BTreeMap<u64, (String, usize, usize)> = BTreeMap::new();
    survey(&disk, |seen| {
        let (name, at) = (format!("wal-{:08}.seg", seen.segment), seen.offset as usize);
        let end = at + 56 + seen.payload.len().next_multiple_of(8);
        let group = groups.entry(seen.group).or_insert((name.clone(), at, end));
        // The part of a group that lies in the segment where it begins: each is a write of its own.
        if group.0 == name {
            group.2 = end;
        }
    })
    .expect("formatted");
    let (mut named, mut refused) = (0, 0);
    for (name, from, to) in groups.values() {
        let bytes = disk.contents(name).expect("segment");
        for target in (4096..bytes.len() - (to - from)).step_by(8).map(Some).chain([None]) {
            let mut bad = bytes.clone();
            bad[*from..*to].fill(0);
            if let Some(target) = target.filter(|target| target != from) {
                bad[target..target + to - from].copy_from_slice(&bytes[*from..*to]);
            } else if target.is_some() {
                continue;
            }
            let copy = disk.copy();
            copy.overwrite(name, bad);
            match Wal::open(copy.copy(), expected()) {
                // The last group in another place than the mark says.
                Err(StorageError::Damaged { .. }) => refused += 1,
                Err(e) => panic!("{e}"),
                Ok(_) => {
                    assert!(!check_honest(&copy, &truth).is_empty(), "{name}: {from} to {target:?}");
                    named += 1;
                }
            }
        }
    }
    assert!(named > 250 && refused < named / 4, "{named} {refused}");
}

/// The end of a segment written over records in front of it, of the same write: what is behind is lost, and the server had
/// come farther by then than to the group before.
#[test]
fn an_end_within_its_own_group_hides_the_votes_behind_it() {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    commit(&mut wal, &[accept(1, 1, 1, 8)]);
    commit(&mut wal, &(2..=40).map(|slot| accept(slot, 1, slot as u8, 8)).collect::<Vec<_>>());
    commit(&mut wal, &[accept(41, 1, 41, 8)]);
    drop(wal);
    let truth = Truth::of(&disk);
    let mut places = Vec::new();
    survey(&disk, |seen| places.extend((seen.segment == 1).then_some(seen.offset as usize)))
        .expect("formatted");
    let bytes = disk.contents("wal-00000001.seg").expect("segment");
    let end = places.pop().expect("records");
    for target in places {
        let mut bad = bytes.clone();
        bad.copy_within(end..end + 56, target);
        let copy = disk.copy();
        copy.overwrite("wal-00000001.seg", bad);
        assert!(!check_honest(&copy, &truth).is_empty(), "{target}");
    }
}

/// Both begin with a block of the same make, so that only what the block says tells them apart.
#[test]
fn a_segment_is_no_identity() {
    let disk = MemDisk::new();
    sample(&disk);
    let segment = disk.contents("wal-00000001.seg").expect("segment");
    for len in [4096, segment.len()] {
        let copy = disk.copy();
        copy.overwrite("identity", segment[..len].to_vec());
        let text = refusal(copy);
        assert!(text.starts_with("identity: damaged") && text.contains("not an identity"), "{text}");
    }
}

/// A mark names the promise too: two logs of the same shape may have promised different ballots.
#[test]
fn a_mark_with_another_promise_is_refused() {
    let life = |groups: u64, round: u64| {
        let disk = MemDisk::new();
        let mut wal = format(disk.clone());
        (1..=groups).for_each(|slot| commit(&mut wal, &[accept(slot, round, 1, 80)]));
        disk
    };
    for (group, offset) in [(2, 0), (3, 4096)] {
        let disk = life(group, 1);
        disk.overwrite("mark", life(group, 2).contents("mark").expect("mark"));
        let text = refusal(disk);
        assert!(text.starts_with(&format!("mark at offset {offset}: damaged")), "{text}");
        assert!(text.contains(&format!("how group {group} ends")), "{text}");
    }
}

/// A read trusts nothing: what stands in the place of a value must be that slot's, of that segment, and a value.
#[test]
fn a_read_takes_no_other_record_for_the_value() {
    let disk = MemDisk::new();
    let mut wal = format(disk.clone());
    // Each of the first three takes 56 + 8 bytes, Decided 56; then slot 1 once more, in the second segment.
    commit(&mut wal, &[accept(1, 1, 1, 8), accept(2, 1, 2, 8), accept(3, 1, 3, 8), Record::Decided(Slot(2))]);
    commit(&mut wal, &[accept(4, 1, 4, 700), accept(5, 1, 5, 8), accept(1, 1, 6, 8)]);
    let (one, two) = ("wal-00000001.seg", "wal-00000002.seg");
    let bytes =
        |name: &str, at: usize, len: usize| disk.contents(name).expect("segment")[at..at + len].to_vec();
    let start = |slot: usize| 4096 + (slot - 1) * 64;
    let last = disk.contents(two).expect("segment").iter().rposition(|b| *b != 0).expect("not blank");
    let again = last + 1 - 64;
    assert_eq!(wal.read(Slot(1), 0).expect("read"), [(Slot(1), ballot(1), value(6, 8))]);
    for (what, slot, name, at, record) in [
        ("another slot's", 2, one, start(2), bytes(one, start(3), 64)),
        ("one without a value", 2, one, start(2), bytes(one, start(4), 56)),
        ("one of another segment", 1, two, again, bytes(one, start(1), 64)),
    ] {
        let good = disk.contents(name).expect("segment");
        let mut bad = good.clone();
        bad[at..at + record.len()].copy_from_slice(&record);
        disk.overwrite(name, bad);
        let text = wal.read(Slot(slot), 0).expect_err(what).to_string();
        assert!(text.contains("another record in place") && text.contains(&format!("slot {slot}")), "{text}");
        disk.overwrite(name, good);
        assert_eq!(wal.read(Slot(slot), 0).expect("as before").len(), 1);
    }
}
