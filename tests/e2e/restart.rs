//! Servers that crash and restart from their disk, while rows run and between them, in one process.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use shardpaxosbank::config::{Settings, Timeouts, Topology};
use shardpaxosbank::report::{Role, RowOutcome, ServerState, SetReport};
use shardpaxosbank::runtime::cluster::{Cluster, DataDir, Fleet};
use shardpaxosbank::runtime::conns::Context;
use shardpaxosbank::runtime::order::{Order, Report};
use shardpaxosbank::runtime::runner::{Options, Runner, Stop};
use shardpaxosbank::runtime::status::Status;
use shardpaxosbank::testset::model::{Model, Outcome};
use shardpaxosbank::testset::{Set, parse};
use shardpaxosbank::types::{AccountId, NodeId, ShardId};
use shardpaxosbank::workload::{SetFileOptions, random_set_file};

use crate::common::eventually;

const TOPOLOGY: Topology =
    Topology { clusters: 3, servers_per_cluster: 3, accounts: 60, initial_balance: 50 };

/// A cluster that somebody else may reach while a runner uses it, and crash servers of.
#[derive(Clone)]
struct Shared {
    cluster: Arc<Mutex<Cluster>>,
    context: Context,
    /// Does its work while rows run. The barrier at the end of a set waits for it: only then are all servers up again.
    saboteur: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Shared {
    fn start() -> Shared {
        // RUST_LOG=debug with --nocapture shows what a failing test did, and which server says so.
        let line = |out: &mut env_logger::fmt::Formatter, record: &log::Record| {
            let thread = std::thread::current();
            let now = out.timestamp_micros();
            writeln!(out, "{now} {} in {}: {}", record.level(), thread.name().unwrap_or("?"), record.args())
        };
        // Another test may have set it up.
        let _ = env_logger::Builder::from_default_env().format(line).try_init();
        let data = DataDir::temporary().expect("a temporary directory");
        let cluster = Cluster::start(TOPOLOGY, Settings::default(), data).expect("nine servers start");
        let context = cluster.context().clone();
        Shared { cluster: Arc::new(Mutex::new(cluster)), context, saboteur: Arc::default() }
    }

    fn runner(&self, in_flight: usize) -> Runner {
        let fleet = self.clone();
        let factory = Box::new(move || Ok(Box::new(fleet.clone()) as Box<dyn Fleet>));
        let options = Options { in_flight, race: false, reset_each_set: false, progress: false };
        Runner::new(factory, options, None).unwrap_or_else(|e| panic!("{e:?}"))
    }

    fn status(&self, server: NodeId) -> Status {
        match self.cluster.lock().ask(server, Order::Status) {
            Ok(Report::Status(status)) => *status,
            other => panic!("{server}: {other:?}"),
        }
    }

    fn crash(&self, server: NodeId) {
        self.cluster.lock().crash(server).expect("a crash succeeds");
    }

    fn restart(&self, server: NodeId) {
        self.cluster.lock().restart(server).unwrap_or_else(|e| panic!("{e}"));
    }

    fn up(&self, shard: ShardId) -> Vec<NodeId> {
        let cluster = self.cluster.lock();
        TOPOLOGY.servers_of(shard).filter(|s| cluster.state(*s) == ServerState::Live).collect()
    }

    fn find(&self, shard: ShardId, role: Role) -> NodeId {
        eventually("a server in its role", || {
            self.up(shard).into_iter().find(|s| self.status(*s).role == role)
        })
    }

    /// Waits until a leader of this cluster has decided so many slots more than are decided now.
    fn await_progress(&self, shard: ShardId, slots: u64) {
        let decided = || {
            let statuses = self.up(shard).into_iter().map(|s| self.status(s));
            statuses.filter(|s| s.role == Role::Leader).map(|s| s.decided.0).max()
        };
        let from = eventually("a leader", decided);
        eventually("progress", || decided().filter(|d| *d >= from + slots));
    }

    /// All servers of each cluster are in the same state (P4).
    fn assert_digests_agree(&self) {
        for shard in TOPOLOGY.shards() {
            let states: Vec<(u64, u64, u64)> = TOPOLOGY
                .servers_of(shard)
                .map(|s| self.status(s))
                .map(|s| (s.applied.0, s.digest, s.in_doubt))
                .collect();
            assert!(states.iter().all(|s| *s == states[0]), "P4: {shard}: {states:?}");
            assert_eq!(states[0].2, 0, "{shard} holds locks after the end");
        }
    }
}

impl Fleet for Shared {
    fn context(&self) -> &Context {
        &self.context
    }

