//! All connections of one event loop: accepted ones and those it opened, decoded into messages.
//!
//! One bad connection is closed and reported; it never stops the loop. A frame that was queued may be lost with its
//! connection, and a full send buffer loses messages to a peer: the protocol bears both.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Registry, Token, Waker};
use serde::Serialize;

use crate::codec::{self, Hello, Opener, kind};
use crate::config::{Timeouts, Topology, limits};
use crate::net::{Address, Connection, Limits, Resolver};
use crate::paxos::Message;
use crate::resp::ProtocolError;
use crate::resp::codec::Args;
use crate::runtime::order::{Order, Report};
use crate::txn::message::{Request, Response};
use crate::types::{NodeId, Time};

/// How long an accepted connection may take to say who it is.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);

/// A connection whose other end confirms nothing is given up after four time-outs for unreachable servers, but not before this.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(5);
/// The same for clients, who may honestly take nothing for a while: their window being shut counts as silence, too.
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);

/// Requests of one connection that speaks RESP under way at once; more are not read.
const PIPELINE: usize = 4096;

/// What clients may make a loop do in one turn, all together: requests taken, and bytes read. Whoever is left out comes first
/// in the next turn. A turn that took whatever thousands of clients have sent would keep consensus waiting for seconds.
const TURN_REQUESTS: usize = 4096;
const TURN_BYTES: usize = 4 * 1024 * 1024;
/// The least that one of them gets in its turn, however many there are.
const SHARE_REQUESTS: usize = 64;
const SHARE_BYTES: usize = 16 * 1024;

/// Connections without traffic for this long give the memory of their buffers back.
const QUIET: Duration = Duration::from_secs(1);

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

/// What may be taken from one connection in one turn.
#[derive(Clone, Copy)]
struct Share {
    requests: usize,
    bytes: usize,
}

impl Share {
    const WHOLE: Share = Share { requests: usize::MAX, bytes: Connection::READ_BUDGET };
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
    /// Where it comes from, or goes to.
    remote: SocketAddr,
    /// When something last came or went.
    active: Time,
    /// It sends no more, or nothing that makes sense, and waits for its last replies.
    ended: bool,
}

impl Conn {
    /// A client that does not read is not read from, and waited for.
    fn spare_the_slow(&mut self) {
        if let Err(e) = self.connection.give_up_after(CLIENT_PATIENCE) {
            log::debug!("{}: {e}", self.remote);
        }
    }

    /// Who it is with, for logs.
    fn name(&self) -> String {
        name(self.role, self.remote)
    }
}

fn name(role: Role, remote: SocketAddr) -> String {
    match role {
        Role::Dialled(server) => format!("{server} at {remote}"),
        Role::Peer(server) => format!("{server} at {remote} (a peer)"),
        role => format!("{role:?} at {remote}"),
    }
}

/// The connections of one event loop.
pub struct Conns {
    pub context: Context,
    registry: Registry,
    resolver: Resolver,
    conns: HashMap<usize, Conn>,
    next_token: usize,
    dials: BTreeMap<NodeId, dials::Dial>,
    /// Connections that may have more to read than was read so far.
    ready: BTreeSet<usize>,
    /// The client with which the next turn begins.
    first_client: usize,
    /// Connections with something to write.
    dirty: BTreeSet<usize>,
    /// When the last turn began.
    now: Time,
    /// When quiet connections are looked for again.
    quiet_at: Time,
    /// Accepted connections in the order of their arrival, greeted or not.
    strangers: VecDeque<(Time, usize)>,
    /// Connections that nobody but this module knows any more, until what is queued has left.
    leaving: BTreeMap<usize, leaving::Leaving>,
    /// Connections that were found broken while nothing could be closed.
    broken: Vec<(usize, std::io::Error)>,
    bytes_closed: (u64, u64),
    crowd: crowd::Crowd,
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
            first_client: 0,
            now: Time::default(),
            quiet_at: Time::default(),
            dirty: BTreeSet::new(),
            strangers: VecDeque::new(),
            leaving: BTreeMap::new(),
            broken: Vec::new(),
            bytes_closed: (0, 0),
            crowd: crowd::Crowd::default(),
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

