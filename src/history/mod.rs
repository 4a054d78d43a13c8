//! Judges what clients saw: can all of it be explained by one bank that does one thing at a time?
//!
//! The correctness condition is strict serializability; since a transfer is one operation on the bank as one object, that
//! is linearizability (Herlihy and Wing, "Linearizability: A Correctness Condition for Concurrent Objects", 1990). Every
//! operation needs an instant between its invocation and its reply at which it happened at once:
//!
//! | reply | what must be true at the instant |
//! |---|---|
//! | a transfer committed | the sender had the amount, and both balances changed |
//! | aborted: insufficient balance | the sender had less than the amount |
//! | aborted: lock contention, no quorum, storage full | nothing, and nothing changed, ever |
//! | aborted: invalid amount, same account, unknown account | exactly this is wrong with it, and it is the first thing |
//! | a read of a balance | the account had exactly this |
//! | none | a transfer took effect at some moment after its invocation, or never |
//!
//! Moments come from one clock. A precedes B if A's reply is *before* B's invocation; equal moments count as concurrent,
//! because a clock that shows both the same cannot tell which came first. An operation without a reply never ends.
//!
//! # Algorithm
//!
//! Deciding this is NP-complete (Papadimitriou, "The serializability of concurrent database updates", 1979), and the
//! known searches (Wing and Gong, "Testing and verifying concurrent objects", 1993; Lowe, "Testing for linearizability",
//! 2017) go through sets of operations that have happened so far, of which there are 2^n among n concurrent ones. Money
//! allows for more: effects add up, so a balance depends only on *which* transfers came before.
//!
//! 1. [`claims`]: what can be judged without any state is. What remains are effects and claims about one balance.
//! 2. [`split`]: cuts the history where balances are known, into parts that are independent of each other.
//! 3. [`component`]: guesses an order (every operation in the middle of its interval) and replays it. Most parts of a
//!    healthy history end here.
//! 4. Otherwise each claim becomes a sum: a known balance, and a term for each transfer that could lie on either side.
//!    [`solver`] searches for answers to all "is it before?" that make every sum right and are an order ([`order`]),
//!    learning a new clause from each dead end. Whenever nothing more follows, the present total order is replayed; the
//!    search ends when a replay satisfies everything, and else goes on with the claim among the violated ones that took
//!    part in most conflicts lately. Nothing is decided that no violated claim asks for. [`sum`] reasons about a single
//!    balance, by bounds and by subset sums.
//! 5. [`explain`]: a part without an order is narrowed down to the claims that the proof of that rests on, to the shortest
//!    prefix that has none, and in it to a set of claims of which none can be left out.
//!
//! # Why the verdict is right
//!
//! *Accepted is explained.* A part is accepted only when a total order has been replayed from first to last and every
//! claim held. The order contains real time, so instants in the intervals exist for it: give each operation the latest
//! invocation among itself and those before it; were that after its reply, it would precede something that the order
//! puts earlier. Parts are independent because they share no stretch of an account in which its balance is in question,
//! and the instants of each are real moments, so that they can be merged.
//!
//! *Rejected is inexplicable.* Every conclusion holds in all explanations: sums, because an explanation puts each
//! concurrent transfer on one side of each claim; cycles, because an explanation is an order; "never happened" is the
//! same as "after everything that could notice", without need of the money. Learnt clauses follow from these. A part is
//! rejected only when they contradict each other without any assumption.
//!
//! *Otherwise undecided.* The search is finite but may be long, so it has a budget of elementary steps. Running out is a
//! result of its own ([`Failure::Undecided`]) and names the part. All parts get a little first, so that a hard one does
//! not hide an easy violation elsewhere.
//!
//! In practice: 160 concurrent operations on six accounts, a fifth of them reads, take a fraction of a second; so do a
//! thousand operations of which dozens are open for ever. Out of reach are, at times, histories of half reads at that
//! concurrency, and thousands of operations beside seventy open ones: balances then say much, but only jointly.
//!
//! The messages are only as short as an effort allows: see [`explain`].
//!
//! # What is deliberately absent
//!
//! * Any look at servers, logs or votes: this sees what clients saw, so it also finds what the inside agrees on wrongly.
//! * A claim by *lock contention*. A lock is held until the outcome is applied, which may be after the reply of the
//!   transfer that took it (T3) and long after, so such an abort proves nothing about what was concurrent.
//! * Order within one client beyond real time: a client may have many operations open.
//! * Clocks, randomness, and containers whose order differs from run to run: a history gets the same verdict always.

