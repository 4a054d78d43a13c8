//! One independent part of a history: replaying an order, and searching for one that explains every claim.

use std::collections::BTreeMap;

use crate::history::order::{FIXED, Order};
use crate::history::solver::{Contradiction, Lit, Solver, Value};
use crate::history::sum::{Sum, Term};

/// An account between two moments at which nothing was on its way, so that what it began with is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    pub account: u64,
    pub base: i128,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Moves money. `checked`: the sender must have it; left out only when a violation is narrowed down.
    Effect { from: u32, to: u32, amount: i128, checked: bool },
    /// Saw a balance within these bounds.
    Observation { stretch: u32, low: Option<i128>, high: Option<i128> },
}

/// An operation with a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its index in the history.
    pub operation: u32,
    pub invoked: u64,
    /// `None`: it may have taken effect at any later moment, or never.
    pub replied: Option<u64>,
    pub kind: Kind,
}

#[derive(Clone, Default, Debug)]
pub struct Component {
    pub stretches: Vec<Stretch>,
    pub nodes: Vec<Node>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// There is an order that explains everything.
    Explained,
    /// There is none.
    Impossible,
    /// The budget ran out.
    GaveUp,
}

impl Node {
    /// Whether it ended before the other began.
    pub fn precedes(&self, other: &Node) -> bool {
        self.replied.is_some_and(|r| r < other.invoked)
    }

    /// Where a first guess puts it: in the middle, or after everything if it is open.
    fn guess(&self) -> u64 {
        self.replied.map_or(u64::MAX, |r| self.invoked + (r - self.invoked) / 2)
    }

    /// What it changes an account by in this stretch.
    pub fn delta(&self, of: u32) -> i128 {
        match self.kind {
            Kind::Effect { from, amount, .. } if from == of => -amount,
            Kind::Effect { to, amount, .. } if to == of => amount,
            _ => 0,
        }
    }

    /// What it says about a balance: the stretch, at least, at most.
    pub fn claim(&self) -> Option<(u32, Option<i128>, Option<i128>)> {
        match self.kind {
            Kind::Effect { from, amount, checked, .. } => checked.then_some((from, Some(amount), None)),
            Kind::Observation { stretch, low, high } => Some((stretch, low, high)),
        }
    }
}

/// Luby's sequence times this many conflicts between restarts.
const RESTART: u64 = 128;

impl Component {
    /// Whether there is an order of instants, each within its interval, that explains every claim. Takes what it costs
    /// from `budget`, and no more than `most`.
    pub fn solve(&self, budget: &mut u64, most: u64) -> Answer {
        self.solve_or_blame(budget, most).0
    }

    /// The same, and if it is impossible, the operations whose claims suffice for that.
    pub fn solve_or_blame(&self, budget: &mut u64, most: u64) -> (Answer, Vec<u32>) {
        let mut guess: Vec<u32> = (0..self.nodes.len() as u32).collect();
        guess.sort_unstable_by_key(|n| (self.nodes[*n as usize].guess(), *n));
        if self.replay(&guess, |_| Value::Open).is_empty() {
            return (Answer::Explained, Vec::new());
        }
        let mut search = Search::new(self);
        let most = most.min(*budget);
        let answer = search.run(most);
        *budget -= search.solver.work.min(most);
        let mut blamed = Vec::new();
        if answer == Answer::Impossible {
            let used = search.solver.used();
            let is_used = |n: &usize| search.sum_of[*n].is_some_and(|s| used[s]);
            blamed = (0..self.nodes.len()).filter(is_used).map(|n| self.nodes[n].operation).collect();
        }
        (answer, blamed)
    }

