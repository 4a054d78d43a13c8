//! The dumbest judge there is: tries every order of every choice of operations. For tiny histories only.

use shardpaxosbank::config::Topology;
use shardpaxosbank::history::{Call, Operation, Reply};
use shardpaxosbank::types::Reason;

/// Whether some order of the operations, open ones left out or not, respects real time and explains every reply.
pub fn is_explicable(topology: &Topology, operations: &[Operation]) -> bool {
    if operations.iter().any(|o| o.replied.is_some_and(|(at, _)| at < o.invoked)) {
        return false;
    }
    let balances = vec![topology.initial_balance as i64; topology.accounts as usize];
    extend(operations, &mut vec![false; operations.len()], balances)
}

fn extend(operations: &[Operation], happened: &mut Vec<bool>, balances: Vec<i64>) -> bool {
    if operations.iter().zip(happened.iter()).all(|(o, h)| *h || o.replied.is_none()) {
        return true;
    }
    for i in 0..operations.len() {
        // Nothing that has not happened yet may have ended before this began.
        let is_late =
            |(o, h): (&Operation, &bool)| !*h && o.replied.is_some_and(|(at, _)| at < operations[i].invoked);
        if happened[i] || operations.iter().zip(happened.iter()).any(is_late) {
            continue;
        }
        let mut after = balances.clone();
        let reply = happen(operations[i].call, &mut after);
        let told = operations[i].replied.map(|(_, told)| told);
        let (agrees, next) = match told {
            None => (true, after),
            Some(Reply::Aborted(Reason::LockContention | Reason::NoQuorum)) => {
                let is_checked = !matches!(
                    reply,
                    Reply::Committed | Reply::Balance(_) | Reply::Aborted(Reason::InsufficientBalance)
                );
                (!is_checked, balances.clone())
            }
            Some(told) => (told == reply, after),
        };
        if agrees {
            happened[i] = true;
            if extend(operations, happened, next) {
                return true;
            }
            happened[i] = false;
        }
    }
    false
}

fn happen(call: Call, balances: &mut [i64]) -> Reply {
    let exists = |a: u64| a >= 1 && a <= balances.len() as u64;
    match call {
        Call::Read(a) if exists(a.0) => Reply::Balance(balances[a.0 as usize - 1] as u64),
        Call::Read(_) => Reply::Aborted(Reason::UnknownAccount),
        Call::Transfer(t) if t.amount < 1 => Reply::Aborted(Reason::InvalidAmount),
        Call::Transfer(t) if t.from == t.to => Reply::Aborted(Reason::SameAccount),
        Call::Transfer(t) if !exists(t.from.0) || !exists(t.to.0) => Reply::Aborted(Reason::UnknownAccount),
        Call::Transfer(t) if balances[t.from.0 as usize - 1] < t.amount => {
            Reply::Aborted(Reason::InsufficientBalance)
        }
        Call::Transfer(t) => {
            balances[t.from.0 as usize - 1] -= t.amount;
            balances[t.to.0 as usize - 1] += t.amount;
            Reply::Committed
        }
    }
}
