//! Blocks on their way to bytes and back, and what is refused of the bytes that others send.

use super::*;

const SESSION: Session = Session(1 << 48 | 7);
const BOTH: [ShardId; 2] = [ShardId(1), ShardId(2)];

// Where a header's fields stand.
const BYTES: usize = 0;
const KIND: usize = 4;
const ZERO: usize = 5;
const PARTICIPANTS: usize = 6;
const ZERO2: usize = 10;
const COUNT: usize = 12;
const SESSION_AT: usize = 16;
const FIRST: usize = 24;

fn range(first: u64, count: u32) -> Range {
    Range { session: SESSION, first, count }
}

fn transfers(count: u64) -> Vec<Transfer> {
    let transfer = |i| Transfer { from: AccountId(i), to: AccountId(1 << 40 | i), amount: -(i as i64) };
    (1..=count).map(transfer).collect()
}

fn block(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes);
    bytes
}

/// One block of every kind.
fn samples() -> [Vec<u8>; 10] {
    [
        block(put_open),
        block(|out| put_mark(out, SESSION, 9)),
        block(|out| put_transfers(out, range(1, 3), &transfers(3))),
        block(|out| put_prepare(out, range(4, 2), BOTH, &transfers(2))),
        block(|out| put_outcome(out, range(4, 9), &[0b1010_0101, 1])),
        block(|out| put_fence(out, range(1 << 60, 5))),
        block(|out| put_close(out, SESSION)),
        block(|out| put_expire(out, SESSION, &[Session(1 << 48 | 2), Session(1 << 48 | 6)])),
        block(named::put_open),
        block(|out| put_touch(out, SESSION)),
    ]
}

#[test]
fn blocks_survive_the_way_to_bytes_and_back() {
    let value = samples().concat();
    assert_eq!(check(&value).map(|size| size.blocks), Ok(10));
    assert_eq!(check(&[]), Ok(Size::default()), "the no-op");
    let all: Vec<Command> = blocks(&value).map(|b| b.expect("what was put")).collect();
    let got = |records: &[TransferRecord]| records.iter().map(TransferRecord::get).collect::<Vec<_>>();
    let [Command::Open { named: false }, Command::Mark { session: SESSION, mark: 9 }, rest @ ..] = &all[..]
    else {
        panic!("an open and a mark")
    };
    let [Command::Transfers { range: a, records: moved, named: false }, rest @ ..] = rest else {
        panic!("transfers")
    };
    assert_eq!((*a, got(moved)), (range(1, 3), transfers(3)));
    assert_eq!(a.seqs(), 1..4);
    let [Command::Prepare { range: b, participants: BOTH, records: prepared, named: false }, rest @ ..] =
        rest
    else {
        panic!("a prepare")
    };
    assert_eq!((*b, got(prepared)), (range(4, 2), transfers(2)));
    let [
        Command::Outcome { range: c, commits, names: [] },
        Command::Fence { range: d, names: [] },
        rest @ ..,
    ] = rest
    else {
        panic!("an outcome and a fence")
    };
    let [Command::Close { session: SESSION }, Command::Expire { session: SESSION, live }, rest @ ..] = rest
    else {
        panic!("a close and an expiry")
    };
    let [Command::Open { named: true }, Command::Touch { session: SESSION }] = rest else {
        panic!("an open for names and a touch")
    };
    assert_eq!(live.iter().map(|n| n.get()).collect::<Vec<_>>(), [2, 6]);
    assert_eq!((*c, *d), (range(4, 9), range(1 << 60, 5)));
    let yes: Vec<usize> = (0..9).filter(|i| bit(commits, *i)).collect();
    assert_eq!(yes, [0, 2, 5, 7, 8]);
    assert_eq!(bits((0..9).map(|i| yes.contains(&i))), *commits);
    assert_eq!(transfers_bytes(3), samples()[2].len());
}

#[test]
fn what_is_cut_off_is_refused() {
    for sample in samples() {
        for len in 1..sample.len() {
            assert!(check(&sample[..len]).is_err(), "{len} of {} bytes", sample.len());
        }
    }
    let [open, mark, ..] = samples();
    let error = check(&[&open[..], &mark[..31]].concat()).expect_err("half a header");
    assert!(error.starts_with("block 2: 31 bytes"), "{error}");
    // After an error nothing more is yielded, although what follows would look like a block.
    let bad = block(|out| put_mark(out, Session(0), 1));
    assert_eq!(blocks(&[&bad[..], &open[..]].concat()).count(), 1);
}

