//! Which transactions of a run of slots committed, as bytes that stand in the log behind the values of these slots.
//!
//! ```text
//! for each block of transfers     one bit for each: whether it took effect here and now
//! for each block of outcomes      the same, and for each bit that is set the transfer, 24 bytes
//! ```
//!
//! Bits of a block are padded to a byte. Together with the values this is the list of committed transactions: a transfer
//! inside the shard stands in the value; one across shards was prepared earlier, perhaps in a part of the log that is no
//! longer kept, so it is said again.

use crate::bank::apply::Committed;
use crate::bank::command::{self, Command, TransferRecord, bit, bits};
use crate::types::{Slot, Value};
use zerocopy::{FromBytes, IntoBytes};

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
        committed.iter().for_each(|c| out.extend_from_slice(TransferRecord::from(c.transfer).as_bytes()));
    }
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
            let set = range.seqs().enumerate().filter(|(i, _)| bit(set, *i));
            for (i, seq) in set {
                let transfer = match records {
                    Some(records) => records[i].get(),
                    None => {
                        let record = TransferRecord::read_from_bytes(take(size_of::<TransferRecord>())?);
                        record.map_err(|e| e.to_string())?.get()
                    }
                };
                committed.push(Committed { slot, id: range.id(seq), transfer });
            }
        }
    }
    if bytes.is_empty() { Ok(committed) } else { Err("the history of a slot is too long".into()) }
}
