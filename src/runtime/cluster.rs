//! All servers of a bank as threads of this process, and the interface through which a runner handles servers.
//!
//! The threads share nothing: each has its own listener, connections, directory and log, and they find each other by
//! address. What this module holds of them is a control channel and a published status.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use mio::Waker;
use mio::net::TcpListener;
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::config::{Limits, Settings, Timeouts, Topology, limits};
use crate::drive;
use crate::net::{Address, listen};
use crate::report::ServerState;
use crate::runtime::admin::{self, AskError};
use crate::runtime::clock::Clock;
use crate::runtime::config_file::ClusterConfig;
use crate::runtime::conns::{Context, Door, Endpoints};
use crate::runtime::cores;
use crate::runtime::gates::affordable;
use crate::runtime::node::{self, Control, Setup, poll_and_waker};
use crate::runtime::order::{Order, Report};
use crate::runtime::status::Status;
use crate::storage::{Disk, Expected, FileDisk, Identity, Retention, StorageError, Wal, is_formatted};
use crate::types::NodeId;

/// Longer than any honest catch-up; a server that takes longer is reported instead of waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Servers as a runner sees them: threads of this process, or processes somewhere.
pub trait Fleet {
    fn context(&self) -> &Context;
    fn timeouts(&self) -> Timeouts;
    fn state(&self, server: NodeId) -> ServerState;
    /// Gives one order and waits for its report.
    fn ask(&mut self, server: NodeId, order: Order) -> Result<Report, String>;
    /// Drops thread and memory; only what is on disk stays.
    fn crash(&mut self, server: NodeId) -> Result<(), String>;
    /// Starts a crashed server from its directory alone.
    fn restart(&mut self, server: NodeId) -> Result<(), String>;

    fn fail(&mut self, server: NodeId) -> Result<(), String>;
    fn recover(&mut self, server: NodeId) -> Result<(), String>;
}

/// Where the servers of a bank keep their directories.
pub enum DataDir {
    /// Removed at the end.
    Temporary(TempDir),
    Kept(PathBuf),
}

impl DataDir {
    pub fn temporary() -> Result<DataDir, String> {
        tempfile::Builder::new().prefix("bank-").tempdir().map(DataDir::Temporary).map_err(|e| {
            format!("no temporary directory can be made in {}: {e}", std::env::temp_dir().display())
        })
    }

    pub fn path(&self) -> &Path {
        match self {
            DataDir::Temporary(dir) => dir.path(),
            DataDir::Kept(path) => path,
        }
    }
}

pub(super) fn server_dir(data: &Path, server: NodeId) -> PathBuf {
    data.join(server.to_string())
}

/// Removes the servers' directories below `data`, and nothing else: `--fresh`.
pub fn remove_server_dirs(data: &Path) -> Result<(), String> {
    let entries = match std::fs::read_dir(data) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(format!("{}: cannot be read: {e}", data.display())),
    };
    // Takes every lock before anything is removed, so that a bank with one server running keeps all its files.
    let mut disks = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let digits = name.to_str().and_then(|n| n.strip_prefix('S')).unwrap_or("");
        if digits.parse::<u16>().is_ok() && entry.path().is_dir() {
            disks.push(FileDisk::open(entry.path()).map_err(|e| e.to_string())?);
        }
    }
    for disk in disks {
        let path = disk.dir();
        std::fs::remove_dir_all(path).map_err(|e| format!("{}: cannot be removed: {e}", path.display()))?;
    }
    Ok(())
}

/// What to do with a directory that holds no server yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blank {
    Refuse,
    /// The bank is being founded, under this id.
    Found(u128),
    /// It stands for one that was lost: the server votes when the others have let it in again (S3).
    Rejoin(u128),
}

/// Opens, or formats if asked to, the directory of one server. Errors name the directory.
pub fn open_log(
    dir: &Path,
    server: NodeId,
    topology: Topology,
    cluster_id: Option<u128>,
    blank: Blank,
) -> Result<(Wal<FileDisk>, crate::storage::Recovered), String> {
    let named = |e: StorageError| format!("{}/{e}", dir.display());
    if blank == Blank::Refuse && !dir.exists() {
        // What is refused leaves nothing behind.
        return Err(named(StorageError::NotFormatted));
    }
    let disk = FileDisk::open(dir).map_err(|e| e.to_string())?;
    if let Blank::Found(cluster_id) | Blank::Rejoin(cluster_id) = blank
        && !is_formatted(&disk).map_err(|e| format!("{}: {e}", dir.display()))?
    {
        let founder = matches!(blank, Blank::Found(_));
        let identity = Identity { cluster_id, topology, server, incarnation: rand::random(), founder };
        drop(Wal::format(disk.clone(), identity, limits::SEGMENT_BYTES).map_err(named)?);
    }
    Wal::open(disk, Expected { cluster_id, topology, server }).map_err(named)
}

