//! What a log may say that was opened in spite of damage (S2).

use std::collections::BTreeMap;

use super::*;
use shardpaxosbank::types::Loss;

/// What a log says while it is whole.
pub struct Truth {
    promised: Ballot,
    decided: Slot,
    votes: BTreeMap<Slot, (Ballot, Value)>,
}

impl Truth {
    pub fn of(disk: &MemDisk) -> Truth {
        let (wal, recovered) = open(disk.copy());
        assert!(recovered.damaged.is_empty() && recovered.torn.is_none(), "{recovered:?}");
        let first = recovered.snapshot.map_or(Slot(1), |cut| cut.slot.next());
        let votes = wal.read(first, LIMIT).expect("read");
        let votes = votes.into_iter().map(|(slot, ballot, value)| (slot, (ballot, value))).collect();
        Truth { promised: wal.promised(), decided: wal.decided(), votes }
    }

    fn last(&self) -> Slot {
        self.votes.keys().next_back().copied().unwrap_or_default()
    }
}

/// Opens a damaged log, which says nothing wrong and vouches for nothing that it cannot know; goes on with it as a server
/// does that its peers help, and opens it once more. Returns the faults that were named.
pub fn check_honest(disk: &MemDisk, truth: &Truth) -> Vec<String> {
    let disk = disk.copy();
    let (mut wal, recovered) = open(disk.copy());
    check_recovered(&wal, &recovered, truth);
    // Whatever the first start wrote, the second one may say no more.
    drop(open(disk.clone()));
    let again;
    (wal, again) = open(disk.clone());
    let loss = check_recovered(&wal, &again, truth);
    let end = truth.last().max(loss.hidden).max(Slot(truth.last().0 + 1));
    for slot in again.decided.0 + 1..=end.0 {
        let value = match truth.votes.get(&Slot(slot)) {
            Some((_, value)) if Slot(slot) <= truth.decided => value.clone(),
            _ => value(slot as u8, 9),
        };
        commit(&mut wal, &[Record::Accept { slot: Slot(slot), ballot: ballot(50), value }]);
    }
    let now = wal.read(again.decided.next(), LIMIT).expect("read");
    assert_eq!(now.last().map(|(slot, ..)| *slot), Some(end));
    drop(wal);
    disk.crash(|_| Kept::Lost);
    let (wal, healed) = open(disk);
    assert_eq!(healed.promised, ballot(50));
    let lost = healed.loss.map_or(Slot::ZERO, |loss| {
        let cast = |vote: &Vote| matches!(vote, Vote::Cast(..));
        assert!(loss.votes.values().all(cast), "{loss:?}");
        loss.hidden
    });
    assert_eq!(lost, Slot::ZERO, "nothing is in doubt that was voted on again");
    assert_eq!(wal.read(again.decided.next(), LIMIT).expect("read"), now);
    assert!(healed.damaged.is_empty() || !recovered.damaged.is_empty());
    recovered.damaged
}

fn check_recovered(wal: &Wal<MemDisk>, recovered: &Recovered, truth: &Truth) -> Loss {
    let Recovered { promised, decided, .. } = *recovered;
    let cast = recovered.votes.iter().cloned().map(|(slot, ballot, value)| (slot, Vote::Cast(ballot, value)));
    let whole = Loss { known: decided, votes: cast.collect(), hidden: Slot::ZERO, gaps: Vec::new() };
    let loss = recovered.loss.clone().unwrap_or(whole);
    assert_eq!(promised, truth.promised);
    assert!(decided <= loss.known && loss.known <= truth.decided, "{decided} {loss:?} {}", truth.decided);
    let base = recovered.snapshot.map_or(Slot::ZERO, |cut| cut.slot);
    for slot in (base.0 + 1..=loss.known.0).map(Slot) {
        let found = wal.read(slot, 0).expect("read").into_iter().find(|(found, ..)| *found == slot);
        assert!(found.is_some() || slot > decided, "slot {slot} is missing");
        if let (Some((_, _, value)), Some((_, wanted))) = (found, truth.votes.get(&slot)) {
            assert_eq!(value, *wanted, "slot {slot}");
        }
    }
    for slot in (loss.known.0 + 1..=truth.last().max(loss.hidden).0 + 3).map(Slot) {
        let held = truth.votes.get(&slot);
        match (loss.votes.get(&slot), held) {
            (Some(Vote::Cast(ballot, value)), Some(held)) => assert_eq!((ballot, value), (&held.0, &held.1)),
            (Some(Vote::Lost(Some(ballot))), Some(held)) => assert_eq!(*ballot, held.0),
            (Some(Vote::Lost(None)), _) => {}
            (None, None) => {}
            (None, Some(_)) => {
                assert!(slot <= loss.hidden, "the vote for slot {slot} is forgotten: {loss:?}")
            }
            (told, held) => panic!("slot {slot}: told {told:?}, held {held:?}"),
        }
    }
    loss
}
