//! `bank init`, `bank up` and `bank down`: a whole bank as processes of this machine, from one configuration.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam::channel::RecvTimeoutError;

use crate::config::{Topology, limits};
use crate::runtime::client::{self, Client, News};
use crate::runtime::cluster::server_dir;
use crate::runtime::config_file::{self, ClusterConfig};
use crate::storage::{FileDisk, Identity, Wal};
use crate::txn::{Op, Outcome, Reach};
use crate::types::{NodeId, ShardId};

/// How long servers may take until every cluster has a leader, and to stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a server that is being started is looked after: whether it still runs cannot be waited for together with news.
const LOOK_AFTER: Duration = Duration::from_millis(50);

/// Arguments of `bank init`.
pub struct InitArgs {
    pub dir: PathBuf,
    pub topology: Topology,
    /// A host for each server; or fewer, on which the servers of each cluster are in turns.
    pub hosts: Vec<String>,
    pub base_port: u16,
    /// Write the configuration only: the directories belong on other machines.
    pub config_only: bool,
}

/// Writes `cluster.toml` and formats a directory for each server. Returns what to say.
///
/// # Errors
///
/// Something is there already, or cannot be written; the topology, a host or the ports cannot be used.
pub fn init(args: &InitArgs) -> Result<String, String> {
    args.topology.validate()?;
    let cluster_id = rand::random();
    let text = example(args, cluster_id)?;
    let path = args.dir.join("cluster.toml");
    let shown = path.display();
    // What is refused leaves nothing behind.
    config_file::check(&path, &text)?;
    fs::create_dir_all(&args.dir).map_err(|e| format!("{}: cannot be made: {e}", args.dir.display()))?;
    let there = |server: &NodeId| server_dir(&args.dir, *server).exists();
    if let Some(server) = args.topology.servers().find(there) {
        return Err(format!("{}: is there already", server_dir(&args.dir, server).display()));
    }
    let mut file = File::create_new(&path).map_err(|e| format!("{shown}: cannot be made: {e}"))?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(|e| format!("{shown}: {e}"))?;
    let servers = args.topology.servers();
    if args.config_only {
        return Ok(format!(
            "{shown} names {} servers; format each where it runs: `bank node --format`",
            servers.count()
        ));
    }
    for server in args.topology.servers() {
        let dir = server_dir(&args.dir, server);
        let disk = FileDisk::open(&dir).map_err(|e| e.to_string())?;
        let incarnation = rand::random();
        let identity = Identity { cluster_id, topology: args.topology, server, incarnation, founder: true };
        Wal::format(disk, identity, limits::SEGMENT_BYTES).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    Ok(format!(
        "{shown} and the directories of {} servers are made; start them with `bank up --config {shown}`",
        servers.count()
    ))
}

/// From one of the three kinds of ports to the next: room for every server, so that each can be told by its last digits.
pub fn port_stride(topology: &Topology) -> u32 {
    (topology.server_count() as u32 + 1).next_multiple_of(100)
}

/// The text of a configuration.
fn example(args: &InitArgs, cluster_id: u128) -> Result<String, String> {
    let Topology { clusters, servers_per_cluster, accounts, initial_balance } = args.topology;
    let stride = port_stride(&args.topology);
    let last = u32::from(args.base_port) + 3 * stride;
    if last > u32::from(u16::MAX) {
        return Err(format!("--base-port {}: the servers need the ports up to {last}", args.base_port));
    }
    let template = include_str!("../../data/cluster.toml");
    let (head, _) = template.split_once("[servers]\n").ok_or("the example has no servers")?;
    let mut lines = Vec::new();
    for line in head.lines() {
        let value = match line.split_once(" = ").map(|(key, _)| key) {
            Some("cluster_id") => format!("\"{cluster_id:032x}\""),
            Some("clusters") => clusters.to_string(),
            Some("servers_per_cluster") => servers_per_cluster.to_string(),
            Some("accounts") => accounts.to_string(),
            Some("initial_balance") => initial_balance.to_string(),
            _ => {
                lines.push(line.to_string());
                continue;
            }
        };
        let (key, rest) = line.split_once(" = ").unwrap_or((line, ""));
        let comment = rest.find('#').map_or("", |at| &rest[at..]);
        lines.push(format!("{key} = {value}  {comment}").trim_end().to_string());
    }
    lines.push("[servers]".into());
    let mut on_host: BTreeMap<&str, u32> = BTreeMap::new();
    for server in args.topology.servers() {
        let one_each = args.hosts.len() == args.topology.server_count();
        let turn = if one_each { server.index() } else { server.index() % usize::from(servers_per_cluster) };
        let place = turn % args.hosts.len().max(1);
        let host = args.hosts.get(place).map_or("127.0.0.1", String::as_str);
        // Whoever has a host of its own has the same ports as any other such server.
        let number = on_host.entry(host).and_modify(|n| *n += 1).or_insert(1);
        let port = |kind: u32| u32::from(args.base_port) + kind * stride + *number;
        let [peer, client, admin] = [0, 1, 2].map(|kind| format!("\"{host}:{}\"", port(kind)));
        lines.push(format!("{server} = {{ peer = {peer}, client = {client}, admin = {admin} }}"));
    }
    Ok(lines.join("\n") + "\n")
}

/// Where the servers of a configuration keep their directories, unless told otherwise: beside it. However it was called, the
/// path is the same.
fn data_dir(config: &Path, given: Option<PathBuf>) -> Result<PathBuf, String> {
    let dir = given.unwrap_or_else(|| config.parent().map_or_else(PathBuf::new, Path::to_path_buf));
    let dir = if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir };
    fs::canonicalize(&dir).map_err(|e| format!("{}: {e}", dir.display()))
}