    /// Carries out a total order; the nodes whose claims do not hold. `taken` says of open effects whether they
    /// take effect; where that is open, they do if they can.
    fn replay(&self, order: &[u32], taken: impl Fn(u32) -> Value) -> Vec<u32> {
        let mut violated = Vec::new();
        let mut balances: Vec<i128> = self.stretches.iter().map(|s| s.base).collect();
        for &number in order {
            let Some(node) = self.nodes.get(number as usize) else { continue };
            if let Some((stretch, low, high)) = node.claim() {
                let balance = balances[stretch as usize];
                let holds = low.is_none_or(|low| low <= balance) && high.is_none_or(|high| balance <= high);
                let choice = if node.replied.is_some() { Value::True } else { taken(number) };
                if choice == Value::False || (!holds && choice == Value::Open) {
                    continue;
                }
                if !holds {
                    violated.push(number);
                }
            }
            if let Kind::Effect { from, to, amount, .. } = node.kind {
                balances[from as usize] -= amount;
                balances[to as usize] += amount;
            }
        }
        violated
    }

    /// The effects of each stretch that may lie on either side of a node, and the balance that the others make.
    pub fn around(&self, index: &Index, node: &Node, stretch: u32) -> (i128, Vec<u32>) {
        let lists = &index.effects[stretch as usize];
        let before = lists.by_reply.partition_point(|n| self.nodes[*n as usize].precedes(node));
        let base = self.stretches[stretch as usize].base + lists.sums[before];
        let until = |n: &u32| node.replied.is_none_or(|r| self.nodes[*n as usize].invoked <= r);
        let mut beside: Vec<u32> = lists.open.iter().copied().filter(until).collect();
        let end = lists.by_invocation.partition_point(until);
        for i in (0..end).rev() {
            if lists.latest[i] < node.invoked {
                break;
            }
            let number = lists.by_invocation[i];
            if !self.nodes[number as usize].precedes(node) {
                beside.push(number);
            }
        }
        (base, beside)
    }
}

/// The effects of one stretch, sorted for look-ups.
#[derive(Default)]
struct Lists {
    by_reply: Vec<u32>,
    /// What the first i of these change the balance by.
    sums: Vec<i128>,
    by_invocation: Vec<u32>,
    /// The latest reply among the first i + 1 of these.
    latest: Vec<u64>,
    open: Vec<u32>,
}

pub struct Index {
    effects: Vec<Lists>,
}

impl Index {
    pub fn new(component: &Component) -> Index {
        let mut effects: Vec<Lists> = component.stretches.iter().map(|_| Lists::default()).collect();
        for (number, node) in component.nodes.iter().enumerate() {
            let Kind::Effect { from, to, .. } = node.kind else { continue };
            for stretch in [from, to] {
                let lists = &mut effects[stretch as usize];
                let list = if node.replied.is_some() { &mut lists.by_reply } else { &mut lists.open };
                list.push(number as u32);
            }
        }
        for (stretch, lists) in effects.iter_mut().enumerate() {
            let node = |n: &u32| &component.nodes[*n as usize];
            lists.by_invocation = lists.by_reply.clone();
            lists.by_invocation.sort_unstable_by_key(|n| (node(n).invoked, *n));
            lists.by_reply.sort_unstable_by_key(|n| (node(n).replied, *n));
            lists.sums = vec![0];
            for n in &lists.by_reply {
                let sum = lists.sums.last().expect("it begins with one") + node(n).delta(stretch as u32);
                lists.sums.push(sum);
            }
            let mut latest = 0;
            for n in &lists.by_invocation {
                latest = latest.max(node(n).replied.unwrap_or(u64::MAX));
                lists.latest.push(latest);
            }
        }
        Index { effects }
    }
}

struct Search<'a> {
    component: &'a Component,
    solver: Solver,
    /// The sum that says what a node claims.
    sum_of: Vec<Option<usize>>,
    /// Whether an open effect takes effect.
    taken: Vec<Option<Lit>>,
}

