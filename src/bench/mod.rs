//! `bank bench`: drives a bank with durable logs as hard as it is told to, and says what came of it and what that took.
//!
//! Servers are threads of this process, processes of this machine, or run elsewhere; the clients are one thread with real
//! connections. In the end the bank has to be what its transfers make of it, on every server, or there is no figure.
//!
//! Deliberately absent: any knowledge of how a server works. What it measures any client could see, but for what the kernel
//! and the servers themselves count.

mod check;
mod draw;
mod drive;
mod figures;
pub mod floor;
mod plot;
pub mod predict;
mod report;
mod usage;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

pub use draw::Mix;
pub use drive::{BATCH_MOST, End, Load};

use crate::bench::draw::Source;
use crate::bench::figures::{CLIENTS, Cost, Figures};
use crate::config::{Settings, Topology};
use crate::report::progress::share_bar;
use crate::runtime::cluster::{Cluster, DataDir, Fleet, Processes};
use crate::runtime::config_file;
use crate::runtime::local::{self, InitArgs};
use crate::runtime::order::{Order, Report};
use crate::runtime::session::{Exit, on_interrupt};
use crate::types::NodeId;

/// Where the servers are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Threads of this process.
    Threads,
    /// Processes of this machine, started for the run.
    Processes,
    /// A bank that runs already, with this configuration.
    Elsewhere(PathBuf),
}

/// Arguments of `bank bench`.
#[derive(Clone, Debug)]
pub struct BenchArgs {
    pub place: Place,
    /// Whether each server that is a thread keeps to one core, as those of the floor do then.
    pub pinned: bool,
    /// Of a bank that is started for the run.
    pub topology: Topology,
    /// Where that keeps its logs: a directory of its own is made in it, and removed.
    pub data_dir: Option<PathBuf>,
    pub load: Load,
    pub mix: Mix,
    /// 0 to 1, see [`draw`].
    pub skew: f64,
    pub seed: u64,
    /// Measure the floor as well, for so long.
    pub floor: Option<Duration>,
    /// Make many runs, and a page of them in this directory.
    pub report: Option<PathBuf>,
    /// What a report predicts; and whether nothing else is to be done.
    pub predict: predict::Prospect,
    pub only_predict: bool,
    pub json: bool,
}

/// Runs the benchmark. What went wrong has been printed.
pub fn run(args: &BenchArgs) -> Exit {
    let stop = Arc::new(AtomicBool::new(false));
    match on_interrupt() {
        Ok(interrupt) => {
            let stop = stop.clone();
            // It ends with the process.
            std::thread::spawn(move || interrupt.recv().map(|()| stop.store(true, Ordering::Relaxed)));
        }
        Err(e) => return fail(&e, Exit::Usage),
    }
    let told = |figures: Figures| match args.json {
        true => figures.json().to_string(),
        false => format!("{}\n{}", figures.headline(), figures.table()),
    };
    let text = match &args.report {
        Some(dir) => report::write(args, dir, &stop).map(|(page, figures)| {
            eprintln!("{} is written", page.display());
            told(figures)
        }),
        None if args.only_predict => {
            if let Err(e) = args.topology.validate().and_then(|()| args.work_dir().map(drop)) {
                return fail(&e, Exit::Usage);
            }
            let told = |it: predict::Prediction| if args.json { it.json().to_string() } else { it.text() };
            predict::predict(args, &stop).map(told)
        }
        None => match Bank::start(args) {
            Ok(bank) => measure(args, bank, &stop).map(told),
            Err(e) => return fail(&e, Exit::Usage),
        },
    };
    match text {
        Ok(text) => {
            // Whoever closed the pipe has seen enough.
            if let Err(e) = writeln!(std::io::stdout(), "{text}")
                && e.kind() != ErrorKind::BrokenPipe
            {
                return fail(&format!("standard output cannot be written: {e}"), Exit::Failure);
            }
        }
        Err(e) => return fail(&e, Exit::Failure),
    }
    if stop.load(Ordering::Relaxed) { Exit::Interrupted } else { Exit::Success }
}

fn fail(what: &str, exit: Exit) -> Exit {
    eprintln!("error: {what}");
    exit
}

/// A bank to be measured.
struct Bank {
    // In this order: the servers stop before their directories go.
    fleet: Box<dyn Fleet>,
    /// The number of each server's process, as far as it is one of this machine.
    pids: BTreeMap<NodeId, u32>,
    threads: bool,
    _stops: Option<Stops>,
    /// Where the floor may write, too.
    dir: DataDir,
}