fn pid_file(data: &Path, server: NodeId) -> PathBuf {
    data.join(format!("{server}.pid"))
}

fn log_file(data: &Path, server: NodeId) -> PathBuf {
    data.join(format!("{server}.log"))
}

/// A server that was started, and how long its log was before.
struct Started {
    server: NodeId,
    child: Child,
    logged: u64,
    listens: bool,
}

impl Started {
    /// Whether it is not known yet how it begins: it has neither written its number nor ended.
    fn is_starting(&mut self, data: &Path) -> bool {
        self.listens |= pid_of(data, self.server) == Some(self.child.id());
        !self.listens && self.end(data).is_none()
    }

    /// How it ended, if it did.
    fn end(&mut self, data: &Path) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        let said = last_words(&log_file(data, self.server), self.logged);
        Some(format!("{} has ended ({status}): {said}", self.server))
    }
}

/// Starts every server of a configuration that does not run yet, and waits until each cluster has a leader.
///
/// # Errors
///
/// The configuration cannot be used, a server does not start (its reason is told), or some cluster gets no leader in time.
pub fn up(path: &Path, data: Option<PathBuf>) -> Result<String, String> {
    let (config, begun) = (config_file::load(path)?, Instant::now());
    let data = data_dir(path, data)?;
    let program = std::env::current_exe().map_err(|e| format!("this program cannot be found: {e}"))?;
    let mut started = Vec::new();
    for server in config.context.topology.servers() {
        let dir = server_dir(&data, server);
        if running(&data, server).is_some() {
            continue;
        }
        let shown = log_file(&data, server);
        let named = |e: io::Error| format!("{}: {e}", shown.display());
        let log = File::options().append(true).create(true).open(&shown).map_err(named)?;
        let logged = log.metadata().map_err(named)?.len();
        let mut command = Command::new(&program);
        command.arg("node").arg("--config").arg(path).arg("--server").arg(server.to_string());
        command.arg("--data-dir").arg(&dir).arg("--pid-file").arg(pid_file(&data, server));
        command.stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(named)?).stderr(log);
        // Ctrl-C in this terminal is not meant for them.
        command.process_group(0);
        let child = command.spawn().map_err(|e| format!("{server} cannot be started: {e}"))?;
        started.push(Started { server, child, logged, listens: false });
    }
    let before = config.context.topology.server_count() - started.len();
    wait_for_leaders(&config, &data, &mut started, begun)?;
    let there = if before > 0 { format!(" ({before} ran already)") } else { String::new() };
    Ok(format!(
        "{} servers run, and every cluster has a leader, after {:.1} s{there}",
        config.context.topology.server_count(),
        begun.elapsed().as_secs_f64()
    ))
}