struct Server {
    address: SocketAddr,
    state: ServerState,
    running: Option<Running>,
}

struct Running {
    control: Sender<Control>,
    waker: Arc<Waker>,
    status: Arc<Mutex<Status>>,
    thread: JoinHandle<Option<io::Result<()>>>,
}

/// The servers of a bank as threads of this process.
pub struct Cluster {
    context: Context,
    settings: Settings,
    data: DataDir,
    servers: BTreeMap<NodeId, Server>,
    clock: Clock,
}

impl Cluster {
    /// Starts every server, on ports that the system chooses. A directory without any server in it is formatted; in any
    /// other all servers must be there and belong together.
    pub fn start(topology: Topology, settings: Settings, data: DataDir) -> Result<Cluster, String> {
        topology.validate()?;
        let connections = affordable(settings.connections, topology.server_count(), &topology);
        let settings = Settings { connections, ..settings };
        let mut logs = open_logs(topology, data.path())?;
        let cluster_id = logs.values().next().map_or(0, |(wal, _)| wal.identity().cluster_id);
        let mut listeners = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        for server in topology.servers() {
            let (listener, address) =
                listen(SocketAddr::from(([127, 0, 0, 1], 0))).map_err(|e| e.to_string())?;
            listeners.insert(server, listener);
            addresses.insert(server, address);
        }
        let endpoints = addresses.iter().map(|(id, address)| (*id, Endpoints::from(Address::from(*address))));
        let (timeouts, endpoints) = (settings.timeouts, endpoints.collect());
        let context = Context { cluster_id, topology, timeouts, addresses: endpoints };
        let servers = addresses
            .into_iter()
            .map(|(id, address)| (id, Server { address, state: ServerState::Crashed, running: None }))
            .collect();
        let mut cluster = Cluster { context, settings, data, servers, clock: Clock::start() };
        for (server, listener) in listeners {
            let (wal, recovered) = logs.remove(&server).expect("every server's log was opened");
            cluster.spawn(server, listener, wal, recovered)?;
        }
        Ok(cluster)
    }

    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }

    fn spawn(
        &mut self,
        server: NodeId,
        listener: TcpListener,
        wal: Wal<FileDisk>,
        recovered: crate::storage::Recovered,
    ) -> Result<(), String> {
        let (control, orders) = unbounded();
        let (poll, waker) = poll_and_waker().map_err(|e| format!("{server}: no event loop: {e}"))?;
        let status = Arc::new(Mutex::new(Status::new(server)));
        let setup = prepare(
            server,
            self.context.clone(),
            self.settings,
            self.clock,
            (wal, recovered),
            Threading {
                poll,
                waker: waker.clone(),
                doors: vec![(listener, Door::Anybody)],
                control: orders,
                status: status.clone(),
                admin: false,
            },
        )?;
        // Leaders, who are the first of their clusters unless something happens, get different cores.
        let topology = &self.context.topology;
        let within = server.index() % usize::from(topology.servers_per_cluster);
        let turn = self.settings.pinned.then(|| topology.shard_of_server(server).index() + within);
        let thread = cores::spawn(&server.to_string(), turn, move || node::run(setup))
            .map_err(|e| format!("{server}: no thread: {e}"))?;
        let slot = self.servers.get_mut(&server).expect("the topology names every server");
        slot.state = ServerState::Live;
        slot.running = Some(Running { control, waker, status, thread });
        Ok(())
    }

    /// A receiver for the report that answers `order`.
    fn give(&self, server: NodeId, order: Order) -> Result<Receiver<Report>, String> {
        let running =
            self.servers[&server].running.as_ref().ok_or_else(|| format!("{server} has crashed"))?;
        let (reply, report) = bounded(1);
        running.control.send(Control::Order(order, reply)).map_err(|_| self.why_stopped(server))?;
        running.waker.wake().map_err(|e| format!("{server} cannot be woken: {e}"))?;
        Ok(report)
    }

    fn why_stopped(&self, server: NodeId) -> String {
        let running = self.servers[&server].running.as_ref();
        let why = running.and_then(|r| r.status.lock().stopped.clone());
        format!("{server} has stopped: {}", why.unwrap_or_else(|| "see the log above".into()))
    }
}

/// What a server needs of the world around it.
pub struct Threading {
    pub poll: mio::Poll,
    pub waker: Arc<Waker>,
    /// Where it listens, for whom.
    pub doors: Vec<(TcpListener, Door)>,
    pub control: Receiver<Control>,
    pub status: Arc<Mutex<Status>>,
    pub admin: bool,
}