/// Processes that were started for the run.
struct Stops(PathBuf);

impl Drop for Stops {
    fn drop(&mut self) {
        if let Err(e) = local::down(&self.0, None) {
            log::error!("{e}");
        }
    }
}

impl BenchArgs {
    /// A directory for what is written, which goes with the value that is returned.
    fn work_dir(&self) -> Result<DataDir, String> {
        let Some(place) = &self.data_dir else { return DataDir::temporary() };
        let made = tempfile::Builder::new().prefix("bench-").tempdir_in(place);
        Ok(DataDir::Temporary(made.map_err(|e| format!("{}: {e}", place.display()))?))
    }
}

impl Bank {
    fn start(args: &BenchArgs) -> Result<Bank, String> {
        let dir = args.work_dir()?;
        let mut bank = match &args.place {
            Place::Threads => {
                let data = DataDir::Kept(dir.path().join("bank"));
                let settings = Settings { pinned: args.pinned, ..Settings::default() };
                let fleet = Box::new(Cluster::start(args.topology, settings, data)?);
                Bank { fleet, pids: BTreeMap::new(), threads: true, _stops: None, dir }
            }
            Place::Processes => {
                let place = dir.path().join("bank");
                let path = place.join("cluster.toml");
                let base_port = free_ports(&args.topology)?;
                let hosts = vec!["127.0.0.1".to_string()];
                let (dir_of_bank, topology) = (place.clone(), args.topology);
                local::init(&InitArgs { dir: dir_of_bank, topology, hosts, base_port, config_only: false })?;
                let stops = Stops(path.clone());
                local::up(&path, None)?;
                let fleet = Box::new(Processes::connect(config_file::load(&path)?)?);
                let pids = topology.servers().filter_map(|s| Some((s, local::pid_of(&place, s)?)));
                Bank { fleet, pids: pids.collect(), threads: false, _stops: Some(stops), dir }
            }
            Place::Elsewhere(path) => {
                let fleet = Box::new(Processes::connect(config_file::load(path)?)?);
                Bank { fleet, pids: BTreeMap::new(), threads: false, _stops: None, dir }
            }
        };
        let topology = bank.fleet.context().topology;
        let least = draw::least_accounts(args.mix);
        if topology.accounts / u64::from(topology.clusters) < least {
            return Err(format!("each shard needs {least} accounts at least for this"));
        }
        // Whoever cannot be asked cannot be measured.
        for server in topology.servers() {
            bank.fleet.ask(server, Order::Status)?;
        }
        Ok(bank)
    }

    /// What servers have counted so far, and the processor time that they and the clients took.
    fn costs(&mut self) -> Result<BTreeMap<String, Cost>, String> {
        let mut costs = BTreeMap::new();
        let threads = usage::threads()?;
        for server in self.fleet.context().topology.servers() {
            let Report::Status(status) = self.fleet.ask(server, Order::Status)? else {
                return Err(format!("{server} does not tell its status"));
            };
            let pid = self.pids.get(&server);
            let processor_ns = match pid {
                Some(pid) => Some(usage::process(*pid)?),
                None if self.threads => threads.get(&server.to_string()).copied(),
                None => None,
            };
            let metrics = status.metrics;
            let cost = Cost {
                processor_ns,
                syncs: metrics.syncs,
                wal_bytes: metrics.wal_bytes,
                net_bytes: metrics.bytes_out,
                memory: pid.map(|pid| usage::memory(*pid)).transpose()?,
            };
            costs.insert(server.to_string(), cost);
        }
        Ok(costs)
    }
}

/// A first port so that those of all servers are free, as `bank init` numbers them.
fn free_ports(topology: &Topology) -> Result<u16, String> {
    let servers = topology.server_count() as u16;
    let stride = local::port_stride(topology) as u16;
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    for _ in 0..100 {
        let base = rand::random_range(20_000..32_000 - 3 * stride.min(3_000));
        if (0..3).all(|kind| (1..=servers).all(|n| free(base + kind * stride + n))) {
            return Ok(base);
        }
    }
    Err(format!("no {} ports in a row are free between 20000 and 32000", 3 * stride))
}

