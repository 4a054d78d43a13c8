//! Logs that were read one after the other, by hand; whole banks that run are copied in tests/e2e/backup.rs.

use super::*;
use crate::bank::command::Range;
use crate::storage::MemDisk;
use crate::types::{AccountId, Record, Transfer};

const TOPOLOGY: Topology = Topology { clusters: 2, servers_per_cluster: 3, accounts: 8, initial_balance: 10 };
const BOTH: [ShardId; 2] = [ShardId(1), ShardId(2)];

fn session(number: u64) -> Session {
    Session::new(ShardId(1), number)
}

fn one(number: u64, seq: u64) -> Range {
    Range { session: session(number), first: seq, count: 1 }
}

fn value(put: impl FnOnce(&mut Vec<u8>)) -> Value {
    let mut bytes = Vec::new();
    put(&mut bytes);
    Value::from_slice(&bytes)
}

fn open() -> Value {
    value(command::put_open)
}

/// 3 units from account 1, of the first shard, to account 5.
fn prepare(seq: u64) -> Value {
    let transfer = Transfer { from: AccountId(1), to: AccountId(5), amount: 3 };
    value(|out| command::put_prepare(out, one(1, seq), BOTH, &[transfer]))
}

fn outcome(seq: u64, commit: bool) -> Value {
    value(|out| command::put_outcome(out, one(1, seq), &[u8::from(commit)]))
}

fn mark(number: u64, mark: u64) -> Value {
    value(|out| command::put_mark(out, session(number), mark))
}

fn log(shard: u16, values: &[Value]) -> ShardLog {
    let shard = ShardId(shard);
    ShardLog { shard, base: Bank::new(TOPOLOGY, shard), values: values.to_vec() }
}

/// How far each log counts.
fn lengths(one: &[Value], two: &[Value]) -> (u64, u64) {
    let banks = consistent(&TOPOLOGY, &[log(1, one), log(2, two)]).expect("logs from their beginning");
    (banks[0].applied().0, banks[1].applied().0)
}

#[test]
fn no_half_of_a_transfer_is_without_the_other() {
    let (both, done) = ([open(), prepare(1)], [prepare(1), outcome(1, true)]);
    // The second shard's log was read when the first knew the outcome, too; the first's before that.
    assert_eq!(lengths(&both, &done), (2, 2));
    assert_eq!(lengths(&[open()], &done), (1, 1), "its debit is not there");
    // Who never heard of it says NO, and the other still asks.
    assert_eq!(lengths(&[open()], &done[..1]), (1, 1));
    // What comes behind goes as well, and so does what rests on that.
    let then = [prepare(1), outcome(1, true), prepare(2)];
    assert_eq!(lengths(&[open(), prepare(2), outcome(2, true)], &then), (2, 1));
}

/// The first shard holds in doubt what the second has finished with: it would take that for a NO, and the money of one
/// half would be gone.
#[test]
fn no_mark_passes_what_is_in_doubt_elsewhere() {
    let two = [prepare(1), outcome(1, true), mark(1, 2)];
    assert_eq!(lengths(&[open(), prepare(1)], &two), (2, 2));
    assert_eq!(lengths(&[open(), prepare(1), outcome(1, true)], &two), (3, 3));
    let aborted = [prepare(1), outcome(1, false), mark(1, 2), prepare(2)];
    assert_eq!(lengths(&[open(), prepare(1), prepare(2)], &aborted), (3, 2));
}

