//! Persist, then release: the order of one turn, written once, for the mio thread and for the simulator.
//!
//! 0. Secure space for all that the turn may want to write, or tell the core how much there is.
//! 1. Step every input of the turn, then `TurnEnd` (the leader closes its batch).
//! 2. Send what promises nothing: proposals, heartbeats, replies about decided slots.
//! 3. Append the records as one group and sync **once** (P1).
//! 4. Release what waited for the disk. What this server sent itself, such as a leader's own vote, is stepped at once,
//!    as another round of the same turn; usually that needs no disk any more.
//!
//! A leader's followers therefore write at the same time as it does, and nobody's disk is waited for twice.

use std::io::ErrorKind;

use crate::bank::{Bank, Effects, Image, Incoming, Verifier, command};
use crate::config::{Limits, Timeouts, Topology, limits};
use crate::paxos::room::record_bytes;
use crate::paxos::{self, Membership, Message, Names, ReadLog, Replica};
use crate::shard::{self, Cuts, Divergence, Event, History, Input, Output, Shard};
use crate::storage::{CommitStats, Pieces, Recovered, StableLog, StorageError};
use crate::txn::message::{Request, Response};
use crate::types::{ClientId, Cut, NodeId, ShardId, Slot, Time, Value};

/// What a driver provides. Delivery is never guaranteed: the protocol bears the loss of any message.
pub trait Ports {
    /// To another server of the cluster.
    fn peer(&mut self, to: NodeId, message: &Message);
    fn client(&mut self, to: ClientId, response: Response);
    /// To a server of another cluster, in the role of a client.
    fn remote(&mut self, to: NodeId, request: Request);
    /// A connection to a server of another cluster is wanted.
    fn connect(&mut self, to: NodeId);
    /// Everything handed over so far should be on its way: the disk comes next, and it is slow.
    fn flush(&mut self);
    fn synced(&mut self, stats: &CommitStats);
    fn paxos_event(&mut self, event: paxos::Event);
    fn shard_event(&mut self, event: shard::Event);
}

/// Runs one turn. After an error the server must stop for good: what reached the disk is not known, or
/// ([`divergence`]) its state is not that of the others.
pub fn turn(
    now: Time,
    shard: &mut Shard,
    wal: &mut impl StableLog,
    inputs: impl IntoIterator<Item = Input>,
    ports: &mut impl Ports,
) -> std::io::Result<()> {
    let mut out = Output::default();
    let inputs: Vec<Input> = inputs.into_iter().collect();
    secure_room(now, shard, wal, inputs.iter().map(Input::demand).sum(), &mut out)?;
    if wal.snapshot() != shard.snapshot_saved() {
        shard.step(now, Input::Snapshot(wal.snapshot()), &mut out);
    } else if shard.is_installing() && !wal.writes_snapshot() {
        shard.step(now, Input::SnapshotLost, &mut out);
    }
    for input in inputs {
        shard.step(now, input, &mut out);
    }
    loop {
        shard.step(now, Input::TurnEnd, &mut out);
        let Output { paxos: core, replies, remote, connect, snapshot, pieces, events, stop } =
            std::mem::take(&mut out);
        for (to, message) in &core.now {
            ports.peer(*to, message);
        }
        replies.into_iter().for_each(|(to, response)| ports.client(to, response));
        remote.into_iter().for_each(|(to, request)| ports.remote(to, request));
        connect.into_iter().for_each(|to| ports.connect(to));
        core.events.into_iter().for_each(|event| ports.paxos_event(event));
        events.into_iter().for_each(|event| ports.shard_event(event));
        if let Some(divergence) = stop {
            // P4: its last words are for its peers; nothing is written any more.
            ports.flush();
            return Err(std::io::Error::other(divergence));
        }

        let wrote = !core.records.is_empty();
        if wrote {
            ports.flush();
            core.records.iter().for_each(|record| wal.append(record));
        }
        // Afterwards: a header that speaks of slots whose records come behind it would vouch for older votes. And also if
        // nothing was written, for what was decided then has its values in the log: without it, a value that is learned
        // next would count as a mere vote.
        wal.set_decided(shard.replica().decided());
        if wrote {
            let stats = wal.commit()?;
            ports.synced(&stats);
        }
        // What it sends itself is input, too: a candidate alone in its cluster hears of all its votes at once.
        let own = core.after.iter().filter(|(to, _)| *to == shard.id());
        let demand: u64 = own.flat_map(|(_, message)| message.values()).map(record_bytes).sum();
        if wrote || demand > 0 {
            secure_room(now, shard, wal, demand, &mut out)?;
        }
        if let Some((image, foreign)) = snapshot {
            // After the sync: the log must hold what comes behind the snapshot.
            wal.begin_snapshot(Box::new(Checked::new(image, shard.topology(), shard.shard())), foreign)?;
        }

        let mut more = false;
        for (to, message) in core.after {
            if to == shard.id() {
                shard.step(now, Input::Peer { from: to, message }, &mut out);
                more = true;
            } else {
                ports.peer(to, &message);
            }
        }
        for read in core.reads {
            let input = read_log(wal, read, &mut out);
            shard.step(now, input, &mut out);
            more = true;
        }
        for read in pieces {
            let bytes = wal.read_piece(read.slot, read.n).unwrap_or_else(|e| {
                // S2: others have the same, or can do without.
                let (slot, why) = (read.slot, e.to_string());
                out.events.push(Event::SnapshotDamaged { slot, why });
                // Anything else may pass, like a lack of file descriptors.
                if matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) {
                    wal.distrust_snapshot(slot);
                    shard.step(now, Input::Snapshot(wal.snapshot()), &mut out);
                }
                None
            });
            let bytes = bytes.map(|bytes| Value(bytes.into()));
            shard.step(now, Input::PieceRead { read, bytes }, &mut out);
            more = true;
        }
        if !more {
            return Ok(());
        }
    }
}

