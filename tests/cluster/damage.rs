//! Every byte of one server's files flipped, and every length that they may be cut to: the cluster heals it, or the server
//! refuses to start and says where; never another state than that of the others (S1, S2, S3).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::world::{S1, S2, S3, TOPOLOGY, World, expected, wal};
use shardpaxosbank::config::{Limits, Timeouts};
use shardpaxosbank::drive;
use shardpaxosbank::paxos::Event;
use shardpaxosbank::storage::{MemDisk, StorageError, Wal, survey};
use shardpaxosbank::txn::message::Response;
use shardpaxosbank::types::{NodeId, Slot, Time};

/// Starts these servers from their disks. `Err` says which of them does not start, and why.
fn start(disks: &BTreeMap<NodeId, MemDisk>) -> Result<World, (NodeId, StorageError)> {
    let now = Time(1_000_000);
    let mut servers = BTreeMap::new();
    for (id, disk) in disks {
        let begin = || {
            let (mut wal, recovered) = Wal::open(disk.clone(), expected(*id))?;
            // What is applied is soon only on disk.
            let limits = Limits { digest_slots: 4, tail_bytes: 0, ..Limits::default() };
            let random = u64::from(id.0) * 77;
            let around = (Timeouts::default(), limits);
            let shard = drive::restore(*id, TOPOLOGY, around, now, random, &mut wal, recovered)?;
            Ok((shard, wal))
        };
        servers.insert(*id, begin().map_err(|e| (*id, e))?);
    }
    Ok(World::new(now, servers))
}

/// Runs until somebody leads, and then until all servers have the same state; false if that takes too long.
fn comes_to_rest(world: &mut World) -> bool {
    for _ in 0..40 {
        world.pass(Duration::from_millis(100));
        let leader =
            world.servers.iter().find(|(_, (shard, _))| shard.replica().is_leader()).map(|(id, _)| *id);
        let Some(leader) = leader else { continue };
        let answered = matches!(world.open_at(leader)[..], [Response::Done { .. }]);
        world.pass(Duration::from_millis(100));
        let states = world.servers.values().map(|(shard, _)| (shard.bank().applied(), shard.bank().digest()));
        let states: Vec<_> = states.collect();
        if answered && states.iter().all(|state| *state == states[0]) {
            return true;
        }
    }
    false
}

/// The disks of three servers whose log has some slots, not all of them known as decided everywhere.
fn disks() -> (BTreeMap<NodeId, MemDisk>, Slot) {
    let disks: BTreeMap<NodeId, MemDisk> = [S1, S2, S3].map(|id| (id, MemDisk::new())).into();
    disks.iter().for_each(|(id, disk)| drop(wal(disk, *id)));
    let mut world = start(&disks).expect("they are new");
    world.elect();
    for _ in 0..6 {
        assert!(matches!(world.open()[..], [Response::Done { .. }]));
    }
    let decided = world.servers[&S1].0.replica().decided();
    (disks, decided)
}

/// What one server's disk is done to is healed, or refused with the file's name.
fn judge(
    disks: &BTreeMap<NodeId, MemDisk>,
    decided: Slot,
    (victim, name): (NodeId, &str),
    content: Vec<u8>,
    what: &str,
) -> bool {
    let copies: BTreeMap<NodeId, MemDisk> = disks.iter().map(|(id, disk)| (*id, disk.copy())).collect();
    copies[&victim].overwrite(name, content);
    match start(&copies) {
        Err((id, e)) => {
            assert_eq!(id, victim, "{what}: {e}");
            assert!(e.to_string().starts_with(name), "{what}: {e}");
            false
        }
        Ok(mut world) => {
            assert!(comes_to_rest(&mut world), "{what}: not at rest");
            assert!(world.stopped.is_empty(), "{what}: {:?}", world.stopped);
            let applied = world.servers[&victim].0.bank().applied();
            assert!(applied > decided, "{what}: {applied} of {decided}");
            true
        }
    }
}

/// How much of each file was ever written.
fn files(disk: &MemDisk) -> Vec<(String, Vec<u8>, usize)> {
    let all = ["identity", "mark", "wal-00000001.seg"];
    let file = |name: &str| {
        let content = disk.contents(name).expect("a file");
        let written = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        (name.to_string(), content, written)
    };
    all.into_iter().map(file).collect()
}

