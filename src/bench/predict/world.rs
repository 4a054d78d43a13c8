//! A bank in virtual time: every server and every thread of clients is a loop with a queue in front of it, and each turn of a
//! loop keeps a processor, and then a disk, for as long as its work costs.
//!
//! What a loop does in its turn is done by the code that ships. What is modelled is the time alone:
//!
//! * A loop that is idle begins a turn as soon as something arrives, or is due, and a processor is free. All that has arrived by
//!   then is taken in. A turn is not interrupted, and processors are given in the order in which they were asked for.
//! * A turn costs what its [`Work`] adds up to. What may leave at once leaves at its end; then the disk writes, and what had to
//!   wait for that leaves, and the loop goes on.
//! * A disk moves one server's bytes after the other's; what a sync takes beside that, several servers wait for side by side.
//! * A message takes the same time between any two loops, and overtakes none. Nothing is lost.
//!
//! Time is counted in nanoseconds, and shown to the code in microseconds, as it is used to.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::bench::draw::{Mix, Source};
use crate::bench::predict::clients::{Clients, Phase};
use crate::bench::predict::server::Server;
use crate::bench::predict::tally::Tally;
use crate::bench::predict::work::{Costs, Fit, LOG_BYTE, Work};
use crate::config::Topology;
use crate::metrics::Latencies;
use crate::sim::{Packet, Place};
use crate::types::{AccountId, NodeId, Time};
use crate::workload::SplitMix64;

/// Virtual time after which a run that is not over never will be.
const PATIENCE_NS: u64 = 120_000_000_000;
/// Virtual time that servers have to apply what is decided when nothing is asked for any more.
const REST_NS: u64 = 500_000_000;
/// A run goes on until all that was under way was answered so many times over: before it is measured, and while it is.
const WARM_ROUNDS: u64 = 1;
const ROUNDS: u64 = 3;
/// A turn that was measured to take less counts as one that took so long: clocks are no better.
const LEAST_NS: f64 = 1_000.0;

/// Nanoseconds that this thread has run.
pub fn processor_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Where the loops run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Machines {
    /// Each server, and each client, has a machine of its own, with a disk.
    Own,
    /// All share one with so many processors and one disk, and all clients one thread.
    One { processors: usize },
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Setup {
    pub topology: Topology,
    pub machines: Machines,
    /// All in all.
    pub clients: u32,
    /// Transfers in a batch, and such batches that a client has under way.
    pub batch: usize,
    pub in_flight: usize,
    /// The share of transfers that go across shards, 0 to 1.
    pub cross: f64,
    /// What a message takes from one machine to another, beside waking up the loop that it is for.
    pub network_ns: u64,
    /// Virtual time of load that is not measured, and that is, at least.
    pub warm_up: Duration,
    pub span: Duration,
    pub seed: u64,
}

/// What came of a run.
#[derive(Clone, PartialEq, Debug)]
pub struct Run {
    /// Transfers in a second, committed.
    pub throughput: f64,
    /// Of batches, in microseconds.
    pub p50: u64,
    pub p99: u64,
    /// Batches that were answered while it was measured.
    pub batches: u64,
    /// Of transfers, 0 to 1.
    pub aborted: f64,
    /// Work for each transfer that was answered while it was measured: of all leaders together, of all followers, of all clients.
    pub leaders: Work,
    pub followers: Work,
    pub clients: Work,
    /// By the same roles: the share of the measured time that the busiest loop of them had no pause.
    pub busiest: [f64; 3],
    /// After the last slot, of all shards.
    pub digests: Vec<u64>,
}

/// What one turn did and wants.
#[derive(Default)]
pub struct Turn {
    pub work: Work,
    pub send: Vec<Sending>,
    /// Connections that are wanted, by whom and to whom.
    pub connect: Vec<(Place, NodeId)>,
    pub log_bytes: u64,
    pub syncs: u32,
    /// There is more to do at once.
    pub more: bool,
    pub deadline: Option<Time>,
    /// What the code took in truth, in nanoseconds of a processor.
    pub took_ns: f64,
}

pub struct Sending {
    pub to: Place,
    pub packet: Packet,
    pub bytes: usize,
    /// Nanoseconds into the turn at which it leaves, at its end at the earliest where that is 0; `None`: when the log is durable.
    pub at: Option<f64>,
}

enum Body {
    Server(Box<Server>),
    Clients(Clients),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Idle,
    /// Waits for a processor.
    Queued,
    Busy,
}

struct Loop {
    body: Body,
    state: State,
    /// When it is to be looked at next.
    wake: Option<u64>,
    /// While it was measured: what it did, and for how long it was busy.
    work: Work,
    busy_ns: u64,
}

enum Event {
    Arrive {
        from: Place,
        to: Place,
        packet: Packet,
        bytes: usize,
    },
    Connected {
        owner: Place,
        server: NodeId,
    },
    Wake(usize),
    /// A turn is over, with what waited for the disk.
    Over {
        who: usize,
        more: bool,
        deadline: Option<Time>,
    },
    /// A processor of the one machine is free.
    Free,
}

pub struct World<'a> {
    setup: Setup,
    costs: &'a Costs,
    now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    loops: Vec<Loop>,
    /// Of the one machine: processors that are free, and who waits for one.
    free: usize,
    waiting: VecDeque<usize>,
    /// When each disk has moved all bytes that it was given.
    disks: Vec<u64>,
    source: Source,
    /// By which syncs take as long as they do.
    dice: SplitMix64,
    tally: Tally,
    /// Where turns are measured: of servers, and of clients.
    fits: Option<&'a mut [Fit; 2]>,
}

