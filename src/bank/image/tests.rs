//! An image gives back the bank it was taken from, and nothing else passes for one.

use proptest::prelude::*;

use super::*;
use crate::bank::{Effects, command};
use crate::types::{AccountId, Transfer};

const D1: ShardId = ShardId(1);
const PIECE: u32 = 256 * 1024;
const BOTH: [ShardId; 2] = [ShardId(1), ShardId(2)];

fn topology(accounts: u64) -> Topology {
    Topology { clusters: 2, servers_per_cluster: 1, accounts, initial_balance: 10 }
}

/// A command on one sequence: what it is, and two small numbers.
fn apply(bank: &mut Bank, accounts: u64, session: Session, (kind, seq, n): (u8, u64, u64)) {
    let mut bytes = Vec::new();
    let range = command::Range { session, first: seq, count: 1 };
    let (from, to) = (AccountId(n % 8 + 1), AccountId((n + seq) % 8 + 1));
    let across = Transfer { from, to: AccountId(accounts / 2 + to.0), amount: 3 };
    match kind {
        0 if n.is_multiple_of(2) => command::named::put_open(&mut bytes),
        0 => command::put_open(&mut bytes),
        1 => command::put_transfers(&mut bytes, range, &[Transfer { from, to, amount: 2 }]),
        2 => command::put_prepare(&mut bytes, range, BOTH, &[across]),
        3 => command::put_outcome(&mut bytes, range, &[(n % 2) as u8]),
        4 => command::put_fence(&mut bytes, command::Range { first: seq + 70_000 * (n % 2), ..range }),
        _ => command::put_mark(&mut bytes, session, seq),
    }
    bank.apply(bank.applied().next(), &Value(bytes.into()), &mut Effects::default());
}

fn incoming(image: &Image, topology: Topology) -> Incoming {
    let mut incoming = Incoming::new(image.cut(), &topology, D1).expect("a likely size");
    while let Some(n) = incoming.wanted() {
        assert!(incoming.push(&image.piece(n)), "piece {n}");
    }
    incoming
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// P4: whatever a bank has been through, its image makes an equal one, also when the bank went on meanwhile; and the
    /// incremental digest is the one that is computed from the whole state.
    #[test]
    fn an_image_gives_the_bank_back(
        steps in prop::collection::vec((0u8..6, 1u64..12, 0u64..40), 1..60),
        more in prop::collection::vec((0u8..6, 1u64..12, 0u64..40), 1..20),
        large in any::<bool>(),
        words in 1u32..9,
    ) {
        let topology = topology(if large { 20_000 } else { 16 });
        let piece = if large { 65_536 } else { 8 * words };
        let mut bank = Bank::new(topology, D1);
        let (own, foreign) = (Session::new(D1, 1), Session::new(ShardId(2), 7));
        let session = |n: u64| if n.is_multiple_of(3) { foreign } else { own };
        let apply = |bank: &mut Bank, session, step| apply(bank, topology.accounts, session, step);
        apply(&mut bank, own, (0, 1, 0));
        steps.iter().for_each(|step| apply(&mut bank, session(step.2), *step));
        let (image, before) = (bank.image(piece), bank.clone());
        more.iter().for_each(|step| apply(&mut bank, session(step.2), *step));
        let bytes: usize = (0..image.cut().pieces()).map(|n| image.piece(n).len()).sum();
        prop_assert_eq!(bytes as u64, image.cut().bytes);
        prop_assert!(image.piece(image.cut().pieces()).is_empty());
        let again = incoming(&image, topology).finish(topology, D1);
        prop_assert_eq!(again.as_ref(), Ok(&before));
        prop_assert_eq!(again.map(|bank| bank.image(piece)), Ok(image));
    }

    /// Every flipped bit is noticed, wherever it is.
    #[test]
    fn a_damaged_image_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let topology = topology(16);
        let mut bank = Bank::new(topology, D1);
        let session = Session::new(D1, 1);
        for step in [(0, 1, 0), (2, 1, 1), (2, 2, 3), (1, 3, 4), (4, 4, 1), (3, 2, 1), (5, 2, 0)] {
            apply(&mut bank, 16, session, step);
        }
        let image = bank.image(1 << 20);
        let mut piece = image.piece(0);
        let at = at.index(piece.len());
        piece[at] ^= 1 << bit;
        let mut damaged = Incoming::new(image.cut(), &topology, D1).expect("a likely size");
        prop_assert!(damaged.push(&piece));
        let taken = damaged.finish(topology, D1);
        prop_assert!(taken.is_err(), "bit {} of byte {} makes {:?}", bit, at, taken);
    }
}

