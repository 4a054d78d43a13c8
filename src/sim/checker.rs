//! Sees every server and every client at once, and panics with the number of the rule that broke.
//!
//! Per shard it keeps the one log that may exist and a bank of its own that applies it; servers are compared with both
//! after every turn. What clients were told is held against what the logs say, then and ever after.

use std::collections::{BTreeMap, BTreeSet};

use crate::bank::command::{self, Command};
use crate::bank::{Bank, BlockResult, Committed, Effects, Status};
use crate::config::{Limits, Topology};
use crate::shard::{Divergence, Shard};
use crate::sim::acceptances::Acceptances;
use crate::sim::coverage::{Coverage, Seen};
use crate::sim::sessions::Sessions;
use crate::sim::text;
use crate::txn::Outcome;
use crate::txn::message::{Request, Response};
use crate::types::{AccountId, ClientId, NodeId, Reason, Session, ShardId, Slot, Transfer, TxnId, Value};

/// A transfer as its client knows it: the client's number, and a transfer that this client never repeats.
type Wish = (u32, (u64, u64, i64));

fn wish(client: u32, t: Transfer) -> Wish {
    (client, (t.from.0, t.to.0, t.amount))
}

/// A transaction: its id, and its transfer if a client has named it. One id may have been given to several transfers.
type Key = (TxnId, Option<(u64, u64, i64)>);

fn key(id: TxnId, name: Option<Transfer>) -> Key {
    (id, name.map(|t| (t.from.0, t.to.0, t.amount)))
}

/// What the logs and the clients say about one transaction.
#[derive(Default, Debug)]
struct Txn {
    participants: Vec<ShardId>,
    /// Whether the first decided mention set the register to YES (T1).
    votes: BTreeMap<ShardId, bool>,
    committed: BTreeSet<ShardId>,
    aborted: BTreeSet<ShardId>,
    /// Where a fence set the register.
    fenced: BTreeSet<ShardId>,
    /// What its client was told for good.
    told: Option<bool>,
}

/// One shard's log as it must be everywhere.
struct ShardLog {
    values: Vec<Value>,
    committed: Vec<Committed>,
    /// Digest after slot 0, 1, 2, …
    digests: Vec<u64>,
    bank: Bank,
    /// By account: (slot, balance, locked), whenever one of the two changed.
    history: BTreeMap<AccountId, Vec<(Slot, u64, bool)>>,
}

/// What is known about a server that is looked at.
#[derive(Clone, Copy)]
pub struct Observed {
    /// It was just restored from its disk.
    pub restored: bool,
    /// What it wrote is durable, unless it is about to die of a disk that failed.
    pub durable: bool,
    /// Its state was made wrong on purpose.
    pub misled: bool,
    /// Its disk is damaged: what it wrote may be gone again.
    pub ailing: bool,
}

pub struct Checker {
    topology: Topology,
    logs: Vec<ShardLog>,
    compared: BTreeMap<NodeId, Slot>,
    pub acceptances: Acceptances,
    txns: BTreeMap<Key, Txn>,
    /// Ids that clients gave.
    named: BTreeSet<TxnId>,
    ids: BTreeMap<Wish, TxnId>,
    /// What got another name, because the session of this one was lost.
    renamed: BTreeSet<TxnId>,
    sessions: Sessions,
    never_sent: BTreeSet<Wish>,
    /// Their clients were told that nobody knows.
    unknown: BTreeSet<Wish>,
    /// What was decided when a read or probe arrived, by the server and its number there.
    arrivals: BTreeMap<(NodeId, ClientId, u64), Slot>,
    /// Debits that are applied minus credits that are applied, over transactions between shards.
    in_transit: i128,
    /// Servers whose state was right and that stopped over another digest of a slot.
    stopped: BTreeMap<(ShardId, Slot, u64), BTreeSet<NodeId>>,
    pub committed: u64,
    pub coverage: Coverage,
}

