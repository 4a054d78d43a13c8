//! Turns a part without an order into something that a person can read: the few claims that contradict each other.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::history::component::{Answer, Component, Index, Kind, Node};
use crate::history::{Call, Failure, Operation, Reply, Undecided, Violation};

/// Steps for each attempt to leave something out, and for all. Where they do not suffice, it stays in.
const ATTEMPT: u64 = 10_000_000;
const ATTEMPTS: u64 = 400_000_000;
/// Transfers and balances that a message names before it counts the rest.
const NAMED: usize = 12;

/// One operation that is wrong in every state.
pub fn alone(operations: &[Operation], index: usize, why: &str) -> Failure {
    let text = format!("{}\n  {why}", describe(operations, index));
    Failure::Violation(Violation { operations: vec![index], text })
}

pub fn undecided(operations: &[Operation], part: &Component) -> Undecided {
    let mut members: Vec<usize> = part.nodes.iter().map(|n| n.operation as usize).collect();
    members.sort_unstable();
    let from = part.nodes.iter().map(|n| n.invoked).min().unwrap_or(0);
    let to = part.nodes.iter().filter_map(|n| n.replied).max().unwrap_or(from);
    let mut accounts: Vec<u64> = part.stretches.iter().map(|s| s.account).collect();
    accounts.sort_unstable();
    accounts.dedup();
    let text = format!(
        "undecided: the budget did not suffice for {} operations between {from} and {to} on {} account(s), {}; the \
         first is\n  {}",
        members.len(),
        accounts.len(),
        some_of(accounts.iter().map(u64::to_string), NAMED),
        members.first().map_or(String::new(), |i| describe(operations, *i)),
    );
    Undecided { operations: members, text }
}

/// The violation in a part that has no order.
pub fn violation(operations: &[Operation], part: &Component) -> Failure {
    let mut effort = ATTEMPTS;
    let part = blamed(part.clone(), &mut effort);
    let part = narrow(shortest_prefix(&part, &mut effort), &mut effort);
    let claims: Vec<&Node> = part.nodes.iter().filter(|n| n.claim().is_some()).collect();
    let mut at_fault: Vec<usize> = claims.iter().map(|n| n.operation as usize).collect();
    at_fault.sort_unstable_by_key(|i| (operations[*i].invoked, *i));
    let mut text = match at_fault.len() {
        1 => String::from("no order of instants explains this operation:"),
        n => format!("no order of instants explains these {n} operations together:"),
    };
    let index = Index::new(&part);
    for i in at_fault.iter().take(NAMED) {
        let node = claims.iter().find(|n| n.operation as usize == *i).expect("they come from the claims");
        write!(text, "\n  {}", describe(operations, *i)).expect("a string takes everything");
        text.push_str(&surroundings(operations, &part, &index, node));
    }
    if at_fault.len() > NAMED {
        write!(text, "\n  and {} more", at_fault.len() - NAMED).expect("a string takes everything");
    }
    let mut operations = at_fault;
    operations.sort_unstable();
    Failure::Violation(Violation { operations, text })
}

/// What is known about the balance that a claim is about.
fn surroundings(operations: &[Operation], part: &Component, index: &Index, node: &Node) -> String {
    let (stretch, low, high) = node.claim().expect("only claims are described");
    let account = part.stretches[stretch as usize].account;
    let (base, mut beside) = part.around(index, node, stretch);
    beside.retain(|n| part.nodes[*n as usize].operation != node.operation);
    beside.sort_unstable_by_key(|n| (part.nodes[*n as usize].invoked, *n));
    let mut text = format!("\n      account {account} had {base} by all that ended before it began");
    if !beside.is_empty() {
        let named = beside.iter().map(|n| {
            let other = &part.nodes[*n as usize];
            let open = if other.replied.is_none() { ", open" } else { "" };
            format!("#{} ({:+}{open})", other.operation, other.delta(stretch))
        });
        let named = some_of(named, NAMED);
        write!(text, "; beside it: {named}").expect("a string takes everything");
    }
    let mut possible = BTreeSet::from([base]);
    for n in &beside {
        let delta = part.nodes[*n as usize].delta(stretch);
        possible.extend(possible.clone().into_iter().map(|b| b + delta));
        if possible.len() > 4096 {
            return text;
        }
    }
    possible.retain(|b| *b >= 0);
    let fits = |b: &i128| low.is_none_or(|low| low <= *b) && high.is_none_or(|high| *b <= high);
    let wish = match (low, high) {
        (Some(low), Some(high)) if low == high => format!("{low}"),
        (Some(low), _) => format!("at least {low}"),
        (_, Some(high)) => format!("at most {high}"),
        _ => String::new(),
    };
    let verdict = if possible.iter().any(fits) { "possible alone" } else { "impossible" };
    let listed = some_of(possible.iter().map(i128::to_string), NAMED);
    write!(text, "\n      it needs {wish}, which is {verdict}: the balance may have been {listed}")
        .expect("a string takes everything");
    if matches!(operations[node.operation as usize].call, Call::Transfer(_)) && node.replied.is_none() {
        text.push_str(", if it took effect");
    }
    text
}

