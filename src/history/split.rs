//! Cuts a history into parts that can be judged each on its own.
//!
//! Where nothing is on its way on an account, its balance is known: all that ended before has happened. So an account's
//! life falls into *stretches*, maximal runs of overlapping transfers. A claim involves the stretches that its interval
//! meets, a transfer ties a stretch of its sender to one of its receiver, and what is not tied together is independent:
//! instants within the operations' own intervals, chosen for each part alone, are an answer for the whole (locality;
//! Herlihy and Wing 1990, theorem 1, with stretches for objects).

use crate::history::component::{Component, Kind, Node, Stretch};

/// What an operation claims, before stretches are known: accounts instead of stretches.
#[derive(Clone, Copy, Debug)]
pub struct Effect {
    pub operation: u32,
    pub invoked: u64,
    pub replied: Option<u64>,
    pub from: u64,
    pub to: u64,
    pub amount: i128,
}

#[derive(Clone, Copy, Debug)]
pub struct Observation {
    pub operation: u32,
    pub invoked: u64,
    pub replied: u64,
    pub account: u64,
    pub low: Option<i128>,
    pub high: Option<i128>,
}

/// A run of overlapping transfers on one account.
struct Run {
    account: u64,
    start: u64,
    /// `None`: something in it never ends.
    end: Option<u64>,
    base: i128,
    /// What all of it changes the balance by; without meaning if it never ends.
    change: i128,
}

/// The parts in which something could be wrong, in order of their first operations.
pub fn split(initial: i128, effects: &[Effect], observations: &[Observation]) -> Vec<Component> {
    let (mut runs, sides) = runs(initial, effects);
    let mut groups = Groups((0..runs.len() as u32).collect());
    let mut alone = Vec::new();
    let mut tied: Vec<(u32, u32)> = Vec::new();
    for (number, seen) in observations.iter().enumerate() {
        match meet(&runs, initial, seen) {
            Meeting::Satisfied => {}
            Meeting::Known(base) => alone.push((number, base)),
            Meeting::Runs(first, last) => {
                for other in first + 1..=last {
                    groups.unite(first, other);
                }
                tied.push((number as u32, first));
            }
        }
    }
    // Runs of one account that an observation spans are one stretch, which begins with the first of them.
    let mut stretch_of: Vec<u32> = (0..runs.len() as u32).collect();
    for i in 1..runs.len() as u32 {
        if runs[i as usize].account == runs[i as usize - 1].account && groups.find(i) == groups.find(i - 1) {
            stretch_of[i as usize] = stretch_of[i as usize - 1];
        }
    }
    for [from, to] in &sides {
        groups.unite(*from, *to);
    }
    let mut place = vec![u32::MAX; runs.len()];
    let mut parts: Vec<Component> = Vec::new();
    let mut part_of = vec![u32::MAX; runs.len()];
    let mut part = |groups: &mut Groups, run: u32, parts: &mut Vec<Component>| {
        let root = groups.find(run) as usize;
        if part_of[root] == u32::MAX {
            part_of[root] = parts.len() as u32;
            parts.push(Component::default());
        }
        part_of[root] as usize
    };
    let mut local = |stretch: u32, part: &mut Component, runs: &mut [Run]| {
        let stretch = stretch_of[stretch as usize] as usize;
        if place[stretch] == u32::MAX {
            place[stretch] = part.stretches.len() as u32;
            let run = &runs[stretch];
            part.stretches.push(Stretch { account: run.account, base: run.base });
        }
        place[stretch]
    };
    for (effect, [from, to]) in effects.iter().zip(&sides) {
        let index = part(&mut groups, *from, &mut parts);
        let (from, to) =
            (local(*from, &mut parts[index], &mut runs), local(*to, &mut parts[index], &mut runs));
        let &Effect { operation, invoked, replied, amount, .. } = effect;
        let kind = Kind::Effect { from, to, amount, checked: true };
        parts[index].nodes.push(Node { operation, invoked, replied, kind });
    }
    for (number, run) in tied {
        let index = part(&mut groups, run, &mut parts);
        let stretch = local(run, &mut parts[index], &mut runs);
        parts[index].nodes.push(observe(&observations[number as usize], stretch));
    }
    for (number, base) in alone {
        let seen = &observations[number];
        let stretches = vec![Stretch { account: seen.account, base }];
        parts.push(Component { stretches, nodes: vec![observe(seen, 0)] });
    }
    parts
}

