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

use crate::bank::{Bank, Effects};
use crate::config::{Limits, Timeouts, Topology, limits};
use crate::paxos::room::record_bytes;
use crate::paxos::{self, Message, ReadLog, Replica};
use crate::shard::{self, Input, Output, Shard};
use crate::storage::{CommitStats, Recovered, StableLog, StorageError};
use crate::txn::message::{Request, Response};
use crate::types::{ClientId, NodeId, Slot, Time};

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

/// Runs one turn. After an error the server must stop for good: what reached the disk is not known.
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
    for input in inputs {
        shard.step(now, input, &mut out);
    }
    loop {
        shard.step(now, Input::TurnEnd, &mut out);
        let Output { paxos: core, replies, remote, connect, events } = std::mem::take(&mut out);
        for (to, message) in &core.now {
            ports.peer(*to, message);
        }
        replies.into_iter().for_each(|(to, response)| ports.client(to, response));
        remote.into_iter().for_each(|(to, request)| ports.remote(to, request));
        connect.into_iter().for_each(|to| ports.connect(to));
        core.events.into_iter().for_each(|event| ports.paxos_event(event));
        events.into_iter().for_each(|event| ports.shard_event(event));

        if !core.records.is_empty() {
            ports.flush();
            core.records.iter().for_each(|record| wal.append(record));
            // Afterwards: a header that speaks of slots whose records come behind it would vouch for older votes.
            wal.set_decided(shard.replica().decided());
            let stats = wal.commit()?;
            ports.synced(&stats);
            let own = core.after.iter().filter(|(to, _)| *to == shard.id());
            let demand = own.flat_map(|(_, message)| message.values()).map(record_bytes).sum();
            secure_room(now, shard, wal, demand, &mut out)?;
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
            let input = read_log(wal, read)?;
            shard.step(now, input, &mut out);
            more = true;
        }
        if !more {
            return Ok(());
        }
    }
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

fn read_log(wal: &impl StableLog, read: ReadLog) -> std::io::Result<Input> {
    let ReadLog { purpose, from, to, max_bytes } = read;
    let entries = wal.read(from, max_bytes)?;
    let upto = (to.0 + 1).saturating_sub(from.0) as usize;
    let entries = entries.into_iter().take(upto).map(|(_, ballot, value)| (ballot, value)).collect();
    Ok(Input::LogRead { purpose, first: from, entries })
}

/// Feeds every decided value of a log, in order, to `each`.
pub fn replay(
    wal: &impl StableLog,
    decided: Slot,
    mut each: impl FnMut(Slot, &crate::types::Value),
) -> Result<(), StorageError> {
    let mut next = Slot(1);
    while next <= decided {
        let entries = wal.read(next, limits::CATCH_UP_BYTES).map_err(|source| StorageError::Io {
            file: "the write-ahead log".into(),
            doing: "reading it back",
            source,
        })?;
        assert!(
            !entries.is_empty(),
            "S2: recovery vouched for every slot up to {decided}, {next} is missing"
        );
        for (slot, _, value) in entries {
            if slot <= decided {
                each(slot, &value);
            }
            next = slot.next();
        }
    }
    Ok(())
}

/// Puts a server together from its log: the bank by applying everything decided, the replica from promise and votes.
pub fn restore(
    me: NodeId,
    topology: Topology,
    (timeouts, limits): (Timeouts, Limits),
    now: Time,
    random: u64,
    wal: &impl StableLog,
    recovered: Recovered,
) -> Result<Shard, StorageError> {
    let id = topology.shard_of_server(me);
    let mut bank = Bank::new(topology, id).with_session_window(limits.session_window);
    let mut effects = Effects::default();
    replay(wal, recovered.decided, |slot, value| bank.apply(slot, value, &mut effects))?;
    let votes = recovered.votes.into_iter().map(|(_, ballot, value)| (ballot, value)).collect();
    let servers = topology.servers_of(id).collect();
    let restored = (recovered.promised, recovered.decided, votes);
    let replica = Replica::new(me, servers, timeouts, now, random, restored);
    Ok(Shard::new(me, topology, timeouts, now, replica, bank).with_limits(limits))
}
