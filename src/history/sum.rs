//! One claim about a balance as a sum over undecided questions: which of the concurrent transfers came before it?
//!
//! `base + Σ delta·[literal]` must lie in `low..=high`. Two kinds of reasoning: bounds (what the rest can still add or take
//! away), and for exact balances a subset sum over the undecided terms, which also sees that 7 is not made of 2s and 4s.

use crate::history::solver::{Lit, Value};

/// Targets wider than this are left to bounds, which decide them too, but later.
const KNAPSACK_WIDTH: i128 = 1 << 13;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Term {
    pub lit: Lit,
    /// What the balance changes by if the literal holds; not 0.
    pub delta: i128,
}

/// A claim: holds if `active` (always, if `None`) implies `low <= sum <= high`.
#[derive(Clone, Debug)]
pub struct Sum {
    pub terms: Vec<Term>,
    pub low: Option<i128>,
    pub high: Option<i128>,
    pub active: Option<Lit>,
    base: i128,
    /// The least and the greatest that the sum can still become.
    pub least: i128,
    pub most: i128,
}

/// Which bound a conclusion rests on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Low,
    High,
    /// Both at once, as a subset sum.
    Exact,
}

impl Sum {
    pub fn new(
        base: i128,
        terms: Vec<Term>,
        low: Option<i128>,
        high: Option<i128>,
        active: Option<Lit>,
    ) -> Sum {
        let least = base + terms.iter().map(|t| t.delta.min(0)).sum::<i128>();
        let most = base + terms.iter().map(|t| t.delta.max(0)).sum::<i128>();
        Sum { terms, low, high, active, base, least, most }
    }

    /// Narrows (`sign` 1) or widens again (-1) the bounds by the decision on one term.
    pub fn decide(&mut self, term: usize, holds: bool, sign: i128) {
        let delta = self.terms[term].delta;
        if holds == (delta > 0) {
            self.least += sign * delta.abs();
        } else {
            self.most -= sign * delta.abs();
        }
    }

    pub fn is_exact(&self) -> bool {
        self.low.is_some() && self.low == self.high
    }

    /// The bound that can no longer be met, if one cannot.
    pub fn broken(&self) -> Option<Side> {
        if self.low.is_some_and(|low| self.most < low) {
            return Some(Side::Low);
        }
        self.high.is_some_and(|high| self.least > high).then_some(Side::High)
    }

    /// Whether the literal's opposite would break a bound, for an undecided term.
    pub fn forced(&self, term: Term) -> Option<(Lit, Side)> {
        let size = term.delta.abs();
        let up = if term.delta > 0 { term.lit } else { !term.lit };
        if self.low.is_some_and(|low| self.most - size < low) {
            return Some((up, Side::Low));
        }
        self.high.is_some_and(|high| self.least + size > high).then_some((!up, Side::High))
    }

    /// The literals that follow from the subset sum, or `None` if no subset fits.
    pub fn knapsack(&self, value: impl Fn(Lit) -> Value, work: &mut u64) -> Option<Vec<Lit>> {
        let mut forced = Vec::new();
        let Some(target) = self.low.filter(|_| self.is_exact()) else { return Some(forced) };
        let range = self.most - self.least;
        let goal = target - self.least;
        if goal < 0 || goal > range {
            return None;
        }
        // Choosing what is left out instead of what is taken makes the smaller table.
        let flip = goal > range - goal;
        let goal = if flip { range - goal } else { goal };
        if goal > KNAPSACK_WIDTH {
            return Some(forced);
        }
        let free: Vec<Term> = self.terms.iter().copied().filter(|t| value(t.lit) == Value::Open).collect();
        let goal = goal as usize;
        let words = goal / 64 + 1;
        *work += (free.len() * words) as u64;
        // Row i: what the first i terms can make.
        let mut made = vec![0u64; words * (free.len() + 1)];
        made[0] = 1;
        for (i, term) in free.iter().enumerate() {
            let (done, rest) = made.split_at_mut(words * (i + 1));
            let row = &done[words * i..];
            rest[..words].copy_from_slice(row);
            or_shifted_up(&mut rest[..words], row, term.delta.abs());
        }
        if !has(&made[words * free.len()..], goal) {
            return None;
        }
        // From the other end: from where can the terms behind reach the goal?
        let mut wanted = vec![0u64; words];
        wanted[goal / 64] = 1 << (goal % 64);
        for (i, term) in free.iter().enumerate().rev() {
            let row = &made[words * i..words * (i + 1)];
            let without = row.iter().zip(&wanted).any(|(a, b)| a & b != 0);
            let mut shifted = vec![0u64; words];
            or_shifted_down(&mut shifted, &wanted, term.delta.abs());
            let with = row.iter().zip(&shifted).any(|(a, b)| a & b != 0);
            if with != without {
                let taken = with != flip;
                forced.push(if taken == (term.delta > 0) { term.lit } else { !term.lit });
            }
            wanted.iter_mut().zip(&shifted).for_each(|(a, b)| *a |= b);
        }
        Some(forced)
    }

