//! What a server does for clients that speak RESP: it takes any request, whichever shards that is about, and sees it through as
//! a client of the bank, under a session of its own.
//!
//! A connection is answered in the order of its requests, so replies wait for those in front of them. A request that is under
//! way when its server dies is lost to its client, as is any that was answered *unknown*: a repetition without an id is another
//! transfer, one with an id is the same, at whatever server.

use std::collections::{HashMap, VecDeque};

use mio::event::Event;

use crate::config::{Timeouts, Topology};
use crate::metrics::{Durations, Served};
use crate::report::Scope;
use crate::resp::codec::Args;
use crate::resp::{self, Command, Protocol, ProtocolError, Reply};
use crate::runtime::conns::{Conns, Item, Role};
use crate::runtime::outlet::{Outlet, Refusals};
use crate::shard::Shard;
use crate::txn::{Coordinator, Input, Op, Outcome, Output};
use crate::types::{AccountId, Reason, Time, TxnId};

/// Transfers and reads under way for all connections together; more are answered with `BUSY`, but for a few of each.
const IN_FLIGHT: usize = 16 * 1024;
/// So many one connection may have under way whatever the others do.
const GRANTED: usize = 16;

/// The id under which a client sent its transfer, if under any.
fn id_of(op: Op) -> Option<TxnId> {
    match op {
        Op::Named { id, .. } => Some(id),
        _ => None,
    }
}

/// Whether a connection with `own` under way may have one more, while there are `all` of all connections: as long as it has
/// fewer than are still free, so that those who want much leave room for each other.
fn admits(own: usize, all: usize) -> bool {
    own < GRANTED || own < IN_FLIGHT.saturating_sub(all)
}

/// A connection that had more requests than this under way keeps no memory for as many.
const BURST: usize = 256;

/// One connection.
#[derive(Default)]
struct Guest {
    protocol: Protocol,
    name: String,
    /// One for each request without a reply so far, the oldest first.
    replies: VecDeque<Option<Reply>>,
    /// How many requests were answered before these.
    answered: u64,
    /// How many of them the coordinator has.
    under_way: usize,
    /// After the last of these replies the connection is closed.
    leaves: bool,
}

/// A request that its coordinator sees through.
struct Asked {
    /// The connection, and the number of the request on it.
    asker: (usize, u64),
    op: Op,
    since: Time,
}

/// The coordinator that a server hosts, and those who use it.
pub struct Gateway {
    outlet: Outlet,
    guests: HashMap<usize, Guest>,
    /// By tag.
    asked: HashMap<u64, Asked>,
    next_tag: u64,
    out: Output,
    /// Connections that have something to be sent, or to be closed.
    ready: Vec<usize>,
    turned_away: Refusals,
    topology: Topology,
    served: Served,
}

impl Gateway {
    /// `conns` is for its own connections, of which it dials each; `now` is the beginning.
    pub fn new(conns: Conns, topology: Topology, timeouts: Timeouts, now: Time) -> Gateway {
        Gateway {
            outlet: Outlet { conns, coordinator: Coordinator::hosted(topology, timeouts, now) },
            guests: HashMap::new(),
            asked: HashMap::new(),
            next_tag: 1,
            out: Output::default(),
            ready: Vec::new(),
            turned_away: Refusals::default(),
            topology,
            served: Served::default(),
        }
    }

    /// What it has done so far, and what it has to do.
    pub fn served(&self) -> Served {
        Served { connections: self.guests.len() as u64, under_way: self.asked.len() as u64, ..self.served }
    }

    /// Where the time goes that such a request takes, if anywhere.
    fn durations(&mut self, op: Op) -> Option<&mut Durations> {
        match op {
            Op::Transfer(transfer) | Op::Named { transfer, .. } => {
                match Scope::of(&transfer, &self.topology)? {
                    Scope::IntraShard => Some(&mut self.served.within),
                    Scope::CrossShard => Some(&mut self.served.across),
                }
            }
            Op::Read(_) => Some(&mut self.served.reads),
            Op::Open | Op::Lookup(_) | Op::Confirm { .. } | Op::Settle => None,
        }
    }

