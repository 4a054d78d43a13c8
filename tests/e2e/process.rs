//! `bank node`: nine processes that share nothing, driven by `bank run --config`.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use parking_lot::Mutex;
use shardpaxosbank::config::Topology;
use shardpaxosbank::report::Role;
use shardpaxosbank::runtime::admin;
use shardpaxosbank::runtime::config_file::{self, ClusterConfig};
use shardpaxosbank::runtime::order::{Order, Report};
use shardpaxosbank::runtime::status::Status;
use shardpaxosbank::types::NodeId;
use tempfile::TempDir;

use crate::common::{
    LIMIT, Ran, Running, assert_as_model, audit, audit_set, bank, data, eventually, load, model_of, put, run,
    set_text, temp,
};

/// Ports that nobody listens on now, and that no other test run takes: whoever listens on the first of a block, as this
/// process then does until its end, owns the rest. They lie below those that the system gives to outgoing connections,
/// so that none of those takes one before the server does, or while it is down.
pub fn free_ports(count: usize) -> Vec<u16> {
    const BLOCK: u16 = 16;
    const BLOCKS: u16 = 12_000 / BLOCK;
    static OWNED: Mutex<Vec<TcpListener>> = Mutex::new(Vec::new());
    let mut owned = OWNED.lock();
    let first = (std::process::id() % u32::from(BLOCKS)) as u16;
    for block in (first..BLOCKS).chain(0..first) {
        let guard = 20_000 + block * BLOCK;
        let Ok(listener) = TcpListener::bind(("127.0.0.1", guard)) else { continue };
        let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let free: Vec<u16> = (guard + 1..guard + BLOCK).filter(is_free).take(count).collect();
        if free.len() == count {
            owned.push(listener);
            return free;
        }
    }
    panic!("no {count} ports are free");
}

/// A configuration with `ports` in clusters of three, 10 accounts of 100 units for each cluster.
pub fn config_text(clusters: u16, ports: &[u16]) -> String {
    let servers = ports.iter().enumerate().map(|(i, port)| format!("S{} = \"127.0.0.1:{port}\"\n", i + 1));
    format!(
        "cluster_id = \"000102030405060708090a0b0c0d0e0f\"\nclusters = {clusters}\nservers_per_cluster = 3\n\
         accounts = {}\ninitial_balance = 100\nallow_admin = true\n[servers]\n{}",
        clusters * 10,
        servers.collect::<String>()
    )
}

pub struct Processes {
    pub dir: TempDir,
    pub path: String,
    config: ClusterConfig,
    pub running: Vec<Option<Running>>,
}

impl Processes {
    /// Servers that were not started.
    fn new(clusters: u16, edit: impl Fn(String) -> String) -> Processes {
        let dir = temp();
        let ports = free_ports(3 * usize::from(clusters));
        let path = put(dir.path(), "cluster.toml", &edit(config_text(clusters, &ports)));
        let config = config_file::load(Path::new(&path)).expect("a sound configuration");
        Processes { dir, path, config, running: ports.iter().map(|_| None).collect() }
    }

    /// Three clusters of three.
    pub fn start(edit: impl Fn(String) -> String) -> Processes {
        Processes::start_clusters(3, edit)
    }

    pub fn start_clusters(clusters: u16, edit: impl Fn(String) -> String) -> Processes {
        let mut all = Processes::new(clusters, edit);
        let servers = 1..=all.running.len();
        servers.clone().for_each(|server| all.launch(server));
        servers.for_each(|server| all.listens(server));
        all
    }

    pub fn launch(&mut self, server: usize) {
        self.launch_with(server, "--format");
    }

    pub fn launch_with(&mut self, server: usize, flag: &str) {
        let command = self.command(server, flag);
        self.launch_as(server, command);
    }

    /// What starts a server.
    pub fn command(&self, server: usize, flag: &str) -> Command {
        let (data, name) = (self.place(server).display().to_string(), format!("n{server}"));
        let mut command =
            bank(&["node", "--config", &self.path, "--server", &name, "--data-dir", &data, flag]);
        command.env("RUST_LOG", "warn");
        command
    }

