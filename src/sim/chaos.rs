//! One random run: clients work while harm is done; then everything heals and must come to rest within a bounded virtual
//! time.

use std::collections::BTreeSet;

use crate::sim::coverage::{Coverage, Seen};
use crate::sim::network::{Place, Weather};
use crate::sim::plan::{FAST_US, FORGETFUL_MS, Plan};
use crate::sim::plot::Plot;
use crate::sim::trace::Trace;
use crate::sim::world::{Options, World};
use crate::txn::{Op, Outcome};
use crate::types::{AccountId, NodeId, Reason, ShardId, Time, Transfer, TxnId};

/// Virtual time within which everything must be at rest once the world has healed.
const REST_LIMIT_US: u64 = 60_000_000;
/// What one coordinator has open at a time.
const OPEN_MAX: usize = 40;

/// What one run did and saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    pub seed: u64,
    /// Equal for equal runs.
    pub hash: u64,
    pub committed: u64,
    /// Transfers and reads that were asked for.
    pub asked: u64,
    /// Virtual time of the whole run, and from healing to rest.
    pub virtual_us: u64,
    pub rest_us: u64,
    /// Whether the search for an order of what the clients saw came to an end; if so there is one.
    pub judged: bool,
    pub coverage: Coverage,
}

/// A server to which its peers have an ever slower way.
pub(super) struct Clogged {
    pub server: NodeId,
    /// How much slower it becomes in each step, so slowly that the server still takes itself for a leader.
    pub step_us: u64,
    /// Until nobody hears it.
    pub steps: u64,
}

pub(super) struct Run {
    pub world: World,
    pub plan: Plan,
    /// What each client has asked for; one client never asks for the same transfer twice.
    used: BTreeSet<(u32, u64, u64, i64)>,
    /// Links that come and go.
    pub flapping: Vec<(Place, Place)>,
    pub clogged: Option<Clogged>,
    pub plot: Option<Plot>,
    /// What clients named, the latest last.
    pub named: Vec<(TxnId, Transfer)>,
    /// Servers that stay away when everything heals.
    away: BTreeSet<NodeId>,
}

/// Runs a seed to its end. Panics with the number of the rule that broke.
pub fn run(seed: u64, trace: Trace) -> Summary {
    let plan = Plan::draw(seed);
    let options = Options {
        topology: plan.topology,
        timeouts: plan.timeouts,
        limits: plan.limits,
        seed,
        weather: plan.weather,
        sync_us: plan.sync_us,
        segment_bytes: plan.segment_bytes,
        retention: plan.retention,
        lines: plan.lines,
        odd_clocks: plan.odd_clocks,
        trace,
    };
    let mut world = World::new(options);
    world.chatter = true;
    for _ in 0..plan.coordinators {
        world.add_client();
    }
    let mut run = Run {
        world,
        plan,
        used: BTreeSet::new(),
        flapping: Vec::new(),
        clogged: None,
        plot: None,
        named: Vec::new(),
        away: BTreeSet::new(),
    };
    run.chaos();
    run.heal();
    let rest_us = run.rest();
    run.follow_up();
    run.last_words();
    run.forget();
    run.world.check_listings();
    let judged = run.world.judge();
    run.summary(seed, rest_us, judged)
}

