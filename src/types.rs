//! The vocabulary: one newtype per idea, so that a slot cannot be passed where a ballot round is meant.
//!
//! Everything here is plain data: `Copy`, ordered, hashable, without behaviour that depends on configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Add;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A server, numbered from 1 over the whole bank: S1, S2, …
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u16);

/// One life of a server's disk, drawn at random when its directory is formatted (S3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct Incarnation(pub u128);

/// A disk of a server that was let in after the first one (S3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Rejoined {
    pub incarnation: Incarnation,
    /// That of the leader who proposed it: the server promises no lower one.
    pub ballot: Ballot,
}

/// A shard of the accounts and, under the same number, the cluster of servers that replicates it; from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u16);

/// An account (data item), from 1 to the configured number of accounts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountId(pub u64);

/// A position in the replicated log of one shard. The first slot is 1; 0 means "before the log".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Slot(pub u64);

/// A Paxos ballot: ordered by round, ties broken by the server that owns it. The default is below every real ballot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Ballot {
    /// Rounds start at 1; 0 is "no ballot yet".
    pub round: u64,
    /// The only server that may propose in this ballot.
    pub server: u16,
}

/// One life of a coordinator, opened through the log of the shard named in its upper 16 bits, never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Session(pub u64);

/// A transaction's exactly-once identity: its session, and its sequence number in it (from 1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TxnId {
    pub session: Session,
    pub seq: u64,
}

/// Microseconds of a monotonic clock, counted from an origin that the driver chooses. Never compared across servers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Time(pub u64);

/// An encoded batch of commands: the opaque value of a slot, shared by log, WAL and sockets without copying.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Value(pub Arc<[u8]>);

/// A connection of a client to one server, numbered by that server's driver and never used again in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId(pub u64);

impl ShardId {
    /// Position in a table of all shards.
    pub fn index(self) -> usize {
        usize::from(self.0) - 1
    }
}

impl NodeId {
    /// Position in a table of all servers.
    pub fn index(self) -> usize {
        usize::from(self.0) - 1
    }
}

impl Slot {
    pub const ZERO: Slot = Slot(0);

    pub fn next(self) -> Slot {
        Slot(self.0 + 1)
    }
}

impl Ballot {
    pub const ZERO: Ballot = Ballot { round: 0, server: 0 };

    pub fn new(round: u64, server: NodeId) -> Ballot {
        Ballot { round, server: server.0 }
    }

    /// The server that leads in this ballot, if it is a real one.
    pub fn leader(self) -> Option<NodeId> {
        (self.round > 0).then_some(NodeId(self.server))
    }
}

impl Session {
    /// The `number`-th session (from 1) that `shard` issued.
    pub fn new(shard: ShardId, number: u64) -> Session {
        assert!(number < 1 << 48, "a shard has issued 2^48 sessions");
        Session(u64::from(shard.0) << 48 | number)
    }

    /// The shard whose log opened this session.
    pub fn shard(self) -> ShardId {
        ShardId((self.0 >> 48) as u16)
    }

    /// Its number among the sessions of that shard.
    pub fn number(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }
}

/// A whole number in digits alone, which may begin with zeros. (The parser of the standard library takes a plus sign.)
fn digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// As it is shown (`D1-2`), or as its plain number. The error is empty: whoever asked knows what it was for.
impl FromStr for Session {
    type Err = ();

    fn from_str(text: &str) -> Result<Session, ()> {
        let session = match text.strip_prefix('D') {
            None => digits(text).map(Session),
            Some(name) => name.split_once('-').and_then(|(shard, number)| {
                let number = digits(number).filter(|number: &u64| *number < 1 << 48)?;
                Some(Session::new(ShardId(digits(shard)?), number))
            }),
        };
        // Shards and their sessions count from 1.
        session.filter(|session| session.shard().0 > 0 && session.number() > 0).ok_or(())
    }
}

/// `SESSION:SEQUENCE`, with a sequence from 1.
impl FromStr for TxnId {
    type Err = ();

    fn from_str(text: &str) -> Result<TxnId, ()> {
        let (session, seq) = text.split_once(':').ok_or(())?;
        let seq = digits(seq).filter(|seq| *seq > 0).ok_or(())?;
        Ok(TxnId { session: session.parse()?, seq })
    }
}

impl Time {
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, d: Duration) -> Time {
        Time(self.0.saturating_add(d.as_micros().min(u128::from(u64::MAX)) as u64))
    }
}

impl Value {
    /// The no-op that a new leader puts into a slot for which nobody in its quorum holds a vote.
    pub fn noop() -> Value {
        Value(Arc::from([]))
    }

