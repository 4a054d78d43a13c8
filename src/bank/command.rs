//! Commands as bytes: the fixed little-endian layout of what stands in a slot, read in place.
//!
//! A slot's value is a concatenation of *blocks*; a leader's batch is therefore the concatenation of what its clients
//! sent, copied once. A block names a session and a range of sequence numbers, so that one block carries thousands of
//! transactions and is answered with a bit set. An empty value is the no-op.
//!
//! Bytes from outside go through [`check`] before they are proposed; `apply` may then rely on their shape.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::config::limits::{SESSION_WINDOW, VALUE_BYTES};
use crate::types::{
    AccountId, Ballot, Incarnation, NodeId, Rejoined, Session, ShardId, Transfer, TxnId, Value,
};

/// What every block begins with; `bytes` counts the header too, so that a reader can step from block to block.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    bytes: U32,
    kind: u8,
    /// 1 if the transactions were named by a client, and the block says what for, or if a session is opened for such;
    /// otherwise 0.
    named: u8,
    /// Participants of the transactions, 0 where the kind has none.
    participants: [U16; 2],
    zero2: U16,
    count: U32,
    session: U64,
    first: U64,
}

const HEADER: usize = size_of::<Header>();

/// The most sequences in one block, of any kind: what a slot full of transfers holds. A fence has no body that would
/// bound it, and every sequence costs every server a register.
pub const MAX_COUNT: usize = VALUE_BYTES / size_of::<TransferRecord>();

/// The most sequences in one slot, unless a single block has more: a whole window of outcomes and one of prepares. Bounds
/// the time that applying it takes.
pub const MAX_SEQUENCES: u64 = 2 * SESSION_WINDOW;

/// The highest sequence that a block begins with, and the highest mark. Far below overflow: no client comes near it in the
/// life of a session.
const MAX_SEQUENCE: u64 = 1 << 60;

/// One transfer as it stands in a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TransferRecord {
    from: U64,
    to: U64,
    amount: I64,
}

impl From<Transfer> for TransferRecord {
    fn from(t: Transfer) -> TransferRecord {
        TransferRecord { from: U64::new(t.from.0), to: U64::new(t.to.0), amount: I64::new(t.amount) }
    }
}

impl TransferRecord {
    pub fn accounts(&self) -> [AccountId; 2] {
        [AccountId(self.from.get()), AccountId(self.to.get())]
    }

    pub fn get(&self) -> Transfer {
        Transfer { from: AccountId(self.from.get()), to: AccountId(self.to.get()), amount: self.amount.get() }
    }
}

/// A range of consecutive transactions of one session: sequences `first` to `first + count - 1`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Range {
    pub session: Session,
    pub first: u64,
    pub count: u32,
}

impl Range {
    /// A single transaction.
    pub fn one(id: TxnId) -> Range {
        Range { session: id.session, first: id.seq, count: 1 }
    }

    pub fn seqs(self) -> std::ops::Range<u64> {
        self.first..self.first + u64::from(self.count)
    }

    /// The transaction with this sequence.
    pub fn id(self, seq: u64) -> TxnId {
        TxnId { session: self.session, seq }
    }

    /// Adds a transaction to the last one of these if it follows it, or else one of its own to them.
    pub fn extend(ranges: &mut Vec<Range>, id: TxnId) {
        match ranges.last_mut() {
            Some(last) if last.session == id.session && last.seqs().end == id.seq => last.count += 1,
            _ => ranges.push(Range::one(id)),
        }
    }
}