    fn timeouts(&self) -> Timeouts {
        Timeouts::default()
    }

    fn state(&self, server: NodeId) -> ServerState {
        self.cluster.lock().state(server)
    }

    fn ask(&mut self, server: NodeId, order: Order) -> Result<Report, String> {
        if matches!(order, Order::AwaitApplied(_)) {
            let saboteur = self.saboteur.lock().take();
            if let Some(thread) = saboteur {
                thread.join().expect("the saboteur succeeds");
            }
        }
        let report = self.cluster.lock().ask(server, order.clone());
        report.map_err(|e| {
            let cluster = TOPOLOGY.servers_of(TOPOLOGY.shard_of_server(server));
            let others: Vec<String> = cluster
                .map(|s| self.status(s))
                .map(|s| format!("{}: {:?} {:?} {}/{}", s.server, s.role, s.ballot, s.applied.0, s.decided.0))
                .collect();
            format!("{e} {order:?}; {}", others.join(", "))
        })
    }

    fn crash(&mut self, server: NodeId) -> Result<(), String> {
        self.cluster.lock().crash(server)
    }

    fn restart(&mut self, server: NodeId) -> Result<(), String> {
        self.cluster.lock().restart(server)
    }

    fn fail(&mut self, server: NodeId) -> Result<(), String> {
        self.cluster.lock().fail(server)
    }

