//! One random run: a seed draws a topology, a weather and a set of faults; clients work while harm is done; then
//! everything heals and must come to rest within a bounded virtual time.

use std::collections::BTreeSet;

use crate::config::{Timeouts, Topology};
use crate::sim::network::{Place, Weather};
use crate::sim::server::Harm;
use crate::sim::world::{Options, Trace, World};
use crate::txn::{Op, Outcome};
use crate::types::{AccountId, NodeId, ShardId, Time, Transfer};
use crate::workload::SplitMix64;

/// Virtual time within which everything must be at rest once the world has healed.
const REST_LIMIT_US: u64 = 40_000_000;

/// What one run saw.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Summary {
    pub committed: u64,
    pub answered: u64,
    pub unknown: u64,
    pub crashes: u64,
    pub partitions: u64,
    pub deaths: u64,
    /// Virtual time from healing to rest.
    pub rest_us: u64,
}

/// Which faults this seed uses, each as its chance per thousand and step.
#[derive(Debug)]
struct Swarm {
    crash: u64,
    harm: u64,
    fail: u64,
    stall: u64,
    partition: u64,
    mend: u64,
    death: u64,
    pause: u64,
    submit: u64,
}

struct Run {
    world: World,
    swarm: Swarm,
    /// What each client has asked for; one client never asks for the same transfer twice.
    used: BTreeSet<(u32, u64, u64, i64)>,
    summary: Summary,
}

/// Runs a seed to its end, and prints its log if asked to. Panics with the number of the rule that broke.
pub fn run(seed: u64, print: bool) -> Summary {
    let mut rng = SplitMix64::new(seed ^ 0x5eed);
    let topology = Topology {
        clusters: [1, 2, 2, 3][rng.below(4) as usize],
        servers_per_cluster: [1, 3, 3, 3, 5][rng.below(5) as usize],
        accounts: 6 + rng.below(12),
        initial_balance: 10 + rng.below(20),
    };
    let storm = rng.one_in(2);
    let on = |rng: &mut SplitMix64, most: u64| if rng.one_in(2) { rng.below(most) } else { 0 };
    let weather = Weather {
        min_delay_us: 50,
        max_delay_us: 100 + rng.below(if storm { 100_000 } else { 3_000 }),
        loss: on(&mut rng, 200),
        duplication: on(&mut rng, 200),
        reorder: rng.one_in(2),
        straggle: on(&mut rng, 30),
    };
    let swarm = Swarm {
        crash: on(&mut rng, 20),
        harm: on(&mut rng, 30),
        fail: on(&mut rng, 20),
        stall: on(&mut rng, 20),
        partition: on(&mut rng, 15),
        mend: 1 + rng.below(20),
        death: on(&mut rng, 8),
        pause: on(&mut rng, 10),
        submit: 50 + rng.below(900),
    };
    let slow_disks = rng.one_in(4);
    let options = Options {
        topology,
        timeouts: Timeouts::default(),
        seed,
        weather,
        sync_us: (50, 100 + rng.below(if slow_disks { 30_000 } else { 1_000 })),
        // Small, so that segments change often; larger than any value that these clients bring about.
        segment_bytes: 32_768 << rng.below(3),
        trace: if print { Trace::Print } else { Trace::Off },
    };
    let mut world = World::new(options);
    world.chatter = print;
    let mut run = Run { world, swarm, used: BTreeSet::new(), summary: Summary::default() };
    run.world.note(|| format!("{options:?}"));
    for _ in 0..1 + rng.below(3) {
        run.world.add_client();
    }
    run.chaos(2_000_000 + rng.below(6_000_000));
    let away = run.heal();
    run.rest(&away);
    run.summary
}

impl Run {
    fn chance(&mut self, per_thousand: u64) -> bool {
        self.world.rng.below(1000) < per_thousand
    }

    fn any_server(&mut self) -> NodeId {
        NodeId(self.world.rng.below(self.world.servers.len() as u64) as u16 + 1)
    }