/// A block, decoded in place.
#[derive(Clone, Copy)]
pub enum Command<'a> {
    /// Issues a new session number of this shard. In one that is `named` all transactions are, and no mark passes them.
    Open { named: bool },
    /// A session of this shard for named transactions is in use. Answered with whether there is one.
    Touch { session: Session },
    /// Everything of the session below `mark` is finished at its client, as far as this shard takes part (T7).
    Mark { session: Session, mark: u64 },
    /// Transfers inside this shard. What is `named`, here and below, belongs to its transfer as well as to its sequence.
    Transfers { range: Range, records: &'a [TransferRecord], named: bool },
    /// This shard's vote is asked for on transfers across two shards (T1).
    Prepare { range: Range, participants: [ShardId; 2], records: &'a [TransferRecord], named: bool },
    /// The decision on prepared transfers; bit i of `commits` belongs to sequence `first + i`. `names` are the transfers
    /// if they are named.
    Outcome { range: Range, commits: &'a [u8], names: &'a [TransferRecord] },
    /// Sets every vote register of the range that is still empty to NO (T1, T4).
    Fence { range: Range, names: &'a [TransferRecord] },
    /// From now on whatever of the session has no register here is a NO (T7). Answered with whether anything of it is
    /// still in doubt.
    Close { session: Session },
    /// Forgets a session that every shard has closed and has nothing of in doubt (T7). `live` are the numbers of older
    /// sessions of the same shard that have not expired; all others become unknown for ever.
    Expire { session: Session, live: &'a [U64] },
    /// From now on this disk of a server of this shard counts, and no other (S3). Proposed by leaders only.
    Rejoin { server: NodeId, incarnation: Incarnation, ballot: Ballot },
}

impl Command<'_> {
    /// The transactions that it mentions.
    pub fn range(&self) -> Option<Range> {
        match self {
            Command::Transfers { range, .. }
            | Command::Prepare { range, .. }
            | Command::Outcome { range, .. }
            | Command::Fence { range, .. } => Some(*range),
            Command::Open { .. }
            | Command::Touch { .. }
            | Command::Mark { .. }
            | Command::Close { .. }
            | Command::Expire { .. }
            | Command::Rejoin { .. } => None,
        }
    }

    /// The transfer that the i-th transaction belongs to, if it is named.
    pub fn name(&self, i: usize) -> Option<Transfer> {
        let names: &[TransferRecord] = match self {
            Command::Transfers { records, named: true, .. }
            | Command::Prepare { records, named: true, .. } => records,
            Command::Outcome { names, .. } | Command::Fence { names, .. } => names,
            _ => &[],
        };
        names.get(i).map(TransferRecord::get)
    }

    /// The session that it names.
    pub fn session(&self) -> Option<Session> {
        match self {
            Command::Close { session } | Command::Expire { session, .. } => Some(*session),
            other => other.used(),
        }
    }

    /// The session that its client uses with this command.
    pub fn used(&self) -> Option<Session> {
        match self {
            Command::Mark { session, .. } | Command::Touch { session } => Some(*session),
            other => other.range().map(|range| range.session),
        }
    }
}

const OPEN: u8 = 1;
const MARK: u8 = 2;
const TRANSFERS: u8 = 3;
const PREPARE: u8 = 4;
const OUTCOME: u8 = 5;
const FENCE: u8 = 6;
const CLOSE: u8 = 7;
const EXPIRE: u8 = 8;
const REJOIN: u8 = 9;
const TOUCH: u8 = 10;

/// The servers that a value lets in again, in order.
pub fn rejoined(value: &Value) -> Vec<(NodeId, Rejoined)> {
    let rejoin = |block| match block {
        Ok(Command::Rejoin { server, incarnation, ballot }) => {
            Some((server, Rejoined { incarnation, ballot }))
        }
        _ => None,
    };
    blocks(&value.0).filter_map(rejoin).collect()
}

/// Bit `i` of a little-endian bit set.
pub fn bit(bits: &[u8], i: usize) -> bool {
    bits[i / 8] & (1 << (i % 8)) != 0
}

/// A bit set from booleans, the unused bits of the last byte zero.
pub fn bits(values: impl IntoIterator<Item = bool>) -> Vec<u8> {
    let (mut out, mut byte, mut count) = (Vec::new(), 0, 0);
    for value in values {
        byte |= u8::from(value) << count;
        count += 1;
        if count == 8 {
            out.push(byte);
            (byte, count) = (0, 0);
        }
    }
    if count > 0 {
        out.push(byte);
    }
    out
}

/// Walks the blocks of a value. After an error nothing more is yielded.
pub fn blocks(value: &[u8]) -> impl Iterator<Item = Result<Command<'_>, String>> {
    let mut rest = value;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let item = take(&mut rest);
        if item.is_err() {
            rest = &[];
        }
        Some(item)
    })
}

/// What [`check`] counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Size {
    pub blocks: usize,
    /// Sequences that the blocks name, together.
    pub sequences: u64,
}

/// Checks bytes that came from outside, block by block, and returns how much there is.
pub fn check(value: &[u8]) -> Result<Size, String> {
    let mut size = Size::default();
    for block in blocks(value) {
        let block = block.map_err(|e| format!("block {}: {e}", size.blocks + 1))?;
        size.blocks += 1;
        size.sequences += block.range().map_or(0, |range| u64::from(range.count));
    }
    if size.sequences > MAX_SEQUENCES {
        return Err(format!("{} sequences in all; a slot has at most {MAX_SEQUENCES}", size.sequences));
    }
    Ok(size)
}

