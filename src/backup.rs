//! A consistent cut through all shards of a bank, from the disks of its servers, whether these run or not.
//!
//! Every prefix of one shard's log is a state that this shard was in. Prefixes of several shards are a state of the bank
//! only if none holds an effect of which another lacks the cause: the commit of a transfer whose debit is missing is money
//! from nowhere. The disks of servers that run are read one after the other, so what is read last may be too long. It is
//! shortened until nothing contradicts (the recovery lines of Chandy and Lamport's snapshots, found afterwards instead of
//! by messages). In-doubt transactions are part of the state: whoever serves it finishes them (T4).
//!
//! What a client was told before the reading began is in it: it was decided, so a majority of the shard's disks has it.
//! Undecided votes are taken in by the rule of phase 1 (P2), slot by slot the one of the highest ballot among a majority.
//! What is cut off was decided after the reading began.
//!
//! Snapshots cannot be shortened. So which ones there are is looked up first, for all shards, and none is taken that is
//! newer: what it holds had happened before any log was read.

use std::collections::BTreeMap;

use crate::bank::command::{self, Command};
use crate::bank::{Bank, Committed, Effects, Status, validate};
use crate::config::{Topology, limits};
use crate::drive;
use crate::storage::{Disk, Expected, Identity, StorageError, Wal, newest_snapshot, read_identity};
use crate::types::{Ballot, Incarnation, NodeId, Session, ShardId, Slot, TxnId, Value};

/// How often everything is read again because servers went on meanwhile.
const ATTEMPTS: usize = 10;

/// One server's disk, which can be opened again and again. What is opened may be written to, and is thrown away.
pub struct Source<F> {
    /// As it is named to people.
    pub name: String,
    pub open: F,
}

/// The state of every shard, in order, and the bank it is of.
#[derive(Debug)]
pub struct Backup {
    pub cluster_id: u128,
    pub topology: Topology,
    pub banks: Vec<Bank>,
}

/// Reads a consistent state of the whole bank.
///
/// # Errors
///
/// The directories belong to different banks, a majority of some shard's servers is missing or cannot be read, or they
/// went on faster than they can be read.
pub fn read<D: Disk, F: Fn() -> D>(sources: &[Source<F>]) -> Result<Backup, String> {
    let (identity, shards) = sort(sources)?;
    let Identity { cluster_id, topology, .. } = identity;
    let mut why = String::new();
    for _ in 0..ATTEMPTS {
        match read_logs(topology, cluster_id, &shards).and_then(|logs| consistent(&topology, &logs)) {
            Ok(banks) => return Ok(Backup { cluster_id, topology, banks }),
            Err(e) => why = e,
        }
    }
    Err(why)
}

type Shards<'a, F> = BTreeMap<ShardId, Vec<(NodeId, &'a Source<F>)>>;

/// Whose directories these are.
fn sort<D: Disk, F: Fn() -> D>(sources: &[Source<F>]) -> Result<(Identity, Shards<'_, F>), String> {
    let mut first: Option<(Identity, &str)> = None;
    let mut shards = Shards::new();
    for source in sources {
        let named = |e: StorageError| format!("{}/{e}", source.name);
        let (identity, _) = read_identity(&(source.open)()).map_err(named)?;
        let (known, whose) = *first.get_or_insert((identity, &source.name));
        if (known.cluster_id, known.topology) != (identity.cluster_id, identity.topology) {
            return Err(format!("{} and {whose} belong to different banks", source.name));
        }
        let servers = shards.entry(identity.topology.shard_of_server(identity.server)).or_default();
        if let Some((_, other)) = servers.iter().find(|(server, _)| *server == identity.server) {
            return Err(format!("{} and {} are both of {}", source.name, other.name, identity.server));
        }
        servers.push((identity.server, source));
    }
    let (identity, _) = first.ok_or("no directory of a server")?;
    for shard in identity.topology.shards() {
        let found = shards.get(&shard).map_or(0, Vec::len);
        enough(&identity.topology, shard, found)?;
    }
    Ok((identity, shards))
}

fn enough(topology: &Topology, shard: ShardId, found: usize) -> Result<(), String> {
    let all = topology.servers_per_cluster;
    if found >= topology.majority() {
        return Ok(());
    }
    Err(format!("{shard}: {found} of {all} servers that vote are here; what it decided takes a majority"))
}

