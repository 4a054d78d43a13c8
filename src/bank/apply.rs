//! The state of one shard, and the one function that changes it.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::bank::accounts::{Account, Accounts};
use crate::bank::command::{self, Command, Range, TransferRecord};
use crate::bank::holds::{Hold, Holds};
use crate::bank::image::Parts;
use crate::bank::session::{Register, SessionState};
use crate::bank::{BlockResult, Status, history};
use crate::config::limits::{SESSION_WINDOW, SESSIONS};
use crate::config::{Limits, Topology};
use crate::types::{AccountId, NodeId, Reason, Rejoined, Session, ShardId, Slot, Transfer, TxnId, Value};

/// Transfers whose accounts are looked up together, before any of them is carried out.
const AHEAD: usize = 32;

/// A transaction that a decided block mentions.
///
/// What a client has named, many coordinators may carry out, one after the other or at once, and a client may give one id to
/// two transfers. Each of these is a transaction of its own, so that neither happens by half; but only one of them gets the
/// register of a shard, and the others a NO there, for as long as it is kept (T1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Mention {
    pub id: TxnId,
    /// The transfer, if a client has named it.
    pub name: Option<Transfer>,
}

/// A transaction that took effect at this shard, in log order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Committed {
    pub slot: Slot,
    pub id: TxnId,
    pub transfer: Transfer,
}

/// What applying one slot brought about, beside the new state. Reused from slot to slot.
#[derive(Clone, Default, Debug)]
pub struct Effects {
    /// One result for each block of the value, in order.
    pub results: Vec<BlockResult>,
    /// Transactions that committed here.
    pub committed: Vec<Committed>,
    /// The same as bytes for the log: see [`crate::bank::history`].
    pub history: Vec<u8>,
    /// Transactions that became in doubt, those that follow each other together.
    pub prepared: Vec<Range>,
    /// Transactions that are in doubt no longer, likewise.
    pub settled: Vec<Range>,
    /// Why transactions aborted here, one entry for each: what this shard said, or `None` where another one said NO.
    pub aborted: Vec<Option<Reason>>,
    /// Sessions of this shard that were opened, or used.
    pub used: Vec<Session>,
    /// An open found no room.
    pub crowded: bool,
    /// Scratch space for the statuses of a block.
    statuses: Vec<Status>,
}

impl Effects {
    fn clear(&mut self) {
        self.results.clear();
        self.committed.clear();
        self.history.clear();
        self.prepared.clear();
        self.settled.clear();
        self.aborted.clear();
        self.used.clear();
        self.crowded = false;
    }
}

/// One shard's accounts, locks, vote registers and sessions after a prefix of its log.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Bank {
    topology: Topology,
    shard: ShardId,
    first_account: u64,
    /// From `first_account` on. A balance includes what is held from it; locked are those for which something is held.
    pub(super) accounts: Accounts,
    pub(super) holds: Holds,
    pub(super) sessions: BTreeMap<Session, SessionState>,
    session_window: u64,
    sessions_max: usize,
    /// By issuing shard: below this number a session that is not known here has expired (T7).
    pub(super) floors: BTreeMap<ShardId, u64>,
    /// The number of the next session that this shard issues.
    pub(super) next_session: u64,
    /// Stands for all states on the way here, and for what committed: see [`Bank::digest`].
    pub(super) trail: u64,
    /// The disks of servers that were let in after the first ones (S3).
    pub(super) members: BTreeMap<NodeId, Rejoined>,
    digest: u64,
    applied: Slot,
}

/// The checks that need no state, in order of precedence. Whoever handles a transfer comes to the same answer.
pub fn validate(topology: &Topology, transfer: &Transfer) -> Result<(ShardId, ShardId), Reason> {
    check(transfer)?;
    topology.shards_of(transfer.from, transfer.to).ok_or(Reason::UnknownAccount)
}

/// The first of these checks, for which accounts need not be known.
#[inline]
fn check(transfer: &Transfer) -> Result<(), Reason> {
    if transfer.amount <= 0 {
        return Err(Reason::InvalidAmount);
    }
    if transfer.from == transfer.to {
        return Err(Reason::SameAccount);
    }
    Ok(())
}

