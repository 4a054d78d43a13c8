//! What a benchmark asks for: accounts and amounts, drawn from a seed.
//!
//! **Skew.** The first account of a transfer is drawn by its rank `k` among `n` accounts with a probability proportional to
//! `k^-s` (Zipf), where `s = skew / (1 - skew)`: at 0 all are equally likely, at 0.5 it is the classical Zipf distribution, and
//! at 1 it is always the first. Ranks go round the shards: rank 1 is the first account of D1, rank 2 that of D2. The second
//! account is any other of the same shard, or, for the share of transfers that goes across, any of another shard. A coin decides
//! which of the two pays.

use std::ops::RangeInclusive;

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};

use crate::config::Topology;
use crate::txn::Op;
use crate::types::{AccountId, Transfer};

/// Amounts are 1 to this.
const MOST: i64 = 9;

/// The transactions of SmallBank (Alomari et al., "The Cost of Serializability on Platforms That Use Snapshot Isolation",
/// ICDE 2008), and what each is here: customer `c` has the savings account `2c - 1` and the checking account `2c`, and the last
/// account of each shard is its cash desk, which pays deposits out of what it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SmallBank {
    /// Both balances of a customer: two reads.
    Balance,
    /// From the desk to checking.
    DepositChecking,
    /// From the desk to savings.
    TransactSavings,
    /// From savings, and from checking, to the checking account of another customer: two transfers, each of which takes effect or
    /// not by itself, and of an amount instead of all there is, which no transfer of this bank can say.
    Amalgamate,
    /// From checking to the desk; without the fine for overdrawing, which this bank refuses instead.
    WriteCheck,
    /// From checking to the checking account of another customer.
    SendPayment,
}

/// Of a hundred transactions, as in the OLTP-Bench suite.
const SMALL_BANK: [(SmallBank, u64); 6] = [
    (SmallBank::Balance, 15),
    (SmallBank::DepositChecking, 15),
    (SmallBank::TransactSavings, 15),
    (SmallBank::Amalgamate, 15),
    (SmallBank::WriteCheck, 25),
    (SmallBank::SendPayment, 15),
];

/// Which operations, in which shares.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mix {
    /// Transfers, `cross` of them across shards, and so many linearizable reads among all operations. Shares are 0 to 1.
    Plain { cross: f64, reads: f64 },
    /// Other customers are in another shard with this share.
    SmallBank { cross: f64 },
}

/// What latencies are told apart by.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Within,
    Across,
    Read,
}

/// What was asked for, until it is answered. Small, since a batch of them is no longer in the cache by then.
#[derive(Clone, Copy)]
pub struct Asked {
    pub from: AccountId,
    pub to: AccountId,
    pub amount: u32,
    pub kind: Kind,
}

impl Asked {
    /// # Panics
    ///
    /// If it is of a kind that no [`Source`] draws.
    pub fn of(op: &Op, topology: &Topology) -> Asked {
        match *op {
            Op::Transfer(Transfer { from, to, amount }) => {
                let within = topology.shards_of(from, to).is_some_and(|(from, to)| from == to);
                let kind = if within { Kind::Within } else { Kind::Across };
                Asked { from, to, amount: amount as u32, kind }
            }
            Op::Read(account) => Asked { from: account, to: account, amount: 0, kind: Kind::Read },
            _ => unreachable!("nothing else is drawn"),
        }
    }
}

/// An endless source of operations.
pub struct Source {
    mix: Mix,
    /// The accounts of each shard.
    shards: Vec<RangeInclusive<u64>>,
    ranks: Ranks,
    rng: SmallRng,
}

/// By which ranks first accounts are drawn.
enum Ranks {
    /// Of so many, all alike.
    Uniform(u64),
    Zipf(Zipf<f64>),
    First,
}

impl Source {
    /// `skew` is 0 to 1.
    pub fn new(topology: &Topology, mix: Mix, skew: f64, seed: u64) -> Source {
        let ranks = match Zipf::new(topology.accounts as f64, skew / (1.0 - skew)) {
            Ok(zipf) if skew > 0.0 => Ranks::Zipf(zipf),
            Ok(_) => Ranks::Uniform(topology.accounts),
            Err(_) => Ranks::First,
        };
        let shards = topology.shards().map(|shard| topology.accounts_of(shard)).collect();
        Source { mix, shards, ranks, rng: SmallRng::seed_from_u64(seed) }
    }

    /// Appends the operations of one transaction.
    pub fn draw(&mut self, out: &mut Vec<Op>) {
        match self.mix {
            Mix::Plain { cross, reads } => {
                let (shard, first) = self.first();
                if reads > 0.0 && self.rng.random_bool(reads) {
                    return out.push(Op::Read(AccountId(first)));
                }
                let second = self.second(shard, first, cross);
                let (from, to) = if self.rng.next_u32() & 1 == 0 { (first, second) } else { (second, first) };
                out.push(self.transfer(from, to));
            }
            Mix::SmallBank { cross } => self.draw_small_bank(cross, out),
        }
    }

    fn transfer(&mut self, from: u64, to: u64) -> Op {
        let amount = self.rng.random_range(1..=MOST);
        Op::Transfer(Transfer { from: AccountId(from), to: AccountId(to), amount })
    }

    /// An account by its rank, and the index of its shard.
    fn first(&mut self) -> (usize, u64) {
        let shards = self.shards.len() as u64;
        // A rank beyond the last account of a smaller shard is drawn again.
        loop {
            let rank = match &self.ranks {
                Ranks::Uniform(count) => self.rng.random_range(0..*count),
                Ranks::Zipf(zipf) => zipf.sample(&mut self.rng) as u64 - 1,
                Ranks::First => 0,
            };
            let shard = (rank % shards) as usize;
            let account = self.shards[shard].start() + rank / shards;
            if account <= *self.shards[shard].end() {
                return (shard, account);
            }
        }
    }

