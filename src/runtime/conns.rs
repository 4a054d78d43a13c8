//! All connections of one event loop: accepted ones and those it opened, decoded into messages.
//!
//! One bad connection is closed and reported; it never stops the loop. A frame that was queued may be lost with its
//! connection, and a full send buffer loses messages to a peer: the protocol bears both.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Registry, Token, Waker};
use serde::Serialize;

use crate::codec::{self, Hello, Opener, kind};
use crate::config::{Timeouts, Topology, limits};
use crate::net::{Address, Connection, Frame, Limits, ReadStatus, Resolver};
use crate::paxos::Message;
use crate::resp::codec::Args;
use crate::resp::{self, ProtocolError};
use crate::runtime::order::{Order, Report};
use crate::txn::message::{Request, Response};
use crate::types::{NodeId, Time};

/// Pause before a connection that failed is tried again; it doubles with each failure up to the longest, and starts
/// over once a connection has lasted.
const REDIAL_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_REDIAL_PAUSE: Duration = Duration::from_millis(80);

/// How long an accepted connection may take to say who it is.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);

/// Requests of one connection that speaks RESP under way at once; more are not read.
const PIPELINE: usize = 4096;

/// Enough for a hello or a rejection, and too little to hurt.
const GREETING: Limits = Limits { frame_bytes: 4096, send_bytes: 64 * 1024 };

/// What this end is, told in every hello and held against every other end's.
#[derive(Clone, Debug)]
pub struct Context {
    pub cluster_id: u128,
    pub topology: Topology,
    pub timeouts: Timeouts,
    pub addresses: BTreeMap<NodeId, Endpoints>,
}

/// Where one server is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoints {
    /// By the other servers of its cluster.
    pub peer: Address,
    /// By clients, operators, and servers of other clusters that recover a transaction. It may be the same address.
    pub client: Address,
    /// By whoever reads its HTTP pages.
    pub admin: Option<Address>,
}

impl From<Address> for Endpoints {
    fn from(address: Address) -> Endpoints {
        Endpoints { peer: address.clone(), client: address, admin: None }
    }
}

impl Context {
    /// Where a server expects somebody who comes as `opener`.
    pub fn address(&self, server: NodeId, opener: &Opener) -> Option<&Address> {
        let endpoints = self.addresses.get(&server)?;
        Some(if matches!(opener, Opener::Peer { .. }) { &endpoints.peer } else { &endpoints.client })
    }

    pub fn hello(&self, to: NodeId, opener: Opener) -> Hello {
        Hello::new(self.cluster_id, (self.topology, self.timeouts), to, opener)
    }
}

/// Who is served where a connection came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    Peers,
    Clients,
    Anybody,
}

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Accepted, no hello yet.
    Stranger,
    /// A server of this cluster, sending.
    Peer(NodeId),
    Client,
    /// Speaks RESP instead of frames.
    Resp,
    Admin,
    /// A server that this end dialled.
    Dialled(NodeId),
}

/// One decoded frame, or news about a connection.
#[derive(Debug)]
pub enum Received {
    Hello(Hello),
    Peer(Message),
    Request(Request),
    Response(Response),
    Order(Order),
    Report(Report),
    Reject(String),
    /// A request of who speaks RESP, or what is wrong with what it sent; nothing follows that.
    Resp(Result<Args, ProtocolError>),
    /// A connection that this end dialled stands.
    Established(NodeId),
    Closed,
}

/// What came over which connection. The role goes with it, since the connection may be closed by the time it is read.
pub struct Item {
    pub token: usize,
    pub role: Role,
    pub received: Received,
}

struct Conn {
    connection: Connection,
    role: Role,
    established: bool,
    door: Door,
    /// Requests of who speaks RESP that have no reply yet.
    unanswered: usize,
    /// Whether a whole request came of who speaks RESP.
    spoke: bool,
    /// It sends no more, and waits for its last replies.
    ended: bool,
}