    fn recover(&mut self, server: NodeId) -> Result<(), String> {
        self.cluster.lock().recover(server)
    }
}

fn random_set(seed: u64, rows: usize) -> Set {
    let options = SetFileOptions { sets: 1, failures: false, max_amount: 30, ..SetFileOptions::default() };
    let text = random_set_file(seed, &TOPOLOGY, rows, &options);
    parse("random", text.as_bytes(), &TOPOLOGY).expect("a sound file").sets.remove(0)
}

/// What a set must give, and what it gave.
fn assert_as_model(model: &mut Model, set: &Set, result: Result<SetReport, Stop>) {
    let report = result.unwrap_or_else(|e| panic!("{e:?}"));
    let expected = model.run_set(set);
    for (row, expected) in report.results.iter().zip(&expected.rows) {
        let actual = match row.outcome {
            RowOutcome::Committed => Outcome::Committed,
            RowOutcome::Aborted(reason) => Outcome::Aborted(reason),
            RowOutcome::Balance(balance) => Outcome::Balance(balance),
            RowOutcome::Done => Outcome::Done,
            RowOutcome::Unknown => panic!("row {} is unknown, though no cluster lost its majority", row.n),
        };
        assert_eq!(actual, *expected, "row {}: {:?}", row.n, row.command);
    }
    assert_eq!(report.results.len(), expected.rows.len());
}

/// Every account, on every server.
fn assert_balances(model: &Model, runner: &mut Runner) {
    let table = runner.balances((1..=TOPOLOGY.accounts).map(AccountId)).unwrap_or_else(|e| panic!("{e:?}"));
    for (account, held) in &table {
        let shard = TOPOLOGY.shard_of(*account).expect("it exists");
        let expected: BTreeMap<NodeId, Option<u64>> =
            TOPOLOGY.servers_of(shard).map(|s| (s, Some(model.balance(*account)))).collect();
        assert_eq!(*held, expected, "account {account}");
    }
    assert_eq!(table.len() as u64, TOPOLOGY.accounts);
}

#[test]
fn a_minority_crashes_while_rows_run() {
    let shared = Shared::start();
    let mut runner = shared.runner(4);
    let mut model = Model::new(TOPOLOGY);
    let first = random_set(1, 20);
    assert_as_model(&mut model, &first, runner.run_set(&first));

    let elections = runner.views().len();
    let set = random_set(2, 4000);
    let last_seen = Arc::new(Mutex::new(BTreeMap::new()));
    let (saboteur, seen) = (shared.clone(), last_seen.clone());
    let work = move || {
        for (shard, role) in [(1, Role::Leader), (2, Role::Follower), (3, Role::Leader)] {
            let shard = ShardId(shard);
            saboteur.await_progress(shard, 3);
            let victim = saboteur.find(shard, role);
            saboteur.crash(victim);
            // Without it the cluster goes on; with it again, too.
            saboteur.await_progress(shard, 3);
            saboteur.restart(victim);
            saboteur.await_progress(shard, 3);
            seen.lock().insert(shard, saboteur.status(saboteur.find(shard, Role::Leader)).decided);
        }
    };
    let thread = std::thread::Builder::new().name("saboteur".into()).spawn(work).expect("a thread");
    *shared.saboteur.lock() = Some(thread);
    assert_as_model(&mut model, &set, runner.run_set(&set));
    assert_balances(&model, &mut runner);
    shared.assert_digests_agree();
    // All of it happened while rows ran, and leaders were really lost.
    for (shard, decided) in last_seen.lock().iter() {
        let end = shared.status(shared.find(*shard, Role::Leader)).decided;
        assert!(end > *decided, "{shard}: the rows had ended before the restart: {decided} of {end}");
    }
    assert_eq!(last_seen.lock().len(), 3);
    assert!(runner.views().len() >= elections + 2, "two leaders crashed");
}

/// Everything is gone but the disks, twice, and the bank is what it was.
#[test]
fn all_nine_crash_and_restart_from_disk() {
    let shared = Shared::start();
    let mut runner = shared.runner(64);
    let mut model = Model::new(TOPOLOGY);
    for round in 0..2 {
        let set = random_set(10 + round, 300);
        assert_as_model(&mut model, &set, runner.run_set(&set));
        let before: Vec<Status> = TOPOLOGY.servers().map(|s| shared.status(s)).collect();
        for server in TOPOLOGY.servers() {
            shared.crash(server);
        }
        let account = AccountId(1);
        let none = runner.balances([account]).unwrap_or_else(|e| panic!("{e:?}"));
        assert!(none[&account].values().all(Option::is_none), "a crashed server shows a balance: {none:?}");
        for server in TOPOLOGY.servers() {
            runner.restart(server).unwrap_or_else(|e| panic!("{e:?}"));
        }
        assert_balances(&model, &mut runner);
        shared.assert_digests_agree();
        for status in before {
            let now = shared.status(status.server);
            assert!(now.decided >= status.decided, "{} has forgotten decided slots", status.server);
            let leads = now.role == Role::Leader;
            assert!(
                !leads || now.ballot > status.ballot,
                "P1: {} leads in a ballot of an earlier life",
                now.server
            );
        }
    }
    let set = random_set(20, 300);
    assert_as_model(&mut model, &set, runner.run_set(&set));
}

/// A crash between two sets, and a set that needs the crashed server: it is restarted, and catches up.
#[test]
fn crashed_servers_restart_at_the_start_of_a_set() {
    let shared = Shared::start();
    let mut runner = shared.runner(64);
    let mut model = Model::new(TOPOLOGY);
    let mut set = random_set(30, 100);
    assert_as_model(&mut model, &set, runner.run_set(&set));
    for server in [1, 5, 9].map(NodeId) {
        runner.crash(server).unwrap_or_else(|e| panic!("{e:?}"));
    }
    set = random_set(31, 100);
    set.live.retain(|s| ![1, 5, 9].map(NodeId).contains(s));
    assert_as_model(&mut model, &set, runner.run_set(&set));
    let states: Vec<ServerState> = runner.states().into_iter().map(|(_, state)| state).collect();
    let (live, crashed) = (ServerState::Live, ServerState::Crashed);
    assert_eq!(states, [crashed, live, live, live, crashed, live, live, live, crashed]);
    set = random_set(32, 100);
    assert_as_model(&mut model, &set, runner.run_set(&set));
    assert_balances(&model, &mut runner);
    shared.assert_digests_agree();

    // The logs of a cluster's servers tell the same story, also where one slept through part of it.
    for shard in TOPOLOGY.shards() {
        let logs: Vec<_> =
            TOPOLOGY.servers_of(shard).map(|s| runner.log(s).unwrap_or_else(|e| panic!("{e:?}"))).collect();
        assert!(
            logs.iter().all(|log| *log == logs[0] && !log.lines.is_empty() && log.gaps.is_empty()),
            "{shard}: logs differ"
        );
    }
}