impl Checker {
    pub fn new(topology: Topology, limits: &Limits) -> Checker {
        let logs = topology.shards().map(|shard| {
            let bank = Bank::new(topology, shard).with_limits(limits);
            let accounts = topology.accounts_of(shard).map(AccountId);
            let opened = |a| (a, vec![(Slot::ZERO, topology.initial_balance, false)]);
            ShardLog {
                values: Vec::new(),
                committed: Vec::new(),
                digests: vec![bank.digest()],
                bank,
                history: accounts.map(opened).collect(),
            }
        });
        Checker {
            topology,
            logs: logs.collect(),
            compared: BTreeMap::new(),
            acceptances: Acceptances::new(topology),
            txns: BTreeMap::new(),
            named: BTreeSet::new(),
            ids: BTreeMap::new(),
            renamed: BTreeSet::new(),
            sessions: Sessions::default(),
            never_sent: BTreeSet::new(),
            unknown: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            in_transit: 0,
            stopped: BTreeMap::new(),
            committed: 0,
            coverage: Coverage::default(),
        }
    }

    /// What committed in a shard, in log order.
    pub fn committed_in(&self, shard: ShardId) -> &[Committed] {
        &self.logs[shard.index()].committed
    }

    /// How far a shard's log is known to be decided.
    pub fn decided(&self, shard: ShardId) -> Slot {
        Slot(self.logs[shard.index()].values.len() as u64)
    }

    /// A server ended a turn, or was just restored from its disk.
    ///
    /// `read` gives a decided value that is no longer in the server's memory, from its log.
    pub fn observe(&mut self, server: &Shard, observed: Observed, read: impl Fn(Slot) -> Option<Value>) {
        let Observed { restored, durable, misled, ailing } = observed;
        if durable {
            self.acceptances.observe(server);
        }
        let me = server.id();
        let shard = self.topology.shard_of_server(me);
        let decided = server.replica().decided();
        if restored {
            self.compared.insert(me, Slot::ZERO);
            // Another dispute may make it stop again; of one, it is back.
            self.stopped.values_mut().for_each(|all| _ = all.remove(&me));
            // And each fault of a memory may take one server with it.
            self.stopped.retain(|(other, ..), _| *other != shard || !misled);
        }
        let from = self.compared.insert(me, decided).unwrap_or_default();
        assert!(from <= decided, "P2: {me} had decided slot {from} and now only {decided}");
        let mut slot = from;
        while slot < decided {
            slot = slot.next();
            let known = self.logs[shard.index()].values.get(slot.0 as usize - 1).cloned();
            match (server.replica().entry(slot), known) {
                (Some((ballot, value)), Some(known)) => assert!(
                    *value == known,
                    "P2: {me} decided slot {slot} as [{}] in {ballot}, others as [{}]",
                    text::value(value),
                    text::value(&known)
                ),
                (Some((_, value)), None) => {
                    if durable {
                        self.acceptances.check_decided(me, slot, value);
                    }
                    self.decide(shard, slot, &value.clone());
                }
                // No longer in memory; the digest answers for it.
                (None, Some(_)) => {}
                (None, None) => {
                    let chosen = || self.acceptances.chosen(shard, slot).filter(|_| ailing);
                    let value = read(slot).or_else(chosen);
                    if value.is_none() && !durable {
                        // Learned, applied, and lost again with the server that is about to die.
                        return;
                    }
                    assert!(value.is_some(), "P2: {me} holds slot {slot} decided and has lost its value");
                    if let Some(value) = value {
                        if durable {
                            self.acceptances.check_decided(me, slot, &value);
                        }
                        self.decide(shard, slot, &value);
                    }
                }
            }
        }
        if !misled {
            let (applied, digest) = (server.bank().applied(), server.bank().digest());
            assert_eq!(digest, self.digest(shard, applied), "P4: the digest of {me} after slot {applied}");
            if let Some((slot, digest)) = server.confirmed_digest() {
                assert_eq!(
                    digest,
                    self.digest(shard, slot),
                    "P4: {me} takes it for confirmed at slot {slot}"
                );
            }
        }
    }

    fn digest(&self, shard: ShardId, slot: Slot) -> u64 {
        self.logs[shard.index()].digests[slot.0 as usize]
    }

    /// Whether a server's state is not what it must be.
    pub fn is_wrong(&self, server: &Shard) -> bool {
        let shard = self.topology.shard_of_server(server.id());
        server.bank().digest() != self.digest(shard, server.bank().applied())
    }

