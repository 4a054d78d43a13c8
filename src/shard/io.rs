//! What comes into a server's core, and what goes out of it.

use std::time::Duration;

use crate::bank::Image;
use crate::paxos::{self, Message, Purpose};
use crate::shard::{Divergence, ReadPiece};
use crate::txn;
use crate::txn::message::{Request, Response};
use crate::types::{AccountId, Ballot, ClientId, Cut, NodeId, Reason, Slot, TxnId, Value};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// From another server of the cluster, or from this one to itself.
    Peer {
        from: NodeId,
        message: Message,
    },
    Request {
        client: ClientId,
        request: Request,
    },
    /// The client's connection is gone; answers to it would go nowhere.
    ClientGone(ClientId),
    /// What [`paxos::ReadLog`] asked for, as far as the disk holds it.
    LogRead {
        purpose: Purpose,
        first: Slot,
        entries: Vec<(Ballot, Value)>,
    },
    /// What was asked for cannot be read, or is not what was written (S2).
    LogUnreadable {
        purpose: Purpose,
        slot: Slot,
    },
    /// For the recoverer: connections to servers of other clusters, and what they answer.
    Remote(txn::Input),
    /// The deadline passed.
    Timer {
        random: u64,
    },
    /// The server is about to stop: it takes nothing new in, and leaves the lead to another one if it has it.
    Leave,
    /// The server was cut off and its timers stood still; now it is back.
    Resume,
    /// How many bytes of records are certain to fit into the log; `None` while the disk gives space. Before a turn, and
    /// after each group of records that was written.
    Room(Option<u64>),
    /// The newest snapshot that is durable is another one than before, or there is none any more.
    Snapshot(Option<Cut>),
    /// There was no space for the snapshot that another server sent.
    SnapshotLost,
    /// What [`ReadPiece`] asked for, if it is there.
    PieceRead {
        read: ReadPiece,
        bytes: Option<Value>,
    },
    /// Everything that this turn of the driver's loop brought has been stepped.
    TurnEnd,
}

#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Output {
    pub paxos: paxos::Output,
    /// May leave at once: they speak of decided slots, or promise nothing.
    pub replies: Vec<(ClientId, Response)>,
    /// The recoverer's requests to servers of other clusters, and the connections it wants.
    pub remote: Vec<(NodeId, Request)>,
    pub connect: Vec<NodeId>,
    /// To be written in the background, and whether it came from another server.
    pub snapshot: Option<(Image, bool)>,
    /// Pieces of snapshots to be read from disk and handed back.
    pub pieces: Vec<ReadPiece>,
    pub events: Vec<Event>,
    /// The server must stop for good once `paxos.now` has left; nothing else may leave.
    pub stop: Option<Divergence>,
}

/// What happened, beside what the replica reports.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// A slot that this leader proposed is decided and applied.
    Led {
        slot: Slot,
        transactions: u64,
        latency: Duration,
    },
    /// Transactions ended here, as the log says that was just applied: how many committed, and why each of the others did
    /// not, `None` where it was another shard that said NO. Repetitions are left out.
    Applied {
        committed: u64,
        aborted: Vec<Option<Reason>>,
    },
    /// This leader comes so late to its own deadlines that it begins to leave the lead to another server.
    TooSlow,
    /// This leader finishes a transaction that stayed in doubt too long.
    Recovering {
        id: TxnId,
    },
    Recovery(txn::Event),
    /// A read waits for the outcome of a transaction that locks its account (T6).
    ReadWaits {
        account: AccountId,
    },
    Malformed {
        client: ClientId,
        what: String,
    },
    /// A majority has the same digest as this server after an agreed slot (P4).
    DigestConfirmed {
        slot: Slot,
    },
    /// Others have another one, and there is no majority yet.
    DigestsDiffer {
        slot: Slot,
    },
    /// This server lags so far behind that another one sends it a snapshot.
    SnapshotBegun {
        from: NodeId,
        slot: Slot,
    },
    /// The transfer of a snapshot goes on at another server than it began.
    SnapshotMoved {
        from: NodeId,
        slot: Slot,
    },
    /// What came is no state of this shard, or not the one that was announced (P4).
    SnapshotRefused {
        from: NodeId,
        slot: Slot,
        why: String,
    },
    /// A snapshot on disk cannot be read; nothing is done with it any more (S2).
    SnapshotDamaged {
        slot: Slot,
        why: String,
    },
    /// This server goes on from a snapshot that it was sent.
    SnapshotInstalled {
        slot: Slot,
    },
    /// A decided value cannot be read back from the log; it is fetched from others (S2).
    LogDamaged {
        slot: Slot,
        why: String,
    },
}