#[test]
fn pieces_of_another_size_and_unlikely_images_are_refused() {
    let topology = topology(150_000);
    let image = Bank::new(topology, D1).image(PIECE);
    let cut = image.cut();
    assert!(cut.pieces() > 2);
    let mut incoming = Incoming::new(cut, &topology, D1).expect("a likely size");
    assert!(!incoming.push(&image.piece(0)[1..]) && !incoming.push(&[]));
    assert!(incoming.push(&image.piece(0)) && incoming.push(&image.piece(1)));
    assert_eq!(incoming.wanted(), Some(2));
    assert!(incoming.clone().finish(topology, D1).is_err(), "it is not complete");
    for bytes in [0, 75_000 * 8 - 1, 75_000 * 8 + MAX_REST + 1] {
        assert!(Incoming::new(Cut { bytes, ..cut }, &topology, D1).is_err(), "{bytes}");
    }
    let other = Cut { digest: cut.digest ^ 1, ..cut };
    let mut incoming = Incoming::new(other, &topology, D1).expect("a likely size");
    while let Some(n) = incoming.wanted() {
        assert!(incoming.push(&image.piece(n)));
    }
    assert!(incoming.finish(topology, D1).is_err_and(|e| e.starts_with("P4")));
}

/// What is written as a snapshot is compared with its digest, whatever becomes wrong: a balance, a hold, a register.
#[test]
fn a_verifier_finds_what_differs_from_the_digest() {
    let mut bank = Bank::new(topology(20), D1);
    let session = Session::new(D1, 1);
    for step in [(0, 1, 0), (1, 1, 1), (2, 2, 4), (2, 3, 2), (3, 3, 1), (4, 4, 1), (1, 5, 6)] {
        apply(&mut bank, 20, session, step);
    }
    for piece_bytes in [8, 24, PIECE] {
        let image = bank.image(piece_bytes);
        let pieces: Vec<Vec<u8>> = (0..image.cut().pieces()).map(|n| image.piece(n)).collect();
        let verify = |pieces: &[Vec<u8>]| {
            let mut verifier = Verifier::new(image.cut(), &topology(20), D1);
            let (last, others) = pieces.split_last().expect("some");
            others.iter().for_each(|piece| assert_eq!(verifier.push(piece), Ok(())));
            verifier.push(last)
        };
        assert_eq!(verify(&pieces), Ok(()));
        for (n, at) in pieces.iter().enumerate().flat_map(|(n, p)| (0..p.len()).map(move |at| (n, at))) {
            let mut wrong = pieces.clone();
            wrong[n][at] ^= 1;
            assert!(verify(&wrong).is_err(), "byte {at} of piece {n}");
        }
    }
}

/// Whatever clients may do to a session, its image can be read back.
#[test]
fn the_highest_mark_fits_into_an_image() {
    let mut bank = Bank::new(topology(20), D1);
    let session = Session::new(D1, 1);
    for step in [(0, 1, 0), (5, 1 << 60, 0), (4, 1 << 60, 2)] {
        apply(&mut bank, 20, session, step);
    }
    let image = bank.image(PIECE);
    assert_eq!(incoming(&image, topology(20)).finish(topology(20), D1), Ok(bank));
}
