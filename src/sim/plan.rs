//! What one seed decides: the bank, the weather, which faults there are and how often (a *swarm*: most runs know only
//! some of the faults, so that one fault does not always hide what another would show).

use std::time::Duration;

use crate::config::{Limits, Timeouts, Topology};
use crate::sim::network::Weather;
use crate::storage::Retention;
use crate::workload::SplitMix64;

/// How often each fault strikes: chances per thousand in each step of ten milliseconds.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// A server loses its power, or its process dies.
    pub crash: u64,
    /// A server is made to die at one of its next writes or syncs, or of a failing one.
    pub harm: u64,
    /// A server is made to lose its power when it next writes over votes.
    pub overwrite: u64,
    /// A server is told to stop.
    pub leave: u64,
    /// A server that starts is made to die soon again; chances per thousand and start.
    pub relapse: u64,
    /// A server's cable is pulled.
    pub fail: u64,
    /// A server stands still.
    pub stall: u64,
    pub partition: u64,
    /// A link begins to come and go.
    pub flap: u64,
    /// Connections break.
    pub rupture: u64,
    /// An old frame arrives once more.
    pub haunt: u64,
    pub slow_network: u64,
    /// The way back to a server becomes slower and slower, like a queue that fills up.
    pub lag: u64,
    pub slow_disk: u64,
    /// A clock runs fast or slow.
    pub skew: u64,
    /// A clock jumps ahead or back.
    pub jump: u64,
    /// A disk fills up, or all disks of a cluster.
    pub full: u64,
    /// The disk of a stopped server is replaced by an empty one, or a bit of it flips.
    pub wipe: u64,
    pub damage: u64,
    /// A server starts again and reads a bit of its log wrongly.
    pub mislead: u64,
    /// A plot begins, one after the other.
    pub plot: u64,
    /// A coordinator dies, and another one takes its place.
    pub death: u64,
    /// A coordinator stands still.
    pub pause: u64,
    /// Something broken works again.
    pub mend: u64,
    /// Of these, how many use a session in which clients name their transfers.
    pub named: u64,
    /// Somebody asks for something; chances per thousand and attempt.
    pub submit: u64,
}

/// Everything that a seed decides before its run begins.
#[derive(Clone, Debug)]
pub struct Plan {
    pub topology: Topology,
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub coordinators: u64,
    pub weather: Weather,
    pub swarm: Swarm,
    /// How long a sync takes, at least and at most.
    pub sync_us: (u64, u64),
    pub segment_bytes: u64,
    pub retention: Retention,
    /// Whether power cuts tear most of what was not synced, and the log into lines instead of sectors.
    pub lines: bool,
    pub odd_clocks: bool,
    /// Reads among all requests, per thousand.
    pub reads: u64,
    /// What the initial balance and amounts under load are multiples of: in some worlds not every number fits into a byte.
    pub unit: u64,
    /// How long harm is done before everything heals.
    pub chaos_us: u64,
    /// The longest that a message takes once everything has healed: a steady network, but not always a fast one.
    pub steady_us: u64,
}

/// Where sessions that nobody uses expire at all, they do so after less than this.
pub const FORGETFUL_MS: u64 = 10_000;
/// What a message takes at most in a fast network.
pub const FAST_US: u64 = 600;