#[derive(Default)]
struct Dial {
    token: Option<usize>,
    retry_at: Time,
    failures: u32,
    /// Who wanted the connection, while the server's name is being looked up for it.
    waits: Option<Opener>,
}

/// The connections of one event loop.
pub struct Conns {
    pub context: Context,
    registry: Registry,
    resolver: Resolver,
    conns: HashMap<usize, Conn>,
    next_token: usize,
    dials: BTreeMap<NodeId, Dial>,
    /// Connections that may have more to read than was read so far.
    ready: BTreeSet<usize>,
    /// Connections with something to write.
    dirty: BTreeSet<usize>,
    /// Accepted connections in the order of their arrival, greeted or not.
    strangers: VecDeque<(Time, usize)>,
    /// Connections that were found broken while nothing could be closed.
    broken: Vec<(usize, std::io::Error)>,
    bytes_closed: (u64, u64),
    pub dropped: u64,
}

impl Conns {
    /// Tokens below `first_token` belong to the caller; none is ever used twice, so that a late event hits nobody.
    /// `waker` wakes the loop when a name was looked up.
    pub fn new(context: Context, registry: Registry, waker: Arc<Waker>, first_token: usize) -> Conns {
        Conns {
            context,
            registry,
            resolver: Resolver::new(waker),
            conns: HashMap::new(),
            next_token: first_token,
            dials: BTreeMap::new(),
            ready: BTreeSet::new(),
            dirty: BTreeSet::new(),
            strangers: VecDeque::new(),
            broken: Vec::new(),
            bytes_closed: (0, 0),
            dropped: 0,
        }
    }

    /// Bytes received and sent on all connections so far.
    pub fn bytes(&self) -> (u64, u64) {
        self.conns
            .values()
            .fold(self.bytes_closed, |(i, o), c| (i + c.connection.bytes_in(), o + c.connection.bytes_out()))
    }

    pub fn role(&self, token: usize) -> Option<Role> {
        self.conns.get(&token).map(|c| c.role)
    }

    /// Through which door a connection came in.
    pub fn door(&self, token: usize) -> Option<Door> {
        self.conns.get(&token).map(|c| c.door)
    }

    /// Takes in a connection that was accepted.
    pub fn accepted(&mut self, now: Time, stream: TcpStream, door: Door) {
        match Connection::accepted(stream, GREETING) {
            Ok(connection) => {
                let token = self.insert(connection, Role::Stranger, door);
                self.strangers.extend(token.map(|t| (now, t)));
            }
            Err(e) => log::warn!("a connection broke while it was accepted: {e}"),
        }
    }

    /// Closes connections that never said who they are: each holds a descriptor.
    pub fn expire_strangers(&mut self, now: Time, received: &mut Vec<Item>) {
        while let Some((since, token)) = self.strangers.front().copied() {
            if now.since(since) < GREETING_PATIENCE {
                return;
            }
            self.strangers.pop_front();
            let silent = |conn: &Conn| conn.role == Role::Stranger || conn.role == Role::Resp && !conn.spoke;
            if self.conns.get(&token).is_some_and(silent) {
                self.close(token, "no hello came", received);
            }
        }
    }

    fn insert(&mut self, mut connection: Connection, role: Role, door: Door) -> Option<usize> {
        let token = self.next_token;
        self.next_token += 1;
        if let Err(e) = connection.register(&self.registry, Token(token)) {
            log::warn!("a connection could not be watched: {e}");
            return None;
        }
        self.conns.insert(
            token,
            Conn {
                connection,
                role,
                established: role == Role::Stranger,
                door,
                unanswered: 0,
                spoke: false,
                ended: false,
            },
        );
        self.ready.insert(token);
        Some(token)
    }

