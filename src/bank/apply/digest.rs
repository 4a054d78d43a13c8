//! What the digest of a bank is made of (P4): a share for each element of its state.

use std::collections::BTreeMap;

use crate::bank::holds::{Hold, Holds};
use crate::bank::session::{Register, SessionState};
use crate::types::{Incarnation, NodeId, Rejoined, Session, ShardId, Transfer, TxnId};

/// One element's share of the digest. The digest is the wrapping sum of all shares, so that replacing an element costs
/// one subtraction and one addition, and a snapshot can be digested anew (an additive multiset hash; P4).
#[inline]
pub(super) fn share(tag: u64, a: u64, b: u64) -> u64 {
    share_of(stem(tag, a), b)
}

/// What shares with the same tag and first part have in common.
#[inline]
pub(super) fn stem(tag: u64, a: u64) -> u64 {
    mix(mix(tag.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(a))
}

#[inline]
pub(super) fn share_of(stem: u64, b: u64) -> u64 {
    mix(stem.wrapping_add(b))
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
#[inline]
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Two numbers as one: both halves of their product, once each was shifted away from the small ones that multiply to nothing
/// new (the step of wyhash). Cheaper than [`mix`], and good enough for what is mixed thereafter.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0xa076_1d64_78bd_642f) * u128::from(b ^ 0xe703_7ed1_a0b4_28db);
    product as u64 ^ (product >> 64) as u64
}

pub(super) const BALANCE: u64 = 1;
/// An undecided YES; the lock follows from it.
pub(super) const HOLD: u64 = 2;
pub(super) const REGISTER: u64 = 3;
pub(super) const MARK: u64 = 4;
pub(super) const ISSUED: u64 = 5;
pub(super) const FLOOR: u64 = 6;
pub(super) const CLOSED: u64 = 7;
pub(super) const MEMBER: u64 = 8;
pub(super) const TRAIL: u64 = 9;
pub(super) const NAME: u64 = 10;
/// A session for named transactions only.
pub(super) const NAMING: u64 = 11;

/// The share of consecutive accounts, from `first` on.
pub fn digest_balances(first: u64, balances: impl Iterator<Item = u64>) -> u64 {
    let shares = (first..).zip(balances).map(|(account, balance)| share(BALANCE, account, balance));
    shares.fold(0, u64::wrapping_add)
}

/// The share of everything else.
pub fn digest_rest(
    trail: u64,
    next_session: u64,
    members: &BTreeMap<NodeId, Rejoined>,
    floors: &BTreeMap<ShardId, u64>,
    sessions: &BTreeMap<Session, SessionState>,
    holds: &Holds,
) -> u64 {
    let mut digest = share(ISSUED, 0, next_session).wrapping_add(share(TRAIL, 0, trail));
    let mut add = |share: u64| digest = digest.wrapping_add(share);
    holds.iter().for_each(|(id, hold)| add(hold_share(id, hold)));
    members.iter().for_each(|(server, member)| add(member_share(*server, member)));
    floors.iter().for_each(|(issuer, floor)| add(share(FLOOR, u64::from(issuer.0), *floor)));
    for (session, state) in sessions {
        add(share(MARK, session.0, state.mark()));
        if state.is_closed() {
            add(share(CLOSED, session.0, 0));
        }
        if state.is_naming() {
            add(share(NAMING, session.0, 0));
        }
        for (seq, register) in state.registers() {
            add(register_share(TxnId { session: *session, seq }, register));
        }
        for (seq, name) in state.names() {
            add(name_share(TxnId { session: *session, seq }, &name));
        }
    }
    digest
}

pub(super) fn hold_share(id: TxnId, hold: &Hold) -> u64 {
    hold_share_of(stem(HOLD, id.session.0), id.seq, hold)
}

/// The same, by what the holds of a session have in common.
#[inline]
pub(super) fn hold_share_of(stem: u64, seq: u64, hold: &Hold) -> u64 {
    let Transfer { from, to, amount } = hold.transfer;
    let [a, b] = hold.participants.map(|shard| u64::from(shard.0));
    let how = u64::from(hold.named) << 32 | a << 16 | b;
    // Not their sum: who gets the money could then be taken for how it is held.
    let what = fold(fold(from.0, to.0), fold(amount.unsigned_abs(), how));
    share_of(share_of(stem, seq), what)
}

pub(super) fn member_share(server: NodeId, member: &Rejoined) -> u64 {
    let Rejoined { incarnation: Incarnation(i), ballot } = member;
    let whose = share(MEMBER, u64::from(server.0), (i >> 64) as u64);
    share(whose, *i as u64, share(MEMBER, ballot.round, u64::from(ballot.server)))
}

#[inline]
pub(super) fn register_share(id: TxnId, register: Register) -> u64 {
    share_of(register_stem(id.session, register), id.seq)
}

pub(super) fn register_stem(session: Session, register: Register) -> u64 {
    stem(REGISTER | u64::from(register.code()) << 8, session.0)
}

pub(super) fn name_share(id: TxnId, name: &Transfer) -> u64 {
    let whose = share(NAME, id.session.0, id.seq);
    share(whose, share(NAME, name.from.0, name.to.0), name.amount as u64)
}