#[test]
fn every_flipped_byte_is_healed_or_refused() {
    let (disks, decided) = disks();
    let (mut healed, mut refused) = (0, 0);
    for (name, content, written) in files(&disks[&S1]) {
        // Blocks are mostly zeros, each as good as the other.
        let step = |at: usize| if name == "wal-00000001.seg" && at >= 4096 || at < 160 { 1 } else { 37 };
        let mut at = 0;
        while at < written.max(4200) && at < content.len() {
            for flip in if at.is_multiple_of(2) { [0x04] } else { [0xff] } {
                let victim = [S1, S2, S3][at % 3];
                let (_, mut bad, _) =
                    files(&disks[&victim]).into_iter().find(|file| file.0 == name).expect("a file");
                bad[at] ^= flip;
                let what = format!("{name} of {victim}, byte {at} ^ {flip:#x}");
                let whole = judge(&disks, decided, (victim, &name), bad, &what);
                if whole { healed += 1 } else { refused += 1 }
            }
            at += step(at);
        }
    }
    assert!(healed > 500 && refused > 100, "{healed} {refused}");
}

#[test]
fn every_cut_is_healed_or_refused() {
    let (disks, decided) = disks();
    let (mut healed, mut refused) = (0, 0);
    for (name, content, written) in files(&disks[&S1]) {
        let segment = name.ends_with(".seg");
        for len in (0..content.len()).filter(|len| segment && (4096..written).contains(len) || len % 101 == 0)
        {
            let victim = [S1, S2, S3][len % 3];
            let (_, mut cut, _) =
                files(&disks[&victim]).into_iter().find(|file| file.0 == name).expect("a file");
            cut.truncate(len);
            let what = format!("{name} of {victim} cut to {len}");
            let whole = judge(&disks, decided, (victim, &name), cut, &what);
            if whole { healed += 1 } else { refused += 1 }
        }
    }
    assert!(healed > 500 && refused > 50, "{healed} {refused}");
}

/// What is whole nowhere stops the cluster, which names it and guesses nothing; one whole copy is enough.
#[test]
fn a_decided_value_that_nobody_has_stops_the_cluster_by_name() {
    let (disks, _) = disks();
    let spoil = |disk: &MemDisk, slots: &[u64]| {
        let mut places = Vec::new();
        survey(disk, |seen| {
            if slots.contains(&seen.slot.0) && !seen.payload.is_empty() {
                places.push(seen.offset as usize + 56);
            }
        })
        .expect("formatted");
        let mut content = disk.contents("wal-00000001.seg").expect("segment");
        places.into_iter().for_each(|at| content[at] ^= 0xff);
        disk.overwrite("wal-00000001.seg", content);
    };
    for whole_somewhere in [false, true] {
        let copies: BTreeMap<NodeId, MemDisk> = disks.iter().map(|(id, disk)| (*id, disk.copy())).collect();
        spoil(&copies[&S1], &[2, 4]);
        spoil(&copies[&S2], &[2, 4]);
        spoil(&copies[&S3], if whole_somewhere { &[] } else { &[2, 3, 4] });
        let mut world = start(&copies).expect("each knows what it lost");
        assert_eq!(comes_to_rest(&mut world), whole_somewhere);
        if !whole_somewhere {
            let named = world.events.iter().find_map(|event| match event {
                Event::Lost { slots, decided: true } => Some(slots.clone()),
                _ => None,
            });
            assert_eq!(named, Some(vec![(Slot(2), Slot(2)), (Slot(4), Slot(4))]));
            let applied: Vec<_> = world.servers.values().map(|(shard, _)| shard.bank().applied()).collect();
            assert_eq!(applied, [Slot(1); 3], "nothing is guessed");
        }
    }
}

/// A value goes bad on the disk of a server that runs: it is fetched from another one and written again, and whoever
/// wanted it gets it.
#[test]
fn a_value_that_goes_bad_under_a_running_server_is_written_again() {
    let (disks, decided) = disks();
    let mut world =
        start(&disks.iter().filter(|(id, _)| **id != S3).map(|(id, disk)| (*id, disk.clone())).collect())
            .expect("they are sound");
    assert!(comes_to_rest(&mut world));
    let leader =
        *world.servers.iter().find(|(_, (shard, _))| shard.replica().is_leader()).expect("a leader").0;
    let mut content = disks[&leader].contents("wal-00000001.seg").expect("segment");
    let mut place = None;
    survey(&disks[&leader], |seen| {
        if seen.slot == decided && !seen.payload.is_empty() {
            place = Some(seen.offset as usize + 56);
        }
    })
    .expect("formatted");
    content[place.expect("a record")] ^= 1;
    disks[&leader].overwrite("wal-00000001.seg", content);
    // S3 comes with an empty disk of the same name, as one that was away from the first slot on.
    let blank = MemDisk::new();
    drop(wal(&blank, S3));
    let late = start(&BTreeMap::from([(S3, blank)])).expect("it is new");
    world.servers.extend(late.servers);
    world.pass(Duration::from_millis(2_000));
    assert!(world.events.contains(&Event::Rewritten { slot: decided }), "{decided}");
    assert!(comes_to_rest(&mut world));
    drop(world);
    let recovered = Wal::open(disks[&leader].clone(), expected(leader)).expect("it starts").1;
    assert!(recovered.loss.is_none(), "the second copy stands for the first");
}
