//! Whatever anybody sends to a server's port closes that one connection, with a word in the log, and harms nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;

use shardpaxosbank::codec::{self, Hello, Opener, kind};
use shardpaxosbank::config::{Timeouts, Topology, limits};
use shardpaxosbank::net::{FrameReader, encode};
use shardpaxosbank::runtime::config_file;
use shardpaxosbank::storage::{FileDisk, read_identity};
use shardpaxosbank::types::NodeId;
use shardpaxosbank::workload::SplitMix64;

use crate::common::{LIMIT, Running, audit, audit_set, bank, peak_memory_kb, put, run, set_text, temp};
use crate::process::{config_text, free_ports};

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(kind, &mut bytes, |out| out.extend_from_slice(payload));
    bytes
}

fn hello(hello: &Hello) -> Vec<u8> {
    let mut payload = Vec::new();
    codec::encode(hello, &mut payload);
    frame(kind::HELLO, &payload)
}

/// Sends the bytes and, if `cut`, ends the stream; the server must close its end. What it said before that, if it is a
/// rejection.
fn attack(address: SocketAddr, bytes: &[u8], cut: bool) -> Option<String> {
    let mut stream = TcpStream::connect(address).expect("the server accepts connections");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    stream.set_write_timeout(Some(LIMIT)).expect("a limit");
    // The server may have had enough before all is sent.
    let _ = stream.write_all(bytes);
    if cut {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        Err(e) => panic!("the connection stays open ({e}) after {} bytes", bytes.len()),
    }
    if let Some(text) = answer.strip_prefix(b"-ERR ") {
        return Some(String::from_utf8_lossy(text).into());
    }
    let mut reader = FrameReader::new();
    let room = reader.space(answer.len());
    room[..answer.len()].copy_from_slice(&answer);
    reader.filled(answer.len());
    let frame = reader.next_frame(answer.len()).expect("what a server sends is sound")?;
    (frame.kind == kind::REJECT).then(|| codec::decode(frame.payload).expect("a text"))
}