    /// The connection to `server`, dialled if there is none and the last failure is not too fresh. Frames may be queued
    /// on it at once.
    pub fn dial(&mut self, now: Time, server: NodeId, opener: Opener) -> Option<usize> {
        let dial = self.dials.entry(server).or_default();
        if dial.token.is_some() || dial.retry_at > now {
            return dial.token;
        }
        let address = self.context.address(server, &opener)?;
        let Some(found) = self.resolver.resolve(address) else {
            dial.waits = Some(opener);
            return None;
        };
        dial.waits = None;
        // A connection that lasted longer than any pause was a good one.
        if now.since(dial.retry_at) > LONGEST_REDIAL_PAUSE {
            dial.failures = 0;
        }
        dial.retry_at = now + (REDIAL_PAUSE * (1 << dial.failures)).min(LONGEST_REDIAL_PAUSE);
        dial.failures = (dial.failures + 1).min(8);
        let found = match found {
            Ok(found) => found[dial.failures as usize % found.len()],
            Err(e) => {
                log::debug!("cannot dial {server}: {e}");
                return None;
            }
        };
        let limits = match opener {
            Opener::Peer { .. } => {
                Limits { frame_bytes: GREETING.frame_bytes, send_bytes: limits::PEER_BUFFER_BYTES }
            }
            _ => Limits { frame_bytes: limits::CLIENT_FRAME_BYTES, send_bytes: limits::CLIENT_BUFFER_BYTES },
        };
        let connection = match Connection::connect(found, limits) {
            Ok(connection) => connection,
            Err(e) => {
                log::debug!("cannot dial {server} at {address} ({found}): {e}");
                return None;
            }
        };
        let token = self.insert(connection, Role::Dialled(server), Door::Anybody)?;
        self.dials.entry(server).or_default().token = Some(token);
        let hello = self.context.hello(server, opener);
        self.send(token, kind::HELLO, &hello);
        Some(token)
    }

    /// Dials servers whose names have been looked up.
    pub fn dial_resolved(&mut self, now: Time) {
        let waiting = self.dials.iter().filter_map(|(server, dial)| Some((*server, dial.waits?)));
        for (server, opener) in waiting.collect::<Vec<_>>() {
            self.dial(now, server, opener);
        }
    }

    /// Whether a dialled connection to `server` stands.
    pub fn dialled(&self, server: NodeId) -> Option<usize> {
        self.dials.get(&server)?.token
    }

    /// When the next failed dial to one of `servers` may be tried again. Others are dialled when somebody asks for them.
    pub fn redial_due(&self, servers: &[NodeId]) -> Option<Time> {
        let dials = servers.iter().filter_map(|s| self.dials.get(s));
        dials.filter(|d| d.token.is_none() && d.waits.is_none()).map(|d| d.retry_at).min()
    }