    /// A server stops because its digest differs from others. `misled` if its state was wrong, `others` if that of another
    /// server of its cluster ever was.
    pub fn stops(&mut self, divergence: &Divergence, misled: bool, others: bool) {
        assert!(misled || others, "P4: nobody's state was wrong: {divergence}");
        self.coverage.see_if(misled && divergence.outvoted, Seen::Outvoted);
        self.coverage.see_if(!divergence.outvoted, Seen::StoppedInDispute);
        if !misled {
            assert!(!divergence.outvoted, "P4: its state was right: {divergence}");
            let shard = self.topology.shard_of_server(divergence.server);
            for (_, digest) in &divergence.others {
                let stopped = self.stopped.entry((shard, divergence.slot, *digest)).or_default();
                stopped.insert(divergence.server);
                let few = stopped.len() < self.topology.majority();
                assert!(few, "P4: a majority was right, and all of it stopped: {stopped:?}, {divergence}");
            }
        }
    }

    fn decide(&mut self, shard: ShardId, slot: Slot, value: &Value) {
        let mut effects = Effects::default();
        let log = &mut self.logs[shard.index()];
        assert_eq!(log.values.len() as u64 + 1, slot.0, "P2: slots are decided in order");
        log.bank.apply(slot, value, &mut effects);
        log.values.push(value.clone());
        log.committed.extend_from_slice(&effects.committed);
        log.digests.push(log.bank.digest());
        for (account, history) in &mut log.history {
            let balance = log.bank.balance(*account).expect("an account of this shard");
            let locked = log.bank.is_locked(*account);
            if history.last().is_none_or(|last| (last.1, last.2) != (balance, locked)) {
                history.push((slot, balance, locked));
            }
        }
        self.coverage.see_if(effects.crowded, Seen::NoRoom);
        for (block, result) in command::blocks(&value.0).zip(&effects.results) {
            let Ok(block) = block else { panic!("P4: slot {slot} of {shard} holds malformed bytes") };
            if let (Command::Open { named: true }, BlockResult::Opened(session)) = (block, result) {
                self.sessions.opened_for_names(*session);
            }
            self.mentions(shard, block, &result.unpack().unwrap_or_default());
        }
        for done in &effects.committed {
            self.took_effect(shard, done.id, done.transfer);
        }
        let sum: i128 = self.logs.iter().map(|l| l.bank.total() as i128).sum();
        let opened = i128::from(self.topology.accounts) * i128::from(self.topology.initial_balance);
        assert_eq!(sum + self.in_transit, opened, "B2: money after slot {slot} of {shard}");
    }