impl Bank {
    /// The shard as it is opened: every account holds the initial balance.
    pub fn new(topology: Topology, shard: ShardId) -> Bank {
        let range = topology.accounts_of(shard);
        let count = (range.end() - range.start() + 1) as usize;
        let mut bank = Bank {
            topology,
            shard,
            first_account: *range.start(),
            accounts: Accounts::new(count, topology.initial_balance),
            holds: Holds::default(),
            sessions: BTreeMap::new(),
            session_window: SESSION_WINDOW,
            sessions_max: SESSIONS,
            floors: BTreeMap::new(),
            next_session: 1,
            trail: 0,
            members: BTreeMap::new(),
            digest: 0,
            applied: Slot::ZERO,
        };
        bank.digest = bank.digest_anew();
        bank
    }

    /// The shard as an image describes it, with its digest computed from all of it.
    ///
    /// # Errors
    ///
    /// These parts make no bank.
    pub(super) fn from_parts(
        topology: Topology,
        shard: ShardId,
        applied: Slot,
        accounts: Accounts,
        parts: Parts,
    ) -> Result<Bank, String> {
        let first_account = *topology.accounts_of(shard).start();
        let Parts { trail, next_session, members, floors, sessions, holds } = parts;
        let mut bank = Bank {
            topology,
            shard,
            first_account,
            accounts,
            holds,
            sessions,
            session_window: SESSION_WINDOW,
            sessions_max: SESSIONS,
            floors,
            next_session,
            trail,
            members,
            digest: 0,
            applied,
        };
        let holds = std::mem::take(&mut bank.holds);
        for (id, hold) in holds.iter() {
            let part = bank.part(&hold.transfer);
            let (account, index) = part.ok_or_else(|| format!("{id} locks no account of {shard}"))?;
            if !bank.accounts.lock(index) {
                return Err(format!("two transactions lock account {account}"));
            }
        }
        bank.holds = holds;
        let undecided = bank.sessions.values().map(SessionState::undecided).sum::<usize>();
        let held = |(id, hold): (TxnId, &Hold)| {
            let name = hold.named.then_some(hold.transfer);
            bank.sessions.get(&id.session).is_some_and(|s| s.is_undecided(id.seq) && s.name(id.seq) == name)
        };
        if undecided != bank.holds.len() || !bank.holds.iter().all(held) {
            return Err("votes of YES and what is held for them do not fit".into());
        }
        bank.digest = bank.digest_anew();
        Ok(bank)
    }

    fn digest_anew(&self) -> u64 {
        let balances = digest_balances(self.first_account, self.accounts.iter().map(Account::balance));
        let Bank { trail, next_session, members, floors, sessions, holds, .. } = self;
        let rest = digest_rest(*trail, *next_session, members, floors, sessions, holds);
        balances.wrapping_add(rest)
    }

    /// The same with other bounds than the usual ones.
    pub fn with_limits(self, limits: &Limits) -> Bank {
        let mut sessions = self.sessions;
        sessions.values_mut().for_each(|state| state.set_window(limits.session_window));
        Bank { session_window: limits.session_window, sessions_max: limits.sessions, sessions, ..self }
    }

    /// The last slot that was applied.
    pub fn applied(&self) -> Slot {
        self.applied
    }

    /// Digest of the whole state, and of the way to it: equal on all servers of a shard that applied the same slots, and
    /// different for ever once they differed in any state or outcome, even where their balances have become equal again.
    /// So whoever agrees at a slot agrees at all slots before it.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Units on an account of this shard, `None` for any other account.
    pub fn balance(&self, account: AccountId) -> Option<u64> {
        self.index(account).map(|i| self.accounts.get(i).balance())
    }

    /// Whether an undecided transaction locks an account.
    pub fn is_locked(&self, account: AccountId) -> bool {
        self.index(account).is_some_and(|index| self.accounts.get(index).is_locked())
    }

    /// Every undecided YES, by transaction.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// The servers that were let in again with another disk, and which (S3).
    pub fn members(&self) -> &BTreeMap<NodeId, Rejoined> {
        &self.members
    }

    /// The sum of all balances of this shard.
    pub fn total(&self) -> u128 {
        self.accounts.iter().map(|account| u128::from(account.balance())).sum()
    }

    /// Applies the next decided slot. The same prefix of slots gives the same state and the same results (P4).
    pub fn apply(&mut self, slot: Slot, value: &Value, effects: &mut Effects) {
        assert_eq!(slot, self.applied.next(), "P4: slots are applied in order, none twice");
        effects.clear();
        for block in command::blocks(&value.0) {
            let command = block.expect("P4: the leader checked these bytes before it proposed them");
            self.apply_block(slot, command, effects);
        }
        let trail = share(TRAIL, self.digest, crc32c::crc32c(&effects.history).into());
        self.swap_share(TRAIL, 0, Some(self.trail), Some(trail));
        self.trail = trail;
        self.applied = slot;
    }

