//! Harm with an aim: steps that chance would hardly ever take one after the other, each of them the way to break a rule.
//! What else a seed does goes on meanwhile and may foil a plot, which is given up then.

use crate::paxos::Replica;
use crate::sim::chaos::Run;
use crate::sim::disk::Doom;
use crate::sim::network::Place;
use crate::sim::server::Harm;
use crate::types::{NodeId, Time};

/// The clock of who is to wait runs at so many millionths.
const FROZEN: u64 = 100;
/// So long things happen one by one, at most, before the rest of the run goes on.
const MOMENT_US: u64 = 10_000;

/// A plot that has begun, and how it goes on.
pub(super) enum Plot {
    /// S3: `unaware` hear nothing while `others` and the victim decide. When time is up, the victim's disk is lost and the
    /// others are cut off: `unaware` and the new disk are a majority, of whom none knows what was decided.
    NewDisk { victim: NodeId, unaware: Vec<NodeId>, others: Vec<NodeId>, until: Time },
    /// That majority is among itself until time is up.
    Among { victim: NodeId, unaware: Vec<NodeId>, others: Vec<NodeId>, until: Time },
    /// S3: the victim has promised something to a candidate, which has not heard of that, and has lost its disk. It is
    /// waited for until its new one is let in.
    LetIn(Cast, Time),
    /// `late`, who knows of that, is cut off from the others until they have decided something with the new disk of which its
    /// server has not heard yet. Then the old promise arrives, and together with that of `late` it is one of a majority.
    Decide(Cast, Time),
    /// The candidate goes on among `late` until time is up.
    Campaign(Cast, Time),
    /// S2: in a cluster of three, `unaware` hears nothing while the leader and the victim decide. When time is up, the victim
    /// loses its vote.
    Doubt { leader: NodeId, victim: NodeId, unaware: NodeId, until: Time },
    /// Those two, who know nothing of what was decided, are among themselves until time is up.
    Doubters { leader: NodeId, victim: NodeId, unaware: NodeId, until: Time },
}

/// Who plays in the plot of an old promise, in a cluster of five.
#[derive(Clone, Copy)]
pub(super) struct Cast {
    leader: NodeId,
    ally: NodeId,
    victim: NodeId,
    late: NodeId,
    candidate: NodeId,
}

impl Run {
    pub(super) fn go_on_plotting(&mut self) {
        let now = self.world.now;
        match self.plot.take() {
            None => {
                if self.plan.swarm.plot > 0 && self.chance(self.plan.swarm.plot) {
                    self.begin_plot();
                }
            }
            Some(Plot::NewDisk { victim, unaware, others, until }) if until <= now => {
                if self.lose_disk(victim) {
                    self.part(&others, &[victim]);
                    self.join(&unaware, &[victim]);
                    let until = self.soon(200_000, 1_500_000);
                    self.plot = Some(Plot::Among { victim, unaware, others, until });
                } else {
                    self.join(&unaware, &others);
                    self.join(&unaware, &[victim]);
                }
            }
            Some(Plot::Among { victim, unaware, others, until }) if until <= now => {
                self.join(&others, &unaware);
                self.join(&others, &[victim]);
            }
            Some(Plot::LetIn(cast, until)) => {
                if self.replica(cast.victim).is_some_and(|r| r.membership().votes()) {
                    self.part(&[cast.late], &[cast.leader, cast.ally, cast.victim]);
                    self.plot = Some(Plot::Decide(cast, self.soon(500_000, 1_000_000)));
                } else if until <= now {
                    self.end(cast);
                } else {
                    self.plot = Some(Plot::LetIn(cast, until));
                }
            }
            Some(Plot::Decide(cast, until)) => {
                let Cast { leader, victim, late, candidate, .. } = cast;
                let unheard = |run: &Run| {
                    let decided = |id| run.replica(id).map(Replica::decided);
                    let of = [leader, late, victim].map(decided);
                    matches!(of, [Some(leader), Some(late), Some(victim)] if leader > late && leader > victim)
                };
                if self.run_while(Time(now.0 + MOMENT_US), |run| !unheard(run)) {
                    self.part(&[leader], &[victim]);
                    self.world.skew(candidate, 1_000_000);
                    self.world.release();
                    self.plot = Some(Plot::Campaign(cast, self.soon(200_000, 1_000_000)));
                } else if until <= now {
                    self.end(cast);
                } else {
                    self.plot = Some(Plot::Decide(cast, until));
                }
            }
            Some(Plot::Campaign(cast, until)) if until <= now => self.end(cast),
            Some(Plot::Doubt { leader, victim, unaware, until }) if until <= now => {
                self.begin_doubt(leader, victim, unaware);
            }
            Some(Plot::Doubters { leader, victim, unaware, until }) if until <= now => {
                self.join(&[leader], &[victim, unaware]);
            }
            waits => self.plot = waits,
        }
    }