    fn second(&mut self, shard: usize, first: u64, cross: f64) -> u64 {
        let alone = self.shards[shard].start() == self.shards[shard].end();
        if self.shards.len() > 1 && (alone || cross > 0.0 && self.rng.random_bool(cross)) {
            let other = (shard + self.rng.random_range(1..self.shards.len())) % self.shards.len();
            return self.rng.random_range(self.shards[other].clone());
        }
        // Of all but the first one.
        let (start, end) = (*self.shards[shard].start(), *self.shards[shard].end());
        let drawn = self.rng.random_range(start..end);
        drawn + u64::from(drawn >= first)
    }

    fn draw_small_bank(&mut self, cross: f64, out: &mut Vec<Op>) {
        let (shard, first) = self.first();
        let mut dice = self.rng.random_range(0..100);
        let kind = SMALL_BANK.iter().find(|(_, share)| {
            let here = dice < *share;
            dice = dice.wrapping_sub(*share);
            here
        });
        let kind = kind.map_or(SmallBank::SendPayment, |(kind, _)| *kind);
        let (savings, checking) = self.customer(shard, first);
        let desk = *self.shards[shard].end();
        match kind {
            SmallBank::Balance => {
                out.extend([savings, checking].map(|account| Op::Read(AccountId(account))));
            }
            SmallBank::DepositChecking => out.push(self.transfer(desk, checking)),
            SmallBank::TransactSavings => out.push(self.transfer(desk, savings)),
            SmallBank::WriteCheck => out.push(self.transfer(checking, desk)),
            SmallBank::Amalgamate | SmallBank::SendPayment => {
                let other = loop {
                    let other = self.second(shard, first, cross);
                    let place = self.shards.iter().position(|accounts| accounts.contains(&other));
                    let (_, other) = self.customer(place.unwrap_or(shard), other);
                    if other != checking {
                        break other;
                    }
                };
                if kind == SmallBank::Amalgamate {
                    out.push(self.transfer(savings, other));
                }
                out.push(self.transfer(checking, other));
            }
        }
    }

    /// Savings and checking of the customer to whom an account of a shard belongs. The desk, and an account that would have no
    /// other beside it, stand for the first customer.
    fn customer(&self, shard: usize, account: u64) -> (u64, u64) {
        let (start, end) = (*self.shards[shard].start(), *self.shards[shard].end());
        let savings = start + (account - start) / 2 * 2;
        if savings + 1 < end { (savings, savings + 1) } else { (start, start + 1) }
    }
}

/// Accounts that each shard must have at least for a mix.
pub fn least_accounts(mix: Mix) -> u64 {
    match mix {
        Mix::Plain { .. } => 2,
        Mix::SmallBank { .. } => 5,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const TOPOLOGY: Topology =
        Topology { clusters: 3, servers_per_cluster: 3, accounts: 100, initial_balance: 10 };

    fn drawn(mix: Mix, skew: f64, count: usize) -> Vec<Op> {
        let mut source = Source::new(&TOPOLOGY, mix, skew, 7);
        let mut ops = Vec::new();
        while ops.len() < count {
            source.draw(&mut ops);
        }
        ops
    }

    fn transfers(ops: &[Op]) -> Vec<Transfer> {
        ops.iter().filter_map(|op| if let Op::Transfer(t) = op { Some(*t) } else { None }).collect()
    }

    /// All that is drawn can be carried out but for its balance, in the shares that were asked for.
    #[test]
    fn shares_are_kept_and_no_transfer_is_senseless() {
        let shard = |account| TOPOLOGY.shard_of(account).expect("an account of the bank");
        for (cross, reads) in [(0.0, 0.0), (0.3, 0.2), (1.0, 0.0)] {
            let ops = drawn(Mix::Plain { cross, reads }, 0.4, 20_000);
            let transfers = transfers(&ops);
            assert!(transfers.iter().all(|t| t.from != t.to && (1..=MOST).contains(&t.amount)));
            let across = transfers.iter().filter(|t| shard(t.from) != shard(t.to)).count();
            let near = |count: usize, of: usize, share: f64| (count as f64 / of as f64 - share).abs() < 0.02;
            assert!(near(across, transfers.len(), cross), "{across} of {}", transfers.len());
            assert!(near(ops.len() - transfers.len(), ops.len(), reads));
        }
        for t in transfers(&drawn(Mix::SmallBank { cross: 0.5 }, 0.0, 20_000)) {
            assert!(
                t.from != t.to && TOPOLOGY.shard_of(t.from).is_some() && TOPOLOGY.shard_of(t.to).is_some()
            );
        }
    }

    #[test]
    fn skew_goes_from_all_alike_to_one_for_all() {
        let busiest = |skew| {
            let mut counts = BTreeMap::new();
            for t in transfers(&drawn(Mix::Plain { cross: 0.0, reads: 0.0 }, skew, 20_000)) {
                [t.from, t.to].into_iter().for_each(|account| *counts.entry(account).or_insert(0_usize) += 1);
            }
            let (account, count) = counts.into_iter().max_by_key(|(_, count)| *count).expect("some account");
            (account.0, count as f64 / 20_000.0)
        };
        // Uniform: each of a hundred accounts is in two of a hundred transfers.
        assert!(busiest(0.0).1 < 0.03);
        let (account, share) = busiest(0.5);
        // 1 / H(100) = 0.19 as the first one, and in one of 33 as the second one of those of its shard.
        assert!(account == 1 && (0.18..0.24).contains(&share), "{share}");
        assert_eq!(busiest(1.0), (1, 1.0));
    }
}
