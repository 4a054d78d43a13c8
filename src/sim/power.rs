//! What is done to servers: power cuts, restarts, pulled cables, standstills, broken disks, odd clocks.

use std::collections::BTreeSet;

use crate::drive;
use crate::shard::Input;
use crate::sim::checker::Observed;
use crate::sim::coverage::Seen;
use crate::sim::disk::{Doom, MisreadLog, SimDisk};
use crate::sim::network::{Packet, Place};
use crate::sim::promises::Told;
use crate::sim::server::{Ailment, Harm, Running, Server};
use crate::sim::world::{Connection, Event, Options, World};
use crate::storage::{Expected, Identity, Kept, StorageError, Unsynced, Wal, survey};
use crate::types::{ClientId, NodeId, Slot, Time};

impl World {
    /// The power goes, or only the process dies: what was not synced is lost wholly, in part, or not at all.
    pub fn crash(&mut self, id: NodeId) {
        // Once a bit has flipped, a mark that goes back in time would hide it: S1 promises nothing then.
        let power = self.rng.one_in(2) && self.servers[&id].ailment.is_none();
        self.stop(id, power, false);
    }

    /// A server is told to stop, and takes its time to leave the lead to another one.
    pub fn leave(&mut self, id: NodeId) {
        if self.servers[&id].is_up() && self.servers[&id].leaves_by.is_none() {
            self.note(|| format!("{id} is told to stop"));
            let by = Time(self.now.0 + 2_000_000);
            self.server(id).leaves_by = Some(by);
            self.push(id, Input::Leave);
        }
    }

    /// Stops those that were told to and have left, or whose time is up.
    pub fn stop_leaving(&mut self) {
        let now = self.now;
        let done = |server: &&Server| {
            let left = server.running.as_ref().is_some_and(|r| r.shard.has_left(server.clock.local(now)));
            server.leaves_by.is_some_and(|by| left && server.inbox.is_empty() || by <= now)
        };
        let all: Vec<NodeId> = self.servers.values().filter(done).map(|s| s.id).collect();
        all.into_iter().for_each(|id| self.stop(id, false, false));
    }

    /// The power goes in the middle of a write: a part of it is kept.
    pub fn tear(&mut self, id: NodeId) {
        self.stop(id, true, true);
    }

    pub(super) fn stop(&mut self, id: NodeId, power: bool, tears: bool) {
        self.note(|| format!("{id} crashes"));
        self.hash.add(&("crash", self.now, id));
        let mut dice = self.rng.clone();
        self.rng.next_u64();
        let lines = self.options.lines;
        let server = self.servers.get_mut(&id).expect("a server of this topology");
        self.coverage.see_if(server.running.is_some(), Seen::Crashed);
        // Until it has run again, the mark may be older than the log.
        server.misled = false;
        server.wrong_at = None;
        // That it was let in may be lost with what else was not on disk.
        server.rejoining = server.disks > 0;
        server.healing = server.flipped;
        server.power_lost = power || server.power_lost && server.running.is_none();
        let writing = server.running.as_ref().is_some_and(|running| running.wal.has_work());
        self.coverage.see_if(writing, Seen::DiedWritingSnapshot);
        server.running = None;
        server.leaves_by = None;
        server.failed = false;
        server.dies_before_release = false;
        server.overwriting = Doom::Spared;
        server.inbox.clear();
        server.busy_until = Time(0);
        server.disk.set_fuse(None);
        if power {
            let coverage = &mut self.coverage;
            server.disk.inner.crash(|unsynced| {
                // The mark lies within a sector, and relies on it.
                let log = match unsynced {
                    Unsynced::Write { file, len, .. } if file.ends_with(".seg") => Some(len),
                    _ => None,
                };
                let fate = match (tears, lines) {
                    (true, _) => 2,
                    (false, true) => dice.below(8).min(2),
                    (false, false) => dice.below(3),
                };
                let (kept, sight) = match (fate, log) {
                    (0, _) => (Kept::Lost, Seen::PowerLost),
                    (1, _) => (Kept::Whole, Seen::PowerSpared),
                    (_, Some(len)) if lines || tears => {
                        // In order, everything up to some point, or anyhow.
                        let point = dice.below((len as u64 / 64 + 1).min(64));
                        let in_order = dice.one_in(4) != tears;
                        let mask = if in_order { (1 << point) - 1 } else { dice.next_u64() };
                        (Kept::Lines(mask), Seen::PowerToreLines)
                    }
                    _ => (Kept::Sectors(dice.next_u64()), Seen::PowerTore),
                };
                coverage.see_if(matches!(unsynced, Unsynced::Write { .. }), sight);
                kept
            });
        } else {
            server.disk.inner.kill();
        }
        self.wakes.remove(&Place::Server(id));
        self.recoverers.values_mut().for_each(|all| _ = all.remove(&id));
        self.drop_clients(id);
        self.drop_connections(Place::Server(id));
    }

