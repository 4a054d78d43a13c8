//! Histories that are right by construction: a sequential bank, with each operation's instant somewhere in its interval.

use shardpaxosbank::config::Topology;
use shardpaxosbank::history::{Call, Operation, Reply};
use shardpaxosbank::types::{AccountId, Reason, Transfer};
use shardpaxosbank::workload::SplitMix64;

/// What a history looks like. Chances are per hundred.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub operations: usize,
    pub accounts: u64,
    pub initial_balance: u64,
    pub max_amount: u64,
    /// Operations that are open at the same time, each with its own line of operations one after the other.
    pub lines: u64,
    pub reads: u64,
    /// Never answered; half of these take effect, soon or late.
    pub open: u64,
    /// Refused without a look at the balances.
    pub refused: u64,
    pub invalid: u64,
    /// The longest interval; short ones make equal moments frequent.
    pub longest: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            operations: 100,
            accounts: 6,
            initial_balance: 10,
            max_amount: 12,
            lines: 4,
            reads: 20,
            open: 0,
            refused: 5,
            invalid: 3,
            longest: 1000,
        }
    }
}

pub fn topology(shape: &Shape) -> Topology {
    Topology {
        clusters: 1,
        servers_per_cluster: 3,
        accounts: shape.accounts,
        initial_balance: shape.initial_balance,
    }
}

/// Operations by invocation, and the balances at the end.
pub fn generate(seed: u64, shape: &Shape) -> (Vec<Operation>, Vec<u64>) {
    let mut rng = SplitMix64::new(seed);
    let rng = &mut rng;
    let mut free: Vec<u64> = (0..shape.lines).map(|_| rng.below(shape.longest) + 1).collect();
    // (instant, operation, how it ends if nothing happens)
    let mut planned: Vec<(Option<u64>, Operation, u64)> = Vec::with_capacity(shape.operations);
    for i in 0..shape.operations {
        let line = i % free.len();
        let invoked = free[line];
        let replied = invoked + rng.below(shape.longest);
        let call = call(rng, shape);
        let is_open = rng.below(100) < shape.open;
        let instant = match is_open {
            false => Some(invoked + rng.below(replied - invoked + 1)),
            true if rng.one_in(2) => {
                let late = if rng.one_in(3) { 20 } else { 1 };
                Some(invoked + rng.below(shape.longest * late))
            }
            true => None,
        };
        free[line] = replied + rng.below(1 + shape.longest / 10);
        let end = if is_open { None } else { Some((replied, Reply::Committed)) };
        planned.push((
            instant,
            Operation { client: line as u32, call, invoked, replied: end },
            rng.below(100),
        ));
    }
    let mut order: Vec<usize> = (0..planned.len()).filter(|i| planned[*i].0.is_some()).collect();
    order.sort_by_key(|i| planned[*i].0);
    let mut balances = vec![shape.initial_balance; shape.accounts as usize];
    for i in order {
        let (_, operation, chance) = &mut planned[i];
        let reply = carry_out(operation.call, *chance < shape.refused, *chance % 2 == 0, &mut balances);
        if let Some((_, told)) = &mut operation.replied {
            *told = reply;
        }
    }
    let mut operations: Vec<Operation> = planned.into_iter().map(|p| p.1).collect();
    operations.sort_by_key(|o| o.invoked);
    (operations, balances)
}

/// The history and then, when nothing is answered any more, a read of every account.
pub fn with_final_reads(seed: u64, shape: &Shape) -> Vec<Operation> {
    let (mut operations, balances) = generate(seed, shape);
    let end = operations.iter().filter_map(|o| o.replied).map(|(at, _)| at).max().unwrap_or(0);
    // Long enough for the latest effect of an open transfer.
    let end = end + 100 * shape.longest;
    for (account, balance) in (1..).zip(balances) {
        operations.push(Operation {
            client: 99,
            call: Call::Read(AccountId(account)),
            invoked: end + 10 * account,
            replied: Some((end + 10 * account + 5, Reply::Balance(balance))),
        });
    }
    operations
}

fn call(rng: &mut SplitMix64, shape: &Shape) -> Call {
    let account = |rng: &mut SplitMix64| 1 + rng.below(shape.accounts);
    let invalid = rng.below(100) < shape.invalid;
    if rng.below(100) < shape.reads {
        return Call::Read(AccountId(if invalid { shape.accounts + 1 } else { account(rng) }));
    }
    let from = account(rng);
    let mut to = account(rng);
    while to == from {
        to = account(rng);
    }
    let mut transfer =
        Transfer { from: AccountId(from), to: AccountId(to), amount: 1 + rng.below(shape.max_amount) as i64 };
    if invalid {
        match rng.below(4) {
            0 => transfer.amount = -(rng.below(2) as i64),
            1 => transfer.to = transfer.from,
            2 => transfer.to = AccountId(0),
            _ => transfer.from = AccountId(shape.accounts + 1),
        }
    }
    Call::Transfer(transfer)
}

fn carry_out(call: Call, refuse: bool, locked: bool, balances: &mut [u64]) -> Reply {
    let place = |account: AccountId| {
        let i = (account.0 as usize).checked_sub(1)?;
        (i < balances.len()).then_some(i)
    };
    let refusal = if locked { Reason::LockContention } else { Reason::NoQuorum };
    match call {
        Call::Read(account) => match place(account) {
            None => Reply::Aborted(Reason::UnknownAccount),
            Some(_) if refuse => Reply::Aborted(refusal),
            Some(i) => Reply::Balance(balances[i]),
        },
        Call::Transfer(t) if t.amount <= 0 => Reply::Aborted(Reason::InvalidAmount),
        Call::Transfer(t) if t.from == t.to => Reply::Aborted(Reason::SameAccount),
        Call::Transfer(t) => match (place(t.from), place(t.to)) {
            (Some(_), Some(_)) if refuse => Reply::Aborted(refusal),
            (Some(from), Some(to)) => {
                let amount = t.amount as u64;
                if balances[from] < amount {
                    return Reply::Aborted(Reason::InsufficientBalance);
                }
                balances[from] -= amount;
                balances[to] += amount;
                Reply::Committed
            }
            _ => Reply::Aborted(Reason::UnknownAccount),
        },
    }
}