#[test]
fn nothing_that_arrives_stops_the_bank() {
    let dir = temp();
    let path = put(dir.path(), "cluster.toml", &config_text(1, &free_ports(3)));
    let config = config_file::load(Path::new(&path)).expect("a sound configuration");
    let start = |s: u16| {
        let data = dir.path().join(format!("S{s}")).display().to_string();
        let name = format!("S{s}");
        let mut command =
            bank(&["node", "--config", &path, "--server", &name, "--data-dir", &data, "--format"]);
        command.env("RUST_LOG", "warn");
        Running::start(command)
    };
    let mut servers: Vec<Running> = (1..=3).map(start).collect();
    servers.iter_mut().for_each(|s| assert!(s.line().is_some(), "it listens"));
    let topology = config.context.topology;
    let rows = ["(1, 2, 1)", "(3, 4, 1)", "(1)"].map(String::from);
    let file = put(dir.path(), "some.csv", &set_text(1, &topology, &rows));
    run(&["run", &file, "--config", &path, "--json"]).with_code(0);

    let address = config.context.addresses[&NodeId(1)].client.resolve().expect("a literal")[0];
    let cluster_id = config.context.cluster_id;
    let timeouts = config.context.timeouts;
    let good = |opener| Hello::new(cluster_id, (topology, timeouts), NodeId(1), opener);
    let hasty = Timeouts { election_timeout_ms: 77, ..timeouts };
    // In the name of a server that runs, with its own disk's number: any other is turned away.
    let disk = |server: u16| {
        let known = read_identity(&FileDisk::look(dir.path().join(format!("S{server}"))));
        known.map_or(7, |(identity, _)| identity.incarnation)
    };
    let opener = |server| Opener::Peer { server: NodeId(server), incarnation: disk(server), process: 7 };
    let peer = |server| good(opener(server));
    let mut rng = SplitMix64::new(1);
    let mut noise = |bytes: usize| -> Vec<u8> { (0..bytes).map(|_| rng.next_u64() as u8).collect() };
    let client = hello(&good(Opener::Client));

    // No frame at all, or a bad one.
    // Of what it did not read any more the system tells the other end, which then may not get the answer.
    for (bytes, read) in [
        (noise(100_000), false),
        (b"GET / HTTP/1.1\r\nHost: bank\r\n\r\n".to_vec(), true),
        (b"*9999\r\n".to_vec(), true),
    ] {
        let said = attack(address, &bytes, false);
        assert!(!read || said.as_ref().is_some_and(|text| text.contains("Protocol error")), "{said:?}");
        servers[0].complains_of("closing the connection");
    }
    for bytes in [
        vec![0; 64],
        [&5000u32.to_le_bytes()[..], &noise(100)].concat(),
        frame(99, b"no such kind"),
        frame(kind::HELLO, b""),
        frame(kind::HELLO, &noise(500)),
        frame(kind::REQUEST, &noise(50)),
    ] {
        assert_eq!(attack(address, &bytes, false), None);
        servers[0].complains_of("closing the connection");
    }
    // Cut short at every length.
    for end in 1..client.len() {
        assert_eq!(attack(address, &client[..end], true), None);
    }
    servers[0].complains_of("in the middle of a frame");
    // Every byte wrong in turn: refused by checksum, or never whole.
    for at in 0..client.len() {
        let mut bytes = client.clone();
        bytes[at] ^= 0x40;
        // With these it looks like text, and is no command.
        let said = attack(address, &bytes, true);
        assert!(said.is_none() || (2..4).contains(&at), "byte {at}: {said:?}");
    }

    // Sound frames that do not belong here are refused by name.
    let odd = Topology { accounts: 11, ..topology };
    for (wrong, part) in [
        (Hello { magic: 1, ..good(Opener::Client) }, "does not speak this protocol"),
        (Hello { version: 77, ..good(Opener::Client) }, "version 77"),
        (Hello { cluster_id: 3, ..good(Opener::Client) }, "bank 00000000000000000000000000000003"),
        (Hello { topology: odd, ..good(Opener::Client) }, "accounts: 11"),
        (
            Hello { timeouts: hasty, ..good(Opener::Client) },
            "[timeouts] election_timeout_ms is 77, here it is 300",
        ),
        (Hello { to: NodeId(2), ..good(Opener::Client) }, "looks for S2"),
        (peer(1), "S1 is no peer"),
        (peer(9), "S9 is no peer"),
        (
            good(Opener::Peer { server: NodeId(2), incarnation: 7, process: 7 }),
            "another S2 runs, with another data directory",
        ),
        (peer(2), "another S2 runs, with a copy of this data directory"),
    ] {
        let reason = attack(address, &hello(&wrong), false).unwrap_or_default();
        assert!(reason.contains(part), "no {part:?} in {reason:?}");
        servers[0].complains_of(part);
    }

    // A good beginning and a bad end, in each role; in that of a server that does not run any more.
    drop(servers.pop());
    let largest = |limit: usize| [&(limit as u32 + 1).to_le_bytes()[..], &[0; 100]].concat();
    for opener in [Opener::Client, Opener::Admin, opener(3)] {
        let (own, limit) = match opener {
            Opener::Client => (kind::REQUEST, limits::CLIENT_FRAME_BYTES),
            Opener::Admin => (kind::ADMIN, limits::CLIENT_FRAME_BYTES),
            Opener::Peer { .. } => (kind::PEER, limits::PEER_FRAME_BYTES),
        };
        let begin = hello(&good(opener));
        for end in [
            [&[0x77; 8][..], &noise(5000)].concat(),
            vec![0xff; 16],
            largest(limit),
            frame(99, b"no such kind"),
            frame(own, b""),
            frame(own, &[0xff; 300]),
            frame(own, &noise(300)),
            frame(kind::RESPONSE, &noise(30)),
            begin.clone(),
        ] {
            assert_eq!(attack(address, &[&begin[..], &end].concat(), false), None, "{opener:?}");
            servers[0].complains_of("closing the connection");
        }
    }

    // Many that announce much and send little cost little, however long they stay.
    let waiting: Vec<TcpStream> = (0..100)
        .map(|i| {
            let mut stream = TcpStream::connect(address).expect("the server accepts connections");
            let announced = (limits::PEER_FRAME_BYTES as u32 - i).to_le_bytes();
            let opener = hello(&peer(3));
            stream.write_all(&[&opener[..], &announced, &[0; 3000]].concat()).expect("it is read");
            stream
        })
        .collect();
    let ran = run(&["run", &file, "--config", &path, "--json"]).with_code(0);
    assert_eq!(ran.sets()[0]["performance"]["committed"], 2);
    for server in &servers {
        let peak = peak_memory_kb(server.id());
        assert!(peak < 100_000, "{peak} kB");
    }
    drop(waiting);
    let mut third = start(3);
    assert!(third.line().is_some(), "it listens");

    let check = put(dir.path(), "audit.csv", &audit_set(1, &topology));
    let ran = run(&["run", &check, "--config", &path, "--json"]).with_code(0);
    let held = audit(&ran.sets()[0], &topology);
    assert_eq!([1, 2, 3, 4].map(|a| held[&a]), [98, 102, 98, 102]);
}
