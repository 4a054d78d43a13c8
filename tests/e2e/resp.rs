//! Clients that speak RESP: bytes on a socket, and Redis' own command line, benchmark and Python library, at real servers.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;

use crate::common::LIMIT;
use crate::process::Processes;

/// Sends bytes and no more, and returns everything that comes until the server closes the connection.
pub fn talk(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("a server");
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
    stream.write_all(bytes).expect("room");
    stream.shutdown(Shutdown::Write).expect("a socket");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("text, and then the end");
    text
}

/// Runs a tool of Debian's redis-tools or python3-redis.
pub fn tool(program: &str, arguments: &[&str]) -> String {
    let ran = Command::new(program).args(arguments).output();
    let ran = ran.unwrap_or_else(|e| panic!("{program}: {e}; install it (as .ci/run does)"));
    assert!(ran.status.success(), "{program} {arguments:?}: {ran:?}");
    String::from_utf8(ran.stdout).expect("text").replace('\r', "\n")
}

fn address(all: &Processes, server: usize) -> (String, String) {
    let address = all.client_address(server);
    let (_, port) = address.rsplit_once(':').expect("a port");
    (address.clone(), port.to_string())
}

#[test]
fn requests_are_answered_in_order_by_any_server() {
    let all = Processes::start(|text| text);
    // Accounts 1 to 10, 11 to 20 and 21 to 30 are on three clusters, with 100 units each.
    let (s4, _) = address(&all, 4);
    let requests = "PING\r\nTRANSFER 3 2 5\r\n*4\r\n$8\r\ntransfer\r\n$3\r\n001\r\n$2\r\n11\r\n$1\r\n7\r\n\
                    BALANCE 11\r\nBALANCE 1\r\nECHO over\r\n";
    // They are in flight together, so what a read finds is one of the states between; the order of replies is that of requests.
    let said = talk(&s4, requests.as_bytes());
    let lines: Vec<&str> = said.split_terminator("\r\n").collect();
    assert_eq!(
        (lines[0], lines[1], lines[2], lines[5], lines[6]),
        ("+PONG", "+OK", "+OK", "$4", "over"),
        "{said}"
    );
    assert!([":100", ":107"].contains(&lines[3]) && [":100", ":93"].contains(&lines[4]), "{said}");
    for server in 1..=9 {
        let (address, _) = address(&all, server);
        assert_eq!(talk(&address, b"BALANCE 1\r\n"), ":93\r\n", "S{server}");
        let (own, other) = (10 * ((server - 1) / 3) + 4, 10 * (server.div_ceil(3) % 3) + 4);
        assert_eq!(talk(&address, format!("BALANCE {own} LOCAL\r\n").as_bytes()), ":100\r\n");
        let said = talk(&address, format!("BALANCE {other} LOCAL\r\n").as_bytes());
        assert!(said.starts_with(&format!("-ERR account {other} is not on this server")), "{said}");
    }
    for (request, part) in [
        ("TRANSFER 1 2 1000", "-INSUFFICIENT "),
        ("TRANSFER 1 1 5", "-INVALID "),
        ("TRANSFER 1 2 0", "-INVALID "),
        ("TRANSFER 1 31 5", "-UNKNOWNACCOUNT "),
        ("BALANCE 31", "-UNKNOWNACCOUNT "),
        ("BALANCE 31 LOCAL", "-UNKNOWNACCOUNT "),
        ("BALANCE x", "-ERR "),
        ("NOSUCH 1", "-ERR unknown command"),
        ("HELLO 3 AUTH a b", "-ERR "),
        ("HELLO 9", "-NOPROTO"),
        ("*1\r\n$9999\r\n", "-ERR Protocol error: "),
        ("QUIT\r\nPING", "+OK\r\n"),
    ] {
        let said = talk(&s4, format!("{request}\r\n").as_bytes());
        assert!(said.starts_with(part) && said.lines().count() == 1, "{request}: {said}");
    }
    let said = talk(&s4, b"HELLO 3\r\nCLIENT GETNAME\r\n");
    assert!(said.starts_with("%7\r\n") && said.ends_with("_\r\n"), "{said}");
}

