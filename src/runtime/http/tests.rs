//! What the pages say, read with parsers of others; and how their thread bears clients that mean it no good.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;

use crossbeam::channel::{Sender, bounded, unbounded};
use parking_lot::Mutex;
use prometheus_parse::{Sample, Scrape, Value};

use super::pages::{describe, liveness, readiness};
use super::*;
use crate::config::{Timeouts, Topology};
use crate::metrics::Durations;
use crate::net::Address;
use crate::report::Role;
use crate::runtime::client::{Client, Command, News, Row};
use crate::runtime::clock::Clock;
use crate::runtime::cluster::{Blank, Threading, open_log, prepare};
use crate::runtime::conns::{Context, Door};
use crate::runtime::node::{self, Control, poll_and_waker};
use crate::runtime::order::Order;
use crate::runtime::status::{Status, Won};
use crate::txn::{Op, Outcome};
use crate::types::{AccountId, Ballot, NodeId, Reason, ShardId, Slot, Transfer};

/// For anything that must happen at all.
const LIMIT: Duration = Duration::from_secs(60);

fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// S4 of a bank of nine servers, which leads, as it was at an uptime of 100 s.
fn leader() -> Status {
    let mut status = Status::new(NodeId(4));
    status.uptime = s(100.0);
    (status.role, status.leader) = (Role::Leader, Some(NodeId(4)));
    status.led_until = s(100.3);
    status.ballot = Ballot::new(7, NodeId(4));
    (status.decided, status.applied, status.lag) = (Slot(42), Slot(42), 3);
    status.digest = 0xbeef;
    (status.queued, status.queued_bytes, status.in_flight, status.in_doubt) = (5, 640, 2, 9);
    status.log_bytes = 8 << 20;
    status.elections = vec![Won { ballot: status.ballot, at_us: 1, reproposed: 0 }];
    let metrics = &mut status.metrics;
    metrics.counts.committed = 1000;
    metrics.counts.abort(Some(Reason::LockContention));
    metrics.counts.abort(None);
    metrics.counts.elections_won = 1;
    for us in [90, 100, 900, 30_000_000] {
        metrics.record_sync(Duration::from_micros(us));
    }
    metrics.record_led(17, s(99.0), s(0.002));
    metrics.record_damage("wal-00000001.seg: \"a\\b\"\nat 4096");
    (metrics.served.refused, metrics.served.connections, metrics.served.under_way) = (6, 4, 8);
    for (served, seconds) in [
        (&mut metrics.served.within, 0.001),
        (&mut metrics.served.across, 0.02),
        (&mut metrics.served.reads, 3.0),
    ] {
        served.record(s(seconds));
    }
    (metrics.messages_in, metrics.bytes_in, metrics.wal_bytes) = (3, 300, 4096);
    status
}

fn follower() -> Status {
    Status { role: Role::Follower, leader: Some(NodeId(5)), ..leader() }
}

fn scrape(status: Status) -> Scrape {
    let page = exposition::page(status, ShardId(2), s(101.0), 1.7e9);
    Scrape::parse(page.lines().map(|line| Ok(line.to_string()))).expect("a page of metrics")
}

fn value_of(sample: &Sample) -> f64 {
    match sample.value {
        Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => value,
        ref other => panic!("{} is {other:?}", sample.metric),
    }
}

fn sample<'a>(scrape: &'a Scrape, name: &str, labels: &[(&str, &str)]) -> &'a Sample {
    let fits = |sample: &&Sample| {
        sample.metric == name && labels.iter().all(|(key, value)| sample.labels.get(key) == Some(value))
    };
    let mut found = scrape.samples.iter().filter(fits);
    let one = found.next().unwrap_or_else(|| panic!("no {name} with {labels:?}"));
    assert!(found.next().is_none(), "more than one {name} with {labels:?}");
    one
}

fn number(scrape: &Scrape, name: &str) -> f64 {
    value_of(sample(scrape, &format!("shardpaxosbank_{name}"), &[]))
}

// ---- metrics -------------------------------------------------------------------------------------------------------

