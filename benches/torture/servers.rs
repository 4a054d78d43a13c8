//! Nine real server processes, each in its namespace and on a small disk of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use shardpaxosbank::config::Topology;
use shardpaxosbank::report::Role;
use shardpaxosbank::runtime::admin;
use shardpaxosbank::runtime::config_file::{self, ClusterConfig};
use shardpaxosbank::runtime::order::{Order, Report};
use shardpaxosbank::runtime::status::Status;
use shardpaxosbank::types::{NodeId, ShardId};

use crate::net;
use crate::proxy::Proxy;

pub const CLUSTERS: u16 = 3;
pub const PER_CLUSTER: u16 = 3;
pub const SERVERS: u16 = CLUSTERS * PER_CLUSTER;
/// Peers of the last cluster reach each other through the proxy.
pub const PROXIED: std::ops::RangeInclusive<u16> = SERVERS - PER_CLUSTER + 1..=SERVERS;

const PEER: u16 = 7000;
const CLIENT: u16 = 7100;
/// Room for the log that `KEEP` asks for, and for two snapshots and a third in the making. What clients have named is kept until
/// its session expires, after ten minutes: at full speed that grows to a hundred megabytes of each shard's state.
const DISK: &str = "640m";
const KEEP: &str = "[keep]\nsnapshot_mib = 8\naudit_mib = 32\n";

/// So long everything may take to be well again after whatever was done to it.
pub const PATIENCE: Duration = Duration::from_secs(40);

pub struct Servers {
    dir: PathBuf,
    config: ClusterConfig,
    running: Vec<Option<Child>>,
    /// What goes to each server of the last cluster.
    pub proxies: Vec<Proxy>,
}