    /// Who a connection is with, for logs.
    pub fn name(&self, token: usize) -> String {
        self.conns.get(&token).map_or_else(|| "somebody".into(), Conn::name)
    }

    /// Through which door a connection came in.
    pub fn door(&self, token: usize) -> Option<Door> {
        self.conns.get(&token).map(|c| c.door)
    }

    /// Takes in a connection that was accepted.
    pub fn accepted(
        &mut self,
        now: Time,
        (stream, remote): (TcpStream, SocketAddr),
        door: Door,
        received: &mut Vec<Item>,
    ) {
        self.now = now;
        if !self.has_room(door, received) {
            return self.refuse(stream);
        }
        match Connection::accepted(stream, GREETING) {
            Ok(connection) => {
                let token = self.insert(connection, Role::Stranger, remote, door);
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

    fn insert(
        &mut self,
        mut connection: Connection,
        role: Role,
        remote: SocketAddr,
        door: Door,
    ) -> Option<usize> {
        let token = self.next_token;
        self.next_token += 1;
        let patience = (4 * self.context.timeouts.unreachable()).max(SHORTEST_PATIENCE);
        let watched = connection.give_up_after(patience);
        if let Err(e) = watched.and_then(|()| connection.register(&self.registry, Token(token))) {
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
                remote,
                active: self.now,
                ended: false,
            },
        );
        self.ready.insert(token);
        Some(token)
    }

    /// Gives a stranger its role, and with it its limits. A peer has one connection: its older one, which it has given up or
    /// which another process of its name has, is closed.
    pub fn greet(&mut self, token: usize, role: Role) {
        if matches!(role, Role::Peer(_)) {
            let older: Vec<usize> =
                self.conns.iter().filter(|(_, conn)| conn.role == role).map(|(older, _)| *older).collect();
            for older in older {
                self.close(older, "a newer one took its place", &mut Vec::new());
            }
        }
        let Some(conn) = self.conns.get_mut(&token) else { return };
        conn.role = role;
        if role == Role::Client {
            conn.spare_the_slow();
        }
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
            if let (Role::Dialled(server), kind::PEER) = (conn.role, kind) {
                self.dials.entry(server).or_default().sent(self.now);
            }
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

    /// An event arrived for one of its connections.
    pub fn wake(&mut self, event: &Event) {
        let Token(token) = event.token();
        if let Some(conn) = self.conns.get_mut(&token) {
            conn.connection.announce(event);
        }
        self.look_at(token);
    }

    fn look_at(&mut self, token: usize) {
        self.step_leaving(token);
        if self.conns.contains_key(&token) {
            self.ready.insert(token);
            self.dirty.insert(token);
        }
    }

    /// Whether something can be read without waiting for an event.
    pub fn has_more(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Reads what is there and decodes it: of servers and operators all, up to a budget for each connection, and of clients
    /// what fits into one turn, each in its turn.
    pub fn receive(&mut self, now: Time, received: &mut Vec<Item>) {
        self.now = now;
        let is_client = |conn: &Conn| matches!(conn.role, Role::Client | Role::Resp);
        let (clients, others): (BTreeSet<usize>, BTreeSet<usize>) = std::mem::take(&mut self.ready)
            .into_iter()
            .partition(|token| self.conns.get(token).is_some_and(is_client));
        for token in others {
            self.receive_from(token, Share::WHOLE, received);
        }
        let many = clients.len().max(1);
        let share = Share {
            requests: (TURN_REQUESTS / many).max(SHARE_REQUESTS),
            bytes: (TURN_BYTES / many).clamp(SHARE_BYTES, Connection::READ_BUDGET),
        };
        let (mut requests, mut bytes) = (TURN_REQUESTS, TURN_BYTES as u64);
        let first = self.first_client;
        let mut waiting = clients.range(first..).chain(clients.range(..first)).copied();
        while requests > 0 && bytes > 0 {
            let Some(token) = waiting.next() else { break };
            let before = (received.len(), self.bytes_in(token));
            self.receive_from(token, share, received);
            requests = requests.saturating_sub(received.len() - before.0);
            bytes = bytes.saturating_sub(self.bytes_in(token).saturating_sub(before.1));
            self.first_client = token + 1;
        }
        self.ready.extend(waiting);
    }

    fn bytes_in(&self, token: usize) -> u64 {
        self.conns.get(&token).map_or(0, |conn| conn.connection.bytes_in())
    }

    fn receive_from(&mut self, token: usize, share: Share, received: &mut Vec<Item>) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        if conn.ended {
            // It comes back here when all is answered.
            if conn.unanswered == 0 {
                self.leave(token, "it sends no more", received);
            }
            return;
        }
        // Back-pressure: who does not read its answers is not read either. It comes back when its buffer drains.
        if matches!(conn.role, Role::Client | Role::Resp) && conn.connection.is_full() {
            return;
        }
        let before = conn.connection.bytes_in();
        let read = read::read(conn, token, share, received);
        if conn.connection.bytes_in() != before {
            conn.active = self.now;
            if let Role::Peer(server) = conn.role {
                self.dials.entry(server).or_default().unheard = None;
            }
        }
        match read {
            Ok(true) => _ = self.ready.insert(token),
            Ok(false) => {}
            Err(why) if matches!(conn.role, Role::Client | Role::Resp) => self.leave(token, &why, received),
            Err(why) => self.close(token, &why, received),
        }
    }

    /// Takes memory back from connections on which nothing moves, once in a while: most have nothing to say most of the time.
    pub fn tend(&mut self, now: Time) {
        self.expire_leaving(now);
        if now < self.quiet_at {
            return;
        }
        self.quiet_at = now + QUIET;
        for conn in self.conns.values_mut().filter(|conn| now.since(conn.active) >= QUIET) {
            conn.connection.release();
        }
        self.tell_of_crowd();
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
            let (was_full, before) = (conn.connection.is_full(), conn.connection.bytes_out());
            let flushed = conn.connection.flush();
            if conn.connection.bytes_out() != before {
                conn.active = self.now;
            }
            match flushed {
                Ok(_) if was_full && !conn.connection.is_full() => _ = self.ready.insert(token),
                Ok(_) => {}
                Err(e) => broken.push((token, e)),
            }
        }
        broken
    }

    /// Closes one connection and reports it.
    pub fn close(&mut self, token: usize, why: &str, received: &mut Vec<Item>) {
        let Some(mut conn) = self.forget(token, why, received) else { return };
        let _ = conn.connection.flush();
    }

    /// Takes a connection out of everything, and reports that it is closed.
    fn forget(&mut self, token: usize, why: &str, received: &mut Vec<Item>) -> Option<Conn> {
        let conn = self.conns.remove(&token)?;
        self.put_away(token, &conn);
        match conn.role {
            Role::Dialled(server) => {
                self.dials.entry(server).or_default().lost(self.now, conn.established);
                log::debug!("connection to {server} closed: {why}");
            }
            _ => log::debug!("the connection with {} is closed: {why}", conn.name()),
        }
        received.push(Item { token, role: conn.role, received: Received::Closed });
        Some(conn)
    }

    /// What is kept of a connection beside itself.
    fn put_away(&mut self, token: usize, conn: &Conn) {
        self.bytes_closed.0 += conn.connection.bytes_in();
        self.bytes_closed.1 += conn.connection.bytes_out();
        self.ready.remove(&token);
        self.dirty.remove(&token);
    }

    /// Closes everything but the operators' connections at once; nothing that was queued is sent. An operator who pulls
    /// the cable that the servers share still has to hear that it is done.
    pub fn close_all(&mut self, received: &mut Vec<Item>) {
        self.leaving.clear();
        let closed: Vec<_> = self.conns.extract_if(|_, conn| conn.role != Role::Admin).collect();
        for (token, conn) in closed {
            self.put_away(token, &conn);
            received.push(Item { token, role: conn.role, received: Received::Closed });
        }
        self.dials.clear();
    }
}

mod crowd;
mod dials;
mod leaving;
mod read;
#[cfg(test)]
mod tests;
