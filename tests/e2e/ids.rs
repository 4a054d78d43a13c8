//! Transfers with an id: whichever servers are asked for one, and however often, it takes effect once or not at all.

use crate::common::{bank, eventually, put, run};
use crate::process::{Guest, Processes};

#[test]
fn a_transfer_with_an_id_takes_effect_once_at_whatever_servers() {
    let mut all = Processes::start(|text| text);
    let session = Guest::of(&all, 4).ask("SESSION");
    let mut guests: Vec<Guest> = (1..=9).map(|server| Guest::of(&all, server)).collect();
    for guest in &mut guests {
        assert_eq!(guest.ask(&format!("TRANSFER 1 11 7 ID {session}:1")), "+OK");
        assert_eq!(guest.ask("BALANCE 11"), ":107");
        assert_eq!(guest.ask(&format!("TXN {session}:1")), "+committed");
        let other = guest.ask(&format!("TRANSFER 1 11 8 ID {session}:1"));
        assert!(other.starts_with("-IDREUSED "), "{other}");
        assert_eq!(guest.ask(&format!("TXN {session}:2")), "+never seen");
    }
    let s5 = &mut guests[4];
    for (request, part) in [
        (format!("TRANSFER 1 2 1000 ID {session}:2"), "-INSUFFICIENT "),
        (format!("TXN {session}:2"), "+aborted: insufficient-balance"),
        (format!("TRANSFER 1 2 1 ID {session}:4097"), "-SESSIONFULL "),
        ("TRANSFER 1 2 1 ID D1-999:1".into(), "-EXPIRED "),
        ("TRANSFER 1 2 1 ID D9-1:1".into(), "-EXPIRED "),
        ("TXN D1-999:1".into(), "+never seen"),
        (format!("TRANSFER 1 2 1 ID {session}:0"), "-ERR "),
    ] {
        let said = s5.ask(&request);
        assert!(said.starts_with(part), "{request}: {said}");
    }

    // Without a majority of the sender's cluster nobody can say what becomes of it, and asking again is safe.
    let third = format!("TRANSFER 3 21 5 ID {session}:3");
    all.kill(1);
    all.kill(2);
    let s9 = &mut guests[8];
    let said = s9.ask(&third);
    assert!(said.starts_with("-UNKNOWN ") || said.starts_with("-NOQUORUM "), "{said}");
    // Nor of one that has committed, least of all that it was refused.
    let first = format!("{session}:1");
    let said = s9.ask(&format!("TXN {first}"));
    assert!(said.starts_with("-UNAVAILABLE "), "{said}");
    let said = run(&["client", "--config", &all.path, "txn", &first]).with_code(3).err;
    assert!(said.contains("ask again") && !said.contains("aborted"), "{said}");
    all.launch(1);
    all.listens(1);
    let told = eventually("a definite answer", || {
        let said = guests[4].ask(&third);
        (!said.starts_with("-UNKNOWN ")).then_some(said)
    });
    let moved = match told.as_str() {
        "+OK" => 5,
        // An attempt had reached one cluster, and was fenced there.
        refused if refused.starts_with("-NOQUORUM ") => 0,
        other => panic!("{other}"),
    };
    assert_eq!(guests[8].ask(&third), told, "a definite answer stays");
    assert_eq!(guests[8].ask("BALANCE 21"), format!(":{}", 100 + moved));
    assert_eq!(guests[4].ask("BALANCE 3"), format!(":{}", 100 - moved));
    assert_eq!(guests[4].ask(&format!("TXN {first}")), "+committed");
    all.launch(2);
    all.listens(2);
    all.agree();
}