fn take<'a>(rest: &mut &'a [u8]) -> Result<Command<'a>, String> {
    let (header, _) = Header::read_from_prefix(rest)
        .map_err(|_| format!("{} bytes are left, a header has {HEADER}", rest.len()))?;
    let bytes = header.bytes.get() as usize;
    if bytes < HEADER || bytes > rest.len() {
        return Err(format!("length {bytes} with {} bytes left", rest.len()));
    }
    let body = &rest[HEADER..bytes];
    *rest = &rest[bytes..];

    let count = header.count.get();
    let raw = header.session.get();
    let session = Session(raw);
    let first = header.first.get();
    if header.named > 1 || header.zero2.get() != 0 {
        return Err("reserved fields are not zero".into());
    }
    let named = header.named == 1;
    if named && !matches!(header.kind, OPEN | TRANSFERS | PREPARE | OUTCOME | FENCE) {
        return Err("only transactions can be named, and sessions for them".into());
    }
    if header.kind == OPEN {
        let clean = raw == 0 && first == 0 && count == 0 && body.is_empty();
        return if clean { Ok(Command::Open { named }) } else { Err("an open carries no fields".into()) };
    }
    if header.kind == REJOIN {
        let [server, ballot_server] = header.participants.map(|n| n.get());
        return match <[u8; 16]>::try_from(body) {
            Ok(bytes) if count == 0 && server > 0 && ballot_server > 0 && raw == 0 => Ok(Command::Rejoin {
                server: NodeId(server),
                incarnation: Incarnation(u128::from_le_bytes(bytes)),
                ballot: Ballot { round: first, server: ballot_server },
            }),
            _ => Err("a bad rejoin".into()),
        };
    }
    if session.shard().0 == 0 || session.number() == 0 {
        return Err(format!("session {raw:#x} was never issued"));
    }
    if header.kind == MARK {
        let clean = count == 0 && body.is_empty() && first <= MAX_SEQUENCE;
        return if clean { Ok(Command::Mark { session, mark: first }) } else { Err("a bad mark".into()) };
    }
    if matches!(header.kind, CLOSE | TOUCH) {
        let clean = count == 0 && first == 0 && body.is_empty();
        return match header.kind {
            _ if !clean => Err("only a session is closed, or touched".into()),
            CLOSE => Ok(Command::Close { session }),
            _ => Ok(Command::Touch { session }),
        };
    }
    if header.kind == EXPIRE {
        return match <[U64]>::ref_from_bytes(body) {
            Ok(live)
                if live.len() == count as usize
                    && first == 0
                    && live.iter().all(|n| (1..session.number()).contains(&n.get())) =>
            {
                Ok(Command::Expire { session, live })
            }
            _ => Err("a bad expiry".into()),
        };
    }
    if first == 0 || first > MAX_SEQUENCE || count == 0 || count as usize > MAX_COUNT {
        return Err(format!("sequences {first} + {count} are out of range; a block has 1 to {MAX_COUNT}"));
    }
    let range = Range { session, first, count };
    let records = |body: &'a [u8]| match <[TransferRecord]>::ref_from_bytes(body) {
        Ok(records) if records.len() == count as usize => Ok(records),
        _ => Err(format!("{} bytes for {count} transfers", body.len())),
    };
    let names = |body: &'a [u8]| if named { records(body) } else { Ok(&[][..]) };
    match header.kind {
        TRANSFERS => Ok(Command::Transfers { range, records: records(body)?, named }),
        PREPARE => {
            let participants = header.participants.map(|p| ShardId(p.get()));
            if participants[0].0 == 0 || participants[0] >= participants[1] {
                return Err(format!("participants {participants:?} are not two ascending shards"));
            }
            Ok(Command::Prepare { range, participants, records: records(body)?, named })
        }
        OUTCOME => {
            let (commits, rest) = body
                .split_at_checked((count as usize).div_ceil(8))
                .filter(|(_, rest)| named || rest.is_empty())
                .ok_or_else(|| format!("{} bytes for the decisions on {count} transfers", body.len()))?;
            Ok(Command::Outcome { range, commits, names: names(rest)? })
        }
        FENCE if body.is_empty() || named => Ok(Command::Fence { range, names: names(body)? }),
        FENCE => Err("a fence has no body".into()),
        kind => Err(format!("unknown kind {kind}")),
    }
}

fn put(out: &mut Vec<u8>, kind: u8, participants: [ShardId; 2], range: Range, body: &[u8]) {
    put_whole(out, (kind, false), participants, range, body, &[]);
}