    /// Decided literals that suffice for a conclusion: for `forced`, or that the sum is broken. `decided` says when a
    /// literal came to hold, if it did and may be used. The latest are left out first.
    pub fn explain(
        &self,
        side: Side,
        forced: Option<Lit>,
        decided: impl Fn(Lit) -> Option<u32>,
        work: &mut u64,
    ) -> Vec<Lit> {
        // (when, literal, delta, its share of the sum)
        let mut known: Vec<(u32, Lit, i128, i128)> = Vec::new();
        let mut free: Vec<i128> = Vec::new();
        let mut fixed = self.base;
        for term in &self.terms {
            if forced == Some(!term.lit) {
                fixed += term.delta;
            } else if forced == Some(term.lit) {
                // Its opposite adds nothing.
            } else if let Some(when) = decided(term.lit) {
                known.push((when, term.lit, term.delta, term.delta));
            } else if let Some(when) = decided(!term.lit) {
                known.push((when, !term.lit, term.delta, 0));
            } else {
                free.push(term.delta);
            }
        }
        known.sort_unstable_by_key(|k| std::cmp::Reverse(k.0));
        *work += self.terms.len() as u64;
        fixed += known.iter().map(|k| k.3).sum::<i128>();
        let mut spare = match side {
            Side::Low => {
                let most = fixed + free.iter().map(|d| d.max(&0)).sum::<i128>();
                self.low.expect("concluded from it") - 1 - most
            }
            Side::High => {
                let least = fixed + free.iter().map(|d| d.min(&0)).sum::<i128>();
                least - self.high.expect("concluded from it") - 1
            }
            Side::Exact => return self.explain_exact(known, &free, fixed),
        };
        debug_assert!(spare >= 0, "the conclusion does not follow");
        known.retain(|(_, _, delta, share)| {
            let loss = if side == Side::Low { delta.max(&0) - share } else { share - delta.min(&0) };
            let needed = loss > spare;
            spare -= if needed { 0 } else { loss };
            needed
        });
        known.into_iter().map(|k| k.1).collect()
    }

    fn explain_exact(&self, mut known: Vec<(u32, Lit, i128, i128)>, free: &[i128], fixed: i128) -> Vec<Lit> {
        let target = self.low.expect("concluded from it");
        let lowest = self.base + self.terms.iter().map(|t| t.delta.min(0)).sum::<i128>();
        let width = (target - lowest.min(fixed)).max(0);
        if width > 8 * KNAPSACK_WIDTH {
            return known.into_iter().map(|k| k.1).collect();
        }
        let mut least = fixed + free.iter().map(|d| d.min(&0)).sum::<i128>();
        let mut made = vec![0u64; width as usize / 64 + 1];
        made[0] = 1;
        for delta in free {
            let row = made.clone();
            or_shifted_up(&mut made, &row, delta.abs());
        }
        known.retain(|(_, _, delta, share)| {
            let freed = least - share + delta.min(&0);
            let mut more = made.clone();
            or_shifted_up(&mut more, &made, delta.abs());
            let needed = target >= freed && has(&more, (target - freed) as usize);
            if !needed {
                least = freed;
                made = more;
            }
            needed
        });
        known.into_iter().map(|k| k.1).collect()
    }
}

fn has(bits: &[u64], index: usize) -> bool {
    bits.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
}

/// Adds `row << by` to `to`; what leaves the row is lost.
fn or_shifted_up(to: &mut [u64], row: &[u64], by: i128) {
    if by >= to.len() as i128 * 64 {
        return;
    }
    let (words, bits) = (by as usize / 64, by as u32 % 64);
    for i in words..to.len() {
        to[i] |= row[i - words] << bits;
        if bits > 0 && i > words {
            to[i] |= row[i - words - 1] >> (64 - bits);
        }
    }
}

/// Adds `row >> by` to `to`.
fn or_shifted_down(to: &mut [u64], row: &[u64], by: i128) {
    if by >= to.len() as i128 * 64 {
        return;
    }
    let (words, bits) = (by as usize / 64, by as u32 % 64);
    for i in 0..to.len() - words {
        to[i] |= row[i + words] >> bits;
        if bits > 0 && i + words + 1 < row.len() {
            to[i] |= row[i + words + 1] << (64 - bits);
        }
    }
}