/// Every field that means nothing in a block is zero, and every other one means something: servers that take different
/// bytes for the same block would drift apart.
#[test]
fn each_wrong_field_is_refused() {
    let [open, mark, transfers, prepare, outcome, fence, close, expire, naming, touch] = samples();
    let longer = |sample: &[u8]| {
        let mut bytes = [sample, &[0; 8]].concat();
        bytes[BYTES] += 8;
        bytes
    };
    for sample in [&open, &mark, &transfers, &prepare, &outcome, &fence, &close, &expire, &naming, &touch] {
        assert!(check(&longer(sample)).is_err(), "a longer body of kind {}", sample[KIND]);
        for (at, byte) in [
            (ZERO, 2),
            (ZERO2, 1),
            (ZERO2 + 1, 1),
            (BYTES, 31),
            (BYTES + 3, 1),
            (KIND, 0),
            (KIND, 9),
            (KIND, 11),
        ] {
            let mut bytes = sample.clone();
            bytes[at] = byte;
            assert!(check(&bytes).is_err(), "{byte} at {at} of kind {}", sample[KIND]);
        }
    }
    let refused = |sample: &[u8], at: usize, field: &[u8]| {
        let mut bytes = sample.to_vec();
        bytes[at..at + field.len()].copy_from_slice(field);
        check(&bytes).is_err()
    };
    for at in [COUNT, SESSION_AT, FIRST] {
        assert!(refused(&open, at, &[1]), "an open with something at {at}");
    }
    assert!(refused(&mark, COUNT, &[1]));
    assert!(refused(&close, COUNT, &[1]) && refused(&close, FIRST, &[1]) && refused(&expire, FIRST, &[1]));
    assert!(refused(&expire, COUNT, &[1]) && refused(&expire, COUNT, &[3]));
    for number in [0, 7, 1 << 48] {
        let others = expire[..expire.len() - 8].len();
        assert!(refused(&expire, others, &u64::to_le_bytes(number)), "{number} is no older session");
    }
    let session = |session: Session| session.0.to_le_bytes();
    for sample in [&mark, &transfers, &prepare, &outcome, &fence, &close] {
        assert!(refused(sample, SESSION_AT, &session(Session(7))), "a session of no shard");
        assert!(refused(sample, SESSION_AT, &session(Session(1 << 48))), "session 0 of a shard");
        assert!(!refused(sample, SESSION_AT, &session(Session(2 << 48 | 1))));
    }
    for sample in [&transfers, &prepare, &outcome, &fence] {
        assert!(refused(sample, FIRST, &0u64.to_le_bytes()));
        assert!(refused(sample, FIRST, &((1u64 << 60) + 1).to_le_bytes()));
        assert!(!refused(sample, FIRST, &(1u64 << 60).to_le_bytes()));
        assert!(refused(sample, COUNT, &[0]));
    }
    assert!(refused(&transfers, COUNT, &[2]) && refused(&transfers, COUNT, &[4]));
    assert!(refused(&prepare, COUNT, &[1]) && refused(&prepare, COUNT, &[3]));
    assert!(
        refused(&outcome, COUNT, &[8]) && refused(&outcome, COUNT, &[17]) && !refused(&outcome, COUNT, &[16])
    );
    for participants in [[0, 0, 2, 0], [1, 0, 0, 0], [2, 0, 2, 0], [3, 0, 2, 0]] {
        assert!(refused(&prepare, PARTICIPANTS, &participants), "{participants:?}");
    }
}

/// A mark is a sequence, too: one that no snapshot could hold would stop every server at its next one.
#[test]
fn sequences_and_marks_have_the_same_bound() {
    for (first, fits) in [(1 << 60, true), ((1 << 60) + 1, false), (u64::MAX, false)] {
        let (mut mark, mut fence) = (Vec::new(), Vec::new());
        put_mark(&mut mark, SESSION, first);
        put_fence(&mut fence, Range { session: SESSION, first, count: 1 });
        assert_eq!((check(&mark).is_ok(), check(&fence).is_ok()), (fits, fits), "{first}");
    }
}

/// What is named says what for, in every block that speaks of it.
#[test]
fn named_blocks_carry_their_transfers() {
    let two = transfers(2);
    let samples = [
        block(|out| named::put_transfers(out, range(1, 2), &two)),
        block(|out| named::put_prepare(out, range(1, 2), BOTH, &two)),
        block(|out| named::put_outcome(out, range(1, 2), &[0b10], &two)),
        block(|out| named::put_fence(out, range(1, 2), &two)),
    ];
    for sample in &samples {
        assert_eq!(check(sample).map(|size| (size.blocks, size.sequences)), Ok((1, 2)));
        let command = blocks(sample).next().expect("a block").expect("what was put");
        assert_eq!([0, 1, 2].map(|i| command.name(i)), [Some(two[0]), Some(two[1]), None]);
        for len in 1..sample.len() {
            assert!(check(&sample[..len]).is_err(), "{len} of {} bytes", sample.len());
        }
        let mut longer = [&sample[..], &[0; 8]].concat();
        longer[BYTES] += 8;
        assert!(check(&longer).is_err());
    }
    let [_, _, outcome, _] = &samples;
    assert!(matches!(blocks(outcome).next(), Some(Ok(Command::Outcome { commits: [0b10], .. }))));
    // Nothing else has a name, and what is not named has none.
    let [_, mark, unnamed, _, outcome, fence, close, expire, _, touch] = self::samples();
    for mut sample in [mark, outcome, fence, close, expire, touch] {
        sample[ZERO] = 1;
        assert!(check(&sample).is_err(), "of kind {}", sample[KIND]);
    }
    let command = blocks(&unnamed).next().expect("a block").expect("what was put");
    assert_eq!(command.name(0), None);
}
