//! Which transactions of a run of slots committed, as bytes that stand in the log behind the values of these slots.
//!
//! ```text
//! for each block of transfers     one bit for each: whether it took effect here and now
//! for each block of outcomes      the same; how many bytes a paying account, a receiving one and an amount take, a byte
//!                                 each; and for each bit that is set these three, little-endian
//! ```
//!
//! Bits of a block are padded to a byte, and numbers take as many bytes as the largest of their kind in the block needs: eight
//! for a transfer among a million accounts, instead of 24. Together with the values this is the list of committed
//! transactions: a transfer inside the shard stands in the value; one across shards was prepared earlier, perhaps in a part of
//! the log that is no longer kept, so it is said again.

use crate::bank::apply::Committed;
use crate::bank::command::{self, Command, bit, bits};
use crate::types::{AccountId, Slot, Transfer, Value};

/// Bytes of a number that is written in full.
const FULL: usize = size_of::<u64>();

/// Appends what a block of a slot brought about: `committed` are its own, in order of sequences.
pub(super) fn put(out: &mut Vec<u8>, command: &Command<'_>, committed: &[Committed]) {
    let (range, across) = match command {
        Command::Transfers { range, .. } => (range, false),
        Command::Outcome { range, .. } => (range, true),
        _ => return,
    };
    let mut left = committed.iter().peekable();
    out.extend(bits(range.seqs().map(|seq| left.next_if(|c| c.id.seq == seq).is_some())));
    assert_eq!(left.next(), None, "B3: it committed in a block that does not mention it");
    if across {
        put_transfers(out, committed.iter().map(|c| c.transfer));
    }
}

fn put_transfers(out: &mut Vec<u8>, transfers: impl ExactSizeIterator<Item = Transfer> + Clone) {
    let numbers = |t: Transfer| [t.from.0, t.to.0, t.amount as u64];
    let union = transfers.clone().map(numbers).fold([0; 3], |[a, b, c], [x, y, z]| [a | x, b | y, c | z]);
    let widths = union.map(|n| (u64::BITS - n.leading_zeros()).div_ceil(8) as usize);
    out.extend(widths.map(|width| width as u8));
    // Each number is written in full, and the next one over what it does not need.
    let (start, row) = (out.len(), widths.iter().sum::<usize>());
    let end = start + transfers.len() * row;
    out.resize(end + FULL, 0);
    let mut at = start;
    for (n, width) in transfers.flat_map(|t| numbers(t).into_iter().zip(widths)) {
        out[at..at + FULL].copy_from_slice(&n.to_le_bytes());
        at += width;
    }
    out.truncate(end);
}

/// The committed transactions of the slots from `first` on with these values.
///
/// # Errors
///
/// The bytes do not belong to these values.
pub fn decode(first: Slot, values: &[Value], mut bytes: &[u8]) -> Result<Vec<Committed>, String> {
    let mut committed = Vec::new();
    let mut take = |len: usize| {
        let (taken, rest) = bytes.split_at_checked(len).ok_or("the history of a slot is too short")?;
        bytes = rest;
        Ok::<&[u8], String>(taken)
    };
    for (slot, value) in (first.0..).map(Slot).zip(values) {
        for block in command::blocks(&value.0) {
            let (range, records) = match block? {
                Command::Transfers { range, records, .. } => (range, Some(records)),
                Command::Outcome { range, .. } => (range, None),
                _ => continue,
            };
            let set = take((range.count as usize).div_ceil(8))?;
            let widths = if records.is_none() { take(3)? } else { &[] };
            let set = range.seqs().enumerate().filter(|(i, _)| bit(set, *i));
            for (i, seq) in set {
                let transfer = match records {
                    Some(records) => records[i].get(),
                    None => {
                        let mut next = |i: usize| number(take(widths[i].into())?);
                        let (from, to) = (AccountId(next(0)?), AccountId(next(1)?));
                        Transfer { from, to, amount: next(2)? as i64 }
                    }
                };
                committed.push(Committed { slot, id: range.id(seq), transfer });
            }
        }
    }
    if bytes.is_empty() { Ok(committed) } else { Err("the history of a slot is too long".into()) }
}

fn number(bytes: &[u8]) -> Result<u64, String> {
    let mut full = [0; FULL];
    full.get_mut(..bytes.len()).ok_or("a number of more than 8 bytes")?.copy_from_slice(bytes);
    Ok(u64::from_le_bytes(full))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bank::command::Range;
    use crate::types::{Session, ShardId, TxnId};

    fn outcome(count: usize) -> Value {
        let (range, mut bytes) =
            (Range { session: Session::new(ShardId(1), 1), first: 5, count: count as u32 }, Vec::new());
        command::put_outcome(&mut bytes, range, &bits(std::iter::repeat_n(true, count)));
        Value(bytes.into())
    }

    proptest! {
        /// Numbers of any size come back, and a history that was cut short or has a tail is refused.
        #[test]
        fn transfers_of_outcomes_come_back(
            transfers in prop::collection::vec((any::<u64>(), 0u32..64, any::<u64>(), 0u32..64, 1..=i64::MAX, 0u32..62), 1..20)
        ) {
            let value = outcome(transfers.len());
            let committed: Vec<Committed> = (5..).zip(&transfers).map(|(seq, &(a, x, b, y, amount, z))| {
                let transfer = Transfer { from: AccountId(a >> x), to: AccountId(b >> y), amount: amount >> z };
                let id = TxnId { session: Session::new(ShardId(1), 1), seq };
                Committed { slot: Slot(9), id, transfer }
            }).collect();
            let command = command::blocks(&value.0).next().expect("a block").expect("of ours");
            let mut bytes = Vec::new();
            put(&mut bytes, &command, &committed);
            prop_assert_eq!(decode(Slot(9), std::slice::from_ref(&value), &bytes), Ok(committed));
            prop_assert!(decode(Slot(9), std::slice::from_ref(&value), &bytes[..bytes.len() - 1]).is_err());
            bytes.push(0);
            prop_assert!(decode(Slot(9), &[value], &bytes).is_err());
        }
    }

    #[test]
    fn transfers_among_a_million_accounts_take_eight_bytes() {
        let transfers = [(1, 1_000_000), (999_999, 2)].map(|(from, to)| Transfer {
            from: AccountId(from),
            to: AccountId(to),
            amount: 60_000,
        });
        let mut bytes = Vec::new();
        put_transfers(&mut bytes, transfers.into_iter());
        assert_eq!((&bytes[..3], bytes.len()), (&[3, 3, 2][..], 3 + 2 * 8));
        bytes[0] = 9;
        bytes.insert(0, 3);
        let refused = decode(Slot(1), &[outcome(2)], &bytes);
        assert_eq!(refused, Err("a number of more than 8 bytes".into()));
    }
}
