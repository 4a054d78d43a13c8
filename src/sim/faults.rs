//! Harm and relief, step by step, as the plan's swarm has it.

use crate::sim::chaos::{Clogged, Run};
use crate::sim::disk::Doom;
use crate::sim::network::Place;
use crate::sim::server::Harm;
use crate::types::NodeId;

impl Run {
    pub(super) fn harm(&mut self) {
        self.harm_servers();
        self.harm_disks();
        self.harm_clocks();
        self.harm_network();
        self.harm_coordinators();
        self.harm_memories();
    }

    fn harm_servers(&mut self) {
        if self.chance(self.plan.swarm.crash) {
            let id = self.any_server();
            if self.world.servers[&id].running.is_some() {
                self.world.crash(id);
            }
        }
        self.harm_sender();
        if self.plan.swarm.leave > 0 && self.chance(self.plan.swarm.leave) {
            let id = if self.world.rng.one_in(2) { self.any_leader() } else { self.any_server() };
            self.world.leave(id);
        }
        self.world.stop_leaving();
        if self.chance(self.plan.swarm.fail) {
            let id = self.any_server();
            self.world.fail(id);
        }
        if self.chance(self.plan.swarm.stall) {
            let id = self.any_server();
            let length_us = 100_000 + self.world.rng.below(3_000_000);
            self.world.stall(id, length_us);
            // Its clients still reach it while its cluster moves on: what it says when it wakes may be stale (P5).
            if self.world.rng.one_in(2) {
                let topology = self.world.options.topology;
                let members = topology.servers_of(topology.shard_of_server(id));
                let peers: Vec<NodeId> = members.filter(|peer| *peer != id).collect();
                self.part(&[id], &peers);
            }
        }
    }

    /// Who sends a snapshot dies on the way, now and then.
    fn harm_sender(&mut self) {
        let running = self.world.servers.values().filter_map(|server| server.running.as_ref());
        let Some(sender) = running.filter_map(|running| running.shard.receives_from()).next() else { return };
        if self.world.servers[&sender].running.is_some() && self.chance(100) {
            self.world.crash(sender);
        }
    }

    fn harm_disks(&mut self) {
        if self.chance(self.plan.swarm.harm) {
            let id = self.any_server();
            let n = 1 + self.world.rng.below(12);
            let harm = match self.world.rng.below(8) {
                0 => Harm::FailWrite(n),
                1 => Harm::FailSync(n),
                2 | 3 => Harm::BeforeRelease,
                _ => Harm::Fuse(n),
            };
            self.world.arm(id, harm);
        }
        if self.plan.swarm.overwrite > 0 && self.chance(self.plan.swarm.overwrite) {
            let id = self.any_server();
            self.world.arm(id, Harm::Overwriting(Doom::PowerGoes));
        }
        if self.chance(self.plan.swarm.slow_disk) {
            let id = self.any_server();
            let slowness = 10 + self.world.rng.below(100);
            self.world.slow_disk(id, slowness);
        }
        if self.plan.swarm.full > 0 && self.chance(self.plan.swarm.full) {
            self.fill_disks();
        }
        // What nobody else's log here leads up to is lost as soon as it is there.
        let fresh =
            self.world.servers.values_mut().find_map(|s| std::mem::take(&mut s.installed).then_some(s.id));
        if let Some(id) = fresh
            && self.plan.swarm.damage > 0
            && self.world.can_spare(id)
        {
            self.world.damage(id, &[".snap"]);
        }
        if self.plan.swarm.damage > 0 && self.chance(500) {
            self.world.spoil_wanted();
        }
        if self.plan.swarm.damage > 0 && self.chance(self.plan.swarm.damage.div_ceil(4)) {
            let topology = self.world.options.topology;
            let server = self.any_server();
            self.world.helix(topology.shard_of_server(server));
        }
        let (wipe, damage) = (self.chance(self.plan.swarm.wipe), self.chance(self.plan.swarm.damage));
        if wipe || damage {
            let id = self.any_server();
            let server = &self.world.servers[&id];
            if !server.is_gone() && self.world.can_spare(id) {
                if !wipe {
                    let kinds: &[&str] =
                        if self.world.rng.one_in(4) { &["mark"] } else { &[".seg", ".snap"] };
                    self.world.damage(id, kinds);
                } else if server.running.is_none() {
                    self.world.wipe(id);
                }
            }
        }
    }

    fn harm_memories(&mut self) {
        if self.plan.swarm.mislead > 0 && self.chance(self.plan.swarm.mislead) {
            let id = self.any_server();
            self.world.mislead(id);
        }
    }