    /// An event arrived for one of its own connections.
    pub fn wake(&mut self, event: &Event) {
        self.outlet.conns.wake(event);
    }

    /// Whether it has something to do without waiting for an event.
    pub fn has_more(&self) -> bool {
        self.outlet.conns.has_more() || !self.ready.is_empty() || !self.out.answers.is_empty()
    }

    /// When a turn is wanted even if nothing arrives.
    pub fn next_deadline(&self) -> Option<Time> {
        self.outlet.coordinator.next_deadline()
    }

    /// Bytes received and sent on its own connections.
    pub fn bytes(&self) -> (u64, u64) {
        self.outlet.conns.bytes()
    }

    /// Takes no more requests. Each connection is closed when it has the replies to those that came.
    pub fn dismiss(&mut self) {
        for (token, guest) in &mut self.guests {
            guest.leaves = true;
            self.ready.push(*token);
        }
    }

    /// Whether some connection still waits for replies.
    pub fn has_guests(&self) -> bool {
        !self.guests.is_empty()
    }

    /// A connection is gone; what it asked for goes on.
    pub fn left(&mut self, token: usize) {
        self.guests.remove(&token);
    }

    /// Its server is cut off: nobody is served any more, and nothing it asked for is answered.
    pub fn cut_off(&mut self, now: Time) {
        self.guests.clear();
        let mut closed = Vec::new();
        self.outlet.conns.close_all(&mut closed);
        for item in closed {
            self.outlet.take(now, item, &mut self.out);
        }
    }

    /// A request came, or what is none.
    pub fn request(&mut self, now: Time, token: usize, request: Result<Args, ProtocolError>, shard: &Shard) {
        let guest = self.guests.entry(token).or_default();
        if guest.leaves {
            return;
        }
        let number = guest.answered + guest.replies.len() as u64;
        guest.replies.push_back(None);
        self.ready.push(token);
        let reply = match request.map(|args| resp::parse(&args)) {
            Err(e) => {
                guest.leaves = true;
                Some(e.into())
            }
            Ok(Err(wrong)) => Some(wrong),
            Ok(Ok(Command::Transfer { transfer, id })) => {
                let op = id.map_or(Op::Transfer(transfer), |id| Op::Named { id, transfer });
                self.submit(now, (token, number), op)
            }
            Ok(Ok(Command::Session)) => self.submit(now, (token, number), Op::Open),
            Ok(Ok(Command::Txn(id))) => self.submit(now, (token, number), Op::Lookup(id)),
            Ok(Ok(Command::Balance { account, local: false })) => {
                self.submit(now, (token, number), Op::Read(account))
            }
            Ok(Ok(Command::Balance { account, local: true })) => Some(local_balance(account, shard)),
            Ok(Ok(command)) => Some(guest.obey(token, command, shard)),
        };
        if let Some(reply) = reply {
            self.answer(token, number, reply);
        }
    }

    /// Gives it to the coordinator, or says why not.
    fn submit(&mut self, now: Time, asker: (usize, u64), op: Op) -> Option<Reply> {
        let guest = self.guests.entry(asker.0).or_default();
        if !admits(guest.under_way, self.asked.len()) {
            self.served.refused += 1;
            return Some(resp::outcome::overloaded(id_of(op)));
        }
        guest.under_way += 1;
        let tag = self.next_tag;
        self.next_tag += 1;
        self.asked.insert(tag, Asked { asker, op, since: now });
        self.outlet.coordinator.step(now, Input::Submit { tag, op }, &mut self.out);
        None
    }

    fn answer(&mut self, token: usize, number: u64, reply: Reply) {
        let Some(guest) = self.guests.get_mut(&token) else { return };
        let place = number.checked_sub(guest.answered).and_then(|n| guest.replies.get_mut(n as usize));
        if let Some(place) = place {
            *place = Some(reply);
            self.ready.push(token);
        }
    }

