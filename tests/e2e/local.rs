//! `bank init`, `bank up`, `bank down`: a bank of processes as a new user makes one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::common::{LIMIT, Running, bank, data, eventually, put, run, temp};
use crate::process::Processes;
use crate::resp::tool;

/// A base port such that the ports of so many servers are free, and below those that the system gives out.
fn base_port(servers: u16) -> u16 {
    // Tests of one process take turns, and each has ports of its own.
    static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut taken = TAKEN.lock();
    let first = (std::process::id() % 90) as u16 * 100;
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let wanted =
        |base: u16| (1..=servers).flat_map(move |server| [0, 100, 200].map(|kind| base + kind + server));
    let all = (first..9_000).step_by(300).chain((0..first).step_by(300)).map(|offset| 10_000 + offset);
    let mut free = all.filter(|base| wanted(*base).all(is_free));
    let base = free.find(|base| !taken.contains(base)).expect("free ports");
    taken.push(base);
    base
}

/// One page of a server, with its head.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the pages");
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: bank\r\nConnection: close\r\n\r\n").expect("room");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("text, and then the end");
    text
}

/// Stops what a failed test leaves behind.
struct Stops(String);

impl Drop for Stops {
    fn drop(&mut self) {
        let _ = bank(&["down", "--config", &self.0]).output();
    }
}