impl Plan {
    pub fn draw(seed: u64) -> Plan {
        let rng = &mut SplitMix64::new(seed ^ 0x5eed);
        let clusters = [1, 2, 2, 2, 3, 4][rng.below(6) as usize];
        let unit = if seed % 4 == 3 { 100 } else { 1 };
        let topology = Topology {
            clusters,
            servers_per_cluster: [1, 3, 3, 3, 3, 5][rng.below(6) as usize],
            accounts: u64::from(clusters) * 2 + rng.below(12),
            initial_balance: unit * (10 + rng.below(20)),
        };
        let storm = rng.one_in(2);
        let max_delay_us = 100 + rng.below(if storm { 100_000 } else { 3_000 });
        let weather = Weather {
            min_delay_us: 50,
            // A few networks are so slow that time-outs overtake answers.
            max_delay_us: if rng.one_in(20) { 2_000_000 } else { max_delay_us },
            loss: on(rng, 300),
            duplication: on(rng, 200),
            reorder: rng.one_in(2),
            straggle: on(rng, 30),
            keepsakes: on(rng, 50),
            bytes: rng.one_in(16),
        };
        let mut swarm = Swarm {
            crash: on(rng, 20),
            harm: on(rng, 30),
            overwrite: 0,
            leave: 0,
            relapse: 100,
            fail: on(rng, 20),
            stall: on(rng, 20),
            partition: on(rng, 15),
            flap: on(rng, 10),
            rupture: on(rng, 30),
            haunt: on(rng, 60),
            slow_network: on(rng, 8),
            lag: 0,
            slow_disk: on(rng, 8),
            skew: on(rng, 20),
            jump: on(rng, 20),
            full: 0,
            wipe: if rng.one_in(8) { 5 } else { 0 },
            damage: if rng.one_in(6) { 20 } else { 0 },
            mislead: 0,
            plot: 0,
            named: 0,
            death: on(rng, 30),
            pause: on(rng, 10),
            mend: 1 + rng.below(20),
            submit: 50 + rng.below(900),
        };
        let slow_disks = rng.one_in(4);
        let (mut timeouts, mut limits, coordinators) = (timeouts(rng), limits(rng), 1 + rng.below(4));
        let sync_us = (50, 100 + rng.below(if slow_disks { 30_000 } else { 1_000 }));
        // Small, so that segments change often; larger than any value that these clients bring about.
        let segment_bytes = 32_768 << rng.below(3);
        let (odd_clocks, reads) = (rng.one_in(2), 100 + rng.below(600));
        let chaos_us = 2_000_000 + rng.below(6_000_000);
        // What is drawn last leaves the rest of a seed as it was.
        swarm.overwrite = on(rng, 20);
        swarm.lag = on(rng, 20);
        if rng.one_in(4) {
            swarm.relapse = 800;
            swarm.crash = swarm.crash.max(10);
        }
        let lines = rng.one_in(2) || swarm.relapse > 100;
        // A campaign needs a round trip within an election time-out, a read and a probe one within theirs, a connection
        // within its own.
        let most = (timeouts.election_timeout_ms * 375).min(timeouts.read_timeout_ms * 300).min(120_000);
        let slow_us = 1000 + rng.below(most);
        let steady_us = match rng.below(4) {
            0 if limits == Limits::default() => slow_us,
            1 => slow_us.min(5_000),
            _ => FAST_US,
        };
        if rng.one_in(2) {
            // Long enough for a client that opens a session to use it in the steady network; no shorter.
            timeouts.session_idle_timeout_ms = 150 + rng.below(1_500) + steady_us / 50;
            let few = 1 + rng.below(6) as usize;
            limits.sessions = if rng.one_in(2) { few } else { limits.sessions };
        }
        let digest_slots = 1 + rng.below(6);
        if limits != Limits::default() {
            limits.digest_slots = digest_slots;
        }
        swarm.mislead = if rng.one_in(4) { 10 } else { 0 };
        let mut segment_bytes = segment_bytes;
        limits.reserve_bytes = segment_bytes / 8;
        // However many sessions clients leave behind: a value is no longer than a segment.
        limits.batch_bytes = limits.batch_bytes.min(segment_bytes as usize / 4);
        limits.frame_bytes = limits.frame_bytes.min(segment_bytes as usize / 4);
        if rng.one_in(4) {
            swarm.full = 5 + rng.below(25);
            // Disks are full only for who needs another segment: small ones, and a reserve of a few slots.
            segment_bytes = 12_288 + 4_096 * rng.below(3);
            limits = Limits {
                reserve_bytes: 1_000 + rng.below(2_000),
                batch_bytes: limits.batch_bytes.min(1_500),
                frame_bytes: limits.frame_bytes.min(1_500),
                group_max: limits.group_max.min(20),
                ..limits
            };
        }
        let retention = snapshots(rng, &mut limits);
        swarm.plot = if rng.one_in(2) { 40 } else { 0 };
        swarm.named = if rng.one_in(4) { 100 + rng.below(700) } else { 0 };
        swarm.leave = on(rng, 20);
        if swarm.named > 0 {
            // Names make a state long, and in a slow network each piece of it takes a round trip.
            limits.piece_bytes = limits.piece_bytes.max(64);
        }
        Plan {
            topology,
            timeouts,
            limits,
            coordinators,
            weather,
            swarm,
            sync_us,
            segment_bytes,
            retention,
            lines,
            odd_clocks,
            reads,
            unit,
            chaos_us,
            steady_us,
        }
    }
}

/// The usual time-outs in half of the runs. In the others they fit each other badly: recovery overtakes coordinators that
/// are alive and well, clients lose patience before servers do, or the other way round.
fn timeouts(rng: &mut SplitMix64) -> Timeouts {
    if rng.one_in(2) {
        return Timeouts::default();
    }
    let heartbeat_interval_ms = 10 + rng.below(60);
    Timeouts {
        heartbeat_interval_ms,
        election_timeout_ms: heartbeat_interval_ms * (3 + rng.below(6)),
        in_doubt_timeout_ms: 20 + rng.below(1500),
        read_timeout_ms: 100 + rng.below(5000),
        unreachable_timeout_ms: 100 + rng.below(2000),
        ..Timeouts::default()
    }
}

/// The usual bounds in half of the runs. In the others every one of them is met all the time.
fn limits(rng: &mut SplitMix64) -> Limits {
    if rng.one_in(2) {
        return Limits::default();
    }
    let frame_bytes = 100 + rng.below(1_000) as usize;
    Limits {
        window_slots: 1 + rng.below(6),
        batch_bytes: rng.below(300) as usize,
        tail_bytes: rng.below(2_000) as usize,
        catch_up_bytes: rng.below(500) as usize,
        // A queue must take the largest request.
        queue_bytes: frame_bytes + 400 + rng.below(1_500) as usize,
        waiting_reads: 2 + rng.below(20) as usize,
        recoveries: 1 + rng.below(4) as usize,
        session_window: 8 + rng.below(40),
        sessions: Limits::default().sessions,
        group_max: 1 + rng.below(8) as usize,
        frame_bytes,
        ..Limits::default()
    }
}

/// Snapshots so often that servers take many of them, in half of the runs, and so little log that many a server needs
/// one; in the others none.
fn snapshots(rng: &mut SplitMix64, limits: &mut Limits) -> Retention {
    if rng.one_in(2) {
        return Retention::default();
    }
    limits.digest_slots = limits.digest_slots.min(1 << rng.below(4));
    // Pieces so small that a transfer takes long.
    limits.piece_bytes = if rng.one_in(4) { 64 << rng.below(4) } else { 8 };
    limits.snapshot_bytes = 500 + rng.below(10_000);
    let audit_bytes = rng.below(2) * 40_000;
    // Old by the clock of these short lives.
    match rng.below(3) {
        0 => Retention {
            audit_bytes: u64::MAX,
            audit_age: Some(Duration::from_millis(200 + rng.below(2_000))),
        },
        _ => Retention { audit_bytes, audit_age: None },
    }
}

/// In half of the runs nothing, in the others something below `most`.
fn on(rng: &mut SplitMix64, most: u64) -> u64 {
    if rng.one_in(2) { rng.below(most) } else { 0 }
}