    fn mentions(&mut self, shard: ShardId, block: Command<'_>, statuses: &[Status]) {
        let (range, participants, commits) = match block {
            Command::Open { .. } | Command::Rejoin { .. } => return,
            Command::Touch { session } => {
                statuses.iter().for_each(|status| self.sessions.touched(shard, session, *status));
                let known = self.logs[shard.index()].bank.known_sessions().any(|s| s == session);
                return self.coverage.see_if(known && statuses == [Status::Expired], Seen::NotForNames);
            }
            Command::Mark { session, mark } => {
                let id = TxnId { session, seq: mark };
                return statuses.iter().for_each(|s| self.sessions.mentioned(shard, id, *s, false));
            }
            Command::Close { session } => {
                let coverage = &mut self.coverage;
                return statuses.iter().for_each(|s| self.sessions.close(shard, session, *s, coverage));
            }
            Command::Expire { session, .. } => {
                return statuses.iter().for_each(|s| self.expired(shard, session, *s));
            }
            Command::Transfers { range, .. } => (range, vec![shard], None),
            Command::Prepare { range, participants, .. } => (range, participants.to_vec(), None),
            Command::Fence { range, .. } => (range, Vec::new(), None),
            Command::Outcome { range, commits, .. } => (range, Vec::new(), Some(commits)),
        };
        let is_fence = matches!(block, Command::Fence { .. });
        for (i, (seq, status)) in range.seqs().zip(statuses).enumerate() {
            let id = TxnId { session: range.session, seq };
            let name = block.name(i);
            self.named.extend(name.map(|_| id));
            let txn = self.txns.entry(key(id, name)).or_default();
            self.coverage.see_if(*status == Status::Aborted(Reason::IdReused), Seen::IdReused);
            if txn.participants.is_empty() {
                txn.participants = participants.clone();
            }
            let known = txn.votes.get(&shard).copied();
            let asks = !participants.is_empty();
            self.sessions.mentioned(shard, id, *status, known.is_none());
            self.coverage.see_if(asks && *status == Status::Closed, Seen::ClosedRefused);
            self.coverage.see_if(*status == Status::Expired, Seen::AfterExpiry);
            self.coverage
                .see_if(asks && known == Some(false) && txn.fenced.contains(&shard), Seen::FenceFirst);
            self.coverage.see_if(asks && known.is_some(), Seen::RetryRecorded);
            self.coverage.see_if(asks && known.is_some() && name.is_some(), Seen::NamedAgain);
            self.coverage.see_if(is_fence && known == Some(true), Seen::FenceAfterYes);
            self.coverage.see_if(*status == Status::Finished, Seen::Finished);
            self.coverage.see_if(*status == Status::Busy, Seen::BeyondWindow);
            let vote = match (status, commits.map(|c| command::bit(c, i))) {
                (Status::Invalid, _) => {
                    panic!("T2: {shard} got an outcome for {id} that contradicts {txn:?}")
                }
                (Status::Finished | Status::Expired | Status::Busy, _) => continue,
                (Status::Done, Some(true)) => true,
                (Status::Done, Some(false)) => {
                    let vote = *txn.votes.entry(shard).or_insert(false);
                    let no = txn.votes.values().any(|yes| !yes);
                    assert!(no, "T2: {id} is aborted in {shard}, and nobody voted NO: {txn:?}");
                    txn.aborted.insert(shard);
                    vote
                }
                (Status::Aborted(_) | Status::Closed, _) => false,
                _ => true,
            };
            if is_fence && known.is_none() {
                txn.fenced.insert(shard);
            }
            let first = *txn.votes.entry(shard).or_insert(vote);
            assert_eq!(first, vote, "T1: the register of {id} in {shard} changed: {txn:?}");
        }
    }

    /// A shard forgets a session: whatever the shards hold of it must be over, for good, in all of them (T7).
    fn expired(&mut self, shard: ShardId, session: Session, status: Status) {
        if !self.sessions.expire(shard, session, status) {
            return;
        }
        self.coverage.see_if(shard == session.shard(), Seen::SessionExpired);
        for other in self.topology.shards() {
            let closed = self.sessions.is_closed(other, session);
            assert!(closed, "T7: {session} expired in {shard} while it is open in {other}");
            let last = shard != session.shard() || self.sessions.is_expired(other, session);
            assert!(last, "T7: {session} expired in {shard}, which issued it, before it did in {other}");
        }
        let id = |seq| TxnId { session, seq };
        for ((id, _), txn) in self.txns.range((id(0), None)..(id(u64::MAX), None)) {
            let over = |part: &ShardId| txn.committed.contains(part) || txn.aborted.contains(part);
            let doubtful = txn.votes.iter().find(|(part, yes)| **yes && !over(part));
            assert!(doubtful.is_none(), "T7: {session} expired in {shard} with {id} in doubt: {txn:?}");
        }
    }

    /// Whether something of this transfer can never be decided in one of its shards, so that it has no effect anywhere.
    fn is_dead(&self, id: TxnId, transfer: Transfer) -> bool {
        let votes = self.txns.get(&(id, None)).map(|txn| &txn.votes);
        self.parts(transfer).any(|part| match votes.and_then(|votes| votes.get(&part)) {
            Some(yes) => !yes,
            None => self.sessions.is_closed(part, id.session),
        })
    }

    fn parts(&self, transfer: Transfer) -> impl Iterator<Item = ShardId> {
        [transfer.from, transfer.to].into_iter().filter_map(|account| self.topology.shard_of(account))
    }

    /// Whether no shard can tell any more how a transfer ended.
    pub fn is_forgotten(&self, client: u32, transfer: Transfer) -> bool {
        let Some(id) = self.ids.get(&wish(client, transfer)) else { return false };
        self.parts(transfer).all(|part| self.sessions.is_expired(part, id.session))
    }

    /// The sessions that some shard has not let expire.
    pub fn sessions(&self) -> usize {
        self.logs.iter().map(|log| log.bank.sessions()).sum()
    }

