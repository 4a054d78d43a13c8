//! What is done to the servers, and what that did at the victim.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use shardpaxosbank::workload::SplitMix64;

use crate::net::{self, Drop};
use crate::proxy::Mode;
use crate::servers::{PROXIED, SERVERS, Servers};

/// What can be done to one server while the others of its cluster are well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Harm {
    Kill,
    Pause,
    LinkDown,
    OneWay,
    Loss,
    Delay,
    HalfOpen,
    FewDescriptors,
}

/// What is done for a random time.
const ALL: [Harm; 8] = [
    Harm::Kill,
    Harm::Pause,
    Harm::LinkDown,
    Harm::OneWay,
    Harm::Loss,
    Harm::Delay,
    Harm::HalfOpen,
    Harm::FewDescriptors,
];

/// So long the space that a server has set aside may last.
const FULL_AFTER: Duration = Duration::from_secs(15);
/// As `ulimit -n`.
const DESCRIPTORS: u64 = 64;
const DISK_FULL: &str = "DiskFull";
/// Connections to such a server that say nothing.
const CROWD: usize = 100;
/// A run of this length or more has to do everything that there is.
const FULL_RUN: Duration = Duration::from_secs(600);

/// What was done to single servers.
#[derive(Default)]
pub struct Tally {
    /// How often each harm was done, and how often it was seen to have met its victim.
    harms: BTreeMap<String, (u64, u64)>,
    /// How long it took from starting a server that was killed until everybody was well.
    pub back: Vec<Duration>,
}

impl Tally {
    fn count(&mut self, harm: String, met: bool) {
        let (done, hit) = self.harms.entry(harm).or_default();
        *done += 1;
        *hit += u64::from(met);
    }

    pub fn print(&self) {
        println!("harm to single servers, and how often it was seen to meet them:");
        for (harm, (done, met)) in &self.harms {
            println!("  {:<16} {done:>5} {met:>5}", harm);
        }
    }

    /// What was done more than three times and never met anybody, and what should have been done in so much time and was not.
    pub fn missed(&self, time: Duration) -> Vec<String> {
        let all = ALL.iter().map(|harm| format!("{harm:?}")).chain([DISK_FULL.into()]);
        let never = |harm: &String| match self.harms.get(harm) {
            None => time >= FULL_RUN,
            Some((done, met)) => *met == 0 && (*done > 3 || time >= FULL_RUN),
        };
        all.filter(never).collect()
    }
}

/// Harm under way, to be undone.
struct Under {
    harm: Harm,
    server: u16,
}

/// One to three servers, no two of one cluster, suffer for some time, each from something.
pub fn some_harm(servers: &mut Servers, rng: &mut SplitMix64, tally: &mut Tally) -> Result<(), String> {
    let mut clusters = BTreeSet::new();
    let mut under = Vec::new();
    for _ in 0..1 + rng.below(3) {
        let server = 1 + rng.below(u64::from(SERVERS)) as u16;
        let harm = ALL[rng.below(ALL.len() as u64) as usize];
        let proxied = matches!(harm, Harm::Delay | Harm::HalfOpen);
        let server = if proxied { PROXIED.start() + rng.below(3) as u16 } else { server };
        if clusters.insert(servers.shard_of(server)) {
            under.push(begin(servers, rng, harm, server)?);
        }
    }
    crate::pause(Duration::from_millis(300 + rng.below(5000)));
    for done in &under {
        let met = end(servers, done)?;
        tally.count(format!("{:?}", done.harm), met);
    }
    let back = servers.heal()?;
    if under.iter().any(|done| done.harm == Harm::Kill) {
        tally.back.push(back);
    }
    Ok(())
}

/// Takes a server's disk away until it notices, and a little longer.
pub fn fill_disk(servers: &mut Servers, server: u16, tally: &mut Tally) -> Result<(), String> {
    fill(servers, server)?;
    let is_full = |servers: &Servers| servers.status(server).is_some_and(|status| status.room.is_some());
    let since = Instant::now();
    while !is_full(servers) && since.elapsed() < FULL_AFTER {
        crate::pause(Duration::from_millis(50));
    }
    tally.count(DISK_FULL.into(), is_full(servers));
    crate::pause(Duration::from_secs(1));
    let filler = filler(servers, server);
    std::fs::remove_file(&filler).map_err(|e| format!("{}: {e}", filler.display()))
}