/// Restores a server from its log and puts everything together that its loop owns.
pub fn prepare<D: Disk>(
    server: NodeId,
    context: Context,
    settings: Settings,
    clock: Clock,
    (mut wal, recovered): (Wal<D>, crate::storage::Recovered),
    around: Threading,
) -> Result<Setup<D>, String> {
    if let Some(torn) = &recovered.torn {
        log::warn!("{server}: {torn}");
    }
    for damaged in &recovered.damaged {
        log::error!("{server}: {damaged}");
        around.status.lock().metrics.record_damage(damaged);
    }
    match (&recovered.loss, recovered.damaged.is_empty()) {
        (_, true) => {}
        (None, false) => log::warn!("{server}: nothing is lost with it that others rely on"),
        (Some(loss), false) => log::warn!(
            "{server}: of what is decided, it has the values up to slot {} of {}, and it may have voted up to slot {}; the \
             rest comes from its peers",
            recovered.decided,
            loss.known,
            loss.hidden.max(loss.votes.keys().next_back().copied().unwrap_or_default()).max(loss.known)
        ),
    }
    let now = clock.now();
    let Settings { timeouts, keep, connections, .. } = settings;
    let limits = Limits { snapshot_bytes: keep.snapshot_bytes(), ..Limits::default() };
    let shard = drive::restore(
        server,
        context.topology,
        (timeouts, limits),
        now,
        rand::random(),
        &mut wal,
        recovered,
    )
    .map_err(|e| format!("{server}: {e}"))?;
    let retention = Retention { audit_bytes: keep.audit_bytes(), audit_age: keep.audit_age() };
    let wal = wal.with_retention(retention).map_err(|e| format!("{server}: {e}"))?;
    let Threading { poll, waker, doors, control, status, admin } = around;
    Ok(Setup { context, shard, wal, clock, poll, waker, doors, connections, control, status, admin })
}

type Logs = BTreeMap<NodeId, (Wal<FileDisk>, crate::storage::Recovered)>;

fn open_logs(topology: Topology, data: &Path) -> Result<Logs, String> {
    let mut formatted = Vec::new();
    for server in topology.servers() {
        let dir = server_dir(data, server);
        if !dir.exists() {
            continue;
        }
        let disk = FileDisk::open(&dir).map_err(|e| e.to_string())?;
        if is_formatted(&disk).map_err(|e| format!("{}: {e}", dir.display()))? {
            formatted.push(server);
        }
    }
    let missing = topology.servers().find(|s| !formatted.contains(s));
    if let (Some(there), Some(missing)) = (formatted.first(), missing) {
        // Another topology explains missing directories better than a loss does.
        open_log(&server_dir(data, *there), *there, topology, None, Blank::Refuse)?;
        return Err(format!(
            "{}: {there} is formatted but {missing} is not; give back {missing}'s directory, or start anew with --fresh",
            data.display()
        ));
    }
    let new = formatted.is_empty().then(rand::random);
    let blank = new.map_or(Blank::Refuse, Blank::Found);
    let mut cluster_id = new;
    let mut logs = Logs::new();
    for server in topology.servers() {
        let (wal, recovered) = open_log(&server_dir(data, server), server, topology, cluster_id, blank)?;
        // The first directory says which bank this is; the others must agree.
        cluster_id = Some(wal.identity().cluster_id);
        logs.insert(server, (wal, recovered));
    }
    Ok(logs)
}

impl Fleet for Cluster {
    fn context(&self) -> &Context {
        &self.context
    }

    fn timeouts(&self) -> Timeouts {
        self.settings.timeouts
    }

    fn state(&self, server: NodeId) -> ServerState {
        self.servers[&server].state
    }

    fn ask(&mut self, server: NodeId, order: Order) -> Result<Report, String> {
        match self.give(server, order)?.recv_timeout(PATIENCE) {
            Ok(report) => Ok(report),
            Err(RecvTimeoutError::Timeout) => Err(format!("{server} does not answer")),
            Err(RecvTimeoutError::Disconnected) => Err(self.why_stopped(server)),
        }
    }

    fn crash(&mut self, server: NodeId) -> Result<(), String> {
        let slot = self.servers.get_mut(&server).expect("the topology names every server");
        if let Some(running) = slot.running.take() {
            stop(running);
            log::info!("{server} has crashed");
        }
        slot.state = ServerState::Crashed;
        Ok(())
    }