impl Servers {
    /// Writes configurations, mounts disks and starts everybody. `dir` is empty.
    pub fn found(dir: &Path, accounts: u64, initial_balance: u64) -> Result<Servers, String> {
        let proxies: Vec<Proxy> = PROXIED.map(|_| Proxy::new()).collect();
        for (to, proxy) in PROXIED.zip(&proxies) {
            for from in PROXIED.filter(|from| *from != to) {
                proxy.serve(&proxied(from, to), format!("{}:{PEER}", net::address(to)))?;
            }
        }
        let text = |reader: u16| {
            let peer = |server: u16| {
                let by_proxy = PROXIED.contains(&reader) && PROXIED.contains(&server) && reader != server;
                if by_proxy { proxied(reader, server) } else { format!("{}:{PEER}", net::address(server)) }
            };
            let line = |server: u16| {
                let client = format!("{}:{CLIENT}", net::address(server));
                format!("S{server} = {{ peer = \"{}\", client = \"{client}\" }}\n", peer(server))
            };
            format!(
                "cluster_id = \"{:032x}\"\nclusters = {CLUSTERS}\nservers_per_cluster = {PER_CLUSTER}\n\
                 accounts = {accounts}\ninitial_balance = {initial_balance}\nallow_admin = true\n{KEEP}[servers]\n{}",
                std::process::id(),
                (1..=SERVERS).map(line).collect::<String>()
            )
        };
        for reader in 0..=SERVERS {
            let path = config_path(dir, reader);
            std::fs::write(&path, text(reader)).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        let config = config_file::load(&config_path(dir, 0))?;
        let running = (1..=SERVERS).map(|_| None).collect();
        let mut all = Servers { dir: dir.into(), config, running, proxies };
        for server in 1..=SERVERS {
            let place = all.place(server);
            std::fs::create_dir_all(&place).map_err(|e| format!("{}: {e}", place.display()))?;
            net::run(&format!("mount -t tmpfs -o size={DISK} tmpfs {}", place.display()))?;
            all.start(server)?;
        }
        Ok(all)
    }

    /// Where a server's disk is mounted.
    pub fn place(&self, server: u16) -> PathBuf {
        self.dir.join(format!("S{server}"))
    }

    pub fn topology(&self) -> Topology {
        self.config.context.topology
    }

    pub fn members(&self, shard: ShardId) -> Vec<u16> {
        self.topology().servers_of(shard).map(|server| server.0).collect()
    }

    pub fn shard_of(&self, server: u16) -> ShardId {
        self.topology().shard_of_server(NodeId(server))
    }

    pub fn client_address(server: u16) -> String {
        format!("{}:{CLIENT}", net::address(server))
    }

    /// Starts it as if by `ulimit -n`.
    pub fn start_with_few_descriptors(&mut self, server: u16, few: u64) -> Result<(), String> {
        self.start(server)?;
        // Without a number it would be the limit of this process.
        let pid = self.pid(server).ok_or("it was started")?;
        // Long before it asks: what was started is `ip`, which becomes the server.
        let limit = Rlimit { current: Some(few), maximum: Some(few) };
        prlimit(Some(pid), Resource::Nofile, limit).map(drop).map_err(|e| format!("prlimit: {e}"))
    }

    pub fn start(&mut self, server: u16) -> Result<(), String> {
        let path = self.dir.join(format!("S{server}.log"));
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(|e| format!("{}: {e}", path.display()))?;
        let child = Command::new("ip")
            .args(["netns", "exec", &format!("n{server}"), env!("CARGO_BIN_EXE_bank"), "node", "--config"])
            .arg(config_path(&self.dir, server))
            .args(["--server", &format!("S{server}"), "--format", "--data-dir"])
            .arg(self.place(server).join("data"))
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into()))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.running[usize::from(server - 1)] = Some(child.map_err(|e| format!("S{server}: {e}"))?);
        Ok(())
    }

    pub fn is_running(&self, server: u16) -> bool {
        self.running[usize::from(server - 1)].is_some()
    }

    pub fn pid(&self, server: u16) -> Option<Pid> {
        self.running[usize::from(server - 1)].as_ref().map(Pid::from_child)
    }

    pub fn signal(&self, server: u16, signal: Signal) -> Result<(), String> {
        let pid = self.pid(server).ok_or_else(|| format!("S{server} is down"))?;
        kill_process(pid, signal).map_err(|e| format!("S{server}: {e}"))
    }

    /// kill -9.
    pub fn kill(&mut self, server: u16) -> Result<(), String> {
        self.signal(server, Signal::KILL)?;
        let child = self.running[usize::from(server - 1)].take();
        child.map_or(Ok(()), |mut child| child.wait().map(drop).map_err(|e| format!("S{server}: {e}")))
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self, server: u16) -> Result<(), String> {
        self.signal(server, Signal::TERM)?;
        let mut child = self.running[usize::from(server - 1)].take().expect("it was signalled");
        let status = child.wait().map_err(|e| format!("S{server}: {e}"))?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("S{server} was told to stop and ended with {status}"))
        }
    }

    /// Who ended without being told to.
    pub fn fallen(&mut self) -> Option<String> {
        self.running.iter_mut().enumerate().find_map(|(i, child)| {
            let status = child.as_mut()?.try_wait().ok()??;
            Some(format!("S{} ended by itself with {status}; its log is S{0}.log", i + 1))
        })
    }

    pub fn status(&self, server: u16) -> Option<Status> {
        match admin::ask(&self.config.context, NodeId(server), &Order::Status) {
            Ok(Report::Status(status)) => Some(*status),
            _ => None,
        }
    }

    pub fn leader(&self, shard: ShardId) -> Option<u16> {
        let leads = |s: &u16| self.is_running(*s) && self.status(*s).is_some_and(|s| s.role == Role::Leader);
        self.members(shard).into_iter().find(leads)
    }

    /// Waits until every server is up, every shard is led, and nobody is far behind.
    ///
    /// # Errors
    ///
    /// It did not come to that in [`PATIENCE`], or a server is gone.
    pub fn heal(&mut self) -> Result<Duration, String> {
        let since = Instant::now();
        loop {
            if let Some(fallen) = self.fallen() {
                return Err(fallen);
            }
            let ill = (1..=SERVERS).find_map(|server| {
                let Some(status) = self.status(server) else {
                    return Some(format!("S{server} does not answer"));
                };
                let well =
                    status.role != Role::Learner && !status.repairing && !status.disputed && status.lag < 64;
                let led = status.leader.is_some() && status.room.is_none();
                (!well || !led).then(|| {
                    format!(
                        "S{server}: {:?}, leader {:?}, lag {}, room {:?}",
                        status.role, status.leader, status.lag, status.room
                    )
                })
            });
            match ill {
                None => return Ok(since.elapsed()),
                Some(ill) if since.elapsed() > PATIENCE => {
                    return Err(format!("after {} s without harm, {ill}", PATIENCE.as_secs()));
                }
                Some(_) => crate::pause(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in 1..=SERVERS {
            if self.is_running(server) {
                let _ = self.kill(server);
            }
            let _ = net::run(&format!("umount {}", self.place(server).display()));
        }
    }
}

fn config_path(dir: &Path, reader: u16) -> PathBuf {
    dir.join(format!("cluster-{reader}.toml"))
}

/// Where the proxy waits for what one server has for another.
fn proxied(from: u16, to: u16) -> String {
    format!("{}:{}", net::HERE, 9000 + 10 * from + to)
}
