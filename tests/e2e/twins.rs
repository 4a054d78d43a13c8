//! Servers that do not fit together are told so by name, and the others go on.

use std::fs;

use crate::common::{Running, bank, put};
use crate::process::{Processes, free_ports};
use crate::resp::talk;

fn commits(all: &Processes, server: usize) {
    assert_eq!(talk(&all.client_address(server), b"TRANSFER 1 2 1\r\n"), "+OK\r\n");
}

#[test]
fn a_server_with_other_time_outs_is_turned_away() {
    let mut all = Processes::start_clusters(1, |text| text);
    all.kill(3);
    let text = fs::read_to_string(&all.path).expect("the configuration");
    let other = text.replace("[servers]", "[timeouts]\nelection_timeout_ms = 400\n[servers]");
    let path = std::mem::replace(&mut all.path, put(all.dir.path(), "other.toml", &other));
    all.launch(3);
    all.listens(3);
    let odd = all.running[2].as_mut().expect("it was launched");
    odd.complains_of(
        "turned it away: its configuration differs: [timeouts] election_timeout_ms is 400, here it is 300",
    );
    all.path = path;
    commits(&all, 1);
}

/// A copied directory holds the same promises and votes. Two servers that go on from it would tell different servers different
/// things under one name.
#[test]
fn a_server_with_a_copy_of_anothers_directory_is_turned_away() {
    let mut all = Processes::start_clusters(1, |text| text);
    commits(&all, 1);
    all.kill(2);
    let copy = all.dir.path().join("copy");
    fs::create_dir(&copy).expect("a directory");
    for entry in fs::read_dir(all.place(2)).expect("a directory") {
        let from = entry.expect("an entry").path();
        fs::copy(&from, copy.join(from.file_name().expect("a name"))).expect("it can be copied");
    }
    all.launch(2);
    all.listens(2);
    // Without S3 a transfer shows that S1 hears S2.
    all.kill(3);
    commits(&all, 1);
    // The copy runs on another host, which in its configuration has another address.
    let text = fs::read_to_string(&all.path).expect("the configuration");
    let own = all.client_address(2);
    let elsewhere = text.replace(&own, &format!("127.0.0.1:{}", free_ports(1)[0]));
    assert_ne!(text, elsewhere);
    let elsewhere = put(all.dir.path(), "elsewhere.toml", &elsewhere);
    let copy = copy.display().to_string();
    let mut command = bank(&["node", "--config", &elsewhere, "--server", "S2", "--data-dir", &copy]);
    command.env("RUST_LOG", "warn");
    let mut twin = Running::start(command);
    twin.complains_of("S1 turned it away: another S2 runs, with a copy of this data directory");
    commits(&all, 1);
}