    pub fn from_slice(bytes: &[u8]) -> Value {
        Value(Arc::from(bytes))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// Serialized as one byte string; the derived form would go byte by byte.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Value, E> {
                Ok(Value::from_slice(bytes))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// What the protocol asks the disk to keep. Records are written in the order in which the core hands them out.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Record {
    /// This server will not take part in any lower ballot (P1).
    Promise(Ballot),
    /// A vote: this server accepted `value` for `slot` in `ballot`, which implies the promise of that ballot.
    Accept { slot: Slot, ballot: Ballot, value: Value },
    /// A value learned as decided from a peer. `ballot` is the one under which that peer holds it.
    Learn { slot: Slot, ballot: Ballot, value: Value },
    /// Every slot up to this one is decided and its value stands earlier in the log.
    Decided(Slot),
    /// Which transactions of these slots committed, all of which are decided. What does not fit into one record goes on in
    /// the next, of which `more` follow.
    History { from: Slot, to: Slot, more: u16, bytes: Value },
    /// No vote that was cast before for a slot above this one matters any more (S2).
    Vouch(Slot),
}

/// What a server knows of its latest vote for a slot.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Vote {
    /// It accepted this value in this ballot.
    Cast(Ballot, Value),
    /// Its disk lost the value of the vote that it cast in this ballot, or also whether there was one (S2).
    Lost(Option<Ballot>),
}

/// What damage left of a server's votes (S2).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Loss {
    /// Every slot up to this one is decided; some of the values may be gone.
    pub known: Slot,
    /// What is known of the votes for slots above.
    pub votes: BTreeMap<Slot, Vote>,
    /// It may have voted for any other slot up to here.
    pub hidden: Slot,
    /// Runs of slots up to `known` whose values are gone, each from its first to its last.
    pub gaps: Vec<(Slot, Slot)>,
}

impl Loss {
    /// Whether there are slots for which it may have voted otherwise than it remembers.
    pub fn has_doubts(&self) -> bool {
        self.hidden > Slot::ZERO || self.votes.values().any(|vote| matches!(vote, Vote::Lost(_)))
    }
}

/// A snapshot without its bytes: which state, and how it is cut into pieces.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Cut {
    /// The last slot that was applied.
    pub slot: Slot,
    /// The digest of the state (P4).
    pub digest: u64,
    /// Bytes of the whole.
    pub bytes: u64,
    /// Bytes of each piece but the last; a multiple of 8.
    pub piece_bytes: u32,
}

impl Cut {
    /// How many pieces there are.
    pub fn pieces(&self) -> u64 {
        self.bytes.div_ceil(u64::from(self.piece_bytes))
    }

    /// Whether a state with this digest is the one that was cut (P4).
    pub fn check(&self, digest: u64) -> Result<(), String> {
        let expected = self.digest;
        (digest == expected).then_some(()).ok_or_else(|| {
            format!("P4: the digest after slot {} is {digest:016x}, not {expected:016x}", self.slot)
        })
    }

    /// Where the `n`-th piece begins, counted from 0, and how long it is; no bytes beyond the last.
    pub fn piece(&self, n: u64) -> (u64, usize) {
        let whole = u64::from(self.piece_bytes);
        let start = n.saturating_mul(whole).min(self.bytes);
        (start, (self.bytes - start).min(whole) as usize)
    }
}

/// Why a transaction aborted, in order of precedence: where several apply, the first is reported.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Reason {
    /// The amount is zero or negative.
    InvalidAmount = 1,
    /// Sender and receiver are the same account.
    SameAccount = 2,
    /// An account is outside 1…N.
    UnknownAccount = 3,
    /// A participant lacked a majority, and the transaction is known to have no effect anywhere, for ever.
    NoQuorum = 4,
    /// A participant's servers have no space left for their logs, and the transaction is known to have no effect anywhere,
    /// for ever.
    StorageFull = 5,
    /// An account is locked by a cross-shard transaction in progress.
    LockContention = 6,
    /// The sender's balance is below the amount.
    InsufficientBalance = 7,
    /// The id that a client gave it belongs to another transfer.
    IdReused = 8,
    /// As many sessions are open as the bank keeps, so that the client could open none. Nothing was sent.
    NoSession = 9,
}

impl Reason {
    pub const ALL: [Reason; 9] = [
        Reason::InvalidAmount,
        Reason::SameAccount,
        Reason::UnknownAccount,
        Reason::NoQuorum,
        Reason::StorageFull,
        Reason::LockContention,
        Reason::InsufficientBalance,
        Reason::IdReused,
        Reason::NoSession,
    ];

    pub fn from_code(code: u8) -> Option<Reason> {
        Reason::ALL.into_iter().find(|r| *r as u8 == code)
    }

    /// The spelling used in set files, tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Reason::InvalidAmount => "invalid-amount",
            Reason::SameAccount => "same-account",
            Reason::UnknownAccount => "unknown-account",
            Reason::NoQuorum => "no-quorum",
            Reason::StorageFull => "storage-full",
            Reason::LockContention => "lock-contention",
            Reason::InsufficientBalance => "insufficient-balance",
            Reason::IdReused => "id-reused",
            Reason::NoSession => "no-session",
        }
    }
}

/// A transfer as it stands in a set file. Nothing about it has been validated: the amount may be negative.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Transfer {
    pub from: AccountId,
    pub to: AccountId,
    pub amount: i64,
}

macro_rules! show {
    ($($type:ty, $prefix:literal, $($field:tt).+;)*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.$($field).+)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

show! {
    NodeId, "S", 0;
    ShardId, "D", 0;
    AccountId, "", 0;
    Slot, "", 0;
    ClientId, "client ", 0;
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.S{}", self.round, self.server)
    }
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.shard(), self.number())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.session, self.seq)
    }
}

impl fmt::Debug for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us", self.0)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}B", self.0.len())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {}, {})", self.from, self.to, self.amount)
    }
}