/// Runs a bank. With `fits`, the code's own time is measured on the way, and the run's costs are of no matter.
///
/// # Errors
///
/// The code that ships did what it may not, or money is gone, or servers differ.
pub fn run<'a>(setup: Setup, costs: &'a Costs, fits: Option<&'a mut [Fit; 2]>) -> Result<Run, String> {
    World::new(setup, costs, fits)?.run()
}

impl<'a> World<'a> {
    fn new(setup: Setup, costs: &'a Costs, fits: Option<&'a mut [Fit; 2]>) -> Result<World<'a>, String> {
        let topology = setup.topology;
        let mut loops = Vec::new();
        let idle = |body| Loop { body, state: State::Idle, wake: None, work: Work::default(), busy_ns: 0 };
        for id in topology.servers() {
            let random = setup.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(id.0));
            loops.push(idle(Body::Server(Box::new(Server::new(id, topology, random)?))));
        }
        let (threads, each) = match setup.machines {
            Machines::Own => (setup.clients, 1),
            Machines::One { .. } => (1, setup.clients),
        };
        for thread in 0..threads {
            loops.push(idle(Body::Clients(Clients::new(topology, 1 + thread * each, each))));
        }
        let mix = Mix::Plain { cross: setup.cross, reads: 0.0 };
        let tally = Tally {
            phase: Phase::Search,
            batch: setup.batch,
            in_flight: setup.in_flight,
            batches: 0,
            counts: false,
            latencies: Latencies::default(),
            committed: 0,
            aborted: 0,
            changes: vec![0; topology.accounts as usize],
        };
        let (free, disks) = match setup.machines {
            Machines::Own => (0, topology.server_count()),
            Machines::One { processors } => (processors, 1),
        };
        let source = Source::new(&topology, mix, 0.0, setup.seed);
        let (queue, waiting, disks) = (BTreeMap::new(), VecDeque::new(), vec![0; disks]);
        Ok(World {
            setup,
            costs,
            now: 0,
            queue,
            next_event: 0,
            loops,
            free,
            waiting,
            disks,
            source,
            dice: SplitMix64::new(setup.seed),
            tally,
            fits,
        })
    }

    fn run(mut self) -> Result<Run, String> {
        for who in 0..self.servers() {
            self.wake(who, 0);
        }
        self.phase(Phase::Search)?;
        let [warm_up_ns, span_ns] = [self.setup.warm_up, self.setup.span].map(|span| span.as_nanos() as u64);
        self.begin(Phase::Load);
        self.load_for(warm_up_ns, WARM_ROUNDS)?;
        self.tally.counts = true;
        self.loops.iter_mut().for_each(|one| (one.work, one.busy_ns) = (Work::default(), 0));
        let begun = self.now;
        self.load_for(span_ns, ROUNDS)?;
        self.tally.counts = false;
        let figures = self.figures((self.now - begun) as f64);
        self.phase(Phase::Drain)?;
        self.phase(Phase::Settle)?;
        self.until(self.now + REST_NS)?;
        let digests = self.check()?;
        Ok(Run { digests, ..figures })
    }

    fn servers(&self) -> usize {
        self.setup.topology.server_count()
    }

    fn begin(&mut self, phase: Phase) {
        self.tally.phase = phase;
        for who in self.servers()..self.loops.len() {
            if let Body::Clients(clients) = &mut self.loops[who].body {
                clients.begin(phase);
            }
            self.want_turn(who);
        }
    }

    /// Lets a phase begin, and runs until clients have everything that they wait for in it.
    fn phase(&mut self, phase: Phase) -> Result<(), String> {
        self.begin(phase);
        let done = |one: &Loop| !matches!(&one.body, Body::Clients(clients) if !clients.is_done());
        let mut first = self.servers();
        while first < self.loops.len() {
            if done(&self.loops[first]) {
                first += 1;
            } else {
                self.step()?;
            }
        }
        // Whoever was done first may have begun to ask again.
        if self.loops.iter().all(done) { Ok(()) } else { Err(format!("{phase:?} does not come to its end")) }
    }

    /// Runs for so long at least, and until as many batches were answered as are under way, so many times.
    fn load_for(&mut self, span_ns: u64, rounds: u64) -> Result<(), String> {
        let under_way = u64::from(self.setup.clients) * self.setup.in_flight as u64;
        let enough = self.tally.batches + rounds * under_way;
        self.until(self.now + span_ns)?;
        while self.tally.batches < enough {
            self.step()?;
        }
        Ok(())
    }

    fn until(&mut self, end: u64) -> Result<(), String> {
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            self.step()?;
        }
        self.now = end;
        Ok(())
    }

    // ---- events ----

    fn schedule(&mut self, at: u64, event: Event) {
        self.queue.insert((at.max(self.now), self.next_event), event);
        self.next_event += 1;
    }

    fn step(&mut self) -> Result<(), String> {
        let Some(((at, _), event)) = self.queue.pop_first() else {
            return Err("nothing happens any more".into());
        };
        if at > PATIENCE_NS {
            return Err(format!(
                "not everything is answered after {} s of virtual time",
                PATIENCE_NS / 1_000_000_000
            ));
        }
        self.now = at;
        match event {
            Event::Arrive { from, to, packet, bytes } => {
                let who = self.index(to);
                match (&mut self.loops[who].body, to, from) {
                    (Body::Server(server), ..) => server.receive(from, packet, bytes),
                    (Body::Clients(clients), Place::Client(client), Place::Server(server)) => {
                        clients.receive(client, server, packet, bytes);
                    }
                    _ => return Err(format!("{from} says something to {to}")),
                }
                self.want_turn(who);
            }
            Event::Connected { owner, server } => {
                let who = self.index(owner);
                match (&mut self.loops[who].body, owner) {
                    (Body::Clients(clients), Place::Client(client)) => clients.connected(client, server),
                    (Body::Server(me), _) => me.connected(server),
                    _ => return Err(format!("{owner} wants a connection")),
                }
                self.want_turn(who);
            }
            Event::Wake(who) => {
                if self.loops[who].wake == Some(at) {
                    self.loops[who].wake = None;
                    self.want_turn(who);
                }
            }
            Event::Over { who, more, deadline } => {
                self.loops[who].state = State::Idle;
                let input = match &self.loops[who].body {
                    Body::Server(server) => server.has_input(),
                    Body::Clients(clients) => clients.has_input(),
                };
                if more || input {
                    self.want_turn(who);
                } else if let Some(deadline) = deadline {
                    self.wake(who, deadline.0.saturating_mul(1000));
                }
            }
            Event::Free => {
                self.free += 1;
                if let Some(who) = self.waiting.pop_front() {
                    self.free -= 1;
                    return self.turn(who);
                }
            }
        }
        // Whoever wants a turn has been queued; there may be a processor.
        self.give_turns()
    }

    fn index(&self, place: Place) -> usize {
        match (place, self.setup.machines) {
            (Place::Server(server), _) => usize::from(server.0) - 1,
            (Place::Client(client), Machines::Own) => self.servers() + client as usize - 1,
            (Place::Client(_), Machines::One { .. }) => self.servers(),
        }
    }

    fn wake(&mut self, who: usize, at: u64) {
        let at = at.max(self.now);
        if self.loops[who].wake.is_none_or(|due| at < due) {
            self.loops[who].wake = Some(at);
            self.schedule(at, Event::Wake(who));
        }
    }

    fn want_turn(&mut self, who: usize) {
        if self.loops[who].state == State::Idle {
            self.loops[who].state = State::Queued;
            self.waiting.push_back(who);
        }
    }

    fn give_turns(&mut self) -> Result<(), String> {
        while let Some(who) = self.waiting.front().copied() {
            match self.setup.machines {
                Machines::Own => {}
                Machines::One { .. } if self.free > 0 => self.free -= 1,
                Machines::One { .. } => break,
            }
            self.waiting.pop_front();
            self.turn(who)?;
        }
        Ok(())
    }

    // ---- turns ----

    /// A turn begins, with a processor.
    fn turn(&mut self, who: usize) -> Result<(), String> {
        let (now, costs) = (self.now, self.costs);
        let one = &mut self.loops[who];
        one.state = State::Busy;
        let (turn, costs, kind, me) = match &mut one.body {
            Body::Server(server) => {
                (server.turn(Time(now / 1000))?, &costs.server, 0, Place::Server(server.shard.id()))
            }
            Body::Clients(clients) => (
                clients.turn(now, &costs.client, &mut self.source, &mut self.tally)?,
                &costs.client,
                1,
                Place::Client(0),
            ),
        };
        let shared = matches!(self.setup.machines, Machines::One { .. });
        let Some(turn) = turn else {
            // It was woken for something that is not due any more.
            let deadline = match &one.body {
                Body::Server(server) => Some(server.shard.next_deadline()),
                Body::Clients(clients) => clients.next_deadline(),
            };
            self.schedule(now, Event::Over { who, more: false, deadline });
            if shared {
                self.schedule(now, Event::Free);
            }
            return Ok(());
        };
        if let Some(fits) = &mut self.fits {
            // Nothing is written here, so that no time goes into it.
            let mut work = turn.work;
            work.0[LOG_BYTE] = 0.0;
            fits[kind].add(&work, turn.took_ns, LEAST_NS);
        }
        let end = now + turn.work.at(costs).round() as u64;
        let durable = self.write(who, end, turn.log_bytes, turn.syncs);
        let one = &mut self.loops[who];
        one.work.add_all(&turn.work);
        one.busy_ns += durable - now;
        let hop = self.costs.wake_ns as u64 + if shared { 0 } else { self.setup.network_ns };
        for Sending { to, packet, bytes, at } in turn.send {
            let leaves = match at {
                Some(at) if at > 0.0 => (now + at.round() as u64).min(end),
                Some(_) => end,
                None => durable,
            };
            // Clients have numbers of their own, which are in what they send.
            let from = if let Packet::Request(client, _) = &packet
                && kind == 1
            {
                Place::Client(client.0 as u32)
            } else {
                me
            };
            self.schedule(leaves + hop, Event::Arrive { from, to, packet, bytes });
        }
        for (owner, server) in turn.connect {
            self.schedule(end + 2 * hop, Event::Connected { owner, server });
        }
        self.schedule(durable, Event::Over { who, more: turn.more, deadline: turn.deadline });
        if shared {
            self.schedule(end, Event::Free);
        }
        Ok(())
    }

    /// When what a turn wrote that ended at `end` is durable.
    fn write(&mut self, who: usize, end: u64, bytes: u64, syncs: u32) -> u64 {
        if syncs == 0 {
            return end;
        }
        let disk = if self.disks.len() == 1 { 0 } else { who };
        let moved = self.disks[disk].max(end) + (bytes as f64 * self.costs.disk_ns_per_byte).round() as u64;
        self.disks[disk] = moved;
        let syncs =
            (0..syncs).map(|_| self.costs.sync_ns[self.dice.below(self.costs.sync_ns.len() as u64) as usize]);
        moved + syncs.sum::<f64>().round() as u64
    }

    // ---- what came of it ----

    fn figures(&self, span_ns: f64) -> Run {
        let tally = &self.tally;
        let answered = (tally.committed + tally.aborted).max(1) as f64;
        let (mut work, mut busiest) = ([Work::default(); 3], [0.0_f64; 3]);
        for one in &self.loops {
            let role = match &one.body {
                Body::Server(server) if server.shard.replica().is_leader() => 0,
                Body::Server(_) => 1,
                Body::Clients(_) => 2,
            };
            work[role].add_all(&one.work);
            busiest[role] = busiest[role].max(one.busy_ns as f64 / span_ns);
        }
        let [leaders, followers, clients] = work.map(|work| Work(work.0.map(|count| count / answered)));
        Run {
            throughput: tally.committed as f64 / (span_ns / 1e9),
            p50: tally.latencies.quantile(0.5),
            p99: tally.latencies.quantile(0.99),
            batches: tally.latencies.summary().count,
            aborted: tally.aborted as f64 / answered,
            leaders,
            followers,
            clients,
            busiest,
            digests: Vec::new(),
        }
    }

    /// Holds the bank against what clients were told: the same as after a run on real servers.
    fn check(&self) -> Result<Vec<u64>, String> {
        let topology = self.setup.topology;
        let mut digests = Vec::new();
        for shard in topology.shards() {
            let banks =
                topology.servers_of(shard).filter_map(|id| match &self.loops[usize::from(id.0) - 1].body {
                    Body::Server(server) => Some((id, server.shard.bank())),
                    Body::Clients(_) => None,
                });
            let banks: Vec<_> = banks.collect();
            let state = (banks[0].1.applied(), banks[0].1.digest());
            for (id, bank) in banks {
                if (bank.applied(), bank.digest()) != state {
                    return Err(format!("P4: {id} is not in the state of the others of {shard}"));
                }
                for account in topology.accounts_of(shard) {
                    let made =
                        topology.initial_balance.checked_add_signed(self.tally.changes[account as usize - 1]);
                    if made.is_none() || bank.balance(AccountId(account)) != made {
                        return Err(format!(
                            "B2: account {account} on {id} is not what its transfers make of it"
                        ));
                    }
                }
            }
            digests.push(state.1);
        }
        Ok(digests)
    }
}