fn read_logs<D: Disk, F: Fn() -> D>(
    topology: Topology,
    cluster_id: u128,
    shards: &Shards<'_, F>,
) -> Result<Vec<ShardLog>, String> {
    let mut newest = BTreeMap::new();
    for (shard, servers) in shards {
        for (_, source) in servers {
            let slot = newest_snapshot(&(source.open)()).map_err(|e| format!("{}/{e}", source.name))?;
            let known: &mut Slot = newest.entry(*shard).or_default();
            *known = slot.max(*known);
        }
    }
    shards
        .iter()
        .map(|(shard, servers)| read_log(topology, cluster_id, *shard, servers, newest[shard]))
        .collect()
}

/// What one shard has decided, as far back as its snapshot.
#[derive(Debug)]
struct ShardLog {
    shard: ShardId,
    base: Bank,
    /// The values of the slots behind it.
    values: Vec<Value>,
}

fn read_log<D: Disk, F: Fn() -> D>(
    topology: Topology,
    cluster_id: u128,
    shard: ShardId,
    servers: &[(NodeId, &Source<F>)],
    newest: Slot,
) -> Result<ShardLog, String> {
    let mut opened = Vec::new();
    let mut unusable = Vec::new();
    for (server, source) in servers {
        let expected = Expected { cluster_id: Some(cluster_id), topology, server: *server };
        match Wal::open((source.open)(), expected) {
            Ok((wal, recovered)) => opened.push((*server, wal, recovered)),
            Err(e) => unusable.push(format!("{}/{}", source.name, e.what())),
        }
    }
    let short =
        |found: usize| enough(&topology, shard, found).map_err(|e| format!("{e} ({})", unusable.join("; ")));
    short(opened.len())?;
    let (_, wal, recovered) = opened
        .iter_mut()
        .max_by_key(|(_, _, recovered)| recovered.decided)
        .ok_or_else(|| format!("{shard}: no directory"))?;
    if recovered.snapshot.is_some_and(|cut| cut.slot > newest) {
        return Err(format!(
            "{shard}: it takes snapshots faster than it can be read; try again when it is less busy"
        ));
    }
    let decided = recovered.decided;
    let failed = |e: StorageError| format!("{shard}: {e}");
    let base = drive::load(topology, shard, recovered.snapshot, wal).map_err(failed)?;
    let mut values = Vec::new();
    while base.applied().0 + (values.len() as u64) < decided.0 {
        let next = Slot(base.applied().0 + 1 + values.len() as u64);
        let entries = wal.read(next, limits::CATCH_UP_BYTES).map_err(|e| format!("{shard}: {e}"))?;
        if entries.is_empty() {
            return Err(format!("{shard}: slot {next} is missing"));
        }
        values.extend(entries.into_iter().filter(|(slot, ..)| *slot <= decided).map(|(_, _, value)| value));
    }
    let mut log = ShardLog { shard, base, values };

    // S3: a disk that was not let in has no say, and one that was replaced has none any more.
    let voters = |bank: &Bank| {
        let counts = |server: NodeId, incarnation: Incarnation, founder: bool| {
            bank.members().get(&server).map_or(founder, |known| known.incarnation == incarnation)
        };
        let voters = opened.iter().filter(|(server, _, r)| counts(*server, r.incarnation, r.founder));
        voters.map(|(server, ..)| *server).collect::<Vec<_>>()
    };
    let before = voters(&log.at(&topology, log.last()).0);
    short(before.len())?;
    let mut votes: BTreeMap<Slot, (Ballot, &Value)> = BTreeMap::new();
    for (_, _, recovered) in opened.iter().filter(|(server, ..)| before.contains(server)) {
        for (slot, ballot, value) in recovered.votes.iter().filter(|(slot, ..)| *slot > decided) {
            let vote = votes.entry(*slot).or_insert((*ballot, value));
            if vote.0 < *ballot {
                *vote = (*ballot, value);
            }
        }
    }
    let expected = (decided.0 + 1..).map(Slot);
    let tail = votes.into_iter().zip(expected).take_while(|((slot, _), expected)| slot == expected);
    log.values.extend(tail.map(|((_, (_, value)), _)| value.clone()));
    let after = voters(&log.at(&topology, log.last()).0);
    short(before.iter().filter(|server| after.contains(server)).count())?;
    Ok(log)
}

impl ShardLog {
    fn last(&self) -> Slot {
        Slot(self.base.applied().0 + self.values.len() as u64)
    }

    fn behind_base(&self, upto: Slot) -> impl Iterator<Item = (Slot, &Value)> {
        let slots = (self.base.applied().0 + 1..=upto.0).map(Slot);
        slots.zip(&self.values)
    }