    /// Nothing that a plot has brought about stays.
    pub(super) fn give_up_plot(&mut self) {
        if let Some(Plot::LetIn(cast, _) | Plot::Decide(cast, _) | Plot::Campaign(cast, _)) = self.plot.take()
        {
            self.end(cast);
        }
    }

    fn end(&mut self, cast: Cast) {
        let Cast { leader, ally, victim, late, candidate } = cast;
        self.world.release();
        self.world.skew(candidate, 1_000_000);
        self.join(&[candidate], &[leader, ally, victim, late]);
        self.join(&[late], &[leader, ally, victim]);
        self.join(&[leader], &[victim]);
    }

    /// S2: a leader votes for what nobody else hears of. Then it must write over that, and the disk does not do so.
    fn lose_overwrite(&mut self) {
        let leader = self.any_leader();
        self.world.silence(leader);
        self.world.arm(leader, Harm::Overwriting(Doom::WriteIsLost));
    }

    fn begin_plot(&mut self) {
        let leader = self.any_leader();
        let topology = self.world.options.topology;
        let mut others: Vec<NodeId> =
            topology.servers_of(topology.shard_of_server(leader)).filter(|id| *id != leader).collect();
        let sound = |id: &NodeId| self.world.servers[id].is_up() && !self.world.servers[id].is_gone();
        if others.len() < 2 || !sound(&leader) || !others.iter().all(sound) {
            return;
        }
        for i in 1..others.len() {
            let j = self.below(i as u64 + 1) as usize;
            others.swap(i, j);
        }
        match (self.below(7), &others[..]) {
            (0, _) => self.lose_overwrite(),
            // S1: what it had told is in that segment, and no mark may know of it.
            (1, _) => self.world.lose_segment(others[0]),
            (2..4, &[ally, victim, late, candidate]) => {
                self.begin_old_promise(Cast { leader, ally, victim, late, candidate });
            }
            (4.., &[victim, unaware]) if self.world.servers[&leader].leads() => {
                self.world
                    .note(|| format!("plot: {unaware} hears of nothing, and {victim} will lose its votes"));
                self.part(&[unaware], &[leader, victim]);
                let until = self.soon(50_000, 300_000);
                self.plot = Some(Plot::Doubt { leader, victim, unaware, until });
            }
            _ => {
                let unaware = others.split_off(topology.majority() - 1);
                let victim = others[0];
                others[0] = leader;
                self.world
                    .note(|| format!("plot: {unaware:?} hear of nothing, and {victim} will lose its disk"));
                self.part(&unaware, &others);
                self.part(&unaware, &[victim]);
                let until = self.soon(50_000, 300_000);
                self.plot = Some(Plot::NewDisk { victim, unaware, others, until });
            }
        }
    }

    /// For a moment nobody but the ally hears the leader. The candidate asks for promises in a higher ballot, of which the
    /// leader does not learn: only the victim gives one, and that is held back.
    fn begin_old_promise(&mut self, cast: Cast) {
        let Cast { leader, ally, victim, late, candidate } = cast;
        self.world.note(|| format!("plot: {victim} will promise {candidate} something and lose its disk"));
        self.part(&[candidate], &[leader, ally]);
        self.part(&[leader], &[victim, late]);
        self.part(&[victim], &[late]);
        let election_us = self.plan.timeouts.election().as_micros() as u64;
        for id in [victim, late, candidate] {
            self.world.jump(id, 3 * election_us as i64);
        }
        let end = Time(self.world.now.0 + election_us / 2);
        if self.run_while(end, |run| !run.has_promised(candidate, candidate)) {
            self.world.hold(Place::Server(candidate), Place::Server(late));
            self.world.hold(Place::Server(victim), Place::Server(candidate));
            self.world.skew(candidate, FROZEN);
            // What it promises must be on its way before its disk is lost.
            let leaves = |run: &Run| {
                run.has_promised(victim, candidate) && run.world.now >= run.world.servers[&victim].busy_until
            };
            if self.run_while(end, |run| !leaves(run)) && self.lose_disk(victim) {
                self.join(&[leader], &[victim, late]);
                self.join(&[victim], &[late]);
                self.plot = Some(Plot::LetIn(cast, self.soon(1_000_000, 3_000_000)));
                return;
            }
        }
        self.end(cast);
    }