/// The first shard would issue the number again, to a client that finds its transactions done.
#[test]
fn no_session_is_used_that_was_not_opened() {
    assert_eq!(lengths(&[open()], &[prepare(1), mark(2, 3), prepare(2)]), (1, 1));
    assert_eq!(lengths(&[], &[mark(1, 2)]), (0, 0));
    assert_eq!(lengths(&[open(), open()], &[prepare(1), mark(2, 3)]), (2, 2));
    let close = |number| value(|out| command::put_close(out, session(number)));
    let expire = value(|out| command::put_expire(out, session(3), &[session(2)]));
    let two = [close(3), expire];
    assert_eq!(lengths(&[open()], &two), (1, 0));
    assert_eq!(lengths(&[open(), open(), open()], &two), (3, 2));
    // A snapshot cannot be shortened.
    let mut base = log(2, &[mark(1, 2)]);
    base.base = base.at(&TOPOLOGY, Slot(1)).0;
    base.values.clear();
    let refused = consistent(&TOPOLOGY, &[log(1, &[]), base]).expect_err("whence the session?");
    assert!(refused.contains("D1-1 is in its snapshot"), "{refused}");
}

/// Directories that were themselves copied at different moments, with snapshots taken between.
#[test]
fn money_that_is_not_there_is_missed() {
    let mut paid = log(2, &[prepare(1), outcome(1, true)]);
    paid.base = paid.at(&TOPOLOGY, Slot(2)).0;
    paid.values.clear();
    let refused = consistent(&TOPOLOGY, &[log(1, &[open()]), paid]).expect_err("3 units from nowhere");
    assert!(refused.starts_with("B2: 83 units instead of 80"), "{refused}");
    // One half is done, and the other's is held: in both directions.
    assert_eq!(lengths(&[open(), prepare(1), outcome(1, true)], &[prepare(1)]), (3, 1));
    assert_eq!(lengths(&[open(), prepare(1)], &[prepare(1), outcome(1, true)]), (2, 2));
}

/// One cluster of three: what each server's log holds, and what is read from them.
fn read_three(logs: [&[Record]; 3]) -> Result<Bank, String> {
    let topology = Topology { clusters: 1, accounts: 4, ..TOPOLOGY };
    let disks = logs.map(|_| MemDisk::new());
    for ((records, disk), server) in logs.iter().zip(&disks).zip((1..).map(NodeId)) {
        let identity =
            Identity { cluster_id: 7, topology, server, incarnation: server.0.into(), founder: true };
        let mut wal = Wal::format(disk.clone(), identity, 1 << 16).expect("format");
        records.iter().for_each(|record| wal.append(record));
        wal.commit().expect("commit");
    }
    let all = disks.iter().filter(|disk| disk.list().is_ok_and(|names| !names.is_empty()));
    let sources: Vec<_> = all.map(|disk| Source { name: "S".into(), open: || disk.copy() }).collect();
    read(&sources).map(|backup| backup.banks.into_iter().next().expect("one shard"))
}

/// Nobody knows on disk what is decided, but what a majority voted for is in the copy: of each slot the vote of the highest
/// ballot, and nothing behind a gap.
#[test]
fn votes_of_a_majority_are_taken_in_by_the_rule_of_phase_1() {
    let accept = |slot, round, number| Record::Accept {
        slot: Slot(slot),
        ballot: Ballot { round, server: 1 },
        value: mark(1, number),
    };
    let opened = |round| Record::Accept { slot: Slot(1), ballot: Ballot { round, server: 1 }, value: open() };
    let mark_of = |bank: &Bank, upto| {
        let known = |seq| bank.status(TxnId { session: session(1), seq }) == Some(Status::Finished);
        (1..upto).filter(|seq| known(*seq)).count()
    };
    let none: &[Record] = &[];
    let bank =
        read_three([&[opened(1), accept(2, 1, 5)], &[opened(1), accept(2, 1, 5), accept(4, 1, 9)], none]);
    let bank = bank.expect("a majority");
    assert_eq!((bank.applied(), mark_of(&bank, 20)), (Slot(2), 4));
    // The later ballot counts, wherever it stands, and an older one of a slot that is decided elsewhere does not.
    let decided = [opened(1), accept(2, 1, 5), Record::Decided(Slot(2)), accept(3, 3, 8)];
    let bank =
        read_three([&[opened(1), accept(2, 2, 5), accept(3, 2, 7)], &decided, none]).expect("a majority");
    assert_eq!((bank.applied(), mark_of(&bank, 20)), (Slot(3), 7));
}