    /// Gives a stranger its role, and with it its limits.
    pub fn greet(&mut self, token: usize, role: Role) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        conn.role = role;
        conn.connection.set_limits(match role {
            Role::Peer(_) => {
                Limits { frame_bytes: limits::PEER_FRAME_BYTES, send_bytes: GREETING.send_bytes }
            }
            _ => Limits { frame_bytes: limits::CLIENT_FRAME_BYTES, send_bytes: limits::CLIENT_BUFFER_BYTES },
        });
    }

    /// Queues a message; `false` if the connection is gone or full, in which case nothing was queued.
    pub fn send<T: Serialize>(&mut self, token: usize, kind: u8, message: &T) -> bool {
        let Some(conn) = self.conns.get_mut(&token) else { return false };
        let queued = conn.connection.queue(kind, |out| codec::encode(message, out));
        if queued {
            self.dirty.insert(token);
        } else {
            self.dropped += 1;
        }
        queued
    }

    /// Queues replies to who speaks RESP: the bytes of `count` of them.
    pub fn reply(&mut self, token: usize, count: usize, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let full = conn.unanswered >= PIPELINE;
        conn.unanswered = conn.unanswered.saturating_sub(count);
        if conn.connection.queue_encoded(bytes) {
            self.dirty.insert(token);
        } else {
            // It is not read any more while its buffer is full, so this is more than its pipeline takes.
            self.broken.push((token, std::io::Error::other("it does not read its replies")));
        }
        if full && conn.unanswered < PIPELINE || conn.ended && conn.unanswered == 0 {
            self.ready.insert(token);
        }
    }

    /// An event arrived for this token.
    pub fn wake(&mut self, token: usize) {
        if self.conns.contains_key(&token) {
            self.ready.insert(token);
            self.dirty.insert(token);
        }
    }

    /// Whether something can be read without waiting for an event.
    pub fn has_more(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Reads whatever is there, up to a budget for each connection, and decodes it.
    pub fn receive(&mut self, received: &mut Vec<Item>) {
        for token in std::mem::take(&mut self.ready) {
            let Some(conn) = self.conns.get_mut(&token) else { continue };
            // Back-pressure: who does not read its answers is not read either. It comes back when its buffer drains.
            if matches!(conn.role, Role::Client | Role::Resp) && conn.connection.is_full() {
                continue;
            }
            if let Err(why) = read_one(conn, token, received, &mut self.ready) {
                self.close(token, &why, received);
            }
        }
    }

    /// Writes what is queued, as far as the sockets take it. The rest goes when a socket reports that it is writable.
    pub fn flush(&mut self, received: &mut Vec<Item>) {
        let mut broken = std::mem::take(&mut self.broken);
        broken.extend(self.flush_all());
        for (token, error) in broken {
            self.close(token, &error.to_string(), received);
        }
    }

    /// The same without closing anything: what is broken is kept for the next flush. A system tells of a refused
    /// connection only once; who forgot it would wait for that connection for ever.
    pub fn flush_quietly(&mut self) {
        let broken = self.flush_all();
        self.broken.extend(broken);
    }

    fn flush_all(&mut self) -> Vec<(usize, std::io::Error)> {
        let mut broken = Vec::new();
        for token in std::mem::take(&mut self.dirty) {
            let Some(conn) = self.conns.get_mut(&token) else { continue };
            let was_full = conn.connection.is_full();
            match conn.connection.flush() {
                Ok(_) if was_full && !conn.connection.is_full() => _ = self.ready.insert(token),
                Ok(_) => {}
                Err(e) => broken.push((token, e)),
            }
        }
        broken
    }

    /// Closes one connection and reports it.
    pub fn close(&mut self, token: usize, why: &str, received: &mut Vec<Item>) {
        let Some(mut conn) = self.conns.remove(&token) else { return };
        // What is queued may be a rejection that explains the closing; whether it arrives is up to the network.
        let _ = conn.connection.flush();
        self.bytes_closed.0 += conn.connection.bytes_in();
        self.bytes_closed.1 += conn.connection.bytes_out();
        self.ready.remove(&token);
        self.dirty.remove(&token);
        match conn.role {
            Role::Dialled(server) => {
                self.dials.entry(server).or_default().token = None;
                log::debug!("connection to {server} closed: {why}");
            }
            role => log::debug!("connection from {role:?} closed: {why}"),
        }
        received.push(Item { token, role: conn.role, received: Received::Closed });
    }

    /// Closes everything but the operators' connections at once; nothing that was queued is sent. An operator who pulls
    /// the cable that the servers share still has to hear that it is done.
    pub fn close_all(&mut self, received: &mut Vec<Item>) {
        let closed: Vec<_> = self.conns.extract_if(|_, conn| conn.role != Role::Admin).collect();
        for (token, conn) in closed {
            self.bytes_closed.0 += conn.connection.bytes_in();
            self.bytes_closed.1 += conn.connection.bytes_out();
            self.ready.remove(&token);
            self.dirty.remove(&token);
            received.push(Item { token, role: conn.role, received: Received::Closed });
        }
        self.dials.clear();
    }
}