    fn took_effect(&mut self, shard: ShardId, id: TxnId, transfer: Transfer) {
        self.sessions.took_effect(shard, id);
        assert!(
            !self.renamed.contains(&id),
            "B3: {id} {transfer} took effect in {shard} and had another name"
        );
        let named = self.named.contains(&id);
        // One id in its client's and in a coordinator's hands at once does not happen here.
        let txn = self.txns.entry(key(id, named.then_some(transfer))).or_default();
        assert!(txn.committed.insert(shard), "B3: {id} {transfer} took effect twice in {shard}");
        assert!(txn.aborted.is_empty(), "T2: {id} {transfer} was aborted elsewhere: {txn:?}");
        assert_ne!(
            txn.told,
            Some(false),
            "T8: {id} {transfer} took effect in {shard}, its client was told no"
        );
        let from = self.topology.shard_of(transfer.from);
        let to = self.topology.shard_of(transfer.to);
        if from == to {
            self.committed += 1;
            return;
        }
        for part in [from, to].into_iter().flatten() {
            assert_eq!(
                txn.votes.get(&part),
                Some(&true),
                "T2: {id} {transfer} committed in {shard} without the YES of {part}"
            );
        }
        self.committed += u64::from(txn.committed.len() == 2);
        let amount = i128::from(transfer.amount);
        self.in_transit += if from == Some(shard) { amount } else { -amount };
    }

    /// A client sent these blocks: now its transfers have names.
    pub fn sent(&mut self, client: u32, blocks: &Value) {
        for block in command::blocks(&blocks.0) {
            let (range, records) = match block {
                Ok(
                    Command::Transfers { range, records, named: false }
                    | Command::Prepare { range, records, named: false, .. },
                ) => (range, records),
                _ => continue,
            };
            for (seq, record) in range.seqs().zip(records) {
                let id = TxnId { session: range.session, seq };
                let wish = wish(client, record.get());
                assert!(!self.never_sent.contains(&wish), "T8: {id} was sent after its client was told no");
                assert!(
                    !self.unknown.contains(&wish),
                    "T8: {id} was sent again after its client was told unknown"
                );
                let known = self.ids.insert(wish, id).unwrap_or(id);
                if known != id {
                    let dead = self.is_dead(known, record.get());
                    assert!(dead, "B3: one transfer of K{client} was sent under two names, {known} and {id}");
                    self.renamed.insert(known);
                    self.coverage.see(Seen::Renamed);
                }
                assert!(!self.renamed.contains(&id), "B3: {id} was sent after it had got another name");
            }
        }
    }

    /// A client was told how a transfer ended.
    pub fn told(&mut self, client: u32, transfer: Transfer, outcome: &Outcome) {
        let wish = wish(client, transfer);
        let (commit, id) = match (outcome, self.ids.get(&wish)) {
            (Outcome::Committed, Some(id)) => (true, *id),
            (Outcome::Committed, None) => panic!("T2: K{client} was told that {transfer} committed, unsent"),
            (Outcome::Aborted(_), Some(id)) => (false, *id),
            (Outcome::Aborted(_), None) => {
                self.never_sent.insert(wish);
                return;
            }
            (Outcome::Unknown, _) => {
                self.unknown.insert(wish);
                return;
            }
            _ => return,
        };
        self.told_of(client, id, None, transfer, commit);
    }

    /// A client was told how a transfer ended that it has named.
    pub fn told_named(&mut self, client: u32, id: TxnId, transfer: Transfer, outcome: &Outcome) {
        let commit = match outcome {
            Outcome::Committed => true,
            Outcome::Aborted(_) | Outcome::Closed => false,
            _ => return,
        };
        self.told_of(client, id, Some(transfer), transfer, commit);
    }

    fn told_of(&mut self, client: u32, id: TxnId, name: Option<Transfer>, transfer: Transfer, commit: bool) {
        let txn = self.txns.entry(key(id, name)).or_default();
        assert!(txn.told.is_none_or(|t| t == commit), "T2: K{client} was told both about {id}: {txn:?}");
        txn.told = Some(commit);
        if commit {
            let parts: BTreeSet<ShardId> =
                [transfer.from, transfer.to].into_iter().filter_map(|a| self.topology.shard_of(a)).collect();
            for part in parts {
                assert_eq!(txn.votes.get(&part), Some(&true), "T2: {id} reported committed: {txn:?}");
            }
            assert!(txn.aborted.is_empty(), "T2: {id} reported committed, aborted in a log: {txn:?}");
        } else {
            assert!(txn.committed.is_empty(), "T8: {id} reported aborted, committed in a log: {txn:?}");
            let parts = txn.participants.len();
            let yes = txn.votes.values().filter(|yes| **yes).count();
            assert!(parts == 0 || yes < parts, "T2: {id} reported aborted with every vote YES: {txn:?}");
        }
    }