/// What an error of [`turn`] says of the server's state, if it is not its disk that failed (P4).
pub fn divergence(error: &std::io::Error) -> Option<&Divergence> {
    error.get_ref()?.downcast_ref()
}

/// Space before work: afterwards either everything fits that the core may want to write, or the core knows what does and
/// wants no more. So no group of records is ever left half written, or unwritten, for lack of space.
fn secure_room(
    now: Time,
    shard: &mut Shard,
    wal: &mut impl StableLog,
    demand: u64,
    out: &mut Output,
) -> std::io::Result<()> {
    let again = shard.replica().asks_for_space(now);
    let room = wal.secure(shard.demand() + demand, again)?;
    shard.step(now, Input::Room(room), out);
    Ok(())
}

/// S2: what the disk does not give back any more is for the core to have from others; the server goes on.
fn read_log(wal: &impl StableLog, read: ReadLog, out: &mut Output) -> Input {
    let ReadLog { purpose, from, to, max_bytes } = read;
    match wal.read(from, max_bytes) {
        Ok(entries) => {
            let upto = (to.0 + 1).saturating_sub(from.0) as usize;
            let entries = entries.into_iter().take(upto).map(|(_, ballot, value)| (ballot, value)).collect();
            Input::LogRead { purpose, first: from, entries }
        }
        Err(e) => {
            out.events.push(Event::LogDamaged { slot: from, why: e.to_string() });
            Input::LogUnreadable { purpose, slot: from }
        }
    }
}

/// An image that is compared with the digest it stands for while it is written: once it is durable, log in front of it
/// goes.
#[derive(Debug)]
pub(crate) struct Checked {
    image: Image,
    verifier: Verifier,
}

impl Checked {
    pub fn new(image: Image, topology: &Topology, shard: ShardId) -> Checked {
        Checked { verifier: Verifier::new(image.cut(), topology, shard), image }
    }
}

impl Pieces for Checked {
    fn cut(&self) -> Cut {
        self.image.cut()
    }

    fn piece(&mut self, n: u64) -> std::io::Result<Vec<u8>> {
        let piece = self.image.piece(n);
        self.verifier.push(&piece).map_err(std::io::Error::other)?;
        Ok(piece)
    }
}

fn io_error(source: std::io::Error) -> StorageError {
    StorageError::Io { file: "the write-ahead log".into(), doing: "reading it back", source }
}