#[test]
fn a_request_survives_its_leader_and_lack_of_quorum_is_said() {
    let mut all = Processes::start(|text| text);
    let (s9, _) = address(&all, 9);
    let leader = all.leader(1..=3);
    all.kill(leader);
    assert_eq!(talk(&s9, b"TRANSFER 1 2 5\r\nTRANSFER 3 21 5\r\n"), "+OK\r\n+OK\r\n");
    let second = (1..=3).find(|server| *server != leader).expect("one of them");
    all.kill(second);
    let said = talk(&s9, b"TRANSFER 1 2 5\r\nBALANCE 2\r\nTRANSFER 3 21 5\r\nTRANSFER 22 23 5\r\n");
    let lines: Vec<&str> = said.lines().collect();
    for line in &lines[..3] {
        // Whether a leader took it before the others were missed cannot be known here.
        assert!(line.starts_with("-NOQUORUM ") || line.starts_with("-UNKNOWN "), "{said}");
    }
    assert_eq!(lines[3], "+OK", "{said}");
}

#[test]
fn tools_and_libraries_of_redis_use_the_bank() {
    let all = Processes::start(|text| text.replace("initial_balance = 100", "initial_balance = 100000"));
    let (_, port) = address(&all, 2);
    let cli = |arguments: &[&str]| tool("redis-cli", &[&["-p", &port], arguments].concat());
    assert_eq!(cli(&["TRANSFER", "1", "21", "7"]), "OK\n");
    assert_eq!(cli(&["BALANCE", "000000000021"]), "100007\n");
    assert!(cli(&["-3", "HELLO", "3"]).contains("shardpaxosbank"));
    assert!(cli(&["INFO"]).contains("server:S2"));
    // With an ID a request sent again, to another server and in the other version of the protocol, is the same transfer.
    let (_, other) = address(&all, 7);
    let session = cli(&["SESSION"]);
    let id = format!("{}:1", session.trim());
    assert_eq!(cli(&["TXN", &id]), "never seen\n");
    for (port, version) in [(&port, "-2"), (&other, "-3"), (&port, "-3")] {
        let request = ["-p", port, version, "TRANSFER", "5", "25", "40", "ID", &id];
        assert_eq!(tool("redis-cli", &request), "OK\n");
    }
    assert_eq!(cli(&["TXN", &id]), "committed\n");
    assert_eq!(tool("redis-cli", &["-p", &other, "-3", "BALANCE", "25"]), "100040\n");
    assert!(cli(&["TRANSFER", "5", "25", "41", "ID", &id]).starts_with("IDREUSED "));
    let bench = ["-p", &port, "-n", "3000", "-c", "20", "-P", "8", "-q", "TRANSFER", "1", "2", "1"];
    assert!(tool("redis-benchmark", &bench).contains("requests per second"));
    assert_eq!(cli(&["BALANCE", "2"]), "103000\n", "each request is one transfer");
    let script = format!(
        "import redis\n\
         r = redis.Redis(port={port})\n\
         assert r.ping()\n\
         assert r.execute_command('TRANSFER', 4, 14, 2) == b'OK'\n\
         p = r.pipeline(transaction=False)\n\
         for account in range(1, 31): p.execute_command('BALANCE', account)\n\
         print(sum(p.execute()), r.info()['server'])\n\
         id = r.execute_command('SESSION').decode() + ':1'\n\
         print(*[r.execute_command('TRANSFER', 6, 26, 9, 'ID', id).decode() for _ in range(2)])\n\
         print(r.execute_command('TXN', id).decode(), r.execute_command('BALANCE', 26))\n\
         try: r.execute_command('TRANSFER', 4, 14, 10**9)\n\
         except redis.ResponseError as e: print(str(e).split()[0])\n"
    );
    assert_eq!(
        tool("/usr/bin/python3", &["-c", &script]),
        "3000000 S2\nOK OK\ncommitted 100009\nINSUFFICIENT\n"
    );
}
