//! The search: conflict-driven clause learning over questions "is this before that?", sums of balances, and an order.
//!
//! Source: J. Marques-Silva and K. Sakallah, "GRASP" (1996), and M. Moskewicz et al., "Chaff" (2001), for learning and
//! watched literals; the first unique implication point ends each analysis. A literal may stand for an edge in
//! [`Order`], so that a cycle is a conflict like any other, explained by the edges on it. Every conclusion is a
//! consequence of the claims alone, so an empty clause proves that there is no order at all.

use std::ops::Not;

use crate::history::order::{Order, Tag};
use crate::history::sum::{Side, Sum};

/// A question or its negation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Lit(u32);

impl Lit {
    pub fn new(variable: usize) -> Lit {
        Lit((variable as u32) << 1)
    }

    fn var(self) -> usize {
        (self.0 >> 1) as usize
    }

    fn is_positive(self) -> bool {
        self.0 & 1 == 0
    }

    fn index(self) -> usize {
        self.0 as usize
    }
}

impl Not for Lit {
    type Output = Lit;

    fn not(self) -> Lit {
        Lit(self.0 ^ 1)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    Open,
    True,
    False,
}

#[derive(Clone, Copy, Debug)]
enum Reason {
    Decision,
    Clause(u32),
    Sum(u32, Side),
}

/// There is no solution.
#[derive(Debug)]
pub struct Contradiction;

pub struct Solver {
    pub order: Order,
    /// What an answer says about the order: yes is an edge from the first to the second, no the reverse.
    edges: Vec<Option<(u32, u32)>>,
    value: Vec<Value>,
    level: Vec<u32>,
    position: Vec<u32>,
    reason: Vec<Reason>,
    trail: Vec<Lit>,
    /// Where each level begins in the trail.
    levels: Vec<usize>,
    /// What of the trail has been counted in sums and put into the order.
    done: usize,
    clauses: Vec<Vec<Lit>>,
    watches: Vec<Vec<u32>>,
    sums: Vec<Sum>,
    /// Where a variable stands in sums: (sum, term).
    terms_of: Vec<Vec<(u32, u32)>>,
    guards_of: Vec<Vec<u32>>,
    dirty: Vec<u32>,
    dirty_exact: Vec<u32>,
    is_dirty: Vec<bool>,
    is_dirty_exact: Vec<bool>,
    seen: Vec<bool>,
    /// How often each sum took part in conflicts, recent ones counting more.
    pub blame: Vec<u64>,
    weight: u64,
    /// Which sums the clauses learnt so far rest on, and which variables settled for good they took for granted.
    used: Vec<bool>,
    granted: Vec<bool>,
    pub conflicts: u64,
    /// Elementary steps so far, to be held against a budget.
    pub work: u64,
    contradictory: bool,
}

impl Solver {
    pub fn new(order: Order) -> Solver {
        Solver {
            order,
            edges: Vec::new(),
            value: Vec::new(),
            level: Vec::new(),
            position: Vec::new(),
            reason: Vec::new(),
            trail: Vec::new(),
            levels: Vec::new(),
            done: 0,
            clauses: Vec::new(),
            watches: Vec::new(),
            sums: Vec::new(),
            terms_of: Vec::new(),
            guards_of: Vec::new(),
            dirty: Vec::new(),
            dirty_exact: Vec::new(),
            is_dirty: Vec::new(),
            is_dirty_exact: Vec::new(),
            seen: Vec::new(),
            blame: Vec::new(),
            weight: 1 << 10,
            used: Vec::new(),
            granted: Vec::new(),
            conflicts: 0,
            work: 0,
            contradictory: false,
        }
    }

    /// A new question; `edge` says what its answer means for the order.
    pub fn question(&mut self, edge: Option<(u32, u32)>) -> Lit {
        let lit = Lit::new(self.value.len());
        self.edges.push(edge);
        self.value.push(Value::Open);
        self.level.push(0);
        self.position.push(0);
        self.reason.push(Reason::Decision);
        self.watches.push(Vec::new());
        self.watches.push(Vec::new());
        self.terms_of.push(Vec::new());
        self.guards_of.push(Vec::new());
        self.seen.push(false);
        self.granted.push(false);
        lit
    }

    /// One of these, two at least, must hold. Before the search begins.
    pub fn require(&mut self, clause: Vec<Lit>) {
        self.attach(clause);
    }