impl Run {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.world.rng.below(bound)
    }

    pub(super) fn chance(&mut self, per_thousand: u64) -> bool {
        self.world.rng.below(1000) < per_thousand
    }

    pub(super) fn any_server(&mut self) -> NodeId {
        NodeId(self.world.rng.below(self.world.servers.len() as u64) as u16 + 1)
    }

    /// A server that believes to lead, or any if there is none.
    pub(super) fn any_leader(&mut self) -> NodeId {
        let all: Vec<NodeId> = self.world.servers.values().filter(|s| s.leads()).map(|s| s.id).collect();
        match all.len() {
            0 => self.any_server(),
            n => all[self.below(n as u64) as usize],
        }
    }

    pub(super) fn any_client(&mut self) -> Option<u32> {
        let all: Vec<u32> = self.world.clients.keys().copied().collect();
        (!all.is_empty()).then(|| all[self.world.rng.below(all.len() as u64) as usize])
    }

    pub(super) fn any_place(&mut self) -> Place {
        let id = self.any_server();
        match self.any_client() {
            Some(client) if self.world.rng.one_in(4) => Place::Client(client),
            _ => Place::Server(id),
        }
    }

    /// Every ten milliseconds somebody is harmed, healed, or asks for something.
    fn chaos(&mut self) {
        while self.world.now.0 < self.plan.chaos_us {
            self.world.run_until(Time(self.world.now.0 + 10_000));
            self.harm();
            self.relieve();
            self.flap();
            self.clog();
            self.go_on_plotting();
            for _ in 0..1 + self.below(3) {
                if self.chance(self.plan.swarm.submit)
                    && let Some(client) = self.any_client()
                {
                    self.ask(client);
                }
            }
        }
    }

    fn flap(&mut self) {
        let down = self.chance(500);
        for (from, to) in &self.flapping {
            if down {
                self.world.network.cut_as(*from, *to, Seen::CutFlapping);
            } else {
                self.world.network.uncut(*from, *to);
            }
        }
    }

    /// The queue on the way back to a server fills up, step by step. When it is long, nothing of that server reaches the
    /// others any more: they elect a leader while their answers to the old one are still on their way (P5).
    fn clog(&mut self) {
        let Some(Clogged { server, step_us, steps }) = &mut self.clogged else { return };
        self.world.lag_behind(*server, *step_us);
        *steps -= 1;
        if *steps == 0 {
            self.world.silence(*server);
            self.clogged = None;
        }
    }

    fn ask(&mut self, client: u32) {
        let open = self.world.clients[&client].asked.values().filter(|a| !a.is_answered()).count();
        if open >= OPEN_MAX {
            return;
        }
        if self.plan.swarm.named > 0 && self.chance(self.plan.swarm.named) {
            return self.ask_by_name(client);
        }
        let accounts = self.world.options.topology.accounts;
        if self.world.rng.one_in(50) {
            let server = self.any_server();
            self.world.hint(client, server);
            let op =
                [Op::Settle, Op::Confirm { anew: true }, Op::Confirm { anew: false }][self.below(3) as usize];
            self.world.submit(client, op);
            return;
        }
        if self.chance(self.plan.reads) {
            let account = AccountId(1 + self.world.rng.below(accounts));
            self.world.submit(client, Op::Read(account));
            return;
        }
        for _ in 0..20 {
            let from = 1 + self.world.rng.below(accounts);
            let to = 1 + self.world.rng.below(accounts);
            let amount = (self.plan.unit * (1 + self.world.rng.below(12))) as i64;
            if from != to && self.used.insert((client, from, to, amount)) {
                let transfer = Transfer { from: AccountId(from), to: AccountId(to), amount };
                self.world.submit(client, Op::Transfer(transfer));
                return;
            }
        }
    }

    /// Everything works again, but in half of the runs a minority of each cluster stays away; servers that are lost for
    /// good are part of it.
    fn heal(&mut self) {
        self.world.note(|| "healing".into());
        let topology = self.world.options.topology;
        // Whose disk is damaged and does not know it yet finds out.
        for id in topology.servers() {
            if self.world.servers[&id].ailment.is_some() && self.world.servers[&id].running.is_some() {
                self.world.crash(id);
                self.world.start(id);
            }
        }
        let gone: BTreeSet<NodeId> =
            self.world.servers.values().filter(|s| s.is_gone()).map(|s| s.id).collect();
        // Who waits to be let in again is no part of any majority, but must come back.
        let waits = |id: &NodeId| {
            let server = &self.world.servers[id];
            (server.rejoining || server.healing) && server.ailment.is_none() && !server.lost
        };
        let mut away: BTreeSet<NodeId> = gone.iter().copied().filter(|id| !waits(id)).collect();
        if self.world.rng.one_in(2) {
            for shard in topology.shards() {
                let members: Vec<NodeId> = topology.servers_of(shard).collect();
                let spare = topology.servers_per_cluster as usize - topology.majority();
                for _ in 0..spare {
                    let id = members[self.below(members.len() as u64) as usize];
                    let missing = |m: &&NodeId| away.contains(*m) || gone.contains(*m);
                    if members.iter().filter(missing).count() < spare {
                        away.insert(id);
                    }
                }
            }
        }
        self.mend_network();
        self.steady_network(self.plan.steady_us);
        let now = self.world.now;
        for id in topology.servers() {
            self.world.skew(id, 1_000_000);
            self.world.slow_disk(id, 1);
            self.world.free_disk(id);
            if away.contains(&id) {
                if self.world.servers[&id].is_up() {
                    self.world.fail(id);
                }
                continue;
            }
            self.world.disarm(id);
            if self.world.servers[&id].leaves_by.is_some() {
                self.world.stop(id, false, false);
            }
            // Where no comparison is due, there may never be one.
            if self.world.servers[&id].misled && !self.world.must_stop(id) {
                self.world.crash(id);
            }
            if self.world.servers[&id].running.is_some() {
                self.world.recover(id);
            } else {
                self.world.start(id);
            }
        }
        let clients: Vec<u32> = self.world.clients.keys().copied().collect();
        for client in clients {
            self.world.clients.entry(client).and_modify(|c| c.clock.run_at(now, 1_000_000));
            self.world.pause_client(client, false);
        }
        self.away = away;
    }

    fn steady_network(&mut self, most_us: u64) {
        self.world.network.weather =
            Weather { min_delay_us: most_us / 6, max_delay_us: most_us, ..Weather::CALM };
    }

    /// Time passes in the healed world. A server that still dies of what was armed earlier is started again.
    fn calm(&mut self, length_us: u64) {
        self.world.run_until(Time(self.world.now.0 + length_us));
        for id in self.world.options.topology.servers() {
            if self.world.servers[&id].running.is_none() && !self.away.contains(&id) {
                self.world.start(id);
            }
        }
    }

    /// Waits until nothing is open, and returns how long that took. Meanwhile the last old frames come again.
    fn rest(&mut self) -> u64 {
        let healed = self.world.now;
        loop {
            self.calm(200_000);
            if self.chance(10 * self.plan.swarm.haunt.min(50)) {
                self.world.haunt();
                continue;
            }
            match self.world.at_rest() {
                Ok(()) => {
                    self.steady_network(FAST_US);
                    return self.world.now.0 - healed.0;
                }
                Err(why) if self.world.now.0 > healed.0 + REST_LIMIT_US => {
                    panic!("not at rest {} s after healing: {why}", REST_LIMIT_US / 1_000_000)
                }
                Err(_) => {}
            }
        }
    }

    /// A client's next transfer never meets the lock of its own last one (T3), in a network that keeps its order.
    fn follow_up(&mut self) {
        let topology = self.world.options.topology;
        let Some(client) = self.world.clients.keys().next().copied() else { return };
        let owns = |a: &u64| self.world.checker.balance(AccountId(*a)) > 0;
        let Some(from) = (1..=topology.accounts).find(owns).map(AccountId) else { return };
        let other = |a: &u64| topology.shard_of(AccountId(*a)) != topology.shard_of(from);
        let Some(to) = (1..=topology.accounts).find(other).map(AccountId) else { return };
        // Slow packets of the past are still on their way, and with them the opening of connections, which waits behind
        // them however often it is tried; and it may still believe that somebody has no majority.
        let arrived = self.world.network.last_arrival();
        while self.world.now < arrived {
            self.calm(500_000);
        }
        (0..8).for_each(|_| self.calm(500_000));
        self.ask_and_wait(client, Op::Confirm { anew: true });
        for transfer in [Transfer { from, to, amount: 1 }, Transfer { from: to, to: from, amount: 1 }] {
            // Nobody else asks for anything now, so a repetition of an earlier wish would only be one too many.
            let key = (client, transfer.from.0, transfer.to.0, transfer.amount);
            if !self.used.insert(key) {
                return;
            }
            let crashes = self.world.coverage.count(Seen::Crashed);
            let outcomes = self.ask_and_wait(client, Op::Transfer(transfer));
            if self.world.coverage.count(Seen::Crashed) > crashes {
                // Armed long ago, and the world is not so calm after all.
                return;
            }
            if outcomes == [Outcome::Aborted(Reason::NoSession)] {
                // Others had as many sessions as the bank keeps, and took their time.
                return;
            }
            assert_eq!(outcomes, [Outcome::Committed], "T3: {transfer} in a calm world");
        }
    }

    fn ask_and_wait(&mut self, client: u32, op: Op) -> Vec<Outcome> {
        let tag = self.world.submit(client, op);
        let end = Time(self.world.now.0 + 5_000_000);
        while !self.world.clients[&client].asked[&tag].is_answered() && self.world.now < end {
            self.calm(1_000);
        }
        self.world.clients[&client].asked[&tag].outcomes.clone()
    }

    /// Everybody who is left can still move money, and reads agree with the servers.
    fn last_words(&mut self) {
        let Some(client) = self.world.clients.keys().next().copied() else { return };
        self.world.submit(client, Op::Settle);
        let accounts: Vec<AccountId> = self
            .world
            .options
            .topology
            .shards()
            .map(|s: ShardId| AccountId(*self.world.options.topology.accounts_of(s).start()))
            .collect();
        for account in accounts {
            self.world.submit(client, Op::Read(account));
        }
        self.world.run_until(Time(self.world.now.0 + 2_000_000));
        let asked = self.world.clients[&client].asked.values();
        let bad: Vec<String> = asked
            .filter(|a| self.world.is_waiting(client, a))
            .map(|a| format!("{:?} {:?}", a.op, a.outcomes))
            .collect();
        assert!(bad.is_empty(), "unanswered in a healthy world: {bad:?}");
    }

    /// Nobody uses a session any more: after a while no shard knows one (T7).
    fn forget(&mut self) {
        if self.plan.timeouts.session_idle_timeout_ms > FORGETFUL_MS {
            return;
        }
        let end = Time(self.world.now.0 + REST_LIMIT_US);
        while self.world.checker.sessions() > 0 {
            assert!(
                self.world.now < end,
                "T7: sessions are not forgotten, at rest for {} s: {}",
                REST_LIMIT_US / 1_000_000,
                self.world.checker.sessions()
            );
            self.calm(50_000);
        }
    }

    fn summary(self, seed: u64, rest_us: u64, judged: bool) -> Summary {
        let World { now, clients, departed, checker, network, mut coverage, mut hash, servers, .. } =
            self.world;
        coverage.merge(&checker.coverage);
        coverage.merge(&network.coverage);
        for server in servers.values() {
            hash.add(
                &server.running.as_ref().map(|r| (r.shard.bank().digest(), r.shard.replica().promised())),
            );
        }
        let asked = clients.values().map(|c| c.asked.len()).sum::<usize>() + departed.len();
        Summary {
            seed,
            hash: hash.value(),
            committed: checker.committed,
            asked: asked as u64,
            virtual_us: now.0,
            rest_us,
            judged,
            coverage,
        }
    }
}