#[test]
fn a_bank_of_processes_is_made_started_used_and_stopped() {
    let dir = temp();
    let place = dir.path().join("bank").display().to_string();
    let (base, config) = (base_port(3), format!("{place}/cluster.toml"));
    let port = base.to_string();
    let made =
        ["init", &place, "--clusters", "1", "--accounts", "1000", "--base-port", &port, "--balance", "10"];
    let said = run(&made).with_code(0).out;
    assert!(said.contains(&config) && said.contains("3 servers"), "{said}");
    let text = std::fs::read_to_string(&config).expect("the configuration");
    assert!(text.contains("clusters = 1 ") && text.contains("# odd"), "comments stay: {text}");
    // What is there is never overwritten.
    assert!(run(&made).with_code(2).err.contains("is there already"));
    assert_eq!(std::fs::read_to_string(&config).expect("the configuration"), text);

    let _stops = Stops(config.clone());
    let said = run(&["up", "--config", &config]).with_code(0).out;
    assert!(said.starts_with("3 servers run, and every cluster has a leader, after"), "{said}");
    let said = run(&["up", "--config", &config]).with_code(0).out;
    assert!(said.contains("(3 ran already)"), "{said}");
    // By another name it is the same bank: nothing is started a second time, and nobody's number is written over.
    let number = || std::fs::read_to_string(format!("{place}/S1.pid")).expect("its number");
    let before = number();
    let mut near = bank(&["up", "--config", "../bank/cluster.toml"]);
    near.current_dir(&place);
    let said = Running::start(near).finish().with_code(0).out;
    assert!(said.contains("(3 ran already)"), "{said}");
    let (own, pid_file) = (format!("{place}/S1"), format!("{place}/S1.pid"));
    run(&["node", "--config", &config, "--server", "S1", "--data-dir", &own, "--pid-file", &pid_file])
        .with_code(2);
    assert_eq!(number(), before);
    let file = put(dir.path(), "one.csv", "1,\"(1, 2, 3)\",\"[S1, S2, S3]\",[S1]\n,(2),,\n");
    let balance = |expected: u64| {
        let sets = run(&["run", &file, "--config", &config, "--json"]).with_code(0).sets();
        let rows: Vec<&Value> = sets[0]["results"].as_array().expect("rows").iter().collect();
        assert_eq!(rows[0]["outcome"], "committed");
        assert_eq!(rows[1]["balance"], expected, "{rows:?}");
    };
    balance(13);
    let all: Value = serde_json::from_str(&run(&["status", "--config", &config, "--json"]).with_code(0).out)
        .expect("JSON");
    let servers = all.as_array().expect("servers");
    assert_eq!(servers.len(), 3);
    assert_eq!(servers.iter().filter(|server| server["role"] == json!("leader")).count(), 1, "{all}");
    let table = run(&["status", "--config", &config]).with_code(0).out;
    assert!(table.contains("S2") && table.contains("follower") && table.contains("lag"), "{table}");
    // The pages of each server are where the configuration says.
    for server in 1..=3 {
        let page = |path: &str| get(base + 200 + server, path);
        eventually("it hears its leader", || page("/readyz").starts_with("HTTP/1.1 200").then_some(()));
        assert!(page("/metrics").contains("shardpaxosbank_"));
        assert!(page("/status").contains(&format!("\"server\": \"S{server}\"")));
    }
    let client = |arguments: &[&str]| run(&[&["client", "--config", &config], arguments].concat());
    assert_eq!(client(&["transfer", "2", "3", "1"]).with_code(0).out, "committed\n");
    assert_eq!(client(&["balance", "2"]).with_code(0).out, "12\n");
    assert_eq!(client(&["transfer", "2", "3", "1000"]).with_code(1).err, "aborted: insufficient-balance\n");
    assert_eq!(client(&["transfer", "2", "3", "-1"]).with_code(1).err, "aborted: invalid-amount\n");
    assert_eq!(client(&["transfer", "3", "2", "1"]).with_code(0).out, "committed\n");
    eventually("every server has applied it", || {
        (client(&["balance", "2", "--consistency", "local"]).with_code(0).out == "S1  13\nS2  13\nS3  13\n")
            .then_some(())
    });
    // So is what its clients asked for, in the pages of the server that they asked.
    let mut stream = TcpStream::connect(("127.0.0.1", base + 101)).expect("a server");
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
    stream.write_all(b"TRANSFER 5 6 1\r\nBALANCE 7\r\n").expect("room");
    let mut said = [0; 10];
    stream.read_exact(&mut said).expect("two replies");
    assert_eq!(said, *b"+OK\r\n:10\r\n");
    let metrics = get(base + 201, "/metrics");
    let number = |request: &str| {
        let count = format!("request=\"{request}\"");
        let is_it =
            |line: &&str| line.contains("client_request_duration_seconds_count") && line.contains(&count);
        let line = metrics.lines().find(is_it).unwrap_or_else(|| panic!("no {request}: {metrics}"));
        line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).expect("a number")
    };
    let counts = ["transfer-within-shard", "transfer-across-shards", "balance"].map(number);
    assert_eq!(counts, [1.0, 0.0, 1.0]);
    drop(stream);
    let hasty = text.replace("election_timeout_ms = 300", "election_timeout_ms = 301");
    let other = put(dir.path(), "other.toml", &hasty);
    let said = run(&["client", "--config", &other, "balance", "2"]).with_code(2).err;
    assert!(said.contains("election_timeout_ms is 301, here it is 300"), "{said}");
    let mut near = bank(&["down", "--config", "cluster.toml"]);
    near.current_dir(&place);
    let said = Running::start(near).finish().with_code(0).out;
    assert_eq!(said.trim(), "3 servers have stopped");
    assert_eq!(run(&["down", "--config", &config]).with_code(0).out.trim(), "0 servers have stopped");
    run(&["wal", "verify", &place]).with_code(0);
    // It goes on where it was.
    run(&["up", "--config", &config]).with_code(0);
    balance(16);
    // Who is left alone says so, and is ready again when the others are back.
    let ready = || get(base + 201, "/readyz");
    for server in ["S2", "S3"] {
        let number = std::fs::read_to_string(format!("{place}/{server}.pid")).expect("its number");
        let number = number.trim().parse().expect("a number");
        // SAFETY: a plain system call on a process of this test.
        assert_eq!(unsafe { libc::kill(number, libc::SIGKILL) }, 0);
    }
    eventually("it is not ready", || ready().starts_with("HTTP/1.1 503").then_some(()));
    run(&["up", "--config", &config]).with_code(0);
    eventually("it is ready", || ready().starts_with("HTTP/1.1 200").then_some(()));
    balance(19);
}

/// What the README begins with: nine processes, and a transfer by somebody else's client.
#[test]
fn a_new_user_moves_money_by_redis_cli() {
    let dir = temp();
    let place = dir.path().join("bank").display().to_string();
    let (base, config) = (base_port(9), format!("{place}/cluster.toml"));
    run(&["init", &place, "--base-port", &base.to_string()]).with_code(0);
    let _stops = Stops(config.clone());
    run(&["up", "--config", &config]).with_code(0);
    let cli = |server: u16, request: &[&str]| {
        let port = (base + 100 + server).to_string();
        tool("redis-cli", &[&["-p", &port], request].concat())
    };
    assert_eq!(cli(1, &["TRANSFER", "100", "1501", "8"]), "OK\n");
    assert_eq!(cli(8, &["BALANCE", "1501"]), "18\n");
    assert!(cli(2, &["SESSION"]).starts_with('D'));
    assert_eq!(run(&["down", "--config", &config]).with_code(0).out.trim(), "9 servers have stopped");
}

