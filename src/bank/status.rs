//! What became of one transaction at one shard, and the compact form in which a block's results travel.

use serde::{Deserialize, Serialize};

use crate::bank::command;
use crate::types::{Reason, Session};

/// The answer of a shard's log to one sequence of a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// A transfer inside the shard was executed.
    Committed,
    /// Register YES, outcome not applied yet: the account is locked.
    Yes,
    /// Register YES, and the commit is applied.
    YesCommitted,
    /// Register YES, and the abort is applied.
    YesAborted,
    /// The transfer aborted; for a cross-shard transfer the register is NO. Final either way.
    Aborted(Reason),
    /// An outcome or a mark took effect, now or earlier.
    Done,
    /// Below the client's mark: forgotten here. It says nothing about how the transaction ended (T7).
    Finished,
    /// The session is closed, and nothing of it was ever decided here under this sequence: a NO, for ever (T7).
    Closed,
    /// The session is not known here and never will be. It says nothing about what was decided before (T7).
    Expired,
    /// Beyond the session's window, or no room for the session; nothing happened.
    Busy,
    /// The block contradicts a register (a commit where this shard never voted YES); nothing happened.
    Invalid,
}

impl Status {
    pub fn code(self) -> u8 {
        match self {
            Status::Aborted(reason) => reason as u8,
            Status::Committed => 0x40,
            Status::Yes => 0x41,
            Status::YesCommitted => 0x42,
            Status::YesAborted => 0x43,
            Status::Done => 0x44,
            Status::Finished => 0x45,
            Status::Expired => 0x46,
            Status::Busy => 0x47,
            Status::Invalid => 0x48,
            Status::Closed => 0x49,
        }
    }

    pub fn from_code(code: u8) -> Option<Status> {
        Some(match code {
            0x40 => Status::Committed,
            0x41 => Status::Yes,
            0x42 => Status::YesCommitted,
            0x43 => Status::YesAborted,
            0x44 => Status::Done,
            0x45 => Status::Finished,
            0x46 => Status::Expired,
            0x47 => Status::Busy,
            0x48 => Status::Invalid,
            0x49 => Status::Closed,
            _ => Status::Aborted(Reason::from_code(code)?),
        })
    }
}

/// The results of one block: mostly one bit each.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum BlockResult {
    /// The session that an open created.
    Opened(Session),
    /// One status for each sequence.
    Statuses {
        count: u32,
        /// The status of every sequence whose bit is set.
        common: u8,
        bits: Vec<u8>,
        /// The statuses of the other sequences, in order.
        rest: Vec<u8>,
    },
}

impl BlockResult {
    /// Packs statuses; `common` is the expected, good one.
    pub fn pack(common: Status, statuses: &[Status]) -> BlockResult {
        BlockResult::Statuses {
            count: statuses.len() as u32,
            common: common.code(),
            bits: command::bits(statuses.iter().map(|s| *s == common)),
            rest: statuses.iter().filter(|s| **s != common).map(|s| s.code()).collect(),
        }
    }

    /// How many transactions this block carried, marks and opens not counted.
    pub fn transactions(&self) -> u64 {
        match self {
            BlockResult::Statuses { count, common, .. } if *common == Status::Committed.code() => {
                u64::from(*count)
            }
            BlockResult::Statuses { count, common, .. } if *common == Status::Yes.code() => u64::from(*count),
            _ => 0,
        }
    }

    /// The statuses in order, or `None` if this came from somebody who packs differently.
    pub fn unpack(&self) -> Option<Vec<Status>> {
        let BlockResult::Statuses { count, common, bits, rest } = self else { return None };
        let count = *count as usize;
        if bits.len() != count.div_ceil(8) {
            return None;
        }
        let common = Status::from_code(*common)?;
        let mut rest = rest.iter();
        let statuses = (0..count)
            .map(|i| if command::bit(bits, i) { Some(common) } else { Status::from_code(*rest.next()?) })
            .collect::<Option<Vec<_>>>()?;
        rest.next().is_none().then_some(statuses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_counted_where_they_are_executed_or_voted_on() {
        let no = Status::Aborted(Reason::LockContention);
        let count = |common| BlockResult::pack(common, &[common, no, common]).transactions();
        assert_eq!([Status::Committed, Status::Yes, Status::Done].map(count), [3, 3, 0]);
        assert_eq!(BlockResult::Opened(Session::new(crate::types::ShardId(1), 1)).transactions(), 0);
    }

    /// A server that packs differently must not be understood by half.
    #[test]
    fn results_that_do_not_add_up_are_none() {
        let statuses = [Status::Yes; 9];
        let BlockResult::Statuses { count, common, bits, rest } = BlockResult::pack(Status::Yes, &statuses)
        else {
            panic!("statuses are packed as such")
        };
        let result = |count, common, bits: &[u8], rest: &[u8]| {
            BlockResult::Statuses { count, common, bits: bits.to_vec(), rest: rest.to_vec() }.unpack()
        };
        let no = Status::Aborted(Reason::NoQuorum).code();
        assert_eq!(result(count, common, &bits, &rest), Some(statuses.to_vec()));
        assert_eq!(result(count, common, &bits[..1], &rest), None, "a byte of bits is missing");
        assert_eq!(
            result(count, common, &[&bits[..], &[0]].concat(), &rest),
            None,
            "a byte of bits too many"
        );
        assert_eq!(result(count, common, &bits, &[no]), None, "a status that no bit asks for");
        assert_eq!(result(count, common, &[0xff, 0], &[]), None, "a status is missing");
        assert_eq!(result(count, common, &[0xff, 0], &[0x7f]), None, "no such status");
        assert_eq!(result(count, 0, &bits, &[]), None, "no such common status");
        assert_eq!(BlockResult::Opened(Session::new(crate::types::ShardId(1), 1)).unpack(), None);
    }
}