fn begin(servers: &mut Servers, rng: &mut SplitMix64, harm: Harm, server: u16) -> Result<Under, String> {
    match harm {
        Harm::Kill => servers.kill(server)?,
        Harm::Pause => servers.signal(server, Signal::STOP)?,
        Harm::LinkDown => net::link(server, false)?,
        Harm::OneWay => {
            let others: Vec<u16> =
                servers.members(servers.shard_of(server)).into_iter().filter(|s| *s != server).collect();
            let other = others[rng.below(others.len() as u64) as usize];
            net::drop_packets(server, Drop::From(other))?;
        }
        Harm::Loss => net::drop_packets(server, Drop::Share(5 + rng.below(30) as u8))?,
        Harm::Delay => proxy(servers, server).set(Mode::Delay(Duration::from_millis(20 + rng.below(400)))),
        Harm::HalfOpen => proxy(servers, server).set(Mode::HalfOpen),
        Harm::FewDescriptors => {
            servers.kill(server)?;
            servers.start_with_few_descriptors(server, DESCRIPTORS)?;
        }
    }
    Ok(Under { harm, server })
}

/// Undoes it; tells whether it met its victim.
fn end(servers: &mut Servers, under: &Under) -> Result<bool, String> {
    let server = under.server;
    let met = match under.harm {
        Harm::Kill => {
            servers.start(server)?;
            true
        }
        Harm::Pause => {
            let pid = servers.pid(server).ok_or("it runs")?.as_raw_nonzero();
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            servers.signal(server, Signal::CONT)?;
            stat.contains(") T ")
        }
        Harm::LinkDown => {
            let down = net::is_down(server)?;
            net::link(server, true)?;
            down
        }
        Harm::OneWay | Harm::Loss => net::drop_nothing(server)? > 0,
        Harm::Delay | Harm::HalfOpen => {
            let proxy = proxy(servers, server);
            proxy.set(Mode::Pass);
            proxy.touched() > 0
        }
        Harm::FewDescriptors => {
            let met = sends_away(server)?;
            // It must not have fallen over it.
            if let Some(fallen) = servers.fallen() {
                return Err(fallen);
            }
            servers.kill(server)?;
            servers.start(server)?;
            met
        }
    };
    Ok(met)
}

/// Whether a server closes some of many connections, since it has not so many descriptors.
fn sends_away(server: u16) -> Result<bool, String> {
    let address = Servers::client_address(server).parse().map_err(|e| format!("S{server}: {e}"))?;
    let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    let mut crowd: Vec<TcpStream> = (0..CROWD).filter_map(connect).collect();
    let quiet = crowd.iter().try_for_each(|stream| stream.set_nonblocking(true));
    quiet.map_err(|e| format!("S{server}: {e}"))?;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        for stream in &mut crowd {
            match stream.read(&mut [0]) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                _ => return Ok(true),
            }
        }
        crate::pause(Duration::from_millis(20));
    }
    Ok(false)
}

fn proxy(servers: &Servers, server: u16) -> &crate::proxy::Proxy {
    &servers.proxies[usize::from(server - PROXIED.start())]
}

fn filler(servers: &Servers, server: u16) -> PathBuf {
    servers.place(server).join("filler")
}

/// Takes all the space that is left.
fn fill(servers: &Servers, server: u16) -> Result<(), String> {
    let path = filler(servers, server);
    let mut file = File::create(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut piece: &[u8] = &[0; 64 * 1024];
    loop {
        match file.write(piece) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::StorageFull && piece.len() > 512 => {
                piece = &piece[..piece.len() / 8];
            }
            Err(e) if e.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
            Err(e) => return Err(format!("{}: {e}", path.display())),
        }
    }
}