    /// Everybody who had a connection to this server learns that it is gone.
    fn drop_clients(&mut self, id: NodeId) {
        let mut gone: BTreeSet<(ClientId, Place)> =
            std::mem::take(&mut self.server(id).clients).into_iter().collect();
        // Those whose opening is still on its way learn it as well.
        gone.extend(self.connections.iter().filter(|((_, s), _)| *s == id).map(|((o, _), c)| (c.id, *o)));
        for (connection, owner) in gone {
            let at = Time(self.now.0 + 1 + self.rng.below(20_000));
            // A cable that was pulled carries no news; the operating system's time-outs do.
            let open = self.connections.get(&(owner, id)).is_some_and(|c| c.id == connection);
            if open {
                self.connections.insert((owner, id), Connection { id: connection, open: false });
                self.schedule(at, Event::ConnectTimeout { owner, server: id, connection });
            }
        }
    }

    /// This place's own connections are gone; the servers at their ends notice.
    pub(super) fn drop_connections(&mut self, owner: Place) {
        let mine: Vec<NodeId> =
            self.connections.keys().filter(|(o, _)| *o == owner).map(|(_, s)| *s).collect();
        for server in mine {
            if let Some(connection) = self.connections.remove(&(owner, server)) {
                let at = Time(self.now.0 + 1 + self.rng.below(20_000));
                let packet = Packet::Close(connection.id);
                self.schedule(at, Event::Arrive { from: owner, to: Place::Server(server), packet });
            }
        }
    }

    /// Starts a server from its disk; false if it does not come up.
    pub fn start(&mut self, id: NodeId) -> bool {
        let Options { topology, timeouts, limits, retention, .. } = self.options;
        let (now, random) = (self.now, self.rng.next_u64());
        let server = self.servers.get_mut(&id).expect("a server of this topology");
        assert!(server.running.is_none(), "{id} runs already");
        let local = server.clock.local(now);
        server.disk.inner.set_time(now.0);
        let expected = Expected { cluster_id: Some(1), topology, server: id };
        let mut sights = Vec::new();
        let misreads = std::mem::take(&mut server.misreads);
        let mut misread = None;
        let (mut damaged, mut named) = (false, false);
        let started = Wal::open(server.disk.clone(), expected).and_then(|(mut wal, recovered)| {
            sights.extend(recovered.torn.is_some().then_some(Seen::TornTailCut));
            sights.extend(recovered.snapshot.is_some().then_some(Seen::StartedFromSnapshot));
            let snapshots = |text: &String| text.starts_with("snapshot-");
            sights.extend(recovered.damaged.iter().any(snapshots).then_some(Seen::SnapshotDamaged));
            damaged = !recovered.damaged.iter().all(snapshots);
            named = !recovered.damaged.is_empty();
            sights.extend(damaged.then_some(Seen::LogDamaged));
            sights.extend(recovered.loss.is_some().then_some(Seen::VotesLost));
            sights.extend((!recovered.votes.is_empty()).then_some(Seen::Restarted));
            let nothing = if misreads { recovered.decided } else { Slot::ZERO };
            let mut log = MisreadLog::new(&mut wal, nothing);
            let shard = drive::restore(id, topology, (timeouts, limits), local, random, &mut log, recovered)?;
            misread = log.misread.map(|(slot, _)| slot);
            let io = |source| StorageError::Io { file: "the log".into(), doing: "retire it", source };
            Ok(Running { shard, wal: wal.with_retention(retention).map_err(io)? })
        });
        sights.into_iter().for_each(|sight| self.coverage.see(sight));
        match (started, server.ailment) {
            (Ok(_), Some(Ailment::Wiped)) => panic!("S3: {id} starts from a wiped disk"),
            (Ok(running), ailment) => {
                if let Some(Ailment::Damaged(harm)) = ailment.filter(|_| named) {
                    self.coverage.see(harm.sight());
                    // No power is cut where damage is not found yet: it came after that.
                    self.coverage.see_if(server.power_lost, Seen::FoundAfterPower);
                }
                server.ailment = None;
                if damaged && let Some(slot) = vouched(&server.disk) {
                    server.told.forgive(running.shard.replica().promised(), slot);
                    self.checker.acceptances.forget(id, slot);
                }
                server.told.check(&running.shard);
                let replica = running.shard.replica();
                server.healing = replica.is_repairing();
                let (promised, decided, last) =
                    (replica.promised(), replica.decided(), running.wal.last_slot());
                let view =
                    Observed { restored: true, durable: true, misled: misread.is_some(), ailing: false };
                self.checker.observe(&running.shard, view, |slot| running.value(slot));
                server.misled = misread.is_some();
                server.ever_misled |= server.misled;
                self.coverage.see_if(server.misled, Seen::Misled);
                server.running = Some(running);
                self.note(|| {
                    format!("{id} starts: promised {promised}, decided {decided}, log up to {last}")
                });
                self.wake(Place::Server(id), now);
                true
            }
            (Err(StorageError::NotFormatted), Some(Ailment::Wiped)) => {
                self.coverage.see(Seen::DiskWiped);
                self.lose(id, "its disk was wiped");
                false
            }
            (Err(e), Some(Ailment::Damaged(harm))) if refuses(&e) => {
                self.coverage.see(Seen::DiskDamaged);
                self.coverage.see(harm.sight());
                self.lose(id, &e.to_string());
                false
            }
            (Err(StorageError::Io { source, .. }), _) => {
                self.note(|| format!("{id} does not start: {source}"));
                self.coverage.see(Seen::DiedInRecovery);
                self.crash(id);
                false
            }
            (Err(e), ailment) => panic!("S1: {id} ({ailment:?}) finds its own log unusable: {e}"),
        }
    }