fn wait_for_leaders(
    config: &ClusterConfig,
    data: &Path,
    started: &mut [Started],
    begun: Instant,
) -> Result<(), String> {
    let client = Client::start(config.context.clone(), config.settings.timeouts)
        .map_err(|e| format!("no coordinator: {e}"))?;
    client.send(client::Command::Op(Op::Confirm { anew: true }));
    let mut led = false;
    loop {
        // Also if one has ended, the others are waited for: whoever stops them finds them by what they write when they listen.
        let starting = started.iter_mut().find_map(|s| s.is_starting(data).then_some(s.server));
        let late = begun.elapsed() > PATIENCE;
        if (starting.is_none() || late)
            && let Some(end) = started.iter_mut().find_map(|s| s.end(data))
        {
            return Err(end);
        }
        match starting {
            None if led => return Ok(()),
            Some(server) if late => {
                let log = log_file(data, server);
                return Err(format!("{server} does not listen after {PATIENCE:?}; see {}", log.display()));
            }
            _ => {}
        }
        match client.news.recv_timeout(LOOK_AFTER) {
            Ok(News::Op(Outcome::Confirmed(reaches))) => {
                let leaderless = |(_, reach): &(usize, &Reach)| !matches!(reach, Reach::Leader { .. });
                let Some((shard, _)) = reaches.iter().enumerate().find(leaderless) else {
                    led = true;
                    continue;
                };
                if late {
                    let cluster = ShardId(shard as u16 + 1);
                    return Err(format!(
                        "{cluster} has no leader after {PATIENCE:?}; see {}",
                        data.display()
                    ));
                }
                client.send(client::Command::Op(Op::Confirm { anew: true }));
            }
            Ok(News::TurnedAway(why)) => return Err(why),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err("the coordinator has stopped".into()),
        }
        if begun.elapsed() > 2 * PATIENCE {
            return Err(format!("no leader after {:?}; see the logs in {}", 2 * PATIENCE, data.display()));
        }
    }
}

/// What a server wrote last since its log was so long.
fn last_words(path: &Path, since: u64) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(since))?;
        file.take(1 << 20).read_to_string(&mut text)
    });
    match text.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) if read.is_ok() => line.to_string(),
        _ => format!("see {}", path.display()),
    }
}

/// What a server of this data directory wrote when it last listened.
pub fn pid_of(data: &Path, server: NodeId) -> Option<u32> {
    fs::read_to_string(pid_file(data, server)).ok()?.trim().parse().ok()
}

/// The process that runs a server of this data directory, as its file says, if it does.
fn running(data: &Path, server: NodeId) -> Option<OwnedFd> {
    let pid = pid_of(data, server)?;
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the descriptor is new, and owned here alone.
    let process = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // The number may be another process' by now, and the same directory may be called by many names.
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = arguments.split(|byte| *byte == 0);
    words.find(|word| *word == b"node")?;
    words.find(|word| *word == b"--data-dir")?;
    let named = Path::new(OsStr::from_bytes(words.next()?));
    let resolved = |path: PathBuf| fs::canonicalize(&path).unwrap_or(path);
    let its = resolved(Path::new(&format!("/proc/{pid}/cwd")).join(named));
    (its == resolved(server_dir(data, server))).then_some(process)
}

/// Tells every server that [`up`] started to stop, and waits until all have.
///
/// # Errors
///
/// The configuration cannot be used, or a server does not end in time; it is named.
pub fn down(path: &Path, data: Option<PathBuf>) -> Result<String, String> {
    let config = config_file::load(path)?;
    let data = data_dir(path, data)?;
    let mut ending = Vec::new();
    for server in config.context.topology.servers() {
        if let Some(process) = running(&data, server) {
            // SAFETY: a system call on a descriptor that is open; no signal information is passed.
            let sent = unsafe {
                libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGTERM, 0usize, 0)
            };
            if sent != 0 {
                return Err(format!("{server} cannot be told to stop: {}", io::Error::last_os_error()));
            }
            ending.push((server, process));
        }
    }
    let count = ending.len();
    let begun = Instant::now();
    for (server, process) in ending {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, which lives here.
        let ended = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32) };
        if ended != 1 {
            return Err(format!(
                "{server} has not ended after {PATIENCE:?}; see {}",
                log_file(&data, server).display()
            ));
        }
        let _ = fs::remove_file(pid_file(&data, server));
    }
    Ok(format!("{count} servers have stopped"))
}