    /// Before the search begins. Returns its number.
    pub fn claim(&mut self, sum: Sum) -> usize {
        let number = self.sums.len() as u32;
        for (i, term) in sum.terms.iter().enumerate() {
            self.terms_of[term.lit.var()].push((number, i as u32));
        }
        if let Some(active) = sum.active {
            self.guards_of[active.var()].push(number);
        }
        self.is_dirty.push(false);
        self.is_dirty_exact.push(false);
        self.blame.push(0);
        self.used.push(false);
        self.sums.push(sum);
        self.touch(number);
        number as usize
    }

    pub fn sum(&self, number: usize) -> &Sum {
        &self.sums[number]
    }

    pub fn value(&self, lit: Lit) -> Value {
        match (self.value[lit.var()], lit.is_positive()) {
            (Value::Open, _) => Value::Open,
            (Value::True, true) | (Value::False, false) => Value::True,
            _ => Value::False,
        }
    }

    /// The edge that this literal stands for.
    pub fn edge(&self, lit: Lit) -> Option<(u32, u32)> {
        self.edges[lit.var()].map(|(a, b)| if lit.is_positive() { (a, b) } else { (b, a) })
    }

    /// Tries an answer to an open question.
    pub fn decide(&mut self, lit: Lit) {
        debug_assert!(self.value(lit) == Value::Open);
        self.levels.push(self.trail.len());
        self.assign(lit, Reason::Decision);
    }

    /// Draws all conclusions, learning from every conflict on the way. Returns whether there was one.
    pub fn settle(&mut self) -> Result<bool, Contradiction> {
        let before = self.conflicts;
        if self.contradictory {
            return Err(Contradiction);
        }
        while let Some(conflict) = self.propagate() {
            self.conflicts += 1;
            self.age_blame();
            self.learn(conflict);
            if self.contradictory {
                return Err(Contradiction);
            }
        }
        Ok(self.conflicts > before)
    }

    pub fn restart(&mut self) {
        self.back_to(0);
    }

    /// The next conflict counts a little more, which is the same as the earlier ones counting less.
    fn age_blame(&mut self) {
        self.weight += self.weight / 32;
        if self.weight > 1 << 50 {
            self.weight >>= 40;
            self.blame.iter_mut().for_each(|b| *b >>= 40);
        }
    }

    /// After a contradiction: which sums it rests on. The others are not needed for it.
    pub fn used(&mut self) -> &[bool] {
        for index in (0..self.trail.len()).rev() {
            let lit = self.trail[index];
            if self.granted[lit.var()] {
                for before in self.antecedents(lit) {
                    self.granted[before.var()] = true;
                }
            }
        }
        &self.used
    }

    // ---- Conclusions -----------------------------------------------------------------------------------------------

    fn assign(&mut self, lit: Lit, reason: Reason) {
        let var = lit.var();
        self.value[var] = if lit.is_positive() { Value::True } else { Value::False };
        self.level[var] = self.levels.len() as u32;
        self.position[var] = self.trail.len() as u32;
        self.reason[var] = reason;
        self.trail.push(lit);
    }

    fn touch(&mut self, number: u32) {
        let index = number as usize;
        if !std::mem::replace(&mut self.is_dirty[index], true) {
            self.dirty.push(number);
        }
        if self.sums[index].is_exact() && !std::mem::replace(&mut self.is_dirty_exact[index], true) {
            self.dirty_exact.push(number);
        }
    }

    /// A set of literals, all false, of which one would have to be true.
    fn propagate(&mut self) -> Option<Vec<Lit>> {
        loop {
            while self.done < self.trail.len() {
                let lit = self.trail[self.done];
                if let Some(conflict) = self.take(lit) {
                    return Some(conflict);
                }
            }
            if let Some(number) = self.dirty.pop() {
                self.is_dirty[number as usize] = false;
                if let Some(conflict) = self.check_bounds(number) {
                    self.touch(number);
                    return Some(conflict);
                }
            } else if let Some(number) = self.dirty_exact.pop() {
                self.is_dirty_exact[number as usize] = false;
                if let Some(conflict) = self.check_exact(number) {
                    self.touch(number);
                    return Some(conflict);
                }
            } else {
                return None;
            }
        }
    }