mod claims;
mod component;
mod explain;
mod order;
mod solver;
mod split;
mod sum;

use std::fmt;

use crate::config::Topology;
use crate::history::component::Answer;
use crate::types::{AccountId, Reason, Transfer};

/// What a client asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Transfer(Transfer),
    Read(AccountId),
}

/// What it was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    Committed,
    Aborted(Reason),
    Balance(u64),
}

/// One operation of a client. A client may have many open at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    pub client: u32,
    pub call: Call,
    /// A moment of the one clock that all operations share; so is that of the reply.
    pub invoked: u64,
    /// `None`: the client died, or never found out.
    pub replied: Option<(u64, Reply)>,
}

/// What an accepted history consisted of.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Report {
    pub operations: usize,
    /// Committed transfers.
    pub committed: usize,
    /// Transfers without a reply that could have taken effect.
    pub open: usize,
    /// Reads and refusals that say something about a balance.
    pub observations: usize,
    /// Independent parts.
    pub parts: usize,
    /// Operations in the largest of them.
    pub largest_part: usize,
    /// Elementary steps of the search; what a budget is spent on.
    pub steps: u64,
}

/// Operations that no order of instants explains together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Their indices in the history. Unless finding that out took too long, none of them can be left out.
    pub operations: Vec<usize>,
    text: String,
}

/// A part of the history that was too hard for the budget. It may be right or wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Undecided {
    /// The operations of the part.
    pub operations: Vec<usize>,
    text: String,
}

/// Why a history was not accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    Violation(Violation),
    Undecided(Undecided),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Violation(v) => v.fmt(f),
            Failure::Undecided(u) => u.fmt(f),
        }
    }
}

impl std::error::Error for Failure {}

/// Steps that [`check`] may take: a minute or so at worst, where a history of some hundred operations takes milliseconds.
pub const BUDGET: u64 = 1_000_000_000;
/// Steps for each part before any part gets more.
const FIRST_TRY: u64 = 1_000_000;

/// Whether one order of instants, each within its operation's interval, explains everything that clients saw.
pub fn check(topology: &Topology, operations: &[Operation]) -> Result<Report, Failure> {
    check_within(BUDGET, topology, operations)
}

/// The same with a budget of elementary steps for the search, all parts together. The result depends on nothing else.
pub fn check_within(budget: u64, topology: &Topology, operations: &[Operation]) -> Result<Report, Failure> {
    let claims::Claims { effects, observations } =
        claims::judge(topology, operations).map_err(|(i, why)| explain::alone(operations, i, &why))?;
    let parts = split::split(i128::from(topology.initial_balance), &effects, &observations);
    let open = effects.iter().filter(|e| e.replied.is_none()).count();
    let mut report = Report {
        operations: operations.len(),
        committed: effects.len() - open,
        open,
        observations: observations.len(),
        parts: parts.len(),
        largest_part: parts.iter().map(|p| p.nodes.len()).max().unwrap_or(0),
        steps: 0,
    };
    let mut left = budget;
    let mut hard = Vec::new();
    for part in &parts {
        match part.solve(&mut left, FIRST_TRY) {
            Answer::Explained => {}
            Answer::Impossible => return Err(explain::violation(operations, part)),
            Answer::GaveUp => hard.push(part),
        }
    }
    let mut undecided = None;
    for part in hard {
        match part.solve(&mut left, budget) {
            Answer::Explained => {}
            Answer::Impossible => return Err(explain::violation(operations, part)),
            Answer::GaveUp => {
                undecided.get_or_insert_with(|| explain::undecided(operations, part));
            }
        }
    }
    report.steps = budget - left;
    undecided.map_or(Ok(report), |u| Err(Failure::Undecided(u)))
}