#[test]
fn metrics_show_what_was_published() {
    let page = scrape(leader());
    let expected = [
        ("uptime_seconds", 101.0),
        ("last_turn_age_seconds", 1.0),
        ("stopped", 0.0),
        ("cut_off", 0.0),
        ("transactions_committed_total", 1000.0),
        ("led_transactions_total", 17.0),
        ("queue_requests", 5.0),
        ("queue_bytes", 640.0),
        ("slots_in_flight", 2.0),
        ("in_doubt_transactions", 9.0),
        ("client_requests_refused_total", 6.0),
        ("client_requests_in_flight", 8.0),
        ("client_connections", 4.0),
        ("ballot_round", 7.0),
        ("decided_slot", 42.0),
        ("applied_slot", 42.0),
        ("lag_slots", 3.0),
        ("elections_won_total", 1.0),
        ("leadership_losses_total", 0.0),
        ("digest_mismatches_total", 0.0),
        ("syncs_total", 0.0),
        ("wal_appended_bytes_total", 4096.0),
        ("wal_size_bytes", 8388608.0),
        ("disk_full", 0.0),
        ("repairing", 0.0),
        ("damage_found_total", 1.0),
        ("values_rewritten_total", 0.0),
        ("snapshots_installed_total", 0.0),
        ("messages_received_total", 3.0),
        ("messages_sent_total", 0.0),
        ("messages_dropped_total", 0.0),
        ("received_bytes_total", 300.0),
        ("sent_bytes_total", 0.0),
    ];
    for (name, value) in expected {
        assert_eq!(number(&page, name), value, "{name}");
    }
    let aborted = |reason| {
        let name = "shardpaxosbank_transactions_aborted_total";
        value_of(sample(&page, name, &[("reason", reason)]))
    };
    assert_eq!(["lock-contention", "other-shard", "no-quorum"].map(aborted), [1.0, 1.0, 0.0]);
    let role = |role| value_of(sample(&page, "shardpaxosbank_role", &[("role", role)]));
    let roles = ["searching", "follower", "leader", "no-quorum", "learner"];
    assert_eq!(roles.map(role), [0.0, 0.0, 1.0, 0.0, 0.0]);
    sample(&page, "shardpaxosbank_build_info", &[("version", env!("CARGO_PKG_VERSION"))]);

    // No series but these, those with labels, the histograms, and those of the process.
    let known: BTreeSet<String> = expected.iter().map(|(name, _)| format!("shardpaxosbank_{name}")).collect();
    let others: BTreeSet<&str> =
        page.samples.iter().map(|sample| &sample.metric[..]).filter(|name| !known.contains(*name)).collect();
    let others: Vec<&str> = others.into_iter().filter(|name| !name.starts_with("process_")).collect();
    assert_eq!(
        others,
        [
            "shardpaxosbank_build_info",
            "shardpaxosbank_client_request_duration_seconds",
            "shardpaxosbank_client_request_duration_seconds_count",
            "shardpaxosbank_client_request_duration_seconds_sum",
            "shardpaxosbank_led_slot_duration_seconds",
            "shardpaxosbank_led_slot_duration_seconds_count",
            "shardpaxosbank_led_slot_duration_seconds_sum",
            "shardpaxosbank_role",
            "shardpaxosbank_sync_duration_seconds",
            "shardpaxosbank_sync_duration_seconds_count",
            "shardpaxosbank_sync_duration_seconds_sum",
            "shardpaxosbank_transactions_aborted_total",
        ]
    );
}

#[test]
fn the_room_left_is_shown_while_the_disk_is_full() {
    let page = scrape(Status { room: Some(4711), ..leader() });
    assert_eq!([number(&page, "disk_full"), number(&page, "disk_room_bytes")], [1.0, 4711.0]);
}

#[test]
fn every_series_names_its_server_and_has_a_type_and_a_help() {
    let text = exposition::page(leader(), ShardId(2), s(101.0), 1.7e9);
    let page = scrape(leader());
    for sample in &page.samples {
        let labels = (sample.labels.get("server"), sample.labels.get("shard"));
        let mine = sample.metric.starts_with("shardpaxosbank_");
        assert!(mine || sample.metric.starts_with("process_"), "{}", sample.metric);
        assert_eq!(labels, if mine { (Some("S4"), Some("D2")) } else { (None, None) }, "{}", sample.metric);
    }
    let mut types = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a name and a type");
        assert!(page.docs.get(name).is_some_and(|help| help.len() > 10), "{name} has no help");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert_eq!(types.insert(name, kind), None, "{name} twice");
    }
    assert_eq!(types["shardpaxosbank_transactions_committed_total"], "counter");
    assert_eq!(types["shardpaxosbank_role"], "gauge");
    assert_eq!(types["shardpaxosbank_sync_duration_seconds"], "histogram");
}