    /// A server that will not come back.
    fn lose(&mut self, id: NodeId, why: &str) {
        self.note(|| format!("{id} refuses to start for good: {why}"));
        self.server(id).lost = true;
    }

    /// Whether a cluster could do without this server as well: what is lost or ailing stays a minority.
    pub fn can_spare(&self, id: NodeId) -> bool {
        let topology = self.options.topology;
        let members = topology.servers_of(topology.shard_of_server(id));
        let gone = members.filter(|m| self.servers[m].is_gone()).count();
        gone < topology.servers_per_cluster as usize - topology.majority()
    }

    /// A server that was lost comes back with a new disk, as a learner (S3).
    pub fn replace_disk(&mut self, id: NodeId) {
        let Options { topology, segment_bytes, .. } = self.options;
        let server = self.server(id);
        assert!(server.lost && server.running.is_none(), "only disks of servers that are lost are replaced");
        (server.lost, server.ailment, server.flipped) = (false, None, false);
        server.disk = SimDisk::default();
        server.rejoining = true;
        server.disks += 1;
        // It has told nobody anything that it remembers.
        server.told = Told::default();
        let incarnation = u128::from(id.0) | u128::from(server.disks) << 16;
        let identity = Identity { cluster_id: 1, topology, server: id, incarnation, founder: false };
        Wal::format(server.disk.clone(), identity, segment_bytes).expect("an empty disk");
        self.checker.acceptances.forget(id, Slot::ZERO);
        self.note(|| format!("{id} gets a new disk"));
        self.start(id);
    }

    /// A stopped server's disk is replaced by an empty one.
    pub fn wipe(&mut self, id: NodeId) {
        self.note(|| format!("the disk of {id} is wiped"));
        let server = self.server(id);
        assert!(server.running.is_none(), "only stopped servers are wiped");
        server.disk = SimDisk::default();
        server.ailment = Some(Ailment::Wiped);
    }

    /// A server's process dies, and when it starts again its memory fails it: its state is wrong from some slot on (P4).
    /// Only a minority of a cluster ever, and nobody who leads: what a leader with a wrong state says is wrong.
    pub fn mislead(&mut self, id: NodeId) {
        let topology = self.options.topology;
        let members = topology.servers_of(topology.shard_of_server(id));
        let wrong = |m: &NodeId| self.servers[m].ever_misled || self.servers[m].is_gone() || *m == id;
        let leads = self.servers[&id].running.as_ref().is_some_and(|r| r.shard.replica().is_leader());
        if members.filter(wrong).count() >= topology.majority() || self.servers[&id].is_gone() || leads {
            return;
        }
        if self.servers[&id].running.is_some() {
            self.crash(id);
        }
        self.server(id).misreads = true;
        self.start(id);
        self.note(|| format!("{id} has misread its log"));
    }