    pub fn launch_as(&mut self, server: usize, command: Command) {
        self.running[server - 1] = Some(Running::start(command));
    }

    pub fn listens(&mut self, server: usize) {
        let why = self.refusal(server);
        assert!(why.is_none(), "S{server}: {why:?}");
    }

    /// Waits until it listens, or says why it does not start.
    pub fn refusal(&mut self, server: usize) -> Option<String> {
        let line = self.running[server - 1].as_mut().expect("it was launched").line();
        if line.as_ref().is_some_and(|l| l.contains("listens on")) {
            return None;
        }
        let ran = self.running[server - 1].take().expect("it was launched").finish().with_code(2);
        Some(ran.err)
    }

    pub fn place(&self, server: usize) -> PathBuf {
        self.dir.path().join(format!("S{server}"))
    }

    pub fn kill(&mut self, server: usize) {
        self.running[server - 1].take().expect("it runs").kill();
    }

    pub fn status(&self, server: usize) -> Option<Status> {
        match admin::ask(&self.config.context, NodeId(server as u16), &Order::Status).ok()? {
            Report::Status(status) => Some(*status),
            other => panic!("S{server} answers {other:?}"),
        }
    }

    /// Where clients find a server.
    pub fn client_address(&self, server: usize) -> String {
        self.config.context.addresses[&NodeId(server as u16)].client.to_string()
    }

    pub fn leader(&self, servers: std::ops::RangeInclusive<usize>) -> usize {
        let leads = |s: &usize| self.status(*s).is_some_and(|status| status.role == Role::Leader);
        eventually("a leader", || servers.clone().find(leads))
    }

    pub fn topology(&self) -> Topology {
        self.config.context.topology
    }

    pub fn run(&self, file: &str) -> Ran {
        run(&["run", file, "--config", &self.path, "--json"])
    }

    /// Waits until all servers of each cluster are in the same state, by its digest.
    pub fn agree(&self) {
        for shard in self.topology().shards() {
            eventually("equal digests", || {
                let states = self.topology().servers_of(shard).map(|server| self.status(server.0.into()));
                let states: Option<Vec<_>> = states.map(|s| s.map(|s| (s.applied, s.digest))).collect();
                states.filter(|states| states.iter().all(|state| *state == states[0]))
            });
        }
    }

    pub fn audit(&self) {
        let file = put(self.dir.path(), "audit.csv", &audit_set(1, &self.topology()));
        let ran = self.run(&file).with_code(0);
        audit(&ran.sets()[0], &self.topology());
    }
}

#[test]
fn nine_processes_run_set_files() {
    let all = Processes::start(|text| {
        text.replace("accounts = 30\ninitial_balance = 100", "accounts = 3000\ninitial_balance = 10")
    });
    let topology = all.topology();
    let mut together = shardpaxosbank::testset::SetFile { sets: Vec::new() };
    let mut sets = Vec::new();
    // One after the other on the same bank, with failures and recoveries.
    for name in ["failures.csv", "demo.csv"] {
        sets.extend(all.run(&data(name).display().to_string()).with_code(0).sets());
        together.sets.extend(load(&data(name), &topology).sets);
    }
    assert_as_model("failures.csv, demo.csv", &sets, &model_of(&together, &topology, false), &topology);
}