fn measure(args: &BenchArgs, mut bank: Bank, stop: &Arc<AtomicBool>) -> Result<Figures, String> {
    let topology = bank.fleet.context().topology;
    check::agreement(&mut *bank.fleet, &topology)?;
    let before = check::balances(&mut *bank.fleet, &topology)?;
    let costs_before = bank.costs()?;
    let source = Source::new(&topology, args.mix, args.skew, args.seed);
    // What was left to be written before, by this run's beginning or by an earlier one whose files were removed, is not its load.
    rustix::fs::sync();
    let bar = share_bar();
    let (context, timeouts, load) = (bank.fleet.context().clone(), bank.fleet.timeouts(), args.load);
    let (finished, ran) = std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name(CLIENTS.into());
        let told = bar.clone();
        let thread = builder.spawn_scoped(scope, move || {
            let progress = |share: f64| told.set_position((share * told.length().unwrap_or(0) as f64) as u64);
            let finished = drive::drive(&context, timeouts, load, source, stop, &progress);
            // While the thread is still there to be asked about.
            (finished, usage::threads().map(|ran| ran.get(CLIENTS).copied()))
        });
        let thread = thread.map_err(|e| format!("no thread for the clients: {e}"))?;
        let (finished, ran) = thread.join().map_err(|_| "the clients have panicked".to_string())?;
        Ok::<_, String>((finished?, ran?))
    })?;
    bar.finish_and_clear();
    let mut costs = bank.costs()?;
    for (name, cost) in &mut costs {
        let Some(before) = costs_before.get(name) else { continue };
        cost.processor_ns =
            cost.processor_ns.zip(before.processor_ns).map(|(now, then)| now.saturating_sub(then));
        cost.syncs -= before.syncs;
        cost.wal_bytes -= before.wal_bytes;
        cost.net_bytes -= before.net_bytes;
    }
    costs.insert(CLIENTS.into(), Cost { processor_ns: ran, ..Cost::default() });
    check::check(&mut *bank.fleet, &topology, &before, &finished)
        .map_err(|e| format!("the bank is not as it must be: {e}"))?;
    let settings = settings(args, &topology);
    let Bank { fleet, _stops: stops, dir, .. } = bank;
    drop((fleet, stops));
    let floor = args.floor.map(|span| measure_floor(args, &topology, span, dir.path())).transpose()?;
    Ok(Figures { settings, measured: finished.measured, costs, floor })
}

/// The same pattern on the floor, when the servers are gone.
fn measure_floor(
    args: &BenchArgs,
    topology: &Topology,
    span: Duration,
    dir: &Path,
) -> Result<floor::Floor, String> {
    let pattern = floor::Pattern {
        followers: usize::from(topology.servers_per_cluster) - 1,
        accounts: topology.accounts,
        connections: args.load.clients,
        batch: args.load.batch,
        in_flight: args.load.in_flight,
        pinned: args.pinned,
    };
    floor::measure(pattern, span, dir).map_err(|e| format!("the floor cannot be measured: {e}"))
}

/// What was asked for, and of which program.
fn settings(args: &BenchArgs, topology: &Topology) -> Value {
    let Load { clients, in_flight, batch, rate, warm_up, end } = args.load;
    let (mix, cross, reads) = match args.mix {
        Mix::Plain { cross, reads } => ("transfers", cross, reads),
        Mix::SmallBank { cross } => ("smallbank", cross, 0.0),
    };
    let place = match &args.place {
        Place::Threads => "threads".to_string(),
        Place::Processes => "processes".to_string(),
        Place::Elsewhere(path) => path.display().to_string(),
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    json!({
        "servers_are": place,
        "pinned": args.pinned,
        "clusters": topology.clusters,
        "servers_per_cluster": topology.servers_per_cluster,
        "accounts": topology.accounts,
        "clients": clients,
        "in_flight": in_flight,
        "batch": batch,
        "rate": rate,
        "mix": mix,
        "cross": cross,
        "reads": reads,
        "skew": args.skew,
        "seed": args.seed,
        "warm_up_seconds": warm_up.as_secs_f64(),
        "seconds": if let End::After(span) = end { json!(span.as_secs_f64()) } else { Value::Null },
        "operations": if let End::Operations(count) = end { json!(count) } else { Value::Null },
        "build": {
            "version": env!("CARGO_PKG_VERSION"),
            "optimised": !cfg!(debug_assertions),
            "architecture": std::env::consts::ARCH,
        },
        "cores": cores,
    })
}