/// Two servers are given the same ids at the same time; for some of them, different transfers.
#[test]
fn servers_that_carry_out_the_same_ids_at_once_come_to_the_same_end() {
    let all = Processes::start(|text| text);
    let mut one = Guest::of(&all, 1);
    let mut other = Guest::of(&all, 9);
    let session = one.ask("SESSION");
    const ROUNDS: u64 = 60;
    for seq in 1..=ROUNDS {
        let (from, to) = (1 + seq % 10, 21 + seq % 10);
        one.send(&format!("TRANSFER {from} {to} 1 ID {session}:{seq}"));
        // Every third id is another transfer's there: backwards, or within one cluster.
        let rival = match seq % 6 {
            0 => format!("TRANSFER {to} {from} 2 ID {session}:{seq}"),
            3 => format!("TRANSFER {from} {} 2 ID {session}:{seq}", 11 + seq % 10),
            _ => format!("TRANSFER {from} {to} 1 ID {session}:{seq}"),
        };
        other.send(&rival);
    }
    for seq in 1..=ROUNDS {
        let (mine, theirs) = (one.line(), other.line());
        if seq % 3 != 0 {
            assert_eq!(mine, theirs, "{seq}: one transfer, one end");
        } else {
            assert!(mine != "+OK" || theirs != "+OK", "{seq}: one id, two transfers");
        }
    }
    let sum: i64 = (1..=30)
        .map(|account| one.ask(&format!("BALANCE {account}"))[1..].parse::<i64>().expect("a balance"))
        .sum();
    assert_eq!(sum, 3_000);
    all.agree();
}

/// Each call of the command line is a client of its own: it must not leave its locks to the next one.
#[test]
fn one_call_after_the_other_finds_no_lock_of_the_last() {
    let all = Processes::start(|text| text);
    let client = |arguments: &[&str]| run(&[&["client", "--config", &all.path], arguments].concat());
    for _ in 0..6 {
        assert_eq!(client(&["transfer", "1", "21", "1"]).with_code(0).out, "committed\n");
    }
    assert_eq!(client(&["balance", "21"]).with_code(0).out, "106\n");
}

/// One server is configured otherwise and turns the client away. The others serve it, and what they say counts.
#[test]
fn a_server_that_turns_a_client_away_is_not_the_bank() {
    let mut all = Processes::start(|text| text);
    let text = std::fs::read_to_string(&all.path).expect("a file");
    let other =
        put(all.dir.path(), "other.toml", &format!("{text}\n[timeouts]\nelection_timeout_ms = 301\n"));
    let odd = (1..=3).find(|server| *server != all.leader(1..=3)).expect("a follower");
    all.kill(odd);
    let data = all.place(odd).display().to_string();
    let name = format!("n{odd}");
    all.launch_as(odd, bank(&["node", "--config", &other, "--server", &name, "--data-dir", &data]));
    all.listens(odd);
    let client =
        |config: &str, arguments: &[&str]| run(&[&["client", "--config", config], arguments].concat());
    for _ in 0..5 {
        assert_eq!(client(&all.path, &["transfer", "1", "2", "1"]).with_code(0).out, "committed\n");
    }
    let said = client(&other, &["transfer", "1", "2", "1"]).with_code(2).err;
    assert!(said.contains("election_timeout_ms is 301"), "{said}");
    let said = client(&other, &["txn", "D1-1:1"]).with_code(2).err;
    assert!(said.contains("election_timeout_ms is 301"), "{said}");
}

#[test]
fn the_command_line_has_ids_too() {
    let all = Processes::start(|text| text);
    let client = |arguments: &[&str]| run(&[&["client", "--config", &all.path], arguments].concat());
    let session = client(&["session"]).with_code(0).out.trim().to_string();
    let id = format!("{session}:1");
    for _ in 0..2 {
        assert_eq!(client(&["transfer", "1", "21", "7", "--id", &id]).with_code(0).out, "committed\n");
    }
    assert_eq!(client(&["balance", "21"]).with_code(0).out, "107\n");
    assert_eq!(client(&["txn", &id]).with_code(0).out, "committed\n");
    assert_eq!(client(&["txn", &format!("{session}:2")]).with_code(0).out, "never seen\n");
    let reused = client(&["transfer", "1", "21", "8", "--id", &id]).with_code(1).err;
    assert!(reused.contains("aborted: id-reused"), "{reused}");
    let nobody = client(&["transfer", "1", "21", "8", "--id", "D2-77:1"]).with_code(3).err;
    assert!(nobody.contains("never opened"), "{nobody}");
    let bad = client(&["txn", "7"]).with_code(2).err;
    assert!(bad.contains("SESSION:SEQUENCE"), "{bad}");
}
