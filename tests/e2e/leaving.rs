//! Servers that are told to stop: the lead goes to another one, and nobody's request fails for it.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::process::{Guest, Processes};

/// Every server is told to stop and started again, leaders first, while clients of others go on. A transfer may meet a lock,
/// for they share accounts; nothing else may happen to it.
#[test]
fn a_rolling_restart_fails_no_request() {
    let mut all = Processes::start(|text| text);
    let over = AtomicBool::new(false);
    let order: Vec<usize> = (0..3)
        .flat_map(|cluster| {
            let members = 3 * cluster + 1..=3 * cluster + 3;
            let leader = all.leader(members.clone());
            std::iter::once(leader).chain(members.filter(move |server| *server != leader))
        })
        .collect();
    // Each client has a server of every cluster, and uses the next while its own is told to stop.
    let addresses: Vec<String> = (1..=9).map(|server| all.client_address(server)).collect();
    let down = std::sync::Mutex::new(0);
    let failed = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4_u64)
            .map(|client| {
                let (addresses, over, down) = (&addresses, &over, &down);
                scope.spawn(move || {
                    let (mut failed, mut done, mut at, mut guest) = (Vec::new(), 0, 0, None);
                    while !over.load(Ordering::Relaxed) {
                        // Held while a request is under way, so that nobody is told to stop whose client waits.
                        let down = down.lock().expect("nobody panics");
                        if at == 0 || at == *down {
                            at = (1..=9)
                                .cycle()
                                .skip(2 * client as usize)
                                .find(|s| *s != *down)
                                .expect("another");
                            guest = Some(Guest::at(&addresses[at - 1]));
                        }
                        let (from, to) = (1 + (done + client) % 10, 11 + (done * 7 + client) % 20);
                        let reply =
                            guest.as_mut().expect("it was opened").ask(&format!("TRANSFER {from} {to} 1"));
                        drop(down);
                        done += 1;
                        if reply != "+OK"
                            && !reply.starts_with("-LOCKED ")
                            && !reply.starts_with("-INSUFFICIENT ")
                        {
                            failed.push(format!("by S{at}: {reply}"));
                        }
                    }
                    assert!(done > 0);
                    failed
                })
            })
            .collect();
        for server in order {
            *down.lock().expect("nobody panics") = server;
            all.running[server - 1].as_ref().expect("it runs").interrupt();
            let ran = all.running[server - 1].take().expect("it runs").finish().with_code(0);
            assert!(!ran.err.contains("panicked"), "{}", ran.err);
            all.launch(server);
            all.listens(server);
        }
        over.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect::<Vec<_>>()
    });
    assert_eq!(failed, Vec::<String>::new());
    all.agree();
    all.audit();
}

/// Its own clients lose their connection, but no reply to what it did for them.
#[test]
fn a_server_that_is_told_to_stop_owes_nobody_a_reply() {
    let mut all = Processes::start(|text| text.replace("initial_balance = 100", "initial_balance = 1000000"));
    let leader = all.leader(1..=3);
    let mut guest = Guest::of(&all, leader).0;
    let many = "TRANSFER 1 2 1\r\n".repeat(2000);
    let mut writer = guest.get_ref().try_clone().expect("a socket");
    // Until it is closed in its face.
    let flood = std::thread::spawn(move || while writer.write_all(many.as_bytes()).is_ok() {});
    let mut moved = 0;
    let mut line = String::new();
    while moved < 5000 && guest.read_line(&mut line).is_ok_and(|read| read > 0) {
        assert_eq!(line, "+OK\r\n");
        moved += 1;
        line.clear();
    }
    all.running[leader - 1].as_ref().expect("it runs").interrupt();
    while guest.read_line(&mut line).is_ok_and(|read| read > 0) {
        if !line.ends_with('\n') {
            break;
        }
        assert_eq!(line, "+OK\r\n");
        moved += 1;
        line.clear();
    }
    drop(guest);
    flood.join().expect("it ends");
    all.running[leader - 1].take().expect("it runs").finish().with_code(0);
    let other = (1..=3).find(|server| *server != leader).expect("another");
    assert_eq!(Guest::of(&all, other).ask("BALANCE 2"), format!(":{}", 1_000_000 + moved));
}

#[test]
fn each_line_of_a_log_has_the_time_and_the_server() {
    let mut all = Processes::start_clusters(1, |text| text);
    all.kill(2);
    let mut command = all.command(2, "--format");
    command.env("RUST_LOG", "info");
    all.launch_as(2, command);
    all.listens(2);
    all.leader(1..=3);
    all.running[1].as_ref().expect("it runs").interrupt();
    let log = all.running[1].take().expect("it runs").finish().with_code(0).err;
    assert!(log.contains("is told to stop") && log.contains("S2 stops"), "{log}");
    for line in log.lines() {
        let head = line.split_once(']').map_or("", |(head, _)| head);
        assert!(head.starts_with("[20") && head.contains("Z ") && head.contains(" S2 "), "{line}");
    }
}