#[test]
fn histograms_are_cumulative_and_end_with_all() {
    let page = scrape(leader());
    let request = |which| vec![("request", which)];
    for (name, labels, count, sum) in [
        ("sync", vec![], 4.0, 30.00109),
        ("led_slot", vec![], 1.0, 0.002),
        ("client_request", request("transfer-within-shard"), 1.0, 0.001),
        ("client_request", request("transfer-across-shards"), 1.0, 0.02),
        ("client_request", request("balance"), 1.0, 3.0),
    ] {
        let name = format!("shardpaxosbank_{name}_duration_seconds");
        let Value::Histogram(ranges) = &sample(&page, &name, &labels).value else { panic!("{name}") };
        assert_eq!(ranges.len(), Durations::BOUNDS_US.len() + 1);
        assert!(ranges.is_sorted_by(|a, b| a.less_than < b.less_than && a.count <= b.count), "{ranges:?}");
        let last = ranges.last().expect("there are some");
        assert_eq!((last.less_than, last.count), (f64::INFINITY, count));
        let part = |part| value_of(sample(&page, &format!("{name}_{part}"), &labels));
        assert_eq!((part("count"), part("sum")), (count, sum));
    }
    let name = "shardpaxosbank_sync_duration_seconds";
    let Value::Histogram(ranges) = &sample(&page, name, &[]).value else { panic!("a histogram") };
    let upto = |bound| ranges.iter().find(|range| range.less_than == bound).map(|range| range.count);
    assert_eq!([0.0001, 0.0005, 0.001, 10.0].map(upto), [2.0, 2.0, 3.0, 3.0].map(Some));
}

#[cfg(target_os = "linux")]
#[test]
fn the_process_is_described_as_others_describe_theirs() {
    let page = scrape(leader());
    let process = |name: &str| value_of(sample(&page, &format!("process_{name}"), &[]));
    assert!(process("resident_memory_bytes") > 1e6);
    assert!(process("virtual_memory_bytes") >= process("resident_memory_bytes"));
    assert!(process("open_fds") >= 3.0 && process("open_fds") <= process("max_fds"));
    assert_eq!(process("start_time_seconds"), 1.7e9);
}

// ---- the other pages -----------------------------------------------------------------------------------------------

#[test]
fn a_server_lives_while_its_loop_turns() {
    assert!(liveness(&leader(), s(104.9)).is_ok());
    let stalled = liveness(&leader(), s(105.0)).expect_err("five seconds");
    assert_eq!(stalled, "stalled: the loop has not turned for 5 s");
    let stopped = Status { stopped: Some("no disk".into()), ..leader() };
    assert_eq!(liveness(&stopped, s(100.1)), Err("stopped: no disk".into()));
    assert!(liveness(&Status::new(NodeId(1)), s(0.1)).is_ok(), "it has just started");
}

#[test]
fn a_server_is_ready_while_it_leads_or_follows() {
    let now = s(100.299);
    assert_eq!(readiness(&leader(), now), Ok("leads in ballot 7.S4".into()));
    assert_eq!(readiness(&follower(), now), Ok("follows S5".into()));
}

#[test]
fn what_keeps_a_server_from_being_ready_is_named() {
    let (soon, now, late) = (s(100.1), s(100.3), s(105.0));
    let cases = [
        ("stopped", soon, Status { stopped: Some("no disk".into()), ..leader() }),
        ("stalled", late, Status { led_until: s(200.0), ..leader() }),
        ("failed", soon, Status { failed: true, ..leader() }),
        ("learner", soon, Status { role: Role::Learner, ..follower() }),
        ("repairing", soon, Status { repairing: true, ..follower() }),
        ("repairing", soon, Status { repairing: true, ..leader() }),
        ("disputed", soon, Status { disputed: true, ..leader() }),
        ("no-quorum", soon, Status { role: Role::NoQuorum, ..leader() }),
        ("no-leader", soon, Status { role: Role::Searching, ..leader() }),
        ("unconfirmed", now, leader()),
        ("unconfirmed", soon, Status { led_until: Duration::ZERO, ..leader() }),
        ("leader-silent", now, follower()),
        ("no-leader", soon, Status { uptime: soon, ..Status::new(NodeId(4)) }),
    ];
    for (name, now, status) in cases {
        let why = readiness(&status, now).expect_err(name);
        assert!(why.starts_with(&format!("{name}: ")), "{why} is not {name}");
        assert!(!why.contains('\n'));
    }
}