    /// The victim has lost what it wrote last. A candidate hears of the votes from the old leader and dies with its own
    /// unwritten; the victim hears of the new ballot, and not of what is to be accepted in it.
    fn begin_doubt(&mut self, leader: NodeId, victim: NodeId, unaware: NodeId) {
        self.join(&[unaware], &[leader, victim]);
        self.world.lose_segment(victim);
        if self.world.servers[&victim].running.is_some() {
            return;
        }
        self.part(&[leader], &[victim]);
        self.world.start(victim);
        let election_us = self.plan.timeouts.election().as_micros() as u64;
        self.world.jump(unaware, 3 * election_us as i64);
        let end = Time(self.world.now.0 + 2 * election_us);
        let running = |run: &Run| run.world.servers[&unaware].running.is_some();
        if self.run_while(end, |run| !run.has_promised(unaware, unaware)) {
            self.world.hold(Place::Server(unaware), Place::Server(victim));
            self.world.arm(unaware, Harm::Fuse(0));
            if self.run_while(end, running) {
                self.world.note(|| format!("plot: {unaware} and {victim} are among themselves"));
                self.world.release_heartbeats();
                self.part(&[leader], &[unaware]);
                self.world.start(unaware);
                let until = self.soon(300_000, 1_500_000);
                self.plot = Some(Plot::Doubters { leader, victim, unaware, until });
                return;
            }
            self.world.disarm(unaware);
        }
        self.world.release();
        self.join(&[leader], &[victim]);
    }

    /// What a server is that runs.
    fn replica(&self, id: NodeId) -> Option<&Replica> {
        self.world.servers[&id].running.as_ref().map(|r| r.shard.replica())
    }

    /// Whether a server runs whose latest promise is to this candidate.
    fn has_promised(&self, id: NodeId, candidate: NodeId) -> bool {
        self.replica(id).is_some_and(|r| r.promised().leader() == Some(candidate))
    }

    /// Lets things happen one by one while something holds; false if it still does when time is up.
    fn run_while(&mut self, end: Time, holds: impl Fn(&Run) -> bool) -> bool {
        while holds(self) {
            if self.world.now >= end || !self.world.step() {
                return false;
            }
        }
        true
    }

    /// A server dies, and its disk is replaced at once; false if its cluster could not do without it.
    fn lose_disk(&mut self, id: NodeId) -> bool {
        if self.world.servers[&id].running.is_none() || !self.world.can_spare(id) {
            return false;
        }
        self.world.stop(id, false, false);
        self.world.wipe(id);
        self.world.start(id);
        self.world.replace_disk(id);
        true
    }

    fn soon(&mut self, at_least_us: u64, below_us: u64) -> Time {
        Time(self.world.now.0 + at_least_us + self.below(below_us - at_least_us))
    }

    /// No two of these hear each other any more.
    pub(super) fn part(&mut self, some: &[NodeId], others: &[NodeId]) {
        for (a, b) in pairs(some, others) {
            self.world.network.cut(a, b);
        }
    }

    fn join(&mut self, some: &[NodeId], others: &[NodeId]) {
        for (a, b) in pairs(some, others) {
            self.world.network.uncut(a, b);
        }
    }
}

fn pairs(some: &[NodeId], others: &[NodeId]) -> Vec<(Place, Place)> {
    let there = some.iter().flat_map(|a| others.iter().map(|b| (Place::Server(*a), Place::Server(*b))));
    there.flat_map(|(a, b)| [(a, b), (b, a)]).collect()
}