#[test]
fn a_server_that_does_not_start_is_named_with_its_reason() {
    let dir = temp();
    let place = dir.path().join("bank").display().to_string();
    let base = base_port(3);
    let config = format!("{place}/cluster.toml");
    run(&["init", &place, "--clusters", "1", "--base-port", &base.to_string()]).with_code(0);
    let _taken = TcpListener::bind(("127.0.0.1", base + 102)).expect("a free port");
    let _stops = Stops(config.clone());
    let said = run(&["up", "--config", &config]).with_code(1).err;
    assert!(said.contains("S2 has ended") && said.contains("cannot listen on"), "{said}");
    // The others have started, and are found.
    assert!(!std::fs::exists(format!("{place}/S2.pid")).expect("a directory"));
    assert_eq!(run(&["down", "--config", &config]).with_code(0).out.trim(), "2 servers have stopped");
}

#[test]
fn what_cannot_be_made_is_refused_by_name() {
    let dir = temp();
    let place = dir.path().join("bank").display().to_string();
    for (arguments, part) in [
        (&["--servers", "2"][..], "--servers 2"),
        (&["--base-port", "65500"][..], "--base-port 65500"),
        (&["--host", "no host"][..], "\"no host:7001\": must be an address"),
    ] {
        let all = [&["init", &place][..], arguments].concat();
        let said = run(&all).with_code(2).err;
        assert!(said.contains(part), "{said}");
        assert!(!dir.path().join("bank").exists(), "{arguments:?} leave something behind");
    }
    let several = ["init", &place, "--host", "a.example", "--host", "b.example", "--config-only"];
    run(&several).with_code(0);
    let text = std::fs::read_to_string(format!("{place}/cluster.toml")).expect("the configuration");
    assert!(text.contains("S3 = { peer = \"a.example:7002\", client = \"a.example:7102\""), "{text}");
    assert!(text.contains("S5 = { peer = \"b.example:7002\""), "{text}");
    std::fs::remove_dir_all(&place).expect("it was made");
    let own =
        ["init", &place, "--clusters", "1", "--host", "a", "--host", "b", "--host", "c", "--config-only"];
    run(&own).with_code(0);
    let text = std::fs::read_to_string(format!("{place}/cluster.toml")).expect("the configuration");
    assert!(text.contains("S3 = { peer = \"c:7001\", client = \"c:7101\", admin = \"c:7201\""), "{text}");
    let example = std::fs::read_to_string(data("cluster.toml")).expect("the example");
    assert!(example.contains("[servers]"));
}

/// Without a request it asks for some. It finds the servers as they are, and leaves them so.
#[test]
fn the_prompt_of_a_client() {
    let all = Processes::start_clusters(2, |text| text);
    let ask = |lines: &str| {
        let mut command = bank(&["client", "--config", &all.path]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("it reads");
        let out = child.wait_with_output().expect("it ends");
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).expect("text")
    };
    let said =
        ask("transfer 1 12 5\nbalance 1\nbalance 12\nviews\nfail S2\nnext\ncrash S1\nnonsense\nquit\n");
    for part in ["committed", "95", "105", "no set is left", "S1 is a process of its own"] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    assert!(all.status(2).expect("it runs").failed);
    ask("transfer 1 12 5\nperformance\nlog S1\n");
    assert!(all.status(2).expect("it runs").failed, "looking at it does not recover it");
    ask("recover S2\n");
    assert!(!all.status(2).expect("it runs").failed);
    all.audit();

    let text = std::fs::read_to_string(&all.path).expect("it is there").replace("0d0e0f", "0d0e00");
    let other = put(all.dir.path(), "other.toml", &text);
    let ran = run(&["client", "--config", &other]);
    assert_eq!(ran.code, Some(2), "another bank's: {ran:?}");
}