fn observe(seen: &Observation, stretch: u32) -> Node {
    let &Observation { operation, invoked, replied, low, high, .. } = seen;
    Node { operation, invoked, replied: Some(replied), kind: Kind::Observation { stretch, low, high } }
}

/// The runs of all accounts, by account and time, and in which run each effect is as a debit and as a credit.
fn runs(initial: i128, effects: &[Effect]) -> (Vec<Run>, Vec<[u32; 2]>) {
    let mut entries: Vec<(u64, u64, u32)> = Vec::with_capacity(2 * effects.len());
    for (number, effect) in effects.iter().enumerate() {
        entries.push((effect.from, effect.invoked, number as u32));
        entries.push((effect.to, effect.invoked, number as u32));
    }
    entries.sort_unstable();
    let mut runs: Vec<Run> = Vec::new();
    let mut sides = vec![[0; 2]; effects.len()];
    for (account, invoked, number) in entries {
        let effect = &effects[number as usize];
        let previous = runs.last().filter(|r| r.account == account);
        // Moments that are equal overlap.
        if previous.is_none_or(|r| r.end.is_some_and(|end| end < invoked)) {
            let base = previous.map_or(initial, |r| r.base + r.change);
            runs.push(Run { account, start: invoked, end: Some(invoked), base, change: 0 });
        }
        let index = runs.len() as u32 - 1;
        let run = runs.last_mut().expect("one was just added, or there was one");
        run.end = run.end.and_then(|end| Some(end.max(effect.replied?)));
        if account == effect.from {
            run.change -= effect.amount;
            sides[number as usize][0] = index;
        } else {
            run.change += effect.amount;
            sides[number as usize][1] = index;
        }
    }
    (runs, sides)
}

enum Meeting {
    /// It fits a moment at which the balance is known.
    Satisfied,
    /// There is only one balance that it could have seen, and it does not fit.
    Known(i128),
    /// It must have seen a moment within these runs.
    Runs(u32, u32),
}

fn meet(runs: &[Run], initial: i128, seen: &Observation) -> Meeting {
    let first = runs.partition_point(|r| {
        r.account < seen.account || (r.account == seen.account && r.end.is_some_and(|end| end < seen.invoked))
    });
    let last = runs.partition_point(|r| {
        r.account < seen.account || (r.account == seen.account && r.start <= seen.replied)
    });
    let fits = |balance: i128| {
        seen.low.is_none_or(|low| low <= balance) && seen.high.is_none_or(|high| balance <= high)
    };
    if first >= last {
        let before = first.checked_sub(1).map(|i| &runs[i]).filter(|r| r.account == seen.account);
        let balance = before.map_or(initial, |r| r.base + r.change);
        return if fits(balance) { Meeting::Satisfied } else { Meeting::Known(balance) };
    }
    for (i, run) in runs[first..last].iter().enumerate() {
        // The gap before a run, which the claim sees unless it began within the first.
        if (i > 0 || seen.invoked < run.start) && fits(run.base) {
            return Meeting::Satisfied;
        }
    }
    let end = &runs[last - 1];
    if end.end.is_some_and(|e| e < seen.replied) && fits(end.base + end.change) {
        return Meeting::Satisfied;
    }
    Meeting::Runs(first as u32, last as u32 - 1)
}

/// Disjoint sets, as a forest (R. Tarjan 1975), with path halving.
struct Groups(Vec<u32>);

impl Groups {
    fn find(&mut self, mut x: u32) -> u32 {
        while self.0[x as usize] != x {
            self.0[x as usize] = self.0[self.0[x as usize] as usize];
            x = self.0[x as usize];
        }
        x
    }

    fn unite(&mut self, a: u32, b: u32) {
        let (a, b) = (self.find(a), self.find(b));
        // The smaller number stays, so that the result does not depend on the order of calls.
        self.0[a.max(b) as usize] = a.min(b);
    }
}
