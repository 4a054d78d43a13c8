//! What everything costs here and now.
//!
//! 1. *The disk:* the write-ahead log that ships writes small and large groups into the data directory. What the processor does
//!    for that is told apart from what the disk takes.
//! 2. *The code that ships:* simulations of several shapes, in which every turn of a server's core and of clients is timed on
//!    this processor. What each kind of work costs is fitted to all turns together.
//! 3. *Sockets and event loops:* three short runs of one real cluster, of which the kernel says how long leader, followers and
//!    clients ran. What is left when the code and the log are taken off is for turns, messages and bytes, of which the simulation
//!    of the same run says how many there were.
//! 4. *Waking up:* what one transfer at a time takes longer than all of that together, in equal parts for its four messages.
//!
//! No run with more than one cluster, and none with transfers across shards, is used.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::bench::figures::{CLIENTS, Figures};
use crate::bench::predict::work::{BYTE, Costs, Fit, LOG_BYTE, MESSAGE, SYNC, TURN, Work};
use crate::bench::predict::world::{Machines, Run, Setup, processor_ns, run};
use crate::config::{Topology, limits};
use crate::storage::{FileDisk, Identity, Wal};
use crate::types::{Ballot, NodeId, Record, Slot, Value};

/// Groups that are written to measure the disk, and how many of the first ones do not count.
const SMALL: u64 = 300;
const LARGE: u64 = 60;
const WARM: u64 = 20;
/// Bytes of a slot that holds one transfer, and of one that is full.
const SMALL_BYTES: usize = 56;
const LARGE_BYTES: usize = 32 + 24 * limits::GROUP_MAX;

/// Clients, transfers in a batch and batches under way on each, of the real runs that costs are taken from: one transfer at a
/// time, many small requests, few large ones.
pub const REAL: [(u32, usize, usize); 3] = [(1, 1, 1), (64, 1, 1), (1, limits::GROUP_MAX, 4)];
/// Messages that a transfer waits for, one after the other: to the leader, to a follower, and both ways back.
const HOPS: f64 = 4.0;

/// What the log costs.
pub struct Disk {
    pub sync_ns: Vec<f64>,
    pub ns_per_byte: f64,
    /// Nanoseconds of a processor.
    pub processor_per_sync: f64,
    pub processor_per_byte: f64,
}

/// Writes a log in `dir`.
///
/// # Errors
///
/// The disk cannot be written.
pub fn disk(dir: &Path) -> io::Result<Disk> {
    let identity = Identity {
        cluster_id: 1,
        topology: Topology::default(),
        server: NodeId(1),
        incarnation: 1,
        founder: true,
    };
    let files = FileDisk::open(dir)?;
    let mut log = Wal::format(files, identity, limits::SEGMENT_BYTES).map_err(io::Error::other)?;
    let mut slot = 0;
    let mut write = |bytes: usize, groups: u64| {
        let (value, mut taken) = (Value(vec![7; bytes].into()), Vec::new());
        for n in 0..groups {
            slot += 1;
            let (begun, ran) = (Instant::now(), processor_ns());
            log.append(&Record::Accept {
                slot: Slot(slot),
                ballot: Ballot::new(1, NodeId(1)),
                value: value.clone(),
            });
            let stats = log.commit()?;
            log.prepare_ahead()?;
            let ran = processor_ns() - ran;
            if n >= WARM {
                let waited = (begun.elapsed().as_nanos() as f64 - ran).max(0.0);
                taken.push((waited, ran, stats.bytes as f64));
            }
        }
        Ok::<_, io::Error>(taken)
    };
    let (small, large) = (write(SMALL_BYTES, SMALL)?, write(LARGE_BYTES, LARGE)?);
    let mean = |all: &[(f64, f64, f64)], of: fn(&(f64, f64, f64)) -> f64| {
        all.iter().map(of).sum::<f64>() / all.len() as f64
    };
    let bytes = mean(&large, |l| l.2) - mean(&small, |s| s.2);
    let per_byte = |of: fn(&(f64, f64, f64)) -> f64| ((mean(&large, of) - mean(&small, of)) / bytes).max(0.0);
    Ok(Disk {
        sync_ns: small.iter().map(|s| s.0).collect(),
        ns_per_byte: per_byte(|group| group.0),
        processor_per_sync: mean(&small, |s| s.1),
        processor_per_byte: per_byte(|group| group.1),
    })
}

/// Costs that are of the right order, for simulations in which the code is timed.
pub fn guess(disk: &Disk) -> Costs {
    let mut io = Work::default();
    [(TURN, 4_000.0), (MESSAGE, 3_000.0), (BYTE, 0.5)].into_iter().for_each(|(kind, ns)| io.add(kind, ns));
    Costs {
        server: io,
        client: io,
        sync_ns: disk.sync_ns.clone(),
        disk_ns_per_byte: disk.ns_per_byte,
        wake_ns: 10_000.0,
    }
}