/// The bank that a server's newest snapshot holds, or one as it is opened.
pub(crate) fn load(
    topology: Topology,
    id: ShardId,
    snapshot: Option<Cut>,
    wal: &mut impl StableLog,
) -> Result<Bank, StorageError> {
    let Some(cut) = snapshot else { return Ok(Bank::new(topology, id)) };
    let file = format!("the snapshot of slot {}", cut.slot);
    let damaged = |what: String| StorageError::Damaged { file: file.clone(), offset: None, what };
    let mut incoming = Incoming::new(cut, &topology, id).map_err(damaged)?;
    while let Some(n) = incoming.wanted() {
        let piece = wal.read_piece(cut.slot, n).map_err(io_error)?;
        if !incoming.push(&piece.unwrap_or_default()) {
            return Err(damaged(format!("piece {n} is missing")));
        }
    }
    incoming.finish(topology, id).map_err(damaged)
}

/// Applies every decided value of a log that a bank does not know yet. Returns the last agreed slot, and its digest.
fn replay(
    bank: &mut Bank,
    (cuts, history): (&mut Cuts, &mut History),
    decided: Slot,
    digest_slots: u64,
    wal: &impl StableLog,
) -> Result<Option<(Slot, u64)>, StorageError> {
    let mut effects = Effects::default();
    let agreed = |bank: &Bank| {
        let slot = bank.applied();
        (slot > Slot::ZERO && slot.0.is_multiple_of(digest_slots)).then(|| (slot, bank.digest()))
    };
    let mut last = agreed(bank);
    while bank.applied() < decided {
        let next = bank.applied().next();
        let entries = wal.read(next, limits::CATCH_UP_BYTES).map_err(io_error)?;
        assert!(
            !entries.is_empty(),
            "S2: recovery vouched for every slot up to {decided}, {next} is missing"
        );
        for (slot, _, value) in entries {
            if slot <= decided {
                bank.apply(slot, &value, &mut effects);
                cuts.applied(bank, &value);
                history.applied(slot, &effects.history);
                last = agreed(bank).or(last);
            }
        }
    }
    Ok(last)
}

/// Puts a server together from its log: the bank from its snapshot and by applying what was decided after it, the replica
/// from promise and votes.
pub fn restore(
    me: NodeId,
    topology: Topology,
    (timeouts, limits): (Timeouts, Limits),
    now: Time,
    random: u64,
    wal: &mut impl StableLog,
    recovered: Recovered,
) -> Result<Shard, StorageError> {
    let id = topology.shard_of_server(me);
    let mut bank = load(topology, id, recovered.snapshot, wal)?.with_limits(&limits);
    let (mut cuts, noted) = (Cuts::new(&limits), recovered.noted.max(bank.applied()));
    let mut history = History::new(noted, limits.digest_slots);
    let agreed = replay(&mut bank, (&mut cuts, &mut history), recovered.decided, limits.digest_slots, wal)?;
    // P2: a server leaves no gap above what it knows as decided.
    let expected = (recovered.decided.0 + 1..).map(Slot);
    if let Some((slot, ..)) = recovered.votes.iter().zip(expected).find_map(|(v, e)| (v.0 != e).then_some(v))
    {
        return Err(StorageError::Damaged {
            file: "the write-ahead log".into(),
            offset: None,
            what: format!("the next vote after slot {} is for slot {slot}", recovered.decided),
        });
    }
    let votes = recovered.votes.into_iter().map(|(_, ballot, value)| (ballot, value)).collect();
    let servers = topology.servers_of(id).collect();
    let restored = (recovered.promised, recovered.decided, votes);
    let disk = Membership::new(me, recovered.incarnation, recovered.founder, Names(command::rejoined));
    let members = bank.members().iter().map(|(server, member)| (*server, *member));
    let replica = Replica::new(me, servers, timeouts, now, random, restored).with_loss(recovered.loss);
    let replica = replica.with_membership(disk, members);
    let shard = Shard::new(me, topology, timeouts, now, replica, bank).with_limits(limits);
    let mut shard = shard.with_log(recovered.snapshot, cuts, history);
    if let Some((slot, digest)) = agreed {
        shard.remember_digest(slot, digest);
    }
    Ok(shard)
}