    fn any_client(&mut self) -> Option<u32> {
        let all: Vec<u32> = self.world.clients.keys().copied().collect();
        (!all.is_empty()).then(|| all[self.world.rng.below(all.len() as u64) as usize])
    }

    /// Every ten milliseconds somebody is harmed, healed, or asks for something.
    fn chaos(&mut self, length_us: u64) {
        while self.world.now.0 < length_us {
            self.world.run_until(Time(self.world.now.0 + 10_000));
            self.harm();
            self.relieve();
            for _ in 0..1 + self.world.rng.below(3) {
                if self.chance(self.swarm.submit)
                    && let Some(client) = self.any_client()
                {
                    self.ask(client);
                }
            }
        }
    }

    fn harm(&mut self) {
        if self.chance(self.swarm.crash) {
            let id = self.any_server();
            if self.world.servers[&id].running.is_some() {
                self.summary.crashes += 1;
                self.world.crash(id);
            }
        }
        if self.chance(self.swarm.harm) {
            let id = self.any_server();
            let n = 1 + self.world.rng.below(12);
            let harm = match self.world.rng.below(8) {
                0 => Harm::FailWrite(n),
                1 => Harm::FailSync(n),
                2 | 3 => Harm::BeforeRelease,
                _ => Harm::Fuse(n),
            };
            self.summary.crashes += 1;
            self.world.arm(id, harm);
        }
        if self.chance(self.swarm.fail) {
            let id = self.any_server();
            self.world.fail(id);
        }
        if self.chance(self.swarm.stall) {
            let id = self.any_server();
            let length_us = 100_000 + self.world.rng.below(3_000_000);
            self.world.stall(id, length_us);
            // Its clients still reach it while its cluster moves on: what it says when it wakes may be stale (P5).
            if self.world.rng.one_in(2) {
                let topology = self.world.options.topology;
                for peer in topology.servers_of(topology.shard_of_server(id)).filter(|peer| *peer != id) {
                    self.world.network.cut(Place::Server(id), Place::Server(peer));
                    self.world.network.cut(Place::Server(peer), Place::Server(id));
                }
            }
        }
        if self.chance(self.swarm.partition) {
            self.partition();
        }
        if self.chance(self.swarm.death)
            && let Some(client) = self.any_client()
        {
            self.summary.deaths += 1;
            self.world.kill_client(client);
            self.world.add_client();
        }
        if self.chance(self.swarm.pause)
            && let Some(client) = self.any_client()
        {
            self.world.pause_client(client, true);
        }
    }

    fn relieve(&mut self) {
        for id in self.world.options.topology.servers() {
            if self.chance(self.swarm.mend) {
                self.bring_back(id);
            }
        }
        if self.chance(self.swarm.mend) {
            self.world.network.mend();
        }
        let paused: Vec<u32> =
            self.world.clients.iter().filter(|(_, c)| c.paused).map(|(id, _)| *id).collect();
        for client in paused {
            if self.chance(self.swarm.mend) {
                self.world.pause_client(client, false);
            }
        }
    }

    fn bring_back(&mut self, id: NodeId) {
        if self.world.servers[&id].running.is_none() {
            if self.chance(100) {
                let n = self.world.rng.below(6);
                self.world.arm(id, Harm::Fuse(n));
            }
            self.world.start(id);
        } else {
            self.world.recover(id);
        }
    }

    /// Halves, an isolated place, a single link, or a one-way cut.
    fn partition(&mut self) {
        self.summary.partitions += 1;
        let mut places: Vec<Place> = self.world.servers.keys().map(|id| Place::Server(*id)).collect();
        places.extend(self.world.clients.keys().map(|id| Place::Client(*id)));
        let shape = self.world.rng.below(4);
        let lonely = self.world.rng.below(places.len() as u64) as usize;
        let other = self.world.rng.below(places.len() as u64) as usize;
        let sides: Vec<bool> = places.iter().map(|_| self.world.rng.one_in(2)).collect();
        for (i, a) in places.iter().enumerate() {
            for (j, b) in places.iter().enumerate() {
                let cut = match shape {
                    0 => sides[i] != sides[j],
                    1 => (i == lonely) != (j == lonely),
                    2 => (i, j) == (lonely, other) || (j, i) == (lonely, other),
                    _ => i == lonely && sides[j],
                };
                if cut && i != j {
                    self.world.network.cut(*a, *b);
                }
            }
        }
    }

