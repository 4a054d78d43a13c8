//! A right history that has come to rest, to which a test adds a scene.

use shardpaxosbank::config::Topology;
use shardpaxosbank::history::{Call, Operation, Reply};
use shardpaxosbank::types::{AccountId, Reason, Transfer};

use crate::generate::{Shape, generate, topology};

pub struct Story {
    pub topology: Topology,
    pub operations: Vec<Operation>,
    pub balances: Vec<u64>,
    /// When the scene begins; its moments count from here.
    start: u64,
    /// Where the scene begins among the operations.
    pub scene: usize,
    clock: u64,
}

impl Story {
    pub fn new(seed: u64) -> Story {
        let shape = Shape { initial_balance: 30, operations: 60, ..Shape::default() };
        let (operations, balances) = generate(seed, &shape);
        let start = operations.iter().filter_map(|o| o.replied).map(|(at, _)| at).max().unwrap_or(0) + 1;
        let scene = operations.len();
        Story { topology: topology(&shape), operations, balances, start, scene, clock: 0 }
    }

    /// The accounts, richest first. The richest has 30 at least.
    pub fn accounts(&self) -> [u64; 6] {
        let mut all = [1, 2, 3, 4, 5, 6];
        all.sort_by_key(|a| std::cmp::Reverse(self.balance(*a)));
        all
    }

    pub fn balance(&self, account: u64) -> u64 {
        self.balances[account as usize - 1]
    }

    /// A transfer that happens with nothing beside it.
    pub fn commit(&mut self, from: u64, to: u64, amount: u64) {
        let at = self.tick();
        self.transfer(at, at + 5, from, to, amount as i64, Reply::Committed);
        self.balances[from as usize - 1] -= amount;
        self.balances[to as usize - 1] += amount;
    }

    /// Leaves an account with nothing.
    pub fn empty(&mut self, account: u64, to: u64) {
        if self.balance(account) > 0 {
            self.commit(account, to, self.balance(account));
        }
    }

    /// A transfer with nothing beside it that is answered by an abort.
    pub fn refuse(&mut self, from: u64, to: u64, amount: i64, reason: Reason) {
        let at = self.tick();
        self.transfer(at, at + 5, from, to, amount, Reply::Aborted(reason));
    }

    /// A read with nothing beside it.
    pub fn see(&mut self, account: u64, balance: u64) {
        let at = self.tick();
        self.read(at, at + 5, account, balance);
    }

    /// A moment after all of the scene so far.
    pub fn tick(&mut self) -> u64 {
        self.clock += 10;
        self.clock
    }

    pub fn transfer(&mut self, invoked: u64, replied: u64, from: u64, to: u64, amount: i64, reply: Reply) {
        let transfer = Transfer { from: AccountId(from), to: AccountId(to), amount };
        self.add(invoked, Some((replied, reply)), Call::Transfer(transfer));
    }

    pub fn open(&mut self, invoked: u64, from: u64, to: u64, amount: u64) {
        let transfer = Transfer { from: AccountId(from), to: AccountId(to), amount: amount as i64 };
        self.add(invoked, None, Call::Transfer(transfer));
    }

    pub fn read(&mut self, invoked: u64, replied: u64, account: u64, balance: u64) {
        self.add(invoked, Some((replied, Reply::Balance(balance))), Call::Read(AccountId(account)));
    }

    pub fn add(&mut self, invoked: u64, replied: Option<(u64, Reply)>, call: Call) {
        let client = self.operations.len() as u32;
        self.clock = self.clock.max(replied.map_or(invoked, |(at, _)| at));
        let replied = replied.map(|(at, reply)| (self.start + at, reply));
        self.operations.push(Operation { client, call, invoked: self.start + invoked, replied });
    }
}