fn read_one(
    conn: &mut Conn,
    token: usize,
    received: &mut Vec<Item>,
    ready: &mut BTreeSet<usize>,
) -> Result<(), String> {
    if !conn.established {
        match conn.connection.finish_connect() {
            Ok(true) => {
                conn.established = true;
                if let Role::Dialled(server) = conn.role {
                    received.push(Item { token, role: conn.role, received: Received::Established(server) });
                }
            }
            Ok(false) => return Ok(()),
            Err(e) => return Err(e.to_string()),
        }
    }
    let status = conn.connection.fill();
    if conn.role == Role::Stranger && conn.door != Door::Peers && speaks_resp(conn.connection.pending()) {
        conn.role = Role::Resp;
        conn.connection.set_limits(Limits {
            frame_bytes: resp::codec::MAX_REQUEST_BYTES,
            send_bytes: limits::CLIENT_BUFFER_BYTES,
        });
    }
    if conn.role == Role::Resp && !read_requests(conn, token, received) {
        // What is left is read when there are fewer to be answered.
        return Ok(());
    }
    while conn.role != Role::Resp {
        match conn.connection.next_frame() {
            Ok(Some(frame)) => {
                let decoded = decode(conn.role, frame)?;
                received.push(Item { token, role: conn.role, received: decoded });
            }
            Ok(None) => break,
            Err(e) => {
                log::warn!("closing the connection with {:?}: {e}", conn.role);
                return Err(e.to_string());
            }
        }
        // A stranger says one thing; what follows, the end of the stream included, is read again with the limits of who
        // it turns out to be.
        if conn.role == Role::Stranger {
            ready.insert(token);
            return Ok(());
        }
    }
    match status {
        Ok(ReadStatus::Drained) => Ok(()),
        Ok(ReadStatus::More) => {
            ready.insert(token);
            Ok(())
        }
        Ok(ReadStatus::Eof) if conn.unanswered > 0 => {
            conn.ended = true;
            Ok(())
        }
        Ok(ReadStatus::Eof) => match conn.connection.unfinished_bytes() {
            0 => Err("closed by the other end".into()),
            cut => {
                log::warn!("{:?} closed the connection in the middle of a frame ({cut} bytes)", conn.role);
                Err(format!("closed in the middle of a frame, after {cut} bytes"))
            }
        },
        Err(e) => Err(e.to_string()),
    }
}

/// Whether the first bytes are no frame: those of a hello begin with a length far below 65,536, and text has no zeros.
fn speaks_resp(first: &[u8]) -> bool {
    matches!(first, [_, _, third, fourth, ..] if third | fourth != 0)
}

/// Takes whole requests; `false` if too many have no reply yet.
fn read_requests(conn: &mut Conn, token: usize, received: &mut Vec<Item>) -> bool {
    while conn.unanswered < PIPELINE {
        let request = match resp::decode(conn.connection.pending()) {
            Ok(None) => return true,
            Ok(Some((args, bytes))) => {
                conn.connection.consume(bytes);
                if args.is_empty() {
                    continue;
                }
                Ok(args)
            }
            Err(e) => {
                log::warn!("closing the connection with {:?}: {e}", conn.role);
                conn.connection.consume(usize::MAX);
                Err(e)
            }
        };
        conn.unanswered += 1;
        conn.spoke = true;
        let role = conn.role;
        let stop = request.is_err();
        received.push(Item { token, role, received: Received::Resp(request) });
        if stop {
            return true;
        }
    }
    false
}

fn decode(role: Role, frame: Frame<'_>) -> Result<Received, String> {
    let decoded = match (role, frame.kind) {
        (Role::Stranger, kind::HELLO) => codec::decode(frame.payload).map(Received::Hello),
        (Role::Peer(_), kind::PEER) => codec::decode(frame.payload).map(Received::Peer),
        (Role::Client, kind::REQUEST) => codec::decode(frame.payload).map(Received::Request),
        (Role::Admin, kind::ADMIN) => codec::decode(frame.payload).map(Received::Order),
        (Role::Dialled(_), kind::RESPONSE) => codec::decode(frame.payload).map(Received::Response),
        (Role::Dialled(_), kind::REPORT) => codec::decode(frame.payload).map(Received::Report),
        (Role::Dialled(_), kind::REJECT) => codec::decode(frame.payload).map(Received::Reject),
        (_, kind) => Err(format!("a frame of kind {kind} has no place here")),
    };
    decoded.inspect_err(|e| log::warn!("closing the connection with {role:?}: {e}"))
}

#[cfg(test)]
mod tests;