    /// Counts a literal in all sums, puts its edge into the order, and follows the clauses it leaves one way out.
    fn take(&mut self, lit: Lit) -> Option<Vec<Lit>> {
        self.done += 1;
        self.work += 1;
        let var = lit.var();
        for i in 0..self.terms_of[var].len() {
            let (number, term) = self.terms_of[var][i];
            let sum = &mut self.sums[number as usize];
            let holds = sum.terms[term as usize].lit == lit;
            sum.decide(term as usize, holds, 1);
            self.touch(number);
        }
        for i in 0..self.guards_of[var].len() {
            self.touch(self.guards_of[var][i]);
        }
        if let Some((from, to)) = self.edge(lit) {
            let tag = lit.index() as Tag;
            if let Err(cycle) = self.order.add(from, to, tag, &mut self.work) {
                // The edge is not in: undoing must know.
                self.done -= 1;
                self.uncount(lit);
                return Some(cycle.into_iter().chain([tag]).map(|t| !Lit(t)).collect());
            }
        }
        self.follow_clauses(lit)
    }

    fn uncount(&mut self, lit: Lit) {
        for i in 0..self.terms_of[lit.var()].len() {
            let (number, term) = self.terms_of[lit.var()][i];
            let sum = &mut self.sums[number as usize];
            let holds = sum.terms[term as usize].lit == lit;
            sum.decide(term as usize, holds, -1);
        }
    }

    fn follow_clauses(&mut self, lit: Lit) -> Option<Vec<Lit>> {
        let falsified = !lit;
        let mut watching = std::mem::take(&mut self.watches[falsified.index()]);
        let mut conflict = None;
        let mut kept = 0;
        for i in 0..watching.len() {
            let number = watching[i];
            watching[kept] = number;
            kept += 1;
            if conflict.is_some() {
                continue;
            }
            self.work += 1;
            let mut clause = std::mem::take(&mut self.clauses[number as usize]);
            if clause[0] == falsified {
                clause.swap(0, 1);
            }
            match self.value(clause[0]) {
                Value::True => {}
                first => match (2..clause.len()).find(|k| self.value(clause[*k]) != Value::False) {
                    Some(k) => {
                        clause.swap(1, k);
                        self.watches[clause[1].index()].push(number);
                        kept -= 1;
                    }
                    None if first == Value::Open => self.assign(clause[0], Reason::Clause(number)),
                    None => conflict = Some(clause.clone()),
                },
            }
            self.clauses[number as usize] = clause;
        }
        watching.truncate(kept);
        self.watches[falsified.index()] = watching;
        conflict
    }

    fn check_bounds(&mut self, number: u32) -> Option<Vec<Lit>> {
        let sum = &self.sums[number as usize];
        let active = sum.active.map_or(Value::True, |a| self.value(a));
        if active == Value::False {
            return None;
        }
        if let Some(side) = sum.broken() {
            return match sum.active {
                Some(a) if active == Value::Open => {
                    self.assign(!a, Reason::Sum(number, side));
                    None
                }
                _ => Some(self.because(number, side, None)),
            };
        }
        if active == Value::Open {
            return None;
        }
        self.work += sum.terms.len() as u64;
        for i in 0..self.sums[number as usize].terms.len() {
            let sum = &self.sums[number as usize];
            let term = sum.terms[i];
            if self.value(term.lit) == Value::Open
                && let Some((lit, side)) = sum.forced(term)
            {
                self.assign(lit, Reason::Sum(number, side));
            }
        }
        None
    }

    fn check_exact(&mut self, number: u32) -> Option<Vec<Lit>> {
        let mut work = 0;
        let forced = self.sums[number as usize].knapsack(|l| self.value(l), &mut work);
        self.work += work;
        match forced {
            None => Some(self.because(number, Side::Exact, None)),
            Some(forced) => {
                for lit in forced {
                    self.assign(lit, Reason::Sum(number, Side::Exact));
                }
                None
            }
        }
    }