    fn restart(&mut self, server: NodeId) -> Result<(), String> {
        if self.servers[&server].running.is_some() {
            return Err(format!("{server} is running; crash it first"));
        }
        let dir = server_dir(self.data.path(), server);
        let id = Some(self.context.cluster_id);
        let (wal, recovered) = open_log(&dir, server, self.context.topology, id, Blank::Refuse)?;
        let (listener, _) = listen(self.servers[&server].address).map_err(|e| format!("{server}: {e}"))?;
        self.spawn(server, listener, wal, recovered)
    }

    fn fail(&mut self, server: NodeId) -> Result<(), String> {
        if self.state(server) == ServerState::Live {
            self.ask(server, Order::Fail)?;
            self.servers.get_mut(&server).expect("its state was just read").state = ServerState::Failed;
        }
        Ok(())
    }

    fn recover(&mut self, server: NodeId) -> Result<(), String> {
        match self.state(server) {
            ServerState::Live => Ok(()),
            ServerState::Crashed => self.restart(server),
            ServerState::Failed => {
                self.ask(server, Order::Recover)?;
                self.servers.get_mut(&server).expect("its state was just read").state = ServerState::Live;
                Ok(())
            }
        }
    }
}

fn stop(running: Running) {
    // Fails only if the loop has ended by itself.
    let _ = running.control.send(Control::Stop);
    let _ = running.waker.wake();
    if running.thread.join().is_err() {
        log::error!("a server's thread has panicked; its message stands above");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for server in self.servers.values_mut() {
            if let Some(running) = server.running.take() {
                stop(running);
            }
        }
    }
}

/// Servers that run as processes, handled through orders over the wire.
///
/// A process that cannot be reached counts as crashed until it is found up again at the start of a set: whether its
/// cluster can go on without it is for the cluster to say.
pub struct Processes {
    config: ClusterConfig,
    states: BTreeMap<NodeId, ServerState>,
}

impl Processes {
    /// Calls on every server once, so that all of them are known to be up or down and none stays cut off by an earlier
    /// run. An error means that a server is there and refuses: another bank, another topology, no orders allowed.
    pub fn connect(config: ClusterConfig) -> Result<Processes, String> {
        let servers: Vec<NodeId> = config.context.topology.servers().collect();
        let mut fleet = Processes { config, states: BTreeMap::new() };
        for server in servers {
            fleet.states.insert(server, ServerState::Crashed);
            fleet.recover(server)?;
        }
        Ok(fleet)
    }

    /// Looks at every server and leaves it as it is. Errors as of [`Processes::connect`].
    pub fn attach(config: ClusterConfig) -> Result<Processes, String> {
        let servers: Vec<NodeId> = config.context.topology.servers().collect();
        let mut fleet = Processes { config, states: BTreeMap::new() };
        for server in servers {
            let state = match fleet.ask(server, Order::Status) {
                Ok(Report::Status(status)) if status.failed => ServerState::Failed,
                Ok(_) => ServerState::Live,
                Err(e) if fleet.state(server) == ServerState::Crashed => {
                    log::warn!("{e}; it counts as down");
                    ServerState::Crashed
                }
                Err(e) => return Err(e),
            };
            fleet.states.insert(server, state);
        }
        Ok(fleet)
    }

    /// Gives an order that brings a server into `state`, unless it is away.
    fn change(&mut self, server: NodeId, order: Order, state: ServerState) -> Result<(), String> {
        match self.ask(server, order) {
            Ok(_) => _ = self.states.insert(server, state),
            Err(e) if self.state(server) == ServerState::Crashed => log::warn!("{e}; it counts as down"),
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

impl Fleet for Processes {
    fn context(&self) -> &Context {
        &self.config.context
    }

    fn timeouts(&self) -> Timeouts {
        self.config.settings.timeouts
    }

    fn state(&self, server: NodeId) -> ServerState {
        self.states[&server]
    }

    fn ask(&mut self, server: NodeId, order: Order) -> Result<Report, String> {
        admin::ask(&self.config.context, server, &order).map_err(|e| {
            let away = matches!(e, AskError::Unreachable(_));
            self.states.insert(server, if away { ServerState::Crashed } else { ServerState::Live });
            e.to_string()
        })
    }

    fn crash(&mut self, server: NodeId) -> Result<(), String> {
        Err(format!("{server} is a process of its own; kill it where it runs"))
    }

    fn restart(&mut self, server: NodeId) -> Result<(), String> {
        Err(format!("{server} is a process of its own; start it where it runs"))
    }

    fn fail(&mut self, server: NodeId) -> Result<(), String> {
        self.change(server, Order::Fail, ServerState::Failed)
    }

    fn recover(&mut self, server: NodeId) -> Result<(), String> {
        self.change(server, Order::Recover, ServerState::Live)
    }
}

#[cfg(test)]
mod tests;