#[test]
fn the_status_is_json() {
    let json = |status: &Status| -> serde_json::Value { describe(status, ShardId(2), s(101.5)) };
    let page = json(&leader());
    let expected = serde_json::json!({
        "server": "S4", "shard": "D2", "version": env!("CARGO_PKG_VERSION"), "uptime_s": 101.5, "turned_ms_ago": 1500,
        "stopped": null, "failed": false, "role": "leader", "ballot": "7.S4", "leader": "S4",
        "decided": 42, "applied": 42, "lag": 3, "digest": "000000000000beef", "disputed": false,
        "in_doubt": 9, "queued": 5, "in_flight": 2, "disk": {"log_bytes": 8388608, "room_bytes": null},
        "repairing": false, "damage_found": 1, "damage": ["wal-00000001.seg: \"a\\b\"\nat 4096"],
    });
    assert_eq!(page, expected);
    let stopped = json(&Status { stopped: Some("P4: why".into()), room: Some(7), leader: None, ..leader() });
    assert_eq!(
        (&stopped["stopped"], &stopped["disk"]["room_bytes"], &stopped["leader"]),
        (&"P4: why".into(), &7.into(), &serde_json::Value::Null)
    );
}

#[test]
fn a_brief_status_is_the_same_without_what_is_long() {
    let brief = leader().brief();
    assert_eq!((brief.elections.len(), brief.metrics.sync_latency.summary().count), (0, 0));
    let told = |status: &Status| describe(status, ShardId(2), s(101.0));
    assert_eq!(told(&brief), told(&leader()));
    let metrics = |status| exposition::page(status, ShardId(2), s(101.0), 0.0);
    let mine = |page: String| -> Vec<String> {
        page.lines().filter(|line| line.contains("shardpaxosbank_")).map(String::from).collect()
    };
    assert_eq!(mine(metrics(brief)), mine(metrics(leader())));
}

// ---- over sockets --------------------------------------------------------------------------------------------------

/// The pages of a server that has just published what `status` says.
fn start(mut status: Status, patience: Duration) -> Http {
    let clock = Clock::start();
    // However slow the machine.
    (status.uptime, status.led_until) = (LIMIT, LIMIT);
    let pages = Pages::new(Arc::new(Mutex::new(status)), &Topology::default(), clock);
    serve_within(SocketAddr::from(([127, 0, 0, 1], 0)), pages, patience).expect("a port and a thread")
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(LIMIT)).expect("a time-out");
    stream
}

/// Everything until the other end closes; what came before, if it breaks the connection.
fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    if let Err(e) = stream.read_to_end(&mut bytes) {
        assert_eq!(e.kind(), ErrorKind::ConnectionReset);
    }
    String::from_utf8(bytes).expect("text")
}

fn ask(address: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).expect("it is sent");
    let response = rest(stream);
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {response:?}"));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
    (code, head.to_string(), body.to_string())
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let (code, head, body) = ask(address, &format!("GET {path} HTTP/1.1\r\nHost: bank\r\n\r\n"));
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
    (code, body)
}