    fn apply_block(&mut self, slot: Slot, command: Command<'_>, effects: &mut Effects) {
        let mut statuses = std::mem::take(&mut effects.statuses);
        statuses.clear();
        let committed = effects.committed.len();
        effects.used.extend(command.used().filter(|session| session.shard() == self.shard));
        let common = match command {
            Command::Open { named } => {
                let opened = self.open(named);
                effects.crowded |= opened.is_none();
                effects.used.extend(opened);
                let none = || BlockResult::pack(Status::Done, &[Status::Busy]);
                effects.results.push(opened.map_or_else(none, BlockResult::Opened));
                effects.statuses = statuses;
                return;
            }
            Command::Mark { session, mark } => {
                statuses.push(self.advance_mark(session, mark));
                Status::Done
            }
            Command::Touch { session } => {
                statuses.push(self.touch(session));
                Status::Done
            }
            Command::Transfers { range, records, .. } => {
                self.each(&command, range, &mut statuses, |bank, state, i, txn| {
                    if i % AHEAD == 0 {
                        bank.warm(ahead(records, i).flat_map(TransferRecord::accounts));
                    }
                    bank.transfer(slot, state, txn, records[i].get(), effects)
                });
                Status::Committed
            }
            Command::Prepare { range, participants, records, .. } => {
                let theirs = self.other_accounts(participants);
                self.each(&command, range, &mut statuses, |bank, state, i, txn| {
                    if i % AHEAD == 0 {
                        bank.warm(ahead(records, i).flat_map(TransferRecord::accounts));
                    }
                    bank.prepare(state, txn, participants, &theirs, records[i].get(), effects)
                });
                Status::Yes
            }
            Command::Outcome { range, commits, .. } => {
                self.each(&command, range, &mut statuses, |bank, state, i, txn| {
                    if i % AHEAD == 0 {
                        bank.warm_held(state, txn.id.seq, range.seqs().end);
                    }
                    bank.outcome(slot, state, txn, command::bit(commits, i), effects)
                });
                Status::Done
            }
            Command::Fence { range, .. } => {
                self.each(&command, range, &mut statuses, |bank, state, _, txn| {
                    bank.fence(state, txn, effects)
                });
                Status::Yes
            }
            Command::Close { session } => {
                statuses.push(self.close(session));
                Status::Done
            }
            Command::Rejoin { server, incarnation, ballot } => {
                let member = Rejoined { incarnation, ballot };
                self.digest = self.digest.wrapping_add(member_share(server, &member));
                if let Some(before) = self.members.insert(server, member) {
                    self.digest = self.digest.wrapping_sub(member_share(server, &before));
                }
                statuses.push(Status::Done);
                Status::Done
            }
            Command::Expire { session, live } => {
                statuses.push(self.expire(session, live.iter().map(|n| n.get())));
                Status::Done
            }
        };
        effects.results.push(BlockResult::pack(common, &statuses));
        effects.statuses = statuses;
        history::put(&mut effects.history, &command, &effects.committed[committed..]);
    }

    /// Has those accounts that are here in the cache before they are needed. Among millions nearly every one is a miss, and
    /// misses that nothing waits for are served side by side.
    fn warm(&self, accounts: impl Iterator<Item = AccountId>) {
        let balances = accounts.filter_map(|account| self.balance(account));
        black_box(balances.fold(0, |seen, balance| seen ^ balance));
    }

    /// The same for transactions that are to be decided. First what is held for all of them, which may be far away, too: nothing
    /// would be side by side where each account has to wait for its hold.
    fn warm_held(&self, state: &Entered, first: u64, end: u64) {
        let (mut near, mut indices, mut count) = (state.near, [0; AHEAD], 0);
        for seq in first..end.min(first + AHEAD as u64) {
            let hold = state.held.get(seq, &mut near);
            if let Some((_, index)) = hold.and_then(|hold| self.part(&hold.transfer)) {
                indices[count] = index;
                count += 1;
            }
        }
        black_box(indices[..count].iter().fold(0, |seen, index| seen ^ self.accounts.get(*index).balance()));
    }