    /// Whether the state of a server was wrong after an agreed slot and still is.
    pub fn must_stop(&self, id: NodeId) -> bool {
        let server = &self.servers[&id];
        let (Some(running), Some(wrong_at)) = (&server.running, server.wrong_at) else { return false };
        let every = self.options.limits.digest_slots;
        let agreed = running.shard.bank().applied().0 / every * every;
        self.checker.is_wrong(&running.shard) && wrong_at.0 <= agreed
    }

    /// Pulls the cable of a server and stops its timers; its memory stays.
    pub fn fail(&mut self, id: NodeId) {
        if !self.servers[&id].is_up() {
            return;
        }
        self.note(|| format!("{id} fails"));
        self.drop_clients(id);
        self.drop_connections(Place::Server(id));
        self.hash.add(&("fail", self.now, id));
        self.recoverers.values_mut().for_each(|all| _ = all.remove(&id));
        let server = self.server(id);
        server.failed = true;
        // Its thread closes every connection and tells its core nothing of them, only that it is back.
        server.inbox = vec![Input::Resume];
        self.wakes.remove(&Place::Server(id));
    }

    pub fn recover(&mut self, id: NodeId) {
        if self.servers[&id].failed {
            self.note(|| format!("{id} recovers"));
            self.coverage.see(Seen::CutOffAndBack);
            self.server(id).failed = false;
            self.wake(Place::Server(id), self.now);
        }
    }

    /// A server stands still, as if its process were stopped: what arrives waits, and is handled in one turn.
    pub fn stall(&mut self, id: NodeId, length_us: u64) {
        let until = Time(self.now.0 + length_us);
        let server = self.server(id);
        server.busy_until = server.busy_until.max(until);
        server.stalled = true;
        self.note(|| format!("{id} stands still until {until:?}"));
    }

    /// Everything its disk does takes so many times as long.
    pub fn slow_disk(&mut self, id: NodeId, slowness: u64) {
        self.server(id).disk_slowness = slowness;
    }

    /// Something else fills its disk up, so that no more than `spare` bytes are left.
    pub fn fill_disk(&mut self, id: NodeId, spare: u64) {
        let disk = &self.server(id).disk.inner;
        disk.set_capacity(Some(disk.used() + spare));
        self.note(|| format!("the disk of {id} is full but for {spare} bytes"));
    }

    pub fn free_disk(&mut self, id: NodeId) {
        let server = self.server(id);
        if server.disk.inner.is_bounded() {
            server.disk.inner.set_capacity(None);
            self.note(|| format!("the disk of {id} has space again"));
        }
    }

    /// Its clock runs at `rate` millionths of true time from now on.
    pub fn skew(&mut self, id: NodeId, rate: u64) {
        let now = self.now;
        self.note(|| format!("the clock of {id} runs at {rate} millionths"));
        self.server(id).clock.run_at(now, rate);
        self.wake(Place::Server(id), now);
    }

    /// Its clock jumps.
    pub fn jump(&mut self, id: NodeId, by_us: i64) {
        let now = self.now;
        self.note(|| format!("the clock of {id} jumps by {by_us} µs"));
        let server = self.server(id);
        server.clock.jump(now, by_us);
        server.jumped = Some(by_us > 0);
        self.wake(Place::Server(id), now);
    }

    /// Arranges for a server to die by itself.
    pub fn arm(&mut self, id: NodeId, harm: Harm) {
        let server = self.server(id);
        match harm {
            Harm::Fuse(operations) => server.disk.set_fuse(Some(operations)),
            Harm::FailWrite(n) => server.disk.inner.fail_write(n),
            Harm::FailSync(n) => server.disk.inner.fail_sync(n),
            Harm::BeforeRelease => server.dies_before_release = true,
            Harm::Overwriting(doom) => server.overwriting = doom,
        }
    }

    /// Spares a server what it was armed with, as far as it happens between two operations.
    pub fn disarm(&mut self, id: NodeId) {
        let server = self.server(id);
        server.overwriting = Doom::Spared;
        server.disk.set_fuse(None);
    }
}

/// The lowest slot above which a record ends doubts (S2).
fn vouched(disk: &SimDisk) -> Option<Slot> {
    let mut lowest: Option<Slot> = None;
    let seen = survey(disk, |seen| {
        if seen.kind == "vouch" {
            lowest = Some(lowest.map_or(seen.slot, |slot| slot.min(seen.slot)));
        }
    });
    lowest.filter(|_| seen.is_ok())
}

/// Whether a server says that its files are not what it wrote. A flipped bit may well hit the number of a version.
fn refuses(e: &StorageError) -> bool {
    matches!(
        e,
        StorageError::Damaged { .. } | StorageError::WrongVersion { .. } | StorageError::WrongIdentity { .. }
    )
}