#[test]
fn each_path_has_its_page() {
    let http = start(leader(), PATIENCE);
    let at = http.address();
    let (code, head, metrics) = ask(at, "GET /metrics HTTP/1.1\r\n\r\n");
    assert!(code == 200 && head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(metrics.contains("shardpaxosbank_applied_slot{server=\"S4\",shard=\"D2\"} 42\n"), "{metrics}");
    let (code, live) = get(at, "/livez");
    assert!(code == 200 && live.starts_with("ok: the loop turned "), "{live}");
    assert_eq!(get(at, "/readyz?verbose"), (200, "ok: leads in ballot 7.S4\n".into()));
    let (code, head, status) = ask(at, "GET /status HTTP/1.0\r\n\r\n");
    assert!(code == 200 && head.contains("\r\nContent-Type: application/json\r\n"), "{head}");
    assert!(status.contains("\"digest\": \"000000000000beef\""), "{status}");
    assert_eq!(get(at, "/").0, 404);
    let (code, line) = get(at, "/metrics/more");
    assert!(code == 404 && line.contains("/readyz") && line.ends_with('\n'), "{line}");
}

#[test]
fn what_is_no_request_for_a_page_is_refused() {
    let http = start(leader(), PATIENCE);
    let at = http.address();
    let (code, head, line) = ask(at, "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc");
    assert!(code == 405 && head.contains("\r\nAllow: GET, HEAD\r\n") && line.ends_with('\n'), "{head}");
    let (code, head, body) = ask(at, "HEAD /livez HTTP/1.1\r\n\r\n");
    assert!(code == 200 && body.is_empty() && !head.contains("Content-Length: 0"), "{head}");
    for bad in ["nonsense\r\n\r\n", "GET /livez HTTP/2.0\r\n\r\n", "\x16\x03\x01 TLS", "GET /livez\r\n\r\n"] {
        assert_eq!(ask(at, bad).0, 400, "{bad}");
    }
    assert_eq!(get(at, "/livez").0, 200);
}

#[test]
fn long_requests_are_refused() {
    let http = start(leader(), PATIENCE);
    let at = http.address();
    let long = "a".repeat(100_000);
    for request in [
        format!("GET /livez HTTP/1.1\r\nX: {long}\r\n\r\n"),
        format!("GET /{long} HTTP/1.1\r\n\r\n"),
        format!("GET /livez HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(HEADERS + 1)),
    ] {
        let (code, _, line) = ask(at, &request);
        assert!(code == 431 && line.contains("8192 bytes"), "{code} {line}");
    }
    let fits = "X: y\r\n".repeat(HEADERS);
    assert_eq!(ask(at, &format!("GET /livez HTTP/1.1\r\n{fits}\r\n")).0, 200);
}

/// Neither one that sends nothing nor one that begins a request and never ends it.
#[test]
fn a_client_that_sends_nothing_is_cut_off_and_keeps_nobody_waiting() {
    let http = start(leader(), Duration::from_secs(2));
    let (silent, mut begun) = (connect(http.address()), connect(http.address()));
    begun.write_all(b"GET /metrics HTTP/1.1\r\nHost: b").expect("it is sent");
    assert_eq!(get(http.address(), "/readyz").0, 200);
    assert_eq!((rest(silent), rest(begun)), (String::new(), String::new()));
    assert_eq!(get(http.address(), "/readyz").0, 200);
}

#[test]
fn clients_that_hold_connections_open_keep_nobody_out() {
    let http = start(leader(), LIMIT);
    let held: Vec<TcpStream> = (0..3 * CONNECTIONS).map(|_| connect(http.address())).collect();
    for path in ["/livez", "/metrics", "/status"] {
        assert_eq!(get(http.address(), path).0, 200, "{path}");
    }
    // The oldest went first, long before their time was up.
    for oldest in held.into_iter().take(2 * CONNECTIONS) {
        assert_eq!(rest(oldest), "");
    }
}

#[test]
fn the_port_is_free_once_the_pages_are_dropped() {
    let http = start(leader(), LIMIT);
    let at = http.address();
    let held = connect(at);
    assert_eq!(get(at, "/livez").0, 200);
    let pages = || Pages::new(Arc::new(Mutex::new(leader())), &Topology::default(), Clock::start());
    let taken = serve(at, pages()).err().expect("the port is taken");
    assert!(taken.to_string().contains(&at.to_string()), "{taken}");
    drop(http);
    assert_eq!(rest(held), "");
    let again = serve(at, pages()).expect("the port is free");
    assert_eq!(get(again.address(), "/livez").0, 200);
}

// ---- a real server -------------------------------------------------------------------------------------------------

/// A bank of one server, its pages, and a client. They end with it.
struct Alone {
    control: Sender<Control>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<io::Result<()>>>,
    http: Http,
    client: Client,
    _dir: tempfile::TempDir,
}

impl Alone {
    fn start() -> Alone {
        let topology = Topology { clusters: 1, servers_per_cluster: 1, accounts: 10, initial_balance: 10 };
        let (dir, clock, timeouts) =
            (tempfile::tempdir().expect("a directory"), Clock::start(), Timeouts::default());
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let (listener, address) = listen(local).expect("a port");
        let (me, cluster_id) = (NodeId(1), 1);
        let addresses = BTreeMap::from([(me, Address::from(address).into())]);
        let context = Context { cluster_id, topology, timeouts, addresses };
        let log =
            open_log(dir.path(), me, topology, Some(cluster_id), Blank::Found(cluster_id)).expect("a log");
        let (poll, waker) = poll_and_waker().expect("a poll");
        let (control, orders) = unbounded();
        let status = Arc::new(Mutex::new(Status::new(me)));
        let pages = Pages::new(status.clone(), &topology, clock);
        let (doors, waking) = (vec![(listener, Door::Anybody)], waker.clone());
        let around = Threading { poll, waker: waking, doors, control: orders, status, admin: false };
        let setup = prepare(me, context.clone(), timeouts.into(), clock, log, around).expect("restore");
        let thread = Some(std::thread::spawn(move || node::run(setup)));
        let http = serve(local, pages).expect("a port and a thread");
        let client = Client::start(context, timeouts).expect("a coordinator");
        Alone { control, waker, thread, http, client, _dir: dir }
    }

    fn order(&self, order: Order) {
        let (reply, report) = bounded(1);
        self.control.send(Control::Order(order, reply)).expect("it runs");
        self.waker.wake().expect("it can be woken");
        report.recv_timeout(LIMIT).expect("it answers");
    }

    fn transfer(&self, tag: u64, amount: i64) -> Outcome {
        let (from, to) = (AccountId(1), AccountId(2));
        let op = Op::Transfer(Transfer { from, to, amount });
        let rows = vec![Row { tag, op, accounts: vec![from, to], cross: false }];
        self.client.send(Command::Rows { rows, in_flight: 1, race: false });
        let mut outcome = Outcome::Unknown;
        loop {
            match self.client.news.recv_timeout(LIMIT).expect("news") {
                News::Row { outcome: this, .. } => outcome = this,
                News::RowsDone(_) => return outcome,
                _ => {}
            }
        }
    }

    fn until(&self, path: &str, expected: (u16, &str)) {
        let begun = Instant::now();
        loop {
            let (code, line) = get(self.http.address(), path);
            if code == expected.0 && line.starts_with(expected.1) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "{code} {line} instead of {expected:?}");
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.control.send(Control::Stop);
        let _ = self.waker.wake();
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(Ok(())))), "the server stopped by itself: {ended:?}");
        }
    }
}

