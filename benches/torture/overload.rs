//! More requests under way than the servers can take: what becomes of the rate of commits, and of memory.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use shardpaxosbank::config::Topology;
use shardpaxosbank::workload::SplitMix64;

use crate::load::of_same_shard;
use crate::servers::{SERVERS, Servers};

const THREADS: usize = 8;
const MEASURE: Duration = Duration::from_secs(8);
/// Connections, and requests under way on each. The last steps differ in nothing but that time has passed.
const STEPS: [(usize, usize); 9] =
    [(8, 4), (16, 16), (64, 32), (128, 64), (320, 64), (640, 128), (1600, 128), (1600, 128), (1600, 128)];

/// What the last steps are to leave of the peak, in per cent.
const LEAST_LEFT: f64 = 80.0;
/// The last steps are to have so many times as many under way as reach that.
const TIMES: f64 = 10.0;
/// Memory that differs by less than this factor, where nothing differs but that time has passed, is flat.
const FLAT: f64 = 1.1;

#[derive(Default)]
struct Counts {
    committed: AtomicU64,
    busy: AtomicU64,
    locked: AtomicU64,
    refused: AtomicU64,
    over: AtomicBool,
}

/// Measures, prints, and returns the bars that were missed.
pub fn measure(servers: &mut Servers, seed: u64) -> Result<Vec<String>, String> {
    servers.heal()?;
    let topology = servers.topology();
    println!(
        "under way   connections   committed/s   busy/s   locked/s   other errors/s   MB of all servers, before, after, and ever"
    );
    let (mut peak, mut steps): (f64, Vec<(usize, f64)>) = (0.0, Vec::new());
    // What is left in the last steps, and memory at the end of each.
    let mut last = Vec::new();
    for (connections, window) in STEPS {
        let counts = Counts::default();
        let before = megabytes(servers, "VmRSS:");
        let took = thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (counts, rng) = (&counts, SplitMix64::new(seed ^ thread as u64));
                    scope.spawn(move || drive(thread, connections / THREADS, window, counts, rng, &topology))
                })
                .collect();
            // Until connections stand and buffers are full, nothing is counted.
            crate::pause(MEASURE / 4);
            let counted = [&counts.committed, &counts.busy, &counts.locked, &counts.refused];
            counted.iter().for_each(|count| count.store(0, Ordering::Relaxed));
            let start = Instant::now();
            crate::pause(MEASURE);
            let rates =
                counted.map(|count| count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64());
            let after = megabytes(servers, "VmRSS:");
            counts.over.store(true, Ordering::Relaxed);
            let ends: Result<Vec<()>, String> =
                workers.into_iter().map(|worker| worker.join().expect("no client panics")).collect();
            ends.map(|_| (rates, after))
        });
        let ([committed, busy, locked, refused], after) = took?;
        let under_way = connections * window;
        peak = peak.max(committed);
        steps.push((under_way, committed));
        let left = 100.0 * committed / peak;
        if (connections, window) == STEPS[STEPS.len() - 1] {
            last.push((left, after));
        }
        println!(
            "{under_way:>9}   {connections:>11}   {committed:>11.0}   {busy:>6.0}   {locked:>8.0}   {refused:>14.0}   {before:.0}, {after:.0}, {:.0}; {left:.0} % of the peak",
            megabytes(servers, "VmHWM:"),
        );
        servers.heal()?;
    }
    // More under way make larger batches, so the rate goes on rising a little where latency has long grown with it.
    let reaches = |(_, committed): &&(usize, f64)| 100.0 * committed >= LEAST_LEFT * peak;
    let capacity = steps.iter().find(reaches).map_or(1, |(under_way, _)| *under_way);
    let times = steps.last().map_or(0.0, |(most, _)| *most as f64 / capacity as f64);
    println!(
        "{capacity} under way reach {LEAST_LEFT} % of the peak; the last steps have {times:.0} times as many"
    );
    let mut missed = Vec::new();
    if times < TIMES {
        missed.push(format!("{TIMES} times what reaches {LEAST_LEFT} % of the peak"));
    }
    if last.iter().any(|(left, _)| *left < LEAST_LEFT) {
        missed.push(format!("{LEAST_LEFT} % of the peak in the last steps"));
    }
    let memory = || last.iter().map(|(_, memory)| *memory);
    let (least, most) = (memory().fold(f64::MAX, f64::min), memory().fold(0.0, f64::max));
    if most > least * FLAT {
        missed.push(format!("flat memory: {least:.0} to {most:.0} MB in the last steps"));
    }
    Ok(missed)
}

/// Keeps half a window to a whole one under way on each of its connections.
fn drive(
    thread: usize,
    connections: usize,
    window: usize,
    counts: &Counts,
    mut rng: SplitMix64,
    topology: &Topology,
) -> Result<(), String> {
    let connections = connections.max(1);
    let name = |e: std::io::Error| format!("client {thread}: {e}");
    let mut requests = |count: usize| -> String {
        let one = |_| {
            let accounts = topology.accounts;
            let from = 1 + rng.below(accounts);
            let across = rng.one_in(4);
            let to = if across { 1 + rng.below(accounts) } else { of_same_shard(topology, &mut rng, from) };
            format!("TRANSFER {from} {} 1\r\n", if to == from { from % accounts + 1 } else { to })
        };
        (0..count).map(one).collect()
    };
    let mut streams = Vec::new();
    for n in 0..connections {
        let server = ((thread + n * THREADS) % usize::from(SERVERS)) as u16 + 1;
        let stream = TcpStream::connect(Servers::client_address(server)).map_err(name)?;
        stream.set_nodelay(true).map_err(name)?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(name)?;
        let mut stream = BufReader::new(stream);
        stream.get_mut().write_all(requests(window).as_bytes()).map_err(name)?;
        streams.push(stream);
    }
    let mut line = String::new();
    loop {
        let over = counts.over.load(Ordering::Relaxed);
        for stream in &mut streams {
            for _ in 0..if over { window } else { window / 2 } {
                line.clear();
                if stream.read_line(&mut line).map_err(name)? == 0 {
                    return Err(format!("client {thread}: a server closed the connection"));
                }
                let count = match line.split(' ').next().unwrap_or_default().trim_end() {
                    "+OK" => &counts.committed,
                    "-BUSY" => &counts.busy,
                    "-LOCKED" => &counts.locked,
                    _ => &counts.refused,
                };
                count.fetch_add(1, Ordering::Relaxed);
            }
            if !over {
                stream.get_mut().write_all(requests(window / 2).as_bytes()).map_err(name)?;
            }
        }
        if over {
            return Ok(());
        }
    }
}

/// Megabytes of all servers in memory, now or at most, as the kernel calls it.
fn megabytes(servers: &Servers, key: &str) -> f64 {
    let of = |server: u16| {
        let pid = servers.pid(server)?.as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(key))?.trim();
        line.trim_end_matches(" kB").parse::<f64>().ok()
    };
    (1..=SERVERS).filter_map(of).sum::<f64>() / 1024.0
}
