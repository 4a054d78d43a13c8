//! One server of the simulation: the core that ships, and what its turn takes.

use crate::bench::predict::log::{CountedLog, count_blocks};
use crate::bench::predict::work::{BLOCK, BYTE, LINK, LOG_BYTE, MESSAGE, SYNC, TAKEN, TURN, Work};
use crate::bench::predict::world::{Sending, Turn, processor_ns};
use crate::codec::{self, kind};
use crate::config::{Limits, Timeouts, Topology};
use crate::drive;
use crate::net;
use crate::shard::{Input, Shard};
use crate::sim::{Outbox, Packet, Place, Sent};
use crate::storage::Recovered;
use crate::txn::{self, message::Request};
use crate::types::{Ballot, ClientId, Incarnation, NodeId, Slot, Time};

/// Clients of servers are numbered from 1, as in the bank they come from; servers that recover something, from here.
const SERVERS_FROM: u64 = 1 << 32;

pub struct Server {
    pub shard: Shard,
    log: CountedLog,
    inbox: Vec<Input>,
    /// What it is to take in the inbox.
    arrived: Work,
    random: u64,
    frame: Vec<u8>,
}

impl Server {
    /// A server of a new bank.
    pub fn new(id: NodeId, topology: Topology, random: u64) -> Result<Server, String> {
        let mut log = CountedLog::default();
        let recovered = Recovered {
            incarnation: Incarnation(u128::from(id.0)),
            founder: true,
            promised: Ballot::ZERO,
            decided: Slot::ZERO,
            noted: Slot::ZERO,
            snapshot: None,
            votes: Vec::new(),
            loss: None,
            torn: None,
            damaged: Vec::new(),
        };
        let limits = Limits { snapshot_bytes: u64::MAX, ..Limits::default() };
        let bounds = (Timeouts::default(), limits);
        let shard = drive::restore(id, topology, bounds, Time(0), random, &mut log, recovered)
            .map_err(|e| e.to_string())?;
        Ok(Server { shard, log, inbox: Vec::new(), arrived: Work::default(), random, frame: Vec::new() })
    }

    /// A connection to another server stands as soon as it is wanted.
    pub fn connected(&mut self, to: NodeId) {
        self.inbox.push(Input::Remote(txn::Input::Connected(to)));
    }

    pub fn receive(&mut self, from: Place, packet: Packet, bytes: usize) {
        self.arrived.add(MESSAGE, 1);
        self.arrived.add(BYTE, bytes as f64);
        let input = match (from, packet) {
            (Place::Server(from), Packet::Peer(message)) => Input::Peer { from, message },
            (Place::Server(from), Packet::Response(_, response)) => {
                Input::Remote(txn::Input::Response { from, response })
            }
            (_, Packet::Request(client, request)) => {
                if let Request::Submit { blocks, .. } = &request {
                    count_blocks(blocks, |_, transactions| {
                        self.arrived.add(BLOCK, 1);
                        self.arrived.add(TAKEN, transactions);
                    });
                }
                Input::Request { client, request }
            }
            (from, packet) => panic!("{from} sends a server {packet:?}"),
        };
        self.inbox.push(input);
    }

    pub fn has_input(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Runs the turn of the loop that begins now; `None` if there is nothing to do.
    pub fn turn(&mut self, now: Time) -> Result<Option<Turn>, String> {
        let mut inputs = std::mem::take(&mut self.inbox);
        if self.shard.next_deadline() <= now {
            self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            inputs.push(Input::Timer { random: self.random >> 16 });
        } else if inputs.is_empty() && !self.shard.has_backlog() {
            return Ok(None);
        }
        let mut work = std::mem::take(&mut self.arrived);
        let applied = self.shard.bank().applied();
        let begun = processor_ns();
        let mut outbox = Outbox::new(now, 0);
        drive::turn(now, &mut self.shard, &mut self.log, inputs, &mut outbox)
            .map_err(|e| format!("{}: {e}", self.shard.id()))?;
        let mut turn = Turn::default();
        for (_, syncs, sent) in outbox.sent {
            let (to, packet) = match sent {
                Sent::Peer(to, message) => (Place::Server(to), Packet::Peer(message)),
                Sent::Client(client, response) => (place_of(client), Packet::Response(client, response)),
                Sent::Remote(to, request) => {
                    let me = ClientId(SERVERS_FROM + u64::from(self.shard.id().0));
                    (Place::Server(to), Packet::Request(me, request))
                }
                Sent::Connect(to) => {
                    turn.connect.push((Place::Server(self.shard.id()), to));
                    continue;
                }
                Sent::Paxos(_) | Sent::Shard(_) | Sent::Synced => continue,
            };
            let bytes = frame_bytes(&packet, &mut self.frame);
            work.add(MESSAGE, 1);
            work.add(BYTE, bytes as f64);
            turn.send.push(Sending { to, packet, bytes, at: if syncs > 0 { None } else { Some(0.0) } });
        }
        turn.took_ns = processor_ns() - begun;
        let (bytes, syncs) = self.log.take_written();
        (turn.log_bytes, turn.syncs) = (bytes, syncs);
        work.add(TURN, 1);
        // Its own coordinator has a look at the end of each round, of which every sync begins another one.
        work.add(LINK, u32::from(self.shard.topology().clusters) * (1 + syncs));
        work.add(SYNC, syncs);
        work.add(LOG_BYTE, bytes as f64);
        self.log.count(applied, self.shard.bank().applied(), &mut work);
        turn.work = work;
        turn.more = self.shard.has_backlog();
        turn.deadline = Some(self.shard.next_deadline());
        Ok(Some(turn))
    }
}

fn place_of(client: ClientId) -> Place {
    match client.0.checked_sub(SERVERS_FROM) {
        Some(server) => Place::Server(NodeId(server as u16)),
        None => Place::Client(client.0 as u32),
    }
}

/// Puts a message into its frame, as a connection does, to see how long that is.
pub fn frame_bytes(packet: &Packet, frame: &mut Vec<u8>) -> usize {
    frame.clear();
    match packet {
        Packet::Peer(message) => net::encode(kind::PEER, frame, |out| codec::encode(message, out)),
        Packet::Request(_, request) => net::encode(kind::REQUEST, frame, |out| codec::encode(request, out)),
        Packet::Response(_, response) => {
            net::encode(kind::RESPONSE, frame, |out| codec::encode(response, out))
        }
        other => panic!("{other:?} is no message"),
    }
    frame.len()
}