#[test]
fn the_pages_of_a_running_server_are_true() {
    let bank = Alone::start();
    assert_eq!(bank.transfer(1, 4), Outcome::Committed);
    bank.until("/readyz", (200, "ok: leads in ballot "));
    assert_eq!(bank.transfer(2, 99), Outcome::Aborted(Reason::InsufficientBalance));
    bank.order(Order::Status);
    let (_, text) = get(bank.http.address(), "/metrics");
    let page = Scrape::parse(text.lines().map(|line| Ok(line.to_string()))).expect("a page of metrics");
    assert_eq!(number(&page, "transactions_committed_total"), 1.0);
    let name = "shardpaxosbank_transactions_aborted_total";
    assert_eq!(value_of(sample(&page, name, &[("reason", "insufficient-balance")])), 1.0);
    assert_eq!(number(&page, "elections_won_total"), 1.0);
    for name in [
        "led_transactions_total",
        "led_slot_duration_seconds_count",
        "sync_duration_seconds_count",
        "syncs_total",
    ] {
        assert!(number(&page, name) >= 2.0, "{name}");
    }
    assert_eq!(number(&page, "decided_slot"), number(&page, "applied_slot"));
    assert_eq!(number(&page, "lag_slots"), 0.0);
    assert!(number(&page, "wal_size_bytes") >= number(&page, "wal_appended_bytes_total"));

    bank.order(Order::Fail);
    bank.until("/readyz", (503, "failed: "));
    bank.until("/livez", (200, "ok: the loop turned "));
    bank.order(Order::Recover);
    assert_eq!(bank.transfer(3, 1), Outcome::Committed);
    bank.until("/readyz", (200, "ok: leads in ballot "));
}