    /// One disk fills up, or those of a whole cluster: whatever else lies there takes all space but a little.
    fn fill_disks(&mut self) {
        let id = self.any_server();
        let topology = self.world.options.topology;
        let all = self.world.rng.one_in(2);
        for server in topology.servers_of(topology.shard_of_server(id)).filter(|s| all || *s == id) {
            let spare = self.below(2 * self.plan.segment_bytes);
            self.world.fill_disk(server, spare);
        }
    }

    fn harm_clocks(&mut self) {
        if self.chance(self.plan.swarm.skew) {
            let rate = [500_000, 900_000, 999_000, 1_001_000, 1_100_000, 2_000_000][self.below(6) as usize];
            match self.any_place() {
                Place::Server(id) => self.world.skew(id, rate),
                Place::Client(id) => {
                    let now = self.world.now;
                    self.world.clients.entry(id).and_modify(|c| c.clock.run_at(now, rate));
                }
            }
        }
        if self.chance(self.plan.swarm.jump) {
            let id = self.any_server();
            let by = self.below(2_000_000) as i64;
            let by = if self.world.rng.one_in(2) { by } else { -by };
            self.world.jump(id, by);
        }
    }

    fn harm_network(&mut self) {
        if self.chance(self.plan.swarm.partition) {
            self.world.partition();
        }
        if self.chance(self.plan.swarm.flap) {
            self.flapping = self.world.flapping_pair();
        }
        if self.chance(self.plan.swarm.rupture) {
            self.world.rupture();
        }
        if self.chance(self.plan.swarm.haunt) {
            self.world.haunt();
        }
        if self.plan.swarm.lag > 0 && self.chance(self.plan.swarm.lag) {
            let id = self.any_leader();
            if self.world.rng.one_in(2) {
                self.world.silence(id);
                // It will have voted for what the others never hear of, and must write over that.
                if self.world.rng.one_in(2) {
                    self.world.arm(id, Harm::Overwriting(Doom::PowerGoes));
                }
            } else {
                let election_us = self.plan.timeouts.election().as_micros() as u64;
                let step_us = 5_000 + self.below(15_000);
                let steps = election_us * (2 + self.below(4)) / step_us;
                self.clogged = Some(Clogged { server: id, step_us, steps: steps.max(1) });
            }
        }
        if self.chance(self.plan.swarm.slow_network) {
            let place = self.any_place();
            let by_us = 1_000 + self.below(400_000);
            self.world.network.slow_down(place, by_us);
        }
    }

    fn harm_coordinators(&mut self) {
        if self.chance(self.plan.swarm.death)
            && let Some(client) = self.any_client()
        {
            self.world.kill_client(client);
            self.world.add_client();
        }
        if self.chance(self.plan.swarm.pause)
            && let Some(client) = self.any_client()
        {
            self.world.pause_client(client, true);
        }
    }

    pub(super) fn mend_network(&mut self) {
        self.world.network.mend();
        self.flapping.clear();
        self.clogged = None;
        self.give_up_plot();
    }

    pub(super) fn relieve(&mut self) {
        for id in self.world.options.topology.servers() {
            // Somebody watches over servers that die again and again.
            let watched = self.plan.swarm.relapse > 100 && self.world.servers[&id].running.is_none();
            if self.chance(if watched { 100 } else { self.plan.swarm.mend }) {
                self.bring_back(id);
            }
            if self.chance(self.plan.swarm.mend) {
                self.world.slow_disk(id, 1);
            }
            if self.plan.swarm.full > 0 && self.chance(self.plan.swarm.mend) {
                self.world.free_disk(id);
            }
        }
        if self.chance(self.plan.swarm.mend) {
            self.mend_network();
        }
        let paused: Vec<u32> =
            self.world.clients.iter().filter(|(_, c)| c.paused).map(|(id, _)| *id).collect();
        for client in paused {
            if self.chance(self.plan.swarm.mend) {
                self.world.pause_client(client, false);
            }
        }
    }

    fn bring_back(&mut self, id: NodeId) {
        if self.world.servers[&id].lost {
            if self.chance(200) {
                self.world.replace_disk(id);
            }
            return;
        }
        if self.world.servers[&id].running.is_none() {
            let relapse = self.plan.swarm.relapse;
            if self.chance(relapse) {
                let often = relapse > 100;
                let n = self.below(if often { 16 } else { 6 });
                // The first sync of a start is that of what it cuts.
                let harm = match often && self.world.rng.one_in(2) {
                    true => Harm::FailSync(1 + n / 8),
                    false => Harm::Fuse(n),
                };
                self.world.arm(id, harm);
            }
            self.world.start(id);
        } else {
            self.world.recover(id);
        }
    }
}