/// What the code that ships costs, of servers and of clients, without sockets and disk. `shape` is that of one cluster.
///
/// # Errors
///
/// A simulation fails.
pub fn code(shape: Setup, disk: &Disk) -> Result<[Work; 2], String> {
    let guess = guess(disk);
    let mut fits = [Fit::default(), Fit::default()];
    let spans = (Duration::from_millis(3), Duration::from_millis(1));
    // Clusters, clients, batch, batches under way, share across, span. Many clusters tell what a link costs.
    for (clusters, clients, batch, in_flight, cross, span) in [
        (1, 1, 1, 1, 0.0, 100),
        (1, 64, 1, 1, 0.0, 30),
        (1, 1, 8_190, 4, 0.0, 100),
        (2, 2, 8_190, 2, 0.5, 40),
        (2, 2, 100, 4, 0.1, 30),
        (3, 3, 100, 4, 1.0, 20),
        (30, 30, 100, 4, 0.1, 3),
        (30, 30, 20, 4, 1.0, 5),
    ] {
        let setup = Setup {
            topology: with_clusters(shape.topology, clusters),
            clients,
            batch,
            in_flight,
            cross,
            warm_up: spans.0,
            span: spans.1 * span,
            ..shape
        };
        run(setup, &guess, Some(&mut fits))?;
    }
    Ok(fits.map(|fit| fit.solve()))
}

/// The same bank with more clusters, and as many accounts for each.
pub fn with_clusters(topology: Topology, clusters: u16) -> Topology {
    let accounts = topology.accounts / u64::from(topology.clusters) * u64::from(clusters);
    Topology { clusters, accounts, ..topology }
}

/// Of real runs and simulations of the same, for each role: nanoseconds of a transfer, the work that goes into them, and whether
/// it is that of clients.
fn rows(measured: &[Figures], simulated: &[Run]) -> Vec<(f64, Work, bool)> {
    let mut rows = Vec::new();
    for (figures, run) in measured.iter().zip(simulated) {
        let ns = |name: &String| figures.processor_ns_of(name).unwrap_or(0.0);
        let servers = || figures.costs.keys().filter(|name| *name != CLIENTS).map(ns);
        // Nobody else has so much to do.
        let leader = servers().fold(0.0, f64::max);
        rows.push((leader, run.leaders, false));
        rows.push((servers().sum::<f64>() - leader, run.followers, false));
        rows.push((ns(&CLIENTS.to_string()), run.clients, true));
    }
    rows.retain(|(ns, ..)| *ns > 0.0);
    rows
}

/// All costs, from what was measured of the disk, of the code, and in real runs of [`REAL`].
///
/// # Errors
///
/// A simulation fails.
pub fn costs(shape: Setup, disk: &Disk, code: &[Work; 2], measured: &[Figures]) -> Result<Costs, String> {
    let [mut server, client] = *code;
    server.add(SYNC, disk.processor_per_sync);
    server.add(LOG_BYTE, disk.processor_per_byte);
    let mut costs = guess(disk);
    let mut io = costs.server;
    let simulate = |costs: &Costs| -> Result<Vec<Run>, String> {
        let setup = |(clients, batch, in_flight)| Setup { clients, batch, in_flight, ..shape };
        REAL.iter().map(|real| run(setup(*real), costs, None)).collect()
    };
    // How many turns and messages there are depends on what they cost: a few rounds agree.
    for _ in 0..4 {
        costs.server = server;
        costs.client = client;
        costs.server.add_all(&io);
        costs.client.add_all(&io);
        costs.wake_ns = 0.0;
        let simulated = simulate(&costs)?;
        costs.wake_ns =
            ((measured[0].measured.batch.quantile(0.5) as f64 - simulated[0].p50 as f64) * 1_000.0 / HOPS)
                .max(0.0);
        let simulated = simulate(&costs)?;
        let mut fit = Fit::default();
        for (ns, work, clients) in rows(measured, &simulated) {
            let known = work.at(if clients { &client } else { &server });
            let mut left = Work::default();
            [TURN, MESSAGE, BYTE].into_iter().for_each(|kind| left.add(kind, work.0[kind]));
            fit.add(&left, (ns - known).max(0.0), ns);
        }
        io = fit.solve();
    }
    costs.server = server;
    costs.client = client;
    costs.server.add_all(&io);
    costs.client.add_all(&io);
    Ok(costs)
}

/// Where all loops of a run that costs are taken from are.
pub fn here() -> Machines {
    Machines::One { processors: std::thread::available_parallelism().map_or(1, usize::from) }
}