/// kill -9 of a leader while rows run, twice, and each time the same server comes back from its disk: every outcome is
/// the model's, so nothing is lost and nothing happens twice.
#[test]
fn a_leader_is_killed_under_load_and_comes_back() {
    let mut all = Processes::start(|text| text);
    let topology = all.topology();
    let rows = |n: u64| -> Vec<String> {
        let row =
            |i: u64| format!("({}, {}, {})", (i * 7 + n) % 30 + 1, (i * 11 + n + i / 30) % 30 + 1, i % 7 + 1);
        (0..40).map(row).collect()
    };
    let text: String = (1..=40).map(|n| set_text(n, &topology, &rows(n as u64))).collect();
    let file = put(all.dir.path(), "load.csv", &text);
    let mut command = bank(&["run", &file, "--config", &all.path, "--json"]);
    command.env("RUST_LOG", "error");
    let mut driver = Running::start(command);
    let mut lines = vec![driver.line().expect("a set has run")];
    for cluster in [1..=3, 7..=9] {
        let leader = all.leader(cluster.clone());
        lines.push(driver.line().expect("a set has run"));
        all.kill(leader);
        let survivors = cluster.clone().filter(|s| *s != leader);
        eventually("another leader", || {
            survivors.clone().find(|s| all.status(*s).is_some_and(|status| status.role == Role::Leader))
        });
        lines.extend([driver.line().expect("a set has run"), driver.line().expect("a set has run")]);
        all.launch(leader);
        all.listens(leader);
    }
    let ran = driver.finish().with_code(0);
    let told: Vec<serde_json::Value> = lines.iter().map(|l| crate::common::set_object(l)).collect();
    assert!(ran.out.lines().count() > 0, "the load ended before the last server was back");
    let sets = [told, ran.sets()].concat();
    let parsed = load(Path::new(&file), &topology);
    let expected = model_of(&parsed, &topology, false);
    for (i, set) in sets.iter().enumerate() {
        let short = crate::common::as_expected(set, &topology);
        assert_eq!(short["results"], expected[i]["results"], "set {}", i + 1);
    }
    all.audit();
}

/// A server that lost its directory comes back with a new one: it catches up, does not vote until the others have let it
/// in, and then counts: the cluster does without another of its servers. So it is after it started again.
#[test]
fn a_server_that_lost_its_disk_is_let_in_again() {
    let mut all = Processes::start(|text| text);
    let rows: Vec<String> = (1..=30).map(|n| format!("({n}, {}, 1)", n % 30 + 1)).collect();
    let file = put(all.dir.path(), "some.csv", &set_text(1, &all.topology(), &rows));
    all.run(&file).with_code(0);
    all.kill(2);
    std::fs::remove_dir_all(all.dir.path().join("S2")).expect("its directory");
    all.run(&file).with_code(0);
    all.launch_with(2, "--rejoin");
    all.listens(2);
    let votes = |all: &Processes| {
        all.status(2).is_some_and(|status| status.role != Role::Learner && status.applied.0 > 0)
    };
    eventually("it is let in", || votes(&all).then_some(()));
    for again in [false, true] {
        if again {
            all.kill(2);
            all.launch_with(2, "--rejoin");
            all.listens(2);
            all.audit();
            assert!(votes(&all), "once is enough");
        }
        let other = if again { 1 } else { 3 };
        all.kill(other);
        eventually("the others elect somebody", || {
            let ran = all.run(&file).with_code(0);
            (!ran.sets()[0]["results"].to_string().contains("no-quorum")).then_some(())
        });
        all.launch(other);
        all.listens(other);
        all.audit();
    }
    let verified = run(&["wal", "verify", &all.dir.path().join("S2").display().to_string()]);
    assert!(verified.out.contains("sound"), "{verified:?}");
}