    /// The state after a slot, and the transfers across shards that committed on the way there from the snapshot.
    fn at(&self, topology: &Topology, slot: Slot) -> (Bank, Vec<(ShardId, Committed)>) {
        let mut bank = self.base.clone();
        let mut across = Vec::new();
        let mut effects = Effects::default();
        for (slot, value) in self.behind_base(slot) {
            bank.apply(slot, value, &mut effects);
            for committed in &effects.committed {
                if let Ok((from, to)) = validate(topology, &committed.transfer)
                    && from != to
                {
                    let other = if from == self.shard { to } else { from };
                    across.push((other, *committed));
                }
            }
        }
        (bank, across)
    }

    /// The last slot in front of the first one up to `upto` with such a command, if there is one.
    fn before(&self, upto: Slot, found: impl Fn(&Command<'_>) -> bool) -> Option<Slot> {
        let holds = |value: &Value| command::blocks(&value.0).flatten().any(|command| found(&command));
        let mut slots = self.behind_base(upto);
        slots.find(|(_, value)| holds(value)).map(|(slot, _)| Slot(slot.0 - 1))
    }
}

/// Shortens logs until none holds an effect without its cause.
fn consistent(topology: &Topology, logs: &[ShardLog]) -> Result<Vec<Bank>, String> {
    let mut states: Vec<_> = logs.iter().map(|log| log.at(topology, log.last())).collect();
    while let Some((index, upto)) = contradiction(logs, &states)? {
        states[index] = logs[index].at(topology, upto);
    }
    let banks: Vec<Bank> = states.into_iter().map(|(bank, _)| bank).collect();
    check_money(topology, &banks)?;
    Ok(banks)
}

/// B2: what one half of a transfer has done and the other still holds is under way; with that, all money is there.
fn check_money(topology: &Topology, banks: &[Bank]) -> Result<(), String> {
    let mut sum: i128 = banks.iter().map(|bank| bank.total() as i128).sum();
    for (index, bank) in banks.iter().enumerate() {
        for (id, hold) in bank.holds().iter() {
            let others = hold.participants.iter().map(|shard| shard.index()).filter(|other| *other != index);
            if others.into_iter().any(|other| banks[other].status(id) == Some(Status::YesCommitted)) {
                let amount = i128::from(hold.transfer.amount);
                sum += if bank.balance(hold.transfer.from).is_some() { -amount } else { amount };
            }
        }
    }
    let opened = i128::from(topology.accounts) * i128::from(topology.initial_balance);
    if sum == opened {
        return Ok(());
    }
    Err(format!(
        "B2: {sum} units instead of {opened}: these directories are not of one moment; copy them anew"
    ))
}

type State = (Bank, Vec<(ShardId, Committed)>);

/// A log that is too long, and how long it may be.
fn contradiction(logs: &[ShardLog], states: &[State]) -> Result<Option<(usize, Slot)>, String> {
    for (index, (bank, across)) in states.iter().enumerate() {
        // A number would be issued twice.
        let opened = |session: Session| states[session.shard().index()].0.has_opened(session);
        if let Some(session) = bank.known_sessions().find(|session| !opened(*session)) {
            // An expiry names the older ones that live.
            let mentions = |command: &Command<'_>| {
                let expires = matches!(command, Command::Expire { .. });
                command.session().is_some_and(|named| {
                    let later = named.shard() == session.shard() && named.number() > session.number();
                    named == session || expires && later
                })
            };
            return match logs[index].before(bank.applied(), mentions) {
                Some(upto) => Ok(Some((index, upto))),
                None => Err(format!(
                    "{}: session {session} is in its snapshot, and was never opened",
                    logs[index].shard
                )),
            };
        }
        // B2, T2: the other half of a transfer.
        let missing = |other: &ShardId, id: TxnId| states[other.index()].0.status(id).is_none();
        if let Some((_, committed)) = across.iter().find(|(other, committed)| missing(other, committed.id)) {
            return Ok(Some((index, Slot(committed.slot.0 - 1))));
        }
        // T4: who still holds a transfer in doubt takes the other's having finished with it for a NO.
        for (id, hold) in bank.holds().iter() {
            for other in hold.participants.iter().map(|shard| shard.index()).filter(|other| *other != index) {
                let there = &states[other].0;
                if !matches!(there.status(id), Some(Status::Finished | Status::Expired)) {
                    continue;
                }
                let passes = |command: &Command<'_>| match command {
                    Command::Mark { session, mark } => *session == id.session && *mark > id.seq,
                    Command::Expire { session, .. } => *session == id.session,
                    _ => false,
                };
                if let Some(upto) = logs[other].before(there.applied(), passes) {
                    return Ok(Some((other, upto)));
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