    /// Reads what servers answered, acts on it, and hands replies to `conns`, where the clients' connections are. Returns the
    /// connections that are to be closed once that has left.
    pub fn turn(&mut self, now: Time, conns: &mut Conns) -> Vec<usize> {
        let mut received: Vec<Item> = Vec::new();
        self.outlet.conns.dial_resolved(now);
        self.outlet.conns.receive(now, &mut received);
        for item in received.drain(..) {
            let role = item.role;
            if let Some(why) = self.outlet.take(now, item, &mut self.out)
                && let Role::Dialled(from) = role
                && self.turned_away.is_news(from, &why)
            {
                log::error!("gateway: {why}");
            }
        }
        loop {
            let answers = self.outlet.end_turn(now, &mut self.out);
            if answers.is_empty() && self.out.answers.is_empty() {
                break;
            }
            for answer in answers {
                // A second answer tells how what was unknown has ended; the client has its reply.
                let Some(Asked { asker: (token, number), op, since }) = self.asked.remove(&answer.tag) else {
                    continue;
                };
                if let Some(durations) = self.durations(op) {
                    durations.record(now.since(since));
                }
                if let Some(guest) = self.guests.get_mut(&token) {
                    guest.under_way -= 1;
                }
                let reply = self.reply_to(op, answer.outcome);
                self.answer(token, number, reply);
            }
        }
        self.outlet.conns.flush(&mut received);
        for item in received {
            self.outlet.take(now, item, &mut self.out);
        }
        self.release(conns)
    }

    /// What a client hears of the outcome of what it asked for.
    fn reply_to(&self, op: Op, outcome: Outcome) -> Reply {
        match outcome {
            Outcome::Committed | Outcome::Confirmed(_) | Outcome::Settled => Reply::OK,
            Outcome::Balance(balance) => resp::outcome::balance(balance),
            Outcome::Aborted(reason) => resp::outcome::refused(reason),
            Outcome::Unknown => resp::outcome::unknown(id_of(op)),
            Outcome::NoAnswer => resp::outcome::no_answer(),
            Outcome::Opened(session) => resp::outcome::opened(session),
            Outcome::SessionFull => resp::outcome::session_full(self.outlet.coordinator.named_max()),
            Outcome::Closed => resp::outcome::closed(),
            Outcome::Forgotten => resp::outcome::forgotten(),
            Outcome::Found(found) => Reply::Simple(found.to_string().into()),
        }
    }

    /// Sends every reply that has none missing in front of it.
    fn release(&mut self, conns: &mut Conns) -> Vec<usize> {
        let mut leaving = Vec::new();
        let mut ready = std::mem::take(&mut self.ready);
        ready.sort_unstable();
        ready.dedup();
        for token in ready {
            let Some(guest) = self.guests.get_mut(&token) else { continue };
            let (mut bytes, mut count) = (Vec::new(), 0);
            while let Some(Some(reply)) = guest.replies.front() {
                reply.encode(guest.protocol, &mut bytes);
                guest.replies.pop_front();
                count += 1;
            }
            guest.answered += count as u64;
            if count > 0 {
                conns.reply(token, count, &bytes);
            }
            if guest.replies.is_empty() && guest.replies.capacity() > BURST {
                guest.replies.shrink_to_fit();
            }
            if guest.leaves && guest.replies.is_empty() {
                self.guests.remove(&token);
                leaving.push(token);
            }
        }
        leaving
    }
}

fn local_balance(account: AccountId, shard: &Shard) -> Reply {
    match shard.bank().balance(account) {
        Some(balance) => resp::outcome::balance(balance),
        None => match shard.topology().shard_of(account) {
            None => resp::outcome::refused(Reason::UnknownAccount),
            Some(other) => Reply::Error(format!(
                "ERR account {account} is not on this server but on those of cluster C{}; ask one of them, or leave LOCAL out",
                other.0
            )),
        },
    }
}