    /// Does something for each transaction of a block, with the state of their session, which is looked up once.
    fn each(
        &mut self,
        command: &Command<'_>,
        range: Range,
        statuses: &mut Vec<Status>,
        mut act: impl FnMut(&mut Bank, &mut Entered, usize, Mention) -> Status,
    ) {
        match self.enter(range.session) {
            Ok(mut state) => {
                let mentions = mentions(command, range).enumerate();
                statuses.extend(mentions.map(|(i, txn)| act(self, &mut state, i, txn)));
                self.leave(state);
            }
            Err(status) => statuses.resize(range.count as usize, status),
        }
    }

    fn abort(&mut self, state: &mut Entered, txn: Mention, reason: Reason, effects: &mut Effects) -> Status {
        self.record(state, txn, Register::No(reason));
        effects.aborted.push(Some(reason));
        Status::Aborted(reason)
    }

    #[inline]
    fn transfer(
        &mut self,
        slot: Slot,
        state: &mut Entered,
        txn: Mention,
        transfer: Transfer,
        effects: &mut Effects,
    ) -> Status {
        if let Some(status) = recorded(state, txn, true) {
            return status;
        }
        match self.execute(&transfer) {
            Ok(()) => {
                self.record(state, txn, Register::Committed);
                effects.committed.push(Committed { slot, id: txn.id, transfer });
                Status::Committed
            }
            Err(reason) => self.abort(state, txn, reason, effects),
        }
    }

    /// The checks of [`validate`], and in the same order, but for the shards, of which this one knows its own accounts only: a
    /// leader refuses transfers that were sent to the wrong shard.
    #[inline]
    fn execute(&mut self, transfer: &Transfer) -> Result<(), Reason> {
        check(transfer)?;
        let from = self.index(transfer.from).ok_or(Reason::UnknownAccount)?;
        let to = self.index(transfer.to).ok_or(Reason::UnknownAccount)?;
        let (payer, payee) = (self.accounts.get(from), self.accounts.get(to));
        if payer.is_locked() || payee.is_locked() {
            return Err(Reason::LockContention);
        }
        let amount = transfer.amount.unsigned_abs();
        let debited = payer.balance().checked_sub(amount).ok_or(Reason::InsufficientBalance)?;
        // Neither has more than 63 bits. Nor has the sum (B2), or it would not be taken below.
        let credited = payee.balance() + amount;
        self.set_balance(from, debited);
        self.set_balance(to, credited);
        Ok(())
    }

    fn prepare(
        &mut self,
        state: &mut Entered,
        txn: Mention,
        participants: [ShardId; 2],
        theirs: &RangeInclusive<u64>,
        transfer: Transfer,
        effects: &mut Effects,
    ) -> Status {
        if let Some(status) = recorded(state, txn, true) {
            return status;
        }
        let id = txn.id;
        match self.lockable(&transfer, theirs) {
            Ok(index) => {
                self.record(state, txn, Register::Yes);
                let hold = Hold { transfer, participants, named: txn.name.is_some() };
                self.digest = self.digest.wrapping_add(state.hold_share(id.seq, &hold));
                assert!(self.accounts.lock(index), "T5: a YES locks an account that nobody else does");
                state.held.insert(id.seq, hold, &mut state.near);
                Range::extend(&mut effects.prepared, id);
                Status::Yes
            }
            Err(reason) => self.abort(state, txn, reason, effects),
        }
    }

    /// The accounts of the other one of two participants; none if this shard is not one of them.
    fn other_accounts(&self, participants: [ShardId; 2]) -> RangeInclusive<u64> {
        match participants {
            [a, b] if a == self.shard && b.0 <= self.topology.clusters => self.topology.accounts_of(b),
            [a, b] if b == self.shard => self.topology.accounts_of(a),
            _ => RangeInclusive::new(1, 0),
        }
    }

    /// The index of the account of this shard that the transfer would lock, if this shard votes YES. The checks of
    /// [`validate`], and in the same order, but that the other account lies in the other participant, among `theirs`.
    fn lockable(&self, transfer: &Transfer, theirs: &RangeInclusive<u64>) -> Result<usize, Reason> {
        check(transfer)?;
        let (account, index) = self.part(transfer).ok_or(Reason::UnknownAccount)?;
        let other = if account == transfer.from { transfer.to } else { transfer.from };
        if !theirs.contains(&other.0) {
            return Err(Reason::UnknownAccount);
        }
        let own = self.accounts.get(index);
        if own.is_locked() {
            return Err(Reason::LockContention);
        }
        if account == transfer.from && own.balance() < transfer.amount.unsigned_abs() {
            return Err(Reason::InsufficientBalance);
        }
        Ok(index)
    }

