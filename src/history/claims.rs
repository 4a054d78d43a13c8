//! What each operation says, as far as it can be judged without any state.

use crate::config::Topology;
use crate::history::split::{Effect, Observation};
use crate::history::{Call, Operation, Reply};
use crate::types::{AccountId, Reason, Transfer};

pub struct Claims {
    pub effects: Vec<Effect>,
    pub observations: Vec<Observation>,
}

/// What must be explained, or an operation that is wrong whatever the balances were, and why.
pub fn judge(topology: &Topology, operations: &[Operation]) -> Result<Claims, (usize, String)> {
    let mut claims = Claims { effects: Vec::new(), observations: Vec::new() };
    for (index, operation) in operations.iter().enumerate() {
        one(topology, index as u32, operation, &mut claims).map_err(|why| (index, why))?;
    }
    Ok(claims)
}

fn one(topology: &Topology, index: u32, operation: &Operation, claims: &mut Claims) -> Result<(), String> {
    let invoked = operation.invoked;
    if let Some((replied, _)) = operation.replied
        && replied < invoked
    {
        return Err("the reply came before the invocation".into());
    }
    let known = |account: AccountId| (1..=topology.accounts).contains(&account.0);
    match operation.call {
        Call::Transfer(transfer) => {
            let refusal = refusal(&transfer, known);
            let effect = |replied| Effect {
                operation: index,
                invoked,
                replied,
                from: transfer.from.0,
                to: transfer.to.0,
                amount: i128::from(transfer.amount),
            };
            match (operation.replied.map(|(_, reply)| reply), refusal) {
                (Some(Reply::Balance(_)), _) => return Err("a transfer is not answered by a balance".into()),
                // Whatever becomes of it, it has no effect.
                (None, Some(_)) => {}
                (None, None) => claims.effects.push(effect(None)),
                (Some(Reply::Aborted(told)), Some(reason)) if told == reason => {}
                (Some(_), Some(reason)) => return Err(format!("it must abort with {}", reason.name())),
                (Some(Reply::Committed), None) => {
                    claims.effects.push(effect(operation.replied.map(|(at, _)| at)));
                }
                (
                    Some(Reply::Aborted(
                        Reason::LockContention
                        | Reason::NoQuorum
                        | Reason::StorageFull
                        | Reason::IdReused
                        | Reason::NoSession,
                    )),
                    None,
                ) => {}
                (Some(Reply::Aborted(Reason::InsufficientBalance)), None) => {
                    claims.observations.push(Observation {
                        operation: index,
                        invoked,
                        replied: operation.replied.map_or(invoked, |(at, _)| at),
                        account: transfer.from.0,
                        low: None,
                        high: Some(i128::from(transfer.amount) - 1),
                    });
                }
                (Some(Reply::Aborted(reason)), None) => {
                    return Err(format!("nothing about it is {}", reason.name()));
                }
            }
        }
        Call::Read(account) => match operation.replied {
            None => {}
            Some((_, Reply::Aborted(Reason::UnknownAccount))) if !known(account) => {}
            Some(_) if !known(account) => {
                return Err(format!("it must abort with {}", Reason::UnknownAccount.name()));
            }
            Some((_, Reply::Aborted(Reason::LockContention | Reason::NoQuorum))) => {}
            Some((replied, Reply::Balance(balance))) => {
                let seen = Some(i128::from(balance));
                claims.observations.push(Observation {
                    operation: index,
                    invoked,
                    replied,
                    account: account.0,
                    low: seen,
                    high: seen,
                });
            }
            Some((_, Reply::Aborted(reason))) => {
                return Err(format!("a read of a known account is never {}", reason.name()));
            }
            Some((_, Reply::Committed)) => return Err("a read does not commit".into()),
        },
    }
    Ok(())
}

/// What is wrong with a transfer in every state, by precedence. Written out here rather than taken from the bank, which
/// is what this judges.
fn refusal(transfer: &Transfer, known: impl Fn(AccountId) -> bool) -> Option<Reason> {
    if transfer.amount <= 0 {
        Some(Reason::InvalidAmount)
    } else if transfer.from == transfer.to {
        Some(Reason::SameAccount)
    } else if !known(transfer.from) || !known(transfer.to) {
        Some(Reason::UnknownAccount)
    } else {
        None
    }
}