fn some_of(items: impl Iterator<Item = String>, most: usize) -> String {
    let items: Vec<String> = items.collect();
    let mut text = items[..items.len().min(most)].join(", ");
    if items.len() > most {
        write!(text, " and {} more", items.len() - most).expect("a string takes everything");
    }
    text
}

fn describe(operations: &[Operation], index: usize) -> String {
    let Operation { client, call, invoked, replied } = operations[index];
    let call = match call {
        Call::Transfer(t) => format!("transfer {} → {} of {}", t.from, t.to, t.amount),
        Call::Read(account) => format!("read of {account}"),
    };
    let (until, reply) = match replied {
        None => (String::from("…"), String::from("no reply")),
        Some((at, Reply::Committed)) => (at.to_string(), String::from("committed")),
        Some((at, Reply::Aborted(reason))) => (at.to_string(), format!("aborted: {}", reason.name())),
        Some((at, Reply::Balance(balance))) => (at.to_string(), format!("balance {balance}")),
    };
    format!("#{index} client {client}, {invoked} to {until}: {call}: {reply}")
}

fn is_impossible(part: &Component, effort: &mut u64) -> bool {
    *effort > 0 && part.solve(effort, ATTEMPT) == Answer::Impossible
}

/// What was known at a moment: what had no reply by then is open, what was not invoked is not there.
fn until(part: &Component, moment: u64) -> Component {
    let nodes = part.nodes.iter().filter(|n| n.invoked <= moment).filter_map(|n| {
        let replied = n.replied.filter(|r| *r <= moment);
        let is_effect = matches!(n.kind, Kind::Effect { .. });
        (is_effect || replied.is_some()).then_some(Node { replied, ..*n })
    });
    Component { stretches: part.stretches.clone(), nodes: nodes.collect() }
}

/// Every prefix of a history that can be explained can be explained, so there is a first reply that spoils it.
fn shortest_prefix(part: &Component, effort: &mut u64) -> Component {
    let mut replies: Vec<u64> = part.nodes.iter().filter_map(|n| n.replied).collect();
    replies.sort_unstable();
    replies.dedup();
    let (mut low, mut high) = (0, replies.len());
    let mut best = part.clone();
    while low < high {
        let middle = (low + high) / 2;
        let prefix = until(part, replies[middle]);
        if is_impossible(&prefix, effort) {
            best = prefix;
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    best
}

/// Takes away all claims that a proof of the impossibility does without, then those that the next proof does without,
/// and so on. Each result has been proved impossible again.
fn blamed(part: Component, effort: &mut u64) -> Component {
    let mut proved = part;
    let mut next = proved.clone();
    loop {
        let (answer, mut blamed) = next.solve_or_blame(effort, *effort / 4);
        if answer != Answer::Impossible {
            return proved;
        }
        blamed.sort_unstable();
        let claims = next.nodes.iter().filter(|n| n.claim().is_some()).map(|n| n.operation);
        let mut left_out: Vec<u32> = claims.filter(|i| blamed.binary_search(i).is_err()).collect();
        left_out.sort_unstable();
        proved = next;
        if left_out.is_empty() {
            return proved;
        }
        next = without(&proved, &left_out);
    }
}

/// Takes claims away, many at once and then fewer, as long as the rest is still impossible. Effects stay: without their
/// claims they only move money.
fn narrow(mut part: Component, effort: &mut u64) -> Component {
    let mut claims: Vec<u32> =
        part.nodes.iter().filter(|n| n.claim().is_some()).map(|n| n.operation).collect();
    claims.sort_unstable();
    let mut size = claims.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        while start < claims.len() {
            let end = (start + size).min(claims.len());
            let fewer = without(&part, &claims[start..end]);
            if is_impossible(&fewer, effort) {
                part = fewer;
                claims.drain(start..end);
            } else {
                start = end;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    part
}

/// `operations` in ascending order lose their claims.
fn without(part: &Component, operations: &[u32]) -> Component {
    let nodes = part.nodes.iter().filter_map(|n| match n.kind {
        _ if operations.binary_search(&n.operation).is_err() => Some(*n),
        Kind::Effect { from, to, amount, .. } => {
            Some(Node { kind: Kind::Effect { from, to, amount, checked: false }, ..*n })
        }
        Kind::Observation { .. } => None,
    });
    Component { stretches: part.stretches.clone(), nodes: nodes.collect() }
}