impl Guest {
    /// What needs nobody else.
    fn obey(&mut self, token: usize, command: Command, shard: &Shard) -> Reply {
        let bulk = |text: &str| Reply::Bulk(text.as_bytes().to_vec());
        match command {
            Command::Ping(None) => Reply::Simple("PONG".into()),
            Command::Ping(Some(message)) | Command::Echo(message) => Reply::Bulk(message),
            Command::Select | Command::Client(resp::Client::SetInfo) => Reply::OK,
            Command::Quit => {
                self.leaves = true;
                Reply::OK
            }
            Command::Hello { protocol, auth, name } => {
                if auth {
                    return Reply::Error("ERR there are no users and passwords here; leave AUTH out".into());
                }
                self.protocol = protocol.unwrap_or(self.protocol);
                self.name = name.unwrap_or_else(|| std::mem::take(&mut self.name));
                let proto = if self.protocol == Protocol::Resp3 { 3 } else { 2 };
                let role = if shard.replica().is_leader() { "master" } else { "replica" };
                Reply::Map(vec![
                    (bulk("server"), bulk("shardpaxosbank")),
                    (bulk("version"), bulk(env!("CARGO_PKG_VERSION"))),
                    (bulk("proto"), Reply::Integer(proto)),
                    (bulk("id"), Reply::Integer(token as i64)),
                    (bulk("mode"), bulk("standalone")),
                    (bulk("role"), bulk(role)),
                    (bulk("modules"), Reply::Array(Vec::new())),
                ])
            }
            Command::Client(resp::Client::Id) => Reply::Integer(token as i64),
            Command::Client(resp::Client::GetName) if self.name.is_empty() => Reply::Null,
            Command::Client(resp::Client::GetName) => bulk(&self.name),
            Command::Client(resp::Client::SetName(name)) => {
                self.name = name;
                Reply::OK
            }
            // Tools ask for what they cannot do without, and are content with nothing.
            Command::ConfigGet(name) => Reply::Map(vec![(bulk(&name), bulk(""))]),
            Command::Command(Some(what)) if what == "count" => Reply::Integer(0),
            Command::Command(Some(what)) if what == "docs" => Reply::Map(Vec::new()),
            Command::Command(_) => Reply::Array(Vec::new()),
            Command::Info(_) => Reply::Bulk(info(shard).into_bytes()),
            Command::Session | Command::Txn(_) | Command::Transfer { .. } | Command::Balance { .. } => {
                unreachable!("the coordinator was given these")
            }
        }
    }
}

fn info(shard: &Shard) -> String {
    let (replica, bank, topology) = (shard.replica(), shard.bank(), shard.topology());
    format!(
        "# Server\r\nshardpaxosbank_version:{}\r\nserver:{}\r\ncluster:C{}\r\nclusters:{}\r\nservers_per_cluster:{}\r\n\
         accounts:{}\r\n# Replication\r\nrole:{}\r\nballot:{}\r\ndecided:{}\r\napplied:{}\r\ndigest:{:016x}\r\nin_doubt:{}\r\n",
        env!("CARGO_PKG_VERSION"),
        shard.id(),
        shard.shard().0,
        topology.clusters,
        topology.servers_per_cluster,
        topology.accounts,
        if replica.is_leader() { "leader" } else { "follower" },
        replica.promised(),
        replica.decided(),
        bank.applied(),
        bank.digest(),
        bank.holds().len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four connections that asked for as much as they could kept everybody else out.
    #[test]
    fn a_connection_gets_in_whatever_the_others_ask_for() {
        let mut under_way = [0_usize; 200];
        for _ in 0..IN_FLIGHT {
            for i in 0..100 {
                let all = under_way.iter().sum();
                under_way[i] += usize::from(admits(under_way[i], all));
            }
            if under_way[..100].iter().all(|own| !admits(*own, under_way.iter().sum())) {
                break;
            }
        }
        assert!(under_way[..100].iter().all(|own| (GRANTED..=IN_FLIGHT / 50).contains(own)), "{under_way:?}");
        let all: usize = under_way.iter().sum();
        assert!(all <= IN_FLIGHT + 100 * GRANTED, "{all}");
        assert!(admits(GRANTED - 1, IN_FLIGHT) && admits(0, 10 * IN_FLIGHT), "for those who come later");
        assert!(admits(4095, 4095) && !admits(GRANTED, IN_FLIGHT));
    }
}
