//! More connections than a server has descriptors for, and clients that send without end: the bank goes on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use crate::common::{LIMIT, eventually, peak_memory_kb, put, set_text};
use crate::process::Processes;
use crate::resp::talk;

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a server");
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
    stream
}

/// Whether a server answers on a new connection.
fn answers(address: &str) -> bool {
    let mut stream = connect(address);
    let mut said = [0; 7];
    stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut said).is_ok() && said == *b"+PONG\r\n"
}

#[test]
fn a_server_with_few_descriptors_bears_a_crowd() {
    let mut all = Processes::start_clusters(1, |text| text);
    all.kill(1);
    let plain = all.command(1, "--format");
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 120 && exec \"$0\" \"$@\""])
        .arg(plain.get_program())
        .args(plain.get_args());
    command.env("RUST_LOG", "warn");
    all.launch_as(1, command);
    all.running[0]
        .as_mut()
        .expect("it was launched")
        .complains_of("connections of clients at most, not 4096");
    all.listens(1);
    let address = all.client_address(1);
    let crowd: Vec<TcpStream> = (0..400).map(|_| connect(&address)).collect();
    all.running[0].as_mut().expect("it was launched").complains_of("idle ones were closed for newcomers");
    assert!(answers(&address));
    // Enough for several segments of its log.
    let rows: Vec<String> = (0..2000).map(|i| format!("({}, {}, 1)", i % 10 + 1, (i + 1) % 10 + 1)).collect();
    let file = put(all.dir.path(), "some.csv", &set_text(1, &all.topology(), &rows));
    all.run(&file).with_code(0);
    all.agree();
    assert!(!all.running[0].as_mut().expect("it was launched").has_ended());
    drop(crowd);
}

/// Each of many connections sends all that a socket takes and reads nothing, to a leader.
#[test]
fn a_leader_leads_on_whatever_its_clients_send() {
    let all = Processes::start_clusters(1, |text| text);
    let leader = all.leader(1..=3);
    let led = all.status(leader).expect("it runs").ballot;
    let address = all.client_address(leader);
    let flood = b"BALANCE 1\r\nPING\r\n".repeat(4000);
    let crowd: Vec<TcpStream> = (0..300)
        .map(|_| {
            let mut stream = connect(&address);
            stream.set_nonblocking(true).expect("a socket");
            let _ = stream.write(&flood).expect("room");
            stream
        })
        .collect();
    eventually("everybody else is answered", || answers(&address).then_some(()));
    all.audit();
    assert_eq!(all.status(leader).expect("it runs").ballot, led, "it was given up for dead");
    drop(crowd);
}

/// Nothing can be decided, so all that clients send piles up, as far as it may: beyond that they are told so.
#[test]
fn a_server_that_has_too_much_under_way_says_so() {
    const EACH: usize = 6000;
    let mut all = Processes::start_clusters(1, |text| text);
    let leader = all.leader(1..=3);
    let others: Vec<usize> = (1..=3).filter(|server| *server != leader).collect();
    others.iter().for_each(|server| all.kill(*server));
    let address = all.client_address(leader);
    let flood = b"TRANSFER 1 2 1\r\n".repeat(EACH);
    let said: Vec<String> = std::thread::scope(|scope| {
        let crowd: Vec<_> = (0..6).map(|_| scope.spawn(|| talk(&address, &flood))).collect();
        crowd.into_iter().map(|client| client.join().expect("it is answered")).collect()
    });
    let begin =
        |word: &str| said.iter().flat_map(|s| s.lines()).filter(|line| line.starts_with(word)).count();
    let counts = ["-NOQUORUM ", "-UNKNOWN ", "-BUSY "].map(begin);
    assert_eq!(counts.iter().sum::<usize>(), 6 * EACH, "{counts:?}");
    assert!(counts.iter().take(2).sum::<usize>() > 0 && counts[2] > 0, "{counts:?}");
    let peak = peak_memory_kb(all.running[leader - 1].as_ref().expect("it runs").id());
    assert!(peak < 150_000, "{peak} kB");
    others.iter().for_each(|server| all.launch(*server));
    others.iter().for_each(|server| all.listens(*server));
    eventually("it works again", || (talk(&address, b"TRANSFER 3 4 1\r\n") == "+OK\r\n").then_some(()));
}