/// Two clusters of three cannot decide anything, and every row says so within seconds.
#[test]
fn missing_servers_are_no_quorum_and_no_hang() {
    let mut all = Processes::new(3, |text| text);
    // C1 is whole, C2 has one server, C3 has two and goes on.
    let up = [1, 2, 3, 4, 7, 9];
    up.iter().for_each(|s| all.launch(*s));
    up.iter().for_each(|s| all.listens(*s));
    let topology = all.topology();
    let rows = ["(1, 2, 1)", "(11, 12, 1)", "(1, 11, 1)", "(21, 1, 1)", "(11)", "(21)", "(12, 22, 1)"];
    let file = put(all.dir.path(), "some.csv", &set_text(1, &topology, &rows.map(String::from)));
    let started = std::time::Instant::now();
    let ran = all.run(&file).with_code(0);
    let took = started.elapsed();
    assert!(took < LIMIT / 4, "{took:?}");
    let set = &ran.sets()[0];
    let results = set["results"].as_array().expect("valid under the schema");
    let outcome = |row: &serde_json::Value| row.get("reason").unwrap_or(&row["outcome"]).clone();
    let outcomes: Vec<serde_json::Value> = results.iter().map(outcome).collect();
    let no = "no-quorum";
    assert_eq!(outcomes, ["committed", no, no, "committed", no, "ok", no]);
    assert_eq!(set["modified"]["22"], serde_json::json!({"S7": 100, "S8": null, "S9": 100}));

    // Nobody at all.
    for server in up {
        all.kill(server);
    }
    let ran = all.run(&file).with_code(0);
    let text = ran.sets()[0]["results"].to_string();
    assert_eq!(text.matches(no).count(), rows.len(), "{text}");

    // All of them.
    (1..=9).for_each(|s| all.launch(s));
    (1..=9).for_each(|s| all.listens(s));
    all.audit();
}

/// A server that is there and does not fit says why, once, before anything runs.
#[test]
fn a_configuration_that_does_not_fit_is_refused_by_name() {
    let all = Processes::start(|text| text.replace("allow_admin = true", "allow_admin = false"));
    let file = put(all.dir.path(), "one.csv", &set_text(1, &all.topology(), &["(1, 2, 1)".into()]));
    let text = std::fs::read_to_string(&all.path).expect("the configuration");
    for (from, to, part) in [
        ("0d0e0f", "0d0e00", "000102030405060708090a0b0c0d0e00"),
        ("accounts = 30", "accounts = 31", "accounts: 31"),
        ("initial_balance = 100", "initial_balance = 10", "initial_balance: 10"),
        ("", "", "allow_admin"),
    ] {
        let config = put(all.dir.path(), "other.toml", &text.replacen(from, to, 1));
        let ran = run(&["run", &file, "--config", &config, "--json"]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{ran:?}");
        assert_eq!(ran.err.lines().count(), 1, "one line, not\n{}", ran.err);
        assert!(ran.err.contains(part) && ran.err.contains("S1"), "no {part:?} in {}", ran.err);
    }
}

/// A run that ends with a server cut off must not spoil the next one.
#[test]
fn a_server_that_was_left_failed_is_back_in_the_next_run() {
    let all = Processes::start(|text| text);
    let rows = ["(1, 2, 1)", "F(S1)", "F(S5)", "(1, 12, 1)"].map(String::from);
    let file = put(all.dir.path(), "failed.csv", &set_text(1, &all.topology(), &rows));
    all.run(&file).with_code(0);
    all.audit();
}

/// SIGTERM and SIGINT end a server at once and in order.
#[test]
fn a_server_stops_when_it_is_told_to() {
    let mut all = Processes::new(3, |text| text);
    all.launch(1);
    all.listens(1);
    let running = all.running[0].take().expect("it runs");
    running.interrupt();
    let ran = running.finish();
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

/// A client that speaks RESP, on a connection of its own.
pub struct Guest(pub BufReader<TcpStream>);

impl Guest {
    pub fn of(all: &Processes, server: usize) -> Guest {
        Guest::at(&all.client_address(server))
    }

    pub fn at(address: &str) -> Guest {
        let stream = TcpStream::connect(address).expect("a server");
        stream.set_read_timeout(Some(LIMIT)).expect("a socket");
        Guest(BufReader::new(stream))
    }

    pub fn send(&mut self, request: &str) {
        self.0.get_mut().write_all(format!("{request}\r\n").as_bytes()).expect("room");
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a reply");
        line.trim_end().to_string()
    }

    /// Waits for the reply.
    pub fn ask(&mut self, request: &str) -> String {
        self.send(request);
        let line = self.line();
        // A bulk string: its length, and then itself.
        if line.starts_with('$') { self.line() } else { line }
    }
}