impl<'a> Search<'a> {
    fn new(component: &'a Component) -> Search<'a> {
        let nodes = &component.nodes;
        let mut search = Search {
            component,
            solver: Solver::new(real_time(nodes)),
            sum_of: vec![None; nodes.len()],
            taken: vec![None; nodes.len()],
        };
        for (number, node) in nodes.iter().enumerate() {
            if node.replied.is_none() {
                search.taken[number] = Some(search.solver.question(None));
            }
        }
        let index = Index::new(component);
        let mut pairs: BTreeMap<(u32, u32), Lit> = BTreeMap::new();
        for (number, node) in nodes.iter().enumerate() {
            let Some((stretch, low, high)) = node.claim() else { continue };
            let number = number as u32;
            let (base, beside) = component.around(&index, node, stretch);
            let mut terms = Vec::new();
            for other in beside {
                if other == number {
                    continue;
                }
                let pair = (other.min(number), other.max(number));
                let lit = *pairs.entry(pair).or_insert_with(|| search.solver.question(Some(pair)));
                let lit = if pair.0 == other { lit } else { !lit };
                if let Some(taken) = search.taken[other as usize] {
                    // What never takes effect comes after everything that could notice.
                    let unless = search.taken[number as usize].map(|t| !t);
                    search.solver.require([!lit, taken].into_iter().chain(unless).collect());
                }
                terms.push(Term { lit, delta: nodes[other as usize].delta(stretch) });
            }
            let sum = Sum::new(base, terms, low, high, search.taken[number as usize]);
            search.sum_of[number as usize] = Some(search.solver.claim(sum));
        }
        search.once_before_always_before(&pairs);
        search
    }

    /// An open transfer lies beside everything that follows, and each pair is a question of its own. The order would
    /// find out one conflict at a time that it cannot come before one claim and after a later one; this says it with
    /// one more question for each moment between claims: has it happened by then?
    fn once_before_always_before(&mut self, pairs: &BTreeMap<(u32, u32), Lit>) {
        let mut noticing: Vec<Vec<(u32, Lit)>> = vec![Vec::new(); self.taken.len()];
        for (&(a, b), &lit) in pairs {
            for (open, other, before) in [(a, b, lit), (b, a, !lit)] {
                let is_answered = self.component.nodes[other as usize].replied.is_some();
                if self.taken[open as usize].is_some() && is_answered {
                    noticing[open as usize].push((other, before));
                }
            }
        }
        for others in noticing {
            let node = |n: u32| &self.component.nodes[n as usize];
            let mut replies: Vec<u64> = others.iter().filter_map(|(n, _)| node(*n).replied).collect();
            replies.sort_unstable();
            let last_before = |invoked: u64| {
                let i = replies.partition_point(|r| *r < invoked);
                i.checked_sub(1).map(|i| replies[i])
            };
            let mut moments: Vec<u64> =
                others.iter().filter_map(|(n, _)| last_before(node(*n).invoked)).collect();
            moments.sort_unstable();
            moments.dedup();
            let happened: Vec<Lit> = moments.iter().map(|_| self.solver.question(None)).collect();
            for pair in happened.windows(2) {
                self.solver.require(vec![!pair[0], pair[1]]);
            }
            for (other, before) in others {
                let node = &self.component.nodes[other as usize];
                let replied = node.replied.expect("only answered ones were taken");
                let after = moments.partition_point(|m| *m < replied);
                if let Some(happened) = happened.get(after) {
                    self.solver.require(vec![!before, *happened]);
                }
                if let Some(moment) = last_before(node.invoked) {
                    let index = moments.partition_point(|m| *m < moment);
                    self.solver.require(vec![!happened[index], before]);
                }
            }
        }
    }

    fn run(&mut self, budget: u64) -> Answer {
        let (mut restarts, mut next_restart) = (1, RESTART);
        loop {
            match self.solver.settle() {
                Err(Contradiction) => return Answer::Impossible,
                Ok(_) if self.solver.conflicts >= next_restart => {
                    restarts += 1;
                    next_restart = self.solver.conflicts + RESTART * luby(restarts);
                    self.solver.restart();
                    continue;
                }
                Ok(_) => {}
            }
            self.solver.work += self.component.nodes.len() as u64;
            if self.solver.work > budget {
                return Answer::GaveUp;
            }
            let taken = |n: u32| self.taken[n as usize].map_or(Value::True, |t| self.solver.value(t));
            let violated = self.component.replay(self.solver.order.sequence(), taken);
            let blame = |n: &u32| self.sum_of[*n as usize].map_or(0, |s| self.solver.blame[s]);
            let Some(worst) = violated.into_iter().rev().max_by_key(blame) else {
                return Answer::Explained;
            };
            self.pursue(worst);
        }
    }

    /// Answers every question about one claim, far ones first and as the present order has it, so that what is left
    /// for conclusions to turn around is near.
    fn pursue(&mut self, violated: u32) {
        let number = self.sum_of[violated as usize].expect("only claims are violated");
        let here = self.solver.order.position(violated);
        let mut decided = false;
        loop {
            let next =
                self.solver.sum(number).terms.iter().filter(|t| self.solver.value(t.lit) == Value::Open);
            let distance = |lit: Lit| {
                let (a, b) = self.solver.edge(lit).expect("terms are about the order");
                let there = self.solver.order.position(if a == violated { b } else { a });
                there.abs_diff(here)
            };
            let Some(lit) = next.map(|t| t.lit).max_by_key(|l| (distance(*l), *l)) else {
                assert!(decided, "a claim whose questions are all answered holds in the order");
                return;
            };
            let (a, b) = self.solver.edge(lit).expect("terms are about the order");
            let as_it_stands = self.solver.order.position(a) < self.solver.order.position(b);
            self.solver.decide(if as_it_stands { lit } else { !lit });
            decided = true;
            match self.solver.settle() {
                Ok(false) => {}
                // Learnt something, which `run` looks at.
                _ => return,
            }
        }
    }
}

/// The nodes in the order of the first guess, with edges for what ended before something else began. Instead of one
/// edge for each such pair there are extra nodes for moments: everything that ended by then comes before, everything
/// invoked later comes after.
fn real_time(nodes: &[Node]) -> Order {
    let mut replies: Vec<u64> = nodes.iter().filter_map(|n| n.replied).collect();
    replies.sort_unstable();
    let last_before = |invoked: u64| {
        let i = replies.partition_point(|r| *r < invoked);
        i.checked_sub(1).map(|i| replies[i])
    };
    let mut cuts: Vec<u64> = nodes.iter().filter_map(|n| last_before(n.invoked)).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let count = nodes.len() as u32;
    let mut sequence: Vec<u32> = (0..count + cuts.len() as u32).collect();
    sequence.sort_unstable_by_key(|n| match nodes.get(*n as usize) {
        Some(node) => (node.guess(), false, *n),
        None => (cuts[(*n - count) as usize], true, *n),
    });
    let mut order = Order::new(sequence);
    let mut fix = |a: u32, b: u32| order.add(a, b, FIXED, &mut 0).expect("time does not run backwards");
    for i in 1..cuts.len() as u32 {
        fix(count + i - 1, count + i);
    }
    for (number, node) in nodes.iter().enumerate() {
        if let Some(replied) = node.replied {
            let cut = cuts.partition_point(|c| *c < replied);
            if cut < cuts.len() {
                fix(number as u32, count + cut as u32);
            }
        }
        if let Some(cut) = last_before(node.invoked) {
            fix(count + cuts.partition_point(|c| *c < cut) as u32, number as u32);
        }
    }
    order
}

/// M. Luby, A. Sinclair and D. Zuckerman, "Optimal Speedup of Las Vegas Algorithms" (1993): 1 1 2 1 1 2 4 …, from 1.
fn luby(i: u64) -> u64 {
    let mut i = i;
    loop {
        let bits = 64 - i.leading_zeros();
        if i + 1 == 1 << bits {
            return 1 << (bits - 1);
        }
        i -= (1 << (bits - 1)) - 1;
    }
}