    /// What an account holds after everything that was decided.
    pub fn balance(&self, account: AccountId) -> u64 {
        let shard = self.topology.shard_of(account).expect("an account of this bank");
        self.logs[shard.index()].bank.balance(account).expect("its shard holds it")
    }

    fn txn_of(&self, client: u32, transfer: Transfer) -> Option<&Txn> {
        self.txns.get(&(*self.ids.get(&wish(client, transfer))?, None))
    }

    /// How far a transfer has come that its client still waits for.
    pub fn step_of(&self, client: u32, transfer: Transfer) -> Option<Seen> {
        if !self.ids.contains_key(&wish(client, transfer)) {
            return Some(Seen::DiedUnsent);
        }
        let Some(txn) = self.txn_of(client, transfer).filter(|t| !t.votes.is_empty()) else {
            return Some(Seen::DiedUnvoted);
        };
        let crosses = self.topology.shard_of(transfer.from) != self.topology.shard_of(transfer.to);
        match (txn.votes.len(), txn.committed.len() + txn.aborted.len()) {
            _ if !crosses => None,
            (1, _) => Some(Seen::DiedBetweenVotes),
            (_, 0) => Some(Seen::DiedUndecided),
            (_, 1) => Some(Seen::DiedBetweenOutcomes),
            _ => None,
        }
    }

    /// Whether a transfer between shards is finished on both sides.
    pub fn is_over(&self, client: u32, transfer: Transfer) -> bool {
        self.txn_of(client, transfer).is_some_and(|t| t.committed.len() + t.aborted.len() == 2)
    }

    /// A linearizable read that began when `since` was decided: some state since then must have shown this balance, and
    /// no undecided transaction may have locked the account in it (P5, T6).
    pub fn read(&self, account: AccountId, balance: u64, since: Slot) {
        let shard = self.topology.shard_of(account).expect("a read of a known account was answered");
        let history = &self.logs[shard.index()].history[&account];
        let before = history.iter().rposition(|(slot, ..)| *slot <= since).unwrap_or(0);
        let fits = history[before..].iter().any(|(_, known, locked)| *known == balance && !locked);
        assert!(fits, "P5: account {account} was read as {balance} after slot {since}: {history:?}");
    }

    /// A request reaches a server.
    pub fn arrived(&mut self, server: NodeId, client: ClientId, request: &Request) {
        if matches!(
            request,
            Request::Read { local: false, .. } | Request::Status { .. } | Request::Probe { .. }
        ) {
            let decided = self.decided(self.topology.shard_of_server(server));
            self.arrivals.insert((server, client, request.number()), decided);
        }
    }

    /// A server answers a client. Whoever says that it leads, or reads a balance, knows everything that was decided when
    /// the question arrived (P5).
    pub fn replied(&mut self, server: &Shard, client: ClientId, response: &Response) {
        let me = server.id();
        let Some(decided) = self.arrivals.remove(&(me, client, response.number())) else { return };
        if matches!(
            response,
            Response::Leading { .. } | Response::Status { .. } | Response::Balance { balance: Ok(_), .. }
        ) {
            let applied = server.bank().applied();
            assert!(
                applied >= decided,
                "P5: {me} answered from slot {applied} what it was asked when slot {decided} was decided"
            );
        }
    }

    /// Everything has come to rest: no lock, no money on its way, every decision known to both sides.
    pub fn at_rest(&self) -> Result<(), String> {
        for log in &self.logs {
            if let Some((id, hold)) = log.bank.holds().iter().next() {
                return Err(format!("T5: {id} {} is still in doubt", hold.transfer));
            }
        }
        if self.in_transit != 0 {
            return Err(format!("B2: {} units are on their way", self.in_transit));
        }
        Ok(())
    }
}

mod lookups;