    /// The account of a cross-shard transfer that lies in this shard, and its index.
    #[inline]
    fn part(&self, transfer: &Transfer) -> Option<(AccountId, usize)> {
        [transfer.from, transfer.to].into_iter().find_map(|a| Some((a, self.index(a)?)))
    }

    fn outcome(
        &mut self,
        slot: Slot,
        state: &mut Entered,
        txn: Mention,
        commit: bool,
        effects: &mut Effects,
    ) -> Status {
        match (recorded(state, txn, false), commit) {
            (None, false) => {
                self.record(state, txn, Register::No(Reason::NoQuorum));
                effects.aborted.push(None);
                Status::Done
            }
            (Some(Status::Yes), _) => {
                self.settle(slot, state, txn, commit, effects);
                if !commit {
                    effects.aborted.push(None);
                }
                Status::Done
            }
            (Some(Status::YesCommitted), true)
            | (Some(Status::YesAborted), false)
            | (Some(Status::Aborted(_) | Status::Closed), false) => Status::Done,
            (Some(status @ (Status::Finished | Status::Expired | Status::Busy)), _) => status,
            // T2: no commit without this shard's YES, and no second, different decision.
            (None, true) | (Some(_), _) => Status::Invalid,
        }
    }

    fn settle(&mut self, slot: Slot, state: &mut Entered, txn: Mention, commit: bool, effects: &mut Effects) {
        let id = txn.id;
        let hold = state.held.remove(id.seq, &mut state.near).expect("T5: an undecided YES has its hold");
        let (account, index) = self.part(&hold.transfer).expect("T5: a hold names an account of this shard");
        assert!(self.accounts.unlock(index), "T5: an undecided YES holds its lock");
        self.digest = self.digest.wrapping_sub(state.hold_share(id.seq, &hold));
        if commit {
            let amount = hold.transfer.amount.unsigned_abs();
            let before = self.accounts.get(index).balance();
            let balance = if account == hold.transfer.from {
                before.checked_sub(amount).expect("B1: the prepare held the money")
            } else {
                before + amount
            };
            self.set_balance(index, balance);
            effects.committed.push(Committed { slot, id, transfer: hold.transfer });
        }
        self.record(state, txn, if commit { Register::YesCommitted } else { Register::YesAborted });
        Range::extend(&mut effects.settled, id);
    }

    fn fence(&mut self, state: &mut Entered, txn: Mention, effects: &mut Effects) -> Status {
        recorded(state, txn, false).unwrap_or_else(|| self.abort(state, txn, Reason::NoQuorum, effects))
    }

    #[inline]
    fn index(&self, account: AccountId) -> Option<usize> {
        let index = account.0.checked_sub(self.first_account)? as usize;
        (index < self.accounts.len()).then_some(index)
    }

    #[inline]
    fn set_balance(&mut self, index: usize, balance: u64) {
        let account = self.first_account + index as u64;
        let (stem, before) = (stem(BALANCE, account), self.accounts.set_balance(index, balance));
        self.digest = self.digest.wrapping_sub(share_of(stem, before)).wrapping_add(share_of(stem, balance));
    }

    fn swap_share(&mut self, tag: u64, key: u64, before: Option<u64>, after: Option<u64>) {
        if let Some(before) = before {
            self.digest = self.digest.wrapping_sub(share(tag, key, before));
        }
        if let Some(after) = after {
            self.digest = self.digest.wrapping_add(share(tag, key, after));
        }
    }
}

/// The transfers from the i-th on that are looked up together.
fn ahead(records: &[TransferRecord], i: usize) -> std::slice::Iter<'_, TransferRecord> {
    records[i..records.len().min(i + AHEAD)].iter()
}

/// The transactions of a block, in order.
fn mentions<'a>(command: &'a Command<'_>, range: Range) -> impl Iterator<Item = Mention> + 'a {
    range.seqs().enumerate().map(move |(i, seq)| Mention { id: range.id(seq), name: command.name(i) })
}

mod digest;
mod sessions;

use digest::{
    BALANCE, CLOSED, FLOOR, HOLD, ISSUED, MARK, NAMING, TRAIL, hold_share_of, member_share, name_share,
    register_share, register_stem, share, share_of, stem,
};
pub(super) use digest::{digest_balances, digest_rest};
use sessions::{Entered, recorded};
#[cfg(test)]
mod tests;