/// A block of a kind, `named` or not, with this body and then transfers.
fn put_whole(
    out: &mut Vec<u8>,
    (kind, named): (u8, bool),
    participants: [ShardId; 2],
    range: Range,
    body: &[u8],
    transfers: &[Transfer],
) {
    let bytes = HEADER + body.len() + transfers.len() * size_of::<TransferRecord>();
    let header = Header {
        bytes: U32::new(bytes as u32),
        kind,
        named: u8::from(named),
        participants: participants.map(|p| U16::new(p.0)),
        zero2: U16::ZERO,
        count: U32::new(range.count),
        session: U64::new(range.session.0),
        first: U64::new(range.first),
    };
    out.reserve(bytes);
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(body);
    transfers.iter().for_each(|t| out.extend_from_slice(TransferRecord::from(*t).as_bytes()));
}

const NOBODY: [ShardId; 2] = [ShardId(0), ShardId(0)];
const NOTHING: Range = Range { session: Session(0), first: 0, count: 0 };

/// Bytes that a block of `count` transfers takes.
pub const fn transfers_bytes(count: usize) -> usize {
    HEADER + count * size_of::<TransferRecord>()
}

pub fn put_open(out: &mut Vec<u8>) {
    put(out, OPEN, NOBODY, NOTHING, &[]);
}

pub fn put_touch(out: &mut Vec<u8>, session: Session) {
    put(out, TOUCH, NOBODY, Range { session, ..NOTHING }, &[]);
}

pub fn put_mark(out: &mut Vec<u8>, session: Session, mark: u64) {
    put(out, MARK, NOBODY, Range { session, first: mark, count: 0 }, &[]);
}

/// A block with one transfer for each sequence.
fn put_each(
    out: &mut Vec<u8>,
    kind: (u8, bool),
    participants: [ShardId; 2],
    range: Range,
    body: &[u8],
    transfers: &[Transfer],
) {
    assert_eq!(transfers.len(), range.count as usize);
    put_whole(out, kind, participants, range, body, transfers);
}

pub fn put_transfers(out: &mut Vec<u8>, range: Range, transfers: &[Transfer]) {
    put_each(out, (TRANSFERS, false), NOBODY, range, &[], transfers);
}

/// `participants` in ascending order.
pub fn put_prepare(out: &mut Vec<u8>, range: Range, participants: [ShardId; 2], transfers: &[Transfer]) {
    put_each(out, (PREPARE, false), participants, range, &[], transfers);
}

/// `commits` holds one bit for each sequence of the range.
pub fn put_outcome(out: &mut Vec<u8>, range: Range, commits: &[u8]) {
    put(out, OUTCOME, NOBODY, range, commits);
}

pub fn put_fence(out: &mut Vec<u8>, range: Range) {
    put(out, FENCE, NOBODY, range, &[]);
}

/// The same, of transactions that a client named: each block of them says what they are for.
pub mod named {
    use super::*;

    pub fn put_open(out: &mut Vec<u8>) {
        put_whole(out, (OPEN, true), NOBODY, NOTHING, &[], &[]);
    }

    pub fn put_transfers(out: &mut Vec<u8>, range: Range, transfers: &[Transfer]) {
        put_each(out, (TRANSFERS, true), NOBODY, range, &[], transfers);
    }

    pub fn put_prepare(out: &mut Vec<u8>, range: Range, participants: [ShardId; 2], transfers: &[Transfer]) {
        put_each(out, (PREPARE, true), participants, range, &[], transfers);
    }

    pub fn put_outcome(out: &mut Vec<u8>, range: Range, commits: &[u8], transfers: &[Transfer]) {
        put_each(out, (OUTCOME, true), NOBODY, range, commits, transfers);
    }

    pub fn put_fence(out: &mut Vec<u8>, range: Range, transfers: &[Transfer]) {
        put_each(out, (FENCE, true), NOBODY, range, &[], transfers);
    }
}

pub fn put_close(out: &mut Vec<u8>, session: Session) {
    put(out, CLOSE, NOBODY, Range { session, ..NOTHING }, &[]);
}

pub fn put_rejoin(out: &mut Vec<u8>, server: NodeId, incarnation: Incarnation, ballot: Ballot) {
    let participants = [ShardId(server.0), ShardId(ballot.server)];
    let range = Range { session: Session(0), first: ballot.round, count: 0 };
    put(out, REJOIN, participants, range, &incarnation.0.to_le_bytes());
}

/// `live` are older sessions of the same shard.
pub fn put_expire(out: &mut Vec<u8>, session: Session, live: &[Session]) {
    let numbers: Vec<U64> = live.iter().map(|s| U64::new(s.number())).collect();
    put(out, EXPIRE, NOBODY, Range { session, first: 0, count: live.len() as u32 }, numbers.as_bytes());
}

#[cfg(test)]
mod tests;