    /// The clause behind a conclusion of a sum, but for the conclusion itself: its literals are false.
    fn because(&mut self, number: u32, side: Side, concluded: Option<Lit>) -> Vec<Lit> {
        self.blame[number as usize] += self.weight;
        self.used[number as usize] = true;
        let sum = &self.sums[number as usize];
        let before = concluded.map_or(u32::MAX, |l| self.position[l.var()]);
        let is_guard = concluded.is_some_and(|l| Some(!l) == sum.active);
        let decided = |lit: Lit| {
            let when = self.position[lit.var()];
            // What is not counted yet cannot have taken part.
            (self.value(lit) == Value::True && when < before && (when as usize) < self.done).then_some(when)
        };
        let mut work = 0;
        let mut lits = sum.explain(side, concluded.filter(|_| !is_guard), decided, &mut work);
        if !is_guard {
            lits.extend(sum.active);
        }
        self.work += work;
        lits.into_iter().map(|l| !l).collect()
    }

    // ---- Learning --------------------------------------------------------------------------------------------------

    fn learn(&mut self, conflict: Vec<Lit>) {
        let top = conflict.iter().map(|l| self.level[l.var()]).max().unwrap_or(0);
        if top == 0 {
            self.contradictory = true;
            conflict.iter().for_each(|l| self.granted[l.var()] = true);
            return;
        }
        self.back_to(top);
        let mut learnt = Vec::new();
        let mut marked = Vec::new();
        let mut open = 0;
        let mut index = self.trail.len();
        let mut next = conflict;
        let way_out = loop {
            for lit in next {
                let var = lit.var();
                if self.level[var] == 0 {
                    self.granted[var] = true;
                }
                if self.level[var] == 0 || self.seen[var] {
                    continue;
                }
                self.seen[var] = true;
                marked.push(var);
                if self.level[var] == top {
                    open += 1;
                } else {
                    learnt.push(lit);
                }
            }
            let lit = loop {
                index -= 1;
                if self.seen[self.trail[index].var()] {
                    break self.trail[index];
                }
            };
            open -= 1;
            if open == 0 {
                break !lit;
            }
            next = self.antecedents(lit);
        };
        // What follows from other literals of the clause need not stand in it.
        let redundant = |lit: &Lit| match self.reason[lit.var()] {
            Reason::Clause(number) => self.clauses[number as usize]
                .iter()
                .all(|l| *l == !*lit || self.seen[l.var()] || self.level[l.var()] == 0),
            _ => false,
        };
        let mut granted = Vec::new();
        let mut learnt: Vec<Lit> = learnt
            .iter()
            .copied()
            .filter(|lit| {
                let is_needed = !redundant(lit);
                if let (false, Reason::Clause(number)) = (is_needed, self.reason[lit.var()]) {
                    granted.extend(self.clauses[number as usize].iter().map(|l| l.var()));
                }
                is_needed
            })
            .collect();
        for var in granted {
            self.granted[var] |= self.level[var] == 0;
        }
        for var in marked {
            self.seen[var] = false;
        }
        learnt.sort_unstable_by_key(|l| std::cmp::Reverse((self.level[l.var()], *l)));
        self.back_to(learnt.first().map_or(0, |l| self.level[l.var()]));
        learnt.insert(0, way_out);
        self.work += learnt.len() as u64;
        let reason = if learnt.len() > 1 { Reason::Clause(self.attach(learnt)) } else { Reason::Decision };
        self.assign(way_out, reason);
    }

    /// The false literals of the clause that made this one true.
    fn antecedents(&mut self, lit: Lit) -> Vec<Lit> {
        match self.reason[lit.var()] {
            Reason::Decision => Vec::new(),
            Reason::Clause(number) => {
                self.clauses[number as usize].iter().copied().filter(|l| *l != lit).collect()
            }
            Reason::Sum(number, side) => self.because(number, side, Some(lit)),
        }
    }

    /// The first two literals are watched.
    fn attach(&mut self, clause: Vec<Lit>) -> u32 {
        let number = self.clauses.len() as u32;
        self.watches[clause[0].index()].push(number);
        self.watches[clause[1].index()].push(number);
        self.clauses.push(clause);
        number
    }

    /// Undoes every level above this one.
    fn back_to(&mut self, level: u32) {
        let Some(&keep) = self.levels.get(level as usize) else { return };
        while self.trail.len() > keep {
            let lit = self.trail.pop().expect("longer than what is kept");
            if self.done > self.trail.len() {
                self.done -= 1;
                self.uncount(lit);
                if let Some((from, to)) = self.edge(lit) {
                    self.order.remove(from, to);
                }
            }
            self.value[lit.var()] = Value::Open;
        }
        self.levels.truncate(level as usize);
    }
}