    fn ask(&mut self, client: u32) {
        let open = self.world.clients[&client].asked.values().filter(|a| !a.is_answered()).count();
        if open >= 40 {
            return;
        }
        let accounts = self.world.options.topology.accounts;
        if self.world.rng.one_in(5) {
            let account = AccountId(1 + self.world.rng.below(accounts));
            self.world.submit(client, Op::Read(account));
            return;
        }
        for _ in 0..20 {
            let from = 1 + self.world.rng.below(accounts);
            let to = 1 + self.world.rng.below(accounts);
            let amount = 1 + self.world.rng.below(12) as i64;
            if from != to && self.used.insert((client, from, to, amount)) {
                let transfer = Transfer { from: AccountId(from), to: AccountId(to), amount };
                self.world.submit(client, Op::Transfer(transfer));
                return;
            }
        }
    }

    /// Everything works again, but in half of the runs a minority of each cluster stays away.
    fn heal(&mut self) -> BTreeSet<NodeId> {
        self.world.note(|| "healing".into());
        let topology = self.world.options.topology;
        let mut away = BTreeSet::new();
        if self.world.rng.one_in(2) {
            for shard in topology.shards() {
                let members: Vec<NodeId> = topology.servers_of(shard).collect();
                for _ in 0..topology.servers_per_cluster as usize - topology.majority() {
                    away.insert(members[self.world.rng.below(members.len() as u64) as usize]);
                }
            }
        }
        self.world.network.mend();
        self.world.network.weather = Weather { min_delay_us: 100, max_delay_us: 600, ..Weather::CALM };
        for id in topology.servers() {
            if away.contains(&id) {
                if self.world.servers[&id].is_up() {
                    self.world.fail(id);
                }
                continue;
            }
            self.world.servers[&id].disk.set_fuse(None);
            if self.world.servers[&id].running.is_some() {
                self.world.recover(id);
            } else {
                self.world.start(id);
            }
        }
        let clients: Vec<u32> = self.world.clients.keys().copied().collect();
        for client in clients {
            self.world.pause_client(client, false);
        }
        away
    }

    /// Waits until nothing is open. A server that still dies of what was armed earlier is started again.
    fn rest(&mut self, away: &BTreeSet<NodeId>) {
        let healed = self.world.now;
        loop {
            self.world.run_until(Time(self.world.now.0 + 200_000));
            for id in self.world.options.topology.servers() {
                if self.world.servers[&id].running.is_none() && !away.contains(&id) {
                    self.world.start(id);
                }
            }
            let rest = self.world.at_rest();
            if rest.is_ok() {
                break;
            }
            if self.world.now.0 > healed.0 + REST_LIMIT_US {
                panic!(
                    "not at rest after {} s: {}",
                    REST_LIMIT_US / 1_000_000,
                    rest.err().unwrap_or_default()
                );
            }
        }
        self.summary.rest_us = self.world.now.0 - healed.0;
        self.summary.committed = self.world.checker.committed;
        for asked in self.world.clients.values().flat_map(|c| c.asked.values()) {
            self.summary.answered += 1;
            self.summary.unknown += u64::from(asked.outcomes.contains(&Outcome::Unknown));
        }
        self.last_words();
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
            .filter(|a| !a.is_answered() || (matches!(a.op, Op::Read(_)) && a.outcomes.is_empty()))
            .map(|a| format!("{:?} {:?}", a.op, a.outcomes))
            .collect();
        assert!(bad.is_empty(), "unanswered in a healthy world: {bad:?}");
    }
}
